"""One picture in every form that a row may hold it: the same tokens and the same pixels, decoded when asked for."""

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from automodel_data.collate.vlm import default_collate_fn
from automodel_data.errors import DataError
from automodel_data.media import MediaLimits, load_image
from automodel_data.media.parts import FilePart
from automodel_data.sources import open_source
from automodel_data.vlm.conversations import open_rows
from automodel_data.vlm.cord_v2 import make_cord_v2_dataset
from automodel_data.vlm.cv17 import make_cv17_dataset
from automodel_data.vlm.llava import make_llava_dataset
from automodel_data.vlm.medpix import make_medpix_dataset
from automodel_data.vlm.rdr import make_rdr_dataset
from automodel_data.vlm.stream import VLMIterableDataset
from automodel_data.webdataset import TarRows

PICTURE = Image.effect_noise((40, 30), 80).convert("RGB")
_BUFFER = io.BytesIO()
PICTURE.save(_BUFFER, "PNG")
PNG = _BUFFER.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs")
    (path / "a.png").write_bytes(PNG)
    return path


def forms(folder: Path) -> dict[str, Any]:
    return {
        "relative path": "a.png",
        "absolute path": str(folder / "a.png"),
        "file url": f"file://{folder}/a.png",
        "path object": folder / "a.png",
        "bytes": PNG,
        "pil": PICTURE,
        "bytes record": {"bytes": PNG, "path": None},
        "path record": {"bytes": None, "path": str(folder / "a.png")},
        "data url": "data:image/png;base64," + base64.b64encode(PNG).decode(),
        "part of a file": FilePart(folder / "a.png", 0, len(PNG)),
    }


@pytest.mark.parametrize("form", forms(Path()))
def test_every_form_of_a_picture(form: str, folder: Path, families: Any) -> None:
    processor, _ = families("llava")
    rows = [{"image": forms(folder)[form], "text": "noise"}]
    item = make_rdr_dataset(rows, processor=processor, media_root=folder)[0]
    expected = make_rdr_dataset([{"image": PICTURE, "text": "noise"}], processor=processor)[0]
    assert item["input_ids"] == expected["input_ids"]
    assert torch.equal(item["features"]["pixel_values"], expected["features"]["pixel_values"])


@pytest.mark.parametrize("where", ["in memory", "parquet", "two parquet files"])
def test_hugging_face_image_columns_stay_encoded(where: str, tmp_path: Path, families: Any) -> None:
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "more": List(ImageFeature()), "text": Value("string")})
    rows = Dataset.from_list([{"image": PICTURE, "more": [PICTURE, PICTURE], "text": "noise"}] * 2, features=features)
    given: Any = rows
    if where != "in memory":
        given = [str(tmp_path / f"{i}.parquet") for i in range(2 if "two" in where else 1)]
        for path in given:
            rows.to_parquet(path)
    source = open_rows(given, split="train")
    raw = source[len(source) - 1]
    assert raw["image"]["bytes"] == PNG
    assert [part["bytes"] for part in raw["more"]] == [PNG, PNG]
    item = make_rdr_dataset(given, processor=families("llava")[0])[0]
    expected = make_rdr_dataset([{"image": PICTURE, "text": "noise"}], processor=families("llava")[0])[0]
    assert torch.equal(item["features"]["pixel_values"], expected["features"]["pixel_values"])


def test_hugging_face_streams_stay_encoded(families: Any) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    processor, _ = families("llava")
    features = Features({"image": ImageFeature(), "prompt": Value("string"), "completion": Value("string")})
    rows = Dataset.from_list([{"image": PICTURE, "prompt": "what?", "completion": "noise"}] * 3, features=features)
    stream = VLMIterableDataset(rows.to_iterable_dataset(num_shards=2), processor)
    (_, raw), *_ = stream.source.read({"row": 0})
    assert raw["image"]["bytes"] == PNG
    got = list(stream)
    assert [row["sample_id"] for row in got] == [0, 1, 2]
    batch = default_collate_fn(got, processor)
    expected = make_llava_dataset(rows, processor=processor)
    assert batch["input_ids"][2].tolist() == expected[2]["input_ids"]
    assert torch.equal(batch["pixel_values"][2:], expected[2]["features"]["pixel_values"])


def shard(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


TALK = [{"from": "human", "value": "<image>which?"}, {"from": "gpt", "value": "this"}]
MEMBERS = {
    "x/0001.png": PNG,
    "x/0001.json": json.dumps({"conversations": TALK, "source": "here"}).encode(),
    "x/0002.0.png": PNG,
    "x/0002.1.PNG": PNG,
    "x/0002.txt": b"two pictures\n",
    "x/0002.cls": b"3",
}


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_webdataset_shards(name: str, mode: str, tmp_path: Path, families: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("AUTOMODEL_DATA_CACHE", str(tmp_path / "cache"))
    source = open_source(shard(tmp_path / name, MEMBERS, mode))
    assert len(source) == 2
    assert source[0].keys() == {"__key__", "conversations", "source", "image"}
    assert source[1]["text"] == "two pictures"
    assert source[1]["label"] == "3"
    assert [load_image(part, MediaLimits()).tobytes() for part in source[1]["images"]] == [PICTURE.tobytes()] * 2
    item = make_llava_dataset(str(tmp_path / name), processor=families("llava")[0], limit_dataset_samples=1)[0]
    expected = make_rdr_dataset([{"image": PICTURE, "text": "noise"}], processor=families("llava")[0])[0]
    assert torch.equal(item["features"]["pixel_values"], expected["features"]["pixel_values"])


def test_a_directory_of_shards_is_one_dataset(tmp_path: Path) -> None:
    for i in range(3):
        shard(tmp_path / f"train-{i}.tar", {f"{i}.png": PNG, f"{i}.txt": b"t"})
    rows = make_rdr_dataset(str(tmp_path))
    assert len(rows) == 3
    assert rows.name_of(2).endswith("train-2.tar:1")


def test_broken_shards(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("hello" * 1000)
    with pytest.raises(DataError, match=r"text\.tar cannot be read as a tar archive"):
        TarRows(tmp_path / "text.tar")
    with pytest.raises(DataError, match="is empty"):
        TarRows(shard(tmp_path / "none.tar", {}))
    cut = shard(tmp_path / "cut.tar", {"a.json": b"{", "b.png": PNG})
    rows = TarRows(cut)
    with pytest.raises(DataError, match=r"the \.json member is broken"):
        rows[0]
    with open(cut, "r+b") as file:
        file.truncate(1700)
    with pytest.raises(DataError, match="archive is cut short"):
        load_image(rows[1]["image"], MediaLimits())


def test_links_out_of_a_shard_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        plain = tarfile.TarInfo("../../b.txt")
        plain.size = 1
        archive.addfile(plain, io.BytesIO(b"t"))
    rows = TarRows(tmp_path / "a.tar")
    assert [rows[i] for i in range(len(rows))] == [{"__key__": "../../b", "text": "t"}], "a name opens nothing"


@pytest.mark.parametrize(
    ("make", "row", "column"),
    [
        (make_rdr_dataset, {"image": PNG}, "text"),
        (make_cord_v2_dataset, {"ground_truth": "{}"}, "image"),
        (make_medpix_dataset, {"image_id": PNG, "question": "q", "answer": None}, "answer"),
        (make_cv17_dataset, {"transcription": "t"}, "audio"),
    ],
)
def test_a_missing_column_is_a_bad_row(make: Any, row: dict[str, Any], column: str, families: Any) -> None:
    with pytest.raises(DataError, match=f"list:1: the row has no '{column}'. It has "):
        make([row], processor=families("phi4_mm")[0], on_bad="fail")
