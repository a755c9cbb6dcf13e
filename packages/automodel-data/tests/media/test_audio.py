"""WAV by the standard library, arrays as they are, caps before decoding."""

import io
import wave

import numpy as np
import pytest

from automodel_data.errors import BadRow
from automodel_data.media import MediaLimits, Sound, load_audio, probe_audio
from automodel_data.media.audio import resample, resampled_length


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


def tone(pitch: float, rate: int, seconds: float = 0.5) -> Sound:
    return Sound(np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate).astype(np.float32), rate)


@pytest.mark.parametrize(("old", "new"), [(48000, 16000), (22050, 16000), (8000, 16000)])
def test_another_rate_keeps_what_it_can_hold(old: int, new: int) -> None:
    made, wanted = resample(tone(440, old), new), tone(440, new)
    assert made.rate == new
    assert len(made.samples) == resampled_length(old // 2, old, new) == new // 2
    inner = slice(200, -200)
    assert np.abs(made.samples[inner] - wanted.samples[inner]).max() < 5e-3


def test_pitches_above_the_new_rate_are_left_out_instead_of_folded_down() -> None:
    assert np.abs(resample(tone(11000, 48000), 16000).samples[200:-200]).max() < 1e-2


def test_the_same_rate_is_the_same_sound() -> None:
    sound = tone(440, 16000)
    assert resample(sound, 16000) is sound
