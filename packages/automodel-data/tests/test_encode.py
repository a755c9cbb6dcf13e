"""Positions from byte lengths equal positions from the tokenizer's own offsets, on every kind of tokenizer."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import normalizers

from automodel_data.encode import TextEncoder, TokenRow
from automodel_data.errors import DataError
from automodel_data.templates import Rendered

ALPHABET = "ab the on\n\n\t  Größe é e\u0301 数学 привет 🙂👩‍👩‍👧 <|im_end|> <s> 12.?!{}\u2581\u00a0"


def random_texts(n: int = 200) -> list[Rendered]:
    rng = random.Random(0)
    texts = []
    for _ in range(n):
        text = "".join(rng.choice(ALPHABET.split(" ")) + rng.choice(["", " ", "  "]) for _ in range(rng.randint(1, 30)))
        cuts = sorted(rng.sample(range(len(text) + 1), min(4, len(text) + 1) // 2 * 2))
        texts.append(Rendered(text, list(zip(cuts[::2], cuts[1::2]))))
    return texts


def labels_by_offsets(tokenizer, rendered: Rendered) -> list[int]:
    encoding = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    return [
        i if any(a < last and b > first for first, last in rendered.spans) else -100
        for i, (a, b) in zip(encoding["input_ids"], encoding["offset_mapping"])
    ]


@pytest.mark.parametrize("kind", ["byte_level", "pieces"])
def test_labels_equal_those_from_offsets(kind, make_tokenizer):
    tokenizer = make_tokenizer("chatml", kind)
    texts = random_texts()
    for text, row in zip(texts, TextEncoder(tokenizer).encode(texts)):
        assert row.input_ids.tolist() == tokenizer(text.text, add_special_tokens=False)["input_ids"]
        if "\ufffd" not in text.text and _whole_characters(tokenizer, text):
            assert row.labels.tolist() == labels_by_offsets(tokenizer, text), text


def _whole_characters(tokenizer, rendered: Rendered) -> bool:
    """Offsets of a character that is split over tokens cover it wholly, byte positions do not: compare elsewhere."""
    offsets = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return all(a < b for a, b in offsets)


def test_a_normalising_tokenizer_falls_back_to_offsets(make_tokenizer):
    import copy

    tokenizer = copy.deepcopy(make_tokenizer("chatml"))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    text = "e\u0301" * 3 + " answer"  # NFC makes one character of two
    row = TextEncoder(tokenizer).encode([Rendered(text, [(7, len(text))])])[0]
    trained = [i for i, label in zip(row.input_ids.tolist(), row.labels.tolist()) if label != -100]
    assert tokenizer.decode(trained) == "answer"


@pytest.mark.parametrize("add_prefix", [False, True])
def test_a_batch_gives_each_text_what_it_gets_alone(add_prefix, make_tokenizer):
    import copy

    tokenizer = copy.deepcopy(make_tokenizer("chatml"))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()  # texts that it changes have no byte positions
    encoder = TextEncoder(tokenizer)
    encoder.prefix_ids = [1]
    whole, untrained, empty = Rendered("on the", [(0, 6)]), Rendered("a b", []), Rendered("", [])
    texts = [*random_texts(), whole, untrained, empty]
    random.Random(1).shuffle(texts)
    assert any(_normalised(tokenizer, text.text) != text.text for text in texts[1:-1])
    rows = encoder.encode(texts, add_prefix=add_prefix)
    for text, row in zip(texts, rows, strict=True):
        alone = encoder.encode([text], add_prefix=add_prefix)[0]
        assert row.input_ids.tolist() == alone.input_ids.tolist(), text
        assert row.labels.tolist() == alone.labels.tolist(), text
    assert encoder.encode([]) == []


def _normalised(tokenizer, text: str) -> str:
    return tokenizer.backend_tokenizer.normalizer.normalize_str(text)


def test_the_first_token_of_a_row_counts_as_no_label():
    assert TokenRow(np.array([5, 6, 7]), np.array([5, -100, 7])).num_label_tokens == 1
    assert TokenRow(np.array([5]), np.array([5])).num_label_tokens == 0


def test_a_token_across_the_start_of_a_span_is_trained(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    text = "What is 12 times 7? The"
    row = TextEncoder(tokenizer).encode([Rendered(text, [(text.index("The"), len(text))])])[0]
    trained = [i for i, label in zip(row.input_ids.tolist(), row.labels.tolist()) if label != -100]
    assert tokenizer.decode(trained).strip() == "The"
    assert row.labels[-1] == row.input_ids[-1]


def test_the_callers_tokenizer_keeps_its_truncation_and_it_does_not_cut(make_tokenizer):
    import copy

    tokenizer = copy.deepcopy(make_tokenizer("chatml"))
    tokenizer("a b", truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.truncation is not None
    row = TextEncoder(tokenizer).encode([Rendered("a b c d e f g", [(0, 3)])])[0]
    assert len(row.input_ids) > 2
    assert tokenizer.backend_tokenizer.truncation is not None


def test_the_tokenizers_own_prefix_comes_once_and_untrained(make_tokenizer):
    import copy

    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(make_tokenizer("chatml"))
    bos = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    encoder = TextEncoder(tokenizer)
    assert encoder.prefix_ids == [bos]
    row = encoder.encode([Rendered("a b", [(0, 3)])], add_prefix=True)[0]
    assert row.input_ids.tolist().count(bos) == 1
    assert row.labels[0] == -100
    assert np.array_equal(row.labels[1:], row.input_ids[1:])


def test_a_slow_tokenizer_is_refused_with_the_way_out():
    with pytest.raises(DataError, match=r"no fast backend.*tokenizer\.json"):
        TextEncoder(object())
