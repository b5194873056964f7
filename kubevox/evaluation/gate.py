"""The gate: what a challenger must reach before it may serve.

Quality and cost are judged alike, every criterion is looked at, and every one that failed is named; a person who reads
the verdict knows the figure, the threshold and the configuration key behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from kubevox.config import GateConfig
from kubevox.evaluation.scores import Cost, Scores

__all__ = ["Criterion", "Figures", "Verdict", "comparison_problem", "judge"]

_NAMED_SPEAKERS = 5
# A figure that equals its threshold passes, also where the last bit of a subtraction says otherwise.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Figures:
    """What the gate judges.

    Attributes:
        uar: unweighted average recall on the test split.
        worst_recall: the lowest recall of a label that occurs there.
        worst_label: whose it is.
        calibration_error: expected calibration error.
        latency_p95_ms: 95th percentile of the time a recording takes, in milliseconds.
        parameters: the model's trainable numbers.
        absent_labels: labels without a test utterance, of whose recall nothing is known.
    """

    uar: float
    worst_recall: float
    worst_label: str
    calibration_error: float
    latency_p95_ms: float
    parameters: int
    absent_labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, scores: Scores, cost: Cost) -> Figures:
        """The figures of a scored model."""
        label, recall = scores.worst
        return cls(
            uar=scores.uar.value,
            worst_recall=recall,
            worst_label=label,
            calibration_error=scores.calibration_error,
            latency_p95_ms=cost.latency_p95_ms,
            parameters=cost.parameters,
            absent_labels=tuple(scores.absent_labels),
        )


@dataclass(frozen=True)
class Criterion:
    """One question that the gate asked.

    Attributes:
        name: ``uar``, ``worst_recall``, ``calibration_error``, ``latency_p95_ms``, ``parameters``,
            ``champion_comparable`` or ``uar_vs_champion``.
        value: the candidate's figure; None where the question is not about a figure.
        threshold: what it was held against; None likewise.
        direction: how the value must relate to the threshold.
        passed: whether it does.
        explanation: a sentence with the figures and the configuration key.
    """

    name: str
    value: float | None
    threshold: float | None
    direction: Literal[">=", "<=", "yes"]
    passed: bool
    explanation: str


@dataclass(frozen=True)
class Verdict:
    """Whether a challenger may be deployed, and why."""

    promote: bool
    criteria: tuple[Criterion, ...]

    @property
    def failed(self) -> list[Criterion]:
        """The criteria that do not hold."""
        return [criterion for criterion in self.criteria if not criterion.passed]

    def summary(self) -> list[str]:
        """The verdict in lines of text: the outcome, then every criterion that failed."""
        count = len(self.criteria)
        if self.promote:
            return [f"promoted: all {count} criteria hold"]
        lines = [f"rejected: {len(self.failed)} of {count} criteria do not hold"]
        return lines + [f"{criterion.name}: {criterion.explanation}" for criterion in self.failed]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return _VERDICT.dump_python(self, mode="json")

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Verdict:
        """Read back what :meth:`to_dict` gave."""
        return _VERDICT.validate_python(value)


_VERDICT: TypeAdapter[Verdict] = TypeAdapter(Verdict)


def comparison_problem(
    champion_labels: Sequence[str],
    champion_training_speakers: Collection[str],
    labels: Sequence[str],
    test_speakers: Collection[str],
    *,
    same_key: bool = True,
) -> str | None:
    """Why a champion must not be compared on this test split, or None where it may.

    A champion that has heard a test speaker would be judged on what it was trained on; one with other labels answers
    another question.

    Args:
        champion_labels: the labels that the champion knows.
        champion_training_speakers: ``corpus:id`` of the speakers it was trained or tuned on.
        labels: the candidate's labels.
        test_speakers: ``corpus:id`` of the test split's speakers.
        same_key: whether both lists hold pseudonyms under the same key; else they cannot be compared.
    """
    if not same_key:
        return "the champion's speakers are pseudonyms under another key: nobody can tell whether it has heard these"
    if shared := sorted(set(champion_training_speakers) & set(test_speakers)):
        named = ", ".join(shared[:_NAMED_SPEAKERS])
        more = f" and {len(shared) - _NAMED_SPEAKERS} more" if len(shared) > _NAMED_SPEAKERS else ""
        return (
            f"the champion was trained on {len(shared)} of the {len(set(test_speakers))} test speakers: {named}{more}"
        )
    if set(champion_labels) != set(labels):
        return (
            f"the champion answers with other labels ({', '.join(sorted(champion_labels))}) than the candidate "
            f"({', '.join(sorted(labels))})"
        )
    return None


def judge(
    candidate: Figures,
    gate: GateConfig,
    champion: Figures | None = None,
    problem: str | None = None,
) -> Verdict:
    """Judge a candidate: absolutely, and against the champion where there is one.

    Args:
        candidate: its figures on the test split.
        gate: the thresholds.
        champion: the champion's figures on the very same test split; None where there is no champion, or where it
            could not be compared.
        problem: why the champion cannot be compared, from :func:`comparison_problem`; the candidate then fails.

    Returns:
        The verdict, with every criterion.
    """
    absent = f"; there is no test recording of {', '.join(candidate.absent_labels)}"
    criteria = [
        _limit("uar", "UAR", candidate.uar, ">=", gate.min_uar, "min_uar"),
        _limit(
            "worst_recall",
            f"the lowest recall, of {candidate.worst_label},",
            candidate.worst_recall,
            ">=",
            gate.min_worst_recall,
            "min_worst_recall",
            absent if candidate.absent_labels else "",
        ),
        _limit(
            "calibration_error",
            "the expected calibration error",
            candidate.calibration_error,
            "<=",
            gate.max_calibration_error,
            "max_calibration_error",
        ),
        _limit(
            "latency_p95_ms",
            "the 95th percentile of the latency, in ms,",
            candidate.latency_p95_ms,
            "<=",
            gate.max_latency_p95_ms,
            "max_latency_p95_ms",
        ),
        _limit(
            "parameters", "the number of parameters", candidate.parameters, "<=", gate.max_parameters, "max_parameters"
        ),
    ]
    if champion is not None or problem is not None:
        criteria.append(
            Criterion(
                name="champion_comparable",
                value=None,
                threshold=None,
                direction="yes",
                passed=problem is None,
                explanation="the champion was trained on nobody who is named in the test split"
                if problem is None
                else f"comparison refused: {problem}",
            )
        )
    if champion is not None and problem is None:
        criteria.append(_against_champion(candidate, champion, gate))
    return Verdict(all(criterion.passed for criterion in criteria), tuple(criteria))


def _limit(
    name: str,
    what: str,
    value: float,
    direction: Literal[">=", "<="],
    threshold: float,
    key: str,
    remark: str = "",
) -> Criterion:
    # A figure that is no number compares as false, and so fails.
    if direction == ">=":
        passed, limit = value >= threshold - _ROUNDING, "minimum"
    else:
        passed, limit = value <= threshold + _ROUNDING, "maximum"
    figure, bound = _shown(value, threshold)
    explanation = f"{what} is {figure}, the {limit} {bound} (gate.{key}){remark}"
    return Criterion(name, value, threshold, direction, bool(passed), explanation)


def _against_champion(candidate: Figures, champion: Figures, gate: GateConfig) -> Criterion:
    threshold = champion.uar - gate.champion_margin
    passed = candidate.uar >= threshold - _ROUNDING
    figure, other = _shown(candidate.uar, champion.uar)
    relation = "not worse" if passed else "worse"
    explanation = (
        f"UAR is {figure}, the champion's {other}: {relation} by more than the margin of {gate.champion_margin:g} "
        "(gate.champion_margin)"
    )
    return Criterion("uar_vs_champion", candidate.uar, threshold, ">=", bool(passed), explanation)


def _shown(value: float, other: float) -> tuple[str, str]:
    """Both figures with as many decimals as it takes to tell them apart, three at least where they are small."""
    if isinstance(value, int):
        return f"{value:,}", f"{other:,}"
    decimals = 3 if max(abs(value), abs(other)) < 10 else 1
    while value != other and decimals < 9 and f"{value:.{decimals}f}" == f"{other:.{decimals}f}":
        decimals += 1
    return f"{value:.{decimals}f}", f"{other:.{decimals}f}"
