"""The training loop: from a split and its feature blocks to a bundle.

Refuses a split without a valid certificate. Everything random is seeded, so a run that was killed and resumed ends
where an undisturbed one does; what was trained once under the same key (split, features, model, settings) is reused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kubevox import storage
from kubevox.config import AudioLimits, FeaturesConfig, ModelConfig, SpecAugment, TrainConfig
from kubevox.data.splits import Split, load_split
from kubevox.errors import TrainingError
from kubevox.evaluation.metrics import confusion_matrix, uar
from kubevox.features.augmentation import recipe_version
from kubevox.features.blocks import load_features
from kubevox.features.frontends import feature_shape, frontend_version
from kubevox.features.pins import identity, pinned
from kubevox.models import build_network
from kubevox.models.bundle import BundleSpec, Classifier, fit_temperature, save_bundle
from kubevox.progress import ProgressBar, note
from kubevox.provenance import content_hash
from kubevox.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from kubevox.training.tracking import TrackedRun, track_run

__all__ = ["TrainResult", "train", "training_key"]

_FORMAT = 1


@dataclass(frozen=True)
class TrainResult:
    """What training leaves behind.

    Attributes:
        bundle_uri: the deployable model.
        key: the training key: equal for equal split, features, model and settings.
        run_id: the MLflow run.
        history: a dict an epoch: epoch, train_loss, val_loss, val_uar, learning_rate.
        best_epoch: the epoch (from 1) whose weights were kept.
        reused: whether it had been trained before.
        resumed_at: the epoch after which a killed run was taken up, 0 where it was not.
    """

    bundle_uri: str
    key: str
    run_id: str
    history: list[dict[str, float]]
    best_epoch: int
    reused: bool
    resumed_at: int = 0


@dataclass
class _Progress:
    """What the loop carries from epoch to epoch."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_figure: float = math.inf
    best_epoch: int = 0
    stale: int = 0


def training_key(
    split: Split, model: ModelConfig, config: TrainConfig, features: FeaturesConfig, limits: AudioLimits
) -> str:
    """The hash of all that decides the bundle; the device, the number of threads and where files lie do not.

    Raises:
        ConfigError: the frontend or a recipe names files that are not there, or not those that it pins.
    """
    frontend = pinned(features.frontends[model.frontend])
    return content_hash(
        [_FORMAT, split.hash],
        [frontend_version(frontend), content_hash(identity(frontend))],
        [
            [recipe_version(features.recipes[name]), content_hash(identity(pinned(features.recipes[name])))]
            for name in model.recipes
        ],
        [model.digest(), config.model_copy(update={"device": "auto", "threads": None}).digest()],
        limits.digest(),
    )


def train(
    split_uri: str,
    blocks: Sequence[str],
    model: ModelConfig,
    config: TrainConfig,
    features: FeaturesConfig,
    limits: AudioLimits,
    store: str,
    tracking_uri: str,
    experiment: str,
) -> TrainResult:
    """Train a model on a split's training rows, choosing the best epoch on its validation rows.

    Args:
        split_uri: the certified split.
        blocks: the feature indexes of the dataset's shards.
        model: the architecture, its frontend and its recipes.
        config: the loop's settings.
        features: the definitions that ``model`` names.
        limits: what audio the served model will accept.
        store: where checkpoints and the bundle go.
        tracking_uri: MLflow's.
        experiment: MLflow's.

    Returns:
        The bundle and how it came about.

    Raises:
        ConfigError: the encoder of an ``ssl`` frontend is not there, or not the one that is pinned.
        SplitError: the split has no valid certificate.
        StorageError: a feature block is missing or damaged.
        TrainingError: the loss stopped being a number, or the device is not there.
    """
    split = load_split(split_uri)
    key = training_key(split, model, config, features, limits)
    known = storage.recall(store, "train", key)
    if known and storage.exists(storage.join(known["bundle_uri"], "bundle.json")):
        with track_run(tracking_uri, experiment, key, known["run_id"], only_if_missing=True) as run:
            if run.fresh:  # a tracking server that does not know the run: a new one, say
                _log_whole_run(run, split, model, config, known["history"], known["bundle_uri"])
                known |= {"run_id": run.id}
                storage.remember(store, "train", key, known)
        return TrainResult(**known, reused=True)
    frontend = pinned(features.frontends[model.frontend])
    # Of an encoder only the width is read here. One that is missing is noticed now and not when the bundle is saved.
    shape = feature_shape(frontend)
    recipes = [features.recipes[name] for name in model.recipes]
    rows = {name: split.of(name) for name in ("train", "validation")}
    index = {label: i for i, label in enumerate(split.labels)}

    def tensors(name: str, recipe: Any) -> tuple[Tensor, Tensor]:
        ids = [utterance.id for utterance, _ in rows[name]]
        values = load_features(blocks, frontend, recipe, ids)
        return torch.from_numpy(values), torch.tensor([index[label] for _, label in rows[name]])

    variants = [tensors("train", recipe) for recipe in recipes]
    x, y = torch.cat([values for values, _ in variants]), torch.cat([labels for _, labels in variants])
    x_val, y_val = tensors("validation", features.recipes["default"])
    folder = storage.join(store, "checkpoints", key)
    device = _device(config)
    saved = load_checkpoint(folder)
    with track_run(tracking_uri, experiment, key, saved.figures.get("run_id") if saved else None) as run:
        run.log_setting(_parameters(split, model, config))
        loop = _Loop(x, y, x_val, y_val, len(split.labels), shape, model, config, device, folder, run, split.hash)
        if saved:
            loop.resume(saved)
            if run.fresh:
                run.log_history(loop.progress.history)
        resumed_at = loop.run()
        classifier, logits = loop.best()
        spec = BundleSpec(
            task=split.certificate["task"]["name"],
            labels=list(split.labels),
            frontend=frontend,
            frontend_version=frontend_version(frontend),
            shape=list(shape),
            model=model,
            parameters=sum(parameter.numel() for parameter in classifier.parameters()),
            temperature=fit_temperature(logits, y_val),
            limits=limits,
            dataset_hash=split.dataset.hash,
            split_hash=split.hash,
            training_key=key,
            speakers=split.speakers("train", "validation"),
            key_fingerprint=split.dataset.key_fingerprint,
            synthetic=split.dataset.synthetic,
        )
        bundle_uri = save_bundle(classifier, spec, store)
        run.log_bundle(bundle_uri)
    answer: dict[str, Any] = {
        "bundle_uri": bundle_uri,
        "key": key,
        "run_id": run.id,
        "history": loop.progress.history,
        "best_epoch": loop.progress.best_epoch,
    }
    storage.remember(store, "train", key, answer)
    return TrainResult(**answer, reused=False, resumed_at=resumed_at)


class _Loop:
    """One training run over features held in memory."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        x_val: Tensor,
        y_val: Tensor,
        labels: int,
        shape: tuple[int, ...],
        model: ModelConfig,
        config: TrainConfig,
        device: torch.device,
        folder: str,
        run: TrackedRun,
        split_hash: str,
    ) -> None:
        self.config, self.device, self.folder, self.tracked, self.labels = config, device, folder, run, labels
        self.split_hash = split_hash
        torch.set_num_threads(config.threads or torch.get_num_threads())
        torch.manual_seed(config.seed)
        axes = (0,) if x.ndim == 2 else (0, 2)
        mean = x.mean(dim=axes, keepdim=x.ndim == 3)
        # A feature that never moves in training would otherwise be divided by nothing.
        scale = x.std(dim=axes, keepdim=x.ndim == 3).clamp_min(1e-6)
        if x.ndim == 3:
            mean, scale = mean[0], scale[0]
        self.classifier = Classifier(build_network(model, shape, labels), mean, scale).to(self.device)
        self.x, self.y = x.to(self.device), y.to(self.device)
        self.x_val, self.y_val = x_val.to(self.device), y_val.to(self.device)
        counts = torch.bincount(y, minlength=labels).clamp_min(1).double()
        self.frequency = counts
        weights = (counts.sum() / (labels * counts)).float().to(self.device)
        self.loss = nn.CrossEntropyLoss(
            weight=weights if config.balance == "weights" else None, label_smoothing=config.label_smoothing
        )
        # With weight_decay 0 this is Adam (Kingma & Ba 2015); with more, decay is decoupled (Loshchilov & Hutter 2019).
        self.optimiser = torch.optim.AdamW(
            self.classifier.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.steps = max(1, len(y) // config.batch_size)
        self.schedule = _schedule(self.optimiser, config, self.steps)
        self.progress = _Progress()
        self.best_state = copy.deepcopy(self.classifier.state_dict())
        self.start = 0

    def resume(self, saved: Checkpoint) -> None:
        """Take up a killed run where its checkpoint left it."""
        self.classifier.load_state_dict(saved.model)
        self.best_state = saved.best
        restore_optimiser(self.optimiser, saved.optimiser, saved.figures["optimiser"])
        self.schedule.load_state_dict(self.schedule.state_dict() | saved.figures["schedule"])
        self.progress = _Progress(**saved.figures["progress"])
        torch.set_rng_state(saved.random)
        self.start = saved.epoch

    def run(self) -> int:
        """Train to the end; returns the epoch after which a killed run was taken up (0: none)."""
        start = self.start
        if start:
            note(f"resuming after epoch {start} of {self.config.epochs} from the store's checkpoint")
        with ProgressBar("train", self.config.epochs, "epochs") as bar:
            bar.update(start)
            for epoch in range(start, self.config.epochs):
                if self.progress.stale >= self.config.early_stopping.patience:
                    note(f"early stopping: no progress for {self.progress.stale} epochs")
                    break
                figures = self._epoch(epoch)
                self._judge(figures)
                self.progress.history.append(figures)
                self.tracked.log_epoch(figures)
                self._save(epoch + 1)
                bar.update(1, loss=f"{figures['train_loss']:.3f}", val_uar=f"{figures['val_uar']:.3f}")
        return start

    def best(self) -> tuple[Classifier, Tensor]:
        """The best epoch's model and its validation logits."""
        self.classifier.load_state_dict(self.best_state)
        self.classifier.eval().cpu()
        self.device = torch.device("cpu")
        self.x_val, self.y_val = self.x_val.cpu(), self.y_val.cpu()
        return self.classifier, self._logits()

    def _epoch(self, epoch: int) -> dict[str, float]:
        self.classifier.train()
        total, seen = torch.zeros((), device=self.device), 0
        for batch in self._order().split(self.config.batch_size)[: self.steps]:
            features, labels = self.x[batch], self.y[batch]
            features = self.classifier.normalise(features)
            if self.config.spec_augment is not None and features.ndim == 3:
                features = _spec_augment(features, self.config.spec_augment)
            loss = self._batch_loss(features, labels)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.classifier.parameters(), 5.0)
            self.optimiser.step()
            if isinstance(self.schedule, torch.optim.lr_scheduler.OneCycleLR):
                self.schedule.step()
            total += loss.detach() * len(batch)
            seen += len(batch)
        train_loss = float(total) / seen
        rate = self.optimiser.param_groups[0]["lr"]
        logits = self._logits()
        val_loss = float(nn.functional.cross_entropy(logits, self.y_val))
        if not math.isfinite(train_loss) or not math.isfinite(val_loss):
            raise TrainingError(
                f"epoch {epoch + 1}: the loss is no finite number; lower train.learning_rate (now "
                f"{self.config.learning_rate:g}) or look at the features"
            )
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.schedule.step(val_loss)
        predicted = logits.argmax(dim=1).cpu().numpy()
        matrix = confusion_matrix(self.y_val.cpu().numpy(), predicted, self.labels)
        return {
            "epoch": epoch + 1,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "val_uar": float(uar(matrix)),
            "learning_rate": rate,
        }

    def _batch_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        if not self.config.mixup:
            return self.loss(self.classifier.network(features), labels)
        # mixup (Zhang et al. 2018): one ratio a batch, the loss mixed as the inputs are.
        alpha = self.config.mixup
        share = float(np.random.default_rng(int(torch.randint(2**31, ()))).beta(alpha, alpha))
        partner = torch.randperm(len(labels)).to(self.device)
        logits = self.classifier.network(share * features + (1 - share) * features[partner])
        return share * self.loss(logits, labels) + (1 - share) * self.loss(logits, labels[partner])

    def _order(self) -> Tensor:
        """This epoch's rows: each once, or drawn so that every label is as likely (``balance: sampler``)."""
        if self.config.balance == "sampler":
            weights = (1.0 / self.frequency)[self.y.cpu()]
            return torch.multinomial(weights, len(self.y), replacement=True)
        return torch.randperm(len(self.y))

    def _logits(self) -> Tensor:
        self.classifier.eval()
        with torch.inference_mode():
            return torch.cat([self.classifier(batch) for batch in self.x_val.split(256)])

    def _judge(self, figures: dict[str, float]) -> None:
        """Keep the weights of a better epoch; count the epochs without one."""
        stopping = self.config.early_stopping
        figure = figures["val_loss"] if stopping.monitor == "loss" else -figures["val_uar"]
        if figure < self.progress.best_figure - stopping.min_delta:
            self.progress.best_figure, self.progress.best_epoch = figure, int(figures["epoch"])
            self.progress.stale = 0
            self.best_state = copy.deepcopy(self.classifier.state_dict())
        else:
            self.progress.stale += 1

    def _save(self, epoch: int) -> None:
        tensors, groups = optimiser_tensors(self.optimiser)
        schedule = {
            name: value
            for name, value in self.schedule.state_dict().items()
            if isinstance(value, (int, float, str, list)) and name != "_schedule_phases"
        }
        figures = {
            "progress": vars(self.progress),
            "optimiser": groups,
            "schedule": schedule,
            "run_id": self.tracked.id,
            "split": self.split_hash,  # whoever purges the split finds what was learnt from it
        }
        save_checkpoint(
            self.folder,
            Checkpoint(epoch, self.classifier.state_dict(), self.best_state, tensors, torch.get_rng_state(), figures),
        )


def _device(config: TrainConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("train.device 'cuda': torch finds no GPU here; use auto or cpu")
    return torch.device(config.device)


def _schedule(optimiser: torch.optim.Optimizer, config: TrainConfig, steps: int) -> Any:
    if config.schedule.kind == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=config.learning_rate,
            total_steps=config.epochs * steps,
            pct_start=config.schedule.warmup_share,
            cycle_momentum=False,
        )
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser,
        factor=config.schedule.factor,
        patience=config.schedule.patience,
        min_lr=config.schedule.min_learning_rate,
    )


def _spec_augment(features: Tensor, config: SpecAugment) -> Tensor:
    """Move and blank log-mel maps at random, each recording on its own.

    Moved in time (circular) and along the bands (edges repeated), then bands and spans of frames are blanked with the
    training mean, which is zero after normalisation. A few bands up or down are another voice saying the same: without
    that, a model of few training speakers learns the speakers.

    Args:
        features: normalised [batch, bands, frames].
        config: how far, how many and how wide at most.
    """
    batch, bands, frames = features.shape
    if config.shift_frames:
        shift = torch.randint(-config.shift_frames, config.shift_frames + 1, (batch, 1))
        source = ((torch.arange(frames) - shift) % frames).to(features.device)
        features = features.gather(2, source.unsqueeze(1).expand(-1, bands, -1))
    if config.shift_bands:
        shift = torch.randint(-config.shift_bands, config.shift_bands + 1, (batch, 1))
        source = (torch.arange(bands) - shift).clamp(0, bands - 1).to(features.device)
        features = features.gather(1, source.unsqueeze(2).expand(-1, -1, frames))
    keep = torch.ones_like(features, dtype=torch.bool)
    for axis, size, count, most in (
        (1, bands, config.bands, config.band_width),
        (2, frames, config.spans, config.span_width),
    ):
        for _ in range(count):
            width = torch.randint(0, min(most, size) + 1, (batch, 1))
            start = (torch.rand(batch, 1) * (size - width + 1)).long()
            position = torch.arange(size)
            blank = ((position >= start) & (position < start + width)).to(features.device)
            keep &= ~(blank.unsqueeze(2) if axis == 1 else blank.unsqueeze(1))
    return features * keep


def _parameters(split: Split, model: ModelConfig, config: TrainConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {"dataset_hash": split.dataset.hash, "split_hash": split.hash}
    for prefix, section in (("model", model), ("train", config)):
        flat |= {f"{prefix}.{name}": value for name, value in section.model_dump(mode="json").items()}
    return flat


def _log_whole_run(
    run: TrackedRun,
    split: Split,
    model: ModelConfig,
    config: TrainConfig,
    history: list[dict[str, float]],
    bundle_uri: str,
) -> None:
    """Tell a tracking server all that was logged when the model was trained."""
    run.log_setting(_parameters(split, model, config))
    run.log_history(history)
    run.log_bundle(bundle_uri)
