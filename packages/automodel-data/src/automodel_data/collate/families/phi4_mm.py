"""Phi-4-multimodal: images and sounds, each expanded to as many tokens as its encoder makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from automodel_data.collate.families.base import FamilyAdapter, Features
from automodel_data.errors import DataError

_IMAGE_KEYS = ("image_pixel_values", "image_sizes", "image_attention_mask", "num_img_tokens")
_AUDIO_KEYS = ("audio_input_features", "audio_embed_sizes")


class Phi4MultimodalAdapter(FamilyAdapter):
    """Sizes alone do not tell the number of image tokens simply, so a blank of the size asks the image processor."""

    kinds = ("image", "audio")
    can_pack = False

    def placeholder(self, kind: str) -> str:
        return self.processor.image_token if kind == "image" else self.processor.audio_token

    def media_token_id(self, kind: str) -> int:
        return int(self.processor.image_token_id if kind == "image" else self.processor.audio_token_id)

    def expansion(self, kind: str, size: tuple[int, int], *, num_in_row: int) -> str:
        if kind == "audio":
            samples, rate = size
            count = self._audio(torch.zeros(samples).numpy(), rate)["audio_embed_sizes"]
        else:
            from PIL import Image

            count = self._images([Image.new("RGB", size)])["num_img_tokens"]
        return self.placeholder(kind) * int(torch.as_tensor(count).reshape(-1)[0])

    def features(self, images: Sequence[Any], sounds: Sequence[Any]) -> Features:
        made: Features = {}
        if images:
            output = self._images(images)
            made.update({key: torch.as_tensor(output[key]) for key in _IMAGE_KEYS})
        for sound in sounds:
            output = self._audio(sound.samples, sound.rate)
            part = {
                key: torch.as_tensor(output[key]).reshape(1, *torch.as_tensor(output[key]).shape[1:])
                for key in _AUDIO_KEYS
            }
            part["audio_attention_mask"] = torch.ones(part["audio_input_features"].shape[:2], dtype=torch.bool)
            made.update(self.stack([made_audio(made), part]) if "audio_input_features" in made else part)
        return made

    def num_features(self, features: Features) -> dict[str, int]:
        counts = {"image": "num_img_tokens", "audio": "audio_embed_sizes"}
        return {kind: int(features[key].sum()) for kind, key in counts.items() if key in features}

    def stack(self, rows: Sequence[Features]) -> Features:
        batch: Features = {}
        for key in dict.fromkeys(key for row in rows for key in row):
            batch.update(super().stack([{key: row[key]} for row in rows if key in row]))
        batch.pop("num_img_tokens", None)
        return batch

    def blank(self) -> tuple[list[int], Features]:
        """Nothing: the image and audio adapters of this family are chosen per batch by what it holds."""
        return [], {}

    def _images(self, images: Sequence[Any]) -> Any:
        if getattr(self.processor, "image_processor", None) is None:
            raise DataError("the image processor of Phi-4-multimodal needs torchvision: pip install torchvision")
        return self.processor.image_processor(list(images), return_tensors="pt")

    def _audio(self, samples: Any, rate: int) -> Any:
        extractor = getattr(self.processor, "audio_processor", None) or self.processor.feature_extractor
        if rate != extractor.sampling_rate:
            samples, rate = resampled(samples, rate, int(extractor.sampling_rate)), int(extractor.sampling_rate)
        return extractor(samples, sampling_rate=rate, return_tensors="pt")


def made_audio(features: Features) -> Features:
    """The sound part of a row's tensors."""
    return {key: value for key, value in features.items() if key.startswith("audio_")}


def resampled(samples: Any, rate: int, wanted: int) -> Any:
    """Linear interpolation to another rate: enough for speech at 16 kHz and above."""
    count = max(1, round(len(samples) * wanted / rate))
    return torch.nn.functional.interpolate(
        torch.as_tensor(samples)[None, None], size=count, mode="linear", align_corners=False
    )[0, 0].numpy()
