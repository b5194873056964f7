"""How a challenger gets its traffic, and what it is watched for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kubevox.config.base import Positive, PositiveInt, Section
from kubevox.config.kserve import KServeConfig

__all__ = ["DeployConfig", "RolloutConfig"]


class RolloutConfig(Section):
    """The steps from challenger to champion, and the checks of each."""

    steps: list[int] = Field(default=[10, 50], min_length=1)


class DeployConfig(Section):
    """How a bundle reaches production.

    Attributes:
        backend: where the servers run: processes of this machine, or a KServe InferenceService.
        check_clips: test recordings whose answers are compared with the evaluator's.
        tolerance: between a served and an evaluated probability.
    """

    backend: Literal["local", "kserve"] = "local"
    check_clips: PositiveInt = 8
    tolerance: Positive = 1e-5
    start_timeout_s: Positive = 90.0
    request_timeout_s: Positive = 30.0
    rollout: RolloutConfig = RolloutConfig()
    kserve: KServeConfig = KServeConfig()
