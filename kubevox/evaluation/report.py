"""The evaluation report: one page that says how good a model is, how sure that is, and what the gate decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kubevox.evaluation.gate import Criterion, Verdict
from kubevox.evaluation.intervals import FEWEST_SPEAKERS, Estimate
from kubevox.evaluation.probe import CorpusProbe
from kubevox.evaluation.scores import Cost, Scores
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

__all__ = ["ScoredModel", "render_report"]

_SPLITS = ("train", "validation", "test")
_OPEN = {
    "speaker-disjoint: unverified": "unverified",
    "sentence-disjoint: unverified": "unverified",
    "label-coverage": "in part",
}
"""What the badge of a check says that neither holds nor fails, where it is another word than "not asked"."""


@dataclass(frozen=True)
class ScoredModel:
    """A model, its figures on the test split, and its cost (None where it was not timed)."""

    name: str
    scores: Scores
    cost: Cost | None = None


def render_report(
    *,
    task: str,
    model: ScoredModel,
    verdict: Verdict,
    certificate: Mapping[str, Any],
    lineage: Mapping[str, str | None],
    synthetic: bool,
    baseline: ScoredModel | None = None,
    champion: ScoredModel | None = None,
    curves: Sequence[Mapping[str, float | None]] = (),
    verified_only: Scores | None = None,
    probe: CorpusProbe | None = None,
) -> str:
    """The report as a self-contained HTML page; on synthetic data its first line says so.

    Args:
        task: the task's name.
        model: the candidate.
        verdict: the gate's.
        certificate: the split's, as in ``certificate.json``: checks, speakers, utterances, labels.
        lineage: names and values such as dataset hash, split hash, bundle hash, commit, in the order to show.
        synthetic: whether any of the data is.
        baseline: a reference model scored on the same test split.
        champion: the model in production, scored on the same test split; None where there is none, or where the
            comparison was refused (the verdict then says why).
        curves: one mapping an epoch: ``epoch``, ``train_loss``, ``val_loss``, ``val_uar``, ``lr``; what is missing
            is not drawn.
        verified_only: the candidate's scores without the corpora that do not name their speakers.
        probe: how recognisable the corpora are.
    """
    with plotting():
        sections = [
            _overview(model, verdict, verified_only),
            _gate(verdict),
            _comparison(model, baseline, champion, verdict),
            _classes(model.scores),
            _calibration(model.scores),
            *([_training(curves)] if curves else []),
            _slices(model.scores),
            *_channel(probe, model.scores, certificate),
            _protocol(certificate),
            _lineage(model, lineage),
        ]
    return render_page(
        title=f"Evaluation of {model.name} on the {task} task",
        banner=SYNTHETIC_NOTICE if synthetic else None,
        subtitle=f"{_count(model.scores.utterances, 'test recording')} of {_voices(model.scores)}",
        sections=sections,
        footer=f"Intervals: {model.scores.confidence:.0%}, percentile bootstrap over speakers, "
        f"{model.scores.bootstrap_samples:,} draws. UAR: unweighted average recall, the mean of the labels' recalls.",
    )


def _overview(model: ScoredModel, verdict: Verdict, verified_only: Scores | None) -> Section:
    scores, cost = model.scores, model.cost
    label, worst = scores.worst
    states = {criterion.name: "pass" if criterion.passed else "fail" for criterion in verdict.criteria}
    items = [
        Card(
            "UAR",
            _figure(scores.uar),
            f"{_interval(scores, scores.uar)}; chance {scores.chance_uar:.3f}",
            states["uar"],
        ),
        *(
            [Card("UAR, speakers verified", _figure(verified_only.uar), _verified_note(verified_only))]
            if verified_only is not None
            else []
        ),
        Card("Accuracy", _figure(scores.accuracy), _interval(scores, scores.accuracy)),
        Card("Worst label", f"{worst:.3f}", f"recall of {label}", states["worst_recall"]),
        Card("Calibration error", f"{scores.calibration_error:.3f}", "0 is perfect", states["calibration_error"]),
    ]
    if cost is not None:
        items += [
            Card(
                "Latency",
                f"{cost.latency_p95_ms:.1f} ms",
                f"p95; p50 {cost.latency_p50_ms:.1f} ms",
                states["latency_p95_ms"],
            ),
            Card("Parameters", _short(cost.parameters), f"{cost.parameters:,}", states["parameters"]),
        ]
    outcome = verdict.summary()[0]
    failed = f": {', '.join(criterion.name for criterion in verdict.failed)}" if verdict.failed else ""
    decision = notice(f"{outcome[0].upper()}{outcome[1:]}{failed}.", "pass" if verdict.promote else "fail")
    caveats = [*scores.caveats]
    if verified_only is not None:
        caveats += [f"Speakers verified: {caveat}" for caveat in verified_only.caveats]
    return Section("Overview", [cards(items), decision, *(notice(caveat) for caveat in caveats)])


def _verified_note(scores: Scores) -> str:
    return f"{_interval(scores, scores.uar)}; {_count(scores.utterances, 'recording')} of corpora that name speakers"


def _gate(verdict: Verdict) -> Section:
    rows = [
        [badge(criterion.passed), criterion.name.replace("_", " "), *_held_against(criterion), criterion.explanation]
        for criterion in verdict.criteria
    ]
    return Section(
        "Gate",
        [table(["", "Criterion", "Value", "Threshold", "In words"], rows, numeric={2, 3})],
        lead="A model is promoted when every criterion holds.",
    )


def _held_against(criterion: Criterion) -> tuple[str | None, str | None]:
    if criterion.value is None or criterion.threshold is None:
        return None, None
    sign = {">=": "≥", "<=": "≤"}[criterion.direction]

    def shown(value: float) -> str:
        decimals = {"parameters": 0, "latency_p95_ms": 1}.get(criterion.name, 3)
        return f"{value:,.{decimals}f}"

    return shown(criterion.value), f"{sign} {shown(criterion.threshold)}"


def _comparison(
    model: ScoredModel, baseline: ScoredModel | None, champion: ScoredModel | None, verdict: Verdict
) -> Section:
    models = [("this model", model)]
    if baseline is not None:
        models.append(("baseline", baseline))
    if champion is not None:
        models.append(("champion", champion))
    rows: list[list[Any]] = [
        ["UAR", *(_with_interval(entry.scores.uar) for _, entry in models)],
        ["accuracy", *(_with_interval(entry.scores.accuracy) for _, entry in models)],
        ["macro F1", *(_with_interval(entry.scores.macro_f1) for _, entry in models)],
        ["Matthews correlation", *(_with_interval(entry.scores.mcc) for _, entry in models)],
        ["worst label", *(f"{entry.scores.worst[1]:.3f} ({entry.scores.worst[0]})" for _, entry in models)],
        ["calibration error", *(f"{entry.scores.calibration_error:.3f}" for _, entry in models)],
        ["parameters", *(f"{entry.cost.parameters:,}" if entry.cost else None for _, entry in models)],
        ["latency p50 (ms)", *(f"{entry.cost.latency_p50_ms:.1f}" if entry.cost else None for _, entry in models)],
        ["latency p95 (ms)", *(f"{entry.cost.latency_p95_ms:.1f}" if entry.cost else None for _, entry in models)],
    ]
    headers = ["", *(f"{entry.name} ({role})" for role, entry in models)]
    parts: list[Markup | str] = [table(headers, rows, numeric=range(1, len(headers)))]
    for role, other in models[1:]:
        difference = model.scores.uar.value - other.scores.uar.value
        parts.append(
            paragraph(
                f"Against the {role}, {other.name}: UAR {difference:+.3f} on the same {model.scores.utterances:,} "
                "test recordings."
            )
        )
    refused = [criterion for criterion in verdict.failed if criterion.name == "champion_comparable"]
    if refused:
        reason = refused[0].explanation
        parts.append(notice(f"{reason[0].upper()}{reason[1:]}.", "fail"))
    elif champion is None:
        parts.append(paragraph("There is no champion yet: only the absolute criteria were asked."))
    return Section("Compared with other models", parts)


def _classes(scores: Scores) -> Section:
    rows = [
        [
            label,
            scores.support[label],
            None if (found := scores.recall[label]) is None else f"{found.value:.3f}",
            None if found is None else f"{found.low:.3f} – {found.high:.3f}",
            None if (precision := scores.precision[label]) is None else f"{precision:.3f}",
        ]
        for label in scores.labels
    ]
    headers = ["Label", "Test recordings", "Recall", f"{scores.confidence:.0%} interval", "Precision"]
    return Section(
        "Label by label",
        [
            gallery([_confusion_figure(scores), _recall_figure(scores)]),
            table(headers, rows, numeric=range(1, 5)),
        ],
    )


def _confusion_figure(scores: Scores) -> Markup:
    counts = np.array(scores.confusion)
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    size = len(scores.labels)
    side = max(4.2, 1.1 + 0.54 * size)
    figure, axes = new_figure(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(size):
        for column in range(size):
            share = shares[row, column]
            text = f"{share:.2f}\n{counts[row, column]:,}" if counts[row, column] else "0"
            # On the colour of the cell, whatever the page's: black on pale, white on deep.
            colour = "#ffffff" if share > 0.7 else "#10141a"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8, linespacing=1.15)
    axes.set_xticks(range(size), scores.labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), scores.labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure_html(
        figure,
        alt="Confusion matrix; " + ", ".join(f"{k}: {shares[i, i]:.0%} right" for i, k in enumerate(scores.labels)),
        caption="Confusion matrix: shares of each true label (a row sums to 1), and counts.",
    )


def _recall_figure(scores: Scores) -> Markup:
    figure, axes = new_figure(5.0, max(3.0, 1.2 + 0.36 * len(scores.labels)))
    places = {label: place for place, label in enumerate(scores.labels)}
    known = {label: found for label, found in scores.recall.items() if found is not None}
    axes.barh(
        [places[label] for label in known],
        [found.value for found in known.values()],
        xerr=[
            [found.value - found.low for found in known.values()],
            [found.high - found.value for found in known.values()],
        ],
        color=PALETTE[0],
        height=0.65,
        ecolor=INK,
        capsize=3,
        error_kw={"linewidth": 1.1},
    )
    for label in scores.absent_labels:
        axes.text(0.01, places[label], "no test recording", va="center", fontsize=8, style="italic")
    axes.axvline(scores.uar.value, color=INK, linestyle="--", linewidth=1)
    axes.annotate(
        f"UAR {scores.uar.value:.3f}",
        (scores.uar.value, 1),
        (0, 3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )
    axes.set_yticks(range(len(scores.labels)), scores.labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("recall")
    return figure_html(
        figure,
        alt="Recall: " + ", ".join(f"{label} {found.value:.2f}" for label, found in known.items()),
        caption=f"Recall of each label, with {scores.confidence:.0%} intervals over speakers.",
    )


def _calibration(scores: Scores) -> Section:
    figure, axes = new_figure(5.0, 4.0)
    filled = [entry for entry in scores.reliability if entry.count]
    width = scores.reliability[0].high - scores.reliability[0].low
    axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.bar(
        [entry.low for entry in filled],
        [entry.accuracy or 0.0 for entry in filled],
        width=width * 0.94,
        align="edge",
        color=PALETTE[0],
        alpha=0.75,
        label="share right",
    )
    axes.plot(
        [entry.confidence or 0.0 for entry in filled],
        [entry.accuracy or 0.0 for entry in filled],
        color=PALETTE[3],
        marker="o",
        markersize=4,
        label="share right at mean confidence",
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence: the probability given to the answer")
    axes.set_ylabel("share of the answers that are right")
    axes.legend(loc="upper left")
    diagram = figure_html(
        figure,
        alt=f"Reliability diagram, expected calibration error {scores.calibration_error:.3f}",
        caption=f"Reliability diagram. Expected calibration error {scores.calibration_error:.3f} in "
        f"{len(scores.reliability)} bins of equal width (Guo et al. 2017).",
    )
    figure, axes = new_figure(5.0, 4.0)
    axes.bar(
        [entry.low for entry in scores.reliability],
        [entry.count for entry in scores.reliability],
        width=width * 0.94,
        align="edge",
        color=PALETTE[0],
    )
    axes.set_xlim(0, 1)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("confidence: the probability given to the answer")
    axes.set_ylabel("test recordings")
    counts = figure_html(
        figure,
        alt="Test recordings by confidence: " + ", ".join(str(entry.count) for entry in scores.reliability),
        caption="How often the model answers with which confidence.",
    )
    return Section(
        "Calibration",
        [gallery([diagram, counts])],
        lead="Whether an answer given with 80 % confidence is right in 80 % of the cases.",
    )


def _training(curves: Sequence[Mapping[str, float | None]]) -> Section:
    figures = []
    names = {"train_loss": "training", "val_loss": "validation"}
    panels = [
        (("train_loss", "val_loss"), "loss (nats)", "Loss on the training and validation splits."),
        (("val_uar",), "validation UAR", "UAR on the validation split."),
        (("lr",), "learning rate", "The learning rate's schedule."),
    ]
    for keys, label, caption in panels:
        series = {key: _series(curves, key) for key in keys}
        if not any(steps for steps, _ in series.values()):
            continue
        figure, axes = new_figure(5.0, 2.8)
        for (key, (steps, values)), style in zip(series.items(), ("-", "--"), strict=False):
            axes.plot(steps, values, style, label=names.get(key, label), marker="o" if len(steps) < 3 else None)
        if len(keys) > 1:
            axes.legend()
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        figures.append(figure_html(figure, alt=f"{label} over {len(curves)} epochs", caption=caption))
    return Section("Training", [gallery(figures)])


def _series(curves: Sequence[Mapping[str, float | None]], key: str) -> tuple[list[float], list[float]]:
    points = [
        (float(step), float(value))
        for i, entry in enumerate(curves, start=1)
        if (value := entry.get(key)) is not None and np.isfinite(value) and (step := entry.get("epoch", i)) is not None
    ]
    return [step for step, _ in points], [value for _, value in points]


def _slices(scores: Scores) -> Section:
    rows = [
        [
            part.name,
            part.value,
            part.utterances,
            part.speakers or None,
            _with_interval(part.uar),
            _with_interval(part.accuracy),
            "; ".join(
                remark
                for remark, holds in (
                    (f"only {part.labels} of {len(scores.labels)} labels occur", part.labels < len(scores.labels)),
                    ("too few speakers for the interval to mean much", 0 < part.speakers < FEWEST_SPEAKERS),
                )
                if holds
            )
            or None,
        ]
        for part in scores.slices
    ]
    headers = ["By", "Part", "Test recordings", "Speakers", "UAR", "Accuracy", "Remarks"]
    return Section("Parts of the test split", [table(headers, rows, numeric={2, 3, 4, 5})])


def _channel(probe: CorpusProbe | None, scores: Scores, certificate: Mapping[str, Any]) -> list[Section]:
    """What a reader should know of corpora and labels that go together; nothing where there is one corpus."""
    parts: list[Markup | str] = []
    if single := certificate.get("single_corpus_labels"):
        named = ", ".join(f"{label} ({corpus})" for label, corpus in single.items())
        parts.append(notice(f"Labels that a single corpus has: {named}. There the channel alone gives the label away."))
    if probe is not None:
        parts += [
            paragraph(
                f"A linear probe on this model's input names the corpus of the test recordings with a UAR of "
                f"{_with_interval(probe.uar)}; chance is {probe.chance:.3f}. It was fitted on {probe.fitted_on:,} "
                f"recordings of training and validation and scored on {probe.scored_on:,} of the test split."
            ),
            paragraph(
                f"Whoever knows the corpus and does not listen names the label with a UAR of "
                f"{probe.label_uar_from_corpus:.3f}; chance is {probe.chance_of_label:.3f}, this model has "
                f"{scores.uar.value:.3f}."
            ),
        ]
        rows = [["all", ", ".join(probe.corpora), _with_interval(probe.uar), f"{probe.chance:.3f}"]]
        rows += [
            [one.label, ", ".join(one.corpora), _with_interval(one.uar), f"{one.chance:.3f}"]
            for one in probe.within_label
        ]
        headers = ["Recordings of", "Corpora told apart", "UAR of the corpus", "Chance"]
        parts.append(table(headers, rows, numeric={2, 3}, caption="The probe, over all labels and within each."))
    if not parts:
        return []
    return [
        Section(
            "How recognisable the corpora are",
            parts,
            lead="Where labels and corpora go together, a model may learn the channel instead of the label.",
        )
    ]


def _protocol(certificate: Mapping[str, Any]) -> Section:
    checks = {check["name"]: check for check in certificate["checks"]}
    disjoint = checks.get("speaker-disjoint", {"passed": None, "detail": "not checked"})
    unverified = certificate.get("unverified_corpora") or {}
    if disjoint["passed"] and not unverified:
        statement = notice("No speaker is in two splits.", "pass")
    elif disjoint["passed"] is not False and unverified:
        statement = notice(
            "No known speaker is in two splits; it could not be verified for "
            f"{', '.join(f'{corpus} ({count:,} recordings)' for corpus, count in unverified.items())}, which "
            "names no speakers."
        )
    else:
        statement = notice(f"It is not certified that no speaker is in two splits: {disjoint['detail']}.", "fail")
    labels = list(next(iter(certificate["labels"].values())))
    rows = [
        [
            split,
            certificate["speakers"][split],
            certificate["utterances"][split],
            *(certificate["labels"][split][label] for label in labels),
        ]
        for split in _SPLITS
    ]
    headers = ["Split", "Speakers", "Recordings", *labels]
    certified = [
        [
            badge(check["passed"], _OPEN.get(check["name"]) if check["passed"] is None else None),
            check["name"],
            check["detail"],
        ]
        for check in certificate["checks"]
    ]
    return Section(
        "Speakers and splits",
        [
            statement,
            *(notice(f"{warning[0].upper()}{warning[1:]}.") for warning in certificate.get("warnings", ())),
            table(headers, rows, numeric=range(1, len(headers))),
            table(["", "Check", "What was found"], certified, caption="The split's certificate."),
        ],
        lead=_protocol_lead(certificate.get("config") or {}),
    )


def _protocol_lead(config: Mapping[str, Any]) -> str:
    match config.get("protocol"):
        case "kfold":
            return f"Of {config['folds']} folds, number {config['fold']} is the test split."
        case "leave_one_corpus_out":
            return f"The corpus {config['held_out']} is the test split; nothing of it was trained on."
        case "published":
            return "Where a corpus has published partitions, they are the splits."
        case _:
            return ""


def _lineage(model: ScoredModel, lineage: Mapping[str, str | None]) -> Section:
    values: dict[str, Any] = dict(lineage)
    if model.cost is not None:
        values["parameters"] = f"{model.cost.parameters:,}"
        values["latency"] = f"p50 {model.cost.latency_p50_ms:.2f} ms, p95 {model.cost.latency_p95_ms:.2f} ms"
    return Section("Lineage and cost", [key_values(values)])


def _figure(estimate: Estimate) -> str:
    return f"{estimate.value:.3f}"


def _interval(scores: Scores, estimate: Estimate) -> str:
    return f"{scores.confidence:.0%} interval {estimate.low:.3f} – {estimate.high:.3f}"


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} – {estimate.high:.3f})"


def _voices(scores: Scores) -> str:
    known = _count(scores.speakers, "speaker")
    if not scores.anonymous:
        return known
    unknown = f"{scores.anonymous:,} recordings without a named speaker"
    return f"{known}, and {unknown}" if scores.speakers else "unnamed speakers"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _short(count: int) -> str:
    for size, letter in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)
