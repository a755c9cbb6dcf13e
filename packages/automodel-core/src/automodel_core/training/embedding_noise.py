"""NEFTune: noise on input embeddings while training."""

import math
from typing import Any

import torch
from torch import nn


class EmbeddingNoise:
    """Uniform noise in ``+- noise_alpha / sqrt(T * H)`` on a model's input embeddings, in training mode only.

    T is the length of the row as the model gets it, padding and packing included. The noise has a generator of its
    own, so that ranks that hold the same rows (tensor parallelism) can draw the same numbers, and its state is saved.

    Args:
        model: a transformers model.
        noise_alpha: size of the noise, > 0; 5 is usual.
        seed: of the noise; equal on ranks that read the same rows.

    Raises: ValueError: ``noise_alpha`` is not positive.
    Source: Jain et al., arXiv:2310.05914.
    """

    def __init__(self, model: Any, *, noise_alpha: float, seed: int = 0) -> None:
        if not noise_alpha > 0.0:
            raise ValueError(f"noise_alpha={noise_alpha}: it must be > 0. Leave NEFTune out to train without noise.")
        self.noise_alpha, self.seed = noise_alpha, seed
        self._generator: torch.Generator | None = None
        self._state: torch.Tensor | None = None
        self._handle = model.get_input_embeddings().register_forward_hook(self._add)

    def remove(self) -> None:
        """Train on without noise."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The generator's state; None before the first noise."""
        return {"generator": None if self._generator is None else self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self._generator, self._state = None, state["generator"]

    def _add(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        bound = self.noise_alpha / math.sqrt(output.shape[-2] * output.shape[-1])
        noise = torch.empty(output.shape, dtype=output.dtype, device=output.device)
        return output + noise.uniform_(-bound, bound, generator=self._on(output.device))

    def _on(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device)
            self._generator.manual_seed(self.seed)
            if self._state is not None:
                self._generator.set_state(self._state.cpu())
        return self._generator


def neftune(model: Any, *, noise_alpha: float, seed: int = 0) -> EmbeddingNoise:
    """Begin to add noise to the input embeddings; see ``EmbeddingNoise``.

    Returns: what ``remove()`` ends it with, and whose state a checkpoint can carry.
    """
    return EmbeddingNoise(model, noise_alpha=noise_alpha, seed=seed)
