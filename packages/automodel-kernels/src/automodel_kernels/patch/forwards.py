"""The forwards that a rule puts on a module, and the reasons why a module cannot take one."""

import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from automodel_kernels.ops.glu import geglu, swiglu
from automodel_kernels.ops.rms_norm import rms_norm
from automodel_kernels.ops.rope import rope

Forward = Callable[..., object]
ROPE_NAME = "apply_rotary_pos_emb"
_SILU = ("SiLU", "SiLUActivation")
_GELU_TANH = ("GELUTanh", "PytorchGELUTanh")
_GELU_ERF = ("GELUActivation",)


def llama_rms_norm(module: nn.Module, strict: bool) -> Forward:
    """RMSNorm rounded before the product with the weight."""
    return _norm_forward(module, "llama", strict)


def gemma_rms_norm(module: nn.Module, strict: bool) -> Forward:
    """RMSNorm with ``1 + weight``, rounded after the product."""
    return _norm_forward(module, "gemma", strict)


def _norm_forward(module: nn.Module, order: Any, strict: bool) -> Forward:
    eps = _eps(module)

    def forward(self: Any, hidden_states: Tensor) -> object:
        return rms_norm(hidden_states, self.weight, eps=eps, order=order, strict=strict)

    return forward


def norm_unfit(module: nn.Module) -> str:
    """Why a norm cannot be replaced."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 1:
        return "it has no one-dimensional weight"
    return "" if _eps(module) is not None else "it has neither variance_epsilon nor eps"


def _eps(module: nn.Module) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def gated_mlp(module: nn.Module, strict: bool) -> Forward:
    """``down(act(gate(x)) * up(x))``; the projections are called as modules, so adapters and FP8 stay in effect."""
    gated = _gated_product(module.act_fn, strict)

    def forward(self: Any, hidden_states: Tensor) -> object:
        return self.down_proj(gated(self.gate_proj(hidden_states), self.up_proj(hidden_states)))

    return forward


def gated_mlp_unfit(module: nn.Module) -> str:
    """Why an MLP cannot be replaced."""
    missing = [name for name in ("gate_proj", "up_proj", "down_proj", "act_fn") if not hasattr(module, name)]
    if missing:
        return f"it has no {', '.join(missing)}"
    if getattr(module, "activation_sparsity", 0.0):
        return "it sparsifies its activations"
    return _activation_unfit(module.act_fn)


def fused_gated_mlp(module: nn.Module, strict: bool) -> Forward:
    """``down(up * act(gate))`` with gate and up in one projection."""
    gated = _gated_product(module.activation_fn, strict)

    def forward(self: Any, hidden_states: Tensor) -> object:
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(gated(gate, up))

    return forward


def fused_gated_mlp_unfit(module: nn.Module) -> str:
    """Why an MLP with a fused projection cannot be replaced."""
    missing = [name for name in ("gate_up_proj", "down_proj", "activation_fn") if not hasattr(module, name)]
    return f"it has no {', '.join(missing)}" if missing else _activation_unfit(module.activation_fn)


def _gated_product(act: Any, strict: bool) -> Callable[[Tensor, Tensor], Tensor]:
    kind = activation_kind(act)
    if kind == "silu":
        return lambda gate, up: swiglu(gate, up, strict=strict)
    approximate: Any = "tanh" if kind == "gelu_tanh" else "none"
    return lambda gate, up: geglu(gate, up, approximate=approximate, strict=strict)


def activation_kind(act: Any) -> str:
    """``silu``, ``gelu_tanh`` or ``gelu_erf``; an empty string for any other activation."""
    name = type(act).__name__
    kinds = {"silu": _SILU, "gelu_tanh": _GELU_TANH, "gelu_erf": _GELU_ERF}
    return next((kind for kind, names in kinds.items() if name in names), "")


def _activation_unfit(act: Any) -> str:
    return "" if activation_kind(act) else f"its activation is {type(act).__name__} (kernels know SiLU and GELU)"


def rope_attention(module: nn.Module, strict: bool) -> Forward:
    """The class's own forward, with another function behind the name ``apply_rotary_pos_emb``.

    The copy shares code with the class and has its own globals: neither the class nor its module is touched.
    """
    return _with_global(type(module).forward, ROPE_NAME, _rotate_or_raise if strict else _rotate)


def _with_global(function: Any, name: str, value: Any) -> Any:
    """A copy of a function in which a global name means ``value``; decorators around it are copied with it."""
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is None:
        return _copy(function, {**function.__globals__, name: value}, function.__closure__)
    inner = _with_global(wrapped, name, value)
    closure = tuple(types.CellType(inner) if c.cell_contents is wrapped else c for c in function.__closure__)
    outer = _copy(function, function.__globals__, closure)
    outer.__wrapped__ = inner
    return outer


def _copy(function: Any, scope: dict[str, Any], closure: Any) -> Any:
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, closure)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _calls_what_it_wraps(function: Any) -> bool:
    """Whether every decorator around a function holds it in its closure, where a copy can be put."""
    while (wrapped := getattr(function, "__wrapped__", None)) is not None:
        if not any(cell.cell_contents is wrapped for cell in function.__closure__ or ()):
            return False
        function = wrapped
    return True


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    return rope(q, k, cos.to(q.dtype), sin.to(q.dtype), unsqueeze_dim=unsqueeze_dim)


def _rotate_or_raise(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    return rope(q, k, cos.to(q.dtype), sin.to(q.dtype), unsqueeze_dim=unsqueeze_dim, strict=True)


def rope_unfit(module: nn.Module) -> str:
    """Why the rotation of an attention module cannot be replaced."""
    original = inspect.unwrap(type(module).forward)
    if not _calls_what_it_wraps(type(module).forward):
        return "its forward is decorated in a way that cannot be copied"
    if ROPE_NAME not in original.__code__.co_names:
        return f"its forward does not call {ROPE_NAME}"
    expected = ["q", "k", "cos", "sin"]
    actual = list(inspect.signature(original.__globals__[ROPE_NAME]).parameters)
    return "" if actual[:4] == expected and actual[4:] in ([], ["unsqueeze_dim"]) else f"{ROPE_NAME} takes {actual}"
