"""Sounds as float32 mono: PCM WAV by the standard library, decoded arrays as they are, other formats by soundfile."""

from __future__ import annotations

import math
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from automodel_data.errors import BadRow, DataError
from automodel_data.media.limits import MediaLimits
from automodel_data.media.sources import open_media


@dataclass(frozen=True)
class Sound:
    """Mono samples in [-1, 1], float32 ``[N]``, at ``rate`` per second."""

    samples: np.ndarray
    rate: int


def probe_audio(ref: Any, limits: MediaLimits) -> tuple[int, int]:
    """``(samples, rate)`` of a sound, from its header. Raises: BadRow: as `load_audio`."""
    if isinstance(ref, Mapping) and "array" in ref:
        sound = load_audio(ref, limits)
        return len(sound.samples), sound.rate
    with open_media(ref, limits) as stream:
        try:
            with wave.open(stream) as file:
                count, rate = file.getnframes(), file.getframerate()
        except (wave.Error, EOFError):
            stream.seek(0)
            info = _soundfile().SoundFile(stream)
            count, rate = len(info), info.samplerate
    _check_length(count, rate, limits)
    return count, rate


def load_audio(ref: Any, limits: MediaLimits) -> Sound:
    """Decode a sound.

    Args:
        ref: what `open_media` takes, or Hugging Face's decoded ``{"array", "sampling_rate"}``.
        limits: caps.

    Raises: BadRow: unreadable, or longer than ``max_seconds``. DataError: the format needs the soundfile package.
    """
    if isinstance(ref, Mapping) and "array" in ref:
        sound = Sound(_mono(np.asarray(ref["array"], dtype=np.float32).T), int(ref["sampling_rate"]))
        _check_length(len(sound.samples), sound.rate, limits)
        return sound
    probe_audio(ref, limits)
    with open_media(ref, limits) as stream:
        try:
            with wave.open(stream) as file:
                return Sound(_pcm(file), file.getframerate())
        except (wave.Error, EOFError):
            stream.seek(0)
            samples, rate = _soundfile().read(stream, dtype="float32")
            return Sound(_mono(samples), int(rate))


def resampled_length(count: int, rate: int, wanted: int) -> int:
    """How many samples `resample` makes of ``count``."""
    return max(1, -(-count * wanted // rate))


def resample(sound: Sound, rate: int) -> Sound:
    """The sound at another rate, by a windowed sinc that leaves out what the lower rate cannot hold.

    Source: the bandlimited interpolation of torchaudio's ``resample``: Hann window, six zero crossings, roll-off 0.99.
    """
    if sound.rate == rate:
        return sound
    import torch

    shared = math.gcd(sound.rate, rate)
    old, new = sound.rate // shared, rate // shared
    cutoff = min(old, new) * 0.99
    width = math.ceil(6 * old / cutoff)
    taps = torch.arange(-width, width + old, dtype=torch.float64) / old
    at = ((torch.arange(0, -new, -1, dtype=torch.float64)[:, None] / new + taps) * cutoff).clamp(-6, 6)
    kernel = torch.sinc(at) * torch.cos(at * math.pi / 12) ** 2 * (cutoff / old)
    padded = torch.nn.functional.pad(torch.from_numpy(sound.samples).double(), (width, width + old))
    made = torch.nn.functional.conv1d(padded[None, None], kernel[:, None], stride=old)
    samples = made[0].T.reshape(-1)[: resampled_length(len(sound.samples), sound.rate, rate)]
    return Sound(samples.float().numpy(), rate)


def _pcm(file: wave.Wave_read) -> np.ndarray:
    kinds: dict[int, Any] = {1: np.uint8, 2: np.dtype("<i2"), 4: np.dtype("<i4")}
    width, data = file.getsampwidth(), file.readframes(file.getnframes())
    if width not in kinds:
        raise BadRow(f"WAV with {8 * width} bits a sample", hint="8, 16 and 32 are read.")
    samples: Any = np.frombuffer(data, dtype=kinds[width]).astype(np.float32)
    samples = (samples - 128) / 128 if width == 1 else samples / float(1 << (8 * width - 1))
    return _mono(samples.reshape(-1, file.getnchannels()))


def _mono(samples: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(samples if samples.ndim == 1 else samples.mean(axis=1), dtype=np.float32)


def _check_length(count: int, rate: int, limits: MediaLimits) -> None:
    if rate < 1 or count < 1:
        raise BadRow("sound without samples")
    if count / rate > limits.max_seconds:
        raise BadRow("sound is too long", hint=f"{count / rate:.1f} s, media.max_seconds={limits.max_seconds}.")


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError:
        raise DataError("this audio format needs soundfile, which is not installed: pip install soundfile") from None
    return soundfile
