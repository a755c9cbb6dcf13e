"""WAV by the standard library, arrays as they are, caps before decoding."""

import io
import wave

import numpy as np
import pytest

from automodel_data.errors import BadRow
from automodel_data.media import MediaLimits, load_audio, probe_audio


def wav(samples: np.ndarray, rate: int = 8000, width: int = 2) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


STEREO = np.stack([np.full(400, 0.5), np.full(400, -0.25)], axis=1)


def test_stereo_pcm_becomes_mono() -> None:
    sound = load_audio(wav(STEREO), MediaLimits())
    assert (sound.rate, sound.samples.dtype, len(sound.samples)) == (8000, np.float32, 400)
    assert sound.samples == pytest.approx(0.125, abs=1e-3)
    assert probe_audio(wav(STEREO), MediaLimits()) == (400, 8000)


def test_decoded_arrays_pass() -> None:
    assert load_audio({"array": [0.0, 1.0], "sampling_rate": 16000}, MediaLimits()).rate == 16000


def test_too_long_is_refused_from_the_header() -> None:
    with pytest.raises(BadRow, match="too long"):
        probe_audio(wav(STEREO), MediaLimits(max_seconds=0.01))
