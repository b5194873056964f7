"""Ingest: the configured corpora become a dataset version in the store."""

import os

from kfp import dsl


@dsl.component(base_image=os.environ.get("KUBEVOX_IMAGE", "kubevox-python:0.1.0"), install_kfp_package=False)
def ingest(data: str, store: str) -> str:
    """Bring corpora into the store as one immutable dataset version; unchanged sources are recognised quickly.

    Args:
        data: the config's ``data`` section as JSON; with ``version`` in it, that version of the store is taken.
        store: a folder or s3://bucket/prefix.

    Returns:
        The dataset's URI.
    """
    from kubevox.config import DataConfig
    from kubevox.data.dataset import ingest as ingest_corpora
    from kubevox.progress import result

    version, reused = ingest_corpora(DataConfig.from_json(data), store)
    result(
        "ingest",
        summary=f"{version.utterances} recordings, {version.hours:.2f} h, {len(version.shards)} shards; "
        f"dataset {version.hash[:12]}" + (f", {version.rejects} not decodable" if version.rejects else ""),
        reused=reused,
        dataset=version.uri,
        utterances=version.utterances,
        hours=version.hours,
        synthetic=version.synthetic,
        corpora=[corpus["name"] for corpus in version.corpora],
    )
    return version.uri
