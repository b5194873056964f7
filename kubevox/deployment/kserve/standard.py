"""Standard mode: Deployments behind the Gateway API, and a challenger in ``spec.canary`` (KServe 0.21).

Each predictor has a name, ``v7``, after which KServe names its Deployment and Service. The challenger is an entry of
``spec.canary`` with its share. To promote it, ``spec.predictor`` becomes what KServe made of the challenger, name
included, and the entry goes: the Deployment stays as it is, only the route changes. To take it back, the entry goes.
"""

from __future__ import annotations

import copy
import math

from kubevox.config import KServeConfig
from kubevox.deployment.backend import Deployed, Endpoint, ServedVersion
from kubevox.deployment.kserve import status
from kubevox.deployment.kserve.manifests import (
    Manifest,
    canary_predictor,
    overlay,
    predictor_name,
    served,
    service_name,
)
from kubevox.deployment.kserve.modes import (
    ALONE,
    Step,
    alone,
    changed_meanwhile,
    name_of,
    ready,
    refuse_in_production,
)
from kubevox.errors import DeploymentError

__all__ = ["StandardMode"]


class StandardMode:
    """Keeps a challenger in ``spec.canary``.

    Args:
        config: of the InferenceService.
        model: its name in the URL.
    """

    def __init__(self, config: KServeConfig, model: str) -> None:
        self.config, self.model = config, model

    def observe(self, service: Manifest) -> Deployed:
        """What its spec says is deployed.

        Raises:
            DeploymentError: it has several canaries, or is not Kubevox's.
        """
        spec, where = service["spec"], name_of(service)
        canaries = spec.get("canary") or []
        if len(canaries) > 1:
            raise DeploymentError(f"{where}: it has {len(canaries)} canaries, and Kubevox keeps one; remove the others")
        first = alone(service, beside=bool(canaries))
        if first is not None:
            return first
        stable = served(spec["predictor"], where)
        if not canaries:
            return Deployed(stable, None, 0)
        whole = overlay(spec["predictor"], canaries[0]["predictor"])
        return Deployed(stable, served(whole, where), int(canaries[0]["trafficPercent"]))

    def first(self, service: Manifest) -> Step:
        """Wait until the first challenger, alone, is ready."""
        expected = self.observe(service)

        def change(fresh: Manifest) -> Manifest:
            found = self.observe(fresh)
            if found.stable is not None or found.canary != expected.canary:
                raise changed_meanwhile(fresh, expected, found)
            return _with_share_alone(fresh, 0)

        return Step(change, ready, self._selector(service, service["spec"]["predictor"]))

    def start(self, service: Manifest, canary: ServedVersion) -> Step:
        """Bring a challenger up beside the version in production, with no share.

        Raises:
            DeploymentError: it is in production already, or cannot be served.
        """
        expected = self.observe(service)
        if expected.stable is not None:
            refuse_in_production(service, canary, expected.stable)
        body = canary_predictor(self.config, self.model, canary)

        def change(fresh: Manifest) -> Manifest:
            found = self.observe(fresh)
            if found.stable != expected.stable or found.canary not in (expected.canary, canary):
                raise changed_meanwhile(fresh, expected, found)
            wanted = copy.deepcopy(fresh)
            if found.canary != canary:
                wanted["spec"]["canary"] = [{"predictor": copy.deepcopy(body), "trafficPercent": 0}]
            return _with_share(wanted, 0)

        name = predictor_name(canary)
        return Step(change, lambda fresh: _canary_pending(fresh, name, 0), self._selector(service, body))

    def share(self, service: Manifest, percent: int) -> Step:
        """Give the challenger a share.

        Raises:
            DeploymentError: there is no challenger.
        """
        expected = self.observe(service)
        if expected.canary is None:
            raise DeploymentError(f"{name_of(service)}: there is no challenger that could have a share")

        def change(fresh: Manifest) -> Manifest:
            found = self.observe(fresh)
            if (found.stable, found.canary) != (expected.stable, expected.canary):
                raise changed_meanwhile(fresh, expected, found)
            return _with_share_alone(fresh, percent) if found.stable is None else _with_share(fresh, percent)

        if expected.stable is None:
            return Step(change, ready, self._selector(service, service["spec"]["predictor"]))
        body = service["spec"]["canary"][0]["predictor"]
        name = str(body["name"])
        return Step(change, lambda fresh: _canary_pending(fresh, name, percent), self._selector(service, body))

    def promote(self, service: Manifest) -> Step:
        """Make the challenger the version in production."""
        expected = self.observe(service)
        promoted = Deployed(expected.canary or expected.stable, None, 0)

        def change(fresh: Manifest) -> Manifest:
            found = self.observe(fresh)
            if found == promoted:
                return fresh
            if (found.stable, found.canary) != (expected.stable, expected.canary):
                raise changed_meanwhile(fresh, expected, found)
            wanted = copy.deepcopy(fresh)
            spec = wanted["spec"]
            if found.stable is not None:
                spec["predictor"] = self._promoted(spec["predictor"], spec.pop("canary")[0]["predictor"])
            spec["predictor"].pop(ALONE, None)
            return wanted

        canaries = service["spec"].get("canary") or []
        body = canaries[0]["predictor"] if canaries else service["spec"]["predictor"]
        return Step(change, _settled_pending, self._selector(service, body))

    def promoting(self, service: Manifest) -> bool:
        """Whether the controller has begun to promote what the spec says is promoted."""
        return not _canary_statuses(service)

    def take_back(self, service: Manifest) -> list[Step]:
        """Remove the challenger."""
        expected = self.observe(service)

        def change(fresh: Manifest) -> Manifest:
            found = self.observe(fresh)
            if found.stable != expected.stable or found.canary not in (expected.canary, None):
                raise changed_meanwhile(fresh, expected, found)
            wanted = copy.deepcopy(fresh)
            wanted["spec"].pop("canary", None)
            return wanted

        return [Step(change, _settled_pending, self._selector(service, service["spec"]["predictor"]))]

    def direct(self, service: Manifest) -> tuple[Endpoint | None, Endpoint | None]:
        """Straight to the version in production, and to the challenger."""
        deployed = self.observe(service)
        own = self._endpoint(service, service["spec"]["predictor"])
        if deployed.stable is None:
            return None, own
        canaries = service["spec"].get("canary") or []
        return own, self._endpoint(service, canaries[0]["predictor"]) if canaries else None

    def _promoted(self, stable: Manifest, canary: Manifest) -> Manifest:
        """The canary's predictor in production: its pods as they are, as many of them as the configuration says."""
        body = overlay(stable, canary)
        if not body["model"].get("name"):
            body["model"].pop("name", None)
        body["minReplicas"] = self.config.min_replicas
        if self.config.max_replicas is not None:
            body["maxReplicas"] = self.config.max_replicas
        elif 0 < body.get("maxReplicas", 0) < self.config.min_replicas:
            del body["maxReplicas"]
        return body

    def _endpoint(self, service: Manifest, body: Manifest) -> Endpoint:
        name = service_name(service["metadata"]["name"], body)
        return Endpoint(self.config.direct_url.format(service=name, namespace=self.config.namespace).rstrip("/"))

    def _selector(self, service: Manifest, body: Manifest) -> str:
        return f"app=isvc.{service_name(service['metadata']['name'], body)}"


def _with_share(service: Manifest, percent: int) -> Manifest:
    """The canary's share, and as many servers for it as that share of those in production, one at least.

    Left open, KServe would give a canary without a share no server at all.
    """
    wanted = copy.deepcopy(service)
    entry = wanted["spec"]["canary"][0]
    servers = wanted["spec"]["predictor"].get("minReplicas", 1)
    entry["trafficPercent"] = percent
    entry["predictor"]["minReplicas"] = max(1, math.ceil(servers * percent / 100))
    return wanted


def _with_share_alone(service: Manifest, percent: int) -> Manifest:
    wanted = copy.deepcopy(service)
    wanted["spec"]["predictor"][ALONE] = percent
    return wanted


def _canary_statuses(service: Manifest) -> list[Manifest]:
    return (service.get("status") or {}).get("canaryStatuses") or []


def _canary_pending(service: Manifest, name: str, percent: int) -> str | None:
    known = next((entry for entry in _canary_statuses(service) if entry["name"] == name), None)
    if known is None:
        nothing = status.unmet(service, ())
        return nothing or f"status.canaryStatuses does not name {name}: does this KServe know spec.canary? 0.21 does"
    if not known["ready"]:
        said = status.unmet(service, ("CanaryPredictorReady",)) or f"canary {name} is not ready"
        return said + status.failure(known.get("modelStatus"))
    if known["trafficPercent"] != percent:
        return f"canary {name} has {known['trafficPercent']} % of the route, not {percent} %"
    return ready(service)


def _settled_pending(service: Manifest) -> str | None:
    left = [entry["name"] for entry in _canary_statuses(service)]
    return f"canary {left[0]} is still in force" if left else ready(service)
