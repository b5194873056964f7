"""What a frontend promises: shapes, units, the stretch it analyses, and the same bits whatever the circumstances."""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from generated_speech import recording, speech_like
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import FrontendConfig, LogMelConfig, StatisticsConfig
from kubevox.data.audio import Waveform, canonical
from kubevox.errors import AudioError, ConfigError
from kubevox.features import build_frontend, feature_shape, features_of, frontend_version, minimum_duration_s

CONFIGS = [StatisticsConfig(), LogMelConfig()]
FRONTENDS = {config.kind: build_frontend(config) for config in CONFIGS}
RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def silence(seconds: float, sample_rate: int = 16_000) -> Waveform:
    return canonical(np.zeros(round(seconds * sample_rate)), sample_rate)


@pytest.mark.parametrize("kind", FRONTENDS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_features_are_the_same_bits_in_any_batch(kind: str, data: st.DataObject) -> None:
    frontend = FRONTENDS[kind]
    length = data.draw(st.integers(frontend.config.frame, 60_000), label="samples")
    batch = data.draw(st.integers(1, 9), label="batch")
    seed = data.draw(st.integers(0, 1000), label="seed")
    clips = [speech_like(60_000 / 16_000, seed=seed + i)[:length].astype(np.float32) for i in range(batch)]
    if kind == "logmel":  # always of one length
        clips = [np.resize(clip, 48_000) for clip in clips]
    together = frontend(torch.from_numpy(np.stack(clips))).numpy()
    for index, clip in enumerate(clips):
        # A copy at another address, and at an odd one: alignment must not matter either.
        alone = frontend(torch.from_numpy(np.concatenate([[0.0], clip]).astype(np.float32))[None, 1:]).numpy()[0]
        assert np.array_equal(together[index], alone)


@pytest.mark.parametrize("kind", FRONTENDS)
def test_features_are_the_same_bits_for_any_number_of_threads(kind: str, threads: None) -> None:
    waveforms = [recording(4.0, seed=seed) for seed in range(3)]
    torch.set_num_threads(1)
    expected = [features_of(waveform, FRONTENDS[kind]) for waveform in waveforms]
    for count in (2, 3, 4):
        torch.set_num_threads(count)
        frontend = build_frontend(FRONTENDS[kind].config)
        prepared = [frontend.prepare(waveform) for waveform in waveforms]
        assert np.array_equal(frontend.extract(prepared, 2), expected)
        assert torch.get_num_threads() == count


@pytest.mark.parametrize("kind", FRONTENDS)
def test_extraction_keeps_the_order_of_recordings_of_mixed_lengths(kind: str) -> None:
    frontend = FRONTENDS[kind]
    waveforms = [recording(seconds, seed=seed) for seed, seconds in enumerate((1.0, 4.0, 1.7, 4.0, 1.0, 4.0, 2.2))]
    features = frontend.extract([frontend.prepare(waveform) for waveform in waveforms], batch_size=2)
    assert features.dtype == np.float32
    for row, waveform in zip(features, waveforms, strict=True):
        assert np.array_equal(row, features_of(waveform, frontend))


@pytest.mark.parametrize("config", [*CONFIGS, LogMelConfig(mels=40, duration_s=1.3, hop=160, frame=400)])
def test_the_shape_known_beforehand_is_the_shape_computed(config: FrontendConfig) -> None:
    frontend = build_frontend(config)
    assert features_of(recording(2.0), frontend).shape == frontend.shape == feature_shape(config)
    assert len(frontend.feature_names) == frontend.shape[0] == len(set(frontend.feature_names))
    assert frontend.version == frontend_version(config)


@pytest.mark.parametrize("kind", FRONTENDS)
@settings(max_examples=25, deadline=None)
@given(rate=st.sampled_from(RATES), offset=st.floats(0, 2), duration=st.floats(0.2, 4), seconds=st.floats(0.05, 5))
def test_the_minimum_duration_is_what_prepare_needs(
    kind: str, rate: int, offset: float, duration: float, seconds: float
) -> None:
    config = FRONTENDS[kind].config.model_copy(update={"offset_s": offset, "duration_s": duration})
    frontend = build_frontend(config)
    waveform = silence(seconds, rate)
    if waveform.duration_s >= minimum_duration_s(config) + 1 / rate:
        assert len(frontend.prepare(waveform)) >= config.frame
    elif waveform.duration_s < minimum_duration_s(config) - 0.011:
        with pytest.raises(AudioError, match="too short") as caught:
            frontend.prepare(waveform)
        assert caught.value.reason == "too_short"


def test_a_recording_too_short_is_told_what_is_needed() -> None:
    with pytest.raises(AudioError, match=r"too short: 0\.65 s, where the frontend statistics needs at least 0\.70 s"):
        FRONTENDS["statistics"].prepare(silence(0.65))


def test_only_the_analysed_stretch_counts() -> None:
    frontend = FRONTENDS["statistics"]
    samples = speech_like(5.0, 22_050)
    louder = samples.copy()
    louder[: int(0.6 * 22_050)] *= 0.5
    louder[int(3.1 * 22_050) :] *= 0.5
    waveform, changed = canonical(samples, 22_050), canonical(louder, 22_050)
    assert np.array_equal(features_of(waveform, frontend), features_of(changed, frontend))
    assert frontend.analysed_s(waveform) == pytest.approx(2.5)
    assert frontend.analysed_s(recording(2.0)) == pytest.approx(1.4)
    assert frontend.analysed_s(silence(0.4)) == 0.0


@pytest.mark.parametrize("rate", RATES)
def test_log_mel_of_any_rate_has_one_length(rate: int) -> None:
    frontend = FRONTENDS["logmel"]
    assert len(frontend.prepare(silence(5.0, rate))) == len(frontend.prepare(silence(0.5, rate))) == 48_000


def test_log_mel_is_in_decibel_of_full_scale() -> None:
    config = LogMelConfig(floor_db=-90.0)
    frontend = build_frontend(config)
    assert features_of(silence(3.0), frontend) == pytest.approx(-90.0)
    time = np.arange(48_000) / 16_000
    for amplitude, decibel in ((0.999, 0.0), (0.0999, -20.0)):
        sine = canonical(amplitude * np.sin(2 * np.pi * 1000 * time), 16_000)
        assert features_of(sine, frontend).max() == pytest.approx(decibel, abs=1.0)


def test_log_mel_follows_a_short_recording_with_silence() -> None:
    features = features_of(recording(1.5), build_frontend(LogMelConfig(hop=256, floor_db=-120.0)))
    assert (features[:, :90] > -120.0).any(axis=0).all()
    assert features[:, 96:] == pytest.approx(-120.0)


def test_digital_silence_has_finite_statistics() -> None:
    features = features_of(silence(3.5), FRONTENDS["statistics"])
    assert np.isfinite(features).all()
    assert not features[: 2 + 12 + 128].any()


def test_a_duration_without_a_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"duration_s = 0\.01 holds no frame of 512 samples"):
        build_frontend(LogMelConfig(duration_s=0.01))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named_and_auto_does_without() -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        build_frontend(LogMelConfig(), "cuda")
    assert build_frontend(LogMelConfig(), "auto").device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("config", CONFIGS)
def test_a_gpu_agrees_with_the_cpu(config: FrontendConfig) -> None:
    waveforms = [recording(4.0, seed=seed) for seed in range(8)]
    cpu, gpu = build_frontend(config, "cpu"), build_frontend(config, "cuda")
    prepared = [cpu.prepare(waveform) for waveform in waveforms]
    assert np.allclose(cpu.extract(prepared), gpu.extract(prepared), rtol=1e-3, atol=1e-3)


def test_what_needs_no_features_needs_no_torch() -> None:
    check = (
        "import sys; from kubevox.features import block_key, extract_shard, load_features, minimum_duration_s; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
