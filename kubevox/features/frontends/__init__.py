"""Frontends: what turns a waveform into model input.

A frontend is a frozen configuration, a version and a batched function; training, evaluation and serving call the same
one. What can be known of a frontend without computing anything (its shape, its version, what it needs of a recording)
is here, and free of torch, so that a rerun that finds all of its features in the store costs nothing.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

from kubevox.config import DriftConfig, FrontendConfig, LogMelConfig, SslConfig, StatisticsConfig
from kubevox.errors import ConfigError
from kubevox.features.pins import pinned

if TYPE_CHECKING:
    from kubevox.features.frontends.base import Frontend

__all__ = ["Frontend", "build_frontend", "feature_shape", "frontend_version", "minimum_duration_s"]

# Part of every feature block's key: raise a frontend's number whenever its values change.
_VERSIONS = {"drift": 1, "logmel": 1, "ssl": 1, "statistics": 2}
# Where each is at home; imported only when it is built.
_HOMES = {
    "drift": "drift:Drift",
    "logmel": "logmel:LogMel",
    "ssl": "ssl:Ssl",
    "statistics": "statistics:Statistics",
}


def build_frontend(config: FrontendConfig, device: str = "cpu") -> Frontend:
    """The frontend that a configuration describes.

    Args:
        config: a frontend's section of the configuration.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU where there is one.

    Raises:
        ConfigError: a duration that holds no frame, or a device that is not there.
    """
    config = pinned(config)
    if round(config.duration_s * config.sample_rate) < config.minimum_samples:
        raise ConfigError(
            f"frontend {config.kind}: duration_s = {config.duration_s:g} holds no frame of {config.minimum_samples} "
            f"samples at {config.sample_rate} Hz"
        )
    module, _, name = _HOMES[config.kind].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)(config, device)


def frontend_version(config: FrontendConfig) -> int:
    """The version of the frontend's code: equal configurations and versions give equal features."""
    version = _VERSIONS[config.kind]
    if config.vad is not None:
        from kubevox.data.vad import VAD_VERSION

        version += 100 * VAD_VERSION
    return version


def feature_shape(config: FrontendConfig) -> tuple[int, ...]:
    """The shape of one recording's features: ``(270,)`` for statistics by default, ``(mels, frames)`` for logmel."""
    if isinstance(config, LogMelConfig):
        return config.mels, config.frames
    if isinstance(config, StatisticsConfig):
        return (2 + config.chroma + config.mels + config.mfccs,)
    if isinstance(config, DriftConfig):
        return (len(config.feature_names),)
    assert isinstance(config, SslConfig)  # noqa: S101 - there are no others
    from kubevox.features.frontends.encoder import hidden_size

    return (hidden_size(config) * (2 if config.pooling == "mean_std" else 1),)


def minimum_duration_s(config: FrontendConfig) -> float:
    """The shortest recording, in s, that the frontend takes: its offset and one frame, rounded up to 10 ms."""
    return math.ceil(100 * (config.offset_s + config.minimum_samples / config.sample_rate)) / 100


def __getattr__(name: str) -> Any:
    if name == "Frontend":
        from kubevox.features.frontends.base import Frontend

        return Frontend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
