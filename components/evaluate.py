"""Evaluate: the only stage that scores the test split; its verdict decides whether the bundle is deployed."""

import os
from typing import List  # noqa: UP035 - KFP reads the annotation

from kfp import dsl


@dsl.component(base_image=os.environ.get("KUBEVOX_IMAGE", "kubevox-python:0.1.0"), install_kfp_package=False)
def evaluate(
    bundle: str,
    baseline: str,
    champion: str,
    blocks: List[str],  # noqa: UP006
    split: str,
    features: str,
    config: str,
    gate: str,
    store: str,
    tracking: str,
    run_id: str,
    evaluation: dsl.OutputPath(str),  # type: ignore[valid-type]
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Score a bundle beside the baseline and the champion, and put it before the gate.

    Args:
        bundle: the challenger's URI.
        baseline: the reference model's URI, or "".
        champion: the champion's URI, or "".
        blocks: the block indexes of all shards.
        split: the certified split's URI.
        features: the config's ``features`` section as JSON.
        config: the config's ``evaluate`` section as JSON.
        gate: the config's ``gate`` section as JSON.
        store: a folder or s3://bucket/prefix.
        tracking: MLflow's URI.
        run_id: the challenger's MLflow run.
        evaluation: receives the evaluation's URI.
        metrics: receives the headline figures.
        confusion: receives the confusion matrix.
        report: receives the report.

    Returns:
        "promote" or "reject".
    """
    from pathlib import Path

    from kubevox import storage
    from kubevox.config import EvaluateConfig, FeaturesConfig, GateConfig
    from kubevox.evaluation.run import evaluate as evaluate_bundle
    from kubevox.progress import result
    from kubevox.training.tracking import log_evaluation

    outcome = evaluate_bundle(
        bundle,
        blocks,
        split,
        FeaturesConfig.from_json(features),
        EvaluateConfig.from_json(config),
        GateConfig.from_json(gate),
        store,
        baseline,
        champion,
    )
    if not outcome.reused:
        log_evaluation(tracking, run_id, outcome)
    Path(evaluation).write_text(outcome.uri)
    html = storage.join(outcome.uri, "report.html")
    Path(report.path).write_bytes(storage.read_bytes(html))
    report.metadata["evaluation"] = outcome.uri
    for name, value in outcome.headline().items():
        metrics.log_metric(name, value)
    labels = list(outcome.scores.labels)
    confusion.log_confusion_matrix(labels, [list(row) for row in outcome.scores.confusion])
    verdict = "promote" if outcome.verdict.promote else "reject"
    result(
        "evaluate",
        summary=f"test UAR {outcome.scores.uar.value:.3f}, gate: {verdict}",
        reused=outcome.reused,
        verdict=verdict,
        criteria=outcome.verdict.summary(),
        report=html,
        figures=outcome.headline(),
    )
    return verdict
