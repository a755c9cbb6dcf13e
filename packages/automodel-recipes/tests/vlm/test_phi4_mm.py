"""Phi-4-multimodal: images without torchvision, sounds, both in one row, and what its model makes of a batch."""

import copy
import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from automodel_core.loss import MaskedCrossEntropy, count_label_tokens, forward_loss, shift_labels
from automodel_data.collate.families.parts import ProcessorParts, load_processor
from automodel_data.collate.families.phi4_images import Phi4Images
from automodel_data.collate.vlm import default_collate_fn, phi4_mm_collate_fn
from automodel_data.errors import BadRow, DataError
from automodel_data.sources import open_source
from automodel_data.vlm.conversations import Conversations
from automodel_data.vlm.cv17 import make_cv17_dataset
from automodel_data.vlm.rows import VLMDataset
from automodel_recipes.vlm.repairs import see_whole_images

SIZES = [(40, 40), (700, 300), (300, 1300), (449, 447), (2000, 2000), (1000, 90), (448, 448)]


def tone(seconds: float, rate: int = 16000, pitch: float = 440.0) -> dict[str, Any]:
    time = np.arange(int(seconds * rate)) / rate
    return {"array": (0.5 * np.sin(2 * math.pi * pitch * time)).astype(np.float32), "sampling_rate": rate}


def row(*media: dict[str, Any], answer: str = "yes") -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": [*media, {"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": answer},
        ]
    }


def image(picture: Any) -> dict[str, Any]:
    return {"type": "image", "image": picture}


def sound(seconds: float, rate: int = 16000) -> dict[str, Any]:
    return {"type": "audio", "audio": tone(seconds, rate)}


def encoded(processor: Any, *rows: dict[str, Any], **keys: Any) -> VLMDataset:
    return VLMDataset(Conversations(open_source(list(rows)), dict, limit=None), processor, **keys)


def loss_of(model: Any, *batches: dict[str, Any]) -> torch.Tensor:
    shifted = [shift_labels({k: v for k, v in b.items() if k != "sample_ids"}) for b in batches]
    count = count_label_tokens(shifted)
    return sum(forward_loss(model, b, MaskedCrossEntropy(), count) for b in shifted)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """transformers' own class over three functions of torchvision that torch itself can do."""
    functional: Any = ModuleType("torchvision.transforms.v2.functional")

    def resize(picture: torch.Tensor, size: list[int], interpolation: Any = "bilinear", antialias: bool = True) -> Any:
        keys = {"mode": interpolation, "antialias": antialias, "align_corners": False}
        return torch.nn.functional.interpolate(picture[None], size=size, **keys)[0]

    def pad(picture: torch.Tensor, padding: list[int], fill: list[int]) -> torch.Tensor:
        left, top, right, bottom = padding
        return torch.nn.functional.pad(picture, [left, right, top, bottom], value=fill[0])

    functional.resize, functional.pad = resize, pad
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchvision.transforms.v2"].functional = functional  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, functional.__name__, functional)
    home = "transformers.models.phi4_multimodal.image_processing_phi4_multimodal"
    monkeypatch.delitem(sys.modules, home, raising=False)
    from importlib import import_module

    theirs: Any = import_module(home).Phi4MultimodalImageProcessor

    class Bare(theirs):
        """Without the constructor, which asks for torchvision itself."""

        def __init__(self) -> None:
            pass

        def rescale_and_normalize(self, picture: torch.Tensor, *_: Any) -> torch.Tensor:
            return (picture.float() / 255 - 0.5) / 0.5

        def resize(self, picture: torch.Tensor, size: Any, *, resample: Any, antialias: bool) -> torch.Tensor:
            return resize(picture, [size.height, size.width], "bicubic", antialias)

    monkeypatch.delitem(sys.modules, home)
    return Bare()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_tensors_and_counts_are_those_of_transformers(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.image_utils import SizeDict

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    theirs = stand_in(monkeypatch)._preprocess(
        [torch.from_numpy(np.array(picture)).permute(2, 0, 1)],
        True,
        SizeDict(height=448, width=448),
        *(3, True, 1 / 255, True, 0.5, 0.5),
        patch_size=14,
        dynamic_hd=36,
        return_tensors="pt",
    )
    ours = Phi4Images()([picture])
    assert ours["num_img_tokens"].tolist() == theirs["num_img_tokens"].tolist()
    assert ours["num_img_tokens"].item() == Phi4Images().num_tokens(*size)
    assert torch.equal(ours["image_sizes"], theirs["image_sizes"])
    assert torch.equal(ours["image_attention_mask"], theirs["image_attention_mask"])
    assert torch.allclose(ours["image_pixel_values"], theirs["image_pixel_values"], atol=1e-5)


def test_the_full_processor_makes_the_same_pixels() -> None:
    pytest.importorskip("torchvision", reason="Phi4MultimodalImageProcessor needs torchvision")
    from transformers import Phi4MultimodalImageProcessor

    picture = Image.effect_noise((700, 300), 80).convert("RGB")
    theirs, ours = Phi4MultimodalImageProcessor()([picture], return_tensors="pt"), Phi4Images()([picture])
    assert torch.allclose(ours["image_pixel_values"], theirs["image_pixel_values"], atol=2e-2)
    assert ours["num_img_tokens"].tolist() == theirs["num_img_tokens"].tolist()


def test_a_sliver_is_refused_in_words() -> None:
    with pytest.raises(BadRow, match=r"too narrow for Phi-4-multimodal. 4000x4 becomes"):
        Phi4Images().num_tokens(4000, 4)


@pytest.mark.parametrize("seconds", [0.05, 0.33, 1.0, 1.37, 3.2])
@pytest.mark.parametrize("rate", [16000, 48000, 22050])
def test_sounds_take_as_many_tokens_as_the_model_makes(seconds: float, rate: int, families: Any) -> None:
    processor, model = families("phi4_mm")
    item = encoded(processor, row(sound(seconds, rate)))[0]
    features = item["features"]
    made = model.model.embed_tokens_extend.audio_embed.encoder(
        features["audio_input_features"], features["audio_attention_mask"]
    )
    held = sum(i == processor.audio_token_id for i in item["input_ids"])
    assert held == int(features["audio_embed_sizes"]) == made.shape[1]


def test_a_click_is_a_bad_row(families: Any) -> None:
    with pytest.raises(DataError, match="sound is shorter than one frame"):
        encoded(families("phi4_mm")[0], row(sound(0.01)), on_bad="fail")


@pytest.fixture
def mixed(families: Any, pictures: list) -> VLMDataset:
    """An image, an image and a sound, two sounds with an image, and text."""
    return encoded(
        families("phi4_mm")[0],
        row(image(pictures[0])),
        row(image(pictures[1]), sound(0.4), answer="yes yes"),
        row(sound(0.4), image(pictures[2]), sound(0.4), answer="no"),
        row(answer="text alone"),
    )


def test_images_and_sounds_together_are_the_plain_model(families: Any, mixed: VLMDataset) -> None:
    processor, model = families("phi4_mm")
    batch = phi4_mm_collate_fn([mixed[i] for i in range(4)], processor)
    ours = loss_of(model, batch)
    mine = gradients(model, ours)
    plain = model(**{k: v for k, v in batch.items() if k not in ("label_index", "sample_ids")}).loss
    theirs = gradients(model, plain)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    largest = max(float(g.norm()) for g in theirs.values())
    assert mine.keys() == theirs.keys()
    assert any("vision_speech" in name for name in mine)
    assert all((mine[name] - g).norm() <= 1e-5 * (g.norm() + 1e-2 * largest) for name, g in theirs.items())


def test_four_times_one_is_one_times_four(families: Any, mixed: VLMDataset) -> None:
    processor, model = families("phi4_mm")
    items = [mixed[i] for i in range(4)]
    whole = gradients(model, loss_of(model, default_collate_fn(items, processor)))
    parts = gradients(model, loss_of(model, *(default_collate_fn([item], processor) for item in items)))
    largest = max(float(g.norm()) for g in whole.values())
    assert parts.keys() == whole.keys(), "blank media reach every parameter"
    assert all((parts[name] - g).norm() <= 1e-5 * (g.norm() + 1e-2 * largest) for name, g in whole.items())


def test_sounds_alone_are_not_mixed_with_images(families: Any, pictures: list) -> None:
    processor, _ = families("phi4_mm")
    rows = encoded(processor, row(sound(0.4)), row(image(pictures[0])))
    with pytest.raises(DataError, match="rows with images and rows with sounds alone"):
        default_collate_fn([rows[0], rows[1]], processor)
    alone = default_collate_fn([rows[0]], processor)
    assert "image_pixel_values" not in alone, "a blank image would change how the sound is projected"


def test_tiles_of_another_row_leave_no_trace(families: Any, pictures: list) -> None:
    """Rows of fewer tiles are filled up; a mask of zeros there would give NaN."""
    processor, model = families("phi4_mm")
    rows = encoded(processor, row(image(pictures[0])), row(image(Image.new("RGB", (110, 110), "red"))))
    batch = default_collate_fn([rows[0], rows[1]], processor)
    assert batch["image_attention_mask"].shape[1] == 5
    made = gradients(model, loss_of(model, batch))
    assert all(torch.isfinite(g).all() for g in made.values())


def test_vision_sees_the_whole_image_under_sdpa_as_under_eager(families: Any, pictures: list) -> None:
    processor, model = families("phi4_mm")
    item = encoded(processor, row(image(pictures[0])))[0]
    batch = {k: v for k, v in default_collate_fn([item], processor).items() if k not in ("label_index", "labels")}
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits, eager(**batch).logits, atol=1e-4)
    stock = type(model)(model.config)
    report = see_whole_images(stock)
    if report is not None:  # as long as transformers marks them causal
        assert str(report).startswith("repaired: 2 layers of Phi4MultimodalVisionAttention")
    assert see_whole_images(stock) is None


def test_parts_come_back_from_disk(families: Any, tmp_path: Any) -> None:
    processor, _ = families("phi4_mm")
    processor.save_pretrained(tmp_path)
    loaded = load_processor(str(tmp_path))
    assert isinstance(loaded, ProcessorParts)
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    assert loaded.audio_processor.sampling_rate == 16000
    assert (loaded.image_token_id, loaded.audio_token_id) == (processor.image_token_id, processor.audio_token_id)


def test_cv17_rows_train_the_transcription(families: Any) -> None:
    processor, _ = families("phi4_mm")
    rows = make_cv17_dataset([{"audio": tone(0.5, 48000), "transcription": "merhaba"}], processor=processor)
    item = rows[0]
    trained = [i for i in item["labels"] if i != -100]
    assert processor.tokenizer.decode(trained) == "merhaba<|end|>"
    assert rows.media_kinds == ("audio",)
