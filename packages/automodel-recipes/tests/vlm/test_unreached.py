"""Vision weights that no forward reaches: found from the shape, equal to what a backward leaves without gradient."""

import copy
from typing import Any

import pytest

from automodel_data.collate.vlm import default_collate_fn
from automodel_data.sources import open_source
from automodel_data.vlm.conversations import Conversations
from automodel_data.vlm.rows import VLMDataset
from automodel_recipes.vlm.unreached import freeze_unreached, idle_without, unreached


def without_gradient(model: Any, processor: Any, rows: list) -> set[str]:
    dataset = VLMDataset(Conversations(open_source(rows[:1]), dict, limit=None), processor)
    batch = default_collate_fn([dataset[0]], processor)
    model.zero_grad(set_to_none=True)
    model(**{key: value for key, value in batch.items() if key not in ("label_index", "sample_ids")}).loss.backward()
    idle = idle_without(model, {"image"})
    return {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None} - set(idle)


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("llava", -1),
        ("llava", -2),
        ("llava", [-2, 1]),
        ("llava_next", -2),
        ("llava_onevision", -1),
        ("gemma3", None),
        ("paligemma", None),
        ("idefics3", None),
        ("phi4_mm", None),
        ("qwen2_5_vl", None),
    ],
)
def test_what_the_shape_tells_is_what_a_backward_leaves_out(family: str, layer: Any, families: Any, rows: list) -> None:
    processor, model = families(family)
    model = copy.deepcopy(model)
    if layer is not None and layer != -1:
        model.config.vision_feature_layer = layer
        if isinstance(layer, list):
            model = type(model)(model.config).float()
    found = without_gradient(model, processor, rows)
    assert set(unreached(model)) == found
    report = freeze_unreached(model)
    assert (report is None) == (not found)
    assert without_gradient(model, processor, rows) == set()
    assert freeze_unreached(model) is None


def test_towers_that_the_data_leave_idle_are_named(families: Any) -> None:
    _, model = families("phi4_mm")
    names = {name for name, _ in model.named_parameters()}
    assert idle_without(model, {"audio", "image"}) == []
    without_sounds, without_images = idle_without(model, {"image"}), idle_without(model, {"audio"})
    assert set(without_sounds) == {name for name in names if ".audio_embed." in name}
    assert any(".image_embed." in name for name in without_images)
    assert any("up_proj_for_vision_speech" in name for name in without_images)
    assert not any("up_proj_for_speech" in name for name in without_images)
    assert idle_without(families("llava")[1], set()) == [], "blank images reach every tower of one kind"
