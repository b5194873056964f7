"""What a person sees of a rollout: lines as it goes, and on a terminal the checks of the step below them."""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kubevox.deployment.record import StepReport
    from kubevox.deployment.rehearsal import Rehearsed
    from kubevox.deployment.rollout import Rollout, RolloutEvent
    from kubevox.deployment.traffic import Answer, Clients

__all__ = ["JsonView", "LineView", "LiveView", "View", "view_for"]

_STATES = {
    "registered": "",
    "restoring": "the champion is brought up first",
    "candidate": "the challenger is brought up",
    "ready": "it is up; its answers are compared with what was evaluated",
    "conforming": "it answers as it was evaluated",
    "probing": "it is asked directly, as the first version of all",
    "standing": "it is in production already",
    "shifting": "",
    "watching": "it gets {percent} % of the requests",
    "passed": "{percent} % passed: {passed}",
    "promoting": "it is promoted, and the version before is drained",
    "promoted": "it is in production",
    "champion": "it is champion",
    "taking_back": "it is taken back: {note}",
    "rolled_back": "it is gone",
    "recorded": "",
}
"""What each state is to somebody who watches; nothing where it is none of his concern."""

_SAID_BY_STATES = re.compile(r"version \S+ is (taken back: |up and answers )|\d+ %: ")
_MARKS = {"pass": "[green]✓[/]", "fail": "[red]✗[/]", "undecided": "[yellow]…[/]"}
_OFTEN_S = 0.1  # between two drawings


class View:
    """Shows rollouts; use as a context manager. What the library notes on standard error meanwhile comes through it."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self._since = time.monotonic()
        self._notes: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def __enter__(self) -> View:
        self._notes = contextlib.redirect_stderr(_Notes(self))
        self._notes.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._notes.__exit__(*error)

    def begin(self, title: str, clients: Clients | None = None) -> None:
        """A rollout begins; where there are clients, what they are answered is shown too."""
        self._since = time.monotonic()

    def event(self, event: RolloutEvent) -> None:
        """Something happened in it."""

    def note(self, line: str) -> None:
        """The library has something to say."""

    def rehearsed(self, rehearsed: Rehearsed, page: str) -> None:
        """A rehearsal ended."""

    def rolled_out(self, outcome: Rollout) -> None:
        """A rollout in earnest ended."""

    def summary(self, all_of_them: Sequence[Rehearsed]) -> None:
        """All rehearsals ended."""


class LineView(View):
    """A line an event, for logs and pipes."""

    def begin(self, title: str, clients: Clients | None = None) -> None:
        """Print the title."""
        super().begin(title, clients)
        self._print(title)

    def event(self, event: RolloutEvent) -> None:
        """Print a line, where the state is one that concerns somebody who watches."""
        passed = len(event.report.checks) if event.report is not None else 0
        line = _STATES[event.state] if event.kind == "state" else ""
        if line:
            share = _share(event.report)
            words = line.format(percent=event.percent, note=event.note, passed=f"{passed} checks{share}")
            self._print(f"  {time.monotonic() - self._since:6.1f} s  {words}")

    def note(self, line: str) -> None:
        """Print it, unless the states say so too."""
        if not _SAID_BY_STATES.match(line):
            self._print(f"           {line}")

    def rehearsed(self, rehearsed: Rehearsed, page: str) -> None:
        """Print how it ended, what that cost the clients, and whether that is as it had to be."""
        record = rehearsed.record
        ended = "promoted" if record.outcome == "promoted" else f"taken back ({record.criterion})"
        verdict = "as it had to be" if rehearsed.as_expected else f"NOT as it had to be: {_wanted(rehearsed)}"
        self._print(f"  {ended}, {verdict}")
        self._print(f"  clients: {_answered(rehearsed.answers)}")
        self._print(f"  {page}")
        self._print("")

    def rolled_out(self, outcome: Rollout) -> None:
        """Print who is champion now."""
        if outcome.outcome == "promoted":
            self._print(f"{outcome.model} version {outcome.version} is champion: {outcome.reason}")
        else:
            stays = f"version {outcome.champion} stays champion" if outcome.champion else "there is no champion"
            self._print(f"{outcome.model} version {outcome.version} was taken back; {stays}")
        self._print(outcome.timeline)

    def summary(self, all_of_them: Sequence[Rehearsed]) -> None:
        """Print one line a challenger."""
        self._print(f"{'challenger':12}{'outcome':13}{'because of':26}{'observed share':32}{'failed for clients'}")
        for one in all_of_them:
            shares = ", ".join(f"{seen:.1f} of {asked} %" for asked, seen in one.shares.items() if asked < 100)
            failed = f"{len(one.by_challenger)} by it, {len(one.by_switching)} by switching"
            outcome = "promoted" if one.record.outcome == "promoted" else "taken back"
            mark = "" if one.as_expected else "  NOT as it had to be"
            self._print(
                f"{one.scenario.name:12}{outcome:13}{one.record.criterion or '-':26}{shares or '-':32}{failed}{mark}"
            )

    def _print(self, line: str) -> None:
        print(line, file=self.out, flush=True)


class LiveView(LineView):
    """The same lines on a terminal, and below them, for as long as a step lasts, its checks as they stand."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(out)
        self._console = Console(file=out, highlight=False)
        self._live = Live(console=self._console, transient=True, auto_refresh=False, redirect_stderr=False)
        self._clients: Clients | None = None
        self._drawn = 0.0

    def __enter__(self) -> View:
        super().__enter__()
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)
        super().__exit__(*error)

    def begin(self, title: str, clients: Clients | None = None) -> None:
        """Print the title."""
        self._clients = clients
        self._console.print(f"[bold]{title}[/]")
        super(LineView, self).begin(title, clients)

    def event(self, event: RolloutEvent) -> None:
        """Print a line, or draw the step anew."""
        super().event(event)
        if event.kind == "look" and event.report is not None:
            if time.monotonic() - self._drawn > _OFTEN_S:
                self._drawn = time.monotonic()
                self._live.update(self._step(event.report), refresh=True)
        else:
            self._live.update("", refresh=True)

    def _step(self, report: StepReport) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        checks = Table.grid(padding=(0, 1), expand=True)
        checks.add_column(width=1)
        checks.add_column(width=14)
        checks.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for check in report.checks:
            checks.add_row(_MARKS[check.outcome], check.name.replace("_", " "), Text(check.explanation))
        sent = ", ".join(
            f"{side.requests} {where}"
            for way, where in (("route", "through the route"), ("stable", "to production"), ("canary", "to it"))
            if (side := report.sides.get(way)) is not None
        )
        lines: list[RenderableType] = [Text(f"  {report.percent} % for {report.ended - report.started:.0f} s: {sent}")]
        if self._clients is not None:
            lines.append(Text(f"  clients: {_answered(self._clients.answers)}", no_wrap=True, overflow="ellipsis"))
        return Group(*lines, checks)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False)


class JsonView(View):
    """One JSON object an event, for programs."""

    def begin(self, title: str, clients: Clients | None = None) -> None:
        """Print the title."""
        self._emit("begin", title=title)

    def event(self, event: RolloutEvent) -> None:
        """Print the state, with the checks as they stand where there are some."""
        told: dict[str, Any] = {"state": event.state, "percent": event.percent, "version": event.version}
        if event.note:
            told["note"] = event.note
        if event.report is not None:
            told["checks"] = [asdict(check) for check in event.report.checks]
        if event.kind != "end":
            self._emit(event.kind, at=event.at, **told)

    def note(self, line: str) -> None:
        """Print the note."""
        self._emit("note", message=line)

    def rehearsed(self, rehearsed: Rehearsed, page: str) -> None:
        """Print how it ended."""
        record = rehearsed.record
        self._emit(
            "rehearsed",
            scenario=rehearsed.scenario.name,
            version=rehearsed.version,
            outcome=record.outcome,
            criterion=record.criterion,
            reason=record.reason,
            as_expected=rehearsed.as_expected,
            observed_percent=rehearsed.shares,
            answered=dict(Counter(a.version or "" for a in rehearsed.answers if a.kind == "answered")),
            busy=sum(answer.kind == "busy" for answer in rehearsed.answers),
            failed_by_challenger=len(rehearsed.by_challenger),
            failed_by_switching=len(rehearsed.by_switching),
            page=page,
        )

    def rolled_out(self, outcome: Rollout) -> None:
        """Print the outcome."""
        self._emit("rolled_out", **asdict(outcome))

    def _emit(self, event: str, **told: Any) -> None:
        print(json.dumps({"event": event, **told}), file=self.out, flush=True)


def view_for(out: TextIO, as_json: bool) -> View:
    """What suits the stream."""
    if as_json:
        return JsonView(out)
    return LiveView(out) if out.isatty() else LineView(out)


class _Notes(io.TextIOBase):
    """Standard error while a rollout is shown: what the library notes goes to the view, its progress nowhere."""

    def __init__(self, view: View) -> None:
        self._view, self._partial = view, ""

    def isatty(self) -> bool:
        """No bar is drawn here."""
        return False

    def write(self, text: str) -> int:
        """Take text as it comes; whole lines are passed on."""
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            if line and not line.startswith("deploy: "):  # the library's progress, in figures
                self._view.note(line)
        return len(text)


def _share(report: StepReport | None) -> str:
    for check in report.checks if report is not None else ():
        if check.name == "share" and check.value is not None:
            return f", observed share {check.value:.1%} of {check.n}"
    return ""


def _answered(answers: Sequence[Answer]) -> str:
    """What clients were answered, in a line."""
    by = Counter(answer.version or "?" for answer in list(answers) if answer.kind == "answered")
    failed = Counter(answer.version or "nobody" for answer in list(answers) if answer.kind == "failed")
    busy = sum(answer.kind == "busy" for answer in list(answers))
    parts = [f"{sum(by.values())} answered" + (f" ({_listed(by)})" if by else "")]
    parts += [f"{sum(failed.values())} failed ({_listed(failed)})" if failed else "none failed"]
    parts += [f"{busy} told to come back"] if busy else []
    return ", ".join(parts)


def _listed(counted: Counter[str]) -> str:
    return ", ".join(f"{count} by {who}" for who, count in sorted(counted.items()))


def _wanted(rehearsed: Rehearsed) -> str:
    scenario = rehearsed.scenario
    if rehearsed.by_switching:
        first = rehearsed.by_switching[0]
        return f"{len(rehearsed.by_switching)} requests failed that were not the challenger's ({first.problem})"
    if scenario.verdict == "promoted":
        return "it is as good as the champion"
    return f"it had to be taken back because of {' or '.join(scenario.criteria)}"
