"""Who computes an op. ``Missing`` says in one line why an implementation cannot run here."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from automodel_kernels import ops, reference
from automodel_kernels.bench.cases import Inputs

Run = Callable[[Inputs], Tensor]
NAMES = ("ours", "torch", "torch_fused", "torch_compile", "trl", "liger", "cce")
DEFAULT = ("ours", "torch", "torch_fused", "trl", "liger", "cce")
"""``torch_compile`` takes tens of seconds to compile, so it is asked for by name."""


class Missing(Exception):
    """An implementation that cannot run here, and why."""


def implementation(name: str, op: str, device: torch.device) -> Run:
    """Return the function, which takes the inputs by name.

    Raises: Missing: with the reason.
    """
    if name == "torch_compile":
        compiled = torch.compile(_TORCH[op])
        return lambda inputs: compiled(inputs)
    tables = {"ours": _OURS, "torch": _TORCH, "torch_fused": _TORCH_FUSED}
    if name in tables:
        if op not in tables[name]:
            raise Missing(f"torch has no fused {op}")
        return tables[name][op]
    return {"trl": _trl, "liger": _liger, "cce": _cce}[name](op, device)


_OURS: dict[str, Run] = {
    "linear_ce": lambda i: ops.linear_cross_entropy(
        i["hidden"], i["weight"], i["labels"], label_index=i["label_index"]
    ),
    "ce": lambda i: ops.cross_entropy(i["logits"], i["labels"]),
    "rms_norm": lambda i: _tensor(ops.rms_norm(i["x"], i["weight"])),
    "swiglu": lambda i: ops.swiglu(i["gate"], i["up"]),
    "rope": lambda i: _both(ops.rope(i["q"], i["k"], i["cos"], i["sin"])),
    "lora": lambda i: ops.lora_linear(i["x"], i["weight"], i["lora_a"], i["lora_b"], scaling=2.0),
}
_TORCH: dict[str, Run] = {
    "linear_ce": lambda i: F.cross_entropy(F.linear(i["hidden"], i["weight"]), i["labels"]),
    "ce": lambda i: F.cross_entropy(i["logits"], i["labels"]),
    "rms_norm": lambda i: _tensor(reference.rms_norm(i["x"], i["weight"])),
    "swiglu": lambda i: reference.swiglu(i["gate"], i["up"]),
    "rope": lambda i: _both(reference.rope(i["q"], i["k"], i["cos"], i["sin"])),
    "lora": lambda i: reference.lora_linear(i["x"], i["weight"], i["lora_a"], i["lora_b"], scaling=2.0),
}


def _fused_linear_ce(inputs: Inputs) -> Tensor:
    function: Any = F.linear_cross_entropy
    options: Any = torch.nn.LinearCrossEntropyOptions()
    return function(inputs["hidden"], inputs["weight"], inputs["labels"], ignore_index=-100, options=options)


_TORCH_FUSED: dict[str, Run] = {
    "rms_norm": lambda i: F.rms_norm(i["x"], i["weight"].shape, i["weight"], 1e-6),
}
if hasattr(F, "linear_cross_entropy"):
    _TORCH_FUSED["linear_ce"] = _fused_linear_ce


def _trl(op: str, device: torch.device) -> Run:
    """TRL's chunked log-probabilities, without the metrics that its trainer also asks for."""
    if op != "linear_ce" or importlib.util.find_spec("trl") is None:
        raise Missing("trl is not installed" if op == "linear_ce" else f"trl has no {op}")
    try:
        function: Any = importlib.import_module("trl.kernels.chunked_logprob").ChunkedLogProbFunction
    except (ImportError, AttributeError) as error:
        raise Missing(f"this trl has no chunked log-probabilities ({error})") from error
    compact = device.type == "cuda"  # on CPU its trainer scores every position

    def run(inputs: Inputs) -> Tensor:
        hidden, labels = inputs["hidden"], inputs["labels"]
        valid = labels != -100
        if compact:
            hidden, labels = hidden[valid], labels[valid]
        logprobs = function.apply(hidden, inputs["weight"], None, labels.clamp(min=0), 1.0, 8192, None, 1.0, ())[0]
        return -(logprobs.sum() if compact else (logprobs * valid).sum()) / valid.sum().clamp(min=1)

    return run


def _liger(op: str, device: torch.device) -> Run:
    if importlib.util.find_spec("liger_kernel") is None:
        raise Missing("liger-kernel is not installed")
    if device.type != "cuda":
        raise Missing("liger-kernel runs on CUDA only")
    functional: Any = importlib.import_module("liger_kernel.transformers.functional")
    table: dict[str, Run] = {
        "linear_ce": lambda i: functional.liger_fused_linear_cross_entropy(i["hidden"], i["weight"], i["labels"]),
        "ce": lambda i: functional.liger_cross_entropy(i["logits"].clone(), i["labels"]),
        "rms_norm": lambda i: functional.liger_rms_norm(i["x"], i["weight"], 1e-6),
        "swiglu": lambda i: functional.liger_swiglu(i["gate"], i["up"]),
        "rope": lambda i: _both(functional.liger_rope(i["q"], i["k"], i["cos"], i["sin"])),
    }
    if op not in table:
        raise Missing(f"liger-kernel has no {op}")
    return table[op]


def _cce(op: str, device: torch.device) -> Run:
    if op != "linear_ce":
        raise Missing(f"cut-cross-entropy has no {op}")
    if importlib.util.find_spec("cut_cross_entropy") is None:
        raise Missing("cut-cross-entropy is not installed")
    if device.type != "cuda":
        raise Missing("cut-cross-entropy runs on CUDA only")
    function: Any = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return lambda i: function(i["hidden"], i["weight"], i["labels"])


def _tensor(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _both(output: tuple[Tensor, Tensor]) -> Tensor:
    """Query alone is returned, yet key is kept in the graph."""
    return output[0] + 0.0 * output[1].sum()
