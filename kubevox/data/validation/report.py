"""The validation report: what a dataset holds, and what was refused for which reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kubevox.config import TaskConfig, ValidateConfig
from kubevox.data.dataset import DatasetVersion
from kubevox.data.validation.checks import CHECKS, SILENCE_FLOOR_DBFS
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
    paragraph,
    plotting,
    render_page,
    table,
)

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

    from kubevox.data.validation import Row

__all__ = ["render"]

_ROWS_SHOWN = 1000
_BARS_SHOWN = 60


def render(
    rows: Sequence[Row],
    rejects: Sequence[Mapping[str, str]],
    head: Mapping[str, Any],
    dataset: DatasetVersion,
    task: TaskConfig,
    config: ValidateConfig,
) -> str:
    """The report as a self-contained HTML page.

    Args:
        rows: every utterance, ordered by source id.
        rejects: what ingest could not decode: source_id, reason, message.
        head: the counts, as ``validation.json`` holds them.
        dataset: the version that was validated.
        task: the label set.
        config: the limits.
    """
    return render_page(
        title=f"Validation of the {task.name} data",
        banner=SYNTHETIC_NOTICE if dataset.synthetic else None,
        subtitle=f"{', '.join(corpus['title'] for corpus in dataset.corpora)} · dataset {dataset.hash[:12]}",
        sections=[
            _overview(rows, head, dataset, task, config),
            _checks(head),
            _pictures(rows, task, config),
            _quarantined(rows),
            _rejected(rejects),
            _origin(head, dataset),
        ],
        footer="Every row, with what was measured and every reason against it, is in rows.parquet beside this page.",
    )


def _overview(
    rows: Sequence[Row],
    head: Mapping[str, Any],
    dataset: DatasetVersion,
    task: TaskConfig,
    config: ValidateConfig,
) -> Section:
    total, quarantined = head["utterances"], head["quarantined"]
    hours = sum(row.duration_s or 0.0 for row in rows if row.accepted) / 3600
    speakers = len(head["speakers"])
    parts: list[Markup | str] = [
        cards(
            [
                Card("Recordings", f"{total:,}", f"in {len(dataset.shards)} shard{_s(len(dataset.shards))}"),
                Card(
                    "Accepted",
                    f"{head['accepted']:,}",
                    f"{head['outside_task']:,} of them outside the task" if head["outside_task"] else "all in the task",
                ),
                Card(
                    "Quarantined",
                    f"{quarantined:,}",
                    f"{quarantined / total:.1%}, the limit is {config.max_quarantined_share:.1%}",
                    "pass" if head["passed"] else "fail",
                ),
                Card("Not decodable", f"{head['rejects']:,}", "left out at ingest"),
                Card("Speech accepted", f"{hours:.2f} h" if hours >= 1 else f"{hours * 60:.1f} min"),
                Card("Speakers", f"{speakers:,}" if speakers else "unknown", _sexes(head["sexes"])),
            ]
        )
    ]
    if not head["passed"]:
        parts.append(notice("Failed: more is quarantined than the limit allows. The run stops here.", "fail"))
    if missing := [label for label in task.labels if not head["labels"][label]]:
        parts.append(notice(f"No accepted recording is labelled {', '.join(missing)}."))
    if anonymous := sum(row.accepted and row.speaker is None for row in rows):
        parts.append(
            notice(f"{anonymous:,} accepted recordings name no speaker: no split of them can be certified as disjoint.")
        )
    return Section("Overview", parts)


def _checks(head: Mapping[str, Any]) -> Section:
    counts, reasons = head["checks"], head["reasons"]
    rows = [
        [
            check.name.replace("_", " "),
            check.expectation,
            badge(not counts[check.name], f"{counts[check.name]:,} refused" if counts[check.name] else "all pass"),
            ", ".join(f"{reason} {reasons[reason]}" for reason in check.reasons if reason in reasons) or None,
        ]
        for check in CHECKS
    ]
    return Section("Checks", [table(["Check", "Expectation", "Result", "Reasons"], rows)])


def _pictures(rows: Sequence[Row], task: TaskConfig, config: ValidateConfig) -> Section:
    accepted = [row for row in rows if row.accepted]
    corpora = sorted({row.corpus for row in rows})
    colours = {corpus: PALETTE[i % len(PALETTE)] for i, corpus in enumerate(corpora)}
    with plotting():
        figures = [
            _labels_figure(accepted, task, colours),
            _speakers_figure(accepted, colours),
            _durations_figure(rows, colours, config),
            _levels_figure(rows, colours, config),
        ]
    return Section("What the data holds", [gallery(figures)])


def _labels_figure(accepted: Sequence[Row], task: TaskConfig, colours: Mapping[str, str]) -> Markup:
    figure, axes = new_figure(height_in=max(2.9, 1.0 + 0.27 * len(task.labels)))
    counts = Counter((row.label, row.corpus) for row in accepted)
    left = np.zeros(len(task.labels))
    for corpus, colour in colours.items():
        widths = np.array([counts[label, corpus] for label in task.labels])
        axes.barh(task.labels, widths, left=left, color=colour, label=corpus, height=0.7)
        left += widths
    for place, total in enumerate(left):
        axes.annotate(f"{total:,.0f}", (total, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("accepted recordings")
    _legend(axes, colours)
    return figure_html(
        figure,
        alt="Accepted recordings: " + ", ".join(f"{k} {v:.0f}" for k, v in zip(task.labels, left, strict=True)),
        caption="Accepted recordings of each label, by corpus.",
    )


def _speakers_figure(accepted: Sequence[Row], colours: Mapping[str, str]) -> Markup:
    counts = Counter((row.corpus, row.speaker) for row in accepted if row.speaker)
    if not counts:
        return paragraph("No accepted recording names its speaker.")
    order = sorted(counts, key=lambda key: (key[0], -counts[key], key[1]))
    figure, axes = new_figure()
    sizes = [counts[key] for key in order]
    if len(order) <= _BARS_SHOWN:
        axes.bar(range(len(order)), sizes, color=[colours[corpus] for corpus, _ in order], width=0.8)
        if len(order) <= 40:
            names = [str(speaker).partition(":")[2][:8] for _, speaker in order]
            axes.set_xticks(range(len(order)), names, rotation=90, fontsize=7.5)
        else:
            axes.set_xticks([])
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("speaker, by corpus")
        axes.set_ylabel("accepted recordings")
        used = {corpus: colour for corpus, colour in colours.items() if any(key[0] == corpus for key in order)}
        _legend(axes, used)
    else:
        by_corpus = {corpus: [counts[key] for key in order if key[0] == corpus] for corpus in colours}
        _histogram(axes, by_corpus, colours)
        axes.set_xlabel("accepted recordings of a speaker")
        axes.set_ylabel("speakers")
    return figure_html(
        figure,
        alt=f"{len(order)} speakers with {min(sizes)} to {max(sizes)} accepted recordings each",
        caption=f"{len(order):,} speaker{_s(len(order))}, {min(sizes):,} to {max(sizes):,} accepted recordings each.",
    )


def _durations_figure(rows: Sequence[Row], colours: Mapping[str, str], config: ValidateConfig) -> Markup:
    durations = {
        corpus: [row.duration_s for row in rows if row.corpus == corpus and row.duration_s and row.duration_s > 0]
        for corpus in colours
    }
    everything = [value for values in durations.values() for value in values]
    if not everything:
        return paragraph("No recording has a duration.")
    figure, axes = new_figure()
    _histogram(axes, durations, colours)
    _limits(axes, everything, [config.min_duration_s, config.max_duration_s])
    axes.set_xlabel("duration (s)")
    axes.set_ylabel("recordings")
    median = float(np.median(everything))
    return figure_html(
        figure,
        alt=f"Durations from {min(everything):.2f} to {max(everything):.2f} s, median {median:.2f} s",
        caption=f"Durations of all recordings: {min(everything):.2f} to {max(everything):.2f} s, "
        f"median {median:.2f} s. Accepted: {config.min_duration_s:g} to {config.max_duration_s:g} s.",
    )


def _levels_figure(rows: Sequence[Row], colours: Mapping[str, str], config: ValidateConfig) -> Markup:
    levels = {
        corpus: [row.rms_dbfs for row in rows if row.corpus == corpus and row.rms_dbfs is not None]
        for corpus in colours
    }
    everything = [value for values in levels.values() for value in values]
    if not everything:
        return paragraph("No recording decodes.")
    figure, axes = new_figure()
    # Digital silence would stretch the axis by 80 dB of nothing.
    lowest = config.silence_dbfs - 10
    _histogram(axes, {corpus: np.maximum(values, lowest).tolist() for corpus, values in levels.items()}, colours)
    _limits(axes, [max(value, lowest) for value in everything], [config.silence_dbfs])
    axes.set_xlabel("level, RMS (dBFS)")
    axes.set_ylabel("recordings")
    silent = sum(value <= SILENCE_FLOOR_DBFS for value in everything)
    return figure_html(
        figure,
        alt=f"Levels from {min(everything):.1f} to {max(everything):.1f} dBFS",
        caption=f"Levels of all recordings: median {np.median(everything):.1f} dBFS. Below {config.silence_dbfs:g} "
        f"dBFS counts as silent{f' (digital silence: {silent})' if silent else ''}.",
    )


def _histogram(axes: Axes, values: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.hist(
        [np.asarray(column, dtype=float) for column in values.values()],
        bins=30,
        stacked=True,
        color=[colours[corpus] for corpus in values],
        label=list(values),
    )
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes, colours)


def _limits(axes: Axes, values: Sequence[float], limits: Sequence[float]) -> None:
    """Mark the limits that lie near the values; far ones would squeeze the picture."""
    reach = 0.35 * (max(values) - min(values) + 1e-9)
    for limit in limits:
        if min(values) - reach <= limit <= max(values) + reach:
            axes.axvline(limit, color=INK, linestyle="--", linewidth=1)
            axes.annotate(
                "limit",
                (limit, 1),
                (3, -3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                va="top",
                fontsize=8,
            )


def _legend(axes: Axes, colours: Mapping[str, str]) -> None:
    """Name the corpora above the picture; a single one needs no legend."""
    from matplotlib.patches import Patch

    if len(colours) > 1:
        handles = [Patch(color=colour, label=corpus) for corpus, colour in colours.items()]
        axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(handles)))


def _quarantined(rows: Sequence[Row]) -> Section:
    refused = [row for row in rows if not row.accepted]
    if not refused:
        return Section("Quarantined", [paragraph("Nothing is quarantined.")])
    cells = [
        [
            row.source_id,
            row.label,
            row.speaker,
            None if row.duration_s is None else f"{row.duration_s:.2f}",
            None if row.rms_dbfs is None else f"{row.rms_dbfs:.1f}",
            None if row.clipped_share is None else f"{row.clipped_share:.1%}",
            "; ".join(f"{reason}: {detail}" for reason, detail in zip(row.reasons, row.details, strict=True)),
        ]
        for row in refused[:_ROWS_SHOWN]
    ]
    parts: list[Markup | str] = []
    if len(refused) > _ROWS_SHOWN:
        parts.append(paragraph(f"The first {_ROWS_SHOWN:,} of {len(refused):,}; all are in rows.parquet."))
    headers = ["Recording", "Label", "Speaker", "Duration (s)", "Level (dBFS)", "Clipped", "Reasons"]
    parts.append(table(headers, cells, numeric={3, 4, 5}, searchable=True))
    return Section(f"Quarantined ({len(refused):,})", parts)


def _rejected(rejects: Sequence[Mapping[str, str]]) -> Section:
    if not rejects:
        return Section("Not decodable", [paragraph("Ingest could decode every file.")])
    parts: list[Markup | str] = []
    if len(rejects) > _ROWS_SHOWN:
        parts.append(paragraph(f"The first {_ROWS_SHOWN:,} of {len(rejects):,}; all are in rejects.parquet."))
    cells = [[reject["source_id"], reject["reason"], reject["message"]] for reject in rejects[:_ROWS_SHOWN]]
    parts.append(table(["Recording", "Reason", "What was wrong"], cells, searchable=True))
    return Section(
        f"Not decodable ({len(rejects):,})", parts, lead="Files that ingest left out; they are in no later count."
    )


def _origin(head: Mapping[str, Any], dataset: DatasetVersion) -> Section:
    rows = [
        [corpus["name"], corpus["title"], head["corpora"].get(corpus["name"], 0), corpus["licence"], corpus["citation"]]
        for corpus in dataset.corpora
    ]
    values = {
        "dataset": dataset.hash,
        "stored at": dataset.uri,
        "label column": head["task"]["label_column"],
        "labels": ", ".join(head["task"]["labels"]),
        "limits": ", ".join(f"{name} {value}" for name, value in head["config"].items() if name != "sample_rates"),
        "sample rates (Hz)": ", ".join(map(str, head["config"]["sample_rates"])),
        "code": head["lineage"]["commit"],
    }
    return Section(
        "Where it comes from",
        [table(["Corpus", "Title", "Accepted", "Licence", "Citation"], rows, numeric={2}), key_values(values)],
    )


def _sexes(sexes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {sex}" for sex, count in sexes.items())


def _s(count: int) -> str:
    return "" if count == 1 else "s"
