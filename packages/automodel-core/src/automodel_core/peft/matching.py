"""Which modules a set of patterns means."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from automodel_core.peft.config import PeftConfig


def matches(pattern: str, name: str) -> bool:
    """Whether a wildcard means a module's whole name, or a plain word the end of it."""
    if any(c in pattern for c in "*?["):
        return fnmatchcase(name, pattern)
    return name == pattern or name.endswith(f".{pattern}")


class ModuleMatcher:
    """Choose modules by name: targets, less what is excluded.

    Args:
        target_modules: patterns; each must match something.
        exclude_modules: patterns that take modules out again.
        match_all_linear: every linear layer but the output head, beside what ``target_modules`` names.
    """

    def __init__(
        self,
        target_modules: Sequence[str] = (),
        exclude_modules: Sequence[str] = (),
        match_all_linear: bool = False,
    ) -> None:
        self.target_modules, self.exclude_modules = tuple(target_modules), tuple(exclude_modules)
        self.match_all_linear = match_all_linear or not self.target_modules

    @classmethod
    def from_config(cls, config: PeftConfig) -> "ModuleMatcher":
        """The matcher that a ``PeftConfig`` describes."""
        return cls(config.target_modules, config.exclude_modules, config.match_all_linear)

    def select(self, model: nn.Module) -> dict[str, nn.Linear]:
        """Linear layers to adapt, by name, in the model's order.

        Raises: ValueError: a target pattern matches no linear layer, or nothing is left; it lists candidates.
        """
        linears = dict(linear_modules(model))
        for pattern in self.target_modules:
            if not any(matches(pattern, name) for name in linears):
                raise ValueError(_nothing_matched(pattern, linears, model))
        heads = {output_head_name(model), *classifier_heads(model)}
        chosen = {
            name: module
            for name, module in linears.items()
            if not self._excluded(name)
            and ((self.match_all_linear and name not in heads) or any(matches(p, name) for p in self.target_modules))
        }
        if not chosen:
            raise ValueError(
                f"nothing left to adapt: exclude_modules {list(self.exclude_modules)} removes every linear layer that "
                f"{list(self.target_modules) or 'match_all_linear'} matched ({summary(linears)}). Exclude less."
            )
        return chosen

    def unused_excludes(self, model: nn.Module) -> tuple[str, ...]:
        """Exclude patterns that match no module: harmless, since nothing is adapted that should not be, but said."""
        names = [name for name, _ in model.named_modules()]
        return tuple(p for p in self.exclude_modules if not any(matches(p, name) for name in names))

    def _excluded(self, name: str) -> bool:
        return any(matches(pattern, name) for pattern in self.exclude_modules)


def linear_modules(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Every ``nn.Linear``, subclasses included, that is not part of an adapter."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith((".lora_A", ".lora_B")):
            yield name, module


def output_head_name(model: Any) -> str | None:
    """Name of the module that makes logits; None for a model that names none."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return next((name for name, module in model.named_modules() if module is head), None) if head is not None else None


def classifier_heads(model: nn.Module) -> list[str]:
    """Names of the head of a sequence classifier, which is new and trains in full; empty for another model."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return []
    return [name for name, _ in model.named_children() if name in ("score", "classifier")]


def summary(names: Iterable[str]) -> str:
    """Last parts of names with how often each occurs: ``q_proj x16, v_proj x16``."""
    counts: dict[str, int] = {}
    for name in names:
        last = name.rsplit(".", 1)[-1]
        counts[last] = counts.get(last, 0) + 1
    return ", ".join(f"{last} x{count}" for last, count in counts.items()) or "none"


def _nothing_matched(pattern: str, linears: dict[str, nn.Linear], model: nn.Module) -> str:
    found = [type(m).__name__ for name, m in model.named_modules() if matches(pattern, name)]
    if found:
        return (
            f"target_modules pattern {pattern!r} matches {found[0]}, which is no linear layer: LoRA adapts nn.Linear "
            f"({summary(linears)}). Correct the pattern; for fused experts use target_parameters."
        )
    close = difflib.get_close_matches(
        pattern.rsplit(".", 1)[-1].strip("*"), {n.rsplit(".", 1)[-1] for n in linears}, n=1
    )
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"target_modules pattern {pattern!r} matches no linear layer: candidates are {summary(linears)}. "
        f"Correct the pattern.{hint}"
    )
