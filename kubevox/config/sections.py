"""The sections of a configuration: immutable, typed, closed to unknown keys."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kubevox.config.base import Device, Positive, PositiveInt, Section, Seed, Share, refusal, refuse_empty_range
from kubevox.config.explain import parse_section
from kubevox.config.features import FeaturesConfig
from kubevox.config.rollout import DeployConfig
from kubevox.config.serving import ServingConfig
from kubevox.config.validation import ValidateConfig
from kubevox.errors import ConfigError

__all__ = [
    "AudioLimits",
    "BaselineConfig",
    "Cnn1dConfig",
    "Config",
    "CorpusSource",
    "DataConfig",
    "EarlyStopping",
    "EvaluateConfig",
    "GateConfig",
    "MiniConfig",
    "ModelConfig",
    "OneCycle",
    "Plateau",
    "ResCnnConfig",
    "SpecAugment",
    "SplitConfig",
    "TaskConfig",
    "TrackingConfig",
    "TrainConfig",
    "ValidateConfig",
    "parse_model",
]


class TaskConfig(Section):
    """A label set, and how each corpus' raw labels map onto it."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    label_column: Literal["raw_label", "language"] = "raw_label"
    labels: list[str] = Field(min_length=2)
    map: dict[str, dict[str, str | None]] = {}

    @field_validator("labels")
    @classmethod
    def _labels_are_distinct(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) != len(labels):
            raise ValueError("a label is listed twice")
        return labels

    @model_validator(mode="after")
    def _map_leads_to_labels(self) -> TaskConfig:
        for corpus, mapping in self.map.items():
            for raw, label in mapping.items():
                if label is not None and label not in self.labels:
                    raise refusal(f"map.{corpus}.{raw}", label, f"not among task.labels {self.labels}")
        return self

    def label_of(self, corpus: str, raw: str | None) -> tuple[bool, str | None]:
        """Whether the corpus' raw label is known, and the task's label for it (None: known and left out).

        The corpus' own map is asked first, then the one under ``"*"``; a raw label that is itself one of the task's
        labels needs no entry.
        """
        for mapping in (self.map.get(corpus, {}), self.map.get("*", {})):
            if raw in mapping:
                return True, mapping[raw]
        if raw in self.labels:
            return True, raw
        return False, None


class AudioLimits(Section):
    """What untrusted audio may be; the same limits hold at ingest and at serving."""

    max_bytes: PositiveInt = 22_000_000
    min_duration_s: Positive = 0.7
    max_duration_s: Positive = 60.0
    min_sample_rate: PositiveInt = 8_000
    max_sample_rate: PositiveInt = 96_000
    max_channels: PositiveInt = 8

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> AudioLimits:
        refuse_empty_range(self, "min_duration_s", "max_duration_s")
        refuse_empty_range(self, "min_sample_rate", "max_sample_rate")
        return self


class CorpusSource(Section):
    """One corpus of a run: its name, where it lies, and the options of its own module."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    path: str | None = None
    download: bool = False
    max_recordings: PositiveInt | None = None
    max_per_class: PositiveInt | None = None
    options: dict[str, Any] = {}


class DataConfig(Section):
    """What is ingested: corpora, or a dataset version that the store has already."""

    corpora: list[CorpusSource] = Field(min_length=1)
    name: str = Field(default="default", pattern=r"^[a-z][a-z0-9_-]*$")
    version: str | None = Field(default=None, pattern=r"^(current|[0-9a-f]{6,64})$")
    publish_names: bool = False
    labels: list[str] | None = None
    limits: AudioLimits = AudioLimits()
    max_rejected_share: Share = 0.0
    shard_mb: PositiveInt = Field(default=64, le=256)


class SplitConfig(Section):
    """How utterances are divided into train, validation and test."""

    protocol: Literal["holdout", "kfold", "leave_one_corpus_out", "published"] = "holdout"
    validation_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    test_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    folds: int = Field(default=5, ge=2)
    fold: int = Field(default=0, ge=0)
    held_out: str | None = None
    published: Literal["keep", "ignore"] | None = None
    disjoint_sentences: bool = False
    seed: Seed = 0

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> SplitConfig:
        if self.validation_share + self.test_share >= 1.0:
            raise refusal(
                "validation_share",
                self.validation_share,
                f"with test_share = {self.test_share:g} it leaves nothing to train on",
            )
        return self

    @model_validator(mode="after")
    def _the_protocol_has_what_it_needs(self) -> SplitConfig:
        if self.protocol == "kfold" and self.folds < 3:
            raise refusal("folds", self.folds, "protocol kfold needs 3 at least: to test, to validate and to train")
        if self.protocol == "kfold" and self.fold >= self.folds:
            raise refusal("fold", self.fold, f"with folds = {self.folds} it is one of 0 to {self.folds - 1}")
        if self.protocol != "kfold" and self.fold:
            raise refusal("fold", self.fold, "it chooses the test fold of protocol kfold only")
        if (self.protocol == "leave_one_corpus_out") != (self.held_out is not None):
            raise refusal("held_out", self.held_out, "protocol leave_one_corpus_out, and no other, needs a corpus")
        if self.protocol == "published" and self.published == "ignore":
            raise refusal("published", self.published, "protocol published is to keep what is published")
        return self


class ResCnnConfig(Section):
    """A residual CNN over log-mel bands with attentive statistics pooling."""

    architecture: Literal["rescnn"] = "rescnn"
    frontend: str = "logmel"
    recipes: list[str] = ["default"]
    channels: list[PositiveInt] = Field(default=[16, 32, 64, 128], min_length=1)
    blocks: PositiveInt = 1
    attention: PositiveInt = 64
    dropout: float = Field(default=0.3, ge=0.0, lt=1.0)


class Cnn1dConfig(Section):
    """A 1-D CNN over the vector of statistics."""

    architecture: Literal["cnn1d"] = "cnn1d"
    frontend: str = "statistics"
    recipes: list[str] = ["default"]
    filters: list[list[PositiveInt]] = [[64, 64, 64], [128, 128], [256]]
    strides: list[list[PositiveInt]] = [[1, 2, 2], [1, 2], [2]]
    kernel: PositiveInt = 3
    pool: PositiveInt = 2
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    dense: list[PositiveInt] = [64, 16]

    @model_validator(mode="after")
    def _a_stride_for_each_filter(self) -> Cnn1dConfig:
        if [len(block) for block in self.filters] != [len(block) for block in self.strides]:
            raise refusal("strides", self.strides, f"must have the same shape as filters = {self.filters}")
        return self


ModelConfig = Annotated[ResCnnConfig | Cnn1dConfig, Field(discriminator="architecture")]


class OneCycle(Section):
    """Warm up to the learning rate, then anneal to nearly zero over the run's epochs (Smith & Topin 2018)."""

    kind: Literal["one_cycle"] = "one_cycle"
    warmup_share: float = Field(default=0.3, gt=0.0, lt=1.0)


class Plateau(Section):
    """Multiply the learning rate by ``factor`` after ``patience`` epochs without progress (ReduceLROnPlateau)."""

    kind: Literal["plateau"] = "plateau"
    factor: float = Field(default=0.4, gt=0.0, lt=1.0)
    patience: int = Field(default=2, ge=0)
    min_learning_rate: Positive = 1e-6


ScheduleConfig = Annotated[OneCycle | Plateau, Field(discriminator="kind")]


class SpecAugment(Section):
    """Log-mel maps moved and blanked while training; all numbers are upper bounds.

    Blanking as SpecAugment has it (Park et al. 2019); the shift along the bands stands in for another vocal tract, as
    vocal tract length perturbation does (Jaitly & Hinton 2013).
    """

    shift_bands: int = Field(default=3, ge=0)
    shift_frames: int = Field(default=24, ge=0)

    bands: int = Field(default=2, ge=0)
    band_width: int = Field(default=8, ge=0)
    spans: int = Field(default=2, ge=0)
    span_width: int = Field(default=16, ge=0)


class EarlyStopping(Section):
    """When training stops, and by which validation figure the best checkpoint is chosen."""

    monitor: Literal["loss", "uar"] = "loss"
    min_delta: float = Field(default=0.001, ge=0.0)
    patience: PositiveInt = 4


class TrainConfig(Section):
    """The training loop."""

    epochs: PositiveInt = 45
    batch_size: int = Field(default=32, ge=2)
    learning_rate: Positive = 1e-3
    weight_decay: float = Field(default=0.0, ge=0.0)
    schedule: ScheduleConfig = OneCycle()
    early_stopping: EarlyStopping = EarlyStopping()
    balance: Literal["none", "weights", "sampler"] = "weights"
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    mixup: float = Field(default=0.0, ge=0.0)
    spec_augment: SpecAugment | None = None
    seed: Seed = 0
    threads: PositiveInt | None = None
    device: Device = "auto"


class BaselineConfig(Section):
    """A reference model trained and scored in the same run, on the same split."""

    model: ModelConfig
    train: TrainConfig = TrainConfig()


class MiniConfig(Section):
    """A small model that answers first, in a cascade with the champion; trained on the champion's split.

    Attributes:
        margin: by how much the cascade's UAR, on the validation split, may lie below the champion's.
    """

    model: ModelConfig
    train: TrainConfig = TrainConfig()
    margin: float = Field(default=0.01, ge=0.0, lt=1.0)


class EvaluateConfig(Section):
    """How the test split is scored."""

    bootstrap_samples: int = Field(default=2000, ge=100)
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    calibration_bins: int = Field(default=10, ge=2)
    latency_clips: PositiveInt = 50
    seed: Seed = 0


class GateConfig(Section):
    """What a challenger must reach before it is deployed."""

    min_uar: Share = 0.4
    min_worst_recall: Share = 0.1
    max_calibration_error: Share = 0.2
    max_latency_p95_ms: Positive = 200.0
    max_parameters: PositiveInt = 5_000_000
    champion_margin: float = Field(default=0.01, ge=0.0, lt=1.0)


class TrackingConfig(Section):
    """Where MLflow keeps experiments and the registry."""

    uri: str = "sqlite:///.kubevox/mlflow.db"
    experiment: str | None = None
    registered_model: str | None = None


class Config(Section):
    """A whole run."""

    task: TaskConfig
    store: str = ".kubevox/store"
    tracking: TrackingConfig = TrackingConfig()
    data: DataConfig
    validation: ValidateConfig = ValidateConfig()
    split: SplitConfig = SplitConfig()
    features: FeaturesConfig = FeaturesConfig()
    model: ModelConfig = ResCnnConfig()
    train: TrainConfig = TrainConfig()
    baseline: BaselineConfig | None = None
    mini: MiniConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    deploy: DeployConfig = DeployConfig()
    serving: ServingConfig = ServingConfig()

    @property
    def labels(self) -> list[str]:
        """The labels of this run: all of the task's, or those that ``data.labels`` selects."""
        return self.data.labels or self.task.labels

    @property
    def run_task(self) -> TaskConfig:
        """The task as this run sees it: labels that ``data.labels`` does not select are known and left out."""
        if self.data.labels is None:
            return self.task
        keep = set(self.labels)
        maps: dict[str, dict[str, str | None]] = {
            corpus: {raw: label if label in keep else None for raw, label in mapping.items()}
            for corpus, mapping in self.task.map.items()
        }
        maps.setdefault("*", {}).update({label: None for label in self.task.labels if label not in keep})
        return self.task.model_copy(update={"labels": list(self.labels), "map": maps})

    @property
    def experiment(self) -> str:
        """The MLflow experiment's name."""
        return self.tracking.experiment or self.task.name

    @property
    def registered_model(self) -> str:
        """The name of the model in the registry."""
        return self.tracking.registered_model or f"kubevox-{self.task.name}"

    @property
    def used_features(self) -> FeaturesConfig:
        """Only the frontends and recipes that this run's models name, so that unused ones invalidate nothing."""
        models = [self.model, *([self.baseline.model] if self.baseline else [])]
        recipes = {"default"}.union(*(model.recipes for model in models))
        return self.features.model_copy(
            update={
                "frontends": {k: v for k, v in self.features.frontends.items() if k in {m.frontend for m in models}},
                "recipes": {k: v for k, v in self.features.recipes.items() if k in recipes},
            }
        )

    @property
    def feature_plan(self) -> dict[str, list[str]]:
        """The recipes wanted of each frontend: always ``default``, and those that this run's models train on."""
        plan: dict[str, list[str]] = {}
        for model in [self.model, *([self.baseline.model] if self.baseline else [])]:
            recipes = plan.setdefault(model.frontend, ["default"])
            recipes += [recipe for recipe in model.recipes if recipe not in recipes]
        return plan

    @model_validator(mode="after")
    def _names_are_known(self) -> Config:
        selected = self.data.labels
        for label in selected or []:
            if label not in self.task.labels:
                raise refusal("data.labels", selected, f"{label!r} is not among task.labels {self.task.labels}")
        if selected is not None and not 2 <= len(selected) == len(set(selected)):
            raise refusal("data.labels", selected, "name at least two labels, each once")
        sections = {"baseline": self.baseline, "mini": self.mini}
        models = {"model": self.model} | {f"{name}.model": one.model for name, one in sections.items() if one}
        for where, model in models.items():
            frontend, frontends = model.frontend, self.features.frontends
            if frontend not in frontends:
                raise refusal(f"{where}.frontend", frontend, f"not among features.frontends {sorted(frontends)}")
            kinds = ("statistics", "ssl") if model.architecture == "cnn1d" else ("logmel",)
            if frontends[frontend].kind not in kinds:
                needed = " or ".join(map(repr, kinds))
                raise refusal(f"{where}.frontend", frontend, f"{model.architecture} needs one of kind {needed}")
            for recipe in model.recipes:
                if recipe not in self.features.recipes:
                    known = sorted(self.features.recipes)
                    raise refusal(f"{where}.recipes", model.recipes, f"{recipe!r} is not in features.recipes {known}")
            if len(set(model.recipes)) != len(model.recipes) or not model.recipes:
                raise refusal(f"{where}.recipes", model.recipes, "name at least one recipe, each once")
        return self


def parse_model(text: str) -> ModelConfig:
    """Read a model's configuration from JSON.

    Raises:
        ConfigError: it is none.
    """

    class Holder(Section):
        model: ModelConfig

    try:
        return parse_section(Holder, {"model": json.loads(text)}, "model").model
    except ValueError as error:
        raise ConfigError(f"model: not JSON ({error})") from None
