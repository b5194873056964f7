"""How well the corpus can be told from what a model hears, and the label from the corpus.

Corpora differ in rooms, microphones and codecs. Where labels and corpora go together, a model may learn the channel
instead of the label, and a test split of the same corpora cannot show it. A linear probe on the model's own input says
how recognisable the channel is (Alain & Bengio 2017 probe layers in this way; here it is the input), and what knowing
the corpus alone, without listening, would score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from kubevox.config import EvaluateConfig
from kubevox.evaluation import metrics
from kubevox.evaluation.intervals import Estimate, estimate, resample, speaker_confusions

__all__ = ["CorpusProbe", "LabelProbe", "Sample", "choose", "pooled", "probe_corpora"]

_MOST_ROWS = 1000  # to fit on, and as many to score: what more rows would add is less than the interval
_RIDGE = 0.01  # of the rows' number; features have unit variance
_FEWEST_ROWS = 4  # of a corpus, to fit on and to score

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """An utterance as the probe knows it."""

    id: str
    corpus: str
    label: str
    speaker: str | None


@dataclass(frozen=True)
class LabelProbe:
    """The probe among the utterances of one label only, where labels cannot help.

    Attributes:
        label: whose utterances.
        corpora: that are told apart.
        uar: unweighted average recall of the corpora on test utterances, with its interval over speakers.
    """

    label: str
    corpora: tuple[str, ...]
    uar: Estimate

    @property
    def chance(self) -> float:
        """The UAR of always naming the same corpus."""
        return 1 / len(self.corpora)


@dataclass(frozen=True)
class CorpusProbe:
    """How recognisable the corpora are.

    Attributes:
        corpora: that are told apart; those with recordings enough on both sides.
        fitted_on: training and validation utterances that the probe was fitted on.
        scored_on: test utterances.
        uar: unweighted average recall of the corpora on the test utterances, with its interval over speakers.
        within_label: the same for each label that at least two corpora have.
        label_uar_from_corpus: the UAR, on the labels, of whoever knows the corpus and does not listen: the answer is
            the label of whose training utterances the corpus has the largest share.
        chance_of_label: the UAR, on the labels, of always giving the same answer.
    """

    corpora: tuple[str, ...]
    fitted_on: int
    scored_on: int
    uar: Estimate
    within_label: tuple[LabelProbe, ...]
    label_uar_from_corpus: float
    chance_of_label: float

    @property
    def chance(self) -> float:
        """The UAR of always naming the same corpus."""
        return 1 / len(self.corpora)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return _PROBE.dump_python(self, mode="json")

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CorpusProbe:
        """Read back what :meth:`to_dict` gave."""
        return _PROBE.validate_python(value)


_PROBE: TypeAdapter[CorpusProbe] = TypeAdapter(CorpusProbe)


def choose(samples: Sequence[Sample], seed: int, most: int = _MOST_ROWS) -> list[Sample]:
    """At most ``most`` samples, drawn at random, each corpus and label having as even a part as it can fill."""
    if len(samples) <= most:
        return list(samples)
    order = np.random.default_rng(seed).permutation(len(samples)).tolist()
    seen: Counter[tuple[str, str]] = Counter()
    turns: list[tuple[int, int, int]] = []
    for i in order:
        kind = (samples[i].corpus, samples[i].label)
        turns.append((seen[kind], len(turns), i))
        seen[kind] += 1
    return [samples[i] for i in sorted(i for _, _, i in sorted(turns)[:most])]


def pooled(values: npt.NDArray[np.floating]) -> Floats:
    """One vector an utterance: mean and standard deviation over time, where the features have a time.

    Args:
        values: float [N, D] (used as they are) or [N, ..., frames].

    Returns:
        float64 [N, F].
    """
    if values.ndim == 2:
        return values.astype(np.float64)
    flat = values.reshape(len(values), -1, values.shape[-1])
    return np.concatenate([flat.mean(axis=-1), flat.std(axis=-1)], axis=1).astype(np.float64)


def probe_corpora(
    fitted: Sequence[Sample],
    tested: Sequence[Sample],
    features: Callable[[Sequence[str]], npt.NDArray[np.floating]],
    config: EvaluateConfig,
) -> CorpusProbe | None:
    """Fit a linear probe for the corpus on training and validation utterances, and score it on test utterances.

    The probe is ridge regression onto the corpora (a classifier in closed form; Hastie, Tibshirani & Friedman 2009,
    section 4.2), each corpus weighing alike, on features of zero mean and unit variance.

    Args:
        fitted: training and validation utterances.
        tested: test utterances.
        features: from ids to the model's input, float [N, ...]; asked for those only that are used.
        config: bootstrap, confidence and seed.

    Returns:
        The figures, or None where there are no two corpora with recordings enough on both sides.
    """
    corpora = _common(fitted, tested)
    if len(corpora) < 2:
        return None
    chosen = [choose([one for one in some if one.corpus in corpora], config.seed) for some in (fitted, tested)]
    fit, test = chosen
    values = pooled(features([one.id for one in (*fit, *test)]))
    x, x_test = values[: len(fit)], values[len(fit) :]
    within = []
    for label in sorted({one.label for one in fit}):
        rows = [i for i, one in enumerate(fit) if one.label == label]
        test_rows = [i for i, one in enumerate(test) if one.label == label]
        some, others = [fit[i] for i in rows], [test[i] for i in test_rows]
        found = _common(some, others)
        if len(found) >= 2:
            keep = [k for k, one in zip(rows, some, strict=True) if one.corpus in found]
            keep_test = [k for k, one in zip(test_rows, others, strict=True) if one.corpus in found]
            uar = _scored(
                x[keep], [fit[k] for k in keep], x_test[keep_test], [test[k] for k in keep_test], found, config
            )
            within.append(LabelProbe(label, tuple(found), uar))
    by_corpus, chance = _label_from_corpus(fitted, tested)
    return CorpusProbe(
        tuple(corpora),
        len(fit),
        len(test),
        _scored(x, fit, x_test, test, corpora, config),
        tuple(within),
        by_corpus,
        chance,
    )


def _common(fitted: Sequence[Sample], tested: Sequence[Sample]) -> list[str]:
    """The corpora with enough utterances on both sides."""
    counts = [Counter(one.corpus for one in some) for some in (fitted, tested)]
    return sorted(corpus for corpus in counts[0] if all(count[corpus] >= _FEWEST_ROWS for count in counts))


def _scored(
    x: Floats,
    fit: Sequence[Sample],
    x_test: Floats,
    test: Sequence[Sample],
    corpora: Sequence[str],
    config: EvaluateConfig,
) -> Estimate:
    place = {corpus: i for i, corpus in enumerate(corpora)}
    y = np.array([place[one.corpus] for one in fit])
    truth = np.array([place[one.corpus] for one in test])
    said = _ridge(x, y, x_test, len(corpora))
    confusion = metrics.confusion_matrix(truth, said, len(corpora))
    by_speaker = speaker_confusions(truth, said, [one.speaker for one in test], len(corpora))
    resampled = resample(by_speaker, config.bootstrap_samples, config.seed)
    return estimate(metrics.uar, confusion, resampled, config.confidence)


def _ridge(x: Floats, y: npt.NDArray[np.int64], x_test: Floats, classes: int) -> npt.NDArray[np.int64]:
    """The class of each test row; every class weighs alike."""
    weights = (len(y) / (classes * np.bincount(y, minlength=classes)))[y][:, None]
    mean = np.average(x, axis=0, weights=weights[:, 0])
    spread = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights[:, 0]))
    spread[spread < 1e-9 * (1 + np.abs(mean))] = np.inf  # a feature that does not vary says nothing
    z, z_test = (x - mean) / spread, (x_test - mean) / spread
    z, targets = np.sqrt(weights) * z, np.sqrt(weights) * (np.eye(classes)[y] - 1 / classes)
    penalty = _RIDGE * len(y)
    if len(y) < z.shape[1]:  # the same solution, from the smaller of two systems of equations
        slopes = z.T @ np.linalg.solve(z @ z.T + penalty * np.eye(len(y)), targets)
    else:
        slopes = np.linalg.solve(z.T @ z + penalty * np.eye(z.shape[1]), z.T @ targets)
    return (z_test @ slopes).argmax(axis=1)


def _label_from_corpus(fitted: Sequence[Sample], tested: Sequence[Sample]) -> tuple[float, float]:
    """The labels' UAR of the best answer to each corpus' name, and of always giving the same answer."""
    labels = sorted({one.label for one in (*fitted, *tested)})
    counts: dict[str, Counter[str]] = {}
    for one in fitted:
        counts.setdefault(one.corpus, Counter())[one.label] += 1
    overall = sum(counts.values(), Counter())

    def answer(corpus: str) -> int:
        # By the share of a label and not its number: every label counts alike in UAR.
        known = counts.get(corpus, overall)
        return max(range(len(labels)), key=lambda i: known[labels[i]] / max(1, overall[labels[i]]))

    said = {corpus: answer(corpus) for corpus in {one.corpus for one in tested}}
    truth = [labels.index(one.label) for one in tested]
    confusion = metrics.confusion_matrix(truth, [said[one.corpus] for one in tested], len(labels))
    return float(metrics.uar(confusion)), 1 / len({one.label for one in tested})
