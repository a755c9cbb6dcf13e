"""Packed rows give each document the loss that it has alone."""

from typing import Any

import pytest
import torch

from automodel_core.loss import MaskedCrossEntropy, count_label_tokens, forward_loss, shift_labels
from automodel_data.collate.families import adapter_for
from automodel_data.collate.vlm import default_collate_fn
from automodel_data.errors import DataError
from automodel_data.sources import open_source
from automodel_data.vlm.conversations import Conversations
from automodel_data.vlm.packing import pack_vlm_rows, refuse_leaking_vlm_packs
from automodel_data.vlm.rows import VLMDataset


def loss_of(model: Any, batches: list[dict[str, Any]]) -> torch.Tensor:
    shifted = [shift_labels({k: v for k, v in b.items() if k != "sample_ids"}) for b in batches]
    count = count_label_tokens(shifted)
    return sum(forward_loss(model, b, MaskedCrossEntropy(), count) for b in shifted)


PACKABLE = ("llava", "llava_next", "llava_onevision", "idefics3", "smolvlm", "phi4_mm", "qwen2_5_vl", "qwen3_vl")


def two_images(pictures: list) -> dict[str, Any]:
    parts = [{"type": "image", "image": picture} for picture in pictures[1:]]
    user = {"role": "user", "content": [*parts, {"type": "text", "text": "which?"}]}
    return {"messages": [user, {"role": "assistant", "content": "the second"}]}


@pytest.mark.parametrize("family", PACKABLE)
def test_packed_equals_unpacked(family: str, families: Any, rows: list, pictures: list) -> None:
    processor, model = families(family)
    rows = [*rows, two_images(pictures)]
    dataset = VLMDataset(Conversations(open_source(rows), dict, limit=None), processor)
    size = int(dataset.lengths.sum()) + 8
    packed = pack_vlm_rows(dataset, packed_sequence_size=size)
    assert [len(packed[i]["seq_lens"]) for i in range(len(packed))] == [5]
    model.zero_grad(set_to_none=True)  # the model is shared with other tests
    alone = loss_of(model, [default_collate_fn([dataset[i]], processor, blank_media=False) for i in range(5)])
    alone.backward()
    theirs = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    together = loss_of(model, [default_collate_fn([packed[0]], processor)])
    together.backward()
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
    largest = max(float(g.norm()) for g in theirs.values())
    for name, p in model.named_parameters():
        if name in theirs:
            assert (p.grad - theirs[name]).norm() <= 1e-4 * (theirs[name].norm() + 1e-3 * largest), name
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("family", PACKABLE)
def test_the_probe_passes_where_documents_are_apart(family: str, families: Any) -> None:
    processor, model = families(family)
    report = refuse_leaking_vlm_packs(model, adapter_for(processor), document_length=8)
    assert report.isolated
    assert report.own_change > 100 * report.tolerance


def test_the_probe_refuses_a_model_that_mixes_documents(families: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an attention that looks at the positions of text alone where Qwen-VL gets them on three axes."""
    processor, model = families("qwen2_5_vl")
    adapter = adapter_for(processor)
    monkeypatch.setattr(adapter, "packed_positions", lambda ids, positions, features: positions.expand(3, -1, -1))
    with pytest.raises(DataError, match="packed documents are not isolated in Qwen2_5_VLForConditionalGeneration"):
        refuse_leaking_vlm_packs(model, adapter, document_length=8)


def test_a_pack_of_text_alone_gets_a_blank_document(families: Any, rows: list) -> None:
    processor, model = families("qwen2_5_vl")
    dataset = VLMDataset(Conversations(open_source([rows[3]] * 2), dict, limit=None), processor)
    packed = pack_vlm_rows(dataset, packed_sequence_size=200)[0]
    plain = loss_of(model, [default_collate_fn([packed], processor, blank_media=False)])
    blank = default_collate_fn([packed], processor)
    assert "pixel_values" in blank
    assert loss_of(model, [blank]).item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_families_that_mix_documents_refuse_packing(family: str, families: Any, rows: list) -> None:
    dataset = VLMDataset(Conversations(open_source(rows[:1]), dict, limit=None), families(family)[0])
    with pytest.raises(DataError, match="has no packing"):
        pack_vlm_rows(dataset, packed_sequence_size=200)
