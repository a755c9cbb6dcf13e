"""Packed vision-language rows: whole documents with their media, several to a row."""

from __future__ import annotations

from typing import Any

from automodel_data.collate.vlm import collate_rows
from automodel_data.encode import IGNORE_INDEX
from automodel_data.errors import DataError
from automodel_data.packing import PackedDataset, PackedSequence
from automodel_data.probe import LeakReport, refuse_leaking_packs

_OWN = {"input_ids", "labels", "features", "media_kinds", "name"}


def pack_vlm_rows(dataset: Any, *, packed_sequence_size: int, **keys: Any) -> PackedVLMDataset:
    """Fill rows of at most ``packed_sequence_size`` tokens with whole documents; see `PackedSequence` for ``keys``.

    Raises: DataError: ``split_across_pack``, since a document may not be cut inside its media; or a family whose
        models do not keep documents apart.
    """
    if keys.get("split_across_pack"):
        raise DataError("split_across_pack cuts documents, which may hold media. Leave it out for these data.")
    if not dataset.adapter.can_pack:
        raise DataError(
            f"{type(dataset.adapter).__name__} has no packing: models of this family mix packed documents. Leave "
            "packed_sequence out."
        )
    packed = PackedSequence(dataset, packed_sequence_size=packed_sequence_size, **keys).pack()
    return PackedVLMDataset(packed.dataset, packed.packs, size=packed.size)


def refuse_leaking_vlm_packs(model: Any, adapter: Any, **options: Any) -> LeakReport:
    """`refuse_leaking_packs` for a multimodal model: documents of text, in batches as `collate_rows` makes them.

    Raises: DataError: documents are not isolated.
    """

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        columns = adapter.token_columns(rows[0]["input_ids"], rows[0]["labels"])
        return collate_rows([{**rows[0], **columns, "features": []}], adapter, pad_token_id=0, blank_media=False)

    media = [adapter.media_token_id(kind) for kind in adapter.kinds]
    vocab_size = len(adapter.tokenizer)
    return refuse_leaking_packs(model, vocab_size=vocab_size, collate_fn=collate, forbidden_ids=media, **options)


class PackedVLMDataset(PackedDataset):
    """Packs as `PackedDataset`, plus ``features`` of each document and the family's token columns."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        numbers = [document for document, _, _ in self.packs.pieces(index)]
        documents = [self.dataset[document] for document in numbers]
        row: dict[str, Any] = {
            "input_ids": [i for d in documents for i in d["input_ids"]],
            "labels": [x for d in documents for x in [IGNORE_INDEX, *d["labels"][1:]]],
            "position_ids": [p for d in documents for p in range(len(d["input_ids"]))],
            "seq_lens": [len(d["input_ids"]) for d in documents],
            "sample_id": [int(n) for n in numbers],
            "features": [d["features"] for d in documents],
            "media_kinds": documents[0]["media_kinds"],
            "name": ", ".join(d["name"] for d in documents),
        }
        for key in documents[0].keys() - _OWN:
            row[key] = [x for d in documents for x in d[key]]
        return row
