"""What Kubevox writes of an InferenceService: predictors, which version each of them is, and the whole.

A predictor bears its version three times: as ``--model_version``, which its server tells in every answer, as the end of
its ``storageUri``, and as annotations for whoever reads them. All of them are in ``spec.predictor`` and none in the
InferenceService's own metadata: KServe hands its annotations and labels down to every pod, so changing one would
restart the version in production.
"""

from __future__ import annotations

import copy
from typing import Any

from kubevox.config import KServeConfig
from kubevox.deployment.backend import ServedVersion
from kubevox.errors import DeploymentError

__all__ = [
    "API_VERSION",
    "BUNDLE",
    "MODEL_FORMAT",
    "VERSION",
    "Manifest",
    "canary_predictor",
    "inference_service",
    "overlay",
    "predictor",
    "predictor_name",
    "served",
    "service_name",
]

Manifest = dict[str, Any]

API_VERSION = "serving.kserve.io/v1beta1"
MODEL_FORMAT = "kubevox"
VERSION, BUNDLE = "kubevox/version", "kubevox/bundle"

_MODES = {"standard": "Standard", "knative": "Knative"}


def predictor(config: KServeConfig, model: str, version: ServedVersion) -> Manifest:
    """The predictor of one version.

    Args:
        config: what its servers are.
        model: its name in the URL.
        version: what it serves.

    Raises:
        DeploymentError: the bundle lies where no pod can read it, or the version's number cannot be part of a name.
    """
    if not version.bundle_uri.startswith("s3://"):
        raise DeploymentError(
            f"bundle {version.bundle_uri}: a pod reads a bucket, not a folder of this machine; set "
            "store: s3://bucket/prefix and train again"
        )
    served_model: Manifest = {
        "modelFormat": {"name": MODEL_FORMAT},
        "protocolVersion": "v1",
        "storageUri": version.bundle_uri,
        "args": [f"--model_name={model}", f"--model_version={version.version}", *config.args],
        "resources": {"requests": dict(config.resources.requests), "limits": dict(config.resources.limits)},
    }
    if config.env:
        served_model["env"] = [{"name": name, "value": value} for name, value in sorted(config.env.items())]
    if config.runtime is not None:
        served_model["runtime"] = config.runtime
    if config.image is not None:
        served_model["image"] = config.image
    body: Manifest = {
        "annotations": {VERSION: version.version, BUNDLE: version.bundle_uri},
        "minReplicas": config.min_replicas,
        "model": served_model,
    }
    if config.mode == "standard":
        body["name"] = predictor_name(version)
    if config.max_replicas is not None:
        body["maxReplicas"] = config.max_replicas
    if config.service_account is not None:
        body["serviceAccountName"] = config.service_account
    return body


def canary_predictor(config: KServeConfig, model: str, version: ServedVersion) -> Manifest:
    """The predictor of a challenger in ``spec.canary``.

    Raises:
        DeploymentError: as :func:`predictor`.
    """
    body = predictor(config, model, version)
    # KServe keeps a fixed number of a canary's servers, and refuses limits of what it does not scale.
    body.pop("maxReplicas", None)
    # The definition wants a name here, and the admission webhook none in production; empty is both.
    body["model"]["name"] = ""
    return body


def inference_service(config: KServeConfig, model: str, body: Manifest) -> Manifest:
    """The InferenceService around a predictor, as it is first written."""
    annotations = {"serving.kserve.io/deploymentMode": _MODES[config.mode]}
    if config.mode == "knative":
        # URLs that lead to one revision, whatever its share.
        annotations["serving.kserve.io/enable-tag-routing"] = "true"
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "metadata": {
            "name": config.name or model,
            "namespace": config.namespace,
            "labels": {"app.kubernetes.io/managed-by": "kubevox", "app.kubernetes.io/name": model},
            "annotations": annotations | config.annotations,
        },
        "spec": {"predictor": body},
    }


def predictor_name(version: ServedVersion) -> str:
    """A predictor's name in standard mode, such as ``v7``; KServe names its Deployment and Service after it.

    Raises:
        DeploymentError: the version is no number.
    """
    if not version.version.isascii() or not version.version.isdecimal():
        raise DeploymentError(f"version {version.version!r}: only a registered version's number can name a predictor")
    return f"v{version.version}"


def service_name(service: str, body: Manifest) -> str:
    """The Service in front of a predictor's pods in standard mode; their Deployment has the same name."""
    name = body.get("name")
    return f"{service}-{name}-predictor" if name else f"{service}-predictor"


def served(body: Manifest, where: str) -> ServedVersion:
    """Which version a predictor serves.

    Raises:
        DeploymentError: it does not say.
    """
    model = body.get("model") or {}
    flags = dict(argument.partition("=")[::2] for argument in model.get("args") or ())
    version, uri = flags.get("--model_version"), model.get("storageUri")
    if not version or not uri:
        raise DeploymentError(
            f"{where}: its predictor names no --model_version and no bundle, so it is not Kubevox's; name another "
            "in deploy.kserve.name, or delete it"
        )
    return ServedVersion(version, uri)


def overlay(stable: Manifest, canary: Manifest) -> Manifest:
    """What KServe makes of a canary's predictor: it fills in from the stable one whatever the canary leaves open.

    Mappings are merged, everything else is the canary's where it says something, as KServe's controller does it
    (`mergo`, with override). A predictor that is written so at promotion has the very pods that the canary had.
    """
    merged = copy.deepcopy(stable)
    for key, value in canary.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = overlay(merged[key], value)
        elif value or key not in merged:
            merged[key] = copy.deepcopy(value)
    return merged
