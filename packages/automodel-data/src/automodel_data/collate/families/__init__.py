"""One adapter per family of vision-language processors, chosen by the processor's class name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from automodel_data.errors import DataError

_HOMES = {
    "Gemma3Processor": "gemma3:Gemma3Adapter",
    "Idefics3Processor": "idefics3:Idefics3Adapter",
    "LlavaNextProcessor": "llava:LlavaNextAdapter",
    "LlavaOnevisionProcessor": "llava:LlavaOnevisionAdapter",
    "LlavaProcessor": "llava:LlavaAdapter",
    "PaliGemmaProcessor": "paligemma:PaliGemmaAdapter",
    "Phi4MultimodalProcessor": "phi4_mm:Phi4MultimodalAdapter",
    "Qwen2VLProcessor": "qwen_vl:QwenVLAdapter",
    "Qwen2_5_VLProcessor": "qwen_vl:QwenVLAdapter",
    "Qwen3VLProcessor": "qwen_vl:QwenVLAdapter",
    "SmolVLMProcessor": "idefics3:Idefics3Adapter",
}


def adapter_for(processor: Any, **options: Any) -> Any:
    """The `FamilyAdapter` of a processor.

    Args:
        processor: a Hugging Face processor, or `parts.ProcessorParts`.
        options: ``chat_template`` and ``template_kwargs``.

    Raises: DataError: no adapter knows this class.
    """
    name = processor_class(processor)
    if name not in _HOMES:
        raise DataError(
            f"no adapter for the processor {name}: known are {', '.join(sorted(_HOMES))}. Use one of these models, "
            "or a collate function of your own."
        )
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"automodel_data.collate.families.{module}"), attribute)(processor, **options)


def processor_class(processor: Any) -> str:
    """The class name that chooses the adapter; `parts.ProcessorParts` tells that of what it stands for."""
    return getattr(processor, "processor_class", None) or type(processor).__name__


__all__ = ["adapter_for", "processor_class"]
