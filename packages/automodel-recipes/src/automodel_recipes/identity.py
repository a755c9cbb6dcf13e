"""What a checkpoint belongs to: resuming on other data, another base model or another adapter is refused in words.

Names, shapes and dtypes of tensors are compared by `automodel_ckpt.load`. What they cannot show is kept here: digests
of a few encoded rows and of the first numbers of frozen weights, and the adapter's scaling.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from automodel_ckpt import StateMismatch

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe

_NUM_ROWS = 8
_NUM_WEIGHTS = 256
_NUM_ELEMENTS = 64
_WORDS = {
    "data": "the training rows, or how they are turned into tokens",
    "base": "the base model's frozen weights",
    "adapter": "the adapter's settings",
}


class RunIdentity:
    """Facts about a run that stay as they are while it trains; `load_state_dict` compares them.

    What cannot be known (rows of a stream, weights of a quantised base) is None, and then not compared.
    """

    def __init__(self, recipe: "BaseRecipe") -> None:
        self.r = recipe
        self._facts: dict[str, Any] | None = None

    def establish(self) -> None:
        """Find the facts; collective, all ranks get those of rank 0.

        Before training, not in the first save: a save reads no rows, for it may be asked for because a rank waits for
        its rows in vain.
        """
        rows = _rows_digest(self.r) if self.r.parallel.is_main else None
        facts = {"data": rows, "base": _frozen_digest(self.r), "adapter": _adapter_facts(self.r)}
        self._facts = _of_rank_zero(facts)

    def state_dict(self) -> dict[str, Any]:
        """The facts, the same on every rank."""
        if self._facts is None:
            self.establish()
        assert self._facts is not None
        return self._facts

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another run.

        Raises: StateMismatch: lists what differs.
        """
        mine = self.state_dict()
        differences = tuple(
            f"{_WORDS[key]} ({state[key]} in the checkpoint, {mine[key]} here)"
            for key in _WORDS
            if None not in (state.get(key), mine[key]) and state[key] != mine[key]
        )
        if differences:
            raise StateMismatch(
                f"the checkpoint belongs to another run; different are {'; '.join(differences)}. Restore what was "
                "changed, or start a new run in another checkpoint.checkpoint_dir.",
                differences=differences,
            )


def _rows_digest(r: "BaseRecipe") -> str | None:
    """A digest of tokens and labels of a few rows spread over the training set, in the set's own order."""
    rows, plan = getattr(r.train_loader, "dataset", None), getattr(r.train_loader, "plan", None)
    if rows is None or plan is None or not hasattr(rows, "__len__"):
        return None  # torch gives streams a __getitem__ that raises, but no length
    count = int(plan.num_samples)
    digest = hashlib.sha256(str(count).encode())
    for index in sorted({position * (count - 1) // (_NUM_ROWS - 1) for position in range(_NUM_ROWS)}):
        row = rows[index]
        if not isinstance(row, Mapping) or "input_ids" not in row:
            return None  # rows of pixels and messages; decoding them for this costs more than it tells
        for key in ("input_ids", "labels"):
            if key in row:
                digest.update(f"{key}{[int(token) for token in row[key]]}".encode())
    return digest.hexdigest()[:16]


def _frozen_digest(r: "BaseRecipe") -> str | None:
    """A digest of the first numbers of a few frozen weights, the same however they are sharded."""
    if r.built.peft is None or r.parallel.pipeline is not None:
        return None
    from automodel_ckpt.boxes import Box
    from automodel_ckpt.hf.slices import gather_box

    digest = hashlib.sha256()
    for name, weight in _frozen_sample(r.unwrapped()):
        length = min(_NUM_ELEMENTS, weight.shape[-1])
        box = Box((0,) * weight.ndim, (*(1 for _ in weight.shape[:-1]), length))
        digest.update(name.encode())
        digest.update(gather_box(weight, box).float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _frozen_sample(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    from torch.distributed.tensor import DTensor

    frozen = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
        and parameter.is_floating_point()
        and parameter.numel()
        and type(parameter.data) in (torch.Tensor, DTensor)  # packed weights have no numbers to look at
    ]
    step = -(-len(frozen) // _NUM_WEIGHTS) or 1
    yield from frozen[::step]


def _adapter_facts(r: "BaseRecipe") -> dict[str, Any] | None:
    """Settings that change what the same adapter weights mean."""
    peft = r.built.peft
    if peft is None:
        return None
    return {key: getattr(peft, key) for key in ("alpha", "use_rslora", "use_dora") if hasattr(peft, key)}


def _of_rank_zero(facts: dict[str, Any]) -> dict[str, Any]:
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return facts
    shared = [facts]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]
