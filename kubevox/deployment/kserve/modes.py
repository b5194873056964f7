"""What the two modes of KServe have in common: an operation is a few steps, each one write and what is waited for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kubevox.config import KServeConfig
from kubevox.deployment.backend import Deployed, Endpoint, ServedVersion
from kubevox.deployment.kserve import status
from kubevox.deployment.kserve.manifests import Manifest, served
from kubevox.errors import DeploymentError

__all__ = [
    "ALONE",
    "Mode",
    "Step",
    "alone",
    "changed_meanwhile",
    "name_of",
    "ready",
    "refuse_in_production",
    "through_gateway",
]

# On a predictor without another beside it: a first challenger, which nobody has promoted yet. In Knative mode it has no
# effect there, in standard mode KServe ignores it; its pods are not touched when it goes.
ALONE = "canaryTrafficPercent"


@dataclass(frozen=True)
class Step:
    """One write, and when it is in force.

    Attributes:
        change: an InferenceService as it was read just now, to one as it shall be; equal where it is so already. It is
            asked again where somebody else wrote meanwhile, and raises where what was wanted makes no sense any more.
        pending: what is not in force yet, in words; None where all of it is.
        selector: of the pods that may say why.
    """

    change: Callable[[Manifest], Manifest]
    pending: Callable[[Manifest], str | None]
    selector: str


class Mode(Protocol):
    """How one mode of KServe keeps a version in production and a challenger in an InferenceService."""

    def observe(self, service: Manifest) -> Deployed:
        """What its spec says is deployed."""

    def first(self, service: Manifest) -> Step:
        """Wait until the first challenger, alone, is ready."""

    def start(self, service: Manifest, canary: ServedVersion) -> Step:
        """Bring a challenger up beside the version in production, with no share."""

    def share(self, service: Manifest, percent: int) -> Step:
        """Give the challenger a share."""

    def promote(self, service: Manifest) -> Step:
        """Make the challenger the version in production."""

    def promoting(self, service: Manifest) -> bool:
        """Whether the controller has begun to promote what the spec says is promoted."""

    def take_back(self, service: Manifest) -> list[Step]:
        """Remove the challenger."""

    def direct(self, service: Manifest) -> tuple[Endpoint | None, Endpoint | None]:
        """Straight to the version in production, and to the challenger."""


def name_of(service: Manifest) -> str:
    """An InferenceService, for messages."""
    return f"InferenceService {service['metadata']['namespace']}/{service['metadata']['name']}"


def alone(service: Manifest, beside: bool) -> Deployed | None:
    """The first challenger, where it is all that is deployed; it has the whole route, whatever share it was given."""
    predictor = service["spec"]["predictor"]
    if beside or ALONE not in predictor:
        return None
    return Deployed(None, served(predictor, name_of(service)), int(predictor[ALONE]))


def changed_meanwhile(service: Manifest, expected: Deployed, found: Deployed) -> DeploymentError:
    """Somebody else rolls out too."""

    def said(deployed: Deployed) -> str:
        stable = f"version {deployed.stable.version}" if deployed.stable else "nothing"
        canary = f"version {deployed.canary.version}" if deployed.canary else "none"
        return f"{stable} in production, challenger {canary}"

    return DeploymentError(
        f"{name_of(service)} was changed by somebody else meanwhile: expected {said(expected)}; found {said(found)}. "
        "Look at it before you roll out again"
    )


def through_gateway(config: KServeConfig, url: str) -> Endpoint:
    """A URL of KServe's, as it is or by way of the configured gateway, which finds the service by ``Host``."""
    if config.gateway_url is None:
        return Endpoint(url.rstrip("/"))
    host, _, path = url.split("://", 1)[-1].partition("/")
    return Endpoint(config.gateway_url.rstrip("/") + (f"/{path}".rstrip("/")), {"Host": host})


def refuse_in_production(service: Manifest, canary: ServedVersion, stable: ServedVersion) -> None:
    """Refuse a challenger that is in production already.

    Raises:
        DeploymentError: its number or its bundle is.
    """
    if canary.version == stable.version:
        raise DeploymentError(f"{name_of(service)}: version {canary.version} is in production already")
    if canary.bundle_uri == stable.bundle_uri:
        raise DeploymentError(
            f"{name_of(service)}: version {canary.version} has the very bundle of version {stable.version}, which is "
            "in production; there is nothing to roll out"
        )


def ready(service: Manifest) -> str | None:
    """What keeps an InferenceService from being ready."""
    found = status.unmet(service, ("PredictorReady", "IngressReady", "Ready"))
    return None if found is None else found + status.failure((service.get("status") or {}).get("modelStatus"))
