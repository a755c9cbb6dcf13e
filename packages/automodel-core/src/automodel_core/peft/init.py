"""Initialise adapters reproducibly: every value depends on the seed and the parameter's name alone."""

import hashlib
import math
import re

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from automodel_core.peft.base_weight import is_quantized
from automodel_core.peft.lora import LoRALayer, reset_magnitude


@torch.no_grad()
def init_lora(model: nn.Module, seed: int) -> None:
    """Give every adapter in the model its initial values: ``lora_A`` as configured, ``lora_B`` zero (PiSSA: neither).

    The full tensor is drawn from a generator keyed by ``(seed, parameter name)`` and then sliced, so a model that is
    sharded over any number of ranks starts from the same numbers as one process.

    Raises: ValueError: the model has no adapter, is still on the meta device, or PiSSA meets a sharded or quantised
        weight.
    """
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LoRALayer)]
    experts = [(name, m) for name, m in model.named_modules() if hasattr(m, "init_expert_adapters")]
    if not layers and not experts:
        raise ValueError(
            "init_lora on a model without LoRA layers: there is nothing to initialise. Call apply_lora first."
        )
    for name, layer in layers:
        if layer.lora_A.weight.device.type == "meta":
            raise ValueError(
                f"{name}.lora_A is on the meta device: it has no storage yet. Materialise the model first."
            )
        if layer.lora_A_init == "pissa":
            _init_pissa(name, layer)
            continue
        assign(
            layer.lora_A.weight, draw(layer.lora_A.weight.shape, layer.lora_A_init, generator(seed, f"{name}.lora_A"))
        )
        nn.init.zeros_(layer.lora_B.weight)
        if layer.use_dora:
            reset_magnitude(layer)
    for name, module in experts:
        module.init_expert_adapters(name, seed)
    for module in model.modules():
        if hasattr(module, "token_rows"):
            module.token_rows.reset(module.weight)


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator of its own for a parameter; names are taken without what wrappers add."""
    name = re.sub(r"(^|\.)(module|_orig_mod)(?=\.)", "", name).lstrip(".")
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw(shape: "torch.Size | tuple[int, int]", init: str, rng: torch.Generator) -> torch.Tensor:
    """A full ``[rank, in]`` float32 tensor on the CPU."""
    values = torch.empty(shape)
    if init == "xavier":
        return nn.init.xavier_uniform_(values, generator=rng)
    if init == "kaiming":
        return nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=rng)
    return nn.init.normal_(values, std=1.0 / shape[0], generator=rng)


def assign(parameter: torch.Tensor, full: torch.Tensor) -> None:
    """Write a full tensor into a parameter, which may be one rank's shard of it; no communication."""
    full = full.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        full = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(full)


def _init_pissa(name: str, layer: LoRALayer) -> None:
    """Adapter = principal part of the base weight, base = the rest; what is taken out is kept to be exported."""
    if is_quantized(layer) or isinstance(layer.weight, DTensor):
        raise ValueError(
            f"lora_A_init='pissa' on {name}: it needs the whole floating-point weight, not a quantised or sharded one. "
            "Initialise before sharding, or use xavier."
        )
    weight = layer.weight.float()
    if hasattr(layer, "pissa_A"):
        weight = weight + layer.scaling * layer.pissa_B @ layer.pissa_A
    rank = layer.lora_A.out_features
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = (values[:rank] / layer.scaling).sqrt()
    a, b = root.unsqueeze(-1) * right[:rank], left[:, :rank] * root
    layer.register_buffer("pissa_A", a.clone(), persistent=False)
    layer.register_buffer("pissa_B", b.clone(), persistent=False)
    layer.weight.copy_(weight - layer.scaling * b @ a)
    layer.lora_A.weight.copy_(a)
    layer.lora_B.weight.copy_(b)
