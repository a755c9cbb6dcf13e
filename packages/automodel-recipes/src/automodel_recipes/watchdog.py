"""Watch over a run's steps: what is not finite is skipped and named, what stands out is named."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from automodel_core.training import SpikeDetector, StepGuard
from automodel_recipes.batches import Batch, sample_ids
from automodel_recipes.errors import LossSpikeError, NonFiniteLossError
from automodel_recipes.train_step import StepMetrics


@dataclass(frozen=True)
class Incident:
    """A step that is worth a line on the screen."""

    kind: Literal["nonfinite", "overflow", "spike"]
    step: int
    loss: float
    grad_norm: float
    sample_ids: tuple[int, ...]
    usual: float | None = None
    """For a spike: the median of the losses before it."""
    num_in_row: int = 0
    """For a skipped step: how many were skipped in a row, this one included."""
    blame: Literal["rows", "micro_batches", "step"] = "step"
    """What the samples are: rows whose own loss is not finite, their micro-batches, or the whole step."""

    def __str__(self) -> str:
        if self.kind == "overflow":
            return f"step {self.step} was not taken: float16 gradients overflowed; the loss scale is halved."
        samples = _shown(self.sample_ids)
        if self.kind == "spike":
            return f"step {self.step}: loss {self.loss:.4g} against a usual {self.usual:.4g}. Rows: {samples}."
        return (
            f"step {self.step} was not taken: loss {self.loss:g}, gradient norm {self.grad_norm:g}. "
            f"{_BLAME[self.blame]}: {samples}."
        )


_BLAME = {
    "rows": "Rows whose loss is not finite",
    "micro_batches": "Rows of micro-batches whose loss is not finite",
    "step": "No single row is to blame; rows of this step",
}


@dataclass(frozen=True)
class _Seen:
    """A step that was taken and not looked at yet; its numbers are still on the device."""

    step: int
    metrics: StepMetrics
    sample_ids: tuple[tuple[int, ...], ...]
    """By micro-batch."""

    def all_ids(self) -> list[int]:
        return [i for ids in self.sample_ids for i in ids]


class Watchdog:
    """Skips steps whose gradient norm is not finite, and reports them and loss spikes with their samples.

    Weights and optimizer state are never touched by a bad step, whatever is done about it. A step is judged on the
    device; what is reported is read when metrics are, so that watching costs no wait of its own.

    Args:
        on_non_finite: ``stop`` ends the run (exit code 5) with the weights of before the step; ``skip`` trains on.
        max_skipped: steps skipped in a row that end the run even so.
        on_spike: ``warn`` says so and trains on, ``stop`` ends the run (exit code 5), ``ignore`` does not look.
        window: losses to compare each loss with.
        threshold: robust standard deviations from their median that make a spike.
        min_steps: losses to see before judging.
    """

    def __init__(
        self,
        *,
        on_non_finite: Literal["stop", "skip"] = "stop",
        max_skipped: int = 10,
        on_spike: Literal["warn", "stop", "ignore"] = "warn",
        window: int = 100,
        threshold: float = 6.0,
        min_steps: int = 20,
    ) -> None:
        _one_of("on_non_finite", on_non_finite, ("stop", "skip"))
        _one_of("on_spike", on_spike, ("warn", "stop", "ignore"))
        if max_skipped < 1:
            raise ValueError(f"watchdog max_skipped={max_skipped}: it must be >= 1. Use 10, or on_non_finite: stop.")
        self.on_non_finite, self.on_spike, self.max_skipped = on_non_finite, on_spike, max_skipped
        self.guard = StepGuard()
        self.detector = SpikeDetector(window=window, threshold=threshold, min_steps=min_steps)
        self.num_in_row = 0
        self._unseen: list[_Seen] = []

    def take_step(self, optimizer: torch.optim.Optimizer, grad_norm: torch.Tensor) -> torch.Tensor:
        """Step or skip; returns float32 scalar, 1 where the step was skipped."""
        return self.guard.step(optimizer, grad_norm)

    def remember(self, step: int, metrics: StepMetrics, micro_batches: Sequence[Batch]) -> None:
        """Keep a step's numbers, on the device, until ``review``."""
        ids = tuple(tuple(sample_ids([batch])) for batch in micro_batches)
        self._unseen.append(_Seen(step, metrics, ids))

    def review(self, parallel: Any, scaler: Any = None) -> list[Incident]:
        """Look at the steps since the last review; every rank calls it at the same steps.

        Args:
            parallel: the run's parallel context.
            scaler: its ``LossScaler``, whose overflows are no fault of the data.

        Returns: what was found, the same on every rank.
        """
        seen, self._unseen = self._unseen, []
        if not seen:
            return []
        losses = parallel.sum_over_loss_ranks(torch.stack([s.metrics.loss for s in seen])).tolist()
        skipped = torch.stack([s.metrics.skipped for s in seen]).tolist()
        norms = torch.stack([s.metrics.grad_norm for s in seen]).tolist()
        found = (
            self._judge(one, loss, bool(skip), norm, parallel, scaler)
            for one, loss, skip, norm in zip(seen, losses, skipped, norms, strict=True)
        )
        return [incident for incident in found if incident is not None]

    def check(self, incidents: Sequence[Incident]) -> None:
        """End the run if one of these must.

        Raises: NonFiniteLossError, LossSpikeError: as the settings say.
        """
        for incident in incidents:
            stops = self.on_non_finite == "stop" or incident.num_in_row >= self.max_skipped
            if incident.kind == "nonfinite" and stops:
                many = f" {incident.num_in_row} steps in a row were skipped." if incident.num_in_row > 1 else ""
                raise NonFiniteLossError(
                    f"{incident}{many} The weights are those of before. Look at these rows, lower optimizer.lr, set "
                    "clip_grad_norm.max_norm, or train on without such steps: watchdog.on_non_finite: skip."
                )
            if incident.kind == "spike" and self.on_spike == "stop":
                raise LossSpikeError(f"{incident} Look at these rows, or set watchdog.on_spike: warn.")

    def _judge(
        self, seen: _Seen, loss: float, skipped: bool, norm: float, parallel: Any, scaler: Any
    ) -> Incident | None:
        finite = abs(loss) < float("inf")
        if skipped and finite and scaler is not None and not scaler.exhausted:
            return Incident("overflow", seen.step, loss, norm, ())
        self.num_in_row = self.num_in_row + 1 if skipped else 0
        if skipped or not finite:
            return self._name(
                Incident("nonfinite", seen.step, loss, norm, (), num_in_row=self.num_in_row), seen, parallel
            )
        if self.on_spike == "ignore":
            return None
        spike = self.detector.observe(seen.step, loss)
        if spike is None:
            return None
        return Incident("spike", seen.step, loss, norm, over_ranks(seen.all_ids(), parallel), usual=spike.usual)

    def _name(self, incident: Incident, seen: _Seen, parallel: Any) -> Incident:
        """The incident with the samples of bad micro-batches of any rank; where no rank can tell, of the step."""
        bad = over_ranks(_bad_samples(seen), parallel)
        if bad:
            return replace(incident, sample_ids=bad, blame="micro_batches")
        return replace(incident, sample_ids=over_ranks(seen.all_ids(), parallel))

    def state_dict(self) -> dict[str, Any]:
        """The window of losses, and how many steps were skipped."""
        return {**self.detector.state_dict(), **self.guard.state_dict(), "num_in_row": self.num_in_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.detector.load_state_dict(state)
        self.guard.load_state_dict(state)
        self.num_in_row = int(state["num_in_row"])


def _bad_samples(seen: _Seen) -> tuple[int, ...]:
    """Samples of this rank's micro-batches whose own loss is not finite."""
    finite = torch.isfinite(seen.metrics.micro_losses).tolist()
    if len(finite) != len(seen.sample_ids):  # a pipeline reports one loss for all micro-batches
        return ()
    return tuple(i for ids, good in zip(seen.sample_ids, finite, strict=True) if not good for i in ids)


def over_ranks(ids: Sequence[int], parallel: Any) -> tuple[int, ...]:
    """The samples of all ranks, each once; rows that only fill a window up (-1) left out. Every rank calls it."""
    gathered: list[Any] = [list(ids)]
    if parallel.world_size > 1:
        gathered = [None] * parallel.world_size
        torch.distributed.all_gather_object(gathered, list(ids))
    return tuple(dict.fromkeys(i for part in gathered for i in part if i >= 0))


def _shown(ids: Sequence[int]) -> str:
    if not ids:
        return "unknown (the collate function gives no sample_ids)"
    more = f" and {len(ids) - 16} more" if len(ids) > 16 else ""
    return ", ".join(map(str, ids[:16])) + more


def _one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"watchdog {name}={given!r}: choose one of {', '.join(allowed)}. Correct the word.")
