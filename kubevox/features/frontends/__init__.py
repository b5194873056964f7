"""Frontends: what turns a waveform into model input.

A frontend is a frozen configuration, a version and a batched function; training, evaluation and serving call the same
one. What can be known of a frontend without computing anything (its shape, its version, what it needs of a recording)
is here, and free of torch, so that a rerun that finds all of its features in the store costs nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kubevox.config import FrontendConfig, LogMelConfig, StatisticsConfig
from kubevox.errors import ConfigError

if TYPE_CHECKING:
    from kubevox.features.frontends.base import Frontend

__all__ = ["Frontend", "build_frontend", "feature_shape", "frontend_version", "minimum_duration_s"]

# Part of every feature block's key: raise a frontend's number whenever its values change.
_VERSIONS = {"logmel": 1, "statistics": 1}


def build_frontend(config: FrontendConfig, device: str = "cpu") -> Frontend:
    """The frontend that a configuration describes.

    Args:
        config: a :class:`~kubevox.config.StatisticsConfig` or :class:`~kubevox.config.LogMelConfig`.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU where there is one.

    Raises:
        ConfigError: a duration that holds no frame, or a device that is not there.
    """
    if round(config.duration_s * config.sample_rate) < config.frame:
        raise ConfigError(
            f"frontend {config.kind}: duration_s = {config.duration_s:g} holds no frame of {config.frame} samples at "
            f"{config.sample_rate} Hz"
        )
    if isinstance(config, StatisticsConfig):
        from kubevox.features.frontends.statistics import Statistics

        return Statistics(config, device)
    from kubevox.features.frontends.logmel import LogMel

    return LogMel(config, device)


def frontend_version(config: FrontendConfig) -> int:
    """The version of the frontend's code: equal configurations and versions give equal features."""
    return _VERSIONS[config.kind]


def feature_shape(config: FrontendConfig) -> tuple[int, ...]:
    """The shape of one recording's features: ``(270,)`` for statistics by default, ``(mels, frames)`` for logmel."""
    if isinstance(config, LogMelConfig):
        return config.mels, 1 + round(config.duration_s * config.sample_rate) // config.hop
    return (2 + config.chroma + config.mels + config.mfccs,)


def minimum_duration_s(config: FrontendConfig) -> float:
    """The shortest recording, in s, that the frontend takes: its offset and one frame, rounded up to 10 ms."""
    return math.ceil(100 * (config.offset_s + config.frame / config.sample_rate)) / 100


def __getattr__(name: str) -> Any:
    if name == "Frontend":
        from kubevox.features.frontends.base import Frontend

        return Frontend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
