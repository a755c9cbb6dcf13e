"""Random state of one process: seeded, saved, restored."""

import os
import random
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist


class StatefulRNG:
    """Seed Python, NumPy and torch, and carry their state in checkpoints.

    Constructing it seeds at once. As a context manager it puts back, on exit, the state from before its construction.

    Args:
        seed: the run's seed, >= 0.
        ranked: add the process's rank, so that ranks draw different numbers (dropout, say). The state is the
            process's own either way: a checkpoint keeps one per rank.
    """

    def __init__(self, seed: int, ranked: bool = False) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed}: it must be >= 0. Choose another seed.")
        self.seed = seed + (_rank() if ranked else 0)
        self._before = _snapshot()
        _seed_everything(self.seed)

    def state_dict(self) -> dict[str, Any]:
        """The generators' states as plain numbers, lists and tensors."""
        return _snapshot()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; a device that is absent here is left out."""
        _restore(state)

    def __enter__(self) -> "StatefulRNG":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _restore(self._before)


def _rank() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)  # every device's generator as well
    numpy_random = _numpy_random()
    if numpy_random is not None:
        numpy_random.seed(seed % 2**32)


def _snapshot() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(words), gauss], "torch": torch.get_rng_state()}
    numpy_random = _numpy_random()
    if numpy_random is not None:
        name, keys, position, has_gauss, cached = numpy_random.get_state()
        state["numpy"] = [name, keys.tolist(), int(position), int(has_gauss), float(cached)]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(state["torch"].cpu())
    numpy_random = _numpy_random()
    if numpy_random is not None and "numpy" in state:
        numpy_random.set_state(tuple(state["numpy"]))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu())


def _numpy_random() -> Any:
    """NumPy's global generator, or None: torch and transformers bring NumPy, this package does not need it."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy.random
