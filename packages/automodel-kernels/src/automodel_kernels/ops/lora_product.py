"""The two skinny products of a LoRA layer: down to the rank, and back up added in place."""

from torch import Tensor


def shrink(x: Tensor, lora_a: Tensor, backend: str) -> Tensor:
    """``x @ lora_a.T``: ``[N, H]`` and ``[r, H]`` give ``[N, r]``."""
    if backend == "triton":
        from automodel_kernels.triton_ops.lora import shrink as triton_shrink

        return triton_shrink(x, lora_a)
    return x @ lora_a.t()


def add_expand(y: Tensor, s: Tensor, lora_b: Tensor, scaling: float, backend: str) -> None:
    """``y += scaling * s @ lora_b.T`` in place: ``[N, O]``, ``[N, r]`` and ``[O, r]``; no second output exists."""
    if backend == "triton":
        from automodel_kernels.triton_ops.lora import add_expand_ as triton_add_expand

        triton_add_expand(y, s, lora_b, scaling)
    else:
        y.addmm_(s, lora_b.t(), alpha=scaling)
