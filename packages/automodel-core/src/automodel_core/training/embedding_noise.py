"""NEFTune: noise on input embeddings while training."""

import math
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def neftune(model: Any, *, noise_alpha: float) -> RemovableHandle:
    """Add uniform noise in ``+- noise_alpha / sqrt(T * H)`` to the input embeddings, in training mode only.

    Args:
        model: a transformers model.
        noise_alpha: size of the noise, > 0; 5 is usual.

    Returns: a handle whose ``remove()`` ends it.
    Raises: ValueError: ``noise_alpha`` is not positive.
    Source: Jain et al., arXiv:2310.05914.
    """
    if not noise_alpha > 0.0:
        raise ValueError(f"noise_alpha={noise_alpha}: it must be > 0. Leave NEFTune out to train without noise.")

    def add_noise(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        bound = noise_alpha / math.sqrt(output.shape[-2] * output.shape[-1])
        return output + torch.empty_like(output).uniform_(-bound, bound)

    return model.get_input_embeddings().register_forward_hook(add_noise)
