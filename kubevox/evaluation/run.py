"""Score a bundle on the test split, judge it, and keep the evidence.

The only code that scores test rows. ``<store>/evaluations/<key>/`` holds ``evaluation.json`` (every figure, the
verdict), ``predictions.parquet`` (a row a test utterance) and ``report.html``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kubevox import storage
from kubevox.config import EvaluateConfig, FeaturesConfig, GateConfig
from kubevox.data.audio import Waveform
from kubevox.data.corpora import by_machine
from kubevox.data.dataset import read_audio
from kubevox.data.splits import Split, SplitName, load_split
from kubevox.errors import BundleError, StorageError
from kubevox.evaluation.gate import Figures, Verdict, comparison_problem, judge
from kubevox.evaluation.probe import CorpusProbe, Sample, probe_corpora
from kubevox.evaluation.report import ScoredModel, render_report
from kubevox.evaluation.scores import Cost, Predictions, Scores, score
from kubevox.progress import ProgressBar
from kubevox.provenance import content_hash, git_commit

if TYPE_CHECKING:
    from kubevox.models.bundle import Bundle, BundleSpec

__all__ = ["Evaluation", "evaluate", "load_evaluation"]

_FORMAT = 2


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        uri: its folder in the store.
        bundle_uri: what was judged.
        split_uri: by which split.
        scores: of the bundle on the test split.
        cost: its parameters and latency.
        verdict: the gate's.
        baseline: the reference model's scores, or None.
        champion: the champion's scores on the same test split, or None where there was nothing to compare.
        verified_only: the bundle's scores without the corpora that do not name their speakers; None where all do, or
            none does.
        corpus_probe: how recognisable the corpora are; None where there are no two to tell apart.
        reused: whether it had been made before.
    """

    uri: str
    bundle_uri: str
    split_uri: str
    scores: Scores
    cost: Cost
    verdict: Verdict
    baseline: Scores | None
    champion: Scores | None
    verified_only: Scores | None = None
    corpus_probe: CorpusProbe | None = None
    reused: bool = False

    def headline(self) -> dict[str, float]:
        """The figures that a person asks for first."""
        figures = {
            "test_uar": self.scores.uar.value,
            "test_uar_low": self.scores.uar.low,
            "test_uar_high": self.scores.uar.high,
            "test_accuracy": self.scores.accuracy.value,
            "test_macro_f1": self.scores.macro_f1.value,
            "test_mcc": self.scores.mcc.value,
            "test_worst_recall": self.scores.worst[1],
            "test_calibration_error": self.scores.calibration_error,
            "chance_uar": self.scores.chance_uar,
            "parameters": float(self.cost.parameters),
            "latency_p50_ms": self.cost.latency_p50_ms,
            "latency_p95_ms": self.cost.latency_p95_ms,
        }
        others = {"baseline": self.baseline, "champion": self.champion, "verified_only": self.verified_only}
        for name, scores in others.items():
            if scores is not None:
                figures |= {
                    f"{name}_uar": scores.uar.value,
                    f"{name}_uar_low": scores.uar.low,
                    f"{name}_uar_high": scores.uar.high,
                }
        if self.corpus_probe is not None:
            figures |= {
                "corpus_probe_uar": self.corpus_probe.uar.value,
                "corpus_probe_chance": self.corpus_probe.chance,
                "label_uar_from_corpus": self.corpus_probe.label_uar_from_corpus,
            }
        return figures

    def probabilities(self) -> dict[str, list[float]]:
        """Each test utterance's probabilities, by id."""
        table = pq.read_table(storage.fetch(storage.join(self.uri, "predictions.parquet")))
        return dict(zip(table["utterance"].to_pylist(), table["probabilities"].to_pylist(), strict=True))


def load_evaluation(uri: str) -> Evaluation:
    """Read an evaluation back.

    Raises:
        StorageError: there is none under the URI.
    """
    head = storage.join(uri, "evaluation.json")
    if not storage.exists(head):
        raise StorageError(f"{uri}: no evaluation here (no evaluation.json)")
    content = storage.read_json(head)
    return Evaluation(
        uri=uri,
        bundle_uri=content["bundle"],
        split_uri=content["split"],
        scores=Scores.from_dict(content["scores"]),
        cost=Cost.from_dict(content["cost"]),
        verdict=Verdict.from_dict(content["verdict"]),
        baseline=Scores.from_dict(content["baseline"]) if content["baseline"] else None,
        champion=Scores.from_dict(content["champion"]) if content["champion"] else None,
        verified_only=Scores.from_dict(content["verified_only"]) if content.get("verified_only") else None,
        corpus_probe=CorpusProbe.from_dict(content["corpus_probe"]) if content.get("corpus_probe") else None,
    )


def evaluate(
    bundle_uri: str,
    blocks: Sequence[str],
    split_uri: str,
    features: FeaturesConfig,
    config: EvaluateConfig,
    gate: GateConfig,
    store: str,
    baseline_uri: str = "",
    champion_uri: str = "",
) -> Evaluation:
    """Score a bundle on the test split and put it before the gate.

    Args:
        bundle_uri: the challenger.
        blocks: the feature indexes of the dataset's shards.
        split_uri: the certified split; only its test rows are scored.
        features: holds the recipe ``default``.
        config: bootstrap, calibration and latency settings.
        gate: the thresholds.
        store: where the evidence goes.
        baseline_uri: a reference model of the same run, or "".
        champion_uri: the bundle in production, or "" where there is none; where it is the challenger itself there is
            nothing to compare.

    Raises:
        SplitError: the split has no valid certificate.
        BundleError: the bundle was made for other labels or another split.
    """
    split = load_split(split_uri)
    champion_uri = "" if champion_uri == bundle_uri else champion_uri
    hashes = [uri.rstrip("/").rpartition("/")[2] for uri in (bundle_uri, baseline_uri, champion_uri)]
    key = content_hash([_FORMAT, split.hash, *hashes], config.digest(), gate.digest())
    uri = storage.join(store, "evaluations", key)
    if storage.exists(storage.join(uri, "evaluation.json")):
        return _reused(load_evaluation(uri))
    from kubevox.models.bundle import load_bundle

    rows = split.of("test")
    bundle = load_bundle(bundle_uri)
    if bundle.spec.split_hash != split.hash or tuple(bundle.spec.labels) != split.labels:
        raise BundleError(
            f"bundle {bundle_uri} was not trained on split {split_uri}; its test rows are not this model's"
        )

    def heard(candidate: Bundle, ids: Sequence[str]) -> npt.NDArray[np.float32]:
        from kubevox.features.blocks import load_features

        return load_features(blocks, candidate.frontend.config, features.recipes["default"], ids)

    def from_blocks(candidate: Bundle) -> npt.NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            return candidate.probabilities(heard(candidate, [row.id for row, _ in rows]))

    timed = _test_audio(split, config.latency_clips)
    with ProgressBar("evaluate", 5, "parts") as bar:
        predictions = _predictions(split, from_blocks(bundle))
        scores = score(predictions, split.labels, config)
        verified = predictions.without_corpora(split.certificate["unverified_corpora"])
        verified_only = score(verified, split.labels, config) if 0 < len(verified) < len(predictions) else None
        bar.update()
        probe = probe_corpora(
            _samples(split, "train", "validation"), _samples(split, "test"), lambda ids: heard(bundle, ids), config
        )
        bar.update()
        baseline = None
        if baseline_uri:
            reference = load_bundle(baseline_uri)
            baseline = ScoredModel(
                reference.spec.model.architecture,
                score(_predictions(split, from_blocks(reference)), split.labels, config),
                _cost(reference, timed),
            )
        bar.update()
        champion = problem = None
        if champion_uri:
            incumbent = load_bundle(champion_uri)
            problem = comparison_problem(
                incumbent.spec.labels,
                incumbent.spec.speakers,
                split.labels,
                split.speakers("test"),
                same_key=_names_compare(incumbent.spec, split.dataset.key_fingerprint),
            )
            if problem is None:
                # From the audio: the champion's frontend may be one that this run computes no blocks of.
                answers = incumbent.predict(_test_audio(split, len(rows)))
                champion = ScoredModel(
                    incumbent.spec.model.architecture,
                    score(_predictions(split, answers), split.labels, config),
                    _cost(incumbent, timed),
                )
        bar.update()
        cost = _cost(bundle, timed)
        bar.update()
    verdict = judge(
        Figures.of(scores, cost),
        gate,
        Figures.of(champion.scores, champion.cost) if champion and champion.cost else None,
        problem,
    )
    content: dict[str, Any] = {
        "bundle": bundle_uri,
        "split": split_uri,
        "dataset": split.dataset.uri,
        "synthetic": split.dataset.synthetic,
        "baseline_bundle": baseline_uri or None,
        "champion_bundle": champion_uri or None,
        "scores": scores.to_dict(),
        "cost": cost.to_dict(),
        "baseline": baseline.scores.to_dict() if baseline else None,
        "champion": champion.scores.to_dict() if champion else None,
        "verified_only": verified_only.to_dict() if verified_only else None,
        "corpus_probe": probe.to_dict() if probe else None,
        "verdict": verdict.to_dict(),
        "git_commit": git_commit(),
    }
    with storage.staging(store) as folder:
        table = pa.table(
            {
                "utterance": list(predictions.ids),
                "label": list(predictions.truth),
                "predicted": [split.labels[i] for i in predictions.probabilities.argmax(axis=1)],
                "probabilities": predictions.probabilities.astype(np.float32).tolist(),
            },
            schema=pa.schema(
                [
                    ("utterance", pa.string()),
                    ("label", pa.string()),
                    ("predicted", pa.string()),
                    ("probabilities", pa.list_(pa.float32())),
                ]
            ),
        )
        pq.write_table(table, folder / "predictions.parquet", compression="zstd")
        page = render_report(
            task=bundle.spec.task,
            model=ScoredModel(bundle.spec.model.architecture, scores, cost),
            verdict=verdict,
            certificate=split.certificate,
            lineage={
                "dataset": split.dataset.hash,
                "split": split.hash,
                "bundle": bundle.hash,
                "training": bundle.spec.training_key,
                "champion": champion_uri.rpartition("/")[2] or None,
                "commit": git_commit(),
            },
            synthetic=split.dataset.synthetic,
            baseline=baseline,
            champion=champion,
            curves=_curves(store, bundle),
            verified_only=verified_only,
            probe=probe,
        )
        (folder / "report.html").write_text(page, encoding="utf-8")
        (folder / "evaluation.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        storage.publish(folder, uri, "evaluation.json")
    return load_evaluation(uri)


def _reused(evaluation: Evaluation) -> Evaluation:
    import dataclasses

    return dataclasses.replace(evaluation, reused=True)


def _predictions(split: Split, probabilities: npt.NDArray[np.float32]) -> Predictions:
    rows = split.of("test")
    return Predictions(
        ids=[utterance.id for utterance, _ in rows],
        truth=[label for _, label in rows],
        probabilities=probabilities,
        speakers=[utterance.speaker for utterance, _ in rows],
        corpora=[utterance.corpus for utterance, _ in rows],
        sexes=[utterance.sex for utterance, _ in rows],
    )


def _samples(split: Split, *splits: SplitName) -> list[Sample]:
    return [Sample(utterance.id, utterance.corpus, label, utterance.speaker) for utterance, label in split.of(*splits)]


def _names_compare(champion: BundleSpec, key: str | None) -> bool:
    """Whether the champion's speakers and the dataset's are under one key, or one side's are machines all of them.

    Machines' voices bear their names, which are no one's pseudonym under any key.
    """
    return champion.key_fingerprint == key or key is None or all(map(by_machine, champion.speakers))


def _test_audio(split: Split, most: int) -> list[Waveform]:
    """Test recordings in the order of the split's rows, the first ``most`` of them."""
    ids = [utterance.id for utterance, _ in split.of("test")][:most]
    found: dict[str, Waveform] = {}
    for shard in split.dataset.shard_uris:
        found |= dict(read_audio(shard, ids))
    return [found[name] for name in ids]


def _cost(bundle: Bundle, waveforms: Sequence[Waveform]) -> Cost:
    """Time from waveform to probabilities, one recording at a time, after a few that warm up."""
    for waveform in waveforms[:3]:
        bundle.predict([waveform])
    times = []
    for waveform in waveforms:
        started = time.perf_counter()
        bundle.predict([waveform])
        times.append(1000 * (time.perf_counter() - started))
    return Cost(bundle.spec.parameters, float(np.percentile(times, 50)), float(np.percentile(times, 95)))


def _curves(store: str, bundle: Bundle) -> list[dict[str, float | None]]:
    """The epochs of the bundle's training, where the store remembers them."""
    known = storage.recall(store, "train", bundle.spec.training_key) or {"history": []}
    return [
        {"lr" if name == "learning_rate" else name: value for name, value in epoch.items()}
        for epoch in known["history"]
    ]
