"""The bundle: named by its content, whole or refused, and one code path with what trained it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from kubevox.data.audio import decode, encode_flac
from kubevox.data.dataset import read_audio
from kubevox.errors import BundleError
from kubevox.features.blocks import load_features
from kubevox.features.frontends import build_frontend
from kubevox.features.frontends.base import features_of
from kubevox.models.bundle import fit_temperature, load_bundle, save_bundle
from kubevox.training.loop import TrainResult
from tests.tiny import FEATURES, Tiny


def test_saving_what_was_loaded_gives_the_same_name(trained: TrainResult, tiny: Tiny) -> None:
    bundle = load_bundle(trained.bundle_uri)
    assert save_bundle(bundle.classifier, bundle.spec, tiny.store) == trained.bundle_uri
    assert trained.bundle_uri.endswith(bundle.hash)


@pytest.mark.parametrize("name", ["bundle.json", "model.safetensors"])
def test_a_flipped_byte_is_refused(name: str, trained: TrainResult, tmp_path: Path) -> None:
    copy = tmp_path / Path(trained.bundle_uri).name
    shutil.copytree(trained.bundle_uri, copy)
    data = bytearray((copy / name).read_bytes())
    data[-5] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(str(copy))


def test_a_missing_file_is_refused_by_name(trained: TrainResult, tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(trained.bundle_uri, copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        load_bundle(str(copy))


def test_a_frontend_of_another_version_is_refused(trained: TrainResult, tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(trained.bundle_uri, copy)
    head = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(head | {"frontend_version": 999}))
    with pytest.raises(BundleError, match="version 999"):
        load_bundle(str(copy))


@pytest.mark.parametrize("frontend", ["logmel", "statistics"])
def test_served_features_are_the_offline_ones_bit_for_bit(frontend: str, tiny: Tiny, tmp_path: Path) -> None:
    config = FEATURES.frontends[frontend]
    for shard in tiny.split.dataset.shard_uris:
        for name, waveform in read_audio(shard, tiny.split.split_of):
            stored = load_features(tiny.blocks, config, FEATURES.recipes["default"], [name])[0]
            wav = tmp_path / "request.wav"
            soundfile.write(wav, waveform.pcm << 8, waveform.sample_rate, subtype="PCM_24")
            for request in (wav.read_bytes(), encode_flac(waveform)):
                received, _ = decode(request, tiny.data.limits)
                assert received.id == name
                served = features_of(received, build_frontend(config))
                assert np.array_equal(served, stored)
                assert served.dtype == stored.dtype == np.float32


@pytest.mark.parametrize("frontend", ["logmel", "statistics"])
def test_served_features_of_real_speech_are_the_offline_ones_bit_for_bit(
    frontend: str, speech_data: Path, tmp_path: Path
) -> None:
    from kubevox.config import CorpusSource, DataConfig
    from kubevox.data.dataset import ingest, read_utterances
    from kubevox.features.blocks import extract_shard

    few = tmp_path / "ravdess" / "Actor_01"
    few.mkdir(parents=True)
    for file in sorted((speech_data / "speech/RAVDESS/Actor_01").iterdir())[:12]:
        (few / file.name).symlink_to(file)
    data = DataConfig(corpora=[CorpusSource(name="ravdess", path=str(few.parent))])
    dataset, _ = ingest(data, str(tmp_path / "store"))
    utterances = read_utterances(dataset.shard_uris)
    wanted = {utterance.id: "test" for utterance in utterances}
    plan = {frontend: ["default"]}
    blocks = [extract_shard(uri, wanted, FEATURES, plan, str(tmp_path / "store")).uri for uri in dataset.shard_uris]
    config = FEATURES.frontends[frontend]
    stored = load_features(blocks, config, FEATURES.recipes["default"], [utterance.id for utterance in utterances])
    for utterance, offline in zip(utterances, stored, strict=True):
        request = (few.parent / utterance.source_id.removeprefix("ravdess:")).read_bytes()
        received, _ = decode(request, data.limits)
        assert np.array_equal(features_of(received, build_frontend(config)), offline)


def test_temperature_lowers_the_negative_log_likelihood() -> None:
    torch.manual_seed(0)
    labels = torch.randint(3, (200,))
    logits = 8 * (torch.nn.functional.one_hot(labels, 3) + 0.8 * torch.randn(200, 3))
    temperature = fit_temperature(logits, labels)
    loss = torch.nn.functional.cross_entropy
    assert temperature > 1.0
    assert loss(logits / temperature, labels) < loss(logits, labels)
