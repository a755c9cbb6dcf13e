"""Cross-entropy over logits whose vocabulary dim is split over the tensor-parallel axis."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from automodel_kernels.backend import is_dtensor
from automodel_kernels.ops.vocab_parallel import vocab_parallel_cross_entropy

REDUCTIONS = ("none", "sum")


@dataclass(frozen=True)
class TEParallelCrossEntropy:
    """Vocabulary-parallel cross-entropy: the logits stay on their ranks, shards may be uneven.

    Named after Transformer Engine's loss, whose calling convention it keeps; it needs no Transformer Engine.
    """

    ignore_index: int = -100
    """Label that does not count."""
    reduction: str = "sum"
    """``"sum"`` (over ``num_label_tokens`` when given) or ``"none"``."""
    tp_group: dist.ProcessGroup | None = None
    """The tensor-parallel group. None takes it from DTensor logits, else one rank is assumed to hold every class."""
    strict: bool = False
    """A fallback to PyTorch is an error."""

    takes_hidden_states = False

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction={self.reduction!r}: it must be one of {', '.join(REDUCTIONS)}.")

    def __call__(self, logits: Tensor, shift_labels: Tensor, num_label_tokens: Tensor | float | None = None) -> Tensor:
        """Sum of token losses over ``num_label_tokens``, the same on every rank of the group.

        Args:
            logits: ``[B, T, V_r]`` local columns, or a DTensor ``[B, T, V]`` sharded on its last dim.
            shift_labels: ``[B, T]`` int64 global classes, already shifted.
            num_label_tokens: label tokens of the global batch; None leaves the plain sum.

        Raises: ValueError: DTensor logits that are not split over the vocabulary on exactly one axis.
        """
        group, vocab_start = self.tp_group, None
        if is_dtensor(logits):
            logits, group, vocab_start = _local_shard(logits)
        elif group is None:
            group, vocab_start = _only_this_rank(), 0
        losses = vocab_parallel_cross_entropy(
            logits,
            shift_labels,
            group=group,
            vocab_start=vocab_start,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            strict=self.strict,
        )
        if num_label_tokens is None:
            return losses
        return losses / (
            num_label_tokens.clamp(min=1) if isinstance(num_label_tokens, Tensor) else max(num_label_tokens, 1)
        )


def _local_shard(logits: Any) -> tuple[Tensor, dist.ProcessGroup, int]:
    """The local columns, their group and first class of a DTensor sharded on its last dim over one axis."""
    from torch.distributed.tensor import Shard

    last = logits.ndim - 1
    axes = [axis for axis, placement in enumerate(logits.placements) if placement in (Shard(last), Shard(-1))]
    others = [p for axis, p in enumerate(logits.placements) if axis not in axes]
    if len(axes) != 1 or any(p.is_shard() or p.is_partial() for p in others):
        raise ValueError(
            f"the logits have placements {logits.placements}: exactly one axis must shard dim {last}, "
            "the others replicate. Give lm_head a column-wise style with use_local_output=False, "
            "or pass local logits with tp_group."
        )
    (axis,) = axes
    mesh = logits.device_mesh
    group, size, rank = mesh.get_group(axis), mesh.size(axis), mesh.get_local_rank(axis)
    step = -(-logits.shape[-1] // size)  # DTensor shards like torch.chunk: the last ranks may hold less, or nothing
    return logits.to_local(), group, min(rank * step, logits.shape[-1])


def _only_this_rank() -> dist.ProcessGroup | None:
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    raise ValueError(
        "tp_group is None, the logits are a plain tensor and several processes run: whether the vocabulary is split is "
        "unknown. Pass tp_group, pass DTensor logits, or use a loss that is not vocabulary-parallel."
    )
