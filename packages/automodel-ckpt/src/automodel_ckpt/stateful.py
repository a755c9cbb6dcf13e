"""`torch.distributed.checkpoint` views of a model and its optimizer, for use with stock DCP.

`automodel_ckpt.save` takes modules and optimizers as they are; these wrappers are for ``dcp.save({"model": ...})``.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from automodel_ckpt.capture import is_stateful
from automodel_ckpt.model_state import model_tensors, set_extra_state


class ModelState:
    """A module's tensors by Hugging Face name, each tied tensor once, sharing storage with the module.

    Args:
        model: plain, DDP, FSDP2 or tensor parallel.
        trainable_only: leave out frozen parameters (LoRA).
    """

    def __init__(self, model: nn.Module, *, trainable_only: bool = False) -> None:
        self.model = model
        self.trainable_only = trainable_only

    def state_dict(self) -> dict[str, Any]:
        found = model_tensors(self.model, trainable_only=self.trainable_only)
        return {**found.tensors, **found.extra}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy tensors into the module in place.

        Raises: KeyError: names differ.
        """
        import torch

        found = model_tensors(self.model, trainable_only=self.trainable_only)
        if found.tensors.keys() | found.extra.keys() != state_dict.keys():
            differing = sorted((found.tensors.keys() | found.extra.keys()) ^ state_dict.keys())
            raise KeyError(f"state and model differ in {len(differing)} names, such as {differing[:3]}")
        with torch.no_grad():
            for name, tensor in found.tensors.items():
                if state_dict[name] is not tensor:
                    tensor.copy_(state_dict[name])
        set_extra_state(self.model, {name: state_dict[name] for name in found.extra})


class OptimizerState:
    """An optimizer's state by parameter name, with an optional schedule beside it.

    Args:
        model: the module whose parameters it trains.
        optimizer: the optimizer.
        scheduler: object with ``state_dict`` and ``load_state_dict``, such as a learning-rate schedule.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, scheduler: Any = None) -> None:
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler

    def state_dict(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(flatten_optimizer_state_dict=True)
        state = {"optim": get_optimizer_state_dict(self.model, self.optimizer, options=options)}
        if is_stateful(self.scheduler):
            state["sched"] = self.scheduler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        options = StateDictOptions(flatten_optimizer_state_dict=True)
        set_optimizer_state_dict(self.model, self.optimizer, state_dict["optim"], options=options)
        if is_stateful(self.scheduler):
            self.scheduler.load_state_dict(state_dict["sched"])


def save_dcp(directory: Any, model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Write a stock torch distributed checkpoint beside ours, for other tools; collective.

    It holds pickled metadata and none of our guarantees: nothing in this package resumes from it.
    """
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    state: dict[str, Any] = {"model": ModelState(model)}
    if optimizer is not None:
        state["optim"] = OptimizerState(model, optimizer)
    alone = not (dist.is_available() and dist.is_initialized())
    dcp.save(state, checkpoint_id=directory, no_dist=alone)
