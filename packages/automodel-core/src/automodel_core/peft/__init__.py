"""Parameter-efficient fine-tuning: LoRA with names and files that the ``peft`` library shares."""

from importlib import import_module
from typing import Any

_HOMES = {
    "AdapterBank": "bank",
    "AdapterConfig": "saved",
    "LoRALayer": "lora",
    "LoraReport": "apply",
    "ModuleMatcher": "matching",
    "PeftConfig": "config",
    "adapter_config": "hf_format",
    "adapter_state_dict": "hf_format",
    "apply_lora": "apply",
    "combine_adapters": "bank",
    "config_from_adapter": "hf_format",
    "init_lora": "init",
    "load_adapter_state_dict": "hf_format",
    "merge_lora": "merge",
    "patch_linear_module": "lora",
    "train_added_tokens": "added_tokens",
    "unload_lora": "merge",
    "unmerge_lora": "merge",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
