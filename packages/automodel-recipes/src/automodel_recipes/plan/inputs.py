"""The micro-batch that a plan is made for: the longest rows of the data, or rows of the configured length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from automodel_core.config import ConfigNode
from automodel_recipes.batches import Batch
from automodel_recipes.errors import UnusableInputError

_LENGTH_KEYS = ("dataset.seq_length", "dataset.seq_len", "dataset.max_length", "dataset.block_size")


@dataclass(frozen=True)
class PlannedRows:
    """How long the rows of a micro-batch are, and how that is known."""

    length: int
    source: str
    packed: bool = False


def planned_rows(config: ConfigNode, *, seq_length: int | None = None, longest_row: int | None = None) -> PlannedRows:
    """The longest row that the configuration admits.

    Args:
        seq_length: decides, where given.
        longest_row: the longest row of the data, where they were read.

    Raises: UnusableInputError: nothing says how long rows are.
    """
    if packed := int(config.get("packed_sequence.packed_sequence_size", 0) or 0):
        return PlannedRows(packed, "packed_sequence.packed_sequence_size", packed=True)
    if seq_length is not None:
        return PlannedRows(seq_length, "--seq-length")
    if longest_row is not None:
        return PlannedRows(longest_row, "longest row of the data")
    for key in _LENGTH_KEYS:
        if isinstance(value := config.get(key), int):
            return PlannedRows(value, key)
    raise UnusableInputError(
        "nothing says how long the rows are: the dataset section has no seq_length and the data are not on this "
        "machine. Give --seq-length N."
    )


def micro_batch_size(config: ConfigNode) -> int:
    """Rows of a micro-batch on one rank."""
    return int(config.get("step_scheduler.local_batch_size", 1))


def text_micro_batches(config: ConfigNode, rows: PlannedRows, *, number: int) -> Callable[[Any], Sequence[Batch]]:
    """``number`` micro-batches of full rows in which every token is supervised, as the recipe's collator makes them."""

    def build(r: Any) -> Sequence[Batch]:
        section = config.get("dataloader")
        r.tokenizer = r.tokenizer or _NoTokenizer()
        collate = r.build_collate_fn(section, packed=rows.packed)
        batch = collate([_row(r, rows) for _ in range(micro_batch_size(config))])
        return [batch] * number

    return build


def _row(r: Any, rows: PlannedRows) -> dict[str, Any]:
    ids = [1 + i % 7 for i in range(rows.length)]
    if getattr(r, "name", "") == "seq-cls":
        return {"input_ids": ids, "labels": [0]}
    row = {"input_ids": ids, "labels": list(ids), "sample_id": 0}
    if rows.packed:
        # Two documents, so that attention takes the way of packed rows.
        first = rows.length // 2
        lens = [length for length in (first, rows.length - first) if length]
        positions = [i for length in lens for i in range(length)]
        row |= {"seq_lens": lens, "position_ids": positions, "sample_id": [0] * len(lens)}
    return row


class _NoTokenizer:
    """Padding needs an id, whichever."""

    pad_token_id = 0
    eos_token_id = 0
