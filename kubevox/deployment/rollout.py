"""From an accepted bundle to the champion, step by step, or back.

The bundle is registered and served beside the version in production; its answers must equal the evaluator's. Then it
gets a share of the route, and a larger one, and all of it; at each step both versions are watched, and the first check
that does not hold takes the challenger back. Whatever happens before the last step, the old champion stays.

A rollout is a small state machine over a journal: each state's action may be done twice, and is done again by whoever
finds it last in the journal. So a rollout that was killed at any moment is carried on, or taken back, by running it
again. What is in force is what the back end says, not what the journal remembers; and the registry's alias moves when
the back end has moved, not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from kubevox import storage
from kubevox.config import DeployConfig
from kubevox.deployment.backend import Backend, ChallengerError, Deployed, ServedVersion
from kubevox.deployment.checks import PASS, UNDECIDED, requests_for_share
from kubevox.deployment.conformity import Reference, compare
from kubevox.deployment.journal import Ending, Entry, Journal, OvertakenError, Start
from kubevox.deployment.record import Conformity, RolloutRecord, State, StepReport, Transition, Verdict
from kubevox.deployment.timeline import render_timeline
from kubevox.deployment.traffic import Recording, Traffic
from kubevox.deployment.watch import Watched, watch
from kubevox.errors import DeploymentError, KubevoxError, RegistryError, StorageError
from kubevox.progress import ProgressBar, note
from kubevox.provenance import content_hash

__all__ = ["Challenger", "Registrar", "Rollout", "RolloutEvent", "deploy", "open_backend", "roll_out"]

_CONFIRMED_BY = 20  # requests through the route, of a first version
_FINISHING: tuple[State, ...] = ("promoted", "champion", "taking_back", "rolled_back")
"""States that a rollout does not come back from: whoever finds it in one only finishes it."""


@dataclass(frozen=True)
class Rollout:
    """What happened.

    Attributes:
        model: the registered model's name.
        version: the challenger's.
        champion: the version that is champion now; None where there is none.
        previous: the version that was in production before, or None.
        outcome: ``promoted`` or ``rolled_back``.
        criterion: the check that cost the challenger its place; "" where it was promoted.
        reason: the outcome in words.
        recordings: how many test recordings were compared with the evaluation; 0 where it did not come to that.
        largest_difference: between a served and an evaluated probability.
        registered: whether this rollout registered the version (False: it was known).
        uri: the record in the store.
        timeline: the page beside it.
    """

    model: str
    version: str
    champion: str | None
    previous: str | None
    outcome: Verdict
    criterion: str
    reason: str
    recordings: int
    largest_difference: float
    registered: bool
    uri: str
    timeline: str


@dataclass(frozen=True)
class RolloutEvent:
    """What somebody who watches a rollout is told.

    Attributes:
        kind: ``state``: it came to a state; ``look``: a step's figures, some times a second; ``end``.
        at: when, in seconds since 1970.
        version: the challenger's.
        state: where the rollout is.
        percent: of the route that the challenger is meant to have.
        note: why it came to the state, where that is not plain.
        report: the step so far (``look``), or as it ended (``state`` passed or taking_back).
        record: the whole rollout (``end``).
    """

    kind: Literal["state", "look", "end"]
    at: float
    version: str
    state: State
    percent: int
    note: str = ""
    report: StepReport | None = None
    record: RolloutRecord | None = None


@dataclass(frozen=True)
class Challenger:
    """Who wants to be champion, and what it is asked.

    Attributes:
        served: its version.
        name: the model's, in the URL.
        labels: the model's.
        probe: recordings of validation speakers, sent through the route and to each version.
        reference: test recordings with what the evaluator made of them; None: nothing is compared.
        evaluation: by which it was accepted.
        new: whether it has just been registered.
        synthetic: whether it was trained on machines' voices.
    """

    served: ServedVersion
    name: str
    labels: Sequence[str]
    probe: Sequence[Recording]
    reference: Reference | None = None
    evaluation: str = ""
    new: bool = False
    synthetic: bool = False


class Registrar(Protocol):
    """Whoever keeps the books of who is champion."""

    def crown(self, version: ServedVersion) -> None:
        """Say that the version is champion."""

    def conclude(self, record: RolloutRecord, uri: str) -> None:
        """Note at the challenger's version how its rollout ended."""


def deploy(
    bundle_uri: str,
    evaluation_uri: str,
    run_id: str,
    name: str,
    config: DeployConfig,
    store: str,
    tracking_uri: str,
    *,
    backend: Backend | None = None,
    on_event: Callable[[RolloutEvent], None] | None = None,
) -> Rollout:
    """Roll an accepted bundle out: it becomes the champion, or is taken back.

    Args:
        bundle_uri: the challenger.
        evaluation_uri: its evaluation; it must have been accepted.
        run_id: the MLflow run that trained it.
        name: the registered model's name.
        config: the back end, the steps, the checks, the time-outs.
        store: where the journal, the record and its timeline go.
        tracking_uri: MLflow's.
        backend: where the servers run; None: as the configuration says. It is closed in any case.
        on_event: told what happens, as it happens.

    Raises:
        DeploymentError: the evaluation rejected the bundle or is of another, another process rolls this model out, or
            something that the rollout needs does not answer. What is in production is then what it was; run again to
            carry on. A challenger that is taken back is no error.
    """
    from kubevox.data.splits import load_split
    from kubevox.deployment.conformity import draw_probe, reference
    from kubevox.deployment.registration import known_or_registered
    from kubevox.evaluation.run import load_evaluation
    from kubevox.models.bundle import load_bundle
    from kubevox.registry import Registry

    evaluation = load_evaluation(evaluation_uri)
    if evaluation.bundle_uri != bundle_uri:
        raise DeploymentError(f"evaluation {evaluation_uri} is of another bundle ({evaluation.bundle_uri})")
    if not evaluation.verdict.promote:
        raise DeploymentError(f"bundle {bundle_uri} was rejected by the gate; it is not deployed")
    registry = Registry(tracking_uri)
    registrar = _Mlflow(registry, name)
    with contextlib.ExitStack() as held:
        if backend is not None:
            held.callback(backend.close)
        journal = held.enter_context(Journal(store, name, config.rollout.lease_s))
        held.enter_context(_ended_as_by_ctrl_c())
        version = registry.find(name, bundle_uri)
        try:
            spec, split = load_bundle(bundle_uri).spec, load_split(evaluation.split_uri)
            version, new = known_or_registered(registry, name, spec, evaluation, split, run_id)
            challenger = Challenger(
                served=ServedVersion(version.version, bundle_uri),
                name=spec.task,
                labels=split.labels,
                probe=draw_probe(split, spec.limits, config.rollout.probe_recordings, config.rollout.seed),
                reference=reference(evaluation, split, config.check_clips, config.tolerance),
                evaluation=evaluation_uri,
                new=new,
                synthetic=spec.synthetic,
            )
            champion = registrar.champion()
            if backend is None:
                backend = open_backend(config, spec.task, store, tracking_uri, champion)
                held.callback(backend.close)
            record, uri = roll_out(challenger, champion, backend, journal, config, store, registrar, on_event)
        except Exception as error:
            if version is not None and not journal.unfinished:
                with contextlib.suppress(RegistryError):
                    registry.tag(version, {"rollout": "failed", "rollout_reason": _said(error)[:500]})
            raise
    crowned = registrar.champion()
    compared = record.conformity
    return Rollout(
        model=name,
        version=record.version,
        champion=crowned.version if crowned else None,
        previous=record.previous,
        outcome=record.outcome,
        criterion=record.criterion,
        reason=record.reason,
        recordings=compared.recordings if compared else 0,
        largest_difference=compared.largest_difference if compared else 0.0,
        registered=record.new,
        uri=uri,
        timeline=_page_of(uri),
    )


def open_backend(
    config: DeployConfig, task: str, store: str, tracking_uri: str, champion: ServedVersion | None
) -> Backend:
    """The back end that the configuration names.

    Args:
        config: the ``deploy`` section.
        task: the model's name in the URL.
        store: the store.
        tracking_uri: MLflow's; a local platform lies beside its database.
        champion: the registry's, for a back end that was never told of a version in production.
    """
    if config.backend == "kserve":
        from kubevox.deployment.kserve import KServeBackend

        return KServeBackend(config.kserve, task, config.start_timeout_s, config.request_timeout_s)
    from kubevox.deployment.local import LocalBackend, platform_folder

    work_dir = platform_folder(task, tracking_uri, store).path.parent.parent
    return LocalBackend(task, work_dir, config.start_timeout_s, config.request_timeout_s, stable=champion)


def roll_out(
    challenger: Challenger,
    champion: ServedVersion | None,
    backend: Backend,
    journal: Journal,
    config: DeployConfig,
    store: str,
    registrar: Registrar,
    on_event: Callable[[RolloutEvent], None] | None = None,
) -> tuple[RolloutRecord, str]:
    """Bring a challenger to production, or take it back; carry on where the journal says that somebody was killed.

    Args:
        challenger: who wants to be champion.
        champion: the registry's; brought up first where the back end has nothing in production.
        backend: where the servers run.
        journal: the model's, entered.
        config: the steps, the checks, the time-outs.
        store: where the record and its timeline go.
        registrar: who is told of the outcome.
        on_event: told what happens, as it happens.

    Returns:
        The record, and its URI.

    Raises:
        DeploymentError: something that the rollout needs did not answer; the challenger was taken back where that was
            possible, and otherwise is by the next run.
    """
    return _Machine(challenger, champion, backend, journal, config, store, registrar, on_event).run()


class _Machine:
    def __init__(
        self,
        challenger: Challenger,
        champion: ServedVersion | None,
        backend: Backend,
        journal: Journal,
        config: DeployConfig,
        store: str,
        registrar: Registrar,
        on_event: Callable[[RolloutEvent], None] | None,
    ) -> None:
        self.challenger, self.champion, self.backend, self.journal = challenger, champion, backend, journal
        self.deploy, self.config, self.store = config, config.rollout, store
        self.registrar, self.on_event = registrar, on_event
        self.actions: dict[State, Callable[[Entry], None]] = {
            "registered": self._registered,
            "restoring": self._restoring,
            "candidate": self._candidate,
            "ready": self._ready,
            "conforming": self._conforming,
            "probing": self._probing,
            "standing": self._standing,
            "shifting": self._shifting,
            "watching": self._watching,
            "passed": self._passed,
            "promoting": self._promoting,
            "promoted": self._promoted,
            "champion": self._write_record,
            "taking_back": self._taking_back,
            "rolled_back": self._write_record,
        }

    def run(self) -> tuple[RolloutRecord, str]:
        if (finished := self._settle_last()) is not None:
            return finished
        if not self.journal.unfinished:
            self._begin()
        record, uri = self._to_the_end()
        if record.outcome == "failed":
            raise DeploymentError(record.reason)
        return record, uri

    # --- where to begin -------------------------------------------------------------------------------------------

    def _settle_last(self) -> tuple[RolloutRecord, str] | None:
        """Deal with a rollout that did not come to its end: finish it, or leave it to be carried on.

        Returns:
            The end of this challenger's rollout, where it only had to be finished; None where there is more to do.
        """
        if not self.journal.unfinished:
            return None
        last, deployed = self.journal.rollout[-1], self.backend.observe()
        theirs, ours = self._start.challenger, self.challenger.served
        if last.event == "promoting" and deployed.stable == theirs:
            self._enter("promoted", 100, note="the back end had moved before the rollout was interrupted")
        if self._state in _FINISHING:
            note(f"finishing the rollout of version {theirs.version}, which was interrupted")
        elif theirs != ours:
            self._end("failed", "superseded", f"it was interrupted, and version {ours.version} is rolled out now")
        elif time.time() - max(last.at, self.journal.last_sign) > self.config.resume_s:
            self._end("failed", "expired", f"it was interrupted more than {self.config.resume_s:g} s ago")
        elif (changed := self._production_changed(deployed)) is not None:
            self._end("failed", "production", changed)
        else:
            note(f"carrying on with the rollout of version {theirs.version}, which was interrupted")
            self._reconcile(last, deployed)
            return None
        record, uri = self._to_the_end()
        return (record, uri) if theirs == ours and record.outcome != "failed" else None

    def _production_changed(self, deployed: Deployed) -> str | None:
        expected = self._start.stable
        if deployed.stable in (expected, None) or deployed.stable == self._start.challenger:
            return None
        before = f"version {expected.version}" if expected else "nothing"
        return f"{before} was in production when it began, and now version {deployed.stable.version} is"

    def _reconcile(self, last: Entry, deployed: Deployed) -> None:
        """Make the journal say what the back end says."""
        started = self._start
        if deployed.stable == started.challenger:
            if started.stable != started.challenger:
                self._enter("promoted", note="the back end has it in production")
        elif deployed.stable is None and started.stable is not None:
            if last.event not in ("registered", "restoring"):
                self._enter("restoring", note="the back end has nothing in production any more")
        elif deployed.canary != started.challenger:
            if last.event not in ("registered", "restoring", "candidate"):
                self._enter("candidate", note="the challenger was no longer there")
        elif last.event == "watching" and deployed.canary_percent != last.percent:
            self._enter("shifting", last.percent, note=f"the route gave it {deployed.canary_percent} %")

    def _begin(self) -> None:
        deployed = self.backend.observe()
        if deployed.canary is not None and deployed.canary != self.challenger.served:
            note(
                f"version {deployed.canary.version} is beside the one in production, and nobody watches it: taken back"
            )
            self.backend.take_back()
        start = Start(
            challenger=self.challenger.served,
            stable=deployed.stable if deployed.stable is not None else self._restorable(),
            evaluation=self.challenger.evaluation,
            backend=self.backend.name,
            new=self.challenger.new,
            synthetic=self.challenger.synthetic,
            config=self.config.model_dump(mode="json"),
        )
        self._tell(self.journal.begin(start))

    def _restorable(self) -> ServedVersion | None:
        """The registry's champion, where the back end has nothing in production and it can be brought up."""
        champion = self.champion
        if champion is None or champion == self.challenger.served:
            return None
        try:
            if storage.exists(storage.join(champion.bundle_uri, "bundle.json")):
                return champion
        except StorageError:
            pass
        note(f"the champion, version {champion.version}, has lost its bundle: nothing is in production to compare with")
        return None

    # --- the states -----------------------------------------------------------------------------------------------

    def _to_the_end(self) -> tuple[RolloutRecord, str]:
        while (last := self.journal.rollout[-1]).event != "recorded":
            try:
                self.actions[last.event](last)  # type: ignore[index]
            except BaseException as error:
                self._take_back_after(error, last)
                raise
        record = self._record()
        self._emit(RolloutEvent("end", time.time(), record.version, "recorded", last.percent, "", None, record))
        return record, last.uri

    def _registered(self, last: Entry) -> None:
        started = self._start
        if started.stable == started.challenger:
            self._enter("standing")
        elif started.stable is not None and self.backend.observe().stable is None:
            self._enter("restoring", note="the back end has nothing in production, the registry has")
        else:
            self._enter("candidate")

    def _restoring(self, last: Entry) -> None:
        champion = self._start.stable
        assert champion is not None  # noqa: S101 - else there would be nothing to restore
        if self.backend.observe().stable != champion:
            self.backend.start_canary(champion)
            self.backend.promote()
        self._enter("candidate" if champion != self._start.challenger else "standing")

    def _candidate(self, last: Entry) -> None:
        try:
            self.backend.start_canary(self._start.challenger)
        except ChallengerError as error:
            self.backend.observe()  # raises where it is the place that does not answer, and not the challenger
            self._end("rolled_back", "start", f"the challenger did not start: {error}")
            return
        self._enter("ready")

    def _ready(self, last: Entry) -> None:
        endpoint, expected = self.backend.endpoints().canary, self.challenger.reference
        if endpoint is None:
            self._end("rolled_back", "start", "the challenger was ready, and is not there any more")
            return
        if expected is None:
            self._enter("conforming", note="not compared with an evaluation")
            return
        served = self._start.challenger
        try:
            found = compare(endpoint, self.challenger.name, served.version, expected, self.deploy.request_timeout_s)
        except DeploymentError as error:
            self._end("rolled_back", "conformity", str(error))
            return
        self._enter("conforming", conformity=found)
        note(
            f"version {served.version} is up and answers {found.recordings} test recordings as the evaluator did "
            f"(largest difference {found.largest_difference:.1g})"
        )

    def _conforming(self, last: Entry) -> None:
        if self._start.stable is None:
            self._enter("probing", note="there is no version in production to compare with")
        else:
            self._enter("shifting", self._next_step(0))

    def _standing(self, last: Entry) -> None:
        endpoint, expected = self.backend.endpoints().stable, self.challenger.reference
        served, found = self._start.challenger, None
        if endpoint is not None and expected is not None:
            try:
                found = compare(endpoint, self.challenger.name, served.version, expected, self.deploy.request_timeout_s)
            except DeploymentError as error:
                reason = f"version {served.version} is in production already, and {error}"
                self._enter("rolled_back", ending=Ending("failed", "conformity", reason))
                return
        self._enter("promoted", conformity=found, note="it was in production already")

    def _probing(self, last: Entry) -> None:
        report = self._watch(0)
        if report is not None and not report.broken:
            self._enter("promoting", 100, report=report)

    def _shifting(self, last: Entry) -> None:
        self.backend.set_canary_percent(last.percent)
        self._enter("watching", last.percent)

    def _watching(self, last: Entry) -> None:
        report = self._watch(last.percent)
        if report is not None and not report.broken:
            self._enter("passed", last.percent, report=report)
            passed, share = sum(check.outcome == PASS for check in report.checks), report.check("share")
            seen = f"{share.value:.1%} of {share.n} answers" if share.value is not None else "nothing"
            note(f"{last.percent} %: {passed} of {len(report.checks)} checks passed; observed share {seen}")

    def _passed(self, last: Entry) -> None:
        if last.percent < 100:
            self._enter("shifting", self._next_step(last.percent))
        else:
            self._enter("promoting", 100)

    def _promoting(self, last: Entry) -> None:
        self.backend.promote()
        self._enter("promoted", 100)

    def _promoted(self, last: Entry) -> None:
        version = self._start.challenger
        in_force = self.backend.observe().stable
        if in_force != version:
            found = f"version {in_force.version}" if in_force else "nothing"
            reason = f"version {version.version} was promoted, and the back end has {found} in production now"
            self._enter("rolled_back", ending=Ending("failed", "production", reason))
            return
        if self._start.stable is None:
            self._confirm_route()
        try:
            self.registrar.crown(version)
        except RegistryError as error:
            raise RegistryError(
                f"version {version.version} is in production, but is not champion in the registry yet: {error}; run "
                "again when it answers"
            ) from None
        self._enter("champion", 100, ending=Ending("promoted", "", self._why_promoted()))

    def _taking_back(self, last: Entry) -> None:
        started, ending = self._start, last.ending
        self.backend.take_back()
        # A promotion that was broken off may have come into force all the same: then there is nothing to take back to.
        failed = ending is not None and ending.outcome == "failed"
        if failed and started.challenger != started.stable and self.backend.observe().stable == started.challenger:
            self._enter("promoted", 100, note="the back end has it in production")
            return
        self._enter("rolled_back", ending=ending)

    def _write_record(self, last: Entry) -> None:
        record = self._record()
        data = json.dumps(record.to_dict(), indent=2).encode()
        uri = storage.join(self.store, "rollouts", f"{content_hash(data)}.json")
        # The page first: whoever finds the record finds the page.
        storage.write_bytes(_page_of(uri), render_timeline(record).encode())
        storage.write_bytes(uri, data)
        self.registrar.conclude(record, uri)
        self._enter("recorded", last.percent, uri=uri)

    # --- what the states share ------------------------------------------------------------------------------------

    @property
    def _start(self) -> Start:
        start = self.journal.rollout[0].start
        assert start is not None  # noqa: S101 - Journal.begin writes it
        return start

    def _next_step(self, percent: int) -> int:
        return next((step for step in self.config.steps if step > percent), 100)

    def _watch(self, percent: int) -> StepReport | None:
        """Watch a step; where it costs the challenger its place, that is entered too."""
        started, endpoints = self._start, self.backend.endpoints()
        if endpoints.canary is None:
            self._end("rolled_back", "start", "the challenger was ready, and is not there any more")
            return None
        stable = started.stable.version if started.stable else None
        watched = Watched(
            name=self.challenger.name,
            labels=self.challenger.labels,
            probe=self.challenger.probe,
            endpoints=endpoints,
            stable=stable,
            canary=started.challenger.version,
            percent=percent,
            timeout_s=self.deploy.request_timeout_s,
        )
        direct = max(len(watched.probe), self.config.latency_answers) * (1 if stable is None else 2)
        planned = requests_for_share(percent / 100, self.config.share_margin, self.config.confidence) if percent else 0
        with ProgressBar("deploy", direct + planned, "requests") as bar:

            def look(report: StepReport) -> None:
                undecided = sum(check.outcome == UNDECIDED for check in report.checks)
                more = max(0, min(report.requests, bar.total - 1) - bar.done)  # how many it takes shows at the end
                shown = {"at": f"{percent} %", "undecided": undecided}
                bar.update(more, **shown)
                event = RolloutEvent("look", report.ended, watched.canary, self._state, percent, report=report)
                self._emit(event)

            report = watch(watched, self.config, look)
        if report.broken:
            if self.backend.endpoints().route != endpoints.route:
                raise DeploymentError(
                    f"the route {endpoints.route.url} ended while it was watched, which tells nothing of version "
                    f"{watched.canary}; run again"
                )
            self._end_step(report)
        return report

    def _confirm_route(self) -> None:
        """Whether clients reach the first version of all: there was no share of the route to watch."""
        route, version = self.backend.endpoints().route, self._start.challenger.version

        async def ask() -> list[str]:
            probe = [self.challenger.probe[i % len(self.challenger.probe)] for i in range(_CONFIRMED_BY)]
            name, timeout_s = self.challenger.name, self.deploy.request_timeout_s
            async with Traffic(name, timeout_s, self.config.concurrency, self.config.requests_per_s) as traffic:
                answers = await traffic.send(route, probe)
            return [a.problem or f"{a.kind} by version {a.version}" for a in answers if a.version != version]

        if wrong := asyncio.run(ask()):
            raise DeploymentError(
                f"version {version} is in production, but {len(wrong)} of {_CONFIRMED_BY} requests through the route "
                f"({route.url}) were not answered by it: {wrong[0]}; run again when the route is mended"
            )

    def _end_step(self, report: StepReport) -> None:
        broken = report.broken
        budget = f"{self.config.max_requests} requests and {self.config.max_s:g} s"
        said = "; ".join(f"{check.name}: {check.explanation}" for check in broken)
        if broken[0].outcome == UNDECIDED:
            said += f"; undecided within {budget}, which counts as failed (deploy.rollout.undecided)"
        where = f"at {report.percent} %" if report.percent else "asked directly"
        self._end("rolled_back", ", ".join(check.name for check in broken), f"{where}: {said}", report)

    def _end(self, outcome: Verdict, criterion: str, reason: str, report: StepReport | None = None) -> None:
        self._enter("taking_back", ending=Ending(outcome, criterion, reason), report=report, note=reason)
        note(f"version {self._start.challenger.version} is taken back: {reason}")

    def _take_back_after(self, error: BaseException, last: Entry) -> None:
        """Leave production as it was when something went wrong that is not the challenger's to answer for."""
        if isinstance(error, OvertakenError) or self.journal.rollout[-1].event in _FINISHING:
            return
        try:
            if last.event == "promoting" and self.backend.observe().stable == self._start.challenger:
                return  # it has moved: the next run carries on from there
            try:
                ending = Ending("failed", last.event, _said(error))
                self._enter("taking_back", ending=ending, note=ending.reason)
            except StorageError:
                self.backend.take_back()  # without a journal too: nobody watches the challenger any more
                return
            while (now := self.journal.rollout[-1]).event != "recorded":
                self.actions[now.event](now)  # type: ignore[index]
        except KubevoxError as trouble:
            note(f"version {self._start.challenger.version} could not be taken back ({trouble}); run again to do so")

    def _why_promoted(self) -> str:
        started, steps = self._start, [report for report in self._reports() if report.percent]
        if started.stable == started.challenger:
            return f"version {started.challenger.version} was in production already and answers as it was evaluated"
        if steps:
            shares = ", ".join(f"{report.percent}" for report in steps)
            return f"every check passed at {shares} % of the route"
        return "there was no version in production; the challenger, asked directly, passed every check"

    def _reports(self) -> list[StepReport]:
        return [entry.report for entry in self.journal.rollout if entry.report is not None]

    def _record(self) -> RolloutRecord:
        """The rollout so far; the same after an interruption as without one, from the journal alone."""
        entries, started = self.journal.rollout, self._start
        last = next(entry for entry in reversed(entries) if entry.event in ("champion", "rolled_back"))
        ending = last.ending or Ending("failed", "", "the journal does not say how it ended")
        compared: list[Conformity] = [entry.conformity for entry in entries if entry.conformity is not None]
        return RolloutRecord(
            model=self.journal.model,
            version=started.challenger.version,
            bundle=started.challenger.bundle_uri,
            evaluation=started.evaluation,
            previous=started.stable.version if started.stable else None,
            backend=started.backend,
            new=started.new,
            outcome=ending.outcome,
            criterion=ending.criterion,
            reason=ending.reason,
            started=entries[0].at,
            finished=last.at,
            transitions=tuple(_transition(entry) for entry in entries if entry.number <= last.number),
            conformity=compared[-1] if compared else None,
            steps=tuple(self._reports()),
            synthetic=started.synthetic,
            config=started.config or {},
        )

    def _enter(self, state: State, percent: int = 0, **what: Any) -> None:
        self._tell(self.journal.append(state, percent=percent, **what))

    def _tell(self, entry: Entry) -> None:
        version, state = self._start.challenger.version, self._state
        self._emit(RolloutEvent("state", entry.at, version, state, entry.percent, entry.note, entry.report))

    @property
    def _state(self) -> State:
        return self.journal.rollout[-1].event  # type: ignore[return-value]

    def _emit(self, event: RolloutEvent) -> None:
        if self.on_event is not None:
            self.on_event(event)


class _Mlflow:
    """MLflow as the registrar."""

    def __init__(self, registry: Any, name: str) -> None:
        self._registry, self._name = registry, name

    def champion(self) -> ServedVersion | None:
        version = self._registry.champion(self._name)
        return ServedVersion(version.version, version.bundle_uri) if version is not None else None

    def crown(self, version: ServedVersion) -> None:
        self._registry.promote(self._version(version.version, version.bundle_uri))

    def conclude(self, record: RolloutRecord, uri: str) -> None:
        from kubevox.deployment.registration import figures

        try:
            self._registry.tag(self._version(record.version, record.bundle), figures(record, uri))
        except RegistryError:
            if (self._name, record.version) in {(one.name, one.version) for one in self._registry.versions()}:
                raise
            # Else no rollout of this model could ever begin again.
            note(f"{self._name} version {record.version} was deleted from the registry meanwhile: it gets no tags")

    def _version(self, number: str, bundle_uri: str) -> Any:
        from kubevox.registry import ModelVersion

        return ModelVersion(self._name, number, bundle_uri, "", {})


def _transition(entry: Entry) -> Transition:
    return Transition(entry.at, entry.event, entry.percent, entry.note)  # type: ignore[arg-type]


def _page_of(uri: str) -> str:
    return uri.removesuffix(".json") + ".html"


def _said(error: BaseException) -> str:
    if isinstance(error, KubevoxError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@contextlib.contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Let a polite signal, such as a pod gets, end a rollout like Ctrl-C: with the challenger taken back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
