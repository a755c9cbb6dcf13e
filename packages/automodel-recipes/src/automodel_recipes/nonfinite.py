"""Stop at a loss that is not finite, and name the rows that made it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from automodel_recipes.batches import Batch, sample_ids, to_device
from automodel_recipes.errors import NonFiniteLossError
from automodel_recipes.evaluate import eval_mode

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe

_SHOWN_IDS = 16


def check_finite(r: "BaseRecipe", row: dict[str, Any], micro_batches: Sequence[Batch]) -> None:
    """Raise if the step's loss or gradient norm is not finite; called by every rank with the same ``row``.

    The weights are those from before the step, which was skipped, so each row can be asked for its own loss. All of
    it goes to ``RUN/nonfinite-step-N-rank-R.json``.

    Raises: NonFiniteLossError: names the rows whose own loss is not finite, else all rows of the step on this rank.
    """
    if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]):
        return
    from automodel_recipes.text_files import write_json

    culprits = _rows_with_bad_loss(r, micro_batches)
    bad = [culprit["sample_id"] for culprit in culprits]
    anywhere = r.parallel.any_rank(bool(bad))
    path = r.run_dir.path / f"nonfinite-step-{row['step']}-rank-{r.parallel.rank}.json"
    ids = sample_ids(micro_batches)
    record = {"step": row["step"], "loss": row["loss"], "grad_norm": row["grad_norm"], "sample_ids": ids}
    write_json(path, {**record, "rows": culprits})
    r.records.event("nonfinite", loss=row["loss"], grad_norm=row["grad_norm"], sample_ids=bad or ids)
    raise NonFiniteLossError(
        f"step {row['step']}: loss {row['loss']}, gradient norm {row['grad_norm']}. {_blame(r, bad, ids, anywhere)} "
        f"Details: {path}. The step was not taken. Look at these rows, lower optimizer.lr, or set "
        "clip_grad_norm.max_norm."
    )


def _blame(r: "BaseRecipe", bad: list[int], ids: list[int], anywhere: bool) -> str:
    where = "" if r.parallel.world_size == 1 else f" on rank {r.parallel.rank}"
    if bad:
        return f"Rows whose loss is not finite{where}: {_short(bad)}."
    if anywhere:
        return f"Every row{where} is fine; another rank names the culprits."
    return f"No single row is to blame; rows of this step{where}: {_short(ids)}."


def _short(ids: list[int]) -> str:
    more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
    return ", ".join(map(str, ids[:_SHOWN_IDS])) + more


@torch.no_grad()
def _rows_with_bad_loss(r: "BaseRecipe", micro_batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """One record a row whose own loss is not finite. Every rank does as many forwards: sharded models need that."""
    if r.parallel.pipeline is not None:
        return []
    found = []
    one = torch.ones((), dtype=torch.int64, device=r.device)
    with eval_mode(r.model):
        for batch in micro_batches:
            for part in split_rows(batch):
                prepared = r.prepare(to_device(part, r.device))
                loss = float(r.forward_loss(r.parallel.shard_sequence(prepared), one))
                if not math.isfinite(loss):
                    found += [{"sample_id": i, "loss": loss, **_excerpt(r, part)} for i in sample_ids([part]) if i >= 0]
    return found


def split_rows(batch: Batch) -> list[Batch]:
    """The batch row by row; whole where its tensors do not share their first dimension (packs, images)."""
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    size = batch["input_ids"].shape[0]
    if any(value.dim() == 0 or value.shape[0] != size for key, value in tensors.items() if key != "label_index"):
        return [batch]
    kept = {key: value for key, value in batch.items() if key != "label_index"}
    return [
        {key: value[i : i + 1] if isinstance(value, torch.Tensor) else value for key, value in kept.items()}
        for i in range(size)
    ]


def _excerpt(r: "BaseRecipe", part: Batch) -> dict[str, Any]:
    ids = part["input_ids"][0].tolist()
    return {"num_tokens": len(ids), "text": r.tokenizer.decode(ids)[:500]}
