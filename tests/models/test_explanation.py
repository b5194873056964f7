"""Explanations: what a model looks at is what they name, and asking leaves it as it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kubevox.config import FrontendConfig, LogMelConfig, ResCnnConfig, StatisticsConfig, VadConfig
from kubevox.data.audio import Waveform, canonical
from kubevox.errors import AudioError, BundleError
from kubevox.features.frontends import build_frontend
from kubevox.models import build_network
from kubevox.models.bundle import Bundle, Classifier, load_bundle
from kubevox.models.explanation import BASELINE, Explanation, explain
from tests.tiny import CNN1D, FEATURES, RESCNN, TASK, Tiny, untrained_bundle

MODELS = {"rescnn": RESCNN, "cnn1d": CNN1D}
RATE = 16_000


@pytest.fixture(scope="module")
def bundles(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    store = tmp_path_factory.mktemp("store")
    return {name: load_bundle(untrained_bundle(tiny, store, model)) for name, model in MODELS.items()}


class Watching(nn.Module):
    """Logits [N, 3] of which the first is the mean over what a function picks of the features, times a weight."""

    def __init__(self, pick: Callable[[Tensor], Tensor], weight: float = 1.0) -> None:
        super().__init__()
        self.pick, self.weight = pick, weight

    def forward(self, features: Tensor) -> Tensor:
        seen = self.weight * self.pick(features).flatten(1).mean(dim=1, keepdim=True)
        return torch.cat([seen, torch.zeros(len(features), 2)], dim=1)


def watching(bundle: Bundle, config: FrontendConfig, pick: Callable[[Tensor], Tensor], weight: float = 1.0) -> Bundle:
    """The bundle with another frontend and a model that looks only at what is picked of its raw features."""
    frontend = build_frontend(config)
    width = (frontend.shape[0], 1)[: len(frontend.shape)]
    usual = -80.0 if isinstance(config, LogMelConfig) else 0.0
    classifier = Classifier(Watching(pick, weight), torch.full(width, usual), torch.ones(width)).eval()
    return replace(bundle, frontend=frontend, classifier=classifier)


def tone(seconds: float, start_s: float, end_s: float, hertz: float = 500.0, rate: int = RATE) -> Waveform:
    """A tone from one moment to another, and hardly anything before and after it."""
    time = np.arange(round(seconds * rate)) / rate
    sounding = (time >= start_s) & (time < end_s)
    noise = 1e-4 * np.random.default_rng(0).standard_normal(len(time))
    return canonical(0.5 * np.sin(2 * np.pi * hertz * time) * sounding + noise, rate)


def overlaps(found: Explanation, index: int, start_s: float, end_s: float) -> bool:
    # A frame hears a little more than its own place.
    frame_s = 0.032
    return found.stretches[index].start_s < end_s + frame_s and found.stretches[index].end_s > start_s - frame_s


@given(st.floats(0.0, 0.75), st.sampled_from([8_000, 16_000, 44_100]))
@settings(max_examples=12)
def test_the_stretch_that_the_model_heard_is_found_wherever_it_is(
    bundles: dict[str, Bundle], start_s: float, rate: int
) -> None:
    """The model answers to the power between 400 and 600 Hz: only the tone has any."""
    config = LogMelConfig(duration_s=1.5, mels=16)
    bundle = watching(bundles["rescnn"], config, lambda x: x[:, 2:4], weight=0.1)
    found = explain(bundle, tone(1.0, start_s, start_s + 0.25, rate=rate), label="angry")
    assert overlaps(found, int(np.argmax([one.drop for one in found.stretches])), start_s, start_s + 0.25)
    attributions = [one.attribution for one in found.stretches]
    assert overlaps(found, int(np.argmax(attributions)), start_s, start_s + 0.25)
    inside = sum(value for i, value in enumerate(attributions) if overlaps(found, i, start_s, start_s + 0.25))
    assert inside > 0
    assert inside > 10 * max(0.0, sum(attributions) - inside)


@given(st.integers(0, 15))
@settings(max_examples=8)
def test_the_band_that_the_model_looks_at_is_named_and_no_other(bundles: dict[str, Bundle], band: int) -> None:
    config = LogMelConfig(duration_s=1.0, mels=16)
    bundle = watching(bundles["rescnn"], config, lambda x: x[:, band : band + 1])
    found = explain(bundle, tone(1.0, 0.2, 0.8, hertz=900.0), label="angry").gradients
    assert found is not None
    assert [i for i, one in enumerate(found.bands) if one.attribution] == [band]
    assert found.bands[band].attribution == pytest.approx(found.logit - found.baseline_logit, abs=1e-3)


@pytest.mark.parametrize("convention", ["decibel", "torchaudio", "kaldi", "whisper"])
def test_a_bands_frequencies_are_those_to_which_it_answers(convention: str, bundles: dict[str, Bundle]) -> None:
    config = LogMelConfig(convention=convention, duration_s=0.5, mels=24)
    bundle = watching(bundles["rescnn"], config, lambda x: x)
    silence = Waveform(np.zeros(RATE // 2, np.int32), RATE)
    bands = explain(bundle, silence).gradients.bands
    assert len(bands) == 24
    assert bands[0].low_hz == pytest.approx(config.fmin_hz)
    assert bands[-1].high_hz == pytest.approx(config.fmax_hz)
    assert all(band.low_hz < band.centre_hz < band.high_hz for band in bands)
    for number in (2, 9, 16, 22):
        features = bundle.features([tone(0.5, 0.0, 0.5, hertz=bands[number].centre_hz)])[0]
        assert features[:, features.shape[1] // 2].argmax() == number


@given(st.integers(0, 269), st.floats(-3.0, 3.0).filter(lambda weight: abs(weight) > 0.1))
@settings(max_examples=10)
def test_the_feature_that_the_model_looks_at_is_named_and_no_other(
    bundles: dict[str, Bundle], index: int, weight: float
) -> None:
    config = StatisticsConfig(offset_s=0.0)
    bundle = watching(bundles["cnn1d"], config, lambda x: x[:, index : index + 1], weight)
    waveform = tone(0.5, 0.1, 0.4)
    found = explain(bundle, waveform, label="angry").gradients
    first, second = found.features[:2]
    value = float(bundle.features([waveform])[0, index])
    name = bundle.frontend.feature_names[index]
    assert second.attribution == 0.0
    if value:
        assert (first.name, first.usual) == (name, 0.0)
        assert first.value == pytest.approx(value, rel=1e-6)
        assert first.attribution == pytest.approx(weight * value, rel=1e-4, abs=1e-7)
        assert {family for family, part in found.groups if part} == {
            name if name in ("rms", "zero_crossing_rate") else name.partition("_")[0]
        }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("label", [None, *TASK.labels])
def test_attributions_add_up_to_what_the_logit_gained(
    model: str, label: str | None, bundles: dict[str, Bundle]
) -> None:
    bundle, waveform = bundles[model], tone(0.9, 0.1, 0.7)
    found = explain(bundle, waveform, label)
    told = found.gradients
    features = torch.from_numpy(bundle.features([waveform]))
    with torch.no_grad():
        logits = bundle.classifier(features)[0]
    index = TASK.labels.index(found.label)
    assert told.logit == pytest.approx(float(logits[index]), abs=1e-5)
    assert told.complete
    assert abs(told.gap) <= 0.05 * told.magnitude + 1e-4
    if told.bands:
        assert sum(band.attribution for band in told.bands) == pytest.approx(told.total, abs=1e-6)
        assert sum(one.attribution for one in found.stretches) == pytest.approx(told.total, abs=1e-6)
    else:
        assert sum(part for _, part in told.groups) == pytest.approx(told.total, abs=1e-6)


def test_more_steps_come_nearer_to_the_sum(bundles: dict[str, Bundle]) -> None:
    gaps = [abs(explain(bundles["rescnn"], tone(0.9, 0.1, 0.7), steps=steps).gradients.gap) for steps in (1, 400)]
    assert gaps[1] < gaps[0]
    assert gaps[1] < 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_without_a_label_the_predicted_one_is_explained(model: str, bundles: dict[str, Bundle]) -> None:
    bundle, waveform = bundles[model], tone(0.9, 0.1, 0.7)
    row = bundle.predict([waveform])[0]
    found = explain(bundle, waveform)
    assert found.label == found.predicted == TASK.labels[row.argmax()]
    assert found.probability == pytest.approx(row.max(), abs=1e-6)
    for index, label in enumerate(TASK.labels):
        asked = explain(bundle, waveform, label)
        assert (asked.label, asked.predicted) == (label, found.predicted)
        assert asked.probability == pytest.approx(row[index], abs=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_a_drop_is_what_the_probability_loses_without_the_stretch(model: str, bundles: dict[str, Bundle]) -> None:
    bundle, waveform = bundles[model], tone(0.6, 0.1, 0.5)
    found = explain(bundle, waveform, "sad", stretches=1)
    silent = Waveform(np.zeros_like(waveform.pcm), RATE)
    before, after = bundle.predict([waveform])[0], bundle.predict([silent])[0]
    assert found.stretches[0].drop == pytest.approx(float(before[2] - after[2]), abs=1e-5)


def test_nothing_is_said_of_what_lies_beyond_the_recording(bundles: dict[str, Bundle]) -> None:
    """The features go on to 1 s; the recording ends before."""
    waveform = tone(0.61, 0.1, 0.5)
    found = explain(bundles["rescnn"], waveform)
    assert (found.start_s, found.end_s) == (0.0, pytest.approx(0.61))
    assert found.stretches[-1].end_s == pytest.approx(0.61)
    last_frames = watching(bundles["rescnn"], LogMelConfig(duration_s=1.0, mels=16), lambda x: x[:, :, 40:])
    told = explain(last_frames, waveform, "angry").gradients
    assert (told.total, told.logit - told.baseline_logit) == (0.0, 0.0)


@given(st.floats(0.1, 4.0), st.sampled_from([8_000, 11_025, 16_000, 48_000]), st.floats(0.0, 0.5))
@settings(max_examples=15)
def test_stretches_divide_what_was_heard_in_the_recordings_own_time(
    bundles: dict[str, Bundle], seconds: float, rate: int, offset_s: float
) -> None:
    config = LogMelConfig(duration_s=2.0, mels=8, offset_s=offset_s)
    bundle = watching(bundles["rescnn"], config, lambda x: x, weight=0.01)
    waveform = tone(offset_s + seconds, 0.0, 0.1, rate=rate)
    found = explain(bundle, waveform, "angry")
    assert found.start_s == pytest.approx(offset_s, abs=1 / rate)
    assert found.end_s == pytest.approx(min(offset_s + 2.0, waveform.duration_s), abs=2 / rate)
    starts, ends = [one.start_s for one in found.stretches], [one.end_s for one in found.stretches]
    assert (starts[0], ends[-1]) == (found.start_s, pytest.approx(found.end_s))
    np.testing.assert_allclose(starts[1:], ends[:-1])
    np.testing.assert_allclose(np.diff([*starts, ends[-1]]), (found.end_s - found.start_s) / len(starts), rtol=1e-6)
    assert 1 <= len(found.stretches) <= 20
    assert all(one.end_s - one.start_s >= 0.099 or len(found.stretches) == 1 for one in found.stretches)


def test_what_voice_activity_detection_took_from_the_beginning_counts(bundles: dict[str, Bundle]) -> None:
    pytest.importorskip("silero_vad")
    pytest.importorskip("onnxruntime")
    from tests.features.generated_speech import recording

    config = LogMelConfig(duration_s=3.0, mels=16, vad=VadConfig(threshold=0.05))
    bundle = watching(bundles["rescnn"], config, lambda x: x, weight=0.01)
    speech = recording(2.0, seed=3)
    later = Waveform(np.pad(speech.pcm, (RATE, RATE)), RATE)
    heard, _ = bundle.frontend.listen(later)
    assert len(heard.pcm) < len(later.pcm), "there is something to trim"
    found = explain(bundle, later)
    start = round(found.start_s * RATE)
    np.testing.assert_array_equal(later.pcm[start : start + len(heard.pcm)], heard.pcm)
    assert found.end_s - found.start_s == pytest.approx(heard.duration_s)


def test_an_encoder_is_explained_by_what_is_left_without_a_stretch(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.models.test_bundle_with_encoder import save_encoder, saved, section

    bundle = load_bundle(saved(section(save_encoder(tmp_path / "encoder")), tmp_path / "store"))
    waveform = tone(1.5, 0.2, 0.9)
    found = explain(bundle, waveform)
    assert found.gradients is None
    assert 1 < len(found.stretches) <= 8
    assert all(one.attribution is None for one in found.stretches)
    assert any(one.drop for one in found.stretches)
    assert not {"gradients", "bands", "features"} & set(found.to_dict())
    assert found.probability == pytest.approx(bundle.predict([waveform])[0].max(), abs=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_asking_leaves_the_bundle_as_it_was(model: str, bundles: dict[str, Bundle]) -> None:
    bundle, waveform = bundles[model], tone(0.9, 0.1, 0.7)
    before = {name: value.clone() for name, value in bundle.classifier.state_dict().items()}
    asks_gradients = [parameter.requires_grad for parameter in bundle.classifier.parameters()]
    expected = bundle.predict([waveform])
    explain(bundle, waveform)
    assert not bundle.classifier.training
    assert all(parameter.grad is None for parameter in bundle.classifier.parameters())
    assert [parameter.requires_grad for parameter in bundle.classifier.parameters()] == asks_gradients
    assert all(torch.equal(value, before[name]) for name, value in bundle.classifier.state_dict().items())
    np.testing.assert_array_equal(bundle.predict([waveform]), expected)
    with torch.inference_mode():
        assert explain(bundle, waveform) == explain(bundle, waveform)
        assert torch.is_inference_mode_enabled()


def test_threads_that_ask_at_once_get_the_answers_that_each_would_get_alone(bundles: dict[str, Bundle]) -> None:
    waveforms = [tone(0.9, 0.05 * i, 0.05 * i + 0.3, hertz=300 + 100 * i) for i in range(8)]
    alone = [explain(bundles["rescnn"], waveform) for waveform in waveforms]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda waveform: explain(bundles["rescnn"], waveform), waveforms))
    for one, other in zip(alone, together, strict=True):
        assert one.label == other.label
        for a, b in zip(one.stretches, other.stretches, strict=True):
            assert (a.drop, a.attribution) == pytest.approx((b.drop, b.attribution), abs=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_an_explanation_is_small_plain_json(model: str, bundles: dict[str, Bundle]) -> None:
    found = explain(bundles[model], tone(0.9, 0.1, 0.7))
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert len(text) < 8_000
    told = json.loads(text)
    assert told["gradients"]["baseline"] == BASELINE
    assert told["gradients"]["complete"] is True
    assert told["gradients"]["gap"] == pytest.approx(found.gradients.gap, abs=1e-4)
    if model == "rescnn":
        assert len(told["bands"]) == FEATURES.frontends["logmel"].mels
        assert {"start_s", "end_s", "drop", "attribution"} == set(told["stretches"][0])
    else:
        assert len(told["features"]) == 10
        assert list(told["groups"]) == ["zero_crossing_rate", "rms", "chroma", "mel", "mfcc"]
        assert {"start_s", "end_s", "drop"} == set(told["stretches"][0])


@pytest.mark.parametrize("model", MODELS)
def test_silence_is_explained_too(model: str, bundles: dict[str, Bundle]) -> None:
    found = explain(bundles[model], Waveform(np.zeros(RATE, np.int32), RATE))
    assert {one.drop for one in found.stretches} == {0.0}
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_label_that_the_model_does_not_know_is_refused(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(BundleError, match=r"no label 'bored'; it knows angry, happy, sad"):
        explain(bundles["rescnn"], tone(0.9, 0.1, 0.7), "bored")


def test_a_recording_that_is_too_short_is_refused(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(AudioError, match="too short"):
        explain(bundles["cnn1d"], tone(0.02, 0.0, 0.01))


def test_a_full_sized_model_explains_three_seconds_while_a_caller_waits(bundles: dict[str, Bundle]) -> None:
    """100 ms on an idle core; the bound leaves room for whatever else runs beside the tests."""
    frontend = build_frontend(LogMelConfig())
    torch.manual_seed(0)
    network = build_network(ResCnnConfig(), frontend.shape, len(TASK.labels))
    classifier = Classifier(network, torch.full((64, 1), -60.0), torch.full((64, 1), 20.0)).eval()
    bundle = replace(bundles["rescnn"], frontend=frontend, classifier=classifier)
    waveform = tone(3.0, 0.5, 2.5)
    explain(bundle, waveform)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        found = explain(bundle, waveform)
        times.append(time.perf_counter() - started)
    assert len(found.stretches) == 20
    assert min(times) < 0.5
