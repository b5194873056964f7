"""Deploy: roll the accepted bundle out, step by step; it becomes the champion, or is taken back."""

import os

from kfp import dsl


@dsl.component(base_image=os.environ.get("KUBEVOX_IMAGE", "kubevox-python:0.1.0"), install_kfp_package=False)
def deploy(
    bundle: str,
    evaluation: str,
    run_id: str,
    name: str,
    config: str,
    store: str,
    tracking: str,
    rollout: dsl.Output[dsl.Artifact],
    timeline: dsl.Output[dsl.HTML],
) -> str:
    """Give the bundle a growing share of the traffic and watch it; promote it, or take it back; never cached.

    Args:
        bundle: the bundle's URI.
        evaluation: its evaluation's URI.
        run_id: the MLflow run that trained it.
        name: the registered model.
        config: the config's ``deploy`` section as JSON.
        store: a folder or s3://bucket/prefix.
        tracking: MLflow's URI.
        rollout: receives the rollout's record.
        timeline: receives the page that tells it.

    Returns:
        The version that is champion now: the bundle's, or the one that was before; "" where there is none.
    """
    from pathlib import Path

    from kubevox import storage
    from kubevox.config import DeployConfig
    from kubevox.deployment.rollout import deploy as deploy_bundle
    from kubevox.progress import result

    outcome = deploy_bundle(bundle, evaluation, run_id, name, DeployConfig.from_json(config), store, tracking)
    for artifact, uri in ((rollout, outcome.uri), (timeline, outcome.timeline)):
        Path(artifact.path).write_bytes(storage.read_bytes(uri))
        artifact.metadata["rollout"] = outcome.uri
    if outcome.outcome == "promoted":
        summary = f"{name} version {outcome.version} is champion: {outcome.reason}"
    else:
        stays = f"version {outcome.champion} stays champion" if outcome.champion else "there is no champion"
        summary = f"{name} version {outcome.version} was taken back ({outcome.criterion}); {stays}"
    result(
        "deploy",
        summary=summary,
        outcome=outcome.outcome,
        criterion=outcome.criterion,
        reason=outcome.reason,
        version=outcome.version,
        champion=outcome.champion,
        previous=outcome.previous,
        largest_difference=outcome.largest_difference,
        timeline=outcome.timeline,
    )
    return outcome.champion or ""
