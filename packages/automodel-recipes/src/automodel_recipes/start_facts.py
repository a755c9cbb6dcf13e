"""The lines of the start screen about configuration, model, device and batches."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from automodel_core.config.tree import walk
from automodel_recipes.loggers.console import count

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe


def config_line(r: "BaseRecipe") -> str:
    """``llama.yaml (sha 4f1c2a90) + 2 overrides``; the hash is of the file as it was written."""
    file = Path(r.config.source().file)
    content = file.read_bytes() if file.is_file() else r.config.to_yaml().encode()
    overrides = {str(tree.source) for _, tree in walk(r.config.tree) if tree.source.origin == "override"}
    extra = f" + {len(overrides)} override{'s' if len(overrides) > 1 else ''}" if overrides else ""
    return f"{file} (sha {hashlib.sha256(content).hexdigest()[:8]}){extra}"


def model_line(r: "BaseRecipe") -> str:
    """Name, dtype, size, share that trains, and whether embeddings and head are one tensor."""
    built, config = r.built, r.built.model.config
    dtype = str(next(p.dtype for p in built.model.parameters() if p.dtype.is_floating_point)).removeprefix("torch.")
    share = 100 * built.num_trainable / max(built.num_parameters, 1)
    name = getattr(config, "_name_or_path", "") or config.model_type
    tied = ", tied embeddings" if getattr(config, "tie_word_embeddings", False) else ""
    return (
        f"{name} {dtype}, {count(built.num_parameters)} params, "
        f"trainable {count(built.num_trainable)} ({share:.3g} %){tied}"
    )


def device_line(r: "BaseRecipe") -> str:
    """Devices, layout, attention, what is fused, and which accelerations were not asked for."""
    parts = [f"{r.parallel.world_size}x {_device_name(r.device)}"]
    if r.parallel.world_size > 1:
        parts.append(f"dp {r.parallel.dp_size} of {r.parallel.world_size} processes")
    parts.append(f"attention {getattr(r.built.model.config, '_attn_implementation', None) or 'of the model'}")
    if fused := _fused(r):
        parts.append(f"fused: {', '.join(fused)}")
    on = [f"fp8 {r.built.fp8.recipe_name}"] if r.built.fp8 is not None else []
    on += [f"compile {compiler}"] if (compiler := _compiler(r)) else []
    parts += on
    off = [name for name in ("kernels", "fp8", "compile") if r.config.get(name) is None and not _is_on(name, on, fused)]
    if off:
        parts.append(f"off: {', '.join(off)} (not requested)")
    return " | ".join(parts)


def _is_on(name: str, on: list[str], fused: list[str]) -> bool:
    return any(text.startswith(name) for text in on) or (name == "kernels" and bool(fused))


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} {properties.total_memory / 2**30:.0f} GiB"


def _fused(r: "BaseRecipe") -> list[str]:
    """Kernel ops in use, and a loss that never makes whole logits; with the reason where Triton does not run."""
    reports = [report for report in r.built.reports if hasattr(report, "counts") and hasattr(report, "fallback")]
    ops = [op for report in reports for op in report.counts()]
    fallback = next((report.fallback for report in reports if report.fallback), "")
    if ops and fallback:
        ops[-1] += f" (PyTorch twins: {fallback})"
    return [*(["linear cross-entropy"] if getattr(r.loss_fn, "takes_hidden_states", False) else []), *ops]


def _compiler(r: "BaseRecipe") -> str | None:
    """The backend of compiled blocks, whichever section asked for them."""
    from automodel_parallel.compile import CompileConfig

    if (own := getattr(r.parallel, "compiler", None)) is not None and own.enabled:
        return str(own.backend)
    settings = CompileConfig.parse(getattr(getattr(r.parallel, "manager", None), "compile", None))
    return settings.backend if settings.enabled else None


def batch_line(r: "BaseRecipe") -> str:
    """How a global batch is made up, how many steps there are, and the learning rate over them."""
    scheduler: Any = r.step_scheduler
    per_epoch = "" if scheduler.steps_per_epoch is None else f"{scheduler.steps_per_epoch} steps/epoch, "
    accumulation = -(-scheduler.global_batch_size // (scheduler.local_batch_size * r.parallel.dp_size))
    return (
        f"{scheduler.local_batch_size} local x {accumulation} accumulation x {r.parallel.dp_size} dp = "
        f"{scheduler.global_batch_size} | {per_epoch}{scheduler.total_steps} in all | " + _schedule(r.lr_schedule)
    )


def _schedule(schedule: Any) -> str:
    """``warm-up 9 -> 0.0001 -> cosine 0``."""
    warmup = f"warm-up {schedule.lr_warmup_steps} -> " if schedule.lr_warmup_steps else ""
    if schedule.lr_decay_style == "constant":
        return f"{warmup}lr {schedule.max_lr:g}"
    return f"{warmup}lr {schedule.max_lr:g} -> {schedule.lr_decay_style} {schedule.min_lr:g}"
