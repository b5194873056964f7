"""Figures of merit of a classifier, all from confusion matrices and probabilities.

A confusion matrix counts utterances: rows are the true classes, columns the predicted ones. Every function takes
``[..., C, C]``, so that the thousands of matrices of a bootstrap go through the same code as the one that is reported.

A class without a true utterance has no recall, and a class that was never predicted no precision: those are NaN here,
never 0 or 1, and means run over what is defined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "ReliabilityBin",
    "accuracy",
    "confusion_matrix",
    "expected_calibration_error",
    "f1_scores",
    "macro_f1",
    "mcc",
    "precisions",
    "recalls",
    "reliability",
    "uar",
]

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def confusion_matrix(truth: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> Counts:
    """How often each true class was predicted as each class.

    Args:
        truth: int [N], class indices.
        predicted: int [N], class indices.
        classes: C.

    Returns:
        int64 [C, C], rows true, columns predicted.

    Raises:
        ValueError: lengths differ, or an index is outside 0 .. C - 1.
    """
    true, guess = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if true.ndim != 1 or true.shape != guess.shape:
        raise ValueError(f"truth {true.shape} and predictions {guess.shape} must be two lists of the same length")
    for name, values in (("truth", true), ("predictions", guess)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"{name}: a class index is outside 0 to {classes - 1}")
    return np.bincount(true * classes + guess, minlength=classes * classes).reshape(classes, classes)


def accuracy(confusion: npt.ArrayLike) -> Floats:
    """Share of utterances whose class was recognised; NaN without utterances.

    Args:
        confusion: [..., C, C].

    Returns:
        float [...].
    """
    matrix = _matrix(confusion)
    return _ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum(axis=(-2, -1)))


def recalls(confusion: npt.ArrayLike) -> Floats:
    """Share of each class' utterances that were recognised; NaN for a class without any.

    Args:
        confusion: [..., C, C].

    Returns:
        float [..., C].
    """
    matrix = _matrix(confusion)
    return _ratio(_hits(matrix), matrix.sum(axis=-1))


def precisions(confusion: npt.ArrayLike) -> Floats:
    """Share of the predictions of each class that were right; NaN for a class never predicted.

    Args:
        confusion: [..., C, C].

    Returns:
        float [..., C].
    """
    matrix = _matrix(confusion)
    return _ratio(_hits(matrix), matrix.sum(axis=-2))


def f1_scores(confusion: npt.ArrayLike) -> Floats:
    """Harmonic mean of recall and precision of each class; NaN for a class neither true nor predicted.

    Args:
        confusion: [..., C, C].

    Returns:
        float [..., C].
    """
    matrix = _matrix(confusion)
    return _ratio(2 * _hits(matrix), matrix.sum(axis=-1) + matrix.sum(axis=-2))


def uar(confusion: npt.ArrayLike) -> Floats:
    """Unweighted average recall: the mean of the recalls of the classes that are there.

    The figure of the Interspeech emotion challenges (Schuller et al. 2009), also called balanced accuracy: the share of
    a class does not matter, so always answering the commonest class earns 1 / C.

    Args:
        confusion: [..., C, C].

    Returns:
        float [...], NaN without utterances.
    """
    return _mean_of_defined(recalls(confusion))


def macro_f1(confusion: npt.ArrayLike) -> Floats:
    """Mean F1 of the classes that are true or predicted at least once.

    Args:
        confusion: [..., C, C].

    Returns:
        float [...], NaN without utterances.
    """
    return _mean_of_defined(f1_scores(confusion))


def mcc(confusion: npt.ArrayLike) -> Floats:
    """Matthews correlation coefficient for C classes: the R_K of Gorodkin (2004), in -1 .. 1.

    0 where it is not defined (one class only, in the truth or in the predictions), as is the convention.

    Args:
        confusion: [..., C, C].

    Returns:
        float [...].
    """
    matrix = _matrix(confusion)
    true, guess, total = matrix.sum(axis=-1), matrix.sum(axis=-2), matrix.sum(axis=(-2, -1))
    covariance = np.trace(matrix, axis1=-2, axis2=-1) * total - (true * guess).sum(axis=-1)
    spread = (total**2 - (guess**2).sum(axis=-1)) * (total**2 - (true**2).sum(axis=-1))
    root = np.sqrt(spread)
    return np.divide(covariance, root, out=np.zeros_like(root), where=root > 0)


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of similar confidence.

    Attributes:
        low: the bin holds confidences above this ...
        high: ... up to and including this.
        count: how many predictions fell into it.
        confidence: their mean confidence, None where there are none.
        accuracy: the share of them that was right, None where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def reliability(probabilities: npt.ArrayLike, truth: npt.ArrayLike, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Confidence against accuracy in bins of equal width over (0, 1].

    The confidence of a prediction is the probability of the class it names.

    Args:
        probabilities: float [N, C].
        truth: int [N], class indices.
        bins: how many bins.
    """
    values, true = np.asarray(probabilities, dtype=np.float64), np.asarray(truth, dtype=np.int64)
    confidence = values.max(axis=1)
    right = values.argmax(axis=1) == true
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.digitize(confidence, edges[1:-1], right=True)
    count = np.bincount(place, minlength=bins)
    mean_confidence = _ratio(np.bincount(place, weights=confidence, minlength=bins), count)
    mean_accuracy = _ratio(np.bincount(place, weights=right, minlength=bins), count)
    return tuple(
        ReliabilityBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            count=int(count[i]),
            confidence=float(mean_confidence[i]) if count[i] else None,
            accuracy=float(mean_accuracy[i]) if count[i] else None,
        )
        for i in range(bins)
    )


def expected_calibration_error(table: tuple[ReliabilityBin, ...]) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by their counts (Guo et al. 2017, eq. 3).

    Args:
        table: as :func:`reliability` gives it.

    Returns:
        0 (calibrated) .. 1; NaN without predictions.
    """
    total = sum(entry.count for entry in table)
    if not total:
        return float("nan")
    gaps = (
        entry.count * abs(entry.confidence - entry.accuracy)
        for entry in table
        if entry.confidence is not None and entry.accuracy is not None
    )
    return sum(gaps) / total


def _matrix(confusion: npt.ArrayLike) -> Floats:
    matrix = np.asarray(confusion, dtype=np.float64)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"a confusion matrix is [..., C, C], not {list(matrix.shape)}")
    return matrix


def _hits(matrix: Floats) -> Floats:
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    """``part / whole``, NaN where the whole is 0."""
    top, bottom = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan), where=bottom > 0)


def _mean_of_defined(values: Floats) -> Floats:
    return _ratio(np.nansum(values, axis=-1), np.isfinite(values).sum(axis=-1))
