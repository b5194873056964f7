"""One step of a rollout: requests through the route and to each version, until every check is decided.

Requests go in rounds: some through the route, to see whom it sends them to, then some in pairs straight to the version
in production and to the challenger, one after the other and the other way round the next time. So a challenger with a
tenth of the route is known as well as the other, both answer under the same conditions, and neither is measured while
the rollout's own requests crowd the route.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from kubevox.config.rollout import RolloutConfig
from kubevox.deployment.backend import Endpoint, Endpoints
from kubevox.deployment.checks import (
    FAIL,
    UNDECIDED,
    Check,
    ErrorRate,
    Labels,
    agreement,
    foreign_versions,
    latency_p95,
    observed_share,
    prediction_mix,
    requests_for_share,
    uar_difference,
    uar_of,
)
from kubevox.deployment.record import Side, Slice, StepReport
from kubevox.deployment.traffic import Answer, Recording, Traffic
from kubevox.errors import DeploymentError

__all__ = ["Watched", "watch"]

ROUTE, STABLE, CANARY = "route", "stable", "canary"
_PAIRS = 16  # a round
_SLICES = 24  # of a step, for its curves
_ONCE = ("prediction_mix", "agreement", "uar")  # the probe's recordings tell no more when they are sent again
_BY_ROUTE = ("share", "route_errors")


@dataclass(frozen=True)
class Watched:
    """What is watched.

    Attributes:
        name: the model's, in the URL.
        labels: the model's.
        probe: recordings of validation speakers.
        endpoints: the ways to both versions.
        stable: the version in production; None where there is none yet.
        canary: the challenger's version.
        percent: of the route that the challenger is meant to get; 0: the route is not asked.
        timeout_s: for one request.
    """

    name: str
    labels: Sequence[str]
    probe: Sequence[Recording]
    endpoints: Endpoints
    stable: str | None
    canary: str
    percent: int
    timeout_s: float


def watch(watched: Watched, config: RolloutConfig, on_look: Callable[[StepReport], None] | None = None) -> StepReport:
    """Send requests until every check is decided and the step has lasted long enough, or its budget is spent.

    Args:
        watched: the versions, the ways to them, and what is sent.
        config: budgets and limits.
        on_look: told after each round how things stand.

    Raises:
        DeploymentError: the back end has no way to the challenger, or to the version in production.
    """
    if watched.endpoints.canary is None or (watched.stable is not None and watched.endpoints.stable is None):
        raise DeploymentError("the back end names no way straight to each of the versions; they cannot be compared")
    return asyncio.run(_Step(watched, config, on_look).run())


@dataclass
class _Step:
    watched: Watched
    config: RolloutConfig
    on_look: Callable[[StepReport], None] | None
    answers: dict[str, list[Answer]] = field(default_factory=lambda: {ROUTE: [], STABLE: [], CANARY: []})

    def __post_init__(self) -> None:
        self.started = time.time()
        self.clock = time.monotonic()
        self.errors = {way: ErrorRate(self.config.errors, self.config.confidence) for way in (ROUTE, CANARY)}
        self.chance = np.random.default_rng(self.config.seed)
        self.to_route, self.to_pairs = self._drawn(), self._drawn()
        self.judged = (0, [])  # type: tuple[int, list[Check]]
        rounds = math.ceil(max(len(self.watched.probe), self.config.latency_answers) / _PAIRS)
        asked = self.watched.percent / 100
        planned = requests_for_share(asked, self.config.share_margin, self.config.confidence)
        self.a_round = math.ceil(planned / rounds)

    async def run(self) -> StepReport:
        checks: list[Check] = []
        config, watched = self.config, self.watched
        async with Traffic(watched.name, watched.timeout_s, config.concurrency, config.requests_per_s) as traffic:
            while True:
                sent = self.sent
                await self._ask_route(traffic, checks)
                await self._ask_versions(traffic, checks)
                checks = self._judge()
                if self.on_look:
                    self.on_look(self._report(checks, slices=False))
                if any(check.outcome == FAIL for check in checks):
                    break
                lasted = time.monotonic() - self.clock
                if self.sent >= config.max_requests or lasted >= config.max_s:
                    break
                undecided = [check.name for check in checks if check.outcome == UNDECIDED]
                hopeless = self.passes > 0 and all(name in _ONCE for name in undecided)
                if lasted >= config.dwell_s and (hopeless or not undecided):
                    break
                if not undecided:
                    # What is left of the requests is spread over what is left of the time.
                    left = (config.max_requests - self.sent) / max(1, self.sent - sent)
                    await asyncio.sleep((config.dwell_s - lasted) / max(1.0, left))
        return self._report(checks, slices=True)

    @property
    def sent(self) -> int:
        return sum(map(len, self.answers.values()))

    @property
    def over(self) -> bool:
        """Whether no more is asked, even in the middle of a round: a server that hangs makes a round very long."""
        failed = any(errors.outcome == FAIL for errors in self.errors.values())
        return failed or time.monotonic() - self.clock >= self.config.max_s

    @property
    def passes(self) -> int:
        """How often the whole probe was sent to each version."""
        return len(self.answers[CANARY]) // len(self.watched.probe)

    async def _ask_route(self, traffic: Traffic, checks: Sequence[Check]) -> None:
        if not self.watched.percent or not _wanted(checks, _BY_ROUTE):
            return
        count = min(self.a_round, self.config.max_requests - self.sent)
        recordings = itertools.takewhile(lambda _: not self.over, itertools.islice(self.to_route, count))
        answers = await traffic.send(self.watched.endpoints.route, recordings)
        for answer in answers:
            self._count(ROUTE, answer)

    async def _ask_versions(self, traffic: Traffic, checks: Sequence[Check]) -> None:
        others = [check.name for check in checks if check.name not in _BY_ROUTE]
        if not _wanted(checks, others):
            return
        stable, canary = self.watched.endpoints.stable, self.watched.endpoints.canary
        assert canary is not None  # noqa: S101 - seen to by watch
        for recording in itertools.islice(self.to_pairs, _PAIRS):
            if self.sent >= self.config.max_requests or self.over:
                return
            if self.watched.stable is None or stable is None:
                (answer,) = await traffic.send(canary, [recording])
                self._count(CANARY, answer)
                continue
            ways: list[tuple[str, Endpoint]] = [(STABLE, stable), (CANARY, canary)]
            if len(self.answers[CANARY]) % 2:
                ways.reverse()
            pair = await traffic.pair(ways[0][1], ways[1][1], recording)
            for (way, _), answer in zip(ways, pair, strict=True):
                self._count(way, answer)

    def _drawn(self) -> Iterator[Recording]:
        """The probe over and over, in another order each time."""
        while True:
            for place in self.chance.permutation(len(self.watched.probe)):
                yield self.watched.probe[place]

    def _count(self, way: str, answer: Answer) -> None:
        self.answers[way].append(answer)
        if way in self.errors and answer.kind != "busy":
            self.errors[way].add(answer.kind == "failed")

    def _judge(self) -> list[Check]:
        watched, config = self.watched, self.config
        busy = {way: sum(answer.kind == "busy" for answer in self.answers[way]) for way in self.answers}
        checks = [self.errors[CANARY].check("error_rate", "the challenger", busy[CANARY])]
        if watched.percent:
            versions = _versions(self.answers[ROUTE])
            total = sum(versions.values())
            checks += [
                self.errors[ROUTE].check("route_errors", "the route", busy[ROUTE]),
                observed_share(
                    watched.percent / 100,
                    versions[watched.canary],
                    total,
                    config.share_margin,
                    config.confidence,
                    nameless=len(self.answers[ROUTE]) - total,
                ),
            ]
        checks.append(self._only_these_versions())
        if watched.stable is not None:
            took = {way: [a.seconds for a in self.answers[way] if a.kind == "answered"] for way in (STABLE, CANARY)}
            factor, first = config.max_latency_factor, config.latency_answers
            checks.append(latency_p95(took[STABLE], took[CANARY], factor, config.confidence, first))
        if self.judged[0] != self.passes:
            self.judged = self.passes, self._judge_labels()
        if self.judged[0]:
            return checks + self.judged[1]
        names = _ONCE if watched.stable is not None else _ONCE[-1:]
        return checks + [_waiting(name, len(self.answers[CANARY]), len(watched.probe)) for name in names]

    def _only_these_versions(self) -> Check:
        known = [version for version in (self.watched.stable, self.watched.canary) if version is not None]
        found = []
        for way, expected, where in (
            (ROUTE, known, "the route"),
            (STABLE, known[:1], "the version in production"),
            (CANARY, known[-1:], "the challenger"),
        ):
            if seen := _versions(self.answers[way]):
                found.append(foreign_versions(seen, expected, where))
        if wrong := [check for check in found if check.outcome == FAIL]:
            return wrong[0]
        return foreign_versions(sum(map(_versions, self.answers.values()), Counter()), known, "all servers")

    def _judge_labels(self) -> list[Check]:
        """What the probe's answers say; a recording counts by the first answer of each version that is a prediction."""
        config, index = self.config, {label: place for place, label in enumerate(self.watched.labels)}
        said: dict[str, dict[str, str]] = {STABLE: {}, CANARY: {}}
        for way, predicted in said.items():
            for answer in self.answers[way]:
                if answer.kind == "answered" and answer.label is not None:
                    predicted.setdefault(answer.utterance, answer.label)
        if unknown := sorted(set(said[CANARY].values()) - set(index)):
            explanation = f"the challenger answers with a label that it does not have: {unknown[0][:40]!r}"
            return [Check("prediction_mix", FAIL, None, None, None, None, len(said[CANARY]), explanation)]
        alone = self.watched.stable is None
        both = [
            recording
            for recording in self.watched.probe
            if recording.utterance in said[CANARY] and (alone or said[STABLE].get(recording.utterance) in index)
        ]
        if not both:
            names = _ONCE[-1:] if alone else _ONCE
            return [_waiting(name, 0, len(self.watched.probe)) for name in names]

        def indices(names: Sequence[str]) -> np.ndarray:
            return np.array([index[name] for name in names], dtype=np.int64)

        truth = indices([recording.label for recording in both])
        canary = indices([said[CANARY][recording.utterance] for recording in both])
        if alone:
            labels = Labels(truth, canary, canary, len(index))
            return [uar_of(labels, config.confidence, config.bootstrap_samples, config.seed)]
        stable = indices([said[STABLE][recording.utterance] for recording in both])
        labels = Labels(truth, stable, canary, len(index))
        draws = config.confidence, config.bootstrap_samples, config.seed
        return [
            prediction_mix(labels, config.max_mix_divergence, *draws),
            agreement(labels, config.min_agreement, config.confidence),
            uar_difference(labels, config.uar_margin, *draws),
        ]

    def _report(self, checks: Sequence[Check], slices: bool) -> StepReport:
        ended = time.time()
        return StepReport(
            percent=self.watched.percent,
            started=self.started,
            ended=ended,
            checks=tuple(checks),
            sides={way: _side(answers) for way, answers in self.answers.items() if answers},
            slices=self._slices(ended) if slices else (),
            undecided=self.config.undecided,
        )

    def _slices(self, ended: float) -> tuple[Slice, ...]:
        width = max(0.25, (ended - self.started) / _SLICES)
        placed: dict[int, dict[str, list[Answer]]] = {}
        for way, answers in self.answers.items():
            for answer in answers:
                number = int((answer.at - self.started) / width)
                placed.setdefault(number, {ROUTE: [], STABLE: [], CANARY: []})[way].append(answer)
        return tuple(
            Slice(
                at=self.started + (number + 0.5) * width,
                route=sum(_versions(ways[ROUTE]).values()),
                canary=_versions(ways[ROUTE])[self.watched.canary],
                p95_s={way: took for way in (STABLE, CANARY) if (took := _quantile(ways[way], 0.95)) is not None},
                requests={way: len(answers) for way, answers in ways.items()},
                failed={way: sum(a.kind == "failed" for a in answers) for way, answers in ways.items()},
            )
            for number, ways in sorted(placed.items())
        )


def _wanted(checks: Sequence[Check], names: Sequence[str]) -> bool:
    """Whether more answers are wanted for some of the checks, or for none in particular."""
    undecided = [check.name for check in checks if check.outcome == UNDECIDED]
    return not undecided or any(name in names for name in undecided)


def _waiting(name: str, asked: int, probe: int) -> Check:
    explanation = f"{name.replace('_', ' ')}: {asked} of {probe} recordings of the probe were answered so far"
    return Check(name, UNDECIDED, None, None, None, None, asked, explanation)


def _versions(answers: Sequence[Answer]) -> Counter[str]:
    """Answers by the version that they name; a prediction must name one, an error may."""
    named = (answer for answer in answers if answer.kind == "answered" or answer.version is not None)
    return Counter(answer.version or "none" for answer in named)


def _quantile(answers: Sequence[Answer], q: float) -> float | None:
    took = [answer.seconds for answer in answers if answer.kind == "answered"]
    return round(float(np.quantile(took, q)), 6) if took else None


def _side(answers: Sequence[Answer]) -> Side:
    return Side(
        requests=len(answers),
        busy=sum(answer.kind == "busy" for answer in answers),
        failed=sum(answer.kind == "failed" for answer in answers),
        p50_s=_quantile(answers, 0.5),
        p95_s=_quantile(answers, 0.95),
        versions=dict(sorted(_versions(answers).items())),
        labels=dict(sorted(Counter(answer.label for answer in answers if answer.label is not None).items())),
        problems=dict(Counter(answer.problem for answer in answers if answer.kind == "failed").most_common(5)),
    )
