"""Processors: the full Hugging Face one where it loads, else its image processor and tokenizer under one roof.

Several full processors need torchvision even for still images. Their PIL image processor and tokenizer do not, and
are all that an adapter uses.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from automodel_data.errors import DataError

logger = logging.getLogger(__name__)

_TOKENS: dict[str, dict[str, Any]] = {
    "Qwen2VLProcessor": {"image_token": "<|image_pad|>"},
    "Qwen2_5_VLProcessor": {"image_token": "<|image_pad|>"},
    "Qwen3VLProcessor": {"image_token": "<|image_pad|>"},
    "SmolVLMProcessor": {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_tag": "<global-img>",
        "image_seq_len": 169,
    },
    "LlavaOnevisionProcessor": {
        "image_token": "<image>",
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_select_strategy": "full",
    },
    "Phi4MultimodalProcessor": {"image_token": "<|image|>", "audio_token": "<|audio|>"},
}


class ProcessorParts:
    """An image processor and a tokenizer that stand for a full processor.

    Args:
        processor_class: the Hugging Face class that this stands for; it chooses the adapter.
        tokenizer: a fast tokenizer that knows the family's media tokens.
        image_processor, audio_processor: what makes tensors of images and sounds.
        chat_template: by default the tokenizer's.
        settings: what the full processor keeps beside its parts, such as ``image_seq_len``.

    Raises: DataError: no adapter works on the parts of this class.
    """

    def __init__(
        self,
        processor_class: str,
        *,
        tokenizer: Any,
        image_processor: Any = None,
        audio_processor: Any = None,
        chat_template: str | None = None,
        **settings: Any,
    ) -> None:
        if processor_class not in _TOKENS:
            raise DataError(f"{processor_class} cannot be put together from parts: known are {sorted(_TOKENS)}.")
        self.processor_class, self.tokenizer = processor_class, tokenizer
        self.image_processor, self.audio_processor = image_processor, audio_processor
        self.chat_template = chat_template or getattr(tokenizer, "chat_template", None)
        self.settings = {**_TOKENS[processor_class], **settings}
        for name, value in self.settings.items():
            setattr(self, name, value)
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.settings["image_token"])
        if "audio_token" in self.settings:
            self.audio_token_id = tokenizer.convert_tokens_to_ids(self.settings["audio_token"])

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the parts as the full processor would, so that either can load them."""
        directory = Path(directory)
        for part in (self.tokenizer, self.image_processor, self.audio_processor):
            if part is not None:
                part.save_pretrained(directory)
        if self.chat_template:
            (directory / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        config = {"processor_class": self.processor_class, **self.settings}
        (directory / "processor_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_processor(path: str, **keys: Any) -> Any:
    """The processor of a model directory or hub id; its parts where the full one needs torchvision.

    Raises: DataError: neither loads.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(path, **keys)
    except (ImportError, RuntimeError, OSError, ValueError, TypeError) as error:
        parts = _load_parts(Path(path), error)
    logger.warning("%s: the full processor does not load here; its image processor and tokenizer are used", path)
    return parts


def _load_parts(path: Path, error: Exception) -> ProcessorParts:
    from transformers import AutoImageProcessor, AutoTokenizer

    record = path / "processor_config.json"
    config = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    name = config.pop("processor_class", None)
    if name not in _TOKENS:
        raise DataError(
            f"no processor can be loaded from {path}: {error} Give a directory with a processor, or install what the "
            "message names."
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(path)
    image_processor = None
    if (path / "preprocessor_config.json").is_file():
        image_processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    template = path / "chat_template.jinja"
    known = {key: value for key, value in config.items() if key in _TOKENS[name] or key == "num_image_tokens"}
    return ProcessorParts(
        name,
        tokenizer=tokenizer,
        image_processor=image_processor,
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else None,
        **known,
    )
