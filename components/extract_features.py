"""Extract features: one shard's feature blocks, under every frontend and recipe that the run's models name."""

import os

from kfp import dsl


@dsl.component(base_image=os.environ.get("KUBEVOX_IMAGE", "kubevox-python:0.1.0"), install_kfp_package=False)
def extract_features(shard: str, split: str, features: str, plan: str, store: str) -> str:
    """Compute the missing feature blocks of a shard; augmentation touches training rows only.

    Args:
        shard: the shard's URI.
        split: the certified split's URI.
        features: the config's ``features`` section as JSON, reduced to what is used.
        plan: JSON: the recipes wanted of each frontend.
        store: a folder or s3://bucket/prefix.

    Returns:
        The URI of the shard's block index.
    """
    import json

    from kubevox.config import FeaturesConfig
    from kubevox.data.splits import load_split
    from kubevox.features.blocks import extract_shard
    from kubevox.progress import result

    index = extract_shard(
        shard, load_split(split).split_of, FeaturesConfig.from_json(features), json.loads(plan), store
    )
    result(
        "extract_features",
        summary=f"shard {shard.rpartition('/')[2][:12]}: {index.computed} blocks computed, {index.reused} reused",
        reused=not index.computed,
        computed=index.computed,
    )
    return index.uri
