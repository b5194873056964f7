"""The threshold of a cascade: chosen on the validation split, from accuracy against cost.

A threshold decides which recordings the mini model answers and which the premium model: those of which the mini model's
calibrated confidence is below it. Each threshold gives an unweighted average recall and a mean cost, and all of them
together a curve, from the mini model alone to the premium model on everything. The rule: the cheapest threshold whose
UAR is at most a margin below the premium model's.

Only validation rows are looked at; the test split stays for what judges models. Both models' best epochs and
temperatures were chosen on the same rows, so the figures flatter both a little.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from kubevox import storage
from kubevox.config import EvaluateConfig, OriginalRecipe
from kubevox.data.audio import Waveform
from kubevox.data.dataset import read_audio
from kubevox.data.splits import Split, load_split
from kubevox.errors import BundleError
from kubevox.evaluation import metrics
from kubevox.evaluation.intervals import FEWEST_SPEAKERS, Estimate, estimate, resample, speaker_confusions
from kubevox.evaluation.run import _cost
from kubevox.features.runtime import one_thread
from kubevox.page import (
    PALETTE,
    SYNTHETIC_NOTICE,
    Card,
    Section,
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
from kubevox.progress import ProgressBar
from kubevox.provenance import content_hash, git_commit

if TYPE_CHECKING:
    from markupsafe import Markup

    from kubevox.models.bundle import Bundle
    from kubevox.models.cascade import Cascade, CascadeSpec

__all__ = [
    "BuiltCascade",
    "Curve",
    "Figures",
    "Point",
    "build_cascade",
    "choose",
    "curve_of",
    "remarks_on",
    "render_cascade_report",
]

_FORMAT = 1
_MOST_POINTS = 200
_DECIMALS = 6
_ROUNDS = 7
# A figure that equals its limit is within it, also where the last bit of a subtraction says otherwise.
_ROUNDING = 1e-9

Probabilities = npt.NDArray[np.floating]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Figures:
    """A model alone: unweighted average recall, accuracy, and the median time of a recording in milliseconds."""

    uar: float
    accuracy: float
    cost_ms: float


@dataclass(frozen=True)
class Point:
    """A cascade at one threshold.

    Attributes:
        threshold: of the mini model's confidence.
        premium_share: of the recordings that go to the premium model.
        uar: unweighted average recall.
        accuracy: share recognised.
        mean_ms: mean cost of a recording, in milliseconds.
    """

    threshold: float
    premium_share: float
    uar: float
    accuracy: float
    mean_ms: float


@dataclass(frozen=True)
class Curve:
    """Accuracy against cost.

    Attributes:
        points: by threshold, from 0 (the mini model answers everything) to 1.
        mini: alone.
        premium: alone.
        added_ms: what asking the premium model adds to a recording that the mini model has seen.
    """

    points: tuple[Point, ...]
    mini: Figures
    premium: Figures
    added_ms: float


@dataclass(frozen=True)
class BuiltCascade:
    """A cascade in the store.

    Attributes:
        uri: its folder.
        spec: what it says of itself.
        curve: that its threshold was chosen from.
        reused: whether it had been built before.
    """

    uri: str
    spec: CascadeSpec
    curve: Curve
    reused: bool = False


def curve_of(
    truth: npt.ArrayLike,
    mini: Probabilities,
    premium: Probabilities,
    mini_ms: float,
    added_ms: float,
    premium_ms: float,
) -> Curve:
    """Accuracy against cost at every threshold that matters: halfway between neighbouring confidences.

    Where there are more than 200 of these, as many that send equally many more recordings each.

    Args:
        truth: int [N], class indices.
        mini: calibrated probabilities [N, C].
        premium: likewise, of the same recordings.
        mini_ms: of a recording that the mini model answers.
        added_ms: what asking the premium model adds.
        premium_ms: of a recording that the premium model alone answers.

    Raises:
        ValueError: there are no recordings, or shapes differ.
    """
    from kubevox.models.cascade import unsure

    true = np.asarray(truth, dtype=np.int64)
    if not len(true) or mini.shape != premium.shape or len(mini) != len(true):
        raise ValueError(f"{len(true)} labels for probabilities of {list(mini.shape)} and {list(premium.shape)}")
    classes = mini.shape[1]
    guesses = {"mini": mini.argmax(axis=1), "premium": premium.argmax(axis=1)}

    def judged(predicted: npt.NDArray[np.int64]) -> tuple[float, float]:
        confusion = metrics.confusion_matrix(true, predicted, classes)
        return float(metrics.uar(confusion)), float(metrics.accuracy(confusion))

    points = []
    for threshold in _thresholds(mini.max(axis=1).astype(np.float64)):
        asked = unsure(mini, threshold)
        share = float(asked.mean())
        uar, accuracy = judged(np.where(asked, guesses["premium"], guesses["mini"]))
        points.append(Point(threshold, share, uar, accuracy, mini_ms + share * added_ms))
    return Curve(
        tuple(points),
        Figures(*judged(guesses["mini"]), mini_ms),
        Figures(*judged(guesses["premium"]), premium_ms),
        added_ms,
    )


def choose(curve: Curve, margin: float) -> Point:
    """The cheapest point whose UAR is at most ``margin`` below the premium model's; else the one with the highest UAR.

    The second case is one of mini models so sure of themselves that no threshold asks the premium model for all.
    """
    least = curve.premium.uar - margin - _ROUNDING
    for point in sorted(curve.points, key=lambda point: (point.premium_share, point.threshold)):
        if point.uar >= least:
            return point
    return max(curve.points, key=lambda point: (point.uar, -point.premium_share))


def remarks_on(curve: Curve, point: Point, margin: float, voices: int) -> list[str]:
    """What is out of the ordinary about a choice, a sentence each; often nothing.

    Args:
        curve: that it was made from.
        point: that was chosen.
        margin: by how much its UAR was allowed to lie below the premium model's.
        voices: how many speakers the validation split has.
    """
    mini, premium = curve.mini, curve.premium
    found = []
    if premium.uar <= mini.uar:
        found.append(
            f"The premium model is no better than the mini model: UAR {premium.uar:.3f} and {mini.uar:.3f}. Serve the "
            "mini model alone."
        )
    elif not point.premium_share:
        found.append(
            f"The mini model alone is within the margin of {margin:g}: the cascade never asks the premium model. Serve "
            "the mini model alone."
        )
    elif point.premium_share == 1.0:
        found.append("The mini model is never sure enough: the premium model answers everything. Serve it alone.")
    elif point.mean_ms >= premium.cost_ms:
        found.append(
            f"The cascade is no cheaper than the premium model alone: {point.mean_ms:.2f} ms and "
            f"{premium.cost_ms:.2f} ms a recording. Serve the premium model alone."
        )
    if point.uar < premium.uar - margin - _ROUNDING:
        found.append(
            f"No threshold comes within {margin:g} of the premium model's UAR: the mini model is wholly sure of "
            "recordings that it gets wrong. Train it with label smoothing, or longer."
        )
    if voices < FEWEST_SPEAKERS:
        few = "one speaker" if voices == 1 else f"{voices} speakers"
        found.append(f"The validation split has {few}: too few for the choice to mean much.")
    return found


def build_cascade(
    mini_uri: str,
    premium_uri: str,
    blocks: Sequence[str],
    split_uri: str,
    config: EvaluateConfig,
    margin: float,
    store: str,
) -> BuiltCascade:
    """Choose a threshold for two bundles on the validation split, and keep the cascade with its evidence.

    What was built once from the same bundles, split and settings is not built again.

    Args:
        mini_uri: answers first.
        premium_uri: answers where the first is not sure.
        blocks: the feature indexes of the dataset's shards, with both frontends.
        split_uri: the certified split that both were trained on; only its validation rows are looked at.
        config: bootstrap settings, and how many recordings are timed.
        margin: by how much the cascade's UAR may lie below the premium model's.
        store: with both bundles in it; where the cascade goes.

    Raises:
        BundleError: a bundle is damaged or was trained on another split, or the two do not fit each other.
        SplitError: the split has no valid certificate.
        StorageError: features are missing.
    """
    from kubevox.models.bundle import load_bundle
    from kubevox.models.cascade import CascadeFigures, CascadeSpec, read_cascade, save_cascade, unsure

    split = load_split(split_uri)
    mini, premium = load_bundle(mini_uri), load_bundle(premium_uri)
    for bundle in (mini, premium):
        if bundle.spec.split_hash != split.hash or tuple(bundle.spec.labels) != split.labels:
            raise BundleError(
                f"bundle {bundle.uri} was not trained on split {split_uri}; its validation rows are not this model's"
            )
    key = content_hash([_FORMAT, split.hash, mini.hash, premium.hash, margin], config.digest())
    known = storage.recall(store, "cascade", key)
    if known and storage.exists(storage.join(known["uri"], "cascade.json")):
        return BuiltCascade(known["uri"], read_cascade(known["uri"])[0], _read_curve(known["uri"]), reused=True)

    rows = split.of("validation")
    speakers = [utterance.speaker for utterance, _ in rows]
    truth = np.array([split.labels.index(label) for _, label in rows], dtype=np.int64)
    with ProgressBar("cascade", 3, "parts") as bar:
        said = {}
        for role, bundle in (("mini", mini), ("premium", premium)):
            said[role] = _from_blocks(bundle, blocks, [utterance.id for utterance, _ in rows])
            bar.update()
        timed = _validation_audio(split, config.latency_clips)
        curve = curve_of(truth, said["mini"], said["premium"], *_costs_ms(mini, premium, timed))
        bar.update()
    point = choose(curve, margin)
    guesses = {role: probabilities.argmax(axis=1) for role, probabilities in said.items()}
    together = np.where(unsure(said["mini"], point.threshold), guesses["premium"], guesses["mini"])
    difference = _difference(truth, together, guesses["premium"], speakers, len(split.labels), config)
    known_speakers = len({speaker for speaker in speakers if speaker is not None})
    spec = CascadeSpec(
        task=premium.spec.task,
        labels=premium.spec.labels,
        mini=mini.hash,
        premium=premium.hash,
        threshold=point.threshold,
        split_hash=split.hash,
        margin=margin,
        confidence=config.confidence,
        figures=CascadeFigures(
            recordings=len(rows),
            speakers=known_speakers,
            premium_share=point.premium_share,
            uar=point.uar,
            accuracy=point.accuracy,
            mini_uar=curve.mini.uar,
            mini_accuracy=curve.mini.accuracy,
            premium_uar=curve.premium.uar,
            premium_accuracy=curve.premium.accuracy,
            difference=difference.value,
            difference_low=difference.low,
            difference_high=difference.high,
            mini_ms=curve.mini.cost_ms,
            added_ms=curve.added_ms,
            premium_ms=curve.premium.cost_ms,
            mean_ms=point.mean_ms,
        ),
        remarks=remarks_on(curve, point, margin, known_speakers + speakers.count(None)),
        synthetic=mini.spec.synthetic or premium.spec.synthetic,
    )
    files = {
        "curve.json": json.dumps(asdict(curve), indent=2) + "\n",
        "report.html": render_cascade_report(spec, curve),
    }
    uri = save_cascade(spec, store, files)
    storage.remember(store, "cascade", key, {"uri": uri})
    return BuiltCascade(uri, spec, curve)


def render_cascade_report(spec: CascadeSpec, curve: Curve) -> str:
    """The curve and the choice as a self-contained HTML page; on synthetic data its first line says so."""
    found = spec.figures
    interval = f"{spec.confidence:.0%} interval {found.difference_low:+.3f} to {found.difference_high:+.3f}"
    with plotting():
        sections = [
            Section(
                "The choice",
                [
                    cards(
                        [
                            Card("Threshold", f"{spec.threshold:.3f}", "below it the premium model is asked"),
                            Card("To premium", f"{found.premium_share:.0%}", "of the validation recordings"),
                            Card("UAR", f"{found.uar:.3f}", f"premium alone {found.premium_uar:.3f}"),
                            Card("Difference", f"{found.difference:+.3f}", interval),
                            Card("Mean cost", f"{found.mean_ms:.2f} ms", f"premium alone {found.premium_ms:.2f} ms"),
                        ]
                    ),
                    *(notice(remark) for remark in spec.remarks),
                    paragraph(
                        f"The cheapest threshold whose UAR is at most {spec.margin:g} (mini.margin) below the premium "
                        "model's. A recording costs what the mini model takes, and what asking the premium model adds "
                        "where it is asked; medians, one recording at a time, on one thread of this machine."
                    ),
                    table(
                        ["", "UAR", "Accuracy", "Cost of a recording (ms)"],
                        [
                            ["mini alone", *_cells(found.mini_uar, found.mini_accuracy, found.mini_ms)],
                            ["premium alone", *_cells(found.premium_uar, found.premium_accuracy, found.premium_ms)],
                            ["the cascade", *_cells(found.uar, found.accuracy, found.mean_ms)],
                        ],
                        numeric=range(1, 4),
                    ),
                ],
            ),
            Section("Accuracy against cost", [gallery([_cost_figure(spec, curve), _threshold_figure(spec, curve)])]),
            Section("The curve", [_curve_table(curve)]),
            Section(
                "Lineage",
                [
                    key_values(
                        {
                            "mini": spec.mini,
                            "premium": spec.premium,
                            "split": spec.split_hash,
                            "added by asking": f"{found.added_ms:.2f} ms",
                            "commit": git_commit(),
                        }
                    )
                ],
            ),
        ]
    return render_page(
        title=f"Cascade for the {spec.task} task",
        banner=SYNTHETIC_NOTICE if spec.synthetic else None,
        subtitle=f"{found.recordings:,} validation recordings of {found.speakers:,} known speakers",
        sections=sections,
        footer=f"Interval: {spec.confidence:.0%}, percentile bootstrap over speakers, both models on the same draws. "
        "UAR: unweighted average recall. Both models' epochs and temperatures were chosen on these recordings too, "
        "which flatters them a little; the test split is not looked at.",
    )


def _thresholds(confidences: npt.NDArray[np.float64]) -> list[float]:
    """0, halfway between neighbouring confidences, 1; at most as many as are worth looking at."""
    values, counts = np.unique(confidences, return_counts=True)
    between = []
    for low, high in zip(values[:-1].tolist(), values[1:].tolist(), strict=True):
        # Fewer decimals where that changes nothing: a person reads them.
        short = round((low + high) / 2, _DECIMALS)
        between.append(short if low < short < high else (low + high) / 2)
    if len(between) > _MOST_POINTS - 2:
        sent = counts.cumsum()[:-1]
        wanted = np.linspace(sent[0], sent[-1], _MOST_POINTS - 2)
        between = [between[i] for i in np.unique(np.searchsorted(sent, wanted)).tolist()]
    return [0.0, *between, 1.0]


def _costs_ms(mini: Bundle, premium: Bundle, waveforms: Sequence[Waveform]) -> tuple[float, float, float]:
    """What a recording takes: of the mini model, of asking the premium model after it, of the premium model alone.

    Medians, on one thread, as a model server's worker computes. The three are timed in turn, a few recordings each, so
    that whatever else the machine does meanwhile meets all of them alike.
    """
    from kubevox.models.cascade import assemble

    # The evaluator times whatever predicts.
    never, always = (cast("Bundle", _Timed(assemble(mini, premium, threshold))) for threshold in (0.0, math.inf))
    rounds = []
    with one_thread():
        for turn in range(min(_ROUNDS, len(waveforms))):
            some = waveforms[turn::_ROUNDS]
            rounds.append([_cost(one, some).latency_p50_ms for one in (never, always, premium)])
    first, both, alone = np.array(rounds).T
    return (
        round(float(np.median(first)), 3),
        round(max(0.0, float(np.median(both - first))), 3),
        round(float(np.median(alone)), 3),
    )


class _Timed:
    """A cascade that looks like a bundle to whoever times it."""

    def __init__(self, cascade: Cascade) -> None:
        self.cascade, self.spec = cascade, cascade.premium.spec

    def predict(self, waveforms: Sequence[Waveform]) -> npt.NDArray[np.float32]:
        return self.cascade.answer(waveforms).probabilities


def _from_blocks(bundle: Bundle, blocks: Sequence[str], ids: Sequence[str]) -> npt.NDArray[np.float32]:
    from kubevox.features.blocks import load_features

    return bundle.probabilities(load_features(blocks, bundle.frontend.config, OriginalRecipe(), ids))


def _validation_audio(split: Split, most: int) -> list[Waveform]:
    """Validation recordings in the order of the split's rows, the first ``most`` of them."""
    ids = [utterance.id for utterance, _ in split.of("validation")][:most]
    found: dict[str, Waveform] = {}
    for shard in split.dataset.shard_uris:
        found |= dict(read_audio(shard, ids))
    return [found[name] for name in ids]


def _difference(
    truth: Counts,
    cascade: Counts,
    premium: Counts,
    speakers: Sequence[str | None],
    classes: int,
    config: EvaluateConfig,
) -> Estimate:
    """The cascade's UAR less the premium model's, with its interval over the same draws of speakers."""
    # Side by side in one matrix of twice the classes, a speaker's recordings of either model are drawn together.
    names = [f"recording {i}" if speaker is None else f"speaker {speaker}" for i, speaker in enumerate(speakers)]
    stacked = np.concatenate([truth, truth + classes]), np.concatenate([cascade, premium + classes])
    confusions = speaker_confusions(*stacked, [*names, *names], 2 * classes)

    def statistic(matrices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return metrics.uar(matrices[..., :classes, :classes]) - metrics.uar(matrices[..., classes:, classes:])

    resampled = resample(confusions, config.bootstrap_samples, config.seed)
    return estimate(statistic, confusions.sum(axis=0), resampled, config.confidence)


def _read_curve(uri: str) -> Curve:
    content = storage.read_json(storage.join(uri, "curve.json"))
    return Curve(
        tuple(Point(**point) for point in content["points"]),
        Figures(**content["mini"]),
        Figures(**content["premium"]),
        content["added_ms"],
    )


def _cells(uar: float, accuracy: float, cost_ms: float) -> list[str]:
    return [f"{uar:.3f}", f"{accuracy:.3f}", f"{cost_ms:.2f}"]


def _cost_figure(spec: CascadeSpec, curve: Curve) -> Markup:
    found = spec.figures
    figure, axes = new_figure(5.0, 3.6)
    axes.plot([point.mean_ms for point in curve.points], [point.uar for point in curve.points], label="the cascade")
    axes.axhline(
        found.premium_uar - spec.margin, color=PALETTE[7], linestyle=":", linewidth=1, label="least UAR wanted"
    )
    for name, uar, cost, marker, colour in (
        ("mini alone", found.mini_uar, found.mini_ms, "s", PALETTE[1]),
        ("premium alone", found.premium_uar, found.premium_ms, "D", PALETTE[3]),
        ("chosen", found.uar, found.mean_ms, "o", PALETTE[2]),
    ):
        axes.plot([cost], [uar], linestyle="none", marker=marker, markersize=7, color=colour, label=name)
    axes.set_xlabel("mean cost of a recording (ms)")
    axes.set_ylabel("UAR on the validation split")
    axes.legend(loc="best")
    return figure_html(
        figure,
        alt=f"UAR against cost: mini alone {found.mini_uar:.3f} at {found.mini_ms:.2f} ms, premium alone "
        f"{found.premium_uar:.3f} at {found.premium_ms:.2f} ms, chosen {found.uar:.3f} at {found.mean_ms:.2f} ms",
        caption="Accuracy against cost: each point of the line is a threshold.",
    )


def _threshold_figure(spec: CascadeSpec, curve: Curve) -> Markup:
    figure, axes = new_figure(5.0, 3.6)
    thresholds = [point.threshold for point in curve.points]
    axes.plot(thresholds, [point.uar for point in curve.points], label="UAR")
    axes.plot(thresholds, [point.premium_share for point in curve.points], "--", label="share to premium")
    axes.axvline(spec.threshold, color=PALETTE[2], linewidth=1, label="chosen")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("threshold of the mini model's confidence")
    axes.legend(loc="best")
    return figure_html(
        figure,
        alt=f"UAR and share sent to the premium model by threshold; chosen {spec.threshold:.3f}",
        caption="What each threshold gives.",
    )


def _curve_table(curve: Curve) -> Markup:
    rows = [
        [f"{point.threshold:.4f}", f"{point.premium_share:.1%}", *_cells(point.uar, point.accuracy, point.mean_ms)]
        for point in curve.points
    ]
    headers = ["Threshold", "To premium", "UAR", "Accuracy", "Mean cost (ms)"]
    return table(headers, rows, numeric=range(5), searchable=True)
