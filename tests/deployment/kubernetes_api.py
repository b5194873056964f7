"""A stand-in for the Kubernetes API: the REST semantics that a rollout on KServe rests on, over HTTP on loopback.

Custom objects can be read, listed, watched, made, replaced, merged and deleted, with resource versions, conflicts,
generations and the status subresource. Every object that is written is held against the definitions of the cluster's
own kinds, with unknown fields refused, and against what KServe's admission webhook refuses (its rules are those that
the tests of KServe 0.21 state). No controller runs here: a test writes the status.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import threading
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

Manifest = dict[str, Any]
Key = tuple[str, str, str]  # kind in the plural, namespace, name

KINDS = {
    "inferenceservices": ("serving.kserve.io", "v1beta1", "InferenceService"),
    "inferencegraphs": ("serving.kserve.io", "v1alpha1", "InferenceGraph"),
    "servingruntimes": ("serving.kserve.io", "v1alpha1", "ServingRuntime"),
}


class Schemas:
    """The definitions of custom resources, by kind."""

    def __init__(self, folder: Path) -> None:
        self._validators = {
            kind: Draft202012Validator(
                json.loads((folder / f"{kind.lower()}-{group}-{version}.json").read_text(encoding="utf-8"))
            )
            for group, version, kind in KINDS.values()
        }

    def complaints(self, body: Manifest) -> list[str]:
        """What is wrong with an object."""
        errors = self._validators[body["kind"]].iter_errors(body)
        return [f"{'.'.join(map(str, error.absolute_path)) or '(top)'}: {error.message[:200]}" for error in errors]


def schemas() -> Schemas:
    """Those of ``$KUBEVOX_SCHEMAS``, or of ``../shared/schemas`` beside the repository; skips where there are none."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "schemas"
    folder = Path(os.environ.get("KUBEVOX_SCHEMAS") or beside)
    if not list(folder.glob("inferenceservice-*.json")):
        pytest.skip(f"no schemas of custom resources at {folder}; name their folder in KUBEVOX_SCHEMAS")
    return Schemas(folder)


@dataclass
class Fault:
    """What is answered in place of what was asked, so many times."""

    matches: Callable[[str, str], bool]
    answer: Callable[[], Response]
    times: int = 1


@dataclass
class KubernetesApi:
    """The server's state, and what tests may look at.

    Attributes:
        url: where it listens.
        schemas: of its custom kinds.
        kserve: whether KServe's kinds are installed.
        rules: what the bearer of the token `rollout` may do, as a Role says it; None: everything.
        faults: to come.
        requests: that were asked, verb and path.
        written: every custom object that was accepted.
    """

    schemas: Schemas
    url: str = ""
    kserve: bool = True
    rules: list[Manifest] | None = None
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    written: list[Manifest] = field(default_factory=list)
    _objects: dict[Key, Manifest] = field(default_factory=dict)
    _events: deque[tuple[int, str, Manifest]] = field(default_factory=lambda: deque(maxlen=10_000))
    _revision: int = 100

    def fail(self, verb: str, status: int, message: str = "for the test", times: int = 1, path: str = "") -> None:
        """Answer the next requests of this verb with a failure."""

        def answer() -> Response:
            return _status(status, message)

        self.faults.append(Fault(lambda method, where: method == verb and path in where, answer, times))

    def application(self) -> Starlette:
        """The ASGI application."""
        objects = "/apis/{group}/{version}/namespaces/{namespace}/{plural}"
        return Starlette(
            routes=[
                Route("/api/v1/namespaces", self._guarded(self._namespaces), methods=["POST"]),
                Route("/api/v1/namespaces/{name}", self._guarded(self._namespace), methods=["GET", "DELETE"]),
                Route("/api/v1/namespaces/{namespace}/pods", self._guarded(self._pods), methods=["GET", "POST"]),
                Route(objects, self._guarded(self._collection), methods=["GET", "POST"]),
                Route(objects + "/{name}", self._guarded(self._object), methods=["GET", "PUT", "PATCH", "DELETE"]),
                Route(objects + "/{name}/status", self._guarded(self._object_status), methods=["GET", "PUT", "PATCH"]),
            ]
        )

    def _guarded(self, handle: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            self.requests.append((request.method, request.url.path))
            token = request.headers.get("authorization", "")
            if token not in ("Bearer admin", "Bearer rollout"):
                return _status(401, "Unauthorized")
            for fault in self.faults:
                if fault.times and fault.matches(request.method, request.url.path):
                    fault.times -= 1
                    return fault.answer()
            if token == "Bearer rollout" and (refused := self._forbidden(request)):
                return refused
            return await handle(request)

        return guarded

    def _forbidden(self, request: Request) -> Response | None:
        if self.rules is None:
            return None
        place = request.path_params
        group, kind = place.get("group", ""), place.get("plural", request.url.path.rsplit("/", 1)[-1])
        verbs = {"GET": "get" if "name" in place else "list", "POST": "create", "PUT": "update", "PATCH": "patch"}
        verb = verbs.get(request.method, "delete")
        for rule in self.rules:
            if group in rule["apiGroups"] and kind in rule["resources"] and verb in rule["verbs"]:
                return None
        return _status(
            403,
            f'{kind}{"." if group else ""}{group} "{place.get("name", "")}" is forbidden: User "rollout" cannot {verb} '
            f'resource "{kind}" in API group "{group}" in the namespace "{place.get("namespace")}"',
            "Forbidden",
        )

    async def _namespaces(self, request: Request) -> Response:
        body = await request.json()
        name = body["metadata"]["name"]
        self._objects["namespaces", "", name] = body
        return JSONResponse(body, 201)

    async def _namespace(self, request: Request) -> Response:
        name = request.path_params["name"]
        if ("namespaces", "", name) not in self._objects:
            return _missing("namespaces", name)
        if request.method == "DELETE":
            for key in [key for key in self._objects if name in (key[1], key[2])]:
                del self._objects[key]
            return _status(200, "deleted", "")
        return JSONResponse(self._objects["namespaces", "", name])

    async def _pods(self, request: Request) -> Response:
        namespace = request.path_params["namespace"]
        if request.method == "POST":
            body = await request.json()
            self._objects["pods", namespace, body["metadata"]["name"]] = body
            return JSONResponse(body, 201)
        wanted = dict(part.split("=") for part in request.query_params.get("labelSelector", "").split(",") if part)
        found = [
            pod
            for (kind, where, _), pod in self._objects.items()
            if (kind, where) == ("pods", namespace) and wanted.items() <= pod["metadata"].get("labels", {}).items()
        ]
        return JSONResponse({"kind": "PodList", "apiVersion": "v1", "items": found})

    async def _collection(self, request: Request) -> Response:
        place = request.path_params
        if not self._known(place):
            return PlainTextResponse("404 page not found\n", 404)
        plural, namespace = place["plural"], place["namespace"]
        if request.method == "GET":
            if request.query_params.get("watch") in ("true", "True", "1"):
                since = int(request.query_params.get("resourceVersion") or 0)
                patience = float(request.query_params.get("timeoutSeconds") or 60)
                return StreamingResponse(self._watch(plural, namespace, since, patience), media_type="application/json")
            items = [body for (kind, where, _), body in self._objects.items() if (kind, where) == (plural, namespace)]
            metadata = {"resourceVersion": str(self._revision)}
            return JSONResponse({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})
        body = await request.json()
        name = body["metadata"]["name"]
        if ("namespaces", "", namespace) not in self._objects:
            return _missing("namespaces", namespace)
        if (plural, namespace, name) in self._objects:
            return _status(409, f'{plural}.{place["group"]} "{name}" already exists', "AlreadyExists")
        body.pop("status", None)
        if refused := self._refused(None, body, place):
            return refused
        body["metadata"] |= {
            "namespace": namespace,
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": request.query_params.get("fieldManager", "unknown")}],
        }
        self.written.append(copy.deepcopy(body))
        return JSONResponse(self._keep("ADDED", (plural, namespace, name), body), 201)

    async def _object(self, request: Request) -> Response:
        place = request.path_params
        if not self._known(place):
            return PlainTextResponse("404 page not found\n", 404)
        sent = await _body(request)  # from here on nothing else happens until it is answered
        key = (place["plural"], place["namespace"], place["name"])
        known = self._objects.get(key)
        if known is None:
            return _missing(place["plural"], place["name"])
        if request.method == "GET":
            return JSONResponse(known)
        if request.method == "DELETE":
            return self._deleted(key, known, sent)
        body, refused = self._merged(request, sent, known)
        if refused:
            return refused
        body.pop("status", None)
        if "status" in known:
            body["status"] = known["status"]
        if refused := self._refused(known, body, place):
            return refused
        changed = body["spec"] != known["spec"]
        kept = ("uid", "creationTimestamp", "deletionTimestamp", "managedFields", "namespace")
        body["metadata"] |= {name: known["metadata"][name] for name in kept if name in known["metadata"]}
        body["metadata"]["generation"] = known["metadata"]["generation"] + changed
        if "deletionTimestamp" in known["metadata"] and not body["metadata"].get("finalizers"):
            del self._objects[key]
            return JSONResponse(body)
        self.written.append(copy.deepcopy(body))
        return JSONResponse(self._keep("MODIFIED", key, body))

    async def _object_status(self, request: Request) -> Response:
        place = request.path_params
        if not self._known(place):
            return PlainTextResponse("404 page not found\n", 404)
        sent = await _body(request)
        key = (place["plural"], place["namespace"], place["name"])
        known = self._objects.get(key)
        if known is None:
            return _missing(place["plural"], place["name"])
        if request.method == "GET":
            return JSONResponse(known)
        body, refused = self._merged(request, sent, known)
        if refused:
            return refused
        whole = copy.deepcopy(known) | {"status": body.get("status", {})}
        if complaints := self.schemas.complaints(whole):
            return _status(422, "; ".join(complaints), "Invalid")
        return JSONResponse(self._keep("MODIFIED", key, whole))

    def _merged(self, request: Request, body: Manifest, known: Manifest) -> tuple[Manifest, Response | None]:
        if request.method == "PATCH":
            if request.headers["content-type"] != "application/merge-patch+json":
                return {}, _status(415, "the body of the request was in an unknown format", "UnsupportedMediaType")
            body = _merge_patch(known, body)
        version = body["metadata"].get("resourceVersion")
        if version is None:
            return {}, _status(422, "metadata.resourceVersion: Invalid value: 0: must be specified for an update")
        if version != known["metadata"]["resourceVersion"]:
            said = f'Operation cannot be fulfilled on "{known["metadata"]["name"]}": the object has been modified; '
            return {}, _status(409, said + "please apply your changes to the latest version and try again", "Conflict")
        return body, None

    def _deleted(self, key: Key, known: Manifest, options: Manifest) -> Response:
        for name, value in (options.get("preconditions") or {}).items():
            if known["metadata"][name] != value:
                said = f"Precondition failed: {name} in precondition: {value}, in object: {known['metadata'][name]}"
                return _status(409, said, "Conflict")
        if known["metadata"].get("finalizers"):
            known = copy.deepcopy(known)
            known["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            return JSONResponse(self._keep("MODIFIED", key, known))
        self._revision += 1
        del self._objects[key]
        self._events.append((self._revision, "DELETED", known))
        return _status(200, "deleted", "")

    def _known(self, place: dict[str, str]) -> bool:
        kind = KINDS.get(place["plural"])
        return self.kserve and kind is not None and kind[:2] == (place["group"], place["version"])

    def _refused(self, known: Manifest | None, body: Manifest, place: dict[str, str]) -> Response | None:
        group, version, kind = KINDS[place["plural"]]
        if (body.get("apiVersion"), body.get("kind")) != (f"{group}/{version}", kind):
            return _status(400, f"the API version or kind is not {group}/{version} {kind}", "BadRequest")
        if complaints := self.schemas.complaints(body):
            said = f'{kind} "{body["metadata"]["name"]}" is invalid: {"; ".join(complaints)}'
            unknown = any("Additional properties" in complaint for complaint in complaints)
            return _status(400, said, "BadRequest") if unknown else _status(422, said, "Invalid")
        if kind == "InferenceService" and (denied := webhook(known, body)):
            said = 'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: '
            return _status(403, said + denied, "Forbidden")
        return None

    def _keep(self, event: str, key: Key, body: Manifest) -> Manifest:
        self._revision += 1
        body["metadata"]["resourceVersion"] = str(self._revision)
        self._objects[key] = body
        self._events.append((self._revision, event, copy.deepcopy(body)))
        return body

    async def _watch(self, plural: str, namespace: str, since: int, patience: float) -> AsyncIterator[bytes]:
        kind = KINDS[plural][2]
        until = asyncio.get_running_loop().time() + patience
        while asyncio.get_running_loop().time() < until:
            for revision, event, body in list(self._events):
                if revision > since:
                    since = revision
                    if (body["kind"], body["metadata"]["namespace"]) == (kind, namespace):
                        yield json.dumps({"type": event, "object": body}).encode() + b"\n"
            await asyncio.sleep(0.002)


def webhook(known: Manifest | None, body: Manifest) -> str | None:
    """What KServe 0.21's admission webhook refuses of an InferenceService, as far as its tests state it."""
    spec, annotations = body["spec"], body["metadata"].get("annotations") or {}
    stable, canaries = spec["predictor"], spec.get("canary") or []
    mode = "serving.kserve.io/deploymentMode"
    if known is not None:
        before = known["spec"]["predictor"]
        was = (known.get("status") or {}).get("deploymentMode")
        if was is not None and annotations.get(mode, was) != was:
            return f"update rejected: deploymentMode cannot be changed from '{was}' to '{annotations[mode]}'"
        if before.get("name") != stable.get("name") and _storage(before) == _storage(stable):
            return "predictor.name change requires a model change (e.g. storageUri)"
    if (stable.get("model") or {}).get("name"):
        return "the 'name' field is not allowed in standard predictor"
    if canaries and annotations.get(mode) != "Standard":
        return "canary is only supported in Standard deployment mode"
    if canaries and "model" not in stable:
        return "canary requires a stable predictor with a model"
    names = [canary["predictor"].get("name") for canary in canaries]
    for canary, name in zip(canaries, names, strict=True):
        predictor = canary["predictor"]
        if not name:
            return "canary predictor.name is required"
        if names.count(name) > 1:
            return f"canary predictor.name {name} is duplicated"
        if name == stable.get("name"):
            return f"canary predictor.name {name} conflicts with stable predictor.name"
        for forbidden in ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling", "workerSpec"):
            if forbidden in predictor:
                return f"canary {name} must not set {forbidden}"
        if predictor.get("minReplicas", 0) > stable.get("minReplicas", 1):
            return f"canary {name} minReplicas must not exceed stable minReplicas"
        if len(f"{body['metadata']['name']}-{name}-predictor") > 63:
            return f"canary {name}: its Deployment's name would be longer than 63 characters"
    if sum(canary["trafficPercent"] for canary in canaries) > 100:
        return "sum of canary trafficPercent must be <= 100"
    percent = stable.get("canaryTrafficPercent")
    if percent is not None and (canaries or not 0 <= percent <= 100):
        return "canaryTrafficPercent must be from 0 to 100, and cannot be used with canary"
    low, high = stable.get("minReplicas", 1), stable.get("maxReplicas", 0)
    return "MinReplicas cannot be greater than MaxReplicas" if high and low > high else None


@contextmanager
def running(api: KubernetesApi) -> Iterator[KubernetesApi]:
    """Serve the API on a free port of loopback."""
    server = uvicorn.Server(
        uvicorn.Config(api.application(), host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.01)
        api.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield api
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def role(path: Path) -> list[Manifest]:
    """The rules of the Role in a file of manifests."""
    for body in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        if body["kind"] == "Role":
            return body["rules"]
    raise AssertionError(f"{path} holds no Role")


def _storage(predictor: Manifest) -> Any:
    return (predictor.get("model") or {}).get("storageUri")


async def _body(request: Request) -> Manifest:
    text = await request.body()
    return json.loads(text) if text else {}


def _merge_patch(known: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(known) if isinstance(known, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_patch(merged.get(key), value)
    return merged


def _missing(plural: str, name: str) -> Response:
    group = KINDS[plural][0] if plural in KINDS else ""
    said = f'{plural}{"." if group else ""}{group} "{name}" not found'
    return _status(404, said, "NotFound", {"name": name, "group": group, "kind": plural})


def _status(code: int, message: str, reason: str = "", details: Manifest | None = None) -> Response:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success" if code < 400 else "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    return JSONResponse(body | ({"details": details} if details else {}), code)
