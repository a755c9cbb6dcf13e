"""Learning rate and weight decay as functions of the optimizer step."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)

_LR_STYLES = ("constant", "linear", "cosine", "inverse-square-root", "WSD")
_WSD_STYLES = ("exponential", "linear", "cosine", "minus_sqrt")
_WD_STYLES = ("constant", "linear", "cosine")
# What a checkpoint carries, and what a resumed run must agree on.
_FIELDS = (
    "max_lr", "min_lr", "init_lr", "lr_warmup_steps", "lr_decay_steps", "lr_decay_style", "start_wd", "end_wd",
    "wd_incr_steps", "wd_incr_style", "wsd_decay_steps", "lr_wsd_decay_style",
)  # fmt: skip


class OptimizerParamScheduler:
    """Set every group's ``lr`` and ``weight_decay``; all lengths are in optimizer steps.

    Step ``n`` (from 0) is the ``n``-th update. Warm-up is linear from ``init_lr`` to ``max_lr``, reached at step
    ``lr_warmup_steps``; the decay style leads to ``min_lr`` at ``lr_decay_steps`` and stays there. ``WSD`` is warm-up,
    stable, and a decay over the last ``wsd_decay_steps`` (MiniCPM, arXiv:2404.06395). A group's ``lr_mult`` and
    ``wd_mult`` multiply what the schedule says.

    Args:
        optimizer: its groups are set at once, for step 0.
        max_lr: the peak.
        min_lr: the floor.
        init_lr: where warm-up starts.
        lr_warmup_steps, lr_decay_steps: lengths, warm-up included in the latter.
        lr_decay_style: constant, linear, cosine, inverse-square-root or WSD.
        start_wd, end_wd: weight decay; None leaves the groups' own values alone.
        wd_incr_steps, wd_incr_style: how it gets from one to the other: constant, linear or cosine.
        wsd_decay_steps, lr_wsd_decay_style: for WSD: exponential, linear, cosine or minus_sqrt.
        use_checkpoint_opt_param_scheduler: on resume the checkpoint's schedule wins over this one.
        override_opt_param_scheduler: on resume this schedule wins.
    Raises: ValueError: a style that does not exist, or numbers that make no schedule.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        max_lr: float,
        lr_decay_steps: int,
        min_lr: float = 0.0,
        init_lr: float = 0.0,
        lr_warmup_steps: int = 0,
        lr_decay_style: str = "cosine",
        start_wd: float | None = None,
        end_wd: float | None = None,
        wd_incr_steps: int = 0,
        wd_incr_style: str = "constant",
        wsd_decay_steps: int | None = None,
        lr_wsd_decay_style: str = "exponential",
        use_checkpoint_opt_param_scheduler: bool = True,
        override_opt_param_scheduler: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.max_lr, self.min_lr, self.init_lr = float(max_lr), float(min_lr), float(init_lr)
        self.lr_warmup_steps, self.lr_decay_steps = int(lr_warmup_steps), int(lr_decay_steps)
        self.lr_decay_style = lr_decay_style
        self.start_wd, self.end_wd = start_wd, start_wd if end_wd is None else end_wd
        self.wd_incr_steps, self.wd_incr_style = int(wd_incr_steps), wd_incr_style
        self.wsd_decay_steps, self.lr_wsd_decay_style = wsd_decay_steps, lr_wsd_decay_style
        self.use_checkpoint = use_checkpoint_opt_param_scheduler
        self.override = override_opt_param_scheduler
        self.num_steps = 0
        self._check()
        self._apply()

    @property
    def last_lr(self) -> float:
        """The learning rate that the next update takes, before any group's multiplier."""
        return self.lr_at(self.num_steps)

    def step(self, increment: int = 1) -> None:
        """Move on after an update."""
        self.num_steps += increment
        self._apply()

    def lr_at(self, step: int) -> float:
        """The learning rate of update ``step``, in closed form."""
        if self.lr_warmup_steps and step < self.lr_warmup_steps:
            return self.init_lr + (self.max_lr - self.init_lr) * step / self.lr_warmup_steps
        if self.lr_decay_style == "constant":
            return self.max_lr
        if self.lr_decay_style == "inverse-square-root":
            warmup = max(self.lr_warmup_steps, 1)
            return max(self.min_lr, self.max_lr * math.sqrt(warmup / max(step, warmup)))
        if step >= self.lr_decay_steps:
            return self.min_lr
        return self.min_lr + self._decay_coefficient(step) * (self.max_lr - self.min_lr)

    def wd_at(self, step: int) -> float | None:
        """The weight decay of update ``step``; None where the schedule leaves it alone."""
        if self.start_wd is None or self.end_wd is None:
            return None
        if self.wd_incr_style == "constant" or step >= self.wd_incr_steps:
            return self.end_wd
        done = step / self.wd_incr_steps
        share = done if self.wd_incr_style == "linear" else 0.5 * (1.0 - math.cos(math.pi * done))
        return self.start_wd + share * (self.end_wd - self.start_wd)

    def milestones(self) -> list[tuple[int, float]]:
        """Steps worth printing at the start, with their learning rates: start, peak, half-way, end."""
        steps = {0, self.lr_warmup_steps, (self.lr_warmup_steps + self.lr_decay_steps) // 2, self.lr_decay_steps}
        if self.lr_decay_style == "WSD":
            steps.add(self.lr_decay_steps - (self.wsd_decay_steps or 0))
        return [(step, self.lr_at(step)) for step in sorted(steps)]

    def state_dict(self) -> dict[str, Any]:
        """Position and schedule, plain numbers and strings."""
        return {"num_steps": self.num_steps, **{name: getattr(self, name) for name in _FIELDS}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint stopped.

        Raises: ValueError: the schedules differ and neither side has been declared the winner.
        """
        different = {name: (state[name], getattr(self, name)) for name in _FIELDS if state[name] != getattr(self, name)}
        if different and not self.override:
            said = "; ".join(f"{name}: checkpoint {old}, configured {new}" for name, (old, new) in different.items())
            if not self.use_checkpoint:
                raise ValueError(
                    f"the checkpoint's learning-rate schedule differs ({said}): they must agree. Set "
                    "use_checkpoint_opt_param_scheduler or override_opt_param_scheduler to choose one."
                )
            logger.warning(
                "the schedule of the checkpoint is kept (%s). override_opt_param_scheduler takes the configured one.",
                said,
            )
            for name in different:
                setattr(self, name, state[name])
        self.num_steps = int(state["num_steps"])
        self._apply()

    def _apply(self) -> None:
        lr, weight_decay = self.lr_at(self.num_steps), self.wd_at(self.num_steps)
        for group in self.optimizer.param_groups:
            rate = lr * group.get("lr_mult", 1.0)
            if isinstance(group["lr"], torch.Tensor):  # optimizers that compile their step want the same tensor
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
            if weight_decay is not None:
                group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)

    def _decay_coefficient(self, step: int) -> float:
        """1 at the peak, 0 at the end."""
        done = (step - self.lr_warmup_steps) / max(self.lr_decay_steps - self.lr_warmup_steps, 1)
        if self.lr_decay_style == "linear":
            return 1.0 - done
        if self.lr_decay_style == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        assert self.wsd_decay_steps is not None, "_check asks for it"
        start = self.lr_decay_steps - self.wsd_decay_steps
        return 1.0 if step <= start else _WSD_CURVES[self.lr_wsd_decay_style]((step - start) / self.wsd_decay_steps)

    def _check(self) -> None:
        _one_of("lr_decay_style", self.lr_decay_style, _LR_STYLES)
        _one_of("lr_wsd_decay_style", self.lr_wsd_decay_style, _WSD_STYLES)
        _one_of("wd_incr_style", self.wd_incr_style, _WD_STYLES)
        if not 0.0 <= self.min_lr <= self.max_lr or not 0.0 <= self.init_lr <= self.max_lr:
            raise ValueError(
                f"init_lr={self.init_lr}, min_lr={self.min_lr}, max_lr={self.max_lr}: the first two lie between 0 and "
                "max_lr. Correct them."
            )
        if self.lr_decay_steps < 1 or not 0 <= self.lr_warmup_steps <= self.lr_decay_steps:
            raise ValueError(
                f"lr_warmup_steps={self.lr_warmup_steps}, lr_decay_steps={self.lr_decay_steps}: 0 <= warm-up <= decay, "
                "and decay >= 1, in optimizer steps. Shorten the warm-up, or train longer."
            )
        if self.lr_decay_style == "WSD" and not 0 < (self.wsd_decay_steps or 0) <= self.lr_decay_steps:
            raise ValueError(
                f"wsd_decay_steps={self.wsd_decay_steps} for WSD: it lies between 1 and lr_decay_steps="
                f"{self.lr_decay_steps}. A tenth of the run is usual."
            )


_WSD_CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "exponential": lambda done: 2.0 * 0.5**done - 1.0,
    "minus_sqrt": lambda done: 1.0 - math.sqrt(done),
}


def _one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"{name}={given!r}: choose one of {', '.join(allowed)}. Correct the name.")
