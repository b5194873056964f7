"""Features: frontends, augmentation, and feature blocks in the store.

Nothing here imports torch before something is computed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kubevox.features.augmentation import augment, recipe_version
    from kubevox.features.blocks import Block, BlockIndex, block_key, extract_shard, load_features, read_index
    from kubevox.features.extraction import Extracted, Extractor, Source
    from kubevox.features.frontends import (
        Frontend,
        build_frontend,
        feature_shape,
        frontend_version,
        minimum_duration_s,
    )
    from kubevox.features.frontends.base import features_of

__all__ = [
    "Block",
    "BlockIndex",
    "Extracted",
    "Extractor",
    "Frontend",
    "Source",
    "augment",
    "block_key",
    "build_frontend",
    "extract_shard",
    "feature_shape",
    "features_of",
    "frontend_version",
    "load_features",
    "minimum_duration_s",
    "read_index",
    "recipe_version",
]

_HOMES = {
    "augmentation": ("augment", "recipe_version"),
    "blocks": ("Block", "BlockIndex", "block_key", "extract_shard", "load_features", "read_index"),
    "extraction": ("Extracted", "Extractor", "Source"),
    "frontends": ("build_frontend", "feature_shape", "frontend_version", "minimum_duration_s"),
    "frontends.base": ("Frontend", "features_of"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
