"""A cascade as a KServe InferenceGraph: ``mini`` answers, and ``premium`` where mini is not sure enough."""

from __future__ import annotations

import math

from kubevox.deployment.kserve.manifests import Manifest
from kubevox.errors import DeploymentError

__all__ = ["inference_graph"]


def inference_graph(name: str, namespace: str, mini: str, premium: str, threshold: float) -> Manifest:
    """The InferenceGraph of a cascade.

    A Sequence: mini is asked first. Where one of its predictions has a confidence below the threshold, the request
    goes, as it came, to premium, and premium's answer is the answer; otherwise mini's is. What one of the two refuses
    is the client's answer, with its status: so both are hard dependencies.

    KServe's router looks at a whole answer, so a request of several recordings goes to premium with all of them where
    mini is unsure of one. It hands on JSON, and no headers but those that KServe's configuration names.

    Args:
        name: the graph's.
        namespace: of the graph and of both services.
        mini: the InferenceService of the mini model, or the URL that answers for it, ``…/v1/models/NAME:predict``.
        premium: likewise.
        threshold: confidence, from 0 to 1, of the cascade's `cascade.json`.

    Returns:
        The object, as Kubernetes takes it.

    Raises:
        DeploymentError: the threshold is no confidence, or the services are one.
    """
    if not (math.isfinite(threshold) and 0.0 <= threshold <= 1.0):
        raise DeploymentError(f"InferenceGraph {name}: a threshold is a confidence from 0 to 1, not {threshold:g}")
    if mini == premium:
        raise DeploymentError(f"InferenceGraph {name}: mini and premium are one service, {mini}")
    first = {"name": "mini", **_target(mini), "dependency": "Hard"}
    second = {
        "name": "premium",
        **_target(premium),
        "data": "$request",
        # GJSON: there is such a prediction. KServe asks this of the answer of the step before.
        "condition": f"predictions.#(confidence<{float(threshold)!r})",
        "dependency": "Hard",
    }
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "kubevox", "app.kubernetes.io/name": name},
        },
        "spec": {"nodes": {"root": {"routerType": "Sequence", "steps": [first, second]}}},
    }


def _target(service: str) -> dict[str, str]:
    return {"serviceUrl" if "://" in service else "serviceName": service}
