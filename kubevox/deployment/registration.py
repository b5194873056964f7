"""What the registry is told of a challenger: where it comes from, what it can do, and what became of it."""

from __future__ import annotations

from kubevox.data.splits import Split
from kubevox.deployment.record import RolloutRecord
from kubevox.evaluation.run import Evaluation
from kubevox.models.bundle import BundleSpec
from kubevox.page import SYNTHETIC_NOTICE
from kubevox.progress import note
from kubevox.provenance import git_commit
from kubevox.registry import ModelVersion, Registry

__all__ = ["figures", "known_or_registered", "model_card"]

_MOST_REASON = 500  # characters; MLflow takes 5000


def known_or_registered(
    registry: Registry, name: str, spec: BundleSpec, evaluation: Evaluation, split: Split, run_id: str
) -> tuple[ModelVersion, bool]:
    """The bundle's version, and whether it is new.

    Raises:
        RegistryError: the registry does not answer.
    """
    version = registry.find(name, evaluation.bundle_uri)
    if version is not None:
        return version, False
    card = model_card(spec, evaluation, split)
    version = registry.register(name, evaluation.bundle_uri, run_id, _lineage(spec, evaluation), card)
    note(f"registered {name} version {version.version}")
    return version, True


def figures(record: RolloutRecord, uri: str) -> dict[str, str]:
    """The tags of a version whose rollout has ended."""
    tags = {
        "rollout": record.outcome,
        "rollout_reason": "" if record.outcome == "promoted" else record.reason[:_MOST_REASON],
        "rollout_record": uri,
    }
    for step in record.steps:
        for check in step.checks:
            if check.value is not None:
                shown = f"{check.value:.4g}"
                if check.low is not None and check.high is not None:
                    shown += f" [{check.low:.4g}, {check.high:.4g}]"
                tags[f"rollout_{step.percent}_{check.name}"] = f"{check.outcome}: {shown} of {check.n}"
    return tags


def model_card(spec: BundleSpec, evaluation: Evaluation, split: Split) -> str:
    """The model card, Markdown; on synthetic data its first line says so."""
    scores = evaluation.scores
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
