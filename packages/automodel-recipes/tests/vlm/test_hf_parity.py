"""Our batch through our loss against plain Hugging Face: the model's own processor, loss and gradients."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from automodel_core.loss import MaskedCrossEntropy, count_label_tokens, forward_loss, shift_labels
from automodel_data.collate.families.parts import load_processor
from automodel_data.collate.vlm import default_collate_fn
from automodel_data.sources import open_source
from automodel_data.vlm.conversations import Conversations
from automodel_data.vlm.rows import VLMDataset

FAMILIES = (
    "llava",
    "llava_next",
    "llava_onevision",
    "gemma3",
    "paligemma",
    "idefics3",
    "smolvlm",
    "phi4_mm",
    "qwen2_5_vl",
    "qwen3_vl",
)
FULL = ("llava", "llava_next", "gemma3", "paligemma", "idefics3")
# Full processors that ask for a video processor, which needs torchvision, even where there is no video.
STILL = {
    "llava_onevision": "llava_onevision.processing_llava_onevision:LlavaOnevisionProcessor",
    "qwen2_5_vl": "qwen2_5_vl.processing_qwen2_5_vl:Qwen2_5_VLProcessor",
    "qwen3_vl": "qwen3_vl.processing_qwen3_vl:Qwen3VLProcessor",
    "smolvlm": "smolvlm.processing_smolvlm:SmolVLMProcessor",
}
_OURS = ("label_index", "sample_ids")


def encoded(processor: Any, rows: list, **keys: Any) -> VLMDataset:
    return VLMDataset(Conversations(open_source(rows), dict, limit=None), processor, **keys)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def our_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    shifted = shift_labels({k: v for k, v in batch.items() if k != "sample_ids"})
    return forward_loss(model, shifted, MaskedCrossEntropy(), count_label_tokens([shifted]))


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    largest = max(float(g.norm()) for g in theirs.values())
    assert largest > 0
    for name in ours.keys() | theirs.keys():
        mine, other = ours.get(name), theirs.get(name)
        zero = torch.zeros_like(mine if mine is not None else other)
        mine, other = (zero if mine is None else mine), (zero if other is None else other)
        # Some gradients are rounding alone: a bias of keys cancels in the softmax.
        assert (mine - other).norm() <= tolerance * (other.norm() + 1e-2 * largest), name


@pytest.mark.parametrize("family", FULL)
def test_ids_and_tensors_are_those_of_the_full_processor(family: str, families: Any, rows: list) -> None:
    processor, _ = families(family)
    dataset = encoded(processor, rows[:3])
    for i in range(3):
        row = dataset[i]
        message, image = rows[i]["messages"], rows[i]["messages"][0]["content"][0]["image"]
        if family == "paligemma":
            answer = message[1]["content"]
            theirs = processor(text="<image>" + message[0]["content"][1]["text"], images=image, suffix=answer)
        else:
            text = processor.apply_chat_template(message, tokenize=False)
            theirs = processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=False)
        ids = torch.as_tensor(theirs["input_ids"]).reshape(-1).tolist()
        assert row["input_ids"] == ids
        pixels = torch.as_tensor(theirs["pixel_values"])
        assert torch.equal(row["features"]["pixel_values"].reshape(pixels.shape), pixels)


def still_image_processor(family: str, parts: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The family's full processor, its own code throughout, built without the video processor that it asks for."""
    home, _, name = STILL[family].partition(":")
    module = import_module(f"transformers.models.{home}")
    if family == "smolvlm":  # spells numbers in the text of videos
        monkeypatch.setattr(module, "num2words", str)
    without_video = type(name, (getattr(module, name),), {"check_argument_for_proper_class": lambda *_: None})
    settings = ("image_seq_len", "num_image_tokens", "vision_aspect_ratio", "vision_feature_select_strategy")
    return without_video(
        image_processor=parts.image_processor,
        tokenizer=parts.tokenizer,
        video_processor=None,
        chat_template=parts.chat_template,
        **{key: value for key, value in parts.settings.items() if key in settings},
    )


@pytest.mark.parametrize("family", STILL)
def test_parts_make_what_the_full_processor_makes(
    family: str, families: Any, rows: list, pictures: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, _ = families(family)
    full = still_image_processor(family, parts, monkeypatch)
    dataset = encoded(parts, rows[:3])
    for i in range(3):
        text = parts.tokenizer.apply_chat_template(rows[i]["messages"], tokenize=False)
        theirs = full(text=[text], images=[[pictures[i]]], return_tensors="pt", add_special_tokens=False)
        assert dataset[i]["input_ids"] == theirs["input_ids"].reshape(-1).tolist()
        features = dataset[i]["features"]
        for key in features.keys() & theirs.keys():
            assert torch.equal(features[key].reshape(theirs[key].shape), theirs[key]), key
        assert "pixel_values" in features.keys() & theirs.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_plain_model(family: str, families: Any, rows: list) -> None:
    processor, model = families(family)
    dataset = encoded(processor, rows)
    batch = default_collate_fn([dataset[i] for i in range(4)], processor)
    ours = our_loss(model, batch)
    mine = gradients(model, ours)
    plain = model(**{k: v for k, v in batch.items() if k not in _OURS}).loss
    theirs = gradients(model, plain)
    assert float(ours) == pytest.approx(float(plain), rel=1e-5)
    assert_same(mine, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_times_one_is_one_times_eight(family: str, families: Any, rows: list) -> None:
    processor, model = families(family)
    dataset = encoded(processor, rows)
    items = [dataset[i] for i in range(4)]
    whole = gradients(model, our_loss(model, default_collate_fn(items, processor)))
    batches = [shift_labels(default_collate_fn([item], processor)) for item in items]
    count = count_label_tokens(batches)
    model.zero_grad(set_to_none=True)
    for batch in batches:
        forward_loss(model, batch, MaskedCrossEntropy(), count).backward()
    parts = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(parts, whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_blank_media_change_nothing_but_reach_every_parameter(family: str, families: Any, rows: list) -> None:
    processor, model = families(family)
    item = encoded(processor, rows[3:])[0]
    plain = default_collate_fn([item], processor, blank_media=False)
    blank = default_collate_fn([item], processor)
    pixels = "image_pixel_values" if family == "phi4_mm" else "pixel_values"
    assert pixels in blank
    assert pixels not in plain
    without = our_loss(model, plain)
    theirs = gradients(model, without)
    withal = our_loss(model, blank)
    mine = gradients(model, withal)
    assert float(withal) == pytest.approx(float(without), rel=1e-6)
    assert_same(mine, theirs)
    assert len(mine) > len(theirs)
    assert all(float(mine[name].abs().max()) == 0 for name in mine.keys() - theirs.keys())


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "paligemma"])
def test_text_only_rows_are_those_of_the_text_path(family: str, families: Any) -> None:
    from automodel_data.llm.chat import ChatDataset

    processor, _ = families(family)
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * i}] * 2}
        for i in range(1, 6)
    ]
    text, ours = ChatDataset(rows, processor.tokenizer), encoded(processor, rows)
    for i in range(5):
        assert {k: ours[i][k] for k in ("input_ids", "labels")} == {k: text[i][k] for k in ("input_ids", "labels")}
        assert any(label != -100 for label in ours[i]["labels"])


@pytest.mark.parametrize("form", ["as on the hub", "nested", "as we save it"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "llava_onevision"])
def test_parts_come_back_from_every_form_of_a_directory(
    family: str, form: str, families: Any, rows: list, tmp_path: Path
) -> None:
    parts, _ = families(family)
    parts.save_pretrained(tmp_path)
    record, images = tmp_path / "processor_config.json", tmp_path / "preprocessor_config.json"
    if form == "as on the hub":
        settings = json.loads(record.read_text())
        settings.pop("image_processor")
        flat = {**json.loads(images.read_text()), "processor_class": parts.processor_class}
        images.write_text(json.dumps(flat))
        if family == "qwen2_5_vl":
            record.unlink()
        else:
            record.write_text(json.dumps(settings))
    if form == "nested":
        images.unlink()
    loaded = load_processor(str(tmp_path))
    ours, theirs = encoded(loaded, rows[:1])[0], encoded(parts, rows[:1])[0]
    assert ours["input_ids"] == theirs["input_ids"]
    assert torch.equal(ours["features"]["pixel_values"], theirs["features"]["pixel_values"])
