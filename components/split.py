"""Split: speakers into train, validation and test, with a certificate."""

import os
from typing import Dict, List  # noqa: UP035 - KFP reads the annotation

from kfp import dsl


@dsl.component(base_image=os.environ.get("KUBEVOX_IMAGE", "kubevox-python:0.1.0"), install_kfp_package=False)
def split(
    dataset: str,
    validation: str,
    task: str,
    config: str,
    store: str,
    split: dsl.OutputPath(str),  # type: ignore[valid-type]
    certificate: dsl.Output[dsl.Artifact],
) -> List[Dict[str, str]]:  # noqa: UP006
    """Make a certified split by the configured protocol; speakers that were assigned before stay where they are.

    Args:
        dataset: the dataset's URI.
        validation: the validation's URI; only accepted utterances are used.
        task: the config's task as JSON.
        config: the config's ``split`` section as JSON.
        store: a folder or s3://bucket/prefix.
        split: receives the split's URI.
        certificate: receives what was checked.

    Returns:
        What to extract features from: each shard of the dataset, with the split. Both stand in the item because KFP's
        local runner gives a task inside a loop no other task's output.
    """
    import json
    from pathlib import Path

    from kubevox.config import SplitConfig, TaskConfig
    from kubevox.data.dataset import load_dataset
    from kubevox.data.splits import make_split
    from kubevox.data.validation import accepted_source_ids
    from kubevox.progress import note, result

    made, reused = make_split(
        load_dataset(dataset),
        accepted_source_ids(validation),
        TaskConfig.from_json(task),
        SplitConfig.from_json(config),
        store,
    )
    Path(split).write_text(made.uri)
    Path(certificate.path).write_text(json.dumps(made.certificate, indent=2))
    certificate.metadata["split"] = made.uri
    for warning in made.certificate["warnings"]:
        note(f"split: {warning}")
    speakers = made.certificate["speakers"]
    unverified = made.certificate["unverified_corpora"]
    result(
        "split",
        summary=", ".join(f"{name} {count}" for name, count in speakers.items())
        + " speakers, none in two splits"
        + (f" (unverified: {', '.join(unverified)})" if unverified else ""),
        reused=reused,
        split=made.uri,
        speakers=speakers,
        utterances=made.certificate["utterances"],
        unverified=sorted(unverified),
        protocol=made.certificate["config"]["protocol"],
        warnings=made.certificate["warnings"],
    )
    return [{"shard": shard, "split": made.uri} for shard in made.dataset.shard_uris]
