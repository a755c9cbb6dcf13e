"""Exponential moving average of the weights that train."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


class EMA:
    """Keep ``average = decay * average + (1 - decay) * weight`` for every trainable parameter, in float32.

    Sharded parameters keep sharded averages: 4 bytes for each parameter that trains. Call ``update`` after each
    optimizer step.

    Args:
        model: its trainable parameters are the average's first value.
        decay: in (0, 1); 0.999 is usual.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay={decay}: it must be between 0 and 1. 0.999 is usual.")
        self.decay = decay
        self._sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self._scatter()
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, skipped: torch.Tensor | None = None) -> None:
        """Move the averages towards the weights.

        Args:
            skipped: scalar, 1 where the optimizer did not step (``StepGuard.step``): the averages then stay as well,
                without a host sync.
        """
        share: torch.Tensor | float = 1.0 - self.decay
        if skipped is not None:
            share = share * (1.0 - skipped)
        for name, average in self._averages.items():
            _local(average).lerp_(_local(self._parameters[name].detach()).float(), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model holds the averages: to evaluate or export them."""
        trained = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(trained)

    def copy_to_model(self) -> None:
        """Leave the averages in the model, for good."""
        self._write(self._averages)

    def state_dict(self) -> dict[str, Any]:
        """Decay and averages by parameter name."""
        return {"decay": self.decay, "averages": dict(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: ValueError: the saved averages are of other parameters."""
        different = sorted(set(state["averages"]) ^ set(self._averages))
        if different:
            raise ValueError(
                f"EMA state of other parameters ({len(different)} differ, such as {different[0]}): it must be "
                "of the same "
                "trainable ones. Train with the same targets as before, or start the average anew."
            )
        self.decay = float(state["decay"])
        for name, average in self._averages.items():
            average.copy_(_like(average, state["averages"][name]))

    def _scatter(self) -> None:
        """A root that stays gathered after a forward holds copies, and would go on with their old values."""
        for module in self._sharded:
            module.reshard()

    @torch.no_grad()
    def _write(self, values: dict[str, torch.Tensor]) -> None:
        self._scatter()
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part: averaging is elementwise."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(average: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    """A saved average, whole or sharded, laid out as the one it goes into."""
    if not isinstance(average, DTensor) or isinstance(saved, DTensor):
        return saved
    saved = saved.to(average.device)
    return distribute_tensor(saved, average.device_mesh, average.placements, src_data_rank=None)
