"""Mixtures of streams: exact at every prefix, and the same after a kill anywhere."""

from __future__ import annotations

import itertools
import json

import pytest

from automodel_data import ChatIterableDataset, MixedDataset, MixedStream, PackedSequence, build_dataloader
from automodel_data.collate import default_collater
from automodel_data.errors import DataError

SIZES = {"short": 40, "long": 15, "rare": 7}


@pytest.fixture(scope="module")
def streams(tokenizer):
    """``streams()``: three fresh streams; the first word of an answer names its source."""

    def make(**bad):
        made = {}
        for name, size in SIZES.items():
            answers = [f"{name} {i} " + "word " * (9 if name == "long" else i % 3) for i in range(size)]
            rows = [{"prompt": "q", "completion": answer} for answer in answers]
            made[name] = ChatIterableDataset([*rows, *bad.get(name, [])], tokenizer)
        return made

    return make


WEIGHTS = {"short": 0.5, "long": 0.3, "rare": 0.2}


def origins(rows, tokenizer) -> list[str]:
    texts = (tokenizer.decode([i for i in row["labels"] if i != -100]) for row in rows)
    return [" ".join(text.split()[:2]).removesuffix("<|im_end|>") for text in texts]


def test_every_prefix_is_within_one_row_of_the_weights(streams, tokenizer):
    mixed = MixedStream(streams(), WEIGHTS, num_samples=200)
    rows = list(mixed)
    names = [origin.split()[0] for origin in origins(rows, tokenizer)]
    for n in (1, 7, 10, 55, 200):
        for name, weight in WEIGHTS.items():
            assert abs(names[:n].count(name) - weight * n) <= 1.5
    assert [row["sample_id"] for row in rows] == list(range(200))
    shares = {share.name: share for share in mixed.shares()}
    assert {name: share.num_samples for name, share in shares.items()} == {"short": 100, "long": 60, "rare": 40}
    assert shares["rare"].epochs == 5.0
    assert sum(share.token_share for share in shares.values()) == pytest.approx(1)


def test_the_rows_of_a_source_come_in_order_epoch_after_epoch(streams, tokenizer):
    found = origins(MixedStream(streams(), WEIGHTS, num_samples=200), tokenizer)
    rare = [int(origin.split()[1]) for origin in found if origin.startswith("rare")]
    assert rare == [i % 7 for i in range(40)]


def test_the_same_order_of_sources_as_a_map_style_mixture(streams, tokenizer):
    mapped = MixedDataset({name: list(stream) for name, stream in streams().items()}, WEIGHTS, num_samples=90)
    names = [mapped.origin(i)[0] for i in range(90)]
    found = origins(MixedStream(streams(), WEIGHTS, num_samples=90), tokenizer)
    assert [origin.split()[0] for origin in found] == names


def test_shares_of_tokens(streams, tokenizer):
    mixed = MixedStream(streams(), {"short": 1, "long": 1, "rare": 2}, by="tokens", num_samples=1000)
    rows = list(mixed)
    tokens = dict.fromkeys(SIZES, 0)
    for row, origin in zip(rows, origins(rows, tokenizer), strict=True):
        tokens[origin.split()[0]] += len(row["input_ids"])
    shares = {name: num / sum(tokens.values()) for name, num in tokens.items()}
    assert shares == pytest.approx({"short": 0.25, "long": 0.25, "rare": 0.5}, abs=0.01)
    assert {share.name: share.token_share for share in mixed.shares()} == pytest.approx(shares)


@pytest.mark.parametrize(("stop", "whole"), [("all_exhausted", "short"), ("first_exhausted", "rare")])
def test_an_epoch_ends_when_all_or_the_first_source_has(stop, whole, streams, tokenizer):
    found = origins(MixedStream(streams(), {"short": 1, "long": 1, "rare": 1}, stop=stop), tokenizer)
    seen = {name: [o for o in found if o.startswith(name)] for name in SIZES}
    assert len(seen[whole]) == SIZES[whole]
    if stop == "all_exhausted":
        assert {name: len(set(origins)) for name, origins in seen.items()} == SIZES
    else:
        assert len(found) == pytest.approx(3 * SIZES[whole], abs=2)


@pytest.mark.parametrize("by", ["samples", "tokens"])
@pytest.mark.parametrize("row", [0, 1, 30, 69, 120])
def test_reading_on_from_any_row(row, by, streams):
    pairs = list(MixedStream(streams(), WEIGHTS, by=by, num_samples=120).rows())
    position = None if row == 0 else json.loads(json.dumps(pairs[row - 1][1]))
    assert list(MixedStream(streams(), WEIGHTS, by=by, num_samples=120).rows(position)) == pairs[row:]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("stop", [1, 3, 6])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_mixture_resumes_exactly(packed, stop, before, after, streams):
    def loader(world, rank=0):
        mixed = MixedStream(streams(), WEIGHTS, num_samples=100)
        rows = PackedSequence(mixed, packed_sequence_size=96, strategy="window").pack() if packed else mixed
        return build_dataloader(
            rows,
            collate_fn=default_collater,
            global_batch_size=4,
            local_batch_size=2,
            dp_rank=rank,
            dp_size=world,
            seed=1,
            shuffle_block=30,
        )

    def windows(ranks):
        per_rank, size = [list(rank) for rank in ranks], 2 // len(ranks)
        starts = range(0, len(per_rank[0]), size)
        return [
            [i for r in per_rank for b in r[s : s + size] for i in b["sample_ids"].tolist() if i >= 0] for s in starts
        ]

    whole = windows([loader(1)])
    assert sorted(i for window in whole for i in window) == list(range(100))
    stopped = loader(before)
    list(itertools.islice(stopped, stop))
    state = json.loads(json.dumps(stopped.state_dict()))
    ranks = [loader(after, rank) for rank in range(after)]
    for rank in ranks:
        rank.load_state_dict(state)
    assert whole[: stop // (2 // before)] + windows(ranks) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"short": 1}}, "must name the same"),
        ({"weights": {**WEIGHTS, "rare": -1}}, "each must be a number >= 0"),
        ({"by": "bytes"}, "by='bytes'"),
        ({"stop": "never"}, "stop='never'.*'all_exhausted' or 'first_exhausted'"),
        ({"stop": "all_exhausted", "num_samples": 9}, "num_samples=9, stop='all_exhausted'.*not both"),
        ({"num_samples": 0}, "num_samples=0.*>= 1"),
    ],
)
def test_mistakes(options, message, streams):
    with pytest.raises(DataError, match=message):
        MixedStream(streams(), **{"weights": WEIGHTS, **options})


def test_streams_and_map_style_datasets_do_not_mix(streams):
    with pytest.raises(DataError, match=r"dataset 'short' of the mixture is a stream\. Use MixedStream"):
        MixedDataset(streams(), WEIGHTS)
    with pytest.raises(DataError, match=r"dataset 'short' of the mixture is no stream \(list\)\. Use MixedDataset"):
        MixedStream({name: list(stream) for name, stream in streams().items()}, WEIGHTS)


def test_a_source_without_a_usable_row_ends_the_mixture(streams, tokenizer):
    empty = ChatIterableDataset([{"x": 1}], tokenizer)
    with pytest.raises(DataError, match="no row of list can be trained on"):
        list(MixedStream({**streams(), "empty": empty}, {**WEIGHTS, "empty": 1}))
