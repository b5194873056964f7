"""Log-mel spectra by the conventions of Kaldi, torchaudio and Whisper, against what those give."""

import contextlib
import importlib
import json
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from generated_speech import recording, speech_like
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import LogMelConfig
from kubevox.errors import ConfigError
from kubevox.features import feature_shape, features_of
from kubevox.features.frontends.logmel import LogMel
from kubevox.torchaudio_loader import import_torchaudio

CONVENTIONS = ("decibel", "torchaudio", "kaldi", "whisper")
# Chosen so that other values than the conventions' defaults are looked at too.
OTHER: dict[str, Any] = {"frame": 480, "hop": 200, "mels": 40, "fmin_hz": 60.0, "fmax_hz": 7000.0}

# Of `probe`, in bands 5, 20, 41 and 79 (rows) and frames 0, 13, 45 and 78, of 80 bands (torchaudio: 128): computed
# with torchaudio 2.11.0 (`compliance.kaldi.fbank`, `transforms.MelSpectrogram`) and transformers 5.23.0.
FROZEN = {
    "kaldi": [
        [22.6264, 12.1476, 10.574, 10.7597],
        [10.2353, 12.373, 13.1718, 11.4418],
        [16.7319, 16.4775, 16.4693, 15.9534],
        [18.738, 19.422, 19.2685, 19.6363],
    ],
    "torchaudio": [
        [5.644, -7.3695, -5.9678, -4.6714],
        [1.6914, 1.1348, -10.1619, -9.2057],
        [-5.2744, -6.0538, -5.894, -5.1621],
        [-6.3921, -4.6096, -5.6482, -6.1493],
    ],
    "whisper": [
        [1.2301, 0.3416, 0.0494, 0.1303],
        [0.394, -0.0263, 0.0111, -0.0298],
        [0.1498, -0.1549, 0.0039, 0.0289],
        [0.1646, 0.0785, 0.1403, 0.0895],
    ],
}


def probe() -> np.ndarray:
    """A second of a rising tone, hiss and an offset, the same on every machine: float32 [16000]."""
    index = np.arange(16_000)
    time = index / 16_000
    hiss = np.modf(np.sin(12.9898 * index) * 43758.5453)[0]
    return (0.4 * np.sin(2 * np.pi * (150 + 900 * time) * time) + 0.02 * hiss + 0.01).astype(np.float32)


def log_mel(convention: str, samples: np.ndarray, **options: Any) -> np.ndarray:
    config = LogMelConfig.model_validate({"convention": convention, "duration_s": len(samples) / 16_000, **options})
    return LogMel(config)(torch.from_numpy(samples)[None])[0].numpy()


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal to 2e-3 nats in all that is less than 17 nats (74 dB) below the frame's loudest band.

    Below that, float32 rounding of the transform takes over, in the reference no less than here.
    """
    assert ours.shape == theirs.shape
    audible = theirs > theirs.max(axis=0) - 17.0
    assert audible.mean() > 0.5
    assert np.abs(ours - theirs)[audible].max() <= 2e-3


@pytest.fixture(scope="module")
def torchaudio() -> types.ModuleType:
    """torchaudio's Python parts, whose native extension does not load beside a torch without CUDA."""
    try:
        return importlib.import_module("torchaudio")
    except ImportError:
        pytest.skip("torchaudio is not installed; frozen values of it are compared all the same")
    except OSError:
        pass
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]
    stub = types.ModuleType("torchaudio._extension")
    stub.__dict__.update(_IS_TORCHAUDIO_EXT_AVAILABLE=False, fail_if_no_align=lambda function: function)
    sys.modules["torchaudio._extension"] = stub
    return importlib.import_module("torchaudio")


@pytest.fixture(params=["probe", "speech", "speech and silence"])
def samples(request: pytest.FixtureRequest) -> np.ndarray:
    if request.param == "probe":
        return probe()
    voice = speech_like(1.0, seed=2)
    return (voice if request.param == "speech" else np.where(np.arange(16_000) < 9_000, voice, 0.0)).astype(np.float32)


@pytest.mark.parametrize("convention", FROZEN)
def test_a_convention_has_the_values_of_its_reference(convention: str) -> None:
    mels = 128 if convention == "torchaudio" else 80
    found = log_mel(convention, probe(), mels=mels)[np.ix_((5, 20, 41, 79), (0, 13, 45, 78))]
    assert found == pytest.approx(np.array(FROZEN[convention]), abs=2e-3)


@pytest.mark.parametrize("options", [{}, OTHER], ids=["defaults", "other parameters"])
def test_kaldi_is_that_of_torchaudio(
    torchaudio: types.ModuleType, samples: np.ndarray, options: dict[str, Any]
) -> None:
    config = LogMelConfig(convention="kaldi", **options)
    theirs = importlib.import_module("torchaudio.compliance.kaldi").fbank(
        torch.from_numpy(samples)[None] * 32_768.0,
        num_mel_bins=config.mels,
        frame_length=config.frame / 16,
        frame_shift=config.hop / 16,
        low_freq=config.fmin_hz,
        high_freq=config.fmax_hz,
    )
    assert_close(log_mel("kaldi", samples, **options), theirs.T.numpy())


@pytest.mark.parametrize("options", [{}, OTHER], ids=["defaults", "other parameters"])
def test_torchaudio_is_the_logarithm_of_its_mel_spectrogram(
    torchaudio: types.ModuleType, samples: np.ndarray, options: dict[str, Any]
) -> None:
    names = {"frame": "n_fft", "hop": "hop_length", "mels": "n_mels", "fmin_hz": "f_min", "fmax_hz": "f_max"}
    spectrogram = importlib.import_module("torchaudio.transforms").MelSpectrogram(
        16_000, **{names[key]: value for key, value in ({"mels": 64} | options).items()}
    )
    theirs = spectrogram(torch.from_numpy(samples)).clamp(min=1e-10).log()
    assert_close(log_mel("torchaudio", samples, **options), theirs.numpy())


@pytest.mark.parametrize("mels", [80, 128])
def test_whisper_is_what_its_feature_extractor_gives(samples: np.ndarray, mels: int) -> None:
    with contextlib.suppress(ImportError):  # transformers imports it where it is installed
        import_torchaudio()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels, chunk_length=2)
    theirs = extractor(samples, sampling_rate=16_000, return_tensors="np").input_features[0]
    ours = log_mel("whisper", np.pad(samples, (0, 16_000)), mels=mels)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 5e-4


def test_what_is_not_given_has_the_conventions_default() -> None:
    kaldi = LogMelConfig(convention="kaldi", sample_rate=8_000, mels=40)
    assert (kaldi.frame, kaldi.hop, kaldi.mels, kaldi.fmin_hz, kaldi.fmax_hz) == (200, 80, 40, 20.0, 4_000.0)
    whisper = LogMelConfig(convention="whisper", duration_s=30.0)
    assert (whisper.frame, whisper.hop, whisper.mels, whisper.frames) == (400, 160, 80, 3_000)
    assert LogMelConfig(convention="torchaudio").floor_db == -100.0
    plain = LogMelConfig()
    assert (plain.convention, plain.frame, plain.hop, plain.mels, plain.floor_db) == ("decibel", 512, 320, 64, -120.0)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_config_survives_its_json(convention: str) -> None:
    config = LogMelConfig.model_validate({"convention": convention, "mels": 48, "duration_s": 1.5})
    assert LogMelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"convention": "kaldi", "floor_db": -80.0}, "'floor_db' = -80.0: the convention kaldi has a floor of its own"),
        ({"convention": "whisper", "floor_db": -80.0}, "'floor_db' = -80.0: the convention whisper has a floor"),
        ({"convention": "whisper", "fmin_hz": 50.0}, "'fmin_hz' = 50.0: must be 0 in the convention whisper"),
        ({"convention": "whisper", "fmax_hz": 7e3}, "'fmax_hz' = 7000.0: must be 8000 in the convention whisper"),
        ({"convention": "whisper", "sample_rate": 22_050}, "'sample_rate' = 22050: must be 16000 in the convention"),
        ({"convention": "whisper", "hop": 50_000}, "'hop' = 50000: leaves no frame in duration_s = 3"),
        ({"convention": "kaldi", "sample_rate": 8_000, "fmax_hz": 5e3}, "'fmax_hz' = 5000.0: must be above"),
        ({"convention": "kaldi", "sample_rate": "fast"}, "'sample_rate' = 'fast'"),
        ({"convention": "htk"}, "'convention' = 'htk'"),
    ],
)
def test_what_a_convention_cannot_honour_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LogMelConfig.from_json(json.dumps(values))
    assert message in str(caught.value)


@pytest.mark.parametrize("convention", CONVENTIONS)
@settings(max_examples=15, deadline=None)
@given(
    duration=st.floats(0.2, 2.0), frame=st.integers(64, 1024), hop=st.integers(80, 700), mels=st.sampled_from([8, 20])
)
def test_the_number_of_frames_is_known_beforehand(
    convention: str, duration: float, frame: int, hop: int, mels: int
) -> None:
    config = LogMelConfig.model_validate(
        {"convention": convention, "duration_s": duration, "frame": frame, "hop": hop, "mels": mels}
    )
    samples = torch.zeros(1, round(duration * 16_000))
    assert LogMel(config)(samples).shape == (1, mels, config.frames)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_recording_of_any_length_has_the_shape_that_is_announced(convention: str) -> None:
    config = LogMelConfig.model_validate({"convention": convention, "duration_s": 1.5})
    for seconds in (0.4, 1.5, 2.0):
        features = features_of(recording(seconds), LogMel(config))
        assert features.shape == feature_shape(config) == (config.mels, config.frames)
        assert np.isfinite(features).all()


@pytest.mark.parametrize("convention", CONVENTIONS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_features_are_the_same_bits_in_any_batch(convention: str, data: st.DataObject) -> None:
    length = data.draw(st.integers(1_024, 20_000), label="samples")
    seeds = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=6, unique=True), label="seeds")
    frontend = LogMel(LogMelConfig.model_validate({"convention": convention, "duration_s": length / 16_000}))
    clips = [speech_like(1.25, seed=seed)[:length].astype(np.float32) for seed in seeds]
    order = data.draw(st.permutations(range(len(clips))), label="order")
    together = frontend(torch.from_numpy(np.stack([clips[index] for index in order]))).numpy()
    for place, index in enumerate(order):
        # A copy at an odd address: alignment must not matter either.
        alone = frontend(torch.from_numpy(np.concatenate([[np.float32(0.0)], clips[index]]))[None, 1:]).numpy()[0]
        assert np.array_equal(together[place], alone)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_gpu_agrees_with_the_cpu(convention: str) -> None:
    config = LogMelConfig.model_validate({"convention": convention, "duration_s": 1.0})
    batch = torch.from_numpy(np.stack([probe(), speech_like(1.0, seed=2).astype(np.float32)]))
    cpu, gpu = LogMel(config)(batch), LogMel(config, "cuda")(batch.cuda())
    assert gpu.is_cuda
    for ours, theirs in zip(gpu.cpu().numpy(), cpu.numpy(), strict=True):
        assert_close(ours, theirs)
