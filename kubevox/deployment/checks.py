"""What a rollout decides by: sequential and interval tests, each with its value, its interval and its limit.

A check passes or fails only where the answers so far can tell; otherwise it is undecided, and more answers are asked
for. So a single error does not cost a challenger its place, and no luck wins it.

Errors are tested as they come, by Wald's sequential probability ratio test (Wald 1945). Shares have Wilson's interval
(Wilson 1927), agreement the exact one of Clopper & Pearson (1934). The 95th percentile of the latency lies between two
order statistics, whatever the latency's distribution (David & Nagaraja 2003, section 7.1). The differences between two
versions on the same recordings are bootstrapped over the recordings, in pairs (Efron & Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kubevox.config.rollout import ErrorTest

__all__ = [
    "FAIL",
    "PASS",
    "UNDECIDED",
    "Check",
    "ErrorRate",
    "Labels",
    "Outcome",
    "agreement",
    "clopper_pearson",
    "foreign_versions",
    "jensen_shannon",
    "latency_p95",
    "observed_share",
    "prediction_mix",
    "quantile_interval",
    "requests_for_share",
    "uar_difference",
    "uar_of",
    "wilson",
]

Outcome = Literal["pass", "fail", "undecided"]
PASS: Outcome = "pass"  # noqa: S105 - no password
FAIL: Outcome = "fail"
UNDECIDED: Outcome = "undecided"

_FEWEST_FOR_SHARE = 100
_EARLY_CONFIDENCE = 0.999  # of a decision about a share before all of its planned requests are there
_SHOWN_VERSIONS = 3


@dataclass(frozen=True)
class Check:
    """One question about a challenger, and what is known of the answer.

    Attributes:
        name: ``error_rate``, ``route_errors``, ``share``, ``versions``, ``latency_p95``, ``prediction_mix``,
            ``agreement``, ``uar``; ``start`` and ``conformity`` before there is any traffic.
        outcome: pass, fail, or undecided.
        value: the figure; None where there is none.
        low: the interval's lower end; None where there is none.
        high: its upper end.
        limit: what the figure is held against.
        n: answers that it rests on.
        explanation: a sentence with the figures and the configuration's key.
    """

    name: str
    outcome: Outcome
    value: float | None
    low: float | None
    high: float | None
    limit: float | None
    n: int
    explanation: str


class ErrorRate:
    """Wald's test of an error rate, answer by answer.

    Having passed, it begins anew, so that a server that starts to fail later is still noticed; a failure is final.

    Args:
        test: the two rates and the chances of an error of either kind.
        confidence: of the interval that is shown beside the decision.
    """

    def __init__(self, test: ErrorTest, confidence: float) -> None:
        self._test, self._confidence = test, confidence
        self._failure = math.log(test.unacceptable / test.acceptable)
        self._success = math.log((1 - test.unacceptable) / (1 - test.acceptable))
        self._refuse = math.log((1 - test.miss) / test.false_alarm)
        self._accept = math.log(test.miss / (1 - test.false_alarm))
        self._ratio = 0.0
        self.n = self.failures = 0
        self.outcome: Outcome = UNDECIDED

    def add(self, failed: bool) -> None:
        """Count an answer."""
        self.n += 1
        self.failures += failed
        if self.outcome == FAIL:
            return
        self._ratio += self._failure if failed else self._success
        if self._ratio >= self._refuse:
            self.outcome = FAIL
        elif self._ratio <= self._accept:
            self.outcome, self._ratio = PASS, 0.0

    def check(self, name: str, who: str, busy: int = 0) -> Check:
        """The state of the test.

        Args:
            name: of the check.
            who: whose errors they are, for the explanation.
            busy: answers that said so, which count neither way.
        """
        low, high = clopper_pearson(self.failures, self.n, self._confidence)
        rate = self.failures / self.n if self.n else None
        explanation = (
            f"{who} failed {self.failures} of {self.n} requests"
            + (f" ({rate:.1%})" if self.failures and rate is not None else "")
            + f"; {self._test.unacceptable:.1%} are too many (deploy.rollout.errors)"
            + (f"; {busy} more were answered with busy" if busy else "")
        )
        return Check(name, self.outcome, rate, low, high, self._test.unacceptable, self.n, explanation)


def requests_for_share(asked: float, margin: float, confidence: float) -> int:
    """Requests after which a share as asked for is seen within the margin, with that confidence.

    About 1,100 for 3 points at one half and 95 %: n = p (1 - p) (z / margin)^2 (Cochran 1977, section 4.4). Of a small
    share more, so that none at all is no accident: (1 - p)^n.
    """
    planned = asked * (1 - asked) * (_z(confidence) / margin) ** 2
    seen = math.log(1 - _EARLY_CONFIDENCE) / math.log1p(-asked) if 0 < asked < 1 else 0.0
    return max(_FEWEST_FOR_SHARE, math.ceil(planned), math.ceil(seen))


def observed_share(asked: float, canary: int, total: int, margin: float, confidence: float, nameless: int = 0) -> Check:
    """Whether the route sends the challenger the share that was asked for.

    It passes when all planned requests are there and the observed share is within the margin, and fails when the
    interval and the margin have nothing in common; the latter also before, at a higher confidence.

    Args:
        asked: the share, 0 to 1.
        canary: answers through the route that were the challenger's.
        total: answers through the route that name a version.
        margin: allowed between both, 0 to 1.
        confidence: of the interval.
        nameless: further requests, whose answers name none: errors, and servers that were busy. Each may have been
            either version's, and the interval is as wide as that makes it.
    """
    planned = requests_for_share(asked, margin, confidence)
    sent = total + nameless
    sure = confidence if sent >= planned else max(confidence, _EARLY_CONFIDENCE)
    low, high = wilson(canary, sent, sure)[0], wilson(canary + nameless, sent, sure)[1]
    value = canary / total if total else None
    outcome: Outcome = UNDECIDED
    if low > asked + margin or high < asked - margin:
        outcome = FAIL
    elif sent >= planned and not canary + nameless:
        outcome = FAIL  # whatever the margin: nothing is not a small share
    elif (
        sent >= planned
        and canary
        and all(abs(count - asked * sent) <= margin * sent + 1e-9 for count in (canary, canary + nameless))
    ):
        outcome = PASS  # in whole answers: 0.47 + 0.03 is not 0.5 in binary
    if total and not canary:
        seen = f"the route sent the challenger none of {total} requests"
    else:
        seen = f"the route sent the challenger {canary} of {total} requests"
        seen += f" ({value:.1%})" if value is not None else ""
    seen += f"; the answers to {nameless} more name no version" if nameless else ""
    explanation = f"{seen}; asked are {asked:.0%} within {100 * margin:g} points (deploy.rollout.share_margin)"
    return Check("share", outcome, value, low, high, asked, total, explanation)


def foreign_versions(seen: dict[str, int], expected: Sequence[str], where: str = "the route") -> Check:
    """Whether every answer came from a version that is meant to be there.

    Args:
        seen: answers by the version that they name.
        expected: the versions that may be named.
        where: who answered, for the explanation.
    """
    total = sum(seen.values())
    foreign = {version: count for version, count in seen.items() if version not in expected}
    count = sum(foreign.values())
    if foreign:
        named = ", ".join(repr(version) for version in sorted(foreign)[:_SHOWN_VERSIONS])
        meant = " or ".join(expected)
        explanation = f"{count} of {total} answers of {where} came from version {named}, not from {meant}"
        return Check("versions", FAIL, count / total, None, None, 0.0, total, explanation)
    outcome: Outcome = PASS if total else UNDECIDED
    explanation = f"all {total} answers came from version {' or '.join(expected)}"
    return Check("versions", outcome, 0.0 if total else None, None, None, 0.0, total, explanation)


def latency_p95(
    stable: Sequence[float], canary: Sequence[float], factor: float, confidence: float, first_look: int
) -> Check:
    """Whether the challenger is slower than the version in production by more than a factor.

    Looked at are the first so many answers of each version, then twice as many, and so on: who looks after every answer
    finds, sooner or later, what chance alone will show. It fails where the challenger's lower bound exceeds the factor
    times the other's upper bound, and passes where its upper bound is within the factor of the other's lower bound.

    Args:
        stable: seconds of the answers of the version in production.
        canary: seconds of the challenger's.
        factor: between their 95th percentiles.
        confidence: of each one's interval.
        first_look: answers of each version before the first decision.

    Returns:
        The check; value, interval and limit are of the challenger's 95th percentile, in seconds.
    """
    n = min(len(stable), len(canary))
    looked = first_look * 2 ** int(math.log2(n / first_look)) if n >= first_look else 0
    if not looked:
        explanation = f"{n} latencies of each version, {first_look} are needed (deploy.rollout.latency_answers)"
        return Check("latency_p95", UNDECIDED, None, None, None, None, n, explanation)
    theirs, ours = np.asarray(stable[:looked]), np.asarray(canary[:looked])
    other_low, other_high = quantile_interval(theirs, 0.95, confidence)
    low, high = quantile_interval(ours, 0.95, confidence)
    value, other = float(np.quantile(ours, 0.95)), float(np.quantile(theirs, 0.95))
    outcome: Outcome = UNDECIDED
    if low > factor * other_high:
        outcome = FAIL
    elif high <= factor * other_low:
        outcome = PASS
    explanation = (
        f"the challenger's 95th percentile is {_ms(value)} [{_ms(low)}, {_ms(high)}], that of the version in "
        f"production {_ms(other)} [{_ms(other_low)}, {_ms(other_high)}]; {factor:g} times as much is allowed "
        "(deploy.rollout.max_latency_factor)"
    )
    bounds = [end if math.isfinite(end) else None for end in (low, high)]  # JSON knows no infinity
    return Check("latency_p95", outcome, value, bounds[0], bounds[1], factor * other, looked, explanation)


@dataclass(frozen=True)
class Labels:
    """What two versions said of the same recordings; class indices, all of one length.

    Attributes:
        truth: the recordings' labels.
        stable: what the version in production said.
        canary: what the challenger said.
        classes: how many labels there are.
    """

    truth: npt.NDArray[np.int64]
    stable: npt.NDArray[np.int64]
    canary: npt.NDArray[np.int64]
    classes: int

    def __len__(self) -> int:
        return len(self.truth)


def prediction_mix(labels: Labels, limit: float, confidence: float, samples: int, seed: int) -> Check:
    """Whether both versions give the labels in much the same proportions.

    The divergence of two samples is too large on average even where they come from one distribution, and that of two
    resamples more so; the interval is moved back by what the resamples show of it.

    Args:
        labels: what both said.
        limit: of the Jensen-Shannon divergence, in bits.
        confidence: of the interval.
        samples: bootstrap draws of recordings.
        seed: of the draws.
    """
    n, k = len(labels), labels.classes
    joint = np.zeros((k, k))
    np.add.at(joint, (labels.stable, labels.canary), 1)
    value = float(jensen_shannon(joint.sum(1), joint.sum(0)))
    # Half a recording more, of two versions that know nothing of each other: few that agree are no certainty.
    smoothed = joint / n + np.outer(joint.sum(1), joint.sum(0)) / n**2 * (0.5 / n)
    chance = np.random.default_rng(seed)
    drawn = chance.multinomial(n, (smoothed / smoothed.sum()).ravel(), size=samples).reshape(samples, k, k)
    divergences = jensen_shannon(drawn.sum(2), drawn.sum(1))
    low, high = _percentiles(divergences - (divergences.mean() - value), value, confidence)
    low = max(low, 0.0)
    explanation = (
        f"the labels' proportions differ by {value:.3f} bits of Jensen-Shannon divergence from those of the version in "
        f"production, on {n} recordings; {limit:g} are allowed (deploy.rollout.max_mix_divergence)"
    )
    return Check("prediction_mix", _below(low, high, limit), value, low, high, limit, n, explanation)


def agreement(labels: Labels, limit: float, confidence: float) -> Check:
    """Whether both versions give enough recordings the same label.

    Args:
        labels: what both said.
        limit: the least share of the recordings.
        confidence: of the interval.
    """
    n = len(labels)
    same = int((labels.stable == labels.canary).sum())
    low, high = clopper_pearson(same, n, confidence)
    explanation = (
        f"both versions give {same} of {n} recordings the same label ({same / n:.1%}); {limit:.0%} are the least "
        "(deploy.rollout.min_agreement)"
    )
    return Check("agreement", _above(low, high, limit), same / n, low, high, limit, n, explanation)


def uar_difference(labels: Labels, margin: float, confidence: float, samples: int, seed: int) -> Check:
    """Whether the challenger's unweighted average recall is lower than that of the version in production.

    Recordings are drawn within their label, so that the probe stays balanced; labels without a recording do not count.

    Args:
        labels: what both said.
        margin: by which it may be lower.
        confidence: of the interval.
        samples: bootstrap draws of recordings.
        seed: of the draws.

    Returns:
        The check; value, interval and limit are of the difference, challenger less production.
    """
    chance = np.random.default_rng(seed)
    present = [label for label in range(labels.classes) if (labels.truth == label).any()]
    recalls: list[tuple[float, float]] = []
    drawn = np.zeros(samples)
    for label in present:
        heard = labels.truth == label
        right, before = labels.canary[heard] == label, labels.stable[heard] == label
        recalls.append((float(right.mean()), float(before.mean())))
        won, lost, size = int((right & ~before).sum()), int((~right & before).sum()), int(heard.sum())
        # Half a recording won and half a one lost more, over all labels: few that agree are no certainty.
        extra = 0.5 / len(present)
        weights = np.array([lost + extra, size - won - lost, won + extra])
        counts = chance.multinomial(size, weights / weights.sum(), size=samples)
        drawn += (counts[:, 2] - counts[:, 0]) / size / len(present)
    canary, stable = (float(np.mean(side)) for side in zip(*recalls, strict=True))
    value = canary - stable
    low, high = _percentiles(drawn, value, confidence)
    explanation = (
        f"the challenger's UAR on {len(labels)} recordings of validation speakers is {canary:.3f}, that of the version "
        f"in production {stable:.3f}: a difference of {value:+.3f} [{low:+.3f}, {high:+.3f}]; {margin:g} less is "
        "allowed (deploy.rollout.uar_margin)"
    )
    return Check("uar", _above(low, high, -margin), value, low, high, -margin, len(labels), explanation)


def uar_of(labels: Labels, confidence: float, samples: int, seed: int) -> Check:
    """Whether a challenger that nobody can be compared with does no worse than guessing.

    Args:
        labels: what it said; ``stable`` is not looked at.
        confidence: of the interval.
        samples: bootstrap draws of recordings, within their label.
        seed: of the draws.

    Returns:
        The check; it fails where the whole interval lies below chance.
    """
    generator = np.random.default_rng(seed)
    present = [label for label in range(labels.classes) if (labels.truth == label).any()]
    recalls, drawn = [], np.zeros(samples)
    for label in present:
        right = labels.canary[labels.truth == label] == label
        recalls.append(float(right.mean()))
        # As if one recording more had been recognised half: few that agree are no certainty.
        p = (right.sum() + 0.5) / (len(right) + 1)
        drawn += generator.binomial(len(right), p, size=samples) / len(right) / len(present)
    value, chance = float(np.mean(recalls)), 1 / labels.classes
    low, high = _percentiles(drawn, value, confidence)
    explanation = (
        f"the challenger's UAR on {len(labels)} recordings of validation speakers is {value:.3f} [{low:.3f}, "
        f"{high:.3f}]; guessing gives {chance:.3f}"
    )
    return Check("uar", FAIL if high < chance else PASS, value, low, high, chance, len(labels), explanation)


def wilson(count: int, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share; 0 to 1 where nothing was counted."""
    if not n:
        return 0.0, 1.0
    z, p = _z(confidence), count / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the formula gives the end itself, but for the last bit.
    return (0.0 if count == 0 else max(0.0, centre - half)), (1.0 if count == n else min(1.0, centre + half))


def clopper_pearson(count: int, n: int, confidence: float) -> tuple[float, float]:
    """The exact interval of a share; 0 to 1 where nothing was counted."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return low, high


def quantile_interval(values: npt.ArrayLike, q: float, confidence: float) -> tuple[float, float]:
    """Two order statistics between which a quantile lies, whatever the distribution.

    Args:
        values: the sample.
        q: which quantile, such as 0.95.
        confidence: that it lies between them, at least.

    Returns:
        The bounds; infinite where the sample is too small to bound it on that side.
    """
    from scipy.special import bdtr

    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n, tail = len(ordered), (1 - confidence) / 2
    ranks = np.arange(n + 1)
    # below[r]: the chance that r values or fewer lie below the quantile.
    below = bdtr(ranks.astype(np.float64), n, q)
    # X(l) > quantile when fewer than l values lie below it, X(u) < quantile when u or more do; ranks from 1.
    lower = int(np.searchsorted(below, tail, side="right"))
    upper = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    return (
        float(ordered[lower - 1]) if lower >= 1 else -math.inf,
        float(ordered[upper - 1]) if upper <= n else math.inf,
    )


def jensen_shannon(first: npt.ArrayLike, second: npt.ArrayLike) -> Any:
    """The Jensen-Shannon divergence of two distributions, in bits: 0 where they are equal, 1 where they share nothing.

    Args:
        first: counts or probabilities [..., K].
        second: likewise.

    Returns:
        float [...] (Lin 1991).
    """
    p, q = (np.asarray(side, dtype=np.float64) for side in (first, second))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    middle = (p + q) / 2
    return np.maximum(0.0, _entropy(middle) - (_entropy(p) + _entropy(q)) / 2)


def _entropy(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return -(p * np.log2(np.where(p > 0, p, 1.0))).sum(-1)


def _percentiles(drawn: npt.NDArray[np.float64], value: float, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return min(float(low), value), max(float(high), value)


def _below(low: float, high: float, limit: float) -> Outcome:
    return PASS if high <= limit else FAIL if low > limit else UNDECIDED


def _above(low: float, high: float, limit: float) -> Outcome:
    return PASS if low >= limit else FAIL if high < limit else UNDECIDED


def _z(confidence: float) -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + confidence) / 2))


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if math.isfinite(seconds) else "unknown"
