"""Which InferenceService the KServe back end looks after, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kubevox.config.base import Section

__all__ = ["KServeConfig"]


class KServeConfig(Section):
    """The InferenceService of a model.

    Attributes:
        namespace: it lives in.
        name: its name; None: the task's.
        mode: `standard` shifts traffic by `spec.canary`, `knative` by `canaryTrafficPercent`.
    """

    namespace: str = Field(default="kubevox", pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    name: str | None = None
    mode: Literal["standard", "knative"] = "standard"
