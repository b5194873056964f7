"""Deploy: register the accepted bundle, serve it, compare its answers, move the alias ``champion``."""

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
) -> str:
    """Make the bundle the champion if a live KServe model server answers as the evaluator did; never cached.

    Args:
        bundle: the bundle's URI.
        evaluation: its evaluation's URI.
        run_id: the MLflow run that trained it.
        name: the registered model.
        config: the config's ``deploy`` section as JSON.
        store: a folder or s3://bucket/prefix.
        tracking: MLflow's URI.
        rollout: receives the rollout's record.

    Returns:
        The version that is now champion.
    """
    from pathlib import Path

    from kubevox import storage
    from kubevox.config import DeployConfig
    from kubevox.deployment.rollout import deploy as deploy_bundle
    from kubevox.progress import result

    outcome = deploy_bundle(bundle, evaluation, run_id, name, DeployConfig.from_json(config), store, tracking)
    Path(rollout.path).write_bytes(storage.read_bytes(outcome.uri))
    rollout.metadata["rollout"] = outcome.uri
    result(
        "deploy",
        summary=f"{name} version {outcome.version} is champion; a live server answered {outcome.recordings} test "
        f"recordings as the evaluator did (largest difference {outcome.largest_difference:.1g})",
        version=outcome.version,
        previous=outcome.previous,
        largest_difference=outcome.largest_difference,
    )
    return outcome.version
