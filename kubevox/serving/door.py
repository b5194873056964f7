"""The server's door: what every request passes, whatever its protocol.

It gives a request its id, refuses what is not for clients and what there is no room for (before the body is read, so
that refusing costs little), limits bodies while they arrive, counts, logs, and says good-bye while the server ends.
V1's ``:predict`` and ``:explain`` are answered here, by the same data plane that KServe's own routes call: through its
routing, a request costs half a millisecond more.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs

import orjson
from prometheus_client import REGISTRY, exposition
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kubevox.config import ServingConfig
from kubevox.errors import BusyError
from kubevox.serving import metrics
from kubevox.serving.library import DataPlane, InvalidInput, ModelNotFound, ModelNotReady, logger
from kubevox.serving.model import SpeechModel
from kubevox.serving.requests import REQUEST_ID, RawBody

__all__ = ["Door", "busy_handler", "refusal"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]

_V1 = re.compile(r"/v1/models/([^/:]+):(predict|explain)$")
_V2 = re.compile(r"/v2/models/[^/]+/infer$")
# KServe would let any client unload the model; versions it answers with 501.
_CLOSED = re.compile(r"/v2/repository/|/v2/models/[^/]+/versions/")
_READY = re.compile(r"/v2/health/ready$|/v2/models/[^/]+/ready$|/v1/models/[^/:]+$")
_GONE = 499  # the client went away; nginx' number for it
_BODIES = 256 << 20  # bytes of bodies that are held at once


class Door:
    """ASGI middleware around KServe's application.

    Args:
        app: what answers all but V1's two verbs.
        model: whose queue says whether there is room.
        dataplane: what V1's two verbs call.
        body_limit: the largest body, in bytes.
        ending: whether the server has been told to end.
    """

    def __init__(
        self, app: Any, model: SpeechModel, dataplane: DataPlane, body_limit: int, ending: Callable[[], bool]
    ) -> None:
        self._app, self._model, self._dataplane = app, model, dataplane
        self._limit, self._ending = body_limit, ending
        self._options: ServingConfig = model.options
        self._open = 0
        self._held = 0
        labels = {"model": model.name, "version": model.version}
        self._labels = labels
        self._requests: dict[tuple[str, int], Any] = {}
        self._latency = {
            route: metrics.LATENCY.labels(**labels, route=route) for route in ("predict", "explain", "infer", "other")
        }
        metrics.IN_FLIGHT.labels(**labels).set_function(lambda: self._open)

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Let a request through, or not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        since = time.monotonic()
        verb = _V1.match(scope["path"])
        route = verb[2] if verb else "infer" if _V2.match(scope["path"]) else "other"
        request_id = _request_id(scope)
        status = 500

        async def answered(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if self._ending():
                    headers["connection"] = "close"
            try:
                await send(message)
            except RuntimeError:  # what uvloop raises where the client has closed the connection meanwhile
                status = _GONE

        self._open += 1
        try:
            await self._answer(scope, receive, answered, verb, route)
        except ConnectionError:
            status = _GONE
        finally:
            self._open -= 1
            took = time.monotonic() - since
            self._count(route, status, took)
            if route != "other":
                _log(request_id, route, status, took)

    async def _answer(
        self, scope: _Scope, receive: _Receive, send: _Send, verb: re.Match[str] | None, route: str
    ) -> None:
        if _CLOSED.match(scope["path"]):
            await refusal(404, "not served here")(scope, receive, send)
            return
        if self._ending() and _READY.match(scope["path"]):
            await _busy("the server ends", 1.0)(scope, receive, send)
            return
        if verb and scope["method"] != "POST":
            # KServe's routing would take the verb for a part of the model's name.
            await refusal(405, "Method Not Allowed", {"allow": "POST"})(scope, receive, send)
            return
        working = route != "other" and scope["method"] == "POST"
        if working and (self._open > self._options.max_connections or self._model.busy):
            await _busy("as many requests as can be taken are waiting", self._model.retry_after_s)(scope, receive, send)
            return
        if scope["path"] == "/metrics" and scope["method"] == "GET":
            await _metrics(dict(scope["headers"]).get(b"accept", b""))(scope, receive, send)
            return
        if route == "infer":
            # FastAPI would take JSON apart and check it before anything could limit it; bytes it hands on as they are.
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
            scope["headers"].append((b"content-type", b"application/octet-stream"))
        body = _Body(self, receive, dict(scope["headers"]), time.monotonic() + self._options.request_timeout_s)
        try:
            if verb:
                response = await self._v1(scope, body, verb[1], verb[2])
                await response(scope, body.receive, send)
            else:
                await self._app(scope, body.receive, send)
        except _Refused as error:
            await refusal(error.status_code, error.detail, error.headers)(scope, receive, send)
        finally:
            body.let_go()

    async def _v1(self, scope: _Scope, body: _Body, name: str, verb: str) -> Response:
        """V1's two verbs, in KServe's order: ready, decode, infer or explain, encode."""
        try:
            if not await self._dataplane.model_ready(name, True):
                raise ModelNotReady(name)
            content = await body.whole()
            headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
            raw = headers.get("content-type", "").strip().lower().startswith("audio/")
            payload: Any
            attributes: dict[str, Any] = {}
            if raw:
                payload = _raw(content, scope["query_string"])
            else:
                payload, attributes = self._dataplane.decode(content, headers)
            ask = self._dataplane.infer if verb == "predict" else self._dataplane.explain
            answer, _ = await ask(name, payload, headers)
            answer, said = self._dataplane.encode(name, answer, headers, attributes)
        except InvalidInput as error:
            return refusal(400, str(error))
        except BusyError as error:
            return _busy(str(error), error.retry_after_s)
        except ModelNotFound as error:
            return refusal(404, str(error.reason))
        except ModelNotReady as error:
            return _busy(str(error), 1.0)
        content_type = said.pop("content-type", "application/json")
        if not isinstance(answer, (bytes, str)):
            answer = orjson.dumps(answer)
        return Response(answer, headers=said, media_type=content_type)

    def _count(self, route: str, status: int, took: float) -> None:
        counter = self._requests.get((route, status))
        if counter is None:
            counter = self._requests[route, status] = metrics.REQUESTS.labels(
                **self._labels, route=route, status=str(status)
            )
        counter.inc()
        self._latency[route].observe(took)


class _Refused(HTTPException):
    """A body that is not read on; FastAPI, which reads V2's, lets this class of exceptions through."""


class _Body:
    """A request's body as it arrives: limited in bytes, in time, and by what all bodies together may hold."""

    def __init__(self, door: Door, receive: _Receive, headers: dict[bytes, bytes], deadline: float) -> None:
        self._door, self._receive, self._deadline = door, receive, deadline
        self._seen = self._reserved = 0
        declared = headers.get(b"content-length", b"0")
        self._declared = int(declared) if declared.isdigit() and len(declared) < 20 else 0

    async def receive(self) -> Any:
        """ASGI's ``receive``, within the limits.

        Raises:
            _Refused: the body is too large, comes too slowly, or finds no room beside the others.
        """
        if self._declared > self._door._limit:
            raise _Refused(413, f"body over the limit of {self._door._limit} bytes")
        self._reserve(self._declared)
        left = self._deadline - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left)):
                message = await self._receive()
        except TimeoutError:
            seconds = self._door._options.request_timeout_s
            raise _Refused(408, f"the body did not arrive within {seconds:g} s", {"connection": "close"}) from None
        self._seen += len(message.get("body", b""))
        if self._seen > self._door._limit:
            raise _Refused(413, f"body over the limit of {self._door._limit} bytes")
        self._reserve(self._seen)
        return message

    async def whole(self) -> bytes:
        """All of it."""
        parts = []
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError("the client went away")
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def let_go(self) -> None:
        """Give back what was reserved."""
        self._door._held -= self._reserved
        self._reserved = 0

    def _reserve(self, size: int) -> None:
        more = size - self._reserved
        if more <= 0:
            return
        if self._door._held + more > _BODIES:
            raise _Refused(503, "as many bytes as can be held are arriving", {"retry-after": "1"})
        self._door._held += more
        self._reserved += more


def refusal(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer that says no, and why in one line."""
    # A reason can quote the request, and JSON can hold half of a surrogate pair, which no answer can.
    return JSONResponse({"error": reason.encode(errors="replace").decode()}, status_code=status, headers=headers)


def _busy(reason: str, retry_after_s: float) -> JSONResponse:
    return refusal(503, reason, {"retry-after": str(math.ceil(retry_after_s))})


def _metrics(accept: bytes) -> Response:
    """What Prometheus asks for; the usual format where nothing can be made of what is asked."""
    try:
        encoder, content_type = exposition.choose_encoder(accept.decode("latin-1"))
    except (TypeError, ValueError):  # for a version that is no number
        encoder, content_type = exposition.choose_encoder("")
    return Response(encoder(REGISTRY), headers={"content-type": content_type})


async def busy_handler(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's handler of a :class:`~kubevox.errors.BusyError`."""
    return _busy(str(error), getattr(error, "retry_after_s", 1.0))


def _raw(content: bytes, query: bytes) -> RawBody:
    try:
        asked = parse_qs(query.decode("ascii"), keep_blank_values=True)
    except (UnicodeDecodeError, ValueError):
        raise InvalidInput("the query string cannot be read") from None
    timeline = asked.get("timeline", ["false"])[-1].lower()
    if timeline not in ("", "true", "1", "false", "0"):
        raise InvalidInput(f"timeline={timeline[:20]!r}: expected true or false")
    return RawBody(content, timeline in ("", "true", "1"), asked.get("label", [None])[-1])


def _request_id(scope: _Scope) -> str:
    """The id that the client gave, if it can be used, or a new one; the application finds it among the headers."""
    headers = scope["headers"]
    given = [value.decode("latin-1") for name, value in headers if name == b"x-request-id"]
    usable = bool(given) and REQUEST_ID.fullmatch(given[0]) is not None
    if usable and len(given) == 1:
        return given[0]
    used = given[0] if usable else uuid.uuid4().hex
    scope["headers"] = [pair for pair in headers if pair[0] != b"x-request-id"]
    scope["headers"].append((b"x-request-id", used.encode()))
    return used


def _log(request_id: str, route: str, status: int, took: float) -> None:
    """One line of JSON a request: no address, no name, nothing of what was said."""
    logger.info(
        "%s",
        orjson.dumps({"request": request_id, "route": route, "status": status, "ms": round(1000 * took, 2)}).decode(),
    )
