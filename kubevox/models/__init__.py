"""The zoo, one architecture a module, and the bundle that makes one deployable."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from kubevox.config import ModelConfig

__all__ = ["build_network"]


def build_network(config: ModelConfig, shape: tuple[int, ...], labels: int) -> nn.Module:
    """The untrained network that a configuration describes.

    Args:
        config: the architecture and its sizes.
        shape: one feature's shape: (values,) for ``cnn1d``, (bands, frames) for ``rescnn``.
        labels: how many classes.

    Returns:
        A module from float32 [batch, *shape] to logits [batch, labels].
    """
    if config.architecture == "cnn1d":
        from kubevox.models.cnn1d import Cnn1d

        return Cnn1d(config, shape[0], labels)
    from kubevox.models.rescnn import ResCnn

    return ResCnn(config, shape[0], labels)
