"""Phi-4-multimodal: images and sounds, each expanded to as many tokens as its encoder makes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from automodel_data.collate.families.base import FamilyAdapter, Features
from automodel_data.collate.families.phi4_images import Phi4Images
from automodel_data.errors import BadRow, DataError
from automodel_data.media.audio import Sound, resample, resampled_length

_IMAGE_KEYS = ("image_pixel_values", "image_sizes", "image_attention_mask", "num_img_tokens")
_COUNTS = {"image": "num_img_tokens", "audio": "audio_embed_sizes"}


class Phi4MultimodalAdapter(FamilyAdapter):
    """The model projects a sound in one way where its batch holds an image and in another where it holds none.

    So a batch may not mix rows of sounds alone with rows of images, and sounds of one batch are padded to the longest,
    which the model's audio encoder sees: with sounds of unlike length its numbers depend on the batch.
    """

    kinds = ("image", "audio")

    def __init__(self, processor: Any, **options: Any) -> None:
        super().__init__(processor, **options)
        images = getattr(processor, "image_processor", None)
        self._images = None if images is None else Phi4Images.of(images)

    def placeholder(self, kind: str) -> str:
        return self.processor.image_token if kind == "image" else self.processor.audio_token

    def media_token_id(self, kind: str) -> int:
        return int(self.processor.image_token_id if kind == "image" else self.processor.audio_token_id)

    def expansion(self, kind: str, size: tuple[int, int], *, num_in_row: int) -> str:
        count = self._audio_tokens(*size) if kind == "audio" else self._image_layouts().num_tokens(*size)
        return self.placeholder(kind) * count

    def features(self, images: Sequence[Any], sounds: Sequence[Any]) -> Features:
        made: Features = {}
        if images:
            self._image_layouts()
            output = self.processor.image_processor(list(images), return_tensors="pt")
            made.update({key: torch.as_tensor(output[key]) for key in _IMAGE_KEYS})
        if sounds:
            made.update(self.stack([self._sound(sound) for sound in sounds]))
        return made

    def num_features(self, features: Features) -> dict[str, int]:
        return {kind: int(features[key].sum()) for kind, key in _COUNTS.items() if key in features}

    def stack(self, rows: Sequence[Features]) -> Features:
        """Raises: DataError: rows with images beside rows with sounds alone."""
        if any(set(row) & set(_IMAGE_KEYS) for row in rows) and any("image_sizes" not in row for row in rows):
            raise DataError(
                "a batch of Phi-4-multimodal holds rows with images and rows with sounds alone, which the model "
                "projects differently. Train on them apart, or set step_scheduler.local_batch_size to 1."
            )
        batch: Features = {}
        for key in dict.fromkeys(key for row in rows for key in row):
            parts = [row[key] for row in rows if key in row]
            batch.update(super().stack([{key: part} for part in _same_tiles(key, parts)]))
        batch.pop("num_img_tokens", None)  # what the model needs is in the sizes and masks
        return batch

    def blank_kinds(self, data: Collection[str], present: Collection[str]) -> tuple[str, ...]:
        """None for a batch of sounds alone: an image would change how they are projected."""
        return () if "audio" in present and "image" not in present else super().blank_kinds(data, present)

    def blank_sound(self) -> tuple[list[int], Features]:
        """Ids and tensors of a tenth of a second of silence."""
        rate = int(self._extractor.sampling_rate)
        samples = np.zeros(rate // 10, np.float32)
        ids = [self.media_token_id("audio")] * self._audio_tokens(len(samples), rate)
        return ids, self.features([], [Sound(samples, rate)])

    def _sound(self, sound: Sound) -> Features:
        sound = resample(sound, int(self._extractor.sampling_rate))
        output = self._extractor(sound.samples, sampling_rate=sound.rate, return_tensors="pt")
        frames = torch.as_tensor(output["audio_input_features"])
        sizes = torch.as_tensor(output["audio_embed_sizes"]).reshape(1)
        mask = torch.ones(frames.shape[:2], dtype=torch.bool)
        return {"audio_input_features": frames, "audio_embed_sizes": sizes, "audio_attention_mask": mask}

    def _audio_tokens(self, samples: int, rate: int) -> int:
        extractor = self._extractor
        samples = resampled_length(samples, rate, int(extractor.sampling_rate))
        frames = (samples - extractor.win_length) // extractor.hop_length + 1
        if frames < 1:
            raise BadRow("sound is shorter than one frame", hint=f"{extractor.win_length} samples are one.")
        frames *= extractor.audio_feat_stride
        return math.ceil(math.ceil(frames / extractor.audio_compression_rate) / extractor.audio_downsample_rate)

    def _image_layouts(self) -> Phi4Images:
        if self._images is None:
            raise DataError("this processor has no image processor. Give one, or train on sounds alone.")
        return self._images

    @property
    def _extractor(self) -> Any:
        found = getattr(self.processor, "audio_processor", None) or getattr(self.processor, "feature_extractor", None)
        if found is None:
            raise DataError("this processor has no audio processor. Give one, or train on images alone.")
        return found


def _same_tiles(key: str, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Masks of rows filled up with ones: a tile without any patch divides by zero in the model."""
    if key != "image_attention_mask":
        return list(parts)
    most = max(part.shape[1] for part in parts)
    return [torch.nn.functional.pad(p, [0, 0, 0, 0, 0, most - p.shape[1]], value=1.0) for p in parts]
