"""The page that tells a rollout."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kubevox.config import RolloutConfig
from kubevox.deployment.checks import Check
from kubevox.deployment.record import Conformity, RolloutRecord, Side, Slice, StepReport, Transition
from kubevox.deployment.timeline import render_timeline
from kubevox.page import SYNTHETIC_NOTICE

BEGAN = 1_750_000_000.0


def check(name: str, outcome: str = "pass", value: float | None = 0.1, **more: float) -> Check:
    bounds = {"low": 0.07, "high": 0.14, "limit": 0.1} | more
    return Check(name, outcome, value, **bounds, n=400, explanation=f"in words: {name}")  # type: ignore[arg-type]


def step(percent: int, started: float, checks: list[Check], failed: int = 0) -> StepReport:
    side = Side(400, 3, failed, 0.011, 0.02, {"1": 360, "2": 40}, {"happy": 200}, {"500: it broke": failed})
    slices = [
        Slice(
            started + second,
            100,
            percent,
            {"stable": 0.02, "canary": 0.03},
            {"route": 100, "stable": 16, "canary": 16},
            {"route": 0, "stable": 0, "canary": failed},
        )
        for second in range(4)
    ]
    sides = {"route": side, "stable": side, "canary": side}
    return StepReport(percent, started, started + 4, tuple(checks), sides, tuple(slices))


def record(**how: object) -> RolloutRecord:
    states = [("registered", 0), ("candidate", 0), ("ready", 0), ("conforming", 0)]
    states += [("shifting", 10), ("watching", 10), ("passed", 10), ("promoting", 100), ("promoted", 100)]
    states += [("champion", 100)]
    made = RolloutRecord(
        model="kubevox-mood",
        version="2",
        bundle="bundles/22",
        evaluation="evaluations/1",
        previous="1",
        backend="local",
        new=True,
        outcome="promoted",
        criterion="",
        reason="every check passed at 10, 50, 100 % of the route",
        started=BEGAN,
        finished=BEGAN + 10,
        transitions=tuple(Transition(BEGAN + at, state, percent) for at, (state, percent) in enumerate(states)),  # type: ignore[arg-type]
        conformity=Conformity(8, 1e-7, 1e-5),
        steps=(step(10, BEGAN + 5, [check("share"), check("latency_p95", value=0.0213, limit=0.035)]),),
        config=RolloutConfig().model_dump(mode="json"),
    )
    return replace(made, **how)  # type: ignore[arg-type]


ROLLED_BACK = {
    "outcome": "rolled_back",
    "criterion": "error_rate",
    "reason": "at 10 %: error_rate: the challenger failed 4 of 80 requests",
    "steps": (step(10, BEGAN + 5, [check("share"), check("error_rate", "fail", 0.05)], failed=4),),
    "transitions": (
        *record().transitions[:6],
        Transition(BEGAN + 9, "taking_back", 0, "the whole reason"),
        Transition(BEGAN + 9.5, "rolled_back", 0),
    ),
}


class Cells(HTMLParser):
    """The texts of all table cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data.strip()


def test_a_promotion_is_told_in_words_figures_and_curves() -> None:
    page = render_timeline(record())
    assert "Version 2 is champion in place of version 1: every check passed at 10, 50, 100 % of the route." in page
    assert page.count("<svg") == 3
    rows = Cells(page).rows
    assert ["0.00", "registered", "–", ""] in rows
    assert ["5.00", "watched", "10", ""] in rows
    assert ["9.00", "champion", "–", ""] in rows
    assert ["Observed share", "✓pass", "10.0%", "7.0% to 14.0%", "10.0%", "400", "in words: share"] in rows
    (latency,) = [row for row in rows if row[0] == "95th percentile of the latency"]
    assert latency[2:5] == ["21.3 ms", "70.0 ms to 140.0 ms", "35.0 ms"]
    assert [row[:4] for row in rows if row[0] == "route"] == [["route", "400", "3", "0"]]


def test_a_rollback_names_the_criterion_and_who_stays() -> None:
    page = render_timeline(record(**ROLLED_BACK))
    assert (
        "Version 2 was rolled back (error_rate): at 10 %: error_rate: the challenger failed 4 of 80 requests. "
        "Version 1 stays in production." in page
    )
    rows = Cells(page).rows
    assert ["9.00", "taken back", "–", "error_rate"] in rows
    assert [row[1] for row in rows if row[0] == "The challenger's errors"] == ["✗fail"]
    assert "500: it broke (4)" in page


def test_an_undecided_check_says_whether_it_counts_as_failed() -> None:
    undecided = (step(10, BEGAN + 5, [check("share"), check("latency_p95", "undecided")]),)
    assert "undecided: fails" in render_timeline(record(**(ROLLED_BACK | {"steps": undecided})))
    lenient = (replace(undecided[0], undecided="pass"),)
    assert "undecided: fails" not in render_timeline(record(steps=lenient))


@pytest.mark.parametrize("how", [{}, ROLLED_BACK, {"steps": (), "conformity": None}, {"previous": None, "config": {}}])
def test_any_rollout_can_be_told_and_the_same_one_gives_the_same_page(how: dict[str, object]) -> None:
    page = render_timeline(record(**how))
    assert page == render_timeline(record(**how))
    assert "NaN" not in re.sub(r"<path[^>]*>", "", page)
    assert not re.search(r"(src|href)=\"(?!#)", page), "the page asks nobody for anything"


def test_a_rollout_that_was_never_watched_has_no_curves() -> None:
    page = render_timeline(record(steps=(), outcome="rolled_back", criterion="start", reason="it did not start"))
    assert page.count("<svg") == 1


def test_a_first_step_without_a_route_is_told() -> None:
    alone = replace(step(0, BEGAN + 5, [check("error_rate")]), sides={"canary": step(0, 0, []).sides["canary"]})
    page = render_timeline(record(previous=None, steps=(alone,), reason="there was no version in production"))
    assert "Asked directly" in page
    assert "Version 2 is champion: there was no version in production." in page


def test_synthetic_data_is_said_first_and_what_others_wrote_is_escaped() -> None:
    page = render_timeline(record(synthetic=True, reason="<script>alert(1)</script>"))
    body = page[page.index("<body") :]
    assert body.index(SYNTHETIC_NOTICE) < body.index("<h1")
    assert "<script>alert" not in page


def test_a_record_survives_json() -> None:
    for how in ({}, ROLLED_BACK):
        made = record(**how)
        assert RolloutRecord.from_dict(made.to_dict()) == made
