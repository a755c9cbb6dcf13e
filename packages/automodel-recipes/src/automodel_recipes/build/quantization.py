"""The ``quantization`` section: a base model in 4 or 8 bits, loaded by transformers and bitsandbytes."""

from typing import Any

import torch

from automodel_core.config import ConfigNode


def quantized_loading(config: ConfigNode, device: torch.device | None) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained`` that load the quantised base; none without the section.

    Args:
        config: the run's configuration.
        device: where the base goes: quantised weights are made there, and are not moved afterwards. None leaves the
            choice to transformers.
    """
    section = config.get("quantization")
    if section is None:
        return {}
    from transformers import BitsAndBytesConfig

    on_cpu = device is not None and device.type == "cpu"
    keys = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "float32" if on_cpu else "bfloat16",
        **section.to_dict(),
    }
    if "llm_int8_threshold" in keys:
        keys["llm_int8_threshold"] = float(keys["llm_int8_threshold"])
    found: dict[str, Any] = {"quantization_config": BitsAndBytesConfig(**keys)}
    if device is not None:
        found["device_map"] = {"": device}
    return found
