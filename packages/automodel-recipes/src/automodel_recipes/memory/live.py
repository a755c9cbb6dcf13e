"""Follow tensor storage as it comes and goes, and say what the peak was made of."""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

ACTIVATIONS = "activations"
HEAD = "logits and loss"
UPDATE = "update"
GATHERED = "gathered weights"
SCALING = (ACTIVATIONS, HEAD)
"""Categories that grow with the micro-batch; the others do not."""

_COLLECTIVE = ("c10d", "_c10d_functional", "c10d_functional", "fsdp")


@dataclass(frozen=True)
class Peak:
    """The moment at which most bytes were alive."""

    total: int
    """Bytes."""
    parts: Mapping[str, int]
    """Bytes by category; they sum to ``total``."""


class LiveTensors(TorchDispatchMode):
    """Within the block, every storage that an operator makes is counted until it is freed.

    What operators hold inside themselves (scratch space of a kernel) is not seen. Storages that were there before are
    counted when they are declared by `hold`. Works alike on real tensors and on fake ones, whose storage has a size
    and no memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scope = ACTIVATIONS
        """Category of what is made next, unless it turns out to be something else."""
        self._sizes: list[int] = []
        self._categories: list[str] = []
        self._events: list[tuple[int, int]] = []
        self._known: dict[int, int] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._communicated: set[int] = set()  # gathered weights that are there

    def hold(self, category: str, tensors: Iterable[torch.Tensor]) -> None:
        """Put the storages of these tensors into a category, whenever they were made."""
        for storage in _storages(tensors):
            self._categories[self._identify(storage)] = category

    def held(self, category: str) -> int:
        """Bytes alive in a category."""
        return sum(self._sizes[i] for i in self._references if self._categories[i] == category)

    def peak(self, *, scale: float = 1.0, lasting: Mapping[str, int] = MappingProxyType({})) -> Peak:
        """The largest sum of live bytes so far.

        Args:
            scale: multiply what grows with the micro-batch by this, to see another micro-batch size.
            lasting: bytes by category that are there all the time, in place of what was seen of that category: the
                optimizer's state, which only the first update makes.
        """
        factor = dict.fromkeys(SCALING, scale) | dict.fromkeys(lasting, 0.0)
        weights = [factor.get(category, 1.0) for category in self._categories]
        now = best = 0.0
        at = 0
        for moment, (index, delta) in enumerate(self._events, start=1):
            now += weights[index] * delta
            if now > best:
                best, at = now, moment
        parts: dict[str, float] = dict(lasting)
        for index, delta in self._events[:at]:
            category = self._categories[index]
            parts[category] = parts.get(category, 0.0) + weights[index] * delta
        rounded = {category: round(size) for category, size in parts.items() if size >= 0.5}
        return Peak(sum(rounded.values()), rounded)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(is_traceable_wrapper_subclass_type(kind) for kind in types):
            return NotImplemented  # a DTensor's operator comes back here for its local tensors
        out = func(*args, **(kwargs or {}))
        self._notice_resized()
        for storage in _storages(tree_leaves(out)):
            self._identify(storage)
        if func.namespace in _COLLECTIVE:
            self._mark_communicated(tree_leaves((args, kwargs or {}, out)))
        return out

    def _identify(self, storage: Any) -> int:
        key = storage._cdata
        if key in self._known:
            return self._known[key]
        index = len(self._sizes)
        self._known[key] = index
        self._sizes.append(0)
        self._categories.append(self.scope)
        self._references[index] = weakref.ref(storage, lambda _: self._forget(key, index))
        self._resize(index, storage.nbytes())
        return index

    def _resize(self, index: int, size: int) -> None:
        if (delta := size - self._sizes[index]) != 0:
            self._sizes[index] = size
            self._events.append((index, delta))

    def _forget(self, key: int, index: int) -> None:
        self._resize(index, 0)
        if self._known.get(key) == index:
            del self._known[key]
        self._references.pop(index, None)
        self._communicated.discard(index)

    def _notice_resized(self) -> None:
        """FSDP frees gathered weights by resizing their storage, which no operator tells."""
        for index in tuple(self._communicated):
            storage = self._references[index]()
            if storage is not None and (size := storage.nbytes()) != self._sizes[index]:
                self._resize(index, size)
                self._communicated.discard(index)

    def _mark_communicated(self, leaves: Iterable[Any]) -> None:
        for storage in _storages(leaves):
            index = self._identify(storage)
            self._resize(index, storage.nbytes())
            if self._categories[index] in (*SCALING, UPDATE):
                self._categories[index] = GATHERED
            if self._categories[index] == GATHERED:
                self._communicated.add(index)


def is_traceable_wrapper_subclass_type(kind: type) -> bool:
    """Whether tensors of this class (DTensor, quantised weights) wrap others, on which their operators work."""
    return kind is not torch.Tensor and hasattr(kind, "__tensor_flatten__") and hasattr(kind, "__tensor_unflatten__")


def _storages(leaves: Iterable[Any]) -> Iterator[Any]:
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            continue
        if is_traceable_wrapper_subclass(leaf):
            names, _ = leaf.__tensor_flatten__()
            yield from _storages(getattr(leaf, name) for name in names)
        elif leaf.layout is torch.strided:
            yield leaf.untyped_storage()
