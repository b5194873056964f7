"""Which InferenceService the KServe back end looks after, and how."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kubevox.config.base import Positive, PositiveInt, Section, refusal

__all__ = ["KServeConfig", "ResourcesConfig"]

_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
# KServe's own, narrower than Kubernetes': an InferenceService's name begins with a letter.
_SERVICE_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"

_Quantities = dict[str, Annotated[str, Field(pattern=_QUANTITY)]]


class ResourcesConfig(Section):
    """What one model server may have, as Kubernetes writes it: ``cpu: 500m``, ``memory: 1Gi``, ``nvidia.com/gpu: "1"``.

    Attributes:
        requests: kept free for it.
        limits: of which it never gets more.
    """

    requests: _Quantities = {"cpu": "1", "memory": "1Gi"}
    limits: _Quantities = {"memory": "2Gi"}


class KServeConfig(Section):
    """The InferenceService of a model, and the way to it.

    Attributes:
        namespace: it lives in; with the ServingRuntime, and the service account.
        name: its name; None: the task's.
        mode: `standard` shifts traffic by `spec.canary`, `knative` by `canaryTrafficPercent`. KServe fixes it when the
            InferenceService is made.
        context: of the kubeconfig; None: the current one, or inside a cluster the pod's own service account.
        runtime: the ServingRuntime that knows the model format `kubevox`; None: whichever does.
        image: of the model server, where a version needs another than the runtime's; None: the runtime's.
        service_account: whose secret opens the bundle's bucket.
        min_replicas: model servers of a version in production; in standard mode the challenger gets its share of them.
        max_replicas: up to which they grow under load; None: KServe's default.
        resources: of each.
        args: more flags for each, such as ``--log_store=s3://bucket/log``.
        env: more environment variables for each.
        annotations: of the InferenceService, when it is made. All its pods bear them, so they are not changed later.
        gateway_url: where the gateway is reached, such as ``http://127.0.0.1:8080``; requests bear the service's name
            as ``Host``. None: the URL in the InferenceService's status, which then must resolve.
        direct_url: of one version, in standard mode; ``{service}`` and ``{namespace}`` are filled in.
        poll_s: between two looks at the status, at most; it begins with short ones.
    """

    namespace: str = Field(default="kubevox", max_length=63, pattern=_LABEL)
    # With "-v1234-predictor" it has to be a DNS label.
    name: str | None = Field(default=None, max_length=40, pattern=_SERVICE_NAME)
    mode: Literal["standard", "knative"] = "standard"
    context: str | None = None
    runtime: str | None = "kubevox"
    image: str | None = None
    service_account: str | None = None
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: PositiveInt | None = None
    resources: ResourcesConfig = ResourcesConfig()
    args: list[Annotated[str, Field(pattern=r"^--[a-z_]+=")]] = []
    env: dict[str, str] = {}
    annotations: dict[str, str] = {}
    gateway_url: str | None = Field(default=None, pattern=r"^https?://")
    direct_url: str = Field(default="http://{service}.{namespace}.svc.cluster.local", pattern=r"^https?://")
    poll_s: Positive = 2.0

    @model_validator(mode="after")
    def _fits_together(self) -> KServeConfig:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise refusal("max_replicas", self.max_replicas, f"must not be below min_replicas = {self.min_replicas}")
        if self.mode == "standard" and self.min_replicas == 0:
            raise refusal("min_replicas", 0, "only mode knative scales to zero")
        try:
            fields = {name for _, name, _, _ in Formatter().parse(self.direct_url) if name is not None}
        except ValueError:
            fields = {""}
        if fields != {"service", "namespace"}:
            raise refusal("direct_url", self.direct_url, "must hold {service} and {namespace}, and no other braces")
        return self
