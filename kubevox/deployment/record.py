"""What is kept of a rollout: every state it was in, every step's figures and checks, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from kubevox.deployment.checks import FAIL, PASS, UNDECIDED, Check, Outcome

__all__ = ["Conformity", "RolloutRecord", "Side", "Slice", "State", "StepReport", "Transition", "Verdict"]

State = Literal[
    "registered",  # the version is known; nothing has been done yet
    "restoring",  # the champion is brought up in a back end that has nothing in production
    "candidate",  # the challenger is being brought up
    "ready",  # it is up, without a share of the route
    "conforming",  # it answered as it was evaluated
    "probing",  # the first version of all: asked directly, for there is no route yet
    "standing",  # the challenger is the version in production already
    "shifting",  # its share of the route is being changed
    "watching",  # the share is in force, and both versions are watched
    "passed",  # every check of the step passed
    "promoting",  # it is being made the version in production
    "promoted",  # it is that
    "champion",  # the registry says so too
    "taking_back",  # it is being removed
    "rolled_back",  # it is gone
    "recorded",  # the record is written: the end
]
"""Where a rollout is. Each state but the last names what is to be done next, or is being done."""

Verdict = Literal["promoted", "rolled_back", "failed"]


@dataclass(frozen=True)
class Transition:
    """A state that a rollout came to.

    Attributes:
        at: when, in seconds since 1970.
        state: which.
        percent: of the route that the challenger is meant to have.
        note: why, where that is not plain.
    """

    at: float
    state: State
    percent: int
    note: str = ""


@dataclass(frozen=True)
class Side:
    """What became of the requests that went one way.

    Attributes:
        requests: sent.
        busy: answered 429 or 503 with Retry-After.
        failed: not answered with a prediction.
        p50_s: median of the answers' latency, in seconds; None where there were none.
        p95_s: 95th percentile.
        versions: answers by the version that they name.
        labels: predictions by label.
        problems: failures by what was wrong.
    """

    requests: int
    busy: int
    failed: int
    p50_s: float | None
    p95_s: float | None
    versions: dict[str, int]
    labels: dict[str, int]
    problems: dict[str, int]


@dataclass(frozen=True)
class Slice:
    """A short stretch of a step, for the curves.

    Attributes:
        at: its middle, in seconds since 1970.
        route: answers through the route.
        canary: those that were the challenger's.
        p95_s: of the direct answers, by version's role (stable, canary).
        requests: by way (route, stable, canary).
        failed: by way.
    """

    at: float
    route: int
    canary: int
    p95_s: dict[str, float]
    requests: dict[str, int]
    failed: dict[str, int]


@dataclass(frozen=True)
class StepReport:
    """One step: what was sent, and what was made of it.

    Attributes:
        percent: of the route that was asked for; 0 for a challenger that was asked directly, and alone.
        started: in seconds since 1970.
        ended: likewise.
        checks: all of them, as they stood at the end.
        sides: by way: route, stable, canary.
        slices: the step's course.
        undecided: what becomes of an undecided check (``deploy.rollout.undecided``).
    """

    percent: int
    started: float
    ended: float
    checks: tuple[Check, ...]
    sides: dict[str, Side]
    slices: tuple[Slice, ...] = ()
    undecided: Literal["fail", "pass"] = "fail"

    @property
    def broken(self) -> list[Check]:
        """The checks that cost the challenger its place: those that failed, or else those that are undecided."""
        failed = [check for check in self.checks if check.outcome == FAIL]
        if failed or self.undecided == "pass":
            return failed
        return [check for check in self.checks if check.outcome == UNDECIDED]

    @property
    def outcome(self) -> Outcome:
        """Pass or fail: what the step comes to."""
        return FAIL if self.broken else PASS

    @property
    def requests(self) -> int:
        """All that was sent."""
        return sum(side.requests for side in self.sides.values())

    def check(self, name: str) -> Check:
        """The check of that name."""
        return next(check for check in self.checks if check.name == name)


@dataclass(frozen=True)
class Conformity:
    """How the served answers compare with the evaluated ones.

    Attributes:
        recordings: test recordings that were sent, over each protocol.
        largest_difference: between a served and an evaluated probability.
        tolerance: what is allowed.
        protocols: over which they were sent.
    """

    recordings: int
    largest_difference: float
    tolerance: float
    protocols: tuple[str, ...] = ("v1", "v2")


@dataclass(frozen=True)
class RolloutRecord:
    """A rollout from its beginning to its end.

    Attributes:
        model: the registered model's name.
        version: the challenger's.
        bundle: the challenger's bundle.
        evaluation: by which it was accepted; "" where that is not known.
        previous: the version in production before, or None.
        backend: where the servers run.
        new: whether the version was registered by this rollout.
        outcome: promoted, rolled_back or failed.
        criterion: the check that decided against it, or what failed; "" where it was promoted.
        reason: the outcome in words.
        started: in seconds since 1970.
        finished: likewise.
        transitions: every state, in order.
        conformity: of the last comparison with the evaluation; None where it did not come to that.
        steps: every step that was watched to its end, in order.
        synthetic: whether the challenger was trained on machines' voices.
        config: ``deploy.rollout`` as it was.
    """

    model: str
    version: str
    bundle: str
    evaluation: str
    previous: str | None
    backend: str
    new: bool
    outcome: Verdict
    criterion: str
    reason: str
    started: float
    finished: float
    transitions: tuple[Transition, ...]
    conformity: Conformity | None
    steps: tuple[StepReport, ...]
    synthetic: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return _RECORD.dump_python(self, mode="json")

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> RolloutRecord:
        """Read back what :meth:`to_dict` gave."""
        return _RECORD.validate_python(value)


_RECORD: TypeAdapter[RolloutRecord] = TypeAdapter(RolloutRecord)
