"""From predictions on the test split to every figure that is reported and judged."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from kubevox.config import EvaluateConfig
from kubevox.evaluation import metrics
from kubevox.evaluation.intervals import (
    FEWEST_SPEAKERS,
    Estimate,
    estimate,
    estimates,
    resample,
    speaker_confusions,
)
from kubevox.evaluation.metrics import ReliabilityBin

__all__ = ["Cost", "Predictions", "Scores", "Slice", "score"]

UNKNOWN = "unknown"
"""The slice of utterances about which the corpus does not say."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said about the test utterances, and what is known about them; all sequences have length N.

    Attributes:
        ids: utterance ids.
        truth: the true labels.
        probabilities: float [N, C], a row sums to 1; columns in the order of the model's labels.
        speakers: ``corpus:id``, or None where the corpus does not say.
        corpora: names of the corpora.
        sexes: "female", "male" or None.
    """

    ids: Sequence[str]
    truth: Sequence[str]
    probabilities: npt.NDArray[np.floating]
    speakers: Sequence[str | None]
    corpora: Sequence[str]
    sexes: Sequence[str | None]

    def __post_init__(self) -> None:
        count = len(self.ids)
        if self.probabilities.ndim != 2:
            raise ValueError(f"probabilities are [N, C], not {list(self.probabilities.shape)}")
        for name in ("truth", "probabilities", "speakers", "corpora", "sexes"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{count} utterances but {len(getattr(self, name))} {name}")

    def __len__(self) -> int:
        return len(self.ids)

    def without_corpora(self, corpora: Collection[str]) -> Predictions:
        """The predictions of the other corpora's utterances."""
        keep = [i for i, corpus in enumerate(self.corpora) if corpus not in corpora]
        return Predictions(
            ids=[self.ids[i] for i in keep],
            truth=[self.truth[i] for i in keep],
            probabilities=self.probabilities[keep],
            speakers=[self.speakers[i] for i in keep],
            corpora=[self.corpora[i] for i in keep],
            sexes=[self.sexes[i] for i in keep],
        )


@dataclass(frozen=True)
class Cost:
    """What a prediction costs.

    Attributes:
        parameters: the model's trainable numbers.
        latency_p50_ms: median time from waveform to probabilities, one recording at a time, in milliseconds.
        latency_p95_ms: the 95th percentile of the same.
    """

    parameters: int
    latency_p50_ms: float
    latency_p95_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return _COST.dump_python(self, mode="json")

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Cost:
        """Read back what :meth:`to_dict` gave."""
        return _COST.validate_python(value)


@dataclass(frozen=True)
class Slice:
    """The figures of a part of the test split, such as one corpus.

    Attributes:
        name: by what it was cut: "corpus" or "sex".
        value: the part: "ravdess", "female", "unknown".
        utterances: how many.
        speakers: how many known speakers.
        labels: how many of the labels occur in it; UAR is the mean over these.
        uar: with its interval over speakers.
        accuracy: with its interval over speakers.
    """

    name: str
    value: str
    utterances: int
    speakers: int
    labels: int
    uar: Estimate
    accuracy: Estimate


@dataclass(frozen=True)
class Scores:
    """Every figure of a model on a test split; intervals are over speakers.

    Attributes:
        labels: in the order of the model's outputs and of ``confusion``.
        utterances: how many were scored.
        speakers: how many known speakers they have.
        anonymous: how many utterances name no speaker; each counts as a speaker of its own in the intervals.
        uar: unweighted average recall, over the labels that occur.
        accuracy: share recognised.
        macro_f1: mean F1 of the labels that occur or were predicted.
        mcc: Matthews correlation, -1 .. 1.
        recall: of each label; None for a label without a test utterance.
        precision: of each label; None for a label never predicted.
        support: test utterances of each label.
        confusion: counts, rows true, columns predicted.
        calibration_error: expected calibration error, 0 .. 1.
        reliability: confidence against accuracy, by confidence.
        slices: by corpus and by sex.
        confidence: of the intervals, such as 0.95.
        bootstrap_samples: how many draws of speakers the intervals rest on.
    """

    labels: tuple[str, ...]
    utterances: int
    speakers: int
    anonymous: int
    uar: Estimate
    accuracy: Estimate
    macro_f1: Estimate
    mcc: Estimate
    recall: dict[str, Estimate | None]
    precision: dict[str, float | None]
    support: dict[str, int]
    confusion: tuple[tuple[int, ...], ...]
    calibration_error: float
    reliability: tuple[ReliabilityBin, ...]
    slices: tuple[Slice, ...]
    confidence: float
    bootstrap_samples: int

    @property
    def absent_labels(self) -> list[str]:
        """Labels without a test utterance: nothing is known about their recall."""
        return [label for label in self.labels if not self.support[label]]

    @property
    def worst(self) -> tuple[str, float]:
        """The label recognised least, of those that occur, and its recall."""
        return min(
            ((label, found.value) for label, found in self.recall.items() if found is not None),
            key=lambda item: item[1],
        )

    @property
    def chance_uar(self) -> float:
        """The UAR of always giving the same answer."""
        return 1 / (len(self.labels) - len(self.absent_labels))

    @property
    def caveats(self) -> list[str]:
        """What a reader must know before believing the figures, a sentence each; often none."""
        said = []
        if absent := self.absent_labels:
            said.append(
                f"No test recording is labelled {', '.join(absent)}: the recall there is not known, and UAR is the "
                f"mean over the other {len(self.labels) - len(absent)} labels."
            )
        if self.speakers + self.anonymous < FEWEST_SPEAKERS:
            said.append(
                f"The test split has {self.speakers + self.anonymous} speaker"
                f"{'s' if self.speakers + self.anonymous > 1 else ''}: too few for the intervals to mean anything."
            )
        if self.anonymous:
            said.append(
                f"{self.anonymous} of {self.utterances} test recordings name no speaker; each counts as a speaker of "
                "its own, which makes the intervals too narrow if one voice speaks several of them."
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return _SCORES.dump_python(self, mode="json")

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Scores:
        """Read back what :meth:`to_dict` gave."""
        return _SCORES.validate_python(value)


_SCORES: TypeAdapter[Scores] = TypeAdapter(Scores)
_COST: TypeAdapter[Cost] = TypeAdapter(Cost)


def score(predictions: Predictions, labels: Sequence[str], config: EvaluateConfig) -> Scores:
    """Score a model's predictions on the test split.

    Args:
        predictions: of every test utterance.
        labels: the model's labels, in the order of the columns of the probabilities.
        config: bootstrap, confidence, calibration bins, seed.

    Raises:
        ValueError: no predictions, a true label that the model does not have, or values that are no probabilities.
    """
    truth, probabilities = _checked(predictions, labels)
    predicted = probabilities.argmax(axis=1)
    confusion = metrics.confusion_matrix(truth, predicted, len(labels))
    resampled = resample(
        speaker_confusions(truth, predicted, predictions.speakers, len(labels)), config.bootstrap_samples, config.seed
    )
    table = metrics.reliability(probabilities, truth, config.calibration_bins)
    precision = metrics.precisions(confusion)
    return Scores(
        labels=tuple(labels),
        utterances=len(predictions),
        speakers=len({speaker for speaker in predictions.speakers if speaker is not None}),
        anonymous=sum(speaker is None for speaker in predictions.speakers),
        uar=estimate(metrics.uar, confusion, resampled, config.confidence),
        accuracy=estimate(metrics.accuracy, confusion, resampled, config.confidence),
        macro_f1=estimate(metrics.macro_f1, confusion, resampled, config.confidence),
        mcc=estimate(metrics.mcc, confusion, resampled, config.confidence),
        recall=dict(zip(labels, estimates(metrics.recalls, confusion, resampled, config.confidence), strict=True)),
        precision={
            label: float(value) if np.isfinite(value) else None for label, value in zip(labels, precision, strict=True)
        },
        support=dict(zip(labels, confusion.sum(axis=1).tolist(), strict=True)),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        calibration_error=metrics.expected_calibration_error(table),
        reliability=table,
        slices=_slices(predictions, truth, predicted, len(labels), config),
        confidence=config.confidence,
        bootstrap_samples=config.bootstrap_samples,
    )


def _checked(predictions: Predictions, labels: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    if not len(predictions):
        raise ValueError("there are no predictions to score")
    probabilities = np.asarray(predictions.probabilities, dtype=np.float64)
    if probabilities.shape[1] != len(labels):
        raise ValueError(f"probabilities of {probabilities.shape[1]} classes for {len(labels)} labels")
    # float32 softmax over a few classes sums to 1 within 1e-6; 1e-3 is room for half precision.
    if not (probabilities >= 0).all() or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise ValueError("probabilities must not be negative, and a row must sum to 1")
    index = {label: i for i, label in enumerate(labels)}
    if strange := sorted(set(predictions.truth) - set(index)):
        raise ValueError(f"true labels {strange} are not among the model's labels {list(labels)}")
    return np.array([index[label] for label in predictions.truth], dtype=np.int64), probabilities


def _slices(
    predictions: Predictions,
    truth: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    classes: int,
    config: EvaluateConfig,
) -> tuple[Slice, ...]:
    slices = []
    for name, column in (("corpus", predictions.corpora), ("sex", predictions.sexes)):
        values = np.array([value or UNKNOWN for value in column], dtype=object)
        for value in sorted(set(values)):
            rows = np.flatnonzero(values == value).tolist()
            speakers = [predictions.speakers[i] for i in rows]
            confusion = metrics.confusion_matrix(truth[rows], predicted[rows], classes)
            resampled = resample(
                speaker_confusions(truth[rows], predicted[rows], speakers, classes),
                config.bootstrap_samples,
                config.seed,
            )
            slices.append(
                Slice(
                    name=name,
                    value=value,
                    utterances=len(rows),
                    speakers=len({speaker for speaker in speakers if speaker is not None}),
                    labels=int((confusion.sum(axis=1) > 0).sum()),
                    uar=estimate(metrics.uar, confusion, resampled, config.confidence),
                    accuracy=estimate(metrics.accuracy, confusion, resampled, config.confidence),
                )
            )
    return tuple(slices)
