"""The page that tells a rollout: its states, the traffic, latency and errors by version, every check, the verdict."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kubevox.deployment.checks import FAIL, PASS, Check
from kubevox.deployment.record import RolloutRecord, StepReport
from kubevox.page import (
    INK,
    PALETTE,
    SYNTHETIC_NOTICE,
    Card,
    Section,
    badge,
    cards,
    figure_html,
    gallery,
    key_values,
    new_figure,
    notice,
    plotting,
    render_page,
    table,
)

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

__all__ = ["render_timeline"]

_STABLE, _CANARY, _ROUTE = PALETTE[0], PALETTE[3], PALETTE[7]
_COLOURS = {"stable": _STABLE, "canary": _CANARY, "route": _ROUTE}
_WIDTHS = {"stable": 2.8, "canary": 1.7, "route": 0.9}
_NAMES = {"stable": "in production", "canary": "challenger", "route": "route"}
_ASKED = {
    "error_rate": "The challenger's errors",
    "route_errors": "Errors through the route",
    "share": "Observed share",
    "versions": "Answers of other versions",
    "latency_p95": "95th percentile of the latency",
    "prediction_mix": "Labels' proportions against production",
    "agreement": "Same label as production",
    "uar": "UAR on the probe",
}
_WORDS = {
    "registered": "registered",
    "restoring": "champion brought up",
    "candidate": "challenger brought up",
    "ready": "ready",
    "conforming": "answers as evaluated",
    "probing": "asked directly",
    "standing": "in production already",
    "shifting": "share changed",
    "watching": "watched",
    "passed": "step passed",
    "promoting": "promoted",
    "promoted": "in production",
    "champion": "champion",
    "taking_back": "taken back",
    "rolled_back": "gone",
    "recorded": "recorded",
}
_SHARES = ("error_rate", "route_errors", "share", "versions", "agreement")


def render_timeline(record: RolloutRecord) -> str:
    """A complete HTML document.

    Args:
        record: the rollout, at its end.
    """
    sections = [
        Section("Verdict", [_verdict(record), _cards(record)]),
        Section("Course", [*_course(record), _transitions(record)], lead="Times are in seconds from the beginning."),
    ]
    for report in record.steps:
        sections.append(_step(record, report))
    sections.append(Section("What it rests on", [key_values(_lineage(record))]))
    return render_page(
        f"Rollout of {record.model} version {record.version}",
        SYNTHETIC_NOTICE if record.synthetic else None,
        sections,
        subtitle=f"{_date(record.started)}, {record.finished - record.started:.0f} s, back end {record.backend}",
    )


def _verdict(record: RolloutRecord) -> Markup:
    version, before = record.version, record.previous
    if record.outcome == "promoted":
        place = f" in place of version {before}" if before and before != version else ""
        return notice(f"Version {version} is champion{place}: {record.reason}.", "pass")
    stays = f"Version {before} stays in production" if before and before != version else "Nothing is in production"
    if before == version:
        stays = "It stays in production, and needs looking at"
    what = "was rolled back" if record.outcome == "rolled_back" else "was not rolled out"
    return notice(f"Version {version} {what} ({record.criterion}): {record.reason}. {stays}.", "fail")


def _cards(record: RolloutRecord) -> Markup:
    promoted = record.outcome == "promoted"
    sides = [side for report in record.steps for side in report.sides.values()]
    checks = [check for report in record.steps for check in report.checks]
    held = sum(check.outcome == PASS for check in checks)
    items = [
        Card("Outcome", record.outcome.replace("_", " "), record.criterion, "pass" if promoted else "fail"),
        Card("Challenger", f"version {record.version}", f"beside version {record.previous}" if record.previous else ""),
        Card("Checks that held", f"{held} of {len(checks)}", "", "pass" if held == len(checks) else "fail"),
        Card("Requests", f"{sum(side.requests for side in sides):,}", f"{sum(side.failed for side in sides)} failed"),
    ]
    if (compared := record.conformity) is not None:
        items.append(
            Card(
                "Served against evaluated",
                f"{compared.largest_difference:.1g}",
                f"largest difference, {compared.recordings} recordings; {compared.tolerance:g} is allowed",
                "pass",
            )
        )
    return cards(items)


def _course(record: RolloutRecord) -> list[Markup]:
    with plotting():
        figures = [_share_figure(record)]
        if any(report.slices for report in record.steps):
            figures += [_latency_figure(record), _error_figure(record)]
    return [figures[0], gallery(figures[1:])] if len(figures) > 1 else figures


def _share_figure(record: RolloutRecord) -> Markup:
    """Asked and observed share over the time, with the states that it went through."""
    figure, axes = new_figure(10.4, 3.1)
    times, shares = _asked(record)
    axes.step(times, shares, where="post", color=INK, linewidth=1.4, label="asked")
    labelled = False
    for report in record.steps:
        for one in report.slices:
            if one.route:
                axes.plot(
                    one.at - record.started,
                    100 * one.canary / one.route,
                    "o",
                    color=_CANARY,
                    markersize=3.2,
                    alpha=0.45,
                )
        if not report.percent:
            continue
        check = report.check("share")
        if check.value is None or check.low is None or check.high is None:
            continue
        middle = (report.started + report.ended) / 2 - record.started
        spread = [[100 * (check.value - check.low)], [100 * (check.high - check.value)]]
        axes.errorbar(
            [middle],
            [100 * check.value],
            yerr=spread,
            fmt="D",
            color=_CANARY,
            capsize=4,
            markersize=5.5,
            label=None if labelled else f"observed, {record.config.get('confidence', 0.95):.0%} interval",
        )
        # Where the line goes on below, the words stand above, and the other way round.
        above = check.value < 0.85
        axes.annotate(
            f"{check.value:.1%} of {check.n:,}",
            (middle, 100 * (check.high if above else check.low)),
            (0, 6 if above else -6),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=8.5,
        )
        labelled = True
    _mark(axes, record)
    axes.set(xlabel="seconds", ylabel="challenger's share, %", ylim=(-4, 108))
    axes.margins(x=0.02)
    axes.legend(loc="upper left")
    alt = "The share of the route that was asked for the challenger, and the observed one, over time"
    return figure_html(figure, alt, "Dots are short stretches, diamonds whole steps with their interval.")


def _latency_figure(record: RolloutRecord) -> Markup:
    figure, axes = new_figure(5.1, 2.9)
    _curves(axes, record, ("stable", "canary"), lambda one, way: _times_1000(one.p95_s.get(way)))
    axes.set(xlabel="seconds", ylabel="95th percentile, ms")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure_html(figure, "The latency of both versions over time", "Latency of the direct requests, by version.")


def _error_figure(record: RolloutRecord) -> Markup:
    figure, axes = new_figure(5.1, 2.9)
    _curves(axes, record, ("stable", "canary", "route"), _failed_percent)
    axes.set(xlabel="seconds", ylabel="requests that failed, %")
    axes.set_ylim(bottom=-0.2, top=max(5.0, axes.get_ylim()[1]))
    axes.legend()
    return figure_html(figure, "The failed requests of both versions and of the route over time", "Errors, by way.")


def _curves(axes: Axes, record: RolloutRecord, ways: Sequence[str], figure_of: Any) -> None:
    for way in ways:
        times: list[float] = []
        values: list[float] = []
        for report in record.steps:
            for one in report.slices:
                value = figure_of(one, way)
                if value is not None:
                    times.append(one.at - record.started)
                    values.append(value)
            times.append(np.nan)  # a gap between two steps
            values.append(np.nan)
        if np.isfinite(values).any():
            width = _WIDTHS[way]  # where lines lie upon each other, all of them are seen
            axes.plot(
                times, values, color=_COLOURS[way], label=_NAMES[way], marker="o", markersize=width, linewidth=width
            )


def _failed_percent(one: Any, way: str) -> float | None:
    return 100 * one.failed[way] / one.requests[way] if one.requests.get(way) else None


def _times_1000(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _asked(record: RolloutRecord) -> tuple[list[float], list[float]]:
    """The share that is in force, from each moment on."""
    times, shares = [0.0], [0.0]
    for transition in record.transitions:
        share = {"watching": transition.percent, "promoted": 100, "rolled_back": 0, "candidate": 0}.get(
            transition.state
        )
        if share is not None:
            times.append(transition.at - record.started)
            shares.append(float(share))
    times.append(record.finished - record.started)
    shares.append(shares[-1])
    return times, shares


def _mark(axes: Axes, record: RolloutRecord) -> None:
    """The moments that a reader looks for, as lines."""
    for transition in record.transitions:
        if transition.state in ("ready", "champion", "taking_back"):
            bad = transition.state == "taking_back"
            at = transition.at - record.started
            axes.axvline(at, color=_CANARY if bad else INK, linewidth=0.9, linestyle=":")
            right = at > 0.8 * (record.finished - record.started)
            axes.annotate(
                _WORDS[transition.state],
                (at, 0.5),
                (-3 if right else 3, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                rotation=90,
                ha="right" if right else "left",
                va="center",
                fontsize=8,
            )


def _transitions(record: RolloutRecord) -> Markup:
    rows = [
        (
            f"{transition.at - record.started:.2f}",
            _WORDS.get(transition.state, transition.state),
            transition.percent if transition.state in ("shifting", "watching", "passed") else None,
            record.criterion if transition.state == "taking_back" else transition.note,
        )
        for transition in record.transitions
    ]
    return table(["Second", "State", "Asked, %", "Note"], rows, numeric=(0, 2), caption="Every state it was in")


def _step(record: RolloutRecord, report: StepReport) -> Section:
    title = f"At {report.percent} % of the route" if report.percent else "Asked directly"
    rows = [
        (
            _ASKED.get(check.name, check.name),
            badge({PASS: True, FAIL: False}.get(check.outcome, "warn"), _word(check, report)),
            _shown(check, check.value),
            _interval(check),
            _shown(check, check.limit),
            check.n,
            check.explanation,
        )
        for check in report.checks
    ]
    ways = [
        (
            f"version {record.version if way == 'canary' else record.previous}, directly" if way != "route" else way,
            side.requests,
            side.busy,
            side.failed,
            _milliseconds(side.p50_s),
            _milliseconds(side.p95_s),
            ", ".join(f"{version}: {count}" for version, count in side.versions.items()),
            "; ".join(f"{problem} ({count})" for problem, count in side.problems.items()),
        )
        for way, side in report.sides.items()
    ]
    headers = ["Check", "", "Value", "Interval", "Limit", "Answers", "In words"]
    sent = ["Way", "Requests", "Busy", "Failed", "Median, ms", "95 %, ms", "Answers by version", "What was wrong"]
    return Section(
        title,
        [table(headers, rows, numeric=(2, 3, 4, 5)), table(sent, ways, numeric=(1, 2, 3, 4, 5))],
        lead=f"{report.requests:,} requests in {report.ended - report.started:.1f} s.",
    )


def _word(check: Check, report: StepReport) -> str:
    if check.outcome in (PASS, FAIL):
        return check.outcome
    return "undecided: fails" if check in report.broken else "undecided"


def _shown(check: Check, value: float | None) -> str | None:
    if value is None or not np.isfinite(value):
        return None
    if check.name == "latency_p95":
        return f"{1000 * value:.1f} ms"
    return f"{value:.1%}" if check.name in _SHARES else f"{value:.3f}"


def _interval(check: Check) -> str | None:
    if check.low is None or check.high is None:
        return None
    return f"{_shown(check, check.low) or '–'} to {_shown(check, check.high) or '–'}"


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{1000 * seconds:.1f}"


def _lineage(record: RolloutRecord) -> dict[str, Any]:
    config = record.config
    errors = config.get("errors", {})
    return {
        "Bundle": record.bundle,
        "Evaluation": record.evaluation or None,
        "Steps, %": ", ".join(map(str, [*config.get("steps", []), 100])),
        "A step lasts": f"{config.get('dwell_s')} s at least, {config.get('max_s')} s or {config.get('max_requests')} "
        "requests at most",
        "Errors": f"Wald's test: {errors.get('acceptable')} is acceptable, {errors.get('unacceptable')} is not; false "
        f"alarm {errors.get('false_alarm')}, miss {errors.get('miss')}",
        "Intervals": f"{config.get('confidence')}, two-sided",
        "Undecided checks": config.get("undecided"),
    }


def _date(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
