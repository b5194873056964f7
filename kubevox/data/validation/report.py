"""The validation report: what a dataset holds, what was refused or warned of, and for which reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kubevox.config import TaskConfig, ValidateConfig
from kubevox.data.dataset import DatasetVersion
from kubevox.data.validation.checks import CHECKS
from kubevox.data.validation.quality import SILENCE_FLOOR_DBFS
from kubevox.data.validation.squim import HOW_TO_GET
from kubevox.page import (
    INK,
    PALETTE,
    SYNTHETIC_NOTICE,
    Card,
    Section,
    audio,
    badge,
    cards,
    figure_html,
    gallery,
    key_values,
    link,
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
# From the report's folder, validations/<key>/, to the store's own.
_STORE = "../../"


def render(
    rows: Sequence[Row],
    rejects: Sequence[Mapping[str, str]],
    head: Mapping[str, Any],
    dataset: DatasetVersion,
    task: TaskConfig,
    config: ValidateConfig,
    heard: Mapping[str, bytes],
) -> str:
    """The report as a self-contained HTML page.

    Args:
        rows: every utterance, ordered by source id.
        rejects: what ingest could not decode: source_id, reason, message.
        head: the counts, as ``validation.json`` holds them.
        dataset: the version that was validated.
        task: the label set.
        config: the limits.
        heard: utterance id to FLAC, of what can be listened to in the page.
    """
    return render_page(
        title=f"Validation of the {task.name} data",
        banner=SYNTHETIC_NOTICE if dataset.synthetic else None,
        subtitle=f"{', '.join(corpus['title'] for corpus in dataset.corpora)} · dataset {dataset.hash[:12]}",
        sections=[
            _overview(rows, head, dataset, task, config),
            _checks(head, config),
            _remarks(head),
            _pictures(rows, head, task, config),
            _measures(head, config),
            _quarantined(rows, heard),
            _copies(rows),
            _warned(rows, heard),
            _rejected(rejects),
            _origin(head, dataset),
        ],
        footer="Every row, with what was measured and every reason against it, is in rows.parquet beside this page; "
        "the counts and figures are in validation.json.",
        audible=bool(heard),
    )


def _overview(
    rows: Sequence[Row],
    head: Mapping[str, Any],
    dataset: DatasetVersion,
    task: TaskConfig,
    config: ValidateConfig,
) -> Section:
    total, quarantined = head["utterances"], head["quarantined"]
    shards = f"{len(dataset.shards)} shard{_s(len(dataset.shards))}"
    hours = sum(row.duration_s or 0.0 for row in rows if row.accepted) / 3600
    speakers = len(head["speakers"])
    parts: list[Markup | str] = [
        cards(
            [
                Card("Found", f"{head['found']:,}", f"{total:,} stored, in {shards}"),
                Card(
                    "Accepted",
                    f"{head['accepted']:,}",
                    (f"{hours:.2f} h" if hours >= 1 else f"{hours * 60:.1f} min")
                    + (f"; {head['outside_task']:,} outside the task" if head["outside_task"] else ""),
                ),
                Card(
                    "Quarantined",
                    f"{quarantined:,}",
                    f"{quarantined / total:.1%}, the limit is {config.max_quarantined_share:.1%}",
                    "pass" if head["passed"] else "fail",
                ),
                Card("Failed", f"{head['rejects']:,}", "could not be decoded at ingest"),
                Card("With warnings", f"{head['warned']:,}", "accepted all the same"),
                Card("Speakers", f"{speakers:,}" if speakers else "unknown", _sexes(head["sexes"])),
            ]
        ),
        paragraph(
            f"{head['found']:,} found = {head['accepted']:,} accepted + {quarantined:,} quarantined "
            f"+ {head['rejects']:,} failed."
        ),
    ]
    if not head["passed"]:
        parts.append(notice("Failed: more is quarantined than the limit allows. The run stops here.", "fail"))
    return Section("Overview", parts)


def _checks(head: Mapping[str, Any], config: ValidateConfig) -> Section:
    counts, reasons, warnings = head["checks"], head["reasons"], head["warnings"]
    rows = []
    for check in CHECKS:
        warned = sum(warnings.get(reason, 0) for reason in check.reasons)
        if counts[check.name]:
            outcome = badge(False, f"{counts[check.name]:,} refused")
        elif warned:
            outcome = badge("warn", f"{warned:,} warned of")
        elif _unasked(check.name, check.reasons, config):
            outcome = badge(None)
        else:
            outcome = badge(True, "all pass")
        given = {reason: reasons.get(reason, 0) + warnings.get(reason, 0) for reason in check.reasons}
        told = ", ".join(f"{reason} {count:,}" for reason, count in given.items() if count)
        rows.append([check.name.replace("_", " "), check.expectation, outcome, told or None])
    return Section("Checks", [table(["Check", "Expectation", "Result", "Reasons"], rows)])


def _unasked(check: str, reasons: Sequence[str], config: ValidateConfig) -> bool:
    if (check == "speech" and not config.vad) or (check == "quality" and config.squim is None):
        return True
    return all(getattr(config.gates, reason, "quarantine") == "ignore" for reason in reasons)


def _remarks(head: Mapping[str, Any]) -> Section:
    if not head["remarks"]:
        return Section("Remarks on the whole", [paragraph("Balanced, complete, and nothing contradicts itself.")])
    rows = [[remark["kind"].replace("_", " "), f"{remark['message']}."] for remark in head["remarks"]]
    return Section(
        "Remarks on the whole",
        [table(["What", "In figures"], rows)],
        lead="They refuse nothing; a score is to be read with them in mind.",
    )


def _pictures(rows: Sequence[Row], head: Mapping[str, Any], task: TaskConfig, config: ValidateConfig) -> Section:
    accepted = [row for row in rows if row.accepted]
    corpora = sorted({row.corpus for row in rows})
    colours = {corpus: PALETTE[i % len(PALETTE)] for i, corpus in enumerate(corpora)}
    with plotting():
        figures = [_labels_figure(accepted, task, colours), _sexes_figure(accepted, task)]
        if len(head["languages"]) > 1 and task.label_column != "language":
            figures.append(_languages_figure(accepted, colours))
        figures += [
            _speakers_figure(accepted, colours),
            _durations_figure(rows, colours, config),
            _levels_figure(rows, colours, config),
            *(
                _measure_figure(rows, colours, name, words, unit, scale, limit, digits)
                for name, words, unit, scale, limit, digits in _drawn(config)
                if any(getattr(row, name) is not None for row in rows)
            ),
        ]
    return Section("What the data holds", [gallery(figures)])


def _drawn(config: ValidateConfig) -> list[tuple[str, str, str, float, float, int]]:
    """What gets a picture: column, in words, unit, factor to that unit, limit in the column's own, digits."""
    return [
        ("snr_db", "Signal-to-noise ratio, estimated", "dB", 1.0, config.min_snr_db, 0),
        ("bandwidth_hz", "Bandwidth", "kHz", 1e-3, config.min_bandwidth_hz, 1),
        ("silence_ratio", "Share of silence", "%", 100.0, config.max_silence_ratio, 0),
        ("speech_ratio", "Share of speech (silero-vad)", "%", 100.0, config.min_speech_ratio, 0),
        ("stoi", "STOI, estimated", "", 1.0, config.min_stoi, 2),
        ("pesq", "PESQ, estimated", "", 1.0, config.min_pesq, 2),
        ("si_sdr_db", "SI-SDR, estimated", "dB", 1.0, config.min_si_sdr_db, 0),
    ]


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


def _sexes_figure(accepted: Sequence[Row], task: TaskConfig) -> Markup:
    counts = Counter((row.label, row.sex or "unknown") for row in accepted)
    order = ("female", "male", "unknown")
    figure, axes = new_figure(height_in=max(2.9, 1.0 + 0.27 * len(task.labels)))
    left = np.zeros(len(task.labels))
    colours = dict(zip(order, (PALETTE[4], PALETTE[5], PALETTE[7]), strict=True))
    totals = np.array([sum(counts[label, sex] for sex in order) for label in task.labels])
    shown = [sex for sex in order if any(counts[label, sex] for label in task.labels)]
    for sex in shown:
        shares = 100 * np.array([counts[label, sex] for label in task.labels]) / np.maximum(totals, 1)
        axes.barh(task.labels, shares, left=left, color=colours[sex], height=0.7)
        left += shares
    axes.axvline(50, color=INK, linestyle="--", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("accepted recordings (%)")
    _legend(axes, {sex: colours[sex] for sex in shown}, always=True)
    female = {
        label: 100 * counts[label, "female"] / total for label, total in zip(task.labels, totals, strict=True) if total
    }
    return figure_html(
        figure,
        alt="Female speakers: " + ", ".join(f"{label} {share:.0f} %" for label, share in female.items()),
        caption="Sex of the speakers of each label's accepted recordings.",
    )


def _languages_figure(accepted: Sequence[Row], colours: Mapping[str, str]) -> Markup:
    languages = sorted({row.language or "unknown" for row in accepted})
    counts = Counter((row.language or "unknown", row.corpus) for row in accepted)
    figure, axes = new_figure(height_in=max(2.9, 1.0 + 0.27 * len(languages)))
    left = np.zeros(len(languages))
    for corpus, colour in colours.items():
        widths = np.array([counts[language, corpus] for language in languages])
        axes.barh(languages, widths, left=left, color=colour, height=0.7)
        left += widths
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("accepted recordings")
    _legend(axes, colours)
    return figure_html(
        figure,
        alt="Languages: " + ", ".join(f"{name} {total:.0f}" for name, total in zip(languages, left, strict=True)),
        caption="Accepted recordings of each language, by corpus.",
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


def _measure_figure(
    rows: Sequence[Row],
    colours: Mapping[str, str],
    name: str,
    words: str,
    unit: str,
    scale: float,
    limit: float,
    digits: int,
) -> Markup:
    values = {
        corpus: [scale * value for row in rows if row.corpus == corpus and (value := getattr(row, name)) is not None]
        for corpus in colours
    }
    everything = [value for column in values.values() for value in column]
    figure, axes = new_figure()
    _histogram(axes, values, colours)
    _limits(axes, everything, [scale * limit])
    axes.set_xlabel(f"{words[0].lower() if words[1].islower() else words[0]}{words[1:]}{f' ({unit})' if unit else ''}")
    axes.set_ylabel("recordings")
    low, middle, high = (f"{mark:.{digits}f}" for mark in np.percentile(everything, [5, 50, 95]))
    of = f"\N{NO-BREAK SPACE}{unit}" if unit else ""
    return figure_html(
        figure,
        alt=f"{words}: median {middle}{of}",
        caption=f"{words}: median {middle}{of}, nine in ten between {low} and {high}{of}. "
        f"Limit: {scale * limit:.{digits}f}{of}.",
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


def _legend(axes: Axes, colours: Mapping[str, str], *, always: bool = False) -> None:
    """Name the corpora above the picture; a single one needs no legend."""
    from matplotlib.patches import Patch

    if always or len(colours) > 1:
        handles = [Patch(color=colour, label=corpus) for corpus, colour in colours.items()]
        axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(handles)))


def _measures(head: Mapping[str, Any], config: ValidateConfig) -> Section:
    columns = [
        ("duration_s", "Duration (s)", 1.0, 2),
        ("rms_dbfs", "Level (dBFS)", 1.0, 1),
        ("snr_db", "SNR (dB)", 1.0, 0),
        ("bandwidth_hz", "Bandwidth (kHz)", 1e-3, 1),
        ("silence_ratio", "Silence (%)", 100.0, 0),
        ("speech_ratio", "Speech (%)", 100.0, 0),
        ("stoi", "STOI", 1.0, 2),
        ("pesq", "PESQ", 1.0, 2),
        ("si_sdr_db", "SI-SDR (dB)", 1.0, 0),
    ]
    figures = head["measures"]
    used = [column for column in columns if any(column[0] in measures for measures in figures.values())]
    cells = [
        [corpus, *(_spread(measures.get(name), scale, digits) for name, _, scale, digits in used)]
        for corpus, measures in figures.items()
    ]
    parts: list[Markup | str] = [
        table(
            ["Corpus", *(title for _, title, _, _ in used)],
            cells,
            numeric=set(range(1, len(used) + 1)),
            caption="Median, and in brackets what nine in ten recordings lie between.",
        )
    ]
    if not config.vad:
        parts.append(paragraph("Voice activity was not measured: validation.vad is false."))
    if config.squim is None:
        parts.append(paragraph(HOW_TO_GET))
    return Section("Signal quality", parts)


def _spread(figures: Mapping[str, float] | None, scale: float, digits: int) -> str | None:
    if figures is None:
        return None
    middle, low, high = (f"{scale * figures[name]:.{digits}f}" for name in ("median", "p5", "p95"))
    return f"{middle} ({low} to {high})".replace("-", "−")


def _quarantined(rows: Sequence[Row], heard: Mapping[str, bytes]) -> Section:
    refused = [row for row in rows if not row.accepted]
    if not refused:
        return Section("Quarantined", [paragraph("Nothing is quarantined.")])
    parts = _recordings(refused, heard, lambda row: zip(row.reasons, row.details, strict=True))
    return Section(f"Quarantined ({len(refused):,})", parts)


def _warned(rows: Sequence[Row], heard: Mapping[str, bytes]) -> Section:
    warned = [row for row in rows if row.accepted and row.warnings]
    if not warned:
        return Section("Warnings", [paragraph("No accepted recording gives rise to a warning.")])
    parts = _recordings(warned, heard, lambda row: zip(row.warnings, row.warning_details, strict=True))
    return Section(
        f"Warnings ({len(warned):,})", parts, lead="Accepted: validation.gates only warn of what is said here."
    )


def _recordings(
    rows: Sequence[Row], heard: Mapping[str, bytes], said: Callable[[Row], Iterable[tuple[str, str]]]
) -> list[Markup | str]:
    """A searchable table of recordings, each with its place in the store and what is said against it."""
    headers = ["Recording", "Place", "Label", "Speaker", "Duration (s)", "Level (dBFS)", "Reasons"]
    listens = any(row.id in heard for row in rows)
    cells: list[list[Any]] = []
    for row in rows[:_ROWS_SHOWN]:
        place = link(f"{row.shard.rpartition('/')[2][:8]}… row {row.row}", f"{_STORE}{row.shard}#row={row.row}")
        cells.append(
            [
                row.source_id,
                place,
                row.label,
                row.speaker,
                None if row.duration_s is None else f"{row.duration_s:.2f}",
                None if row.rms_dbfs is None else f"{row.rms_dbfs:.1f}",
                "; ".join(f"{reason}: {detail}" for reason, detail in said(row)),
                *([audio(heard[row.id]) if row.id in heard else None] if listens else []),
            ]
        )
    parts: list[Markup | str] = []
    if len(rows) > _ROWS_SHOWN:
        parts.append(paragraph(f"The first {_ROWS_SHOWN:,} of {len(rows):,}; all are in rows.parquet."))
    parts.append(table([*headers, *(["Listen"] if listens else [])], cells, numeric={4, 5}, searchable=True))
    return parts


def _copies(rows: Sequence[Row]) -> Section:
    """Recordings that are there more than once, as groups."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.id, []).append(row)
    copied = [group for group in groups.values() if len(group) > 1]
    if not copied:
        return Section("Duplicates", [paragraph("No recording is there twice.")])
    cells = [
        [
            ", ".join(row.source_id for row in group if row.accepted) or None,
            ", ".join(row.source_id for row in group if not row.accepted) or None,
            ", ".join(sorted({row.corpus for row in group})),
            ", ".join(sorted({row.speaker or "unknown" for row in group})),
            ", ".join(sorted({row.label or "none" for row in group})),
        ]
        for group in copied[:_ROWS_SHOWN]
    ]
    parts: list[Markup | str] = []
    if len(copied) > _ROWS_SHOWN:
        parts.append(paragraph(f"The first {_ROWS_SHOWN:,} of {len(copied):,}; all are in rows.parquet."))
    headers = ["Accepted", "Quarantined", "Corpus", "Speaker", "Label"]
    parts.append(table(headers, cells, searchable=True))
    return Section(
        f"Duplicates ({len(copied):,})",
        parts,
        lead="Recordings that decode to the same waveform, whatever their names.",
    )


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
    cells = [
        [
            corpus["name"],
            corpus["title"],
            *(corpus.get(key) for key in ("found", "left_out", "forgotten", "failed", "stored")),
            head["corpora"].get(corpus["name"], 0),
            (corpus.get("published") or {}).get("recordings"),
            corpus["licence"],
            corpus["citation"],
        ]
        for corpus in dataset.corpora
    ]
    headers = ["Corpus", "Title", "Found", "Left out", "Forgotten", "Failed", "Stored", "Accepted", "Published"]
    gates = head["config"]["gates"]
    limits = {name: value for name, value in head["config"].items() if name not in ("sample_rates", "gates")}
    values = {
        "dataset": dataset.hash,
        "stored at": dataset.uri,
        "label column": head["task"]["label_column"],
        "labels": ", ".join(head["task"]["labels"]),
        "limits": ", ".join(f"{name} {value}" for name, value in limits.items()),
        **{
            f"gates: {verdict}": ", ".join(reason for reason, said in gates.items() if said == verdict) or None
            for verdict in ("quarantine", "warn", "ignore")
        },
        "sample rates (Hz)": ", ".join(map(str, head["config"]["sample_rates"])),
        "code": head["lineage"]["commit"],
    }
    return Section(
        "Where it comes from",
        [table([*headers, "Licence", "Citation"], cells, numeric=set(range(2, 9))), key_values(values)],
    )


def _sexes(sexes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {sex}" for sex, count in sexes.items())


def _s(count: int) -> str:
    return "" if count == 1 else "s"
