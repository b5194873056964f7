"""How sure a figure is: bootstrap intervals over speakers.

Utterances of one speaker resemble each other, so a bootstrap over utterances gives intervals that are far too narrow
for the question that matters, how the model does on a speaker it has never heard. Speakers are drawn instead, with
replacement, each with all of its utterances (the cluster bootstrap; Davison & Hinkley 1997, section 3.8), and the
interval is between the percentiles of the figure (Efron & Tibshirani 1993, chapter 13).

A resample is a sum of speakers' confusion matrices, so that thousands cost one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kubevox.evaluation.metrics import confusion_matrix

__all__ = ["FEWEST_SPEAKERS", "Estimate", "estimate", "estimates", "resample", "speaker_confusions"]

FEWEST_SPEAKERS = 3
"""With fewer speakers an interval over speakers says next to nothing."""

Statistic = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval, ``low <= value <= high``."""

    value: float
    low: float
    high: float


def speaker_confusions(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, speakers: Sequence[str | None], classes: int
) -> npt.NDArray[np.int64]:
    """One confusion matrix a speaker; an utterance whose speaker is not known is a speaker of its own.

    Args:
        truth: int [N], class indices.
        predicted: int [N], class indices.
        speakers: N names or None.
        classes: C.

    Returns:
        int64 [S, C, C].

    Raises:
        ValueError: lengths differ, or an index is outside 0 .. C - 1.
    """
    true, guess = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    confusion_matrix(true, guess, classes)  # refuses what does not fit
    if len(speakers) != len(true):
        raise ValueError(f"{len(speakers)} speakers for {len(true)} utterances")
    number: dict[str | int, int] = {}
    index = [number.setdefault(i if speaker is None else speaker, len(number)) for i, speaker in enumerate(speakers)]
    place = (np.asarray(index, dtype=np.int64) * classes + true) * classes + guess
    return np.bincount(place, minlength=len(number) * classes * classes).reshape(-1, classes, classes)


def resample(confusions: npt.NDArray[np.int64], samples: int, seed: int) -> npt.NDArray[np.int64]:
    """Confusion matrices of test sets drawn anew: as many speakers as there are, with replacement.

    Args:
        confusions: int [S, C, C], one matrix a speaker.
        samples: B, how many test sets.
        seed: of the draws; the order of the speakers does not matter.

    Returns:
        int64 [B, C, C].
    """
    speakers, classes = len(confusions), confusions.shape[-1]
    # Speakers with equal matrices are interchangeable: drawing among the different ones, in proportion, is the same
    # draw, and stays small where thousands of utterances name no speaker.
    kinds, sizes = np.unique(confusions.reshape(speakers, -1), axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(speakers, sizes / speakers, size=samples)
    # In float64 the product goes through BLAS; counts stay far below 2^53 and are exact.
    return np.rint(draws.astype(np.float64) @ kinds.astype(np.float64)).astype(np.int64).reshape(-1, classes, classes)


def estimate(
    statistic: Statistic,
    confusion: npt.NDArray[np.int64],
    resampled: npt.NDArray[np.int64],
    confidence: float = 0.95,
) -> Estimate:
    """A figure of the whole test set, with its interval.

    Args:
        statistic: [..., C, C] to [...], such as :func:`kubevox.evaluation.metrics.uar`.
        confusion: int [C, C], of the whole test set.
        resampled: int [B, C, C], from :func:`resample`.
        confidence: the interval's, such as 0.95.
    """
    return _estimate(float(statistic(confusion)), statistic(resampled), confidence)


def estimates(
    statistic: Statistic,
    confusion: npt.NDArray[np.int64],
    resampled: npt.NDArray[np.int64],
    confidence: float = 0.95,
) -> list[Estimate | None]:
    """As :func:`estimate`, for a figure of each class; None for a class where it is not defined.

    Args:
        statistic: [..., C, C] to [..., C], such as :func:`kubevox.evaluation.metrics.recalls`.
        confusion: int [C, C], of the whole test set.
        resampled: int [B, C, C], from :func:`resample`.
        confidence: the interval's, such as 0.95.
    """
    values, drawn = statistic(confusion), statistic(resampled)
    return [
        _estimate(float(value), drawn[:, i], confidence) if np.isfinite(value) else None
        for i, value in enumerate(values)
    ]


def _estimate(value: float, drawn: npt.NDArray[np.float64], confidence: float) -> Estimate:
    defined = drawn[np.isfinite(drawn)]
    if not defined.size:  # a class of one speaker whom no draw met
        return Estimate(value, value, value)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    # With few speakers a percentile interval can miss the very figure it is about; it is widened to it then.
    return Estimate(value, min(float(low), value), max(float(high), value))
