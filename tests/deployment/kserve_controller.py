"""What KServe's controller would write into the status of InferenceServices, from what their spec says.

It works over the API like the real one, with nothing but the status subresource, so that it can stand in for one on a
real API server too. It keeps what a test wants to know afterwards: which pods were made anew, and which version had
which share of the route at any time.

The rules are those of KServe 0.21: `components/predictor.go` (canaries, orphans, replicas), the HTTPRoute's reconciler
(canaries that are not ready have no share), and `reconcilers/knative/ksvc_reconciler.go` (revisions, tags, shares).
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kubernetes.client import ApiClient, ApiException, CustomObjectsApi
from urllib3.exceptions import HTTPError

Manifest = dict[str, Any]
_KIND = {"group": "serving.kserve.io", "version": "v1beta1", "plural": "inferenceservices"}
# Of a predictor, what its pods do not bear.
_NOT_OF_PODS = (
    "minReplicas",
    "maxReplicas",
    "scaleTarget",
    "scaleMetric",
    "autoScaling",
    "canaryTrafficPercent",
    "name",
)


@dataclass
class Script:
    """How the cluster behaves.

    Attributes:
        broken: versions whose servers never become ready,
        why: with these conditions' reason and message.
        passes: that a version's servers take to become ready.
        ingress: what keeps the route from being ready.
        acts: False: the controller does nothing at all.
    """

    broken: set[str] = field(default_factory=set)
    why: tuple[str, str] = ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    passes: int = 2
    ingress: tuple[str, str] | None = None
    acts: bool = True


class Controller(threading.Thread):
    """Writes the status of every InferenceService of a namespace, until it is stopped.

    Attributes:
        script: may be changed at any time.
        pods: by Deployment or revision, the template of its pods.
        restarts: Deployments whose pods were replaced by others.
        routes: the shares of the route by version, one after another.
        failures: what went wrong in here.
    """

    def __init__(self, client: ApiClient, namespace: str, mode: str) -> None:
        super().__init__(daemon=True)
        self.script = Script()
        self.pods: dict[str, Manifest] = {}
        self.restarts: list[str] = []
        self.routes: list[dict[str, int]] = []
        self.failures: list[Exception] = []
        self._objects, self._namespace = CustomObjectsApi(client), namespace
        self._status = self._standard if mode == "standard" else self._knative
        self._age: dict[str, int] = {}
        self._revisions: dict[str, list[tuple[str, Manifest]]] = {}
        self._done = threading.Event()

    def run(self) -> None:
        """Look at everything, again and again."""
        while not self._done.wait(0.003):
            try:
                self._look()
            except (ApiException, HTTPError):
                pass  # as a controller does: the next pass comes
            except Exception as error:
                self.failures.append(error)
                return

    def stop(self) -> None:
        """End it."""
        self._done.set()
        self.join(10)
        if self.failures:
            raise self.failures[0]

    def __enter__(self) -> Controller:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _look(self) -> None:
        found = self._objects.list_namespaced_custom_object(namespace=self._namespace, **_KIND)
        for service in found["items"]:
            if self.script.acts and "deletionTimestamp" not in service["metadata"]:
                written = copy.deepcopy(service)
                written["status"] = self._status(service)
                if written["status"] != service.get("status"):
                    name = service["metadata"]["name"]
                    self._objects.replace_namespaced_custom_object_status(
                        namespace=self._namespace, name=name, body=written, **_KIND
                    )

    def _grown(self, what: str, version: str) -> bool:
        """Whether a version's servers are ready, after some passes."""
        self._age[what] = self._age.get(what, 0) + 1
        return version not in self.script.broken and self._age[what] >= self.script.passes

    def _route(self, shares: dict[str, int]) -> None:
        shares = {version: percent for version, percent in shares.items() if percent}
        if not self.routes or self.routes[-1] != shares:
            self.routes.append(shares)

    # Standard mode

    def _standard(self, service: Manifest) -> Manifest:
        name, spec = service["metadata"]["name"], service["spec"]
        stable, canaries = spec["predictor"], spec.get("canary") or []
        wanted = {_deployment(name, stable): stable}
        for canary in canaries:
            whole = _filled_in(stable, canary["predictor"])
            wanted[_deployment(name, whole)] = whole
        for orphan in self.pods.keys() - wanted.keys():
            del self.pods[orphan]
            self._age.pop(orphan, None)
        for deployment, body in wanted.items():
            template = _template(service, body)
            if self.pods.get(deployment, template) != template:
                self.restarts.append(deployment)
                self._age.pop(deployment, None)
            self.pods[deployment] = template
        ready = {
            deployment: _servers(stable, body, canaries) > 0 and self._grown(deployment, _version(body))
            for deployment, body in wanted.items()
        }
        statuses = [
            {
                "name": canary["predictor"]["name"],
                "ready": ready[_deployment(name, canary["predictor"])],
                "trafficPercent": canary["trafficPercent"],
            }
            for canary in canaries
        ]
        shares = {
            _version(canary["predictor"]): canary["trafficPercent"]
            for canary, status in zip(canaries, statuses, strict=True)
            if status["ready"]
        }
        stable_ready = ready[_deployment(name, stable)]
        if stable_ready:
            self._route(shares | {_version(stable): 100 - sum(shares.values())})
        conditions = self._conditions(stable_ready)
        if statuses:
            all_ready = all(status["ready"] for status in statuses)
            conditions.append(
                {
                    "type": "CanaryPredictorReady",
                    "status": "True" if all_ready else "False",
                    "severity": "Info",
                    "reason": "AllCanariesReady" if all_ready else "CanariesNotReady",
                }
            )
        url = f"http://{name}-{self._namespace}.example.com"
        status: Manifest = {
            "conditions": conditions,
            "deploymentMode": "Standard",
            "observedGeneration": 1,  # the Deployment's
            "url": url,
            "components": {"predictor": {"url": f"http://{name}-predictor-{self._namespace}.example.com"}},
            "modelStatus": {"transitionStatus": "UpToDate" if stable_ready else "InProgress"},
        }
        return status | ({"canaryStatuses": statuses} if statuses else {})

    def _conditions(self, predictor_ready: bool) -> list[Manifest]:
        ready: Manifest = {"type": "PredictorReady", "status": "True"}
        if not predictor_ready:
            ready |= {"status": "False", "reason": self.script.why[0], "message": self.script.why[1]}
        ingress: Manifest = {"type": "IngressReady", "status": "True"}
        if self.script.ingress or not predictor_ready:
            reason, message = self.script.ingress or ("Predictor ingress not created", "")
            ingress |= {"status": "False", "reason": reason, "message": message}
        whole = next((part for part in (ready, ingress) if part["status"] != "True"), ready)
        return sorted([ready, ingress, whole | {"type": "Ready"}], key=lambda condition: str(condition["type"]))

    # Knative mode

    def _knative(self, service: Manifest) -> Manifest:
        name, body = service["metadata"]["name"], service["spec"]["predictor"]
        known = ((service.get("status") or {}).get("components") or {}).get("predictor") or {}
        template = _template(service, body) | {"minScale": body.get("minReplicas"), "maxScale": body.get("maxReplicas")}
        revisions = self._revisions.setdefault(name, [])
        if not revisions or revisions[-1][1] != template:
            revisions.append((f"{name}-predictor-{len(revisions) + 1:05d}", template))
            self.pods[revisions[-1][0]] = template
        versions = {revision: _version(pods) for revision, pods in revisions}
        created = revisions[-1][0]
        latest = created if self._grown(created, versions[created]) else known.get("latestReadyRevision")
        rolled_out, before = known.get("latestRolledoutRevision"), known.get("previousRolledoutRevision")
        percent = body.get("canaryTrafficPercent")
        host = f"{name}-predictor.{self._namespace}.example.com"
        traffic: list[Manifest] = []
        if latest is not None:
            whole = percent is None or rolled_out is None
            share = 100 if whole else percent
            tag = {"tag": "latest", "url": f"http://latest-{host}"} if _tagged(service) else {}
            traffic.append({"latestRevision": True, "revisionName": latest, "percent": share} | tag)
            if share < 100:
                rest = {"tag": "prev", "url": f"http://prev-{host}", "percent": 100 - share}
                traffic.append({"latestRevision": False, "revisionName": rolled_out} | rest)
            shares: dict[str, int] = {}
            for target in traffic:
                version = versions[target["revisionName"]]
                shares[version] = shares.get(version, 0) + target["percent"]
            self._route(shares)
            if share == 100 and latest != rolled_out:
                rolled_out, before = latest, rolled_out
        component = {
            "latestCreatedRevision": created,
            "latestReadyRevision": latest,
            "latestRolledoutRevision": rolled_out,
            "previousRolledoutRevision": before,
            "url": f"http://{host}" if latest else None,
            "traffic": traffic or None,
        }
        return {
            "conditions": self._conditions(latest == created),
            "deploymentMode": "Knative",
            "observedGeneration": len(revisions),  # the Knative Service's
            "url": f"http://{name}.{self._namespace}.example.com",
            "components": {"predictor": {key: value for key, value in component.items() if value is not None}},
            "modelStatus": {"transitionStatus": "UpToDate" if latest == created else "InProgress"},
        }


def _deployment(name: str, predictor: Manifest) -> str:
    return f"{name}-{predictor['name']}-predictor" if predictor.get("name") else f"{name}-predictor"


def _servers(stable: Manifest, predictor: Manifest, canaries: list[Manifest]) -> int:
    """How many pods a predictor gets."""
    own = next((canary for canary in canaries if canary["predictor"]["name"] == predictor.get("name")), None)
    if own is None:
        return stable.get("minReplicas", 1)
    share = math.ceil(stable.get("minReplicas", 1) * own["trafficPercent"] / 100)
    return own["predictor"].get("minReplicas", share)


def _version(predictor: Manifest) -> str:
    flags = dict(flag.partition("=")[::2] for flag in predictor["model"]["args"])
    return flags.get("--model_version", "unknown")


def _template(service: Manifest, predictor: Manifest) -> Manifest:
    """What a predictor's pods are made from; the InferenceService's annotations and labels are handed down to them."""
    own = {key: value for key, value in predictor.items() if key not in _NOT_OF_PODS}
    own["model"] = {key: value for key, value in predictor["model"].items() if value}
    metadata = service["metadata"]
    return copy.deepcopy({"annotations of all": metadata.get("annotations"), "labels": metadata.get("labels")} | own)


def _filled_in(stable: Any, canary: Any) -> Any:
    """`mergo.Merge(&stable, canary, mergo.WithOverride)`: empty values say nothing, and lists are not merged."""
    if not (isinstance(stable, dict) and isinstance(canary, dict)):
        return copy.deepcopy(canary if canary or stable is None else stable)
    keys = [*stable, *(key for key in canary if key not in stable)]
    return {key: _filled_in(stable.get(key), canary.get(key)) for key in keys}


def _tagged(service: Manifest) -> bool:
    return (service["metadata"].get("annotations") or {}).get("serving.kserve.io/enable-tag-routing") == "true"


def waited_for(what: Callable[[], bool], passes: int = 1000) -> bool:
    """Whether something comes about before long."""
    tick = threading.Event()
    return any(what() or tick.wait(0.01) for _ in range(passes))
