"""Voice activity detection: silero-vad's own answers, its rules, and what is left of a recording."""

import importlib.util
import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from generated_speech import recording
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import AudioLimits, VadConfig
from kubevox.data import vad as module
from kubevox.data.audio import Waveform, canonical, decode
from kubevox.data.vad import VoiceActivity
from kubevox.errors import ConfigError

installed = all(importlib.util.find_spec(name) for name in ("silero_vad", "onnxruntime"))
needs_silero = pytest.mark.skipif(not installed, reason="needs silero-vad and onnxruntime: pip install 'kubevox[vad]'")

CONFIGS = st.builds(
    VadConfig,
    threshold=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.62, 1.0]),
    padding_s=st.sampled_from([0.0, 0.03, 0.1, 0.35]),
    min_speech_s=st.sampled_from([0.0, 0.1, 0.25]),
    min_silence_s=st.sampled_from([0.0, 0.1, 0.5]),
)


@pytest.fixture(scope="module")
def silero() -> Iterator[ModuleType]:
    """The package itself; importing it changes torch's number of threads, which is put back."""
    threads = torch.get_num_threads()
    silero = pytest.importorskip("silero_vad")
    yield silero
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def speech(speech_data: Path) -> list[Waveform]:
    """Ten real recordings."""
    files = sorted((speech_data / "speech").rglob("*.flac"))
    spoken = [file for file in files if "ESC10" not in file.parts]
    return [decode(file.read_bytes(), AudioLimits(), file.name)[0] for file in spoken[:: len(spoken) // 10][:10]]


def padded(waveform: Waveform, before_s: float, after_s: float) -> Waveform:
    rate = waveform.sample_rate
    return Waveform(np.pad(waveform.pcm, (round(before_s * rate), round(after_s * rate))), rate)


def noise(seconds: float, level: float, rate: int = 16_000) -> Waveform:
    return canonical(level * np.random.default_rng(0).standard_normal(round(seconds * rate)), rate)


@settings(max_examples=150, deadline=None)
@given(
    runs=st.lists(st.tuples(st.sampled_from([0.0, 0.005, 0.2, 0.4, 0.48, 0.7, 1.0]), st.integers(1, 12)), min_size=1),
    missing=st.integers(0, 511),
    config=CONFIGS,
)
def test_segments_are_silero_vads(
    silero: ModuleType, runs: list[tuple[float, int]], missing: int, config: VadConfig
) -> None:
    probabilities = np.repeat([p for p, _ in runs], [n for _, n in runs]).astype(np.float32)
    length = 512 * len(probabilities) - missing
    theirs = silero.get_speech_timestamps_from_probs(
        probabilities.tolist(),
        threshold=config.threshold,
        min_speech_duration_ms=config.min_speech_s * 1000,
        min_silence_duration_ms=config.min_silence_s * 1000,
        speech_pad_ms=config.padding_s * 1000,
        audio_length_samples=length,
    )
    ours = module._padded(module._speech(probabilities, length, config), length, config.padding_s * 16_000)
    assert ours == [(segment["start"], segment["end"]) for segment in theirs]


@needs_silero
def test_real_recordings_have_silero_vads_probabilities_and_segments(
    silero: ModuleType, speech: list[Waveform]
) -> None:
    model = silero.load_silero_vad()  # its TorchScript form, run window by window
    config = VadConfig()
    detector = VoiceActivity(config)
    for waveform in speech:
        samples = torch.from_numpy(module._resampled(waveform))
        model.reset_states()
        windows = torch.nn.functional.pad(samples, (0, -len(samples) % 512)).split(512)
        theirs = [model(window, 16_000).item() for window in windows]
        assert detector.speech_probabilities(waveform) == pytest.approx(theirs, abs=1e-4)
        segments = silero.get_speech_timestamps(
            samples,
            model,
            min_speech_duration_ms=config.min_speech_s * 1000,
            min_silence_duration_ms=config.min_silence_s * 1000,
            speech_pad_ms=config.padding_s * 1000,
        )
        ours = [(round(start * 16_000), round(stop * 16_000)) for start, stop in detector.segments(waveform)]
        assert ours == [(segment["start"], segment["end"]) for segment in segments]


@needs_silero
def test_trimming_finds_the_speech_between_silence(speech: list[Waveform]) -> None:
    detector = VoiceActivity(VadConfig())
    for waveform in speech:
        alone = detector.trim(waveform)
        between = padded(waveform, 1.5, 2.0)
        found = detector.trim(between)
        assert detector.speech_ratio(alone) > 0.5
        assert found.sample_rate == waveform.sample_rate
        # Windows of 32 ms fall elsewhere, and what precedes is another: about the same stretch, and of the recording.
        assert found.duration_s == pytest.approx(alone.duration_s, abs=0.3)
        start = detector.segments(between)[0][0]
        assert start > 1.5 - detector.config.padding_s - 0.1
        assert start < 1.5 + waveform.duration_s
        first = int(start * waveform.sample_rate)
        assert np.array_equal(found.pcm, between.pcm[first : first + len(found.pcm)])


@needs_silero
def test_generated_speech_is_found_between_silence() -> None:
    voice = recording(3.0, seed=2)  # the one of those voices that sounds most like one
    detector = VoiceActivity(VadConfig(threshold=0.4))
    trimmed, ratio = detector.apply(padded(voice, 2.0, 2.0))
    assert 0.05 < ratio < 0.5
    assert trimmed.duration_s < voice.duration_s + 0.3
    inside = padded(voice, 2.0, 2.0).pcm
    start = int(detector.segments(padded(voice, 2.0, 2.0))[0][0] * 16_000)
    assert np.array_equal(trimmed.pcm, inside[start : start + len(trimmed.pcm)])


@needs_silero
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("level", [0.0, 1e-3, 0.1])
def test_noise_and_silence_hold_no_speech_and_are_left_whole(rate: int, level: float) -> None:
    waveform = noise(3.0, level, rate)
    detector = VoiceActivity(VadConfig())
    assert detector.segments(waveform) == []
    assert detector.speech_ratio(waveform) == 0.0
    assert detector.trim(waveform) is waveform
    assert detector.apply(waveform) == (waveform, 0.0)


@needs_silero
@settings(max_examples=20, deadline=None)
@given(
    samples=st.integers(1, 40_000),
    rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 48_000]),
    seed=st.integers(0, 9),
)
def test_any_recording_has_ordered_segments_within_it_and_a_share_of_speech(samples: int, rate: int, seed: int) -> None:
    waveform = canonical(recording(samples / rate + 0.1, rate, seed).samples[:samples].astype(np.float64), rate)
    detector = VoiceActivity(VadConfig(threshold=0.2, min_speech_s=0.0))
    probabilities = detector.speech_probabilities(waveform)
    assert probabilities.dtype == np.float32
    assert len(probabilities) == math.ceil(math.ceil(samples * 16_000 / rate) / 512)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    segments = detector.segments(waveform)
    times = [0.0, *(time for segment in segments for time in segment), waveform.duration_s + 1 / 16_000]
    assert times == sorted(times)
    assert 0.0 <= detector.speech_ratio(waveform) <= 1.0
    assert (detector.speech_ratio(waveform) > 0) == bool(segments)
    assert 1 <= len(detector.trim(waveform).pcm) <= samples


@needs_silero
def test_speech_up_to_the_ends_is_kept_to_the_last_sample() -> None:
    for rate in (8_000, 11_025, 16_000, 44_100):
        waveform = recording(1.01, rate)
        # With a threshold of 0 everything is speech.
        detector = VoiceActivity(VadConfig(threshold=0.0))
        assert detector.trim(waveform) is waveform
        assert detector.speech_ratio(waveform) == 1.0


@needs_silero
def test_measuring_leaves_the_recording_as_it_is() -> None:
    waveform = padded(recording(3.0, seed=2), 1.0, 1.0)
    cutting, measuring = (VoiceActivity(VadConfig(threshold=0.4, mode=mode)) for mode in ("trim", "measure"))
    assert measuring.apply(waveform)[0] is waveform
    assert len(cutting.apply(waveform)[0].pcm) < len(waveform.pcm)
    assert measuring.apply(waveform)[1] == cutting.apply(waveform)[1] == measuring.speech_ratio(waveform) > 0


@needs_silero
def test_threads_share_a_detector_and_get_the_same_bits() -> None:
    waveforms = [recording(1.0 + 0.3 * number, seed=number) for number in range(8)]
    waveforms.append(recording(20.0, seed=2))  # more than one block of windows
    detector = VoiceActivity(VadConfig())
    expected = [detector.speech_probabilities(waveform) for waveform in waveforms]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(VoiceActivity(VadConfig()).speech_probabilities, waveforms)
            assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


@needs_silero
def test_what_was_heard_before_a_block_counts_in_it() -> None:
    waveform = recording(20.0, seed=2)
    detector = VoiceActivity(VadConfig())
    whole = detector.speech_probabilities(waveform)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", 7)
        assert detector.speech_probabilities(waveform) == pytest.approx(whole, abs=1e-5)


@needs_silero
def test_neither_torch_nor_the_package_is_imported() -> None:
    code = (
        "import sys; from kubevox.config import VadConfig; from kubevox.data.vad import VoiceActivity; "
        "VoiceActivity(VadConfig()); print({'torch', 'silero_vad', 'torchaudio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("missing", ["onnxruntime", "silero_vad"])
def test_a_missing_package_is_named_with_its_remedy(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "silero_vad":
        pytest.importorskip("onnxruntime")
    module._session.cache_clear()
    find_spec = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(ConfigError, match=r"voice activity detection needs silero-vad: pip install 'kubevox\[vad\]'"):
        VoiceActivity(VadConfig())
    module._session.cache_clear()


def test_another_model_than_the_known_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(b"another")
    module._session.cache_clear()
    monkeypatch.setattr(module, "_model_file", lambda: tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match=r"silero-vad 6\.2\.3.*pip install 'silero-vad==6\.2\.3'"):
        VoiceActivity(VadConfig())
    module._session.cache_clear()
