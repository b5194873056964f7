"""The ``statistics`` frontend against librosa 0.11, value by value; the measure is that of the benchmark."""

import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import librosa
import numpy as np
import pytest
import soundfile
from generated_speech import recording, speech_like
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import AudioLimits, LogMelConfig, StatisticsConfig
from kubevox.data.audio import Waveform, canonical, decode
from kubevox.errors import AudioError
from kubevox.features import build_frontend, features_of
from kubevox.models.bundle import load_bundle
from tests.tiny import CNN1D, Tiny, untrained_bundle

CONFIG = StatisticsConfig()


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """The benchmark's own module, which holds the reference and the measure; its folder is where a script's is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
        yield importlib.import_module("feature_parity")


def assert_parity(benchmark: ModuleType, waveform: Waveform, config: StatisticsConfig = CONFIG) -> None:
    frontend = build_frontend(config)
    theirs = benchmark.librosa_statistics(frontend.prepare(waveform), config)
    found = benchmark.deviations(features_of(waveform, frontend), theirs, config)
    assert max(found.values()) <= benchmark.TOLERANCE, found


def test_real_recordings_have_the_statistics_of_librosa(benchmark: ModuleType) -> None:
    if (folder := benchmark.speech_data()) is None:
        pytest.skip("no recordings in ../shared/data/speech beside the project, nor in $SPEECH_DATA")
    frontend = build_frontend(CONFIG)
    clips = benchmark.real_clips(folder, 20)
    assert len(clips) == 20
    for clip in clips:
        waveform, _ = decode(clip.read_bytes(), AudioLimits(), clip.name)
        loaded, _ = librosa.load(clip, sr=CONFIG.sample_rate, offset=CONFIG.offset_s, duration=CONFIG.duration_s)
        assert np.array_equal(frontend.prepare(waveform), loaded), clip
        assert_parity(benchmark, waveform)


@pytest.mark.parametrize(
    ("seconds", "rate"), [(4.0, 16_000), (3.1, 22_050), (2.0, 44_100), (0.75, 48_000), (5.0, 8_000)]
)
def test_generated_recordings_have_the_statistics_of_librosa(benchmark: ModuleType, seconds: float, rate: int) -> None:
    for seed in range(3):
        assert_parity(benchmark, recording(seconds, rate, seed))


@pytest.mark.parametrize("cents", [-40, -10, 0, 25, 49])
def test_chroma_follows_the_tuning_as_librosas_does(benchmark: ModuleType, cents: int) -> None:
    time = np.arange(4 * 22_050) / 22_050
    notes = 440.0 * 2.0 ** ((np.array([-9, -5, -2, 3, 7]) + cents / 100) / 12)
    chord = sum(np.sin(2 * np.pi * note * k * time) / k for note in notes for k in (1, 2, 3))
    assert_parity(benchmark, canonical(0.05 * chord, 22_050))


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(80_000),
        np.full(80_000, 0.3),
        np.where(np.arange(80_000) % 40_001, 0.0, 0.9),
        np.random.default_rng(0).standard_normal(80_000) * 0.1,
        np.concatenate([np.zeros(60_000), speech_like(1.0, 22_050)]),
    ],
    ids=["silence", "constant", "clicks", "white noise", "mostly silence"],
)
def test_odd_recordings_have_the_statistics_of_librosa(benchmark: ModuleType, samples: np.ndarray) -> None:
    assert_parity(benchmark, canonical(samples, 22_050))


@st.composite
def mixtures(draw: st.DrawFn) -> Waveform:
    """Stretches of tones, noise, clicks, speech and silence, some of them together, from 0.9 to 3.6 s."""
    rate = draw(st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000]))
    total = round(draw(st.floats(CONFIG.offset_s + 0.3, 3.6)) * rate)
    chance = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    time = np.arange(total) / rate
    samples = np.zeros(total)
    for kind in draw(st.lists(st.sampled_from(["tones", "noise", "clicks", "speech"]), max_size=3)):
        if kind == "tones":
            notes = chance.uniform(60, min(5_000, rate / 2), 4)
            part = sum(np.sin(2 * np.pi * note * time + chance.uniform(0, 6)) for note in notes) / 4
        elif kind == "noise":
            part = chance.standard_normal(total) / 4
        elif kind == "clicks":
            part = (chance.random(total) < 5 / rate) * chance.choice([-1.0, 1.0], total)
        else:
            part = speech_like(total / rate, rate, int(chance.integers(0, 1000)))[:total]
        samples += draw(st.sampled_from([0.5, 0.1, 0.01, 1e-3])) * part
    if draw(st.booleans()):
        start, stop = sorted(chance.integers(0, total, 2))
        samples[start:stop] = 0.0
    return canonical(np.round(samples * 2**15) / 2**15 if draw(st.booleans()) else samples, rate)


@settings(max_examples=60)
@given(mixtures())
def test_any_mixture_has_the_statistics_of_librosa(benchmark: ModuleType, waveform: Waveform) -> None:
    assert_parity(benchmark, waveform)


def test_a_recording_too_short_is_refused_alike_by_itself_and_by_a_bundle(tiny: Tiny, tmp_path: Path) -> None:
    bundle = load_bundle(untrained_bundle(tiny, tmp_path, CNN1D, frontend=CONFIG), "cpu")
    frontend = build_frontend(CONFIG)
    for rate in (8_000, 16_000, 22_050, 48_000):
        least = round((CONFIG.offset_s + 0.1) * rate)
        texts = set()
        for call in (lambda short: features_of(short, frontend), lambda short: bundle.predict([short])):
            with pytest.raises(AudioError, match=r"too short: 0\.69 s, .* needs at least 0\.70 s") as caught:
                call(recording(0.69, rate))
            assert caught.value.reason == "too_short"
            texts.add(str(caught.value))
        assert len(texts) == 1
        enough = Waveform(recording(1.0, rate).pcm[: least + 2], rate)
        assert np.isfinite(features_of(enough, frontend)).all()
        assert np.isfinite(bundle.predict([enough])).all()


def test_other_parameters_have_the_statistics_of_librosa(benchmark: ModuleType) -> None:
    config = StatisticsConfig(
        sample_rate=16_000, offset_s=0.0, duration_s=1.5, frame=1024, hop=256, mels=64, mfccs=20, chroma=24
    )
    assert_parity(benchmark, recording(3.0), config)


@pytest.mark.parametrize("rate", [8_000, 11_025, 24_000, 44_100, 48_000])
def test_a_waveform_is_cut_and_resampled_as_librosa_loads_it(rate: int) -> None:
    for seconds in (0.91, 2.337, 4.0):
        file = io.BytesIO()
        soundfile.write(file, speech_like(seconds, rate), rate, format="WAV", subtype="PCM_24")
        waveform, _ = decode(file.getvalue(), AudioLimits())
        file.seek(0)
        loaded, _ = librosa.load(file, sr=CONFIG.sample_rate, offset=CONFIG.offset_s, duration=CONFIG.duration_s)
        assert np.array_equal(build_frontend(CONFIG).prepare(waveform), loaded)


def test_log_mel_bands_are_those_of_librosa() -> None:
    config = LogMelConfig(floor_db=-200.0)
    frontend = build_frontend(config)
    waveform = recording(3.0)
    bands = librosa.feature.melspectrogram(
        y=frontend.prepare(waveform),
        sr=config.sample_rate,
        n_fft=config.frame,
        hop_length=config.hop,
        n_mels=config.mels,
        fmin=config.fmin_hz,
        fmax=config.fmax_hz,
        norm=None,
    )
    # A sine of full scale has half the window's sum as its magnitude.
    theirs = 10.0 * np.log10(bands / (config.frame / 4) ** 2)
    assert np.allclose(features_of(waveform, frontend), theirs, atol=1e-2)
