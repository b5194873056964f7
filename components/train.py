"""Train: a model on the training rows, its best epoch chosen on the validation rows."""

import os
from typing import List  # noqa: UP035 - KFP reads the annotation

from kfp import dsl


@dsl.component(base_image=os.environ.get("KUBEVOX_IMAGE", "kubevox-python:0.1.0"), install_kfp_package=False)
def train(
    split: str,
    blocks: List[str],  # noqa: UP006
    model: str,
    config: str,
    features: str,
    limits: str,
    store: str,
    tracking: str,
    experiment: str,
    run_id: dsl.OutputPath(str),  # type: ignore[valid-type]
    curves: dsl.Output[dsl.Metrics],
) -> str:
    """Train, or take up a killed run, or reuse a finished one; everything goes to MLflow.

    Args:
        split: the certified split's URI.
        blocks: the block indexes of all shards.
        model: the model's configuration as JSON; "null" trains nothing.
        config: the training loop's configuration as JSON.
        features: the config's ``features`` section as JSON.
        limits: the audio limits as JSON.
        store: a folder or s3://bucket/prefix.
        tracking: MLflow's URI.
        experiment: MLflow's experiment.
        run_id: receives the MLflow run.
        curves: receives the best epoch's figures.

    Returns:
        The bundle's URI, or "" where there was nothing to train.
    """
    from pathlib import Path

    from kubevox.config import AudioLimits, FeaturesConfig, TrainConfig, parse_model
    from kubevox.progress import result
    from kubevox.training.loop import train as train_model

    Path(run_id).write_text("")
    if model == "null":
        return ""
    parsed = parse_model(model)
    trained = train_model(
        split,
        blocks,
        parsed,
        TrainConfig.from_json(config),
        FeaturesConfig.from_json(features),
        AudioLimits.from_json(limits),
        store,
        tracking,
        experiment,
    )
    Path(run_id).write_text(trained.run_id)
    best = trained.history[trained.best_epoch - 1]
    for name, value in best.items():
        curves.log_metric(name, value)
    result(
        "train",
        summary=f"{parsed.architecture}: best of {len(trained.history)} epochs is {trained.best_epoch}, validation UAR "
        f"{best['val_uar']:.3f}" + (f"; resumed after epoch {trained.resumed_at}" if trained.resumed_at else ""),
        reused=trained.reused,
        architecture=parsed.architecture,
        bundle=trained.bundle_uri,
        resumed_at=trained.resumed_at,
    )
    return trained.bundle_uri
