"""LoRA on fused expert weights, as ``peft``'s ``target_parameters`` lays it out.

Shapes: E experts, r rank. A parameter is ``[E, out, in]``, or ``[E, in, out]`` where the module is transposed.
"""

from functools import cache
from typing import Any

import torch
from torch import nn

from automodel_core.peft.config import PeftConfig
from automodel_core.peft.init import assign, draw, generator
from automodel_core.peft.matching import matches

_SUFFIX = "_lora"


class ExpertAdapter(nn.Module):
    """Low-rank change of one fused parameter: ``lora_A`` stacks the experts' A, ``lora_B`` interleaves their B."""

    def __init__(self, parameter: torch.Tensor, config: PeftConfig, *, transposed: bool) -> None:
        super().__init__()
        self.num_experts, first, second = parameter.shape
        self.transposed, self.scaling, self.lora_A_init = transposed, config.scaling, config.lora_A_init
        self.dropout, self.merged = nn.Identity(), False
        in_features, out_features = (first, second) if transposed else (second, first)
        rank, like = (
            config.dim * self.num_experts,
            {"device": parameter.device, "dtype": config.lora_dtype or parameter.dtype},
        )
        self.lora_A = nn.Linear(in_features, rank, bias=False, **like)
        self.lora_B = nn.Linear(rank, out_features, bias=False, **like)
        nn.init.zeros_(self.lora_B.weight)

    def delta(self) -> torch.Tensor:
        """The change of the whole parameter, in its own layout."""
        a = self.lora_A.weight.unflatten(0, (self.num_experts, -1))  # [E, r, in]
        b = self.lora_B.weight.unflatten(1, (-1, self.num_experts)).permute(2, 0, 1)  # [E, out, r]
        change = (b @ a) * self.scaling
        return change.transpose(1, 2) if self.transposed else change


class LoRAExperts(nn.Module):
    """Base of the classes that expert modules get: forward runs the module's own on adapted weights."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The experts' own forward; each adapted parameter stands for base plus change while it runs."""
        active = [name for name in adapted_names(self) if not getattr(self, name + _SUFFIX).merged]
        base = {name: self._parameters.pop(name) for name in active}
        try:
            for name, parameter in base.items():
                assert parameter is not None
                change = getattr(self, name + _SUFFIX).delta().to(parameter.dtype)
                self.__dict__[name] = parameter + change
            return super().forward(*args, **kwargs)
        finally:
            for name, parameter in base.items():
                self.__dict__.pop(name, None)
                self._parameters[name] = parameter

    def init_expert_adapters(self, name: str, seed: int) -> None:
        """Initial values keyed by ``(seed, name)``, see ``init_lora``."""
        for parameter in adapted_names(self):
            adapter = getattr(self, parameter + _SUFFIX)
            weight = adapter.lora_A.weight
            rng = generator(seed, f"{name}.{parameter}{_SUFFIX}.lora_A")
            experts = [draw((weight.shape[0] // adapter.num_experts, weight.shape[1]), adapter.lora_A_init, rng)
                       for _ in range(adapter.num_experts)]  # fmt: skip
            assign(weight, torch.cat(experts))
            nn.init.zeros_(adapter.lora_B.weight)


def adapted_names(module: nn.Module) -> list[str]:
    """Names of a module's parameters that carry an adapter, in the order in which they were registered."""
    return [n.removesuffix(_SUFFIX) for n, child in module.named_children() if isinstance(child, ExpertAdapter)]


def apply_to_experts(model: nn.Module, config: PeftConfig) -> list[str]:
    """Adapt the three-dimensional parameters that ``target_parameters`` names; returns their names.

    Raises: ValueError: a pattern matches none; options that cannot act on a fused parameter.
    """
    if config.dropout or config.use_dora or config.lora_A_init == "pissa":
        raise ValueError(
            "target_parameters with dropout, use_dora or pissa: a fused expert weight takes plain LoRA. Remove "
            "the option, "
            "or adapt linear layers only."
        )
    fused = {name: p for name, p in model.named_parameters() if p.ndim == 3}
    chosen = [name for name in fused if any(matches(pattern, name) for pattern in config.target_parameters)]
    for pattern in config.target_parameters:
        if not any(matches(pattern, name) for name in fused):
            last = sorted({name.split(".", 3)[-1] for name in fused}) or ["none"]
            raise ValueError(
                f"target_parameters pattern {pattern!r} matches no fused weight [experts, out, in]: candidates end in "
                f"{', '.join(last[:6])}. Correct the pattern; linear layers go to target_modules."
            )
    for name in chosen:
        path, _, parameter = name.rpartition(".")
        module = model.get_submodule(path)
        transposed = bool(getattr(module, "is_transposed", False))
        module.add_module(parameter + _SUFFIX, ExpertAdapter(fused[name], config, transposed=transposed))
        if not isinstance(module, LoRAExperts):
            module.__class__ = _experts_class(module.__class__)
    return chosen


def adapted_parameters(model: nn.Module) -> list[str]:
    """Names of all fused parameters that carry an adapter, the shortest ends that mean them alone."""
    names = [f"{path}.{name}" for path, module in model.named_modules() for name in adapted_names(module)]
    return sorted(names)


def adapters_with_weights(model: nn.Module) -> list[tuple[str, ExpertAdapter, torch.Tensor]]:
    """Name of each adapted parameter, its adapter, and the parameter itself."""
    return [
        (f"{path}.{name}", getattr(module, name + _SUFFIX), getattr(module, name))
        for path, module in model.named_modules()
        for name in adapted_names(module)
    ]


def unload_experts(model: nn.Module) -> None:
    """Remove expert adapters: modules get their own classes back, with the base weights as they are."""
    for module in [module for module in model.modules() if isinstance(module, LoRAExperts)]:
        for name in adapted_names(module):
            delattr(module, name + _SUFFIX)
        plain: Any = module
        plain.__class__ = plain.base_class


def expert_adapters(model: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """Expert adapters under ``peft``'s names: it nests one wrapper per parameter, the first one innermost."""
    tensors: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        names = adapted_names(module)
        for depth, name in enumerate(reversed(names)):
            adapter = getattr(module, name + _SUFFIX)
            stem = f"{prefix}{path}." + "base_layer." * depth
            tensors[f"{stem}lora_A.weight"] = adapter.lora_A.weight
            tensors[f"{stem}lora_B.weight"] = adapter.lora_B.weight
    return tensors


@cache
def _experts_class(base: type[nn.Module]) -> type[LoRAExperts]:
    return type(f"LoRA{base.__name__}", (LoRAExperts, base), {"base_class": base, "__module__": __name__})
