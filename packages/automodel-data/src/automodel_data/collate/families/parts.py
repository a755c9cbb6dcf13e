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

# Arguments that say where files are, as against settings of a processor.
_PLACE = ("revision", "subfolder", "cache_dir", "token", "local_files_only")


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
        self.tokenizer.save_pretrained(directory)
        config = {"processor_class": self.processor_class, **self.settings}
        for name in ("image_processor", "audio_processor"):
            part = getattr(self, name)
            if part is not None:
                config[name] = json.loads(json.dumps(part.to_dict(), default=_as_list))
        if self.image_processor is not None:
            self.image_processor.save_pretrained(directory)
        if self.chat_template:
            (directory / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        (directory / "processor_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _as_list(value: Any) -> Any:
    return value.tolist()


def load_processor(path: str, **keys: Any) -> Any:
    """The processor of a model directory or hub id; its parts where the full one needs torchvision.

    Args:
        path: a local directory or a hub id.
        keys: passed on to transformers, such as ``revision``, ``subfolder`` or ``max_pixels``.

    Raises: DataError: neither loads.
    """
    from transformers import AutoProcessor

    try:
        full = AutoProcessor.from_pretrained(path, **keys)
        if hasattr(full, "tokenizer"):
            return full
        error: Exception = DataError(f"{type(full).__name__} is no processor of images and text.")
    except (ImportError, RuntimeError, OSError, ValueError, TypeError) as failed:
        error = failed
    parts = _load_parts(path, error, keys)
    logger.warning("%s: the full processor does not load here; its image processor and tokenizer are used", path)
    return parts


def _load_parts(path: str, error: Exception, keys: dict[str, Any]) -> ProcessorParts:
    from transformers import AutoTokenizer

    where = {key: value for key, value in keys.items() if key in _PLACE}
    record = _record(path, "processor_config.json", where)
    images = record.pop("image_processor", None) or _record(path, "preprocessor_config.json", where)
    named = (record, images, _record(path, "tokenizer_config.json", where))
    name = next((config["processor_class"] for config in named if config.get("processor_class") in _TOKENS), None)
    if name is None:
        raise DataError(
            f"no processor can be loaded from {path}: {error} Give a directory with a processor, or install what the "
            "message names."
        ) from error
    template = _record(path, "chat_template.json", where).get("chat_template")
    known = {key: value for key, value in record.items() if key in _TOKENS[name] or key == "num_image_tokens"}
    return ProcessorParts(
        name,
        tokenizer=AutoTokenizer.from_pretrained(path, **where),
        image_processor=_image_processor(path, name, images, keys),
        audio_processor=_audio_processor(path, where) if name == "Phi4MultimodalProcessor" else None,
        chat_template=template,
        **known,
    )


def _record(path: str, name: str, where: dict[str, Any]) -> dict[str, Any]:
    """A JSON file beside the model, empty where there is none."""
    from transformers.utils import cached_file

    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **where)
    return json.loads(Path(found).read_text(encoding="utf-8")) if found else {}


def _image_processor(path: str, name: str, record: dict[str, Any], keys: dict[str, Any]) -> Any:
    if not record:
        return None
    if name == "Phi4MultimodalProcessor":  # transformers has no class for it that works without torchvision
        from automodel_data.collate.families.phi4_images import Phi4Images

        return Phi4Images.of(record)
    import transformers

    # transformers 5.17: the automatic class asks for torchvision, whatever the backend.
    named = str(record.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil") + "Pil"
    if (found := getattr(transformers, named, None)) is not None:
        return found.from_pretrained(path, **keys)
    return transformers.AutoImageProcessor.from_pretrained(path, backend="pil", **keys)


def _audio_processor(path: str, where: dict[str, Any]) -> Any:
    from transformers import Phi4MultimodalFeatureExtractor

    return Phi4MultimodalFeatureExtractor.from_pretrained(path, **where)
