"""The Kubernetes API, as far as a rollout needs it: one kind of object in one namespace, and the pods' last words.

Whatever goes wrong is one line that says what was asked of whom, and what to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kubevox.deployment.kserve.manifests import Manifest
from kubevox.errors import DeploymentError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

__all__ = ["BusyClusterError", "ConflictError", "InferenceServices", "connect"]

_GROUP, _VERSION, _PLURAL = "serving.kserve.io", "v1beta1", "inferenceservices"
_TRANSIENT = {429, 500, 502, 503, 504}


class ConflictError(DeploymentError):
    """Somebody else wrote the object since it was read."""


class BusyClusterError(DeploymentError):
    """The API does not answer now, and may in a moment."""


def connect(context: str | None) -> ApiClient:
    """A client of the cluster: of a kubeconfig's context, or inside a cluster by the pod's own service account.

    Raises:
        DeploymentError: there is neither, or the package is missing.
    """
    try:
        from kubernetes import client, config
    except ImportError:
        raise DeploymentError("the package kubernetes is missing: pip install 'kubevox[cluster]'") from None

    settings = client.Configuration()
    settings.retries = False  # who asks decides, and says, how often
    try:
        if context is None and "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(settings)
        else:
            config.load_kube_config(context=context, client_configuration=settings)
    except (config.ConfigException, OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise DeploymentError(
            f"no Kubernetes cluster is known here ({why}); set KUBECONFIG, or deploy.kserve.context to one of "
            "`kubectl config get-contexts`"
        ) from None
    return client.ApiClient(settings)


class InferenceServices:
    """The InferenceServices of one namespace.

    Args:
        client: of the cluster.
        namespace: whose.
        timeout_s: for one request.
    """

    def __init__(self, client: ApiClient, namespace: str, timeout_s: float) -> None:
        from kubernetes.client import CoreV1Api, CustomObjectsApi

        self._client, self.namespace = client, namespace
        self._timeouts = (timeout_s, timeout_s)  # the client passes over a single number that is not whole
        self._objects, self._core = CustomObjectsApi(client), CoreV1Api(client)

    def read(self, name: str) -> Manifest | None:
        """The object, or None where there is none.

        Raises:
            DeploymentError: the API refuses, or KServe is not installed.
            BusyClusterError: it does not answer.
        """
        return self._ask("get", name, self._objects.get_namespaced_custom_object, name=name)

    def create(self, body: Manifest) -> Manifest:
        """Make a new object.

        Raises:
            ConflictError: there is one already.
            DeploymentError: as :meth:`read`; or KServe refuses what it says.
        """
        name = body["metadata"]["name"]
        asked = self._objects.create_namespaced_custom_object
        return self._ask("create", name, asked, body=body, field_manager="kubevox", field_validation="Strict") or body

    def replace(self, body: Manifest) -> Manifest:
        """Write an object that was read, unless somebody else wrote it since.

        Raises:
            ConflictError: somebody did.
            DeploymentError: as :meth:`read`; or KServe refuses what it says.
        """
        name = body["metadata"]["name"]
        asked = self._objects.replace_namespaced_custom_object
        options = {"body": body, "field_manager": "kubevox", "field_validation": "Strict"}
        written = self._ask("update", name, asked, name=name, **options)
        if written is None:
            raise ConflictError(f"InferenceService {self.namespace}/{name} was deleted meanwhile")
        return written

    def delete(self, body: Manifest) -> None:
        """Delete an object that was read, unless somebody else wrote it since.

        Raises:
            ConflictError: somebody did.
            DeploymentError: as :meth:`read`.
        """
        metadata = body["metadata"]
        wanted = {"resourceVersion": metadata["resourceVersion"], "uid": metadata["uid"]}
        asked = self._objects.delete_namespaced_custom_object
        self._ask("delete", metadata["name"], asked, name=metadata["name"], body={"preconditions": wanted})

    def last_words(self, selector: str) -> str:
        """What ails the first sick pod that a label selector finds; empty where none is, or pods may not be seen."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            raw = self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _preload_content=False, _request_timeout=self._timeouts
            )
            pods = json.loads(raw.data)["items"]
        except (ApiException, HTTPError, ValueError, KeyError):
            return ""
        for pod in pods:
            if ailment := _ailment(pod):
                return f"pod {pod['metadata']['name']}: {ailment}"
        return ""

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _ask(self, verb: str, which: str, call: Callable[..., Any], **options: Any) -> Manifest | None:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        where = f"InferenceService {self.namespace}/{which}"
        try:
            return call(
                group=_GROUP,
                version=_VERSION,
                namespace=self.namespace,
                plural=_PLURAL,
                _request_timeout=self._timeouts,
                **options,
            )
        except HTTPError as error:
            why = " ".join(str(error).split())[:200]
            raise BusyClusterError(
                f"the Kubernetes API at {self._client.configuration.host} does not answer ({why}); is the cluster up, "
                "and the context the right one?"
            ) from None
        except ApiException as error:
            if error.status == 404 and verb in ("get", "update", "delete") and _names_object(error):
                return None
            raise self._refusal(error, verb, where) from None

    def _refusal(self, error: Any, verb: str, where: str) -> DeploymentError:
        host, said = self._client.configuration.host, _message(error)
        if error.status == 0:
            return DeploymentError(f"the Kubernetes API at {host}: no secure connection ({said}); check the kubeconfig")
        if error.status == 401:
            return DeploymentError(
                f"the Kubernetes API at {host} does not take these credentials; renew them, until `kubectl get "
                f"inferenceservices -n {self.namespace}` answers"
            )
        if error.status == 409:
            return ConflictError(f"{where} was written by somebody else meanwhile ({said})")
        if error.status == 403 and "admission webhook" not in said:
            return DeploymentError(
                f"{where}: not allowed to {verb} it ({said}); kserve/access.yaml holds the rights that a rollout needs"
            )
        if error.status == 404:
            if "namespaces" in said:
                return DeploymentError(
                    f"{where}: there is no namespace {self.namespace}; make it: kubectl create namespace "
                    f"{self.namespace}"
                )
            return DeploymentError(
                f"the cluster at {host} knows no {_PLURAL}.{_GROUP}/{_VERSION}: KServe is not installed there, or the "
                "context is another cluster's"
            )
        if error.status in _TRANSIENT and "admission webhook" not in said:
            return BusyClusterError(f"the Kubernetes API at {host} answers {error.status} to {verb} {where}: {said}")
        return DeploymentError(f"{where}: the cluster refuses to {verb} it ({error.status}): {said}")


def _message(error: Any) -> str:
    """What a Kubernetes Status says, in one line."""
    try:
        said = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        said = str(error.body or error.reason)
    return " ".join(said.split())[:400]


def _names_object(error: Any) -> bool:
    """Whether a 404 is about the object: without KServe the API has no such path, and says so without naming one."""
    try:
        details = json.loads(error.body).get("details") or {}
    except (TypeError, ValueError, AttributeError):
        return False
    return details.get("kind") == _PLURAL and bool(details.get("name"))


def _ailment(pod: Manifest) -> str:
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        state, last = container.get("state") or {}, (container.get("lastState") or {}).get("terminated")
        waiting, ended = state.get("waiting"), state.get("terminated") or last
        said = []
        if ended and ended.get("exitCode"):
            said.append(f"ended with {ended['exitCode']} ({_reason(ended)})")
        if waiting and waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            said.append(f"waits ({_reason(waiting)})")
        if said:
            return f"{container['name']} {' and '.join(said)}"
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"not scheduled ({_reason(condition)})"
    return ""


def _reason(state: Manifest) -> str:
    lines = [line for line in str(state.get("message") or "").splitlines() if line.strip()]
    reason = str(state.get("reason") or "no reason given")
    return f"{reason}: {lines[-1].strip()[:200]}" if lines else reason
