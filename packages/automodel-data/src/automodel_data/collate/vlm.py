"""Collates for vision-language rows: text padded as on the text path, media stacked as the family wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from automodel_data.collate.families import adapter_for
from automodel_data.collate.packed import packed_collater
from automodel_data.collate.text import IGNORE_INDEX, default_collater
from automodel_data.errors import DataError

_NOT_TOKENS = ("features", "media_kinds", "name")
_BASE_KEYS = {"input_ids", "labels", "position_ids", "seq_lens", "sample_id", *_NOT_TOKENS}


def default_collate_fn(
    rows: Sequence[Mapping[str, Any]],
    processor: Any,
    start_of_response_token: str | None = None,
    *,
    pad_token_id: int | None = None,
    pad_seq_len_divisible: int | None = None,
    blank_media: bool = True,
) -> dict[str, Any]:
    """One batch of encoded rows (`VLMDataset`), packed rows, or plain conversations, for any known family.

    Args:
        rows: ``{"input_ids", "labels", "features", ...}``, or ``{"conversation": [...]}``, which is encoded here.
        processor: chooses the family's adapter by its class.
        start_of_response_token: accepted for configurations that name it; must be what the chat template writes
            before an answer, since masks are found by position.
        pad_token_id: fills ``input_ids``; by default the tokenizer's.
        pad_seq_len_divisible: round the length up to a multiple of this.
        blank_media: put a black image, or silence, into the padding of a batch without the media that the data
            hold elsewhere. It changes no loss and no gradient, and keeps every rank and micro-batch on the same
            modules.

    Returns: what the text collates return, and the family's tensors.
    Raises: DataError: no rows, or placeholders unlike features, naming the sample.
    """
    adapter = _adapter(processor)
    if start_of_response_token is not None:
        _check_response_token(adapter, start_of_response_token)
    if rows and "input_ids" not in rows[0]:
        rows = _encoded(rows, processor)
    if pad_token_id is None:
        pad_token_id = adapter.tokenizer.pad_token_id or 0
    return collate_rows(
        rows,
        adapter,
        pad_token_id=pad_token_id,
        pad_seq_len_divisible=pad_seq_len_divisible,
        blank_media=blank_media,
    )


def qwen2_5_collate_fn(
    rows: Sequence[Mapping[str, Any]],
    processor: Any,
    start_of_response_token: str | None = "<|im_start|>assistant\n",
    **keys: Any,
) -> dict[str, Any]:
    """`default_collate_fn` for the Qwen-VL processors. Raises: DataError: another family's processor."""
    return _for_family("Qwen", rows, processor, start_of_response_token, **keys)


def phi4_mm_collate_fn(rows: Sequence[Mapping[str, Any]], processor: Any, **keys: Any) -> dict[str, Any]:
    """`default_collate_fn` for Phi-4-multimodal. Raises: DataError: another family's processor."""
    return _for_family("Phi4", rows, processor, None, **keys)


def collate_rows(
    rows: Sequence[Mapping[str, Any]],
    adapter: Any,
    *,
    pad_token_id: int,
    pad_seq_len_divisible: int | None = None,
    blank_media: bool = True,
) -> dict[str, Any]:
    """`default_collate_fn` with the adapter at hand."""
    if not rows:
        raise DataError("the collate got no rows: a batch needs at least one. Check the batch size.")
    rows = [_decoded(row) for row in rows]
    for row in rows:
        _check(row, adapter)
    features = [part for row in rows for part in _documents(row)]
    if "seq_lens" in rows[0]:
        batch = _packed(rows, features, adapter, pad_token_id, pad_seq_len_divisible, blank_media)
    else:
        batch = _padded(rows, features, adapter, pad_token_id, pad_seq_len_divisible, blank_media)
    return batch


def _decoded(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of a stream with its tensors, any other as it is. A row that fills up a window keeps its ignored labels."""
    if "decode" not in row:
        return row
    made = row["decode"]()
    is_filler = all(label == IGNORE_INDEX for label in row["labels"])
    labels = row["labels"] if is_filler else made["labels"]
    return {**made, **{key: value for key, value in row.items() if key != "decode"}, "labels": labels}


def _documents(row: Mapping[str, Any]) -> list[Any]:
    """The tensors of a row's documents that have media."""
    features = row["features"]
    return [part for part in (features if isinstance(features, list) else [features]) if part]


def _check(row: Mapping[str, Any], adapter: Any) -> None:
    """Placeholders against features once more: rows may have been changed since they were encoded."""
    made: dict[str, int] = {}
    for part in _documents(row):
        for kind, count in adapter.num_features(part).items():
            made[kind] = made.get(kind, 0) + count
    for kind in adapter.kinds:
        held = sum(i == adapter.media_token_id(kind) for i in row["input_ids"])
        if held != made.get(kind, 0):
            raise DataError(
                f"sample {row.get('name', '?')}: {held} {kind} tokens for {made.get(kind, 0)} {kind} features. "
                "Something changed the row after it was encoded; never cut rows inside media."
            )


def _padded(
    rows: Sequence[Mapping[str, Any]],
    features: list[Any],
    adapter: Any,
    pad_token_id: int,
    multiple: int | None,
    blank_media: bool,
) -> dict[str, Any]:
    texts = [{k: v for k, v in row.items() if k not in _NOT_TOKENS} for row in rows]
    for kind in _missing_kinds(rows, adapter) if blank_media else ():
        texts[0], features = _with_blank(texts[0], features, adapter, kind)
    batch: dict[str, Any] = default_collater(texts, pad_token_id, multiple)
    return {**batch, **(adapter.stack(features) if features else {})}


def _missing_kinds(rows: Sequence[Mapping[str, Any]], adapter: Any) -> tuple[str, ...]:
    """Kinds of media that the data hold and this batch does not."""
    data = {kind for row in rows for kind in row.get("media_kinds", ())} or {"image"}
    present = {kind for row in rows for part in _documents(row) for kind in adapter.num_features(part)}
    return adapter.blank_kinds(data, present)


def _with_blank(
    row: Mapping[str, Any], features: list[Any], adapter: Any, kind: str
) -> tuple[dict[str, Any], list[Any]]:
    """The row with blank media behind its end, where attention and loss leave them out."""
    ids, blank = adapter.blank(kind)
    labels = [IGNORE_INDEX] * len(ids)
    seen = row.get("attention_mask", [1] * len(row["input_ids"]))
    grown: dict[str, Any] = {**row, "input_ids": [*row["input_ids"], *ids], "labels": [*row["labels"], *labels]}
    grown["attention_mask"] = [*seen, *[0] * len(ids)]
    for key, column in adapter.token_columns(ids, labels).items():
        grown[key] = [*row[key], *column]
    return grown, _joined(features, blank)


def _joined(features: list[Any], blank: Any) -> list[Any]:
    """The blank among the tensors of the first document with media; it is of a kind that none has."""
    return [{**features[0], **blank}, *features[1:]] if features else [blank]


def _packed(
    rows: Sequence[Mapping[str, Any]],
    features: list[Any],
    adapter: Any,
    pad_token_id: int,
    multiple: int | None,
    blank_media: bool,
) -> dict[str, Any]:
    """As the text path packs, blank media being a document of their own."""
    rows = list(rows)
    for kind in _missing_kinds(rows, adapter) if blank_media else ():
        rows[0], features = _with_blank_document(rows[0], features, adapter, kind)
    batch = packed_collater(rows, pad_token_id, multiple)
    length = batch["input_ids"].shape[1]
    for key in rows[0].keys() - _BASE_KEYS:
        batch[key] = torch.tensor([[*row[key], *[0] * (length - len(row[key]))] for row in rows])
    stacked = adapter.stack(features) if features else {}
    # With a cache, transformers does not look for documents in the position ids, and several of these models take the
    # setting by keyword only.
    batch["use_cache"] = False
    batch["position_ids"] = adapter.packed_positions(batch["input_ids"], batch["position_ids"], stacked)
    return {**batch, **stacked}


def _with_blank_document(
    row: Mapping[str, Any], features: list[Any], adapter: Any, kind: str
) -> tuple[dict[str, Any], list[Any]]:
    ids, blank = adapter.blank(kind)
    labels = [IGNORE_INDEX] * len(ids)
    columns = {"input_ids": ids, "labels": labels, "seq_lens": [len(ids)], **adapter.token_columns(ids, labels)}
    return {**row, **{key: [*row[key], *column] for key, column in columns.items()}}, _joined(features, blank)


def _encoded(rows: Sequence[Mapping[str, Any]], processor: Any) -> list[dict[str, Any]]:
    from automodel_data.vlm.rows import VLMDataset

    encoded = VLMDataset(rows, processor, on_bad="fail")
    return [encoded[i] for i in range(len(encoded))]


def _adapter(processor: Any) -> Any:
    """The adapter of a processor, built once: it is kept on the processor's own instance."""
    kept = processor.__dict__.get("_automodel_adapter")
    if kept is None:
        kept = processor.__dict__["_automodel_adapter"] = adapter_for(processor)
    return kept


def _check_response_token(adapter: Any, token: str) -> None:
    probe = [{"role": "user", "content": "a"}]
    prompt = adapter.template._text(probe, None, add_generation_prompt=True)
    if token not in prompt:
        raise DataError(
            f"start_of_response_token={token!r} is not what the chat template writes before an answer: it writes "
            f"{prompt[-40:]!r}. Leave the setting out; answers are found by position."
        )


def _for_family(
    family: str, rows: Sequence[Mapping[str, Any]], processor: Any, token: str | None, **keys: Any
) -> dict[str, Any]:
    name = type(_adapter(processor)).__name__
    if not name.startswith(family):
        raise DataError(f"this collate is for {family} processors, got one for {name}. Use default_collate_fn.")
    return default_collate_fn(rows, processor, token, **keys)


COLLATE_FNS = {
    "Phi4MultimodalProcessor": phi4_mm_collate_fn,
    "Qwen2VLProcessor": qwen2_5_collate_fn,
    "Qwen2_5_VLProcessor": qwen2_5_collate_fn,
    "Qwen3VLProcessor": qwen2_5_collate_fn,
    "default": default_collate_fn,
}
"""Collates by processor class name; ``default`` serves every other."""
