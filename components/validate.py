"""Validate: every utterance against the configured expectations; what fails one is quarantined with its reasons."""

import os

from kfp import dsl


@dsl.component(base_image=os.environ.get("KUBEVOX_IMAGE", "kubevox-python:0.1.0"), install_kfp_package=False)
def validate(dataset: str, task: str, config: str, store: str, report: dsl.Output[dsl.HTML]) -> str:
    """Accept or quarantine each utterance of a dataset version.

    Args:
        dataset: the dataset's URI.
        task: the config's task as JSON.
        config: the config's ``validation`` section as JSON.
        store: a folder or s3://bucket/prefix.
        report: receives the report.

    Returns:
        The validation's URI.
    """
    from pathlib import Path

    from kubevox import storage
    from kubevox.config import TaskConfig, ValidateConfig
    from kubevox.data.dataset import load_dataset
    from kubevox.data.validation import validate as validate_dataset
    from kubevox.progress import result

    outcome = validate_dataset(
        load_dataset(dataset), TaskConfig.from_json(task), ValidateConfig.from_json(config), store
    )
    html = storage.join(outcome.uri, "report.html")
    Path(report.path).write_bytes(storage.read_bytes(html))
    report.metadata["validation"] = outcome.uri
    result(
        "validate",
        summary=f"{outcome.accepted} accepted, {outcome.quarantined} quarantined",
        reused=outcome.reused,
        accepted=outcome.accepted,
        quarantined=outcome.quarantined,
        warned=outcome.warned,
        remarks=len(outcome.remarks),
        report=html,
    )
    return outcome.uri
