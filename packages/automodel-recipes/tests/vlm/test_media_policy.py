"""Broken media in a vision-language dataset: each is told with its row, by policy; nothing crashes or is replaced."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from automodel_data.collate.vlm import default_collate_fn
from automodel_data.errors import DataError
from automodel_data.loader import build_dataloader
from automodel_data.sources import open_source
from automodel_data.vlm.conversations import Conversations
from automodel_data.vlm.llava import make_llava_dataset
from automodel_data.vlm.rows import VLMDataset
from automodel_recipes.vlm.collate import BoundCollate


def row(*images: str, text: str = "<image>what?") -> dict[str, Any]:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "a thing"}]
    return {"conversations": turns, "images": list(images)}


BAD = {
    "missing file": (row("missing.png"), "media file is missing"),
    "text named like a picture": (row("text.jpg"), "not a readable image"),
    "empty file": (row("empty.png"), "media file is empty"),
    "broken header": (row("header.png"), "not a readable image"),
    "more tags than files": (row("good.png", text="<image><image>what?"), "more <image> tags than image files"),
    "more files than tags": (row("good.png", "good.png"), "more image files than <image> tags"),
    "two where one is allowed": (row("good.png", "good.png", text="<image><image>?"), "2 media in a row"),
    "side above the cap": (row("wide.png"), "image side is too long"),
    "few bytes, many pixels": (row("bomb.png"), "image has too many pixels"),
    "animated": (row("moving.gif"), "image is animated"),
    "outside the roots": (row("../secret.png"), "media path outside the allowed directories"),
    "on a network": (row("https://example.com/a.png"), "media on a network"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of every kind, and none of them read from anywhere else."""
    path = tmp_path_factory.mktemp("media") / "data"
    path.mkdir()
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    noise.save(path / "good.png")
    noise.save(path / "odd.txt", "PNG")
    noise.save(path.parent / "secret.png")
    (path / "text.jpg").write_text("hello")
    (path / "empty.png").touch()
    (path / "header.png").write_bytes((path / "good.png").read_bytes()[:12])
    Image.new("L", (3000, 4)).save(path / "wide.png")
    Image.new("L", (1900, 1900)).save(path / "bomb.png", optimize=True)
    noise.save(path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (64, 64))])
    buffer = io.BytesIO()
    noise.save(buffer, "JPEG", quality=95)
    (path / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return path


@pytest.fixture
def open_rows(folder: Path, families: Any) -> Any:
    """``open_rows(rows, **keys)``: a dataset of the tiny LLaVA over a file beside the pictures."""

    def build(rows: list, **keys: Any) -> VLMDataset:
        source = folder / "rows.jsonl"
        source.write_text("".join(json.dumps(r) + "\n" for r in rows))
        caps = {"media": {"max_side": 2000, "max_pixels": 10**6}, "max_media_per_row": 1}
        return make_llava_dataset(str(source), processor=families("llava")[0], **{**caps, **keys})  # type: ignore[return-value]

    return build


def test_every_defect_is_told_with_its_row_and_the_rest_is_kept(open_rows: Any) -> None:
    bad = [r for r, _ in BAD.values()]
    dataset = open_rows([row("good.png"), *bad, row("odd.txt")], max_bad_fraction=1.0)
    told = [(record.line, record.why) for record in dataset.report.bad_rows]
    assert [line for line, _ in told] == list(range(2, len(bad) + 2))
    for (_, why), (name, (_, expected)) in zip(told, BAD.items(), strict=True):
        assert expected in why, name
    assert dataset.source_rows.tolist() == [0, len(bad) + 1], "a name says nothing, the header counts"
    assert all(record.source.endswith("rows.jsonl") for record in dataset.report.bad_rows)


@pytest.mark.parametrize("name", BAD)
def test_fail_stops_at_the_first_and_names_it(name: str, open_rows: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2: ") as error:
        open_rows([row("good.png"), BAD[name][0]], on_bad="fail")
    assert BAD[name][1] in str(error.value)


def test_too_many_bad_rows_end_the_run(open_rows: Any) -> None:
    with pytest.raises(DataError, match=r"1 of 3 rows of .* max_bad_fraction=0\.01"):
        open_rows([row("good.png"), row("missing.png"), row("good.png")])


def test_media_that_alone_exceed_the_length(open_rows: Any) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, row("good.png")]
    dropped = open_rows(rows, seq_length=12)
    assert (dropped.report.num_too_long, dropped.source_rows.tolist()) == (1, [0])
    cut = open_rows(rows, seq_length=12, overflow="truncate_right", max_bad_fraction=1.0)
    assert [record.why for record in cut.report.bad_rows] == ["media alone exceed seq_length"]
    with pytest.raises(DataError, match="seq_length is 12"):
        open_rows(rows, seq_length=12, overflow="error")


def test_images_shrink_until_the_row_fits(families: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Qwen-VL makes fewer tokens of fewer pixels, LLaVA does not: there the row is dropped."""
    picture = Image.effect_noise((96, 64), 80).convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what?"}]
    rows = [{"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]}]
    rows.append({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}]})
    keys = {"overflow": "shrink_images", "media": None}

    def build(family: str, **more: Any) -> VLMDataset:
        return VLMDataset(Conversations(open_source(rows), dict, limit=None), families(family)[0], **{**keys, **more})

    whole = build("qwen2_5_vl")
    assert (whole.lengths.tolist(), whole.num_shrunk) == ([24, 7], 0)
    with caplog.at_level(logging.WARNING, logger="automodel_data"):
        fitted = build("qwen2_5_vl", seq_length=16)
    assert fitted.num_shrunk == 1
    assert "1 rows have smaller images" in caplog.text
    item = fitted[0]
    assert len(item["input_ids"]) == fitted.lengths[0] <= 16
    assert item["labels"][-2:] == whole[0]["labels"][-2:], "the answer is whole"
    (small,) = fitted.pictures(0)
    assert small.width / small.height == pytest.approx(1.5, rel=0.1)
    assert build("llava", seq_length=20).report.num_too_long == 1


def test_pixels_that_prove_broken_keep_their_place_and_train_nothing(
    open_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_rows([row("good.png"), row("cut.jpg"), row("good.png")])
    assert len(dataset) == 3, "the header is whole"
    with caplog.at_level(logging.WARNING, logger="automodel_data"):
        broken = dataset[1]
    assert "rows.jsonl:2: image data are broken or cut short" in caplog.text
    good = dataset[0]
    assert set(broken["labels"]) == {-100}
    assert broken["input_ids"] == good["input_ids"]
    blank = broken["features"]["pixel_values"]
    assert blank.shape == good["features"]["pixel_values"].shape
    assert float(blank.std()) == 0.0, "black, not another row's picture"
    with pytest.raises(DataError, match=r"rows\.jsonl:2: "):
        open_rows([row("good.png"), row("cut.jpg")], on_bad="fail")[1]


def test_more_broken_pixels_than_allowed_end_the_run(open_rows: Any) -> None:
    dataset = open_rows([row("cut.jpg"), row("cut.jpg"), row("good.png")])
    dataset[0]
    with pytest.raises(DataError, match="2 rows have broken media"):
        dataset[1]


def test_a_worker_lives_through_a_broken_picture(open_rows: Any, families: Any) -> None:
    dataset = open_rows([row("good.png"), row("cut.jpg"), row("good.png"), row("good.png")])
    loader = build_dataloader(
        dataset,
        collate_fn=BoundCollate(default_collate_fn, families("llava")[0], {}),
        global_batch_size=2,
        local_batch_size=2,
        dp_rank=0,
        dp_size=1,
        seed=0,
        shuffle=False,
        num_workers=1,
    )
    batches = list(loader)
    assert torch.cat([batch["sample_ids"] for batch in batches]).tolist() == [0, 1, 2, 3]
    trained = torch.cat([(batch["labels"] != -100).any(1) for batch in batches])
    assert trained.tolist() == [True, False, True, True]
