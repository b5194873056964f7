"""Rollouts against a stand-in platform over real HTTP: every kind of challenger, and every kind of interruption."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from kubevox.config import DeployConfig, RolloutConfig
from kubevox.config.rollout import ErrorTest
from kubevox.deployment import rollout
from kubevox.deployment.backend import Deployed, Endpoint, Endpoints, ServedVersion
from kubevox.deployment.journal import Journal
from kubevox.deployment.record import RolloutRecord
from kubevox.deployment.rollout import Challenger, RolloutEvent, roll_out
from kubevox.deployment.traffic import Clients, counts
from kubevox.errors import DeploymentError, RegistryError
from tests.deployment.deadly_journal import Deadly
from tests.deployment.stand_in_platform import LABELS, PlatformBackend, recordings, running_platform

CHAMPION = ServedVersion("1", "bundles/good")
# What the shipped configuration asks of a step, but for the requests, which are as few as still tell.
CONFIG = RolloutConfig(
    dwell_s=0.0,
    max_s=30.0,
    share_margin=0.05,
    requests_per_s=1e6,
    concurrency=8,
    latency_answers=80,
    probe_recordings=60,
    uar_margin=0.2,
)
# As little as a rollout can decide by: where it is the states that are tested, and not the decisions.
HASTY = CONFIG.model_copy(
    update={
        "steps": [50],
        "confidence": 0.8,
        "share_margin": 0.2,
        "errors": ErrorTest(acceptable=0.05, unacceptable=0.3, false_alarm=0.1, miss=0.1),
        "latency_answers": 48,
        "max_latency_factor": 1000.0,
    }
)


@dataclass
class Books:
    """A registrar that keeps its books in a folder, so that they outlive a process."""

    folder: Path
    torn: bool = False

    def crown(self, version: ServedVersion) -> None:
        if self.torn:
            raise RegistryError("tracking.uri sqlite:///x: MLflow refused: the disk is full")
        (self.folder / "champion").write_text(version.version)

    def conclude(self, record: RolloutRecord, uri: str) -> None:
        with (self.folder / "concluded").open("a") as file:
            file.write(json.dumps([record.version, record.outcome, record.criterion, uri]) + "\n")

    @property
    def champion(self) -> str | None:
        path = self.folder / "champion"
        return path.read_text() if path.exists() else None

    @property
    def concluded(self) -> list[list[str]]:
        path = self.folder / "concluded"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass
class Stage:
    """A platform, a store and books, for one test."""

    platform: PlatformBackend
    store: str
    books: Books
    config: RolloutConfig = HASTY
    events: list[RolloutEvent] = field(default_factory=list)

    def challenger(self, bundle: str, version: str = "2") -> Challenger:
        probe = recordings(self.config.probe_recordings)
        return Challenger(ServedVersion(version, f"bundles/{bundle}"), "mood", LABELS, probe)

    def roll_out(
        self, bundle: str, version: str = "2", *, journal: type[Journal] = Journal, **options: Any
    ) -> RolloutRecord:
        challenger = self.challenger(bundle, version)
        champion = options.pop("champion", None)
        with journal(self.store, "kubevox-mood", 60.0, **options) as entered:
            deploy = DeployConfig(rollout=self.config, request_timeout_s=5.0)
            on_event = self.events.append
            record, uri = roll_out(
                challenger, champion, self.platform, entered, deploy, self.store, self.books, on_event
            )
        assert RolloutRecord.from_dict(json.loads(Path(uri).read_text())) == record
        assert Path(uri.replace(".json", ".html")).exists()
        return record

    def states(self) -> list[str]:
        return [event.state for event in self.events if event.kind == "state"]


@pytest.fixture(scope="module")
def running() -> Iterator[PlatformBackend]:
    with running_platform() as backend:
        yield backend


@pytest.fixture(autouse=True)
def plain_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than most of these rollouts, and has tests of its own."""
    monkeypatch.setattr(rollout, "render_timeline", lambda record: f"<!doctype html>{record.version}")


@pytest.fixture
def stage(running: PlatformBackend, tmp_path: Path) -> Stage:
    running.reset(CHAMPION)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "champion").write_text("1")
    return Stage(running, str(tmp_path / "store"), Books(tmp_path / "books"))


@pytest.fixture
def careful(stage: Stage) -> Stage:
    """With steps and checks as shipped, and a latency that can be told from the machine's own."""
    stage.config = CONFIG
    stage.platform.reset(CHAMPION, delay_ms=3.0)
    return stage


PROMOTED = Deployed(ServedVersion("2", "bundles/good"), None, 0)
AS_BEFORE = Deployed(CHAMPION, None, 0)


# --- challengers ------------------------------------------------------------------------------------------------------


def test_a_good_challenger_is_promoted_step_by_step(careful: Stage) -> None:
    with Clients("mood", careful.platform.endpoints().route, recordings(), requests_per_s=40) as clients:
        record = careful.roll_out("good")
    assert (record.outcome, record.criterion, record.previous) == ("promoted", "", "1")
    assert record.reason == "every check passed at 10, 50, 100 % of the route"
    assert careful.platform.observe() == PROMOTED
    assert careful.books.champion == "2"
    assert [report.percent for report in record.steps] == [10, 50, 100]
    for report in record.steps:
        assert {check.outcome for check in report.checks} == {"pass"}
        share = report.check("share")
        assert share.value == pytest.approx(report.percent / 100, abs=0.05)
        assert share.low is not None
        assert share.high is not None
        assert share.low <= report.percent / 100 <= share.high
    step = ["shifting", "watching", "passed"]
    assert careful.states() == [
        *("registered", "candidate", "ready", "conforming", *step, *step, *step),
        *("promoting", "promoted", "champion", "recorded"),
    ]
    # Nobody who asked meanwhile was refused, and nobody else answered.
    assert set(counts(clients.answers)) == {"answered 1", "answered 2"}


@pytest.mark.parametrize(
    ("bundle", "criterion", "words"),
    [
        ("crash", "start", "the challenger did not start: version 2 ended at start: ValueError: no such layer"),
        ("errors-0.05", "error_rate", "4.0% are too many (deploy.rollout.errors)"),
        ("slow-6", "latency_p95", "1.75 times as much is allowed (deploy.rollout.max_latency_factor)"),
        ("permuted", "agreement, uar", "0.2 less is allowed (deploy.rollout.uar_margin)"),
        ("worse", "uar", "the challenger's UAR on 60 recordings of validation speakers is 0."),
        ("garbled", "error_rate", "the challenger failed 3 of 3 requests"),
    ],
)
def test_a_bad_challenger_is_rolled_back_and_the_criterion_is_named(
    careful: Stage, bundle: str, criterion: str, words: str
) -> None:
    record = careful.roll_out(bundle)
    assert (record.outcome, record.criterion) == ("rolled_back", criterion)
    assert words in record.reason
    assert careful.platform.observe() == AS_BEFORE
    assert careful.books.champion == "1"
    assert [line[:3] for line in careful.books.concluded] == [["2", "rolled_back", criterion]]
    assert careful.states()[-3:] == ["taking_back", "rolled_back", "recorded"]


def test_clients_saw_the_challengers_own_failures_and_no_others(careful: Stage) -> None:
    careful.config = CONFIG.model_copy(update={"steps": [50]})
    with Clients("mood", careful.platform.endpoints().route, recordings(), requests_per_s=100) as clients:
        record = careful.roll_out("errors-0.1")
    assert record.outcome == "rolled_back"
    assert set(record.criterion.split(", ")) <= {"error_rate", "route_errors"}  # whichever can tell first
    seen = counts(clients.answers)
    route = record.steps[0].sides["route"]
    answered = careful.platform.answered()
    assert set(seen) <= {"answered 1", "answered 2", "failed 500"}
    # The clients' and the rollout's own requests together are all that the route was asked.
    assert seen.get("failed 500", 0) + route.failed == answered.get("2: 500", 0)
    assert seen["answered 1"] + route.versions["1"] == answered["1: 200"]
    assert seen["answered 2"] + route.versions["2"] == answered["2: 200"]
    assert route.failed > 0


@pytest.mark.parametrize(
    ("platform", "criterion", "words"),
    [
        ({"share": 0.0}, "share", "the route sent the challenger none of "),
        ({"share": 0.3}, "share", "asked are 10% within 5 points (deploy.rollout.share_margin)"),
        ({"foreign": "7"}, "versions", "came from version '7', not from 1 or 2"),
    ],
)
def test_a_route_that_does_not_do_as_asked_costs_the_challenger_its_place(
    careful: Stage, platform: dict[str, Any], criterion: str, words: str
) -> None:
    careful.platform.mend(**platform)
    record = careful.roll_out("good")
    assert (record.outcome, record.criterion) == ("rolled_back", criterion)
    assert record.reason.startswith("at 10 %: ")
    assert words in record.reason
    assert careful.platform.observe() == AS_BEFORE


def test_a_challenger_that_is_always_busy_is_undecided_and_that_counts_as_failed_or_not(stage: Stage) -> None:
    stage.config = HASTY.model_copy(update={"max_requests": 400})
    record = stage.roll_out("busy")
    assert (record.outcome, record.steps[0].check("error_rate").outcome) == ("rolled_back", "undecided")
    assert record.criterion == "error_rate, share, latency_p95, prediction_mix, agreement, uar"
    assert "more were answered with busy" in record.reason
    assert record.reason.endswith(
        "; undecided within 400 requests and 30 s, which counts as failed (deploy.rollout.undecided)"
    )
    assert 0 < record.steps[0].requests <= 400
    stage.config = stage.config.model_copy(update={"undecided": "pass"})
    assert stage.roll_out("busy").outcome == "promoted"


def test_a_step_lasts_as_long_as_it_was_told_to_and_sends_no_more_than_it_may(stage: Stage) -> None:
    stage.config = HASTY.model_copy(update={"dwell_s": 0.6, "max_requests": 400})
    record = stage.roll_out("good")
    assert record.outcome == "promoted"
    for report in record.steps:
        assert report.requests <= 400
        assert 0.6 <= report.ended - report.started < 5


def test_a_step_ends_in_time_where_one_round_would_take_longer(stage: Stage) -> None:
    stage.platform.reset(CHAMPION, delay_ms=100.0)  # a round: some 20 requests through the route, 32 one by one
    stage.config = HASTY.model_copy(update={"max_s": 0.5})
    (report,) = stage.roll_out("good").steps
    assert report.outcome == "fail"
    assert 0.5 <= report.ended - report.started < 1.5


# --- where there is nothing to compare with ---------------------------------------------------------------------------


def test_the_first_version_of_all_is_asked_directly_and_then_through_the_route(stage: Stage) -> None:
    stage.platform.reset()
    record = stage.roll_out("good")
    assert (record.outcome, record.previous) == ("promoted", None)
    assert record.reason == "there was no version in production; the challenger, asked directly, passed every check"
    assert [(report.percent, set(report.sides)) for report in record.steps] == [(0, {"canary"})]
    assert {check.name for check in record.steps[0].checks} == {"error_rate", "versions", "uar"}
    assert stage.platform.observe() == PROMOTED
    assert stage.books.champion == "2"
    assert "shifting" not in stage.states()
    assert stage.platform.answered() == {"2: 200": 20}


@pytest.mark.parametrize(
    ("bundle", "criterion"), [("errors-0.4", "error_rate"), ("permuted", "uar"), ("crash", "start")]
)
def test_a_first_version_that_does_not_work_is_taken_back_too(stage: Stage, bundle: str, criterion: str) -> None:
    stage.platform.reset()
    (stage.books.folder / "champion").unlink()
    record = stage.roll_out(bundle)
    assert (record.outcome, record.criterion) == ("rolled_back", criterion)
    assert stage.platform.observe() == Deployed(None, None, 0)
    assert stage.books.champion is None


def test_a_first_version_that_clients_do_not_reach_is_not_called_champion_until_they_do(stage: Stage) -> None:
    stage.platform.reset()
    stage.platform.mend(foreign="7")
    with pytest.raises(DeploymentError, match=r"20 of 20 requests through the route .* answered by version 7"):
        stage.roll_out("good")
    assert stage.books.champion == "1"
    stage.platform.mend()
    record = stage.roll_out("good")
    assert (record.outcome, stage.books.champion) == ("promoted", "2")
    assert [transition.state for transition in record.transitions].count("promoting") == 1


def test_the_registrys_champion_is_brought_up_where_the_back_end_has_nothing(stage: Stage, tmp_path: Path) -> None:
    stage.platform.reset()
    bundle = tmp_path / "bundles" / "good"
    bundle.mkdir(parents=True)
    (bundle / "bundle.json").write_text("{}")
    champion = ServedVersion("1", str(bundle))
    record = stage.roll_out("good", champion=champion)
    assert (record.outcome, record.previous) == ("promoted", "1")
    assert stage.states()[:3] == ["registered", "restoring", "candidate"]
    assert [report.percent for report in record.steps] == [50, 100]
    assert stage.platform.orders()[:3] == [f"start_canary 1 {bundle}", "promote", "start_canary 2 bundles/good"]


def test_a_champion_whose_bundle_is_lost_leaves_the_challenger_alone(stage: Stage, tmp_path: Path) -> None:
    stage.platform.reset()
    record = stage.roll_out("good", champion=ServedVersion("1", str(tmp_path / "erased")))
    assert (record.outcome, record.previous) == ("promoted", None)


def test_what_is_in_production_already_is_not_rolled_out_again_but_its_alias_is_repaired(stage: Stage) -> None:
    stage.platform.reset(ServedVersion("2", "bundles/good"))
    record = stage.roll_out("good")
    assert record.outcome == "promoted"
    assert record.reason == "version 2 was in production already and answers as it was evaluated"
    assert stage.platform.orders() == []
    assert stage.books.champion == "2"


def test_a_challenger_that_nobody_watches_any_more_is_taken_back_first(stage: Stage) -> None:
    stage.platform.start_canary(ServedVersion("9", "bundles/good"))
    stage.platform.set_canary_percent(50)
    assert stage.roll_out("good").outcome == "promoted"
    assert stage.platform.orders()[2:4] == ["take_back", "start_canary 2 bundles/good"]


# --- what does not answer ---------------------------------------------------------------------------------------------


class Failing(PlatformBackend):
    """A back end of which one order fails."""

    def __init__(self, url: str, order: str, calls: int = 1) -> None:
        super().__init__(url)
        self.order, self.calls = order, calls

    def _ask(self, order: str, **values: Any) -> Any:
        if order == self.order and self.calls:
            self.calls -= 1
            raise DeploymentError(f"InferenceService mood: {order}: the API server does not answer")
        return super()._ask(order, **values)


def test_a_back_end_that_does_not_answer_is_an_error_and_nothing_was_done(stage: Stage) -> None:
    platform, stage.platform = stage.platform, PlatformBackend("http://127.0.0.1:9")
    with pytest.raises(DeploymentError, match=r"platform http://127\.0\.0\.1:9: did not answer"):
        stage.roll_out("good")
    stage.platform = platform
    assert stage.platform.observe() == AS_BEFORE
    assert stage.roll_out("good").outcome == "promoted"


@pytest.mark.parametrize("order", ["start_canary", "set_canary_percent", "promote"])
def test_a_back_end_that_fails_on_the_way_is_an_error_and_the_challenger_is_taken_back(
    stage: Stage, order: str
) -> None:
    stage.platform = Failing(stage.platform.url, order)
    with pytest.raises(DeploymentError, match=f"{order}: the API server does not answer"):
        stage.roll_out("good")
    assert stage.platform.observe() == AS_BEFORE
    assert stage.books.champion == "1"
    ((version, outcome, state, uri),) = stage.books.concluded
    assert (version, outcome) == ("2", "failed")
    assert state == {"start_canary": "candidate", "set_canary_percent": "shifting", "promote": "promoting"}[order]
    assert json.loads(Path(uri).read_text())["reason"].endswith("the API server does not answer")
    assert stage.roll_out("good").outcome == "promoted"


class Late(PlatformBackend):
    """A back end that promotes although it says that it could not: that shows when the challenger is to be removed."""

    late = False

    def promote(self) -> None:
        self.late = True
        raise DeploymentError("waited 90 s for the promotion")

    def take_back(self) -> None:
        if self.late:
            super().promote()
        super().take_back()


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_promotion_that_was_broken_off_and_comes_into_force_all_the_same_is_champion(
    stage: Stage, interrupted: bool
) -> None:
    if interrupted:
        killed(stage, "good", PROMOTING, "after")
    stage.platform = Late(stage.platform.url)
    with pytest.raises(DeploymentError, match="waited 90 s for the promotion"):
        stage.roll_out("good")
    assert stage.platform.observe() == PROMOTED
    assert stage.books.champion == "2"
    assert [line[:2] for line in stage.books.concluded] == [["2", "promoted"]]


def test_a_route_that_ends_while_it_is_watched_is_not_the_challengers_fault(stage: Stage) -> None:
    class Restarted(PlatformBackend):
        calls = 0

        def endpoints(self) -> Endpoints:
            self.calls += 1  # when the challenger is compared, watched; and then looked at again
            found = super().endpoints()
            nobody = Endpoint("http://127.0.0.1:9")
            return replace(found, route=nobody, canary=nobody) if self.calls == 2 else found

    stage.platform = Restarted(stage.platform.url)
    with pytest.raises(DeploymentError, match=r"the route http://127\.0\.0\.1:9 ended while it was watched"):
        stage.roll_out("good")
    assert stage.platform.observe() == AS_BEFORE
    assert [line[1:3] for line in stage.books.concluded] == [["failed", "watching"]]


def test_a_challenger_that_cannot_be_taken_back_is_by_the_next_run(stage: Stage) -> None:
    stage.platform = Failing(stage.platform.url, "take_back")
    with pytest.raises(DeploymentError, match="take_back: the API server does not answer"):
        stage.roll_out("permuted")
    assert stage.platform.observe().canary == ServedVersion("2", "bundles/permuted")
    record = stage.roll_out("permuted")
    assert (record.outcome, record.criterion) == ("rolled_back", "agreement, uar")
    assert stage.platform.observe() == AS_BEFORE
    assert len(stage.books.concluded) == 1


def test_a_registry_that_fails_after_the_promotion_is_told_by_the_next_run(stage: Stage) -> None:
    stage.books.torn = True
    with pytest.raises(
        RegistryError, match=r"version 2 is in production, but is not champion in the registry yet: .*disk"
    ):
        stage.roll_out("good")
    assert (stage.platform.observe(), stage.books.champion) == (PROMOTED, "1")
    stage.books.torn = False
    orders = stage.platform.orders()
    record = stage.roll_out("good")
    assert (record.outcome, record.previous, stage.books.champion) == ("promoted", "1", "2")
    assert stage.platform.orders() == orders, "there was nothing left to do for the back end"


def test_ctrl_c_takes_the_challenger_back(stage: Stage) -> None:
    def interrupt(event: RolloutEvent) -> None:
        if event.kind == "look":
            raise KeyboardInterrupt

    deploy = DeployConfig(rollout=HASTY)
    with pytest.raises(KeyboardInterrupt), Journal(stage.store, "kubevox-mood", 60.0) as journal:
        roll_out(stage.challenger("good"), None, stage.platform, journal, deploy, stage.store, stage.books, interrupt)
    assert stage.platform.observe() == AS_BEFORE
    assert [line[:3] for line in stage.books.concluded] == [["2", "failed", "watching"]]


def test_a_polite_signal_takes_the_challenger_back_too(stage: Stage) -> None:
    def work() -> None:
        def terminate(event: RolloutEvent) -> None:
            if event.kind == "look":
                os.kill(os.getpid(), signal.SIGTERM)

        deploy = DeployConfig(rollout=HASTY)
        with rollout._ended_as_by_ctrl_c(), Journal(stage.store, "kubevox-mood", 60.0) as journal:
            challenger = stage.challenger("good")
            roll_out(challenger, None, stage.platform, journal, deploy, stage.store, stage.books, terminate)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(30)
    assert process.exitcode == 1
    assert stage.platform.observe() == AS_BEFORE
    assert [line[:3] for line in stage.books.concluded] == [["2", "failed", "watching"]]


# --- killed -----------------------------------------------------------------------------------------------------------


def killed(stage: Stage, bundle: str, number: int, when: str = "before") -> None:
    """Roll out in a process that is killed at the journal's entry of that number."""

    def work() -> None:
        stage.roll_out(bundle, journal=Deadly, number=number, when=when)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


# claimed, registered, candidate, ready, conforming, twice (shifting, watching, passed), promoting, promoted, champion,
# recorded, released
ENTRIES_TO_THE_TOP = 16
# claimed, registered, candidate, ready, conforming, shifting, watching, taking_back, rolled_back, recorded, released
ENTRIES_AND_BACK = 11


def moments(first: int, last: int, always: set[tuple[int, str]]) -> list[Any]:
    """Every entry of a journal, before and after it is written; all but some only where there is time."""
    marks = [pytest.mark.acceptance, pytest.mark.slow]
    return [
        pytest.param(number, when, marks=[] if (number, when) in always else marks)
        for number in range(first, last + 1)
        for when in ("before", "after")
    ]


ON_THE_WAY = {(2, "before"), (3, "after"), (7, "after"), (9, "after"), (12, "after")}
ON_THE_WAY |= {(13, "before"), (14, "before"), (15, "before"), (16, "before")}


@pytest.mark.parametrize(("number", "when"), moments(1, ENTRIES_TO_THE_TOP, ON_THE_WAY))
def test_killed_anywhere_and_run_again_a_good_challenger_is_champion(stage: Stage, number: int, when: str) -> None:
    killed(stage, "good", number, when)
    # At no moment is something champion that is not in production, or half of something in production.
    between = stage.platform.observe()
    assert between.stable in (CHAMPION, PROMOTED.stable)
    assert between.stable == PROMOTED.stable or stage.books.champion == "1"
    record = stage.roll_out("good")
    assert record.outcome == "promoted"
    assert stage.platform.observe() == PROMOTED
    assert stage.books.champion == "2"
    assert {tuple(line[:2]) for line in stage.books.concluded} == {("2", "promoted")}
    assert stage.platform.orders().count("promote") == 1


@pytest.mark.parametrize(
    ("number", "when"), moments(2, ENTRIES_AND_BACK, {(8, "after"), (9, "before"), (10, "before")})
)
def test_killed_anywhere_and_run_again_a_bad_challenger_is_gone(stage: Stage, number: int, when: str) -> None:
    killed(stage, "permuted", number, when)
    assert stage.books.champion == "1"
    record = stage.roll_out("permuted")
    assert (record.outcome, record.criterion) == ("rolled_back", "agreement, uar")
    assert stage.platform.observe() == AS_BEFORE
    assert stage.books.champion == "1"
    assert {tuple(line[:3]) for line in stage.books.concluded} == {("2", "rolled_back", "agreement, uar")}


def test_the_journals_of_both_ways_are_as_long_as_the_tests_say(stage: Stage) -> None:
    folder = Path(stage.store, "rollouts", "kubevox-mood")
    stage.roll_out("permuted")
    assert len(list(folder.glob("0*.json"))) == ENTRIES_AND_BACK
    stage.roll_out("good")
    assert len(list(folder.glob("0*.json"))) == ENTRIES_AND_BACK + ENTRIES_TO_THE_TOP


WATCHING_AT_50, PROMOTING = 7, 12


def test_another_challenger_takes_the_place_of_one_whose_rollout_was_killed(stage: Stage) -> None:
    killed(stage, "good", WATCHING_AT_50, "after")
    assert stage.platform.observe().canary_percent == 50
    record = stage.roll_out("good", "3")
    assert (record.outcome, record.version, record.previous) == ("promoted", "3", "1")
    assert [line[:3] for line in stage.books.concluded] == [["2", "failed", "superseded"], ["3", "promoted", ""]]
    assert stage.books.champion == "3"


def test_another_challenger_follows_one_that_was_promoted_when_its_rollout_was_killed(stage: Stage) -> None:
    killed(stage, "good", PROMOTING + 1, "before")  # the back end has moved, and nobody knows
    assert (stage.platform.observe(), stage.books.champion) == (PROMOTED, "1")
    record = stage.roll_out("permuted", "3")
    assert (record.outcome, record.previous, stage.books.champion) == ("rolled_back", "2", "2")
    assert [line[:2] for line in stage.books.concluded] == [["2", "promoted"], ["3", "rolled_back"]]


def test_a_rollout_that_was_killed_long_ago_is_begun_anew(stage: Stage) -> None:
    killed(stage, "good", WATCHING_AT_50, "after")
    stage.config = HASTY.model_copy(update={"resume_s": 1e-9})
    record = stage.roll_out("good")
    assert record.outcome == "promoted"
    assert record.transitions[0].state == "registered"
    assert [line[1:3] for line in stage.books.concluded] == [["failed", "expired"], ["promoted", ""]]


def test_a_long_step_that_was_killed_a_moment_ago_is_carried_on(stage: Stage) -> None:
    killed(stage, "good", WATCHING_AT_50, "after")
    folder = Path(stage.store, "rollouts", "kubevox-mood")
    for path in folder.glob("0*.json"):  # all of it was written hours ago; whoever wrote it lived until now
        entry = json.loads(path.read_text())
        path.write_text(json.dumps(entry | {"at": entry["at"] - 36_000}))
    record = stage.roll_out("good")
    assert (record.outcome, len(stage.books.concluded)) == ("promoted", 1)


def test_what_was_in_production_already_and_is_lost_is_brought_up_again(stage: Stage) -> None:
    stage.platform.reset(ServedVersion("2", "bundles/good"))
    killed(stage, "good", 3, "after")
    stage.platform.reset()
    record = stage.roll_out("good")
    assert (record.outcome, stage.platform.observe(), stage.books.champion) == ("promoted", PROMOTED, "2")


def test_where_the_challenger_has_gone_meanwhile_it_is_brought_up_again_and_every_step_is_taken_again(
    stage: Stage,
) -> None:
    killed(stage, "good", WATCHING_AT_50 + 2, "after")  # 50 % has passed
    stage.platform.mend(lose_canary=True)
    record = stage.roll_out("good")
    assert record.outcome == "promoted"
    assert [transition.note for transition in record.transitions if transition.note][1:] == [
        "the challenger was no longer there",
        "not compared with an evaluation",
    ]
    assert [report.percent for report in record.steps] == [50, 50, 100]


def test_where_the_route_has_changed_meanwhile_the_share_is_asked_for_again(stage: Stage) -> None:
    killed(stage, "good", WATCHING_AT_50, "after")
    stage.platform.set_canary_percent(5)
    record = stage.roll_out("good")
    assert (record.outcome, [report.percent for report in record.steps]) == ("promoted", [50, 100])
    assert "the route gave it 5 %" in [transition.note for transition in record.transitions]


def test_where_production_has_changed_meanwhile_the_challenger_is_compared_with_what_is_there_now(stage: Stage) -> None:
    killed(stage, "good", WATCHING_AT_50, "after")
    now = ServedVersion("8", "bundles/good")
    stage.platform.start_canary(now)
    stage.platform.promote()
    record = stage.roll_out("good")
    assert (record.outcome, record.previous) == ("promoted", "8")
    ended = json.loads(Path(stage.books.concluded[0][3]).read_text())
    assert (ended["criterion"], ended["outcome"]) == ("production", "failed")
    assert ended["reason"] == "version 1 was in production when it began, and now version 8 is"


# --- two at once ------------------------------------------------------------------------------------------------------


def test_a_second_rollout_of_a_model_refuses_while_the_first_lives(stage: Stage) -> None:
    ready, done = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def work() -> None:
        with Journal(stage.store, "kubevox-mood", 60.0):
            ready.set()
            done.wait(30)

    first = multiprocessing.get_context("fork").Process(target=work)
    first.start()
    try:
        assert ready.wait(30)
        with pytest.raises(
            DeploymentError, match=f"kubevox-mood is being rolled out by process {first.pid} on "
        ) as refused:
            stage.roll_out("good")
        assert len(str(refused.value).splitlines()) == 1
        assert stage.platform.orders() == []
        with Journal(stage.store, "kubevox-others", 60.0):
            pass  # another model's is nobody's business
    finally:
        done.set()
        first.join(30)
    assert stage.roll_out("good").outcome == "promoted"


def test_of_many_that_begin_at_once_one_rolls_out(stage: Stage) -> None:
    context = multiprocessing.get_context("fork")
    start, told = context.Event(), context.SimpleQueue()

    def work() -> None:
        start.wait(30)
        try:
            with Journal(stage.store, "kubevox-mood", 60.0):
                told.put("has it")
                time.sleep(0.5)
        except DeploymentError:
            told.put("refused")

    processes = [context.Process(target=work) for _ in range(6)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(30)
    assert sorted(told.get() for _ in processes) == ["has it"] + ["refused"] * 5


def test_a_process_that_has_lost_its_rollout_does_nothing_more(stage: Stage) -> None:
    """It was asleep for so long that another machine has taken over."""
    orders: list[str] = []

    def take_over(event: RolloutEvent) -> None:
        if event.kind == "look" and not orders:
            orders.extend(stage.platform.orders())
            folder = Path(stage.store, "rollouts", "kubevox-mood")
            last = sorted(folder.glob("0*.json"))[-1]
            (folder / f"{int(last.stem) + 1:06d}.json").write_text(last.read_text())

    deploy = DeployConfig(rollout=HASTY)
    challenger = replace(stage.challenger("good"))
    with (
        pytest.raises(DeploymentError, match="another process has taken this rollout over"),
        Journal(stage.store, "kubevox-mood", 60.0) as journal,
    ):
        roll_out(challenger, None, stage.platform, journal, deploy, stage.store, stage.books, take_over)
    assert stage.platform.orders() == orders
    assert stage.books.concluded == []
