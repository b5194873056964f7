"""What a controller says in an InferenceService's status, and what of it is not so yet, in words.

``status.observedGeneration`` is of no use here: in both modes KServe copies it from the object below (the Deployment,
or the Knative Service). Whether the controller has seen what was written shows in what it reports instead: the canaries
by name and percent, the revisions and their shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubevox.config import KServeConfig
from kubevox.deployment.kserve.manifests import Manifest
from kubevox.errors import DeploymentError

__all__ = ["check_mode", "failure", "unmet", "url"]

_SPOKEN = {"Standard": "standard", "RawDeployment": "standard", "Knative": "knative", "Serverless": "knative"}


def unmet(service: Manifest, conditions: Iterable[str]) -> str | None:
    """The first of these conditions that is not True, with its reason and message; None where all are."""
    status = _status(service)
    if not status.get("conditions"):
        return "no controller has written a status: does KServe's run, and watch this namespace?"
    known = {condition["type"]: condition for condition in status["conditions"]}
    for kind in conditions:
        condition = known.get(kind)
        if condition is None:
            return f"condition {kind} is not reported"
        if condition["status"] != "True":
            why = ": ".join(str(condition[key]) for key in ("reason", "message") if condition.get(key))
            return f"condition {kind} is {condition['status']}" + (f" ({' '.join(why.split())[:300]})" if why else "")
    return None


def failure(model_status: Manifest | None) -> str:
    """What KServe says of the last time that a model could not be loaded; empty where it could."""
    known = (model_status or {}).get("lastFailureInfo")
    if not known:
        return ""
    said = [str(known[key]) for key in ("reason", "message") if known.get(key)]
    return f"; the model: {': '.join(said)[:300]}" if said else ""


def check_mode(service: Manifest, config: KServeConfig) -> None:
    """Refuse an InferenceService that runs in the other mode: KServe fixes the mode when it is made.

    Raises:
        DeploymentError: it does.
    """
    said = _status(service).get("deploymentMode") or (service["metadata"].get("annotations") or {}).get(
        "serving.kserve.io/deploymentMode"
    )
    if said is not None and _SPOKEN.get(said) != config.mode:
        raise DeploymentError(
            f"InferenceService {config.namespace}/{service['metadata']['name']} runs in mode {said}, and "
            f"deploy.kserve.mode is {config.mode}; set it so, or name another service in deploy.kserve.name"
        )


def url(service: Manifest) -> str | None:
    """Where clients reach the InferenceService."""
    return _status(service).get("url")


def _status(service: Manifest) -> dict[str, Any]:
    return service.get("status") or {}
