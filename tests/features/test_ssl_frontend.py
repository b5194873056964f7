"""The ``ssl`` frontend against transformers called directly, on tiny encoders with random weights."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_speech import recording, speech_like
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import SslConfig
from kubevox.errors import ConfigError
from kubevox.features import build_frontend, feature_shape, features_of, frontends
from kubevox.features.frontends.encoder import encoder_hash, hidden_size, relocated
from kubevox.features.frontends.ssl import Ssl
from kubevox.features.pins import identity, pinned
from kubevox.torchaudio_loader import import_torchaudio

with contextlib.suppress(ImportError):  # transformers imports it where it is installed
    import_torchaudio()
transformers = pytest.importorskip("transformers", reason="the ssl frontend needs transformers")

FRAMED = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 8, 5),
    "conv_stride": (8, 8, 5),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 8,
}
LARGE = {**FRAMED, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def _save(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    normalise = True
    if name == "wav2vec2-layer":
        model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**LARGE))
    elif name == "wav2vec2-group":
        model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**FRAMED))
    elif name == "hubert":
        model = transformers.HubertModel(transformers.HubertConfig(**LARGE))
    elif name == "wavlm":
        model = transformers.WavLMModel(transformers.WavLMConfig(**LARGE, num_buckets=16, max_bucket_distance=40))
        normalise = False
    else:
        config = transformers.WhisperConfig(
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            vocab_size=16,
            num_mel_bins=20,
            max_source_positions=100,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
        transformers.WhisperModel(config).save_pretrained(folder)
        # Two seconds instead of thirty, so that the tests are quick.
        transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=2).save_pretrained(folder)
        return folder
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise, return_attention_mask=True).save_pretrained(folder)
    return folder


NAMES = ["wav2vec2-layer", "wav2vec2-group", "hubert", "wavlm", "whisper"]
MASKED = [name for name in NAMES if name != "wav2vec2-group"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {name: _save(root / name, name) for name in NAMES}


@pytest.fixture
def copied(encoders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(encoders[name], tmp_path / name))


def ssl(folder: Path, **changes: object) -> Ssl:
    return build_frontend(SslConfig(model=str(folder), **{"duration_s": 2.0, **changes}))


def clips(*lengths: int) -> list[np.ndarray]:
    return [speech_like(2.0, seed=i)[:n].astype(np.float32) for i, n in enumerate(lengths)]


def direct(folder: Path, clip: np.ndarray) -> list[np.ndarray]:
    """The hidden states [frames, hidden] of one recording, by transformers alone."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = extractor(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        if folder.name == "whisper":
            output = model.encoder(inputs.input_features, output_hidden_states=True)
            frames = -(-len(clip) // 320)
        else:
            output = model(inputs.input_values, output_hidden_states=True)
            frames = None
    states = [*output.hidden_states[:-1], output.last_hidden_state]
    return [state[0, :frames].numpy() for state in states]


@pytest.mark.parametrize("name", NAMES)
def test_features_are_pooled_hidden_states(name: str, encoders: dict[str, Path]) -> None:
    (clip,) = clips(20_000)
    states = direct(encoders[name], clip)
    for layer in [*range(len(states)), -1, -2, "mean"]:
        expected = np.mean(states, axis=0) if layer == "mean" else states[layer]
        found = ssl(encoders[name], layer=layer, pooling="mean_std").extract([clip])[0]
        assert np.allclose(found, [*expected.mean(0), *expected.std(0)], atol=1e-5), layer
        assert np.array_equal(ssl(encoders[name], layer=layer).extract([clip])[0], found[:16])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6)
@given(lengths=st.lists(st.integers(700, 32_000), min_size=1, max_size=4), data=st.data())
def test_on_a_cpu_features_are_the_same_bits_in_any_batch_and_order(
    name: str, encoders: dict[str, Path], lengths: list[int], data: st.DataObject
) -> None:
    frontend = ssl(encoders[name], pooling="mean_std")
    recordings = clips(*lengths)
    alone = [frontend.extract([clip], 1)[0] for clip in recordings]
    order = data.draw(st.permutations(range(len(lengths))))
    together = frontend.extract([recordings[index] for index in order])
    for row, index in zip(together, order, strict=True):
        assert np.array_equal(row, alone[index])
    # Of one length, and at an odd address: alignment must not matter either.
    stacked = torch.from_numpy(np.stack([np.resize(clip, 3_201) for clip in recordings]))
    for row, clip in zip(frontend(stacked[:, 1:]), stacked[:, 1:], strict=True):
        assert torch.equal(row, frontend(clip.clone()[None])[0])


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("layer", [1, -1, "mean"])
def test_padding_does_not_leak_into_the_features(name: str, layer: int | str, encoders: dict[str, Path]) -> None:
    frontend = ssl(encoders[name], layer=layer, pooling="mean_std")
    recordings = clips(32_000, 9_731, 701, 20_000)
    padded = frontend._padded([torch.from_numpy(clip) for clip in recordings]).numpy()
    assert np.allclose(padded, frontend.extract(recordings), atol=1e-5)


def test_an_encoder_trained_without_a_mask_is_never_padded(encoders: dict[str, Path]) -> None:
    frontend = ssl(encoders["wav2vec2-group"])
    with pytest.raises(ValueError, match="only recordings of one length"):
        frontend._padded([torch.zeros(5_000), torch.zeros(6_000)])
    lengths = [5_000, 6_000, 5_000, 6_000, 7_000]
    assert sorted(map(sorted, frontend._batches(lengths, None))) == [[0, 2], [1, 3], [4]]
    same = clips(8_000, 8_000, 8_000)
    together = frontend._padded([torch.from_numpy(clip) for clip in same]).numpy()
    assert np.allclose(together, frontend.extract(same), atol=1e-5)


@given(lengths=st.lists(st.integers(400, 160_000), max_size=60), most=st.none() | st.integers(1, 8))
def test_batches_hold_each_recording_once_and_no_more_than_fits(
    encoders: dict[str, Path], lengths: list[int], most: int | None
) -> None:
    batches = list(ssl(encoders["wav2vec2-layer"])._batches(lengths, most))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= (most or len(batch))
        assert most or len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 2_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_gpus_batches_give_each_recording_its_own_features(name: str, encoders: dict[str, Path]) -> None:
    frontend = ssl(encoders[name], pooling="mean_std")
    recordings = clips(9_000, 32_000, 9_000, 5_000, 400, 32_000, 20_001)
    expected = frontend.extract(recordings)
    batches = list(frontend._batches([len(clip) for clip in recordings], 3))
    found = np.empty_like(expected)
    for chosen in batches:
        found[chosen] = frontend._padded([torch.from_numpy(recordings[index]) for index in chosen]).numpy()
    assert len(batches) < len(recordings)
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_agrees_with_a_cpu(name: str, encoders: dict[str, Path]) -> None:
    config = SslConfig(model=str(encoders[name]), duration_s=2.0, pooling="mean_std")
    recordings = clips(9_000, 32_000, 9_000, 5_000, 400)
    on_cpu, on_gpu = (build_frontend(config, device).extract(recordings) for device in ("cpu", "cuda"))
    assert np.allclose(on_gpu, on_cpu, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_short_and_silent_recordings_have_finite_features(name: str, encoders: dict[str, Path]) -> None:
    frontend = ssl(encoders[name], pooling="mean_std")
    features = frontend.extract([np.zeros(700, np.float32), *clips(400, 100, 1)])
    assert np.isfinite(features).all()


@pytest.mark.parametrize("name", ["wav2vec2-layer", "whisper"])
def test_shape_and_names_are_known_beforehand(name: str, encoders: dict[str, Path]) -> None:
    for pooling, width in (("mean", 16), ("mean_std", 32)):
        frontend = ssl(encoders[name], pooling=pooling)
        assert feature_shape(frontend.config) == frontend.shape == (width,)
        assert len(set(frontend.feature_names)) == width
        assert features_of(recording(1.3, 44_100), frontend).shape == (width,)


def test_stored_as_float16_means_rounded_in_either_path(encoders: dict[str, Path]) -> None:
    frontend = ssl(encoders["hubert"], stored="float16")
    recordings = clips(9_000, 8_000)
    for features in (frontend.extract(recordings), frontend.encode([torch.from_numpy(c) for c in recordings]).numpy()):
        assert np.array_equal(features, features.astype(np.float16).astype(np.float32))


def test_bfloat16_agrees_roughly_and_float16_needs_a_gpu(encoders: dict[str, Path]) -> None:
    recordings = clips(20_000)
    exact = ssl(encoders["hubert"]).extract(recordings)
    rough = ssl(encoders["hubert"], precision="bfloat16").extract(recordings)
    assert rough.dtype == np.float32
    assert not np.array_equal(rough, exact)
    assert np.allclose(rough, exact, atol=0.1)
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        ssl(encoders["hubert"], precision="float16")


def test_an_encoder_is_loaded_once_a_process_and_never_trains(encoders: dict[str, Path]) -> None:
    first, second = ssl(encoders["wavlm"]), ssl(encoders["wavlm"], pooling="mean_std", duration_s=1.0)
    assert first._model is second._model
    assert not first._model.training
    assert not any(parameter.requires_grad for parameter in first._model.parameters())
    features = first(torch.from_numpy(clips(9_000)[0])[None])
    assert not features.requires_grad
    assert not features.is_inference()


def test_layers_above_the_wanted_one_are_not_loaded(encoders: dict[str, Path]) -> None:
    assert len(ssl(encoders["hubert"], layer=0)._model.encoder.layers) == 1
    assert len(ssl(encoders["hubert"])._model.encoder.layers) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 4}, "layer 4 is not in the encoder .*: it has 0 to 3"),
        ({"layer": -5}, "layer -5 is not"),
        ({"sample_rate": 8_000}, "sample_rate must be 16000"),
        ({"sha256": "0" * 64}, "has the SHA-256 [0-9a-f]{64}, not 0{64}"),
    ],
)
def test_what_does_not_fit_the_encoder_is_refused(
    changes: dict[str, object], message: str, encoders: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match=message):
        ssl(encoders["hubert"], **changes)


def test_more_than_whisper_takes_is_refused(encoders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="Whisper takes 2 s"):
        ssl(encoders["whisper"], duration_s=3.0)


def test_the_hash_is_of_the_content_and_not_of_the_place(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("hubert")
    section = pinned(SslConfig(model=str(folder)))
    assert section.sha256 == encoder_hash(folder)
    (folder / "README.md").write_text("not part of the encoder")
    moved = relocated(section, folder.rename(tmp_path / "elsewhere"))
    assert moved.model != section.model
    assert pinned(moved) == moved
    assert identity(moved) == identity(section)


def test_changed_weights_are_another_encoder(copied: Callable[[str], Path]) -> None:
    folder = copied("hubert")
    section = pinned(SslConfig(model=str(folder)))
    before = features_of(recording(1.0), build_frontend(section))
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.encoder.layers[0].attention.k_proj.bias += 1
        model.encoder.layer_norm.bias += 1
    model.save_pretrained(folder)
    for use in (pinned, build_frontend):
        with pytest.raises(ConfigError, match=f"not {section.sha256}.*remove `sha256`"):
            use(section)
    fresh = section.model_copy(update={"sha256": None})
    assert pinned(fresh).sha256 != section.sha256
    assert not np.allclose(features_of(recording(1.0), build_frontend(fresh)), before)


def test_a_pinned_encoder_that_is_gone_keeps_its_pin_but_computes_nothing(copied: Callable[[str], Path]) -> None:
    folder = copied("hubert")
    section = pinned(SslConfig(model=str(folder)))
    shutil.rmtree(folder)
    assert pinned(section) is not None
    assert pinned(section).sha256 == section.sha256
    with pytest.raises(ConfigError, match=f"no such folder .*{section.sha256}"):
        build_frontend(section)
    with pytest.raises(ConfigError, match="no such folder"):
        pinned(section.model_copy(update={"sha256": None}))


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _without_extractor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def _cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _lacking_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layers.1.attention.k_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_weights, "pickle .* never loaded; convert it"),
        (_without_extractor, r"no preprocessor_config\.json"),
        (_without_config, r"no config\.json"),
        (_of_another_kind, "model_type 'bert' is not supported"),
        (_cut_off, "cannot be loaded"),
        (_lacking_a_tensor, r"lack 1 tensors \(first: encoder\.layers\.1\.attention\.k_proj\.weight\)"),
    ],
)
def test_a_folder_that_is_no_whole_encoder_is_refused_in_one_line(
    damage: Callable[[Path], None], message: str, copied: Callable[[str], Path]
) -> None:
    folder = copied("wav2vec2-layer")
    damage(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        ssl(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_in_several_files_are_read_and_hashed(copied: Callable[[str], Path]) -> None:
    folder = copied("wav2vec2-layer")
    expected = ssl(folder).extract(clips(9_000))
    model = transformers.AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert np.array_equal(ssl(folder).extract(clips(9_000)), expected)
    shards[-1].unlink()
    with pytest.raises(ConfigError, match=f"{shards[-1].name} is missing"):
        ssl(folder)


def test_a_model_that_cannot_be_downloaded_is_one_line_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = (
        "from kubevox.config import SslConfig\n"
        "from kubevox.features.frontends.encoder import hidden_size\n"
        "try:\n    hidden_size(SslConfig(model='nobody/nothing', revision='v1'))\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("ConfigError frontend ssl: model 'nobody/nothing' at revision 'v1'")
    assert "download the folder where there is a network and give its path in `model`" in run.stdout
    assert run.stdout.count("\n") == 1


def test_a_revision_of_a_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="only a hub's model has revisions"):
        SslConfig(model="/models/wavlm", revision="main")


def test_shape_and_pin_are_known_without_torch(encoders: dict[str, Path]) -> None:
    code = (
        "import sys\nfrom kubevox.config import SslConfig\n"
        "from kubevox.features.frontends import feature_shape\nfrom kubevox.features.pins import pinned\n"
        f"section = pinned(SslConfig(model={str(encoders['whisper'])!r}))\n"
        "assert feature_shape(section) == (16,)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert hidden_size(SslConfig(model=str(encoders["wavlm"]))) == 16


def test_missing_transformers_is_a_line_that_says_what_to_install(
    encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("kubevox.features.frontends.ssl._loaded", {})
    with pytest.raises(ConfigError, match=r"the ssl frontend needs transformers: pip install 'kubevox\[ssl\]'"):
        ssl(encoders["hubert"])
    assert frontends.feature_shape(SslConfig(model=str(encoders["hubert"]))) == (16,)
