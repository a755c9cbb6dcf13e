"""Text and vision-language data for fine-tuning: masks, packing, mixing and an order that resumes exactly."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from automodel_data.__about__ import __version__

_HOMES = {
    "ChatDataset": "automodel_data.llm.chat",
    "ChatIterableDataset": "automodel_data.streaming",
    "ColumnMappedTextInstructionDataset": "automodel_data.llm.column_mapped",
    "ColumnMappedTextInstructionIterableDataset": "automodel_data.streaming",
    "DataError": "automodel_data.errors",
    "HellaSwag": "automodel_data.llm.hellaswag",
    "MegatronDataset": "automodel_data.llm.token_files",
    "MixedDataset": "automodel_data.mixing",
    "MixedStream": "automodel_data.mixed_stream",
    "NanoGPTDataset": "automodel_data.llm.token_files",
    "PackedSequence": "automodel_data.packing",
    "SequenceClassificationDataset": "automodel_data.llm.classification",
    "StreamingTokenDataset": "automodel_data.streaming",
    "TextPretrainDataset": "automodel_data.llm.pretrain",
    "build_dataloader": "automodel_data.loader",
    "build_eval_dataloader": "automodel_data.loader",
    "build_packed_dataset": "automodel_data.llm.mock_packed",
    "build_unpacked_dataset": "automodel_data.llm.mock",
    "classification_collater": "automodel_data.collate.classification",
    "default_collate_fn": "automodel_data.collate.vlm",
    "default_collater": "automodel_data.collate.text",
    "make_cord_v2_dataset": "automodel_data.vlm.cord_v2",
    "make_cv17_dataset": "automodel_data.vlm.cv17",
    "make_llava_dataset": "automodel_data.vlm.llava",
    "make_medpix_dataset": "automodel_data.vlm.medpix",
    "make_mock_vlm_dataset": "automodel_data.vlm.mock",
    "make_rdr_dataset": "automodel_data.vlm.rdr",
    "make_squad_dataset": "automodel_data.llm.squad",
    "packed_collater": "automodel_data.collate.packed",
    "phi4_mm_collate_fn": "automodel_data.collate.vlm",
    "qwen2_5_collate_fn": "automodel_data.collate.vlm",
    "refuse_leaking_packs": "automodel_data.probe",
    "use_loader": "automodel_data.hf_trainer",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'automodel_data' has no attribute {name!r}")
