"""Model FLOPs of a step and what share of the device's peak they are (MFU), by the formula of the PaLM paper.

Per token: 6 FLOPs for every trained weight that takes part in a matrix product, 4 for every frozen one (it needs no
gradient of its own), and 12 x layers x heads x head size x sequence length for attention. Embedding look-ups cost
nothing; of a mixture of experts the active share counts. Left out: image and audio towers, and what activation
checkpointing computes twice, so the figure is the model's own work.
Source: Chowdhery et al. 2022 (PaLM), appendix B; frozen weights as in LoRA add-ons of the same count.
"""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from automodel_recipes.gpus import recognise_gpu

FORMULA = (
    "(tokens x (6 x trained + 4 x frozen matrix weights) + 12 x layers x heads x head size x sum of squared sequence "
    "lengths) / seconds / processes / peak FLOP/s"
)

_TOWERS = ("vision", "visual", "image", "img", "audio")


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of forward and backward as a function of what a batch holds."""

    per_token: float
    per_squared_length: float
    """For each sequence, times its length squared."""

    def of(self, num_tokens: int, squared_lengths: int) -> float:
        """FLOPs for so many tokens in sequences whose squared lengths sum up to that."""
        return self.per_token * num_tokens + self.per_squared_length * squared_lengths


def model_flops(model: nn.Module, parallel: Any) -> StepFlops:
    """``step_flops`` of the whole model, of which this rank may hold some pipeline stages; all ranks call it."""
    pipeline = parallel.pipeline
    # The first stage holds a tied head as its embedding only; the last one multiplies with it.
    looked_up = () if pipeline is None or pipeline.is_last else pipeline.tied_parameters()
    own = step_flops(model, looked_up=looked_up)
    per_token = torch.tensor(round(own.per_token), dtype=torch.int64, device=parallel.device)
    return StepFlops(float(parallel.sum_over_stages(per_token)), own.per_squared_length)


def step_flops(model: nn.Module, *, looked_up: Collection[nn.Parameter] = ()) -> StepFlops:
    """Count the matrix weights of a Hugging Face model but ``looked_up`` ones; sharded parameters count whole."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    share = _active_share(text)
    per_token = 0.0
    skipped = {id(parameter) for parameter in looked_up}
    for name, parameter in _matrix_weights(model, skipped):
        active = parameter.numel() * (share if parameter.dim() == 3 or ".experts." in name else 1.0)
        per_token += (6 if parameter.requires_grad else 4) * active
    heads = getattr(text, "num_attention_heads", 0) or 0
    size = getattr(text, "head_dim", None) or (getattr(text, "hidden_size", 0) // heads if heads else 0)
    layers = getattr(text, "num_hidden_layers", 0) or 0
    return StepFlops(per_token, 12.0 * layers * heads * size)


def _matrix_weights(model: nn.Module, seen: set[int]) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights of linear layers and experts outside the towers, each once, but those ``seen`` already."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) or any(tower in path for tower in _TOWERS):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{path}.{name}", parameter


def _active_share(text: Any) -> float:
    total = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    chosen = getattr(text, "num_experts_per_tok", None)
    return float(chosen) / float(total) if total and chosen else 1.0


def sequence_lengths(batch: dict[str, Any]) -> list[int]:
    """Lengths of the documents of a batch: by ``cu_seq_lens_q``, by the mask, or whole rows."""
    bounds = batch.get("cu_seq_lens_q")
    if isinstance(bounds, torch.Tensor):
        return bounds.diff().tolist()
    mask = batch.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return mask.sum(-1).tolist()
    rows, length = batch["input_ids"].shape[:2]
    return [length] * rows


@dataclass(frozen=True)
class Peak:
    """What MFU is measured against."""

    tflops: float
    source: str

    def percent(self, flops_per_s: float) -> float:
        """The share of it that so many FLOP/s are, to three digits: a small model may be far below a hundredth."""
        return float(f"{100 * flops_per_s / (self.tflops * 1e12):.3g}")


def device_peak(device: torch.device, *, given: float | None) -> Peak | None:
    """Peak TFLOP/s of a device: as given, from the data sheet, on a CPU measured; None for a device not known."""
    if given is not None:
        return Peak(given, "monitoring.peak_tflops")
    if device.type == "cpu":
        return Peak(_measured_matmul_tflops(), "float32 matrix product measured at the start, this process's threads")
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    gpu = recognise_gpu(name)
    return None if gpu is None else Peak(gpu.bf16_tflops, f"data sheet of {name}, dense, 16 bits")


def _measured_matmul_tflops(size: int = 512, seconds: float = 0.2) -> float:
    """The best of the products that fit into ``seconds``: a moment in which the machine was busy must not count."""
    a = torch.ones(size, size)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12
