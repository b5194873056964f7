"""From an accepted bundle to the champion: register, serve, compare, promote.

The bundle is registered, a KServe model server is started on what was registered, and test recordings are sent to it
over REST. Only when its answers equal the evaluator's does the alias ``champion`` move. Whatever fails before, the old
champion stays, and the version says why.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from kubevox import storage
from kubevox.config import DeployConfig
from kubevox.data.audio import encode_flac
from kubevox.data.dataset import read_audio
from kubevox.data.splits import load_split
from kubevox.deployment.local import model_server
from kubevox.errors import DeploymentError, KubevoxError, RegistryError
from kubevox.evaluation.run import Evaluation, load_evaluation
from kubevox.models.bundle import BundleSpec, load_bundle
from kubevox.page import SYNTHETIC_NOTICE
from kubevox.progress import note
from kubevox.provenance import content_hash, git_commit
from kubevox.registry import ModelVersion, Registry

__all__ = ["Rollout", "deploy", "model_card"]


@dataclass(frozen=True)
class Rollout:
    """What happened.

    Attributes:
        model: the registered model's name.
        version: the version that is now champion.
        previous: the version that was, or None.
        recordings: how many test recordings were compared.
        largest_difference: between a served and an evaluated probability.
        registered: whether this rollout registered the version (False: it was known).
        uri: the record in the store.
    """

    model: str
    version: str
    previous: str | None
    recordings: int
    largest_difference: float
    registered: bool
    uri: str


def deploy(
    bundle_uri: str,
    evaluation_uri: str,
    run_id: str,
    name: str,
    config: DeployConfig,
    store: str,
    tracking_uri: str,
) -> Rollout:
    """Make an accepted bundle the champion, if a live server answers as the evaluator did.

    Args:
        bundle_uri: the challenger.
        evaluation_uri: its evaluation; it must have been accepted.
        run_id: the MLflow run that trained it.
        name: the registered model's name.
        config: how many recordings are compared, how closely, the time-outs.
        store: where the record goes.
        tracking_uri: MLflow's.

    Raises:
        DeploymentError: the evaluation rejected the bundle or is of another, the server did not start, or its answers
            differ. The champion is then what it was.
    """
    evaluation = load_evaluation(evaluation_uri)
    if evaluation.bundle_uri != bundle_uri:
        raise DeploymentError(f"evaluation {evaluation_uri} is of another bundle ({evaluation.bundle_uri})")
    if not evaluation.verdict.promote:
        raise DeploymentError(f"bundle {bundle_uri} was rejected by the gate; it is not deployed")
    registry = Registry(tracking_uri)
    previous = registry.champion(name)
    version = registry.find(name, bundle_uri)
    registered = version is None
    if version is None:
        spec = load_bundle(bundle_uri).spec
        version = registry.register(name, bundle_uri, run_id, _lineage(spec, evaluation), model_card(spec, evaluation))
        note(f"registered {name} version {version.version}")
    try:
        checks = _compare(version, evaluation, config)
        record = {
            "model": name,
            "version": version.version,
            "bundle": bundle_uri,
            "evaluation": evaluation_uri,
            "previous": previous.version if previous else None,
            "steps": [
                {"step": "registered", "new": registered},
                {"step": "served", "protocols": ["v1", "v2"]} | checks,
                {"step": "promoted", "alias": "champion"},
            ],
            "outcome": "promoted",
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        uri = storage.join(store, "rollouts", f"{content_hash(record)}.json")
        storage.write_bytes(uri, json.dumps(record, indent=2).encode())
        outcome = {"rollout": "promoted", "rollout_record": uri}
        registry.tag(version, outcome | ({"rollout_reason": ""} if "rollout_reason" in version.tags else {}))
        registry.promote(version)  # last: whatever fails before, the old champion stays
    except Exception as error:
        reason = str(error) if isinstance(error, KubevoxError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(RegistryError):
            registry.tag(version, {"rollout": "failed", "rollout_reason": reason[:500]})
        raise
    return Rollout(
        model=name,
        version=version.version,
        previous=previous.version if previous else None,
        recordings=checks["recordings"],
        largest_difference=checks["largest_difference"],
        registered=registered,
        uri=uri,
    )


def _compare(version: ModelVersion, evaluation: Evaluation, config: DeployConfig) -> dict[str, Any]:
    """Serve what was registered and compare its answers with the evaluator's."""
    bundle = load_bundle(version.bundle_uri)
    name = bundle.spec.task
    expected = _predictions(evaluation, len(bundle.spec.labels))
    ids = _spread(sorted(expected), config.check_clips)
    recordings = _recordings(evaluation.split_uri, ids)
    with model_server(
        version.bundle_uri, name, version.version, config.start_timeout_s, config.request_timeout_s
    ) as client:
        v1 = client.predict_v1(recordings)
        v2 = client.predict_v2(recordings)
    labels = bundle.spec.labels
    truth = np.array([expected[utterance] for utterance in ids])
    answers = {
        "V1": np.array([[prediction["probabilities"][label] for label in labels] for prediction in v1]),
        "V2": np.array(v2["probabilities"]).reshape(len(ids), len(labels)),
    }
    named = {"V1": [prediction["label"] for prediction in v1], "V2": v2["label"]}
    versions = {prediction["model_version"] for prediction in v1} | {v2["model_version"]}
    if versions != {version.version}:
        raise DeploymentError(f"the server answers as version {', '.join(map(str, versions))}, not {version.version}")
    largest = 0.0
    for protocol, served in answers.items():
        difference = float(np.abs(served - truth).max())
        largest = max(largest, difference)
        if not difference <= config.tolerance:
            raise DeploymentError(
                f"served and evaluated probabilities differ by {difference:.2g} over {protocol} (tolerance "
                f"{config.tolerance:g}); the champion stays"
            )
        best = [labels[index] for index in served.argmax(axis=1)]
        if named[protocol] != best:
            raise DeploymentError(f"labels over {protocol} do not follow from the probabilities; the champion stays")
    return {"recordings": len(ids), "largest_difference": largest, "tolerance": config.tolerance}


def _predictions(evaluation: Evaluation, labels: int) -> dict[str, list[float]]:
    try:
        expected = evaluation.probabilities()
    except (pa.ArrowException, OSError, KeyError) as error:
        why = " ".join(str(error).split())
        raise DeploymentError(
            f"{evaluation.uri}/predictions.parquet: cannot be read ({why}); delete the evaluation and run again"
        ) from None
    if not expected or any(len(row) != labels for row in expected.values()):
        raise DeploymentError(
            f"{evaluation.uri}/predictions.parquet: not {labels} probabilities for each test recording; delete the "
            "evaluation and run again"
        )
    return expected


def _spread(ids: Sequence[str], count: int) -> list[str]:
    """Some ids, spread evenly over the sorted list: hashes, so a fixed and arbitrary choice."""
    step = max(1, len(ids) // count)
    return list(ids[::step][:count])


def _recordings(split_uri: str, ids: Sequence[str]) -> list[bytes]:
    found: dict[str, bytes] = {}
    for shard in load_split(split_uri).dataset.shard_uris:
        found |= {utterance: encode_flac(waveform) for utterance, waveform in read_audio(shard, ids)}
    if missing := [utterance for utterance in ids if utterance not in found]:
        raise DeploymentError(f"split {split_uri}: it has no recording {missing[0][:12]}, which was evaluated")
    return [found[utterance] for utterance in ids]


def model_card(spec: BundleSpec, evaluation: Evaluation) -> str:
    """The model card, Markdown; on synthetic data its first line says so."""
    scores = evaluation.scores
    split = load_split(evaluation.split_uri)
    lines = [f"**{SYNTHETIC_NOTICE}**", ""] if spec.synthetic else []
    lines += [
        f"# {spec.task}: {spec.model.architecture} on {spec.frontend.kind}",
        "",
        f"Labels: {', '.join(spec.labels)}. {spec.parameters:,} parameters.",
        f"Test UAR {scores.uar.value:.3f} [{scores.uar.low:.3f}, {scores.uar.high:.3f}] ({scores.confidence:.0%} over "
        f"{scores.speakers} speakers, none of whom it was trained on), chance {scores.chance_uar:.3f}; worst recall "
        f"{scores.worst[1]:.3f} ({scores.worst[0]}); calibration error {scores.calibration_error:.3f}.",
        f"Takes recordings of {spec.limits.min_duration_s:g} to {spec.limits.max_duration_s:g} s; analyses "
        f"{spec.frontend.duration_s:g} s from {spec.frontend.offset_s:g} s on.",
        "",
        "Trained on:",
        *(
            f"- {corpus['title']} (licence: {corpus['licence']}; {corpus['citation']})"
            for corpus in split.dataset.corpora
        ),
        "",
        "Not for decisions about a person: acted or synthetic emotion is not felt emotion, and recordings unlike those "
        "above were never scored.",
    ]
    return "\n".join(lines)


def _lineage(spec: BundleSpec, evaluation: Evaluation) -> dict[str, str]:
    return {
        "task": spec.task,
        "dataset_hash": spec.dataset_hash,
        "split_hash": spec.split_hash,
        "training_key": spec.training_key,
        "git_commit": git_commit(),
        "evaluation_uri": evaluation.uri,
        "test_uar": f"{evaluation.scores.uar.value:.4f}",
        "synthetic_data": str(spec.synthetic).lower(),
    }
