"""How many tokens a chunk of logits holds."""

import torch
from torch import Tensor

_CPU_BUDGET = 16 * 2**20
"""Bytes: 128 rows of a 32k vocabulary in float32; larger chunks leave the caches and gain nothing."""
_CUDA_BUDGET = 2**30
"""Bytes: 4096 rows of a 128k vocabulary in bfloat16, enough for full-speed matrix multiplication."""
_FREE_SHARE = 0.05
_ALIGN = 64


def chunk_rows_for(weight: Tensor) -> int:
    """Return the rows of logits that fit the budget: 16 MiB on CPU, min(1 GiB, 5 % of free memory) on CUDA.

    Under ``torch.use_deterministic_algorithms`` the budget does not look at free memory: the order of summation, hence
    the last bits of the weight gradient, depends on the chunk size.

    Args:
        weight: the head, ``[V, H]``.
    """
    rows = _budget(weight.device) // max(1, weight.shape[0] * weight.element_size())
    return max(_ALIGN, rows // _ALIGN * _ALIGN)


def _budget(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_BUDGET
    if torch.are_deterministic_algorithms_enabled() or torch.compiler.is_compiling():
        return _CUDA_BUDGET
    free, _ = torch.cuda.mem_get_info(device)
    return min(_CUDA_BUDGET, int(free * _FREE_SHARE))
