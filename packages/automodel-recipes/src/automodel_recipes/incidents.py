"""Report what the watch-dog found, and ask each row of a bad step for its own loss."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from automodel_recipes.batches import Batch, sample_ids, to_device
from automodel_recipes.evaluate import eval_mode
from automodel_recipes.watchdog import Incident, over_ranks

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe


def report_incidents(r: "BaseRecipe", micro_batches: Sequence[Batch]) -> None:
    """Record what was found in the steps since the last report, and end the run if it must.

    Args:
        r: the recipe, right after a step; every rank calls it.
        micro_batches: this rank's, of that step.

    Raises: NonFiniteLossError, LossSpikeError: as the ``watchdog`` section says.
    """
    incidents = r.watchdog.review(r.parallel, r.loss_scaler)
    for number, incident in enumerate(incidents):
        if incident.kind == "nonfinite" and incident.step == r.step_scheduler.step:
            incidents[number] = incident = blame_rows(r, incident, micro_batches)
        r.records.event(
            incident.kind,
            step=incident.step,
            loss=incident.loss,
            grad_norm=incident.grad_norm,
            sample_ids=list(incident.sample_ids),
        )
        r.console.fact("warning", str(incident))
    r.watchdog.check(incidents)


def blame_rows(r: "BaseRecipe", incident: Incident, micro_batches: Sequence[Batch]) -> Incident:
    """The incident with the rows, of all ranks, whose own loss is not finite; where there is none, as it was.

    The weights are those from before the step, which was skipped, so each row can be asked for its own loss. All of
    it goes to ``RUN/nonfinite-step-N-rank-R.json``.
    """
    from automodel_recipes.text_files import write_json

    rows = _rows_with_bad_loss(r, micro_batches)
    path = r.run_dir.path / f"nonfinite-step-{incident.step}-rank-{r.parallel.rank}.json"
    facts = {"step": incident.step, "loss": incident.loss, "grad_norm": incident.grad_norm}
    write_json(path, {**facts, "sample_ids": sample_ids(micro_batches), "rows": rows})
    bad = over_ranks([row["sample_id"] for row in rows], r.parallel)
    return replace(incident, sample_ids=bad, blame="rows") if bad else incident


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
