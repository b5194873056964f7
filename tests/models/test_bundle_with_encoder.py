"""Bundles on a pretrained encoder: they carry it, and what they serve is what was evaluated."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import (
    AudioLimits,
    Cnn1dConfig,
    CorpusSource,
    DataConfig,
    FeaturesConfig,
    NoiseRecipe,
    OriginalRecipe,
    SplitConfig,
    SslConfig,
    ValidateConfig,
)
from kubevox.data.audio import Waveform, decode
from kubevox.data.dataset import ingest, read_audio, read_utterances
from kubevox.data.splits import Split, make_split
from kubevox.data.validation import accepted_source_ids, validate
from kubevox.errors import BundleError, ConfigError
from kubevox.evaluation.run import evaluate
from kubevox.features import build_frontend, extract_shard, feature_shape, frontend_version, load_features
from kubevox.features.extraction import _encoded
from kubevox.features.frontends.encoder import encoder_files, encoder_hash
from kubevox.features.pins import pinned
from kubevox.models import build_network
from kubevox.models import bundle as bundles
from kubevox.models.bundle import BundleSpec, Classifier, load_bundle, save_bundle
from kubevox.torchaudio_loader import import_torchaudio
from kubevox.training.loop import train, training_key
from tests.tiny import EVALUATE, LENIENT, TASK, TRAIN, Tiny, untrained_bundle

with contextlib.suppress(ImportError):  # transformers imports it where it is installed
    import_torchaudio()
transformers = pytest.importorskip("transformers", reason="the ssl frontend needs transformers")

CNN = Cnn1dConfig(frontend="ssl", filters=[[4], [8]], strides=[[2], [2]], dense=[8])


def save_encoder(folder: Path, seed: int = 0, **saving: object) -> Path:
    """A wav2vec 2.0 with random weights, small enough to run in milliseconds."""
    torch.manual_seed(seed)
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8, 8),
        conv_kernel=(10, 8, 5),
        conv_stride=(8, 8, 5),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        vocab_size=8,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    transformers.Wav2Vec2Model(config).save_pretrained(folder, **saving)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("pristine") / "encoder")


@pytest.fixture
def encoder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "encoder"))


def section(folder: Path, **changes: object) -> SslConfig:
    return SslConfig(model=str(folder), duration_s=2.0, pooling="mean_std", **changes)


def saved(config: SslConfig, store: Path, seed: int = 0) -> str:
    """A bundle of random weights on an encoder."""
    torch.manual_seed(seed)
    shape = feature_shape(config)
    classifier = Classifier(build_network(CNN, shape, 3), torch.zeros(shape), torch.ones(shape))
    spec = BundleSpec(
        task=TASK.name,
        labels=TASK.labels,
        frontend=config,
        frontend_version=frontend_version(config),
        shape=list(shape),
        model=CNN,
        parameters=sum(parameter.numel() for parameter in classifier.parameters()),
        temperature=1.0,
        limits=AudioLimits(),
        dataset_hash="0" * 64,
        split_hash="1" * 64,
        training_key="2" * 64,
        speakers=["folder:s00"],
        synthetic=True,
    )
    return save_bundle(classifier, spec, str(store))


@pytest.fixture
def in_a_pod(encoder: Path, tmp_path: Path) -> Path:
    """A bundle's folder where nothing else of the store is, nor the folder that the encoder came from."""
    uri = saved(section(encoder), tmp_path / "store")
    folder = Path(shutil.copytree(uri, tmp_path / "models"))
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(encoder)
    return folder


def tones(*samples: int) -> list[Waveform]:
    """Recordings at the encoder's rate, as a request has them."""
    found = []
    for number, length in enumerate(samples):
        data = io.BytesIO()
        tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * number) * np.arange(length) / 16_000)
        soundfile.write(data, tone, 16_000, format="WAV", subtype="PCM_16")
        found.append(decode(data.getvalue(), AudioLimits())[0])
    return found


@pytest.mark.parametrize("saving", [{}, {"max_shard_size": "8KB"}], ids=["one file", "shards"])
def test_a_bundle_carries_its_encoder_byte_for_byte(saving: dict[str, str], tmp_path: Path) -> None:
    source = save_encoder(tmp_path / "encoder", **saving)
    (source / "README.md").write_text("Not a part of the model.")
    files = encoder_files(source)
    assert (len(files) > 3) == bool(saving)
    uri = Path(saved(section(source), tmp_path / "store"))
    assert {path.relative_to(uri).as_posix() for path in uri.rglob("*") if path.is_file()} == {
        "bundle.json",
        "model.safetensors",
        *(f"encoder/{path.name}" for path in files),
    }
    for path in files:
        assert (uri / "encoder" / path.name).read_bytes() == path.read_bytes()
    assert json.loads((uri / "bundle.json").read_text())["frontend"]["sha256"] == encoder_hash(uri / "encoder")


def test_a_bundle_predicts_without_the_folder_that_its_encoder_came_from(encoder: Path, tmp_path: Path) -> None:
    uri = saved(section(encoder), tmp_path / "store")
    recordings = tones(9_000, 16_000, 12_345)
    features = build_frontend(section(encoder)).extract(
        [build_frontend(section(encoder)).prepare(recording) for recording in recordings]
    )
    shutil.rmtree(encoder)
    bundle = load_bundle(uri)
    np.testing.assert_array_equal(bundle.features(recordings), features)
    np.testing.assert_array_equal(bundle.predict(recordings), bundle.probabilities(features))
    assert bundle.spec.frontend.model == str(encoder)
    assert Path(bundle.frontend.config.model) == Path(uri) / "encoder"


def test_a_bundles_own_encoder_counts_whatever_became_of_the_original(encoder: Path, tmp_path: Path) -> None:
    uri = saved(section(encoder), tmp_path / "store")
    before = load_bundle(uri).predict(tones(9_000))
    shutil.rmtree(encoder)
    save_encoder(encoder, seed=1)
    np.testing.assert_array_equal(load_bundle(uri).predict(tones(9_000)), before)


def test_other_encoder_weights_are_another_bundle(encoder: Path, tmp_path: Path) -> None:
    first = saved(section(encoder), tmp_path / "store")
    assert saved(pinned(section(encoder)), tmp_path / "store") == first
    shutil.rmtree(encoder)
    save_encoder(encoder, seed=1)
    assert saved(section(encoder), tmp_path / "store") != first


def test_an_encoder_other_than_the_pinned_one_is_not_saved(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SHA-256"):
        saved(section(encoder, sha256="0" * 64), tmp_path / "store")
    assert not (tmp_path / "store" / "bundles").exists()


class TestALargeEncoder:
    """Lies in the store, once."""

    @pytest.fixture(autouse=True)
    def _all_are_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundles, "_MOST_ENCODER_BYTES", 1_000)

    def test_is_shared_by_the_bundles_of_a_store(self, encoder: Path, pristine: Path, tmp_path: Path) -> None:
        store = tmp_path / "store"
        uris = [saved(section(encoder), store, seed) for seed in (0, 1)]
        shutil.rmtree(encoder)
        assert len(set(uris)) == 2
        assert [path.name for path in (store / "encoders").iterdir()] == [encoder_hash(pristine)]
        for uri in uris:
            assert not (Path(uri) / "encoder").exists()
            assert load_bundle(uri).predict(tones(9_000)).shape == (1, 3)

    def test_that_cannot_be_reached_is_named_with_the_remedy(self, in_a_pod: Path, pristine: Path) -> None:
        with pytest.raises(BundleError, match="encoder is missing") as caught:
            load_bundle(str(in_a_pod))
        message = str(caught.value)
        assert f"encoders/{encoder_hash(pristine)}" in message
        assert "copy it to `encoder` in the bundle's folder" in message
        assert "\n" not in message
        shutil.copytree(pristine, in_a_pod / "encoder")
        assert load_bundle(str(in_a_pod)).predict(tones(9_000)).shape == (1, 3)

    def test_is_found_where_it_was_trained_with(self, encoder: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(saved(section(encoder), tmp_path / "store"), tmp_path / "models")
        shutil.rmtree(tmp_path / "store")
        assert Path(load_bundle(str(folder)).frontend.config.model) == encoder
        shutil.rmtree(encoder)
        save_encoder(encoder, seed=1)
        with pytest.raises(BundleError, match="encoder is damaged"):
            load_bundle(str(folder))

    def test_that_is_damaged_in_the_store_is_named(self, encoder: Path, tmp_path: Path) -> None:
        uri = saved(section(encoder), tmp_path / "store")
        (shared,) = (tmp_path / "store" / "encoders").iterdir()
        (shared / "model.safetensors").unlink()
        with pytest.raises(BundleError, match=rf"{shared}.*no weights"):
            load_bundle(uri)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
@pytest.mark.parametrize("harm", ["flipped", "cut", "missing"])
def test_a_damaged_encoder_is_refused(file: str, harm: str, in_a_pod: Path) -> None:
    path = in_a_pod / "encoder" / file
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.unlink() if harm == "missing" else path.write_bytes(data if harm == "flipped" else data[:-1])
    with pytest.raises(BundleError, match="its encoder is damaged") as caught:
        load_bundle(str(in_a_pod))
    assert str(in_a_pod / "encoder") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_description_that_pins_no_encoder_is_refused(in_a_pod: Path) -> None:
    description = json.loads((in_a_pod / "bundle.json").read_text())
    description["frontend"]["sha256"] = None
    (in_a_pod / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(BundleError, match=r"damaged.*sha256"):
        load_bundle(str(in_a_pod))


@dataclass(frozen=True)
class Corpus:
    """A split in a store, of recordings that all have lengths of their own."""

    root: Path
    store: str
    split: Split


@pytest.fixture(scope="module")
def corpus(make_corpus: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("end-to-end")
    recordings = make_corpus(root / "corpus")
    for number, path in enumerate(sorted(recordings.rglob("*.wav"))):
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples[: len(samples) - 111 * number], rate)
    store = str(root / "store")
    dataset, _ = ingest(DataConfig(corpora=[CorpusSource(name="folder", path=str(recordings))]), store)
    checked = validate(dataset, TASK, ValidateConfig(min_duration_s=0.5), store)
    split, _ = make_split(dataset, accepted_source_ids(checked.uri), TASK, SplitConfig(), store)
    return Corpus(root, store, split)


def features_of(encoder: SslConfig) -> FeaturesConfig:
    return FeaturesConfig(
        frontends={"ssl": encoder},
        recipes={"default": OriginalRecipe(), "noise": NoiseRecipe()},
        device="cpu",
        workers=1,
    )


@pytest.mark.parametrize("seed", [0, 1], ids=["gone", "replaced"])
def test_what_is_served_is_what_was_evaluated_to_the_bit_whatever_became_of_the_encoders_folder(
    seed: int, corpus: Corpus, encoder: Path
) -> None:
    features, plan = features_of(section(encoder)), {"ssl": ["default", "noise"]}
    shards = corpus.split.dataset.shard_uris
    blocks = [extract_shard(uri, corpus.split.split_of, features, plan, corpus.store).uri for uri in shards]
    model = CNN.model_copy(update={"recipes": ["default", "noise"]})
    tracking = f"sqlite:///{corpus.root / 'mlflow.db'}"
    result = train(
        corpus.split.uri,
        blocks,
        model,
        TRAIN.model_copy(update={"seed": seed}),
        features,
        AudioLimits(),
        corpus.store,
        tracking,
        "mood",
    )
    shutil.rmtree(encoder)
    if seed:
        save_encoder(encoder, seed)
    evaluation = evaluate(result.bundle_uri, blocks, corpus.split.uri, features, EVALUATE, LENIENT, corpus.store)
    evaluated = pq.read_table(Path(evaluation.uri) / "predictions.parquet")
    bundle = load_bundle(result.bundle_uri)
    ids = [utterance.id for utterance, _ in corpus.split.of("test")]
    audio = {id: waveform for shard in shards for id, waveform in read_audio(shard, ids)}
    assert len({len(waveform.pcm) for waveform in audio.values()}) == len(ids) > 2
    assert evaluated["utterance"].to_pylist() == ids
    served = bundle.predict([audio[id] for id in ids])
    np.testing.assert_array_equal(np.array(evaluated["probabilities"].to_pylist(), np.float32), served)
    assert len(np.unique(served, axis=0)) == len(ids)
    # Each alone: the same bits of features; the classifier's products differ in the last ones.
    for id, expected in zip(ids, bundle.features([audio[id] for id in ids]), strict=True):
        np.testing.assert_array_equal(bundle.features([audio[id]])[0], expected)


def test_the_training_key_knows_which_encoder_and_not_where(corpus: Corpus, encoder: Path, tmp_path: Path) -> None:
    def key(config: SslConfig) -> str:
        return training_key(corpus.split, CNN, TRAIN, features_of(config), AudioLimits())

    first = key(section(encoder))
    moved = shutil.move(encoder, tmp_path / "moved")
    assert key(section(moved)) == key(pinned(section(moved))) == first
    assert key(pinned(section(moved)).model_copy(update={"model": str(tmp_path / "gone")})) == first
    others = [
        key(section(save_encoder(tmp_path / "other", seed=1))),
        key(section(moved).model_copy(update={"layer": 1})),
        key(section(moved).model_copy(update={"pooling": "mean"})),
    ]
    assert len({first, *others}) == 4


def test_training_without_the_encoder_stops_before_it_starts(corpus: Corpus, encoder: Path, tmp_path: Path) -> None:
    config = pinned(section(encoder))
    shutil.rmtree(encoder)
    tracking = tmp_path / "mlflow.db"
    with pytest.raises(ConfigError, match=str(config.sha256)):
        train(
            corpus.split.uri,
            [],
            CNN,
            TRAIN,
            features_of(config),
            AudioLimits(),
            str(tmp_path / "store"),
            f"sqlite:///{tracking}",
            "mood",
        )
    assert not tracking.exists()


@pytest.mark.parametrize("values", [1, 2, 16, 33, 768, 2048])
def test_cnn1d_takes_a_vector_of_any_length(values: int) -> None:
    network = build_network(Cnn1dConfig(frontend="ssl"), (values,), 3).eval()
    assert network(torch.zeros(2, values)).shape == (2, 3)


@settings(max_examples=8)
@given(
    lengths=st.lists(st.integers(500, 20_000), min_size=1, max_size=4, unique=True),
    rows=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    chance=st.randoms(use_true_random=False),
)
def test_groups_of_other_lengths_are_encoded_together_and_keep_their_places(
    pristine: Path, lengths: list[int], rows: list[int], chance: random.Random
) -> None:
    """What a GPU does with a chunk's recordings of natural length."""
    frontend = build_frontend(section(pristine))
    generator = torch.Generator().manual_seed(0)
    groups = [(rows[i], 0.1 * torch.randn(rows[i], n, generator=generator)) for i, n in enumerate(lengths)]
    order = list(range(sum(count for count, _ in groups)))
    chance.shuffle(order)
    placed = [([order.pop() for _ in range(count)], samples) for count, samples in groups]
    places, values = _encoded(frontend, placed)
    assert places == [place for some, _ in placed for place in some]
    expected = torch.cat([frontend(samples) for _, samples in placed])
    assert torch.equal(values, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_every_recording_its_own_features(corpus: Corpus, pristine: Path, tmp_path: Path) -> None:
    features = features_of(section(pristine))
    ids = {row.id: "train" for uri in corpus.split.dataset.shard_uris for row in read_utterances(uri)}
    found = []
    for device in ("cpu", "cuda"):
        store = str(tmp_path / device)
        on_device = features.model_copy(update={"device": device})
        blocks = [
            extract_shard(uri, ids, on_device, {"ssl": ["default", "noise"]}, store).uri
            for uri in corpus.split.dataset.shard_uris
        ]
        found.append([load_features(blocks, "ssl", recipe, list(ids)) for recipe in ("default", "noise")])
    np.testing.assert_allclose(found[1], found[0], atol=1e-3)


def test_a_frontend_without_an_encoder_brings_none(tiny: Tiny, tmp_path: Path) -> None:
    uri = Path(untrained_bundle(tiny, tmp_path / "store"))
    assert sorted(path.name for path in uri.iterdir()) == ["bundle.json", "model.safetensors"]
    assert not (tmp_path / "store" / "encoders").exists()
