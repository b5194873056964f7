"""What a rollout asks of the place where servers run: the interface of the two back ends, KServe and local."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from kubevox.errors import DeploymentError

__all__ = ["Backend", "ChallengerError", "Deployed", "Endpoint", "Endpoints", "ServedVersion"]


@dataclass(frozen=True)
class ServedVersion:
    """A registered version and what it serves.

    Attributes:
        version: the registered version's number, which its server tells in every answer.
        bundle_uri: the bundle's folder, in a store.
    """

    version: str
    bundle_uri: str


@dataclass(frozen=True)
class Endpoint:
    """Where requests go.

    Attributes:
        url: such as ``http://127.0.0.1:8080``.
        headers: sent with every request; a gateway finds the service by ``Host``.
    """

    url: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Endpoints:
    """The ways to a model's versions.

    Attributes:
        route: what clients use; the share of the canary is in force here.
        stable: straight to the version in production; None where there is none yet.
        canary: straight to the challenger; None where there is none.
    """

    route: Endpoint
    stable: Endpoint | None
    canary: Endpoint | None


@dataclass(frozen=True)
class Deployed:
    """What is in force, as the back end finds it: not what somebody remembers to have asked for.

    Attributes:
        stable: the version in production.
        canary: the challenger beside it.
        canary_percent: of the route's requests that the canary is meant to get.
    """

    stable: ServedVersion | None
    canary: ServedVersion | None
    canary_percent: int


class ChallengerError(DeploymentError):
    """A challenger that did not come up; not a place that cannot be reached, or will not have it written there."""


class Backend(Protocol):
    """Where servers run. Every call may be repeated: asked for what is so already, it does nothing.

    Each raises :class:`~kubevox.errors.DeploymentError` where the place cannot be reached, or where something is not
    ready in time: the message names what is stuck, and the last words of a server that ended.
    """

    name: str

    def observe(self) -> Deployed:
        """What is in force now."""

    def start_canary(self, canary: ServedVersion) -> None:
        """Bring a challenger up beside the version in production, with no share of the route; return when it is ready.

        Where another canary is there, it is replaced. Where nothing is in production, the challenger comes up alone.
        What costs the challenger its place is a :class:`ChallengerError`.
        """

    def set_canary_percent(self, percent: int) -> None:
        """Give the canary a share of the route, 0 to 100; return when that is in force."""

    def endpoints(self) -> Endpoints:
        """The ways to what is deployed now."""

    def promote(self) -> None:
        """Make the canary the version in production, with all of the route; the one before is drained and ended."""

    def take_back(self) -> None:
        """Remove the canary; the version in production has all of the route again. What was in flight is answered."""

    def close(self) -> None:
        """Let go of connections, and of servers that were only there for this rollout."""
