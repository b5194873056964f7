"""Bundles: what was saved is what predicts, under a name that its content gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import CorpusSource, DataConfig
from kubevox.data.audio import decode, encode_flac
from kubevox.data.dataset import ingest, read_audio, read_utterances
from kubevox.errors import BundleError, ConfigError
from kubevox.features import extract_shard, load_features
from kubevox.models.bundle import BundleSpec, Classifier, fit_temperature, load_bundle, save_bundle
from tests.tiny import CNN1D, FEATURES, RESCNN, TASK, Tiny, untrained_bundle

FILES = ("bundle.json", "model.safetensors")
MODELS = {"rescnn": RESCNN, "cnn1d": CNN1D}


@pytest.fixture(scope="module")
def bundles(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    store = tmp_path_factory.mktemp("store")
    return {name: untrained_bundle(tiny, store, model, temperature=1.5) for name, model in MODELS.items()}


def features_like(bundle_uri: str, rows: int) -> np.ndarray:
    shape = load_bundle(bundle_uri).spec.shape
    return np.random.default_rng(0).standard_normal((rows, *shape)).astype(np.float32)


def copied(uri: str, folder: Path) -> Path:
    """The bundle under a name that says nothing of its content, as in a serving pod."""
    return Path(shutil.copytree(uri, folder / "models"))


@pytest.mark.parametrize("model", MODELS)
def test_a_loaded_bundle_predicts_to_the_bit_what_the_saved_model_did(
    model: str, bundles: dict[str, str], tmp_path: Path
) -> None:
    first = load_bundle(bundles[model])
    features = features_like(first.uri, 40)
    again = load_bundle(save_bundle(first.classifier, first.spec, str(tmp_path / "other")))
    assert again.spec == first.spec
    np.testing.assert_array_equal(again.probabilities(features), first.probabilities(features))


def test_the_same_content_has_the_same_name_and_other_content_another(tiny: Tiny, tmp_path: Path) -> None:
    def name(**changes: object) -> str:
        return Path(untrained_bundle(tiny, tmp_path / f"{len(list(tmp_path.iterdir()))}", **changes)).name

    first = name()
    assert name() == first
    assert len({first, name(seed=1), name(temperature=2.0), name(labels=["a", "b", "c"])}) == 4


def test_a_bundle_is_json_and_safetensors_and_nothing_else(bundles: dict[str, str]) -> None:
    for uri in bundles.values():
        assert sorted(path.name for path in Path(uri).rglob("*")) == sorted(FILES)
        weights = (Path(uri) / "model.safetensors").read_bytes()
        header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
        assert {"mean", "scale"} < set(header)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_a_flipped_bit_anywhere_is_noticed(file: str, place: float, bundles: dict[str, str], tmp_path: Path) -> None:
    uri = bundles["rescnn"]
    folder = Path(shutil.copytree(uri, tmp_path / "bundles" / Path(uri).name))
    data = bytearray((folder / file).read_bytes())
    data[int(place * len(data))] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(str(folder))


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(file: str, bundles: dict[str, str], tmp_path: Path) -> None:
    folder = copied(bundles["rescnn"], tmp_path)
    (folder / file).unlink()
    with pytest.raises(BundleError, match=file):
        load_bundle(str(folder))


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        load_bundle(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"frontend_version": 99}, "version 99 of the logmel frontend.*train again"),
        ({"labels": ["angry", "sad"]}, "damaged"),
        ({"temperature": 0.0}, "temperature"),
        ({"surplus": 1}, "surplus"),
        ({"model": {"architecture": "unknown"}}, "damaged"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    change: dict[str, object], problem: str, bundles: dict[str, str], tmp_path: Path
) -> None:
    folder = copied(bundles["rescnn"], tmp_path)
    description = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(description | change))
    with pytest.raises(BundleError, match=problem) as caught:
        load_bundle(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"task": "emotion"}'])
def test_a_description_that_is_none_is_refused(content: bytes, bundles: dict[str, str], tmp_path: Path) -> None:
    folder = copied(bundles["rescnn"], tmp_path)
    (folder / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(str(folder))


def test_weights_that_are_cut_off_are_refused(bundles: dict[str, str], tmp_path: Path) -> None:
    folder = copied(bundles["rescnn"], tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-7])
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(str(folder))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_no_damage(bundles: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="cuda"):
        load_bundle(bundles["rescnn"], "cuda")


@pytest.mark.parametrize("model", MODELS)
def test_features_served_are_features_offline_to_the_bit(
    model: str, bundles: dict[str, str], tiny: Tiny, tiny_corpus: Path
) -> None:
    """From the source's WAV, from the stored FLAC, alone and among others."""
    bundle = load_bundle(bundles[model])
    shards = tiny.split.dataset.shard_uris
    sources = {row.id: row.source_id.removeprefix("folder:") for row in read_utterances(shards)}
    offline = load_features(tiny.blocks, bundle.spec.frontend, FEATURES.recipes["default"], list(sources))
    from_wav = [decode((tiny_corpus / source).read_bytes(), bundle.spec.limits)[0] for source in sources.values()]
    stored = {id: waveform for shard in shards for id, waveform in read_audio(shard, sources)}
    from_flac = [decode(encode_flac(stored[id]), bundle.spec.limits)[0] for id in sources]
    for waveforms in (from_wav, from_flac):
        np.testing.assert_array_equal(bundle.features(waveforms), offline)
        for waveform, expected in zip(waveforms, offline, strict=True):
            np.testing.assert_array_equal(bundle.features([waveform])[0], expected)
    np.testing.assert_allclose(bundle.predict(from_wav), bundle.probabilities(offline), atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_features_of_real_speech_are_served_as_they_are_offline_to_the_bit(
    model: str, bundles: dict[str, str], speech_data: Path, tmp_path: Path
) -> None:
    actor = tmp_path / "ravdess" / "Actor_01"
    actor.mkdir(parents=True)
    for file in sorted((speech_data / "speech/RAVDESS/Actor_01").iterdir())[:12]:
        (actor / file.name).symlink_to(file)
    source, store = CorpusSource(name="ravdess", path=str(actor.parent)), str(tmp_path / "store")
    dataset, _ = ingest(DataConfig(corpora=[source], publish_names=True), store)
    utterances = read_utterances(dataset.shard_uris)
    wanted = {utterance.id: "test" for utterance in utterances}
    plan = {MODELS[model].frontend: ["default"]}
    blocks = [extract_shard(uri, wanted, FEATURES, plan, store).uri for uri in dataset.shard_uris]
    bundle = load_bundle(bundles[model])
    offline = load_features(blocks, bundle.spec.frontend, FEATURES.recipes["default"], list(wanted))
    assert len(offline) == 12
    for utterance, expected in zip(utterances, offline, strict=True):
        request = (actor.parent / utterance.source_id.removeprefix("ravdess:")).read_bytes()
        np.testing.assert_array_equal(bundle.features([decode(request, bundle.spec.limits)[0]])[0], expected)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 64, 65])
def test_probabilities_sum_to_one_and_do_not_depend_on_the_batch(
    model: str, rows: int, bundles: dict[str, str]
) -> None:
    bundle = load_bundle(bundles[model])
    features = features_like(bundle.uri, rows)
    probabilities = bundle.probabilities(features)
    assert probabilities.shape == (rows, len(TASK.labels))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(bundle.probabilities(features[-1:])[0], probabilities[-1], atol=1e-5)


def test_no_recordings_give_no_probabilities(bundles: dict[str, str]) -> None:
    assert load_bundle(bundles["rescnn"]).predict([]).shape == (0, len(TASK.labels))


def test_the_classifier_normalises_what_the_network_sees() -> None:
    classifier = Classifier(torch.nn.Identity(), torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(classifier(torch.tensor([[3.0, 2.0]])), torch.tensor([[1.0, 0.0]]))


@given(st.integers(0, 2**31 - 1), st.floats(0.2, 8.0))
@settings(max_examples=25)
def test_the_fitted_temperature_never_makes_the_likelihood_worse(seed: int, sharpness: float) -> None:
    torch.manual_seed(seed)
    logits = sharpness * torch.randn(60, 4)
    labels = torch.randint(0, 4, (60,))

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits.double() / temperature, labels))

    assert loss(fit_temperature(logits, labels)) <= loss(1.0) + 1e-9


def test_a_model_that_is_twice_too_sure_gets_the_temperature_two() -> None:
    torch.manual_seed(0)
    honest = 2 * torch.randn(20_000, 3)
    labels = torch.multinomial(honest.softmax(dim=1), 1).squeeze(1)
    assert fit_temperature(2 * honest, labels) == pytest.approx(2.0, rel=0.1)


def test_a_description_survives_json(bundles: dict[str, str]) -> None:
    spec = load_bundle(bundles["cnn1d"]).spec
    assert BundleSpec.from_json(spec.to_json()) == spec
