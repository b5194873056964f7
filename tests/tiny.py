"""A tiny pipeline through the library alone: what training, evaluation, serving and deployment tests share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kubevox.config import (
    AudioLimits,
    Cnn1dConfig,
    CorpusSource,
    DataConfig,
    EarlyStopping,
    EvaluateConfig,
    FeaturesConfig,
    GateConfig,
    LogMelConfig,
    ModelConfig,
    NoiseRecipe,
    OriginalRecipe,
    ResCnnConfig,
    SpecAugment,
    SplitConfig,
    StatisticsConfig,
    TaskConfig,
    TrainConfig,
    ValidateConfig,
)
from kubevox.data.dataset import ingest
from kubevox.data.splits import Split, make_split
from kubevox.data.validation import accepted_source_ids, validate
from kubevox.features.blocks import extract_shard
from kubevox.features.frontends import build_frontend
from kubevox.models import build_network
from kubevox.models.bundle import BundleSpec, Classifier, save_bundle
from kubevox.training.loop import TrainResult, train

TASK = TaskConfig(name="mood", labels=["angry", "happy", "sad"])
FEATURES = FeaturesConfig(
    frontends={"logmel": LogMelConfig(duration_s=1.0, mels=16), "statistics": StatisticsConfig(offset_s=0.0)},
    recipes={"default": OriginalRecipe(), "noise": NoiseRecipe()},
)
RESCNN = ResCnnConfig(channels=[4, 8], attention=4, recipes=["default", "noise"])
CNN1D = Cnn1dConfig(filters=[[4], [8]], strides=[[2], [2]], dense=[8])
TRAIN = TrainConfig(
    epochs=3,
    batch_size=4,
    mixup=0.2,
    label_smoothing=0.1,
    spec_augment=SpecAugment(),
    early_stopping=EarlyStopping(patience=10),
    threads=1,
)
EVALUATE = EvaluateConfig(bootstrap_samples=100, latency_clips=2)
LENIENT = GateConfig(
    min_uar=0.0,
    min_worst_recall=0.0,
    max_calibration_error=1.0,
    max_latency_p95_ms=60_000.0,
    max_parameters=10**7,
    champion_margin=0.99,
)
PLAN = {"logmel": ["default", "noise"], "statistics": ["default", "noise"]}


@dataclass(frozen=True)
class Tiny:
    """A store with a dataset, a split and feature blocks in it."""

    store: str
    tracking: str
    data: DataConfig
    split: Split
    blocks: list[str]

    def train(self, model: ModelConfig = RESCNN, config: TrainConfig = TRAIN) -> TrainResult:
        """Train in this store."""
        return train(
            self.split.uri, self.blocks, model, config, FEATURES, self.data.limits, self.store, self.tracking, "mood"
        )


def prepare(root: Path, corpus: Path) -> Tiny:
    """Ingest, validate, split and extract under ``root``."""
    store = str(root / "store")
    data = DataConfig(corpora=[CorpusSource(name="folder", path=str(corpus))], publish_names=True)
    dataset, _ = ingest(data, store)
    checked = validate(dataset, TASK, ValidateConfig(), store)
    split, _ = make_split(dataset, accepted_source_ids(checked.uri), TASK, SplitConfig(), store)
    blocks = [extract_shard(shard, split.split_of, FEATURES, PLAN, store).uri for shard in dataset.shard_uris]
    return Tiny(store, f"sqlite:///{root / 'mlflow.db'}", data, split, blocks)


def untrained_bundle(
    tiny: Tiny, store: str | Path, model: ModelConfig = RESCNN, seed: int = 0, **description: Any
) -> str:
    """A bundle of random weights that says it was trained on the split; ``description`` replaces parts of its own."""
    torch.manual_seed(seed)
    frontend = build_frontend(FEATURES.frontends[model.frontend])
    network = build_network(model, frontend.shape, len(TASK.labels))
    # Means over decibels lie far from zero: without some normalisation random weights give one answer to everything.
    width, offset = (frontend.shape[0], 1)[: len(frontend.shape)], -60.0 if model.frontend == "logmel" else 0.0
    classifier = Classifier(network, torch.full(width, offset), torch.full(width, 20.0))
    said: dict[str, Any] = {
        "task": TASK.name,
        "labels": TASK.labels,
        "frontend": frontend.config,
        "frontend_version": frontend.version,
        "shape": list(frontend.shape),
        "model": model,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "temperature": 1.0,
        "limits": AudioLimits(),
        "dataset_hash": tiny.split.dataset.hash,
        "split_hash": tiny.split.hash,
        "training_key": f"{seed:064d}",
        "speakers": tiny.split.speakers("train", "validation"),
        "key_fingerprint": tiny.split.dataset.key_fingerprint,
        "synthetic": tiny.split.dataset.synthetic,
    }
    return save_bundle(classifier, BundleSpec(**{**said, **description}), str(store))
