"""The ``drift`` frontend: librosa's values, the right pitch, and the same bits whatever the circumstances."""

import warnings
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
import torch
from generated_speech import recording, speech_like
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import DriftConfig
from kubevox.data.audio import canonical
from kubevox.errors import ConfigError
from kubevox.features import feature_shape, features_of
from kubevox.features.frontends.drift import Drift

CONFIG = DriftConfig()
FRONTEND = Drift(CONFIG)
TOLERANCE = 1e-3


def librosa_moments(samples: np.ndarray, config: DriftConfig) -> dict[str, np.ndarray]:
    """Mean and deviation over time as librosa has them, by family: float64 [2 * values] each."""
    frames = {"hop_length": config.hop}
    spectral = {"y": samples, "sr": config.sample_rate, "n_fft": config.frame, **frames}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recordings shorter than a frame, or silent
        families = {
            "mfcc": librosa.feature.mfcc(**spectral, n_mels=config.mels, n_mfcc=config.mfccs),
            "spectral_centroid": librosa.feature.spectral_centroid(**spectral),
            "spectral_contrast": librosa.feature.spectral_contrast(**spectral, n_bands=config.contrast_bands),
            "zero_crossing_rate": librosa.feature.zero_crossing_rate(samples, frame_length=config.frame, **frames),
            "rms": librosa.feature.rms(y=samples, frame_length=config.frame, **frames),
        }
    return {
        name: np.stack([values.mean(1, dtype=np.float64), values.std(1, dtype=np.float64)], axis=1).ravel()
        for name, values in families.items()
    }


def assert_parity(samples: np.ndarray, config: DriftConfig = CONFIG) -> None:
    """Within 1e-3 of librosa's value, or of 1 % of its family's RMS where that is more."""
    ours = Drift(config)(torch.from_numpy(samples)[None])[0].numpy().astype(np.float64)
    for family, theirs in librosa_moments(samples, config).items():
        here = ours[[name.startswith(family) for name in config.feature_names]]
        scale = np.maximum(np.abs(theirs), 0.01 * np.sqrt(np.mean(theirs**2)))
        assert (np.abs(here - theirs) <= TOLERANCE * scale + 1e-6).all(), family


def pitch_of(samples: np.ndarray, config: DriftConfig = CONFIG) -> tuple[float, float, float]:
    """Mean and deviation of the pitch in Hz, and the share of voiced frames."""
    mean, deviation, share = Drift(config)(torch.from_numpy(samples.astype(np.float32))[None])[0, -3:].tolist()
    return mean, deviation, share


def voice(hertz: np.ndarray, sample_rate: int = 16_000) -> np.ndarray:
    """Twelve falling harmonics of a fundamental frequency, [samples] of [samples]."""
    phase = 2 * np.pi * np.cumsum(hertz) / sample_rate
    return 0.2 * sum(np.sin(number * phase) / number for number in range(1, 13))


def track(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pitch in Hz and whether there is one, frame by frame."""
    half = CONFIG.frame // 2
    padded = np.pad(samples.astype(np.float32), half)
    frames = np.lib.stride_tricks.sliding_window_view(padded, CONFIG.frame)[:: CONFIG.hop].copy()
    pitch, voiced = FRONTEND._pitch(torch.from_numpy(frames)[None])
    return pitch[0].numpy(), voiced[0].numpy()


def test_every_value_has_its_name() -> None:
    names = CONFIG.feature_names
    assert names == FRONTEND.feature_names
    assert (len(names),) == feature_shape(CONFIG) == FRONTEND.shape == (49,)
    assert len(set(names)) == 49
    assert names[:3] == ["mfcc_0_mean", "mfcc_0_std", "mfcc_1_mean"]
    assert names[26:30] == [
        f"spectral_{name}" for name in ("centroid_mean", "centroid_std", "contrast_0_mean", "contrast_0_std")
    ]
    assert names[-7:] == [
        "zero_crossing_rate_mean",
        "zero_crossing_rate_std",
        "rms_mean",
        "rms_std",
        "pitch_mean",
        "pitch_std",
        "voiced_share",
    ]


@pytest.mark.parametrize("seconds", [0.07, 0.5, 1.234, 3.0])
def test_generated_recordings_have_the_values_of_librosa(seconds: float) -> None:
    for seed in range(4):
        assert_parity(speech_like(seconds, seed=seed).astype(np.float32))


def test_real_recordings_have_the_values_of_librosa_and_the_pitch_of_its_yin(speech_data: Path) -> None:
    files = sorted((speech_data / "speech").rglob("*.flac"))
    pairs = []
    for file in files[:: len(files) // 16]:
        samples, rate = soundfile.read(file, dtype="float64")
        samples = FRONTEND.prepare(canonical(samples, rate))
        assert_parity(samples)
        pitch, voiced = track(samples)
        theirs = librosa.yin(
            samples, fmin=65, fmax=500, sr=16_000, frame_length=1024, hop_length=320, trough_threshold=0.15
        )
        pairs.append((pitch[voiced], theirs[voiced]))
    ours, theirs = (np.concatenate(values) for values in zip(*pairs, strict=True))
    assert len(ours) > 100
    # librosa's window shortens with the lag, which weighs the glides at its end differently.
    assert (np.abs(ours / theirs - 1) < 0.03).mean() > 0.9


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(20_000),
        np.full(20_000, 0.3),
        np.where(np.arange(20_000) % 10_001, 0.0, 0.9),
        np.random.default_rng(0).standard_normal(20_000) * 0.1,
        np.concatenate([np.zeros(15_000), speech_like(1.0)]),
    ],
    ids=["silence", "constant", "clicks", "white noise", "mostly silence"],
)
def test_odd_recordings_have_the_values_of_librosa(samples: np.ndarray) -> None:
    assert_parity(samples.astype(np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"frame": 2048, "hop": 512, "mels": 128, "mfccs": 40},
        {"sample_rate": 8_000, "frame": 512, "hop": 100, "contrast_bands": 5, "pitch_fmax_hz": 400.0},
        {"sample_rate": 22_050, "frame": 1_000, "hop": 333, "contrast_bands": 3},
        {"frame": 601, "hop": 250},
    ],
)
def test_other_parameters_have_the_values_of_librosa(options: dict[str, Any]) -> None:
    config = DriftConfig.model_validate(options)
    assert_parity(speech_like(1.5, config.sample_rate, seed=5).astype(np.float32), config)


@settings(max_examples=20, deadline=None)
@given(hertz=st.floats(70.0, 480.0), level=st.floats(0.001, 0.9), offset=st.floats(-0.1, 0.1))
def test_the_pitch_of_a_tone_is_its_frequency(hertz: float, level: float, offset: float) -> None:
    time = np.arange(8_000) / 16_000
    pure = level * np.sin(2 * np.pi * hertz * time) + offset
    for samples in (pure, voice(np.full(8_000, hertz)) * level):
        pitch, voiced = track(samples)
        inside = slice(2, -3)  # the outermost frames are partly silence
        assert voiced[inside].all()
        assert pitch[inside] == pytest.approx(hertz, rel=0.01)


@pytest.mark.parametrize(("first", "last"), [(90.0, 180.0), (300.0, 150.0)])
def test_the_pitch_follows_a_glide(first: float, last: float) -> None:
    hertz = np.geomspace(first, last, 32_000)
    pitch, voiced = track(voice(hertz))
    inside = slice(2, -3)
    assert voiced[inside].all()
    assert pitch[inside] == pytest.approx(hertz[:: CONFIG.hop][: len(pitch)][2 : len(pitch) - 3], rel=0.01)
    mean, deviation, share = pitch_of(voice(hertz))
    assert mean == pytest.approx(hertz.mean(), rel=0.01)
    assert deviation == pytest.approx(hertz.std(), rel=0.05)
    assert share > 0.95


def test_the_voiced_share_is_that_of_the_voice() -> None:
    samples = np.concatenate([voice(np.full(16_000, 140.0)), 0.05 * np.random.default_rng(0).standard_normal(16_000)])
    mean, deviation, share = pitch_of(samples)
    assert mean == pytest.approx(140.0, rel=0.01)
    assert deviation < 2.0
    assert share == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "samples",
    [np.zeros(16_000), np.full(16_000, 0.3), 0.1 * np.random.default_rng(1).standard_normal(16_000)],
    ids=["silence", "constant", "white noise"],
)
def test_what_has_no_pitch_is_not_voiced(samples: np.ndarray) -> None:
    mean, deviation, share = pitch_of(samples)
    # The frames at a constant's ends are steps; no period fits them.
    assert (mean, deviation, share) == (0.0, 0.0, 0.0)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_features_are_the_same_bits_in_any_batch(data: st.DataObject) -> None:
    length = data.draw(st.integers(1_024, 30_000), label="samples")
    seeds = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=6, unique=True), label="seeds")
    clips = [speech_like(2.0, seed=seed)[:length].astype(np.float32) for seed in seeds]
    order = data.draw(st.permutations(range(len(clips))), label="order")
    together = FRONTEND(torch.from_numpy(np.stack([clips[index] for index in order]))).numpy()
    for place, index in enumerate(order):
        # A copy at an odd address: alignment must not matter either.
        alone = FRONTEND(torch.from_numpy(np.concatenate([[np.float32(0.0)], clips[index]]))[None, 1:]).numpy()[0]
        assert np.array_equal(together[place], alone)


def test_recordings_keep_their_natural_length() -> None:
    short, long = recording(0.8, 22_050), recording(3.0, 44_100)
    assert len(FRONTEND.prepare(short)) == 12_800
    features = FRONTEND.extract([FRONTEND.prepare(waveform) for waveform in (short, long, short)], batch_size=2)
    assert np.array_equal(features[0], features_of(short, FRONTEND))
    assert np.array_equal(features[0], features[2])
    assert np.array_equal(features[1], features_of(long, FRONTEND))
    assert features.dtype == np.float32


def test_a_whole_batch_at_once_agrees_with_its_clips() -> None:
    batch = torch.from_numpy(np.stack([speech_like(1.0, seed=seed) for seed in range(3)]).astype(np.float32))
    # How a GPU takes it.
    assert torch.allclose(FRONTEND._features(batch), FRONTEND(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees_with_the_cpu() -> None:
    batch = torch.from_numpy(np.stack([speech_like(2.0, seed=seed) for seed in range(4)]).astype(np.float32))
    gpu = Drift(CONFIG, "cuda")(batch.cuda())
    assert gpu.is_cuda
    assert np.allclose(FRONTEND(batch).numpy(), gpu.cpu().numpy(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ('{"sample_rate": 8000}', "'contrast_bands' = 6: the highest band would begin at 6400 Hz"),
        ('{"sample_rate": 48000}', "'frame' = 1024: must be at least 1480, to hold two periods of pitch_fmin_hz = 65"),
        ('{"frame": 64, "pitch_fmin_hz": 600, "pitch_fmax_hz": 700}', "'frame' = 64: must be at least 80"),
        ('{"pitch_fmax_hz": 60}', "'pitch_fmax_hz' = 60.0: must be above pitch_fmin_hz = 65"),
        ('{"mels": 12}', "'mfccs' = 13: must not exceed mels = 12"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(values: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DriftConfig.from_json(values)
    assert message in str(caught.value)
