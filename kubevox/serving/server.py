"""KServe's model server with a bundle in it.

What KServe leaves open is closed here: malformed bodies are 400 and not 422 or 500, a body has a size limit, no client
can unload the model, and on a laptop the server listens on loopback only.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from kubevox.errors import DeploymentError
from kubevox.models.bundle import load_bundle
from kubevox.serving.library import (
    DataPlane,
    InferenceRequest,
    InferRequest,
    InvalidInput,
    ModelServer,
    RequestInput,
    RESTServer,
    logger,
    model_server,
)
from kubevox.serving.model import SpeechModel

__all__ = ["serve"]

_BINARY = "inference-header-content-length"
_BODY_BYTES = 64 << 20  # a body is held in memory: many recordings may share this, or one take as much as it may
# KServe would let any client unload the model; explainers and versions it answers with 501.
_CLOSED = re.compile(r"/v2/repository/|/v2/models/[^/]+/versions/|/v1/models/[^/]+:explain$")


def serve(
    bundle_uri: str,
    name: str,
    version: str = "unregistered",
    host: str = "127.0.0.1",
    port: int = 8080,
    device: str = "cpu",
    max_instances: int = 64,
) -> None:
    """Serve a bundle until a signal ends it.

    Args:
        bundle_uri: the bundle's folder, local or in a store.
        name: the model's name in the URL.
        version: the registered version, told in every answer.
        host: the address to listen on; ``0.0.0.0`` in a pod.
        port: the HTTP port.
        device: "cpu", "cuda" or "auto".
        max_instances: how many recordings a request may hold.

    Raises:
        BundleError: the bundle is missing or damaged.
        DeploymentError: the port is taken.
    """
    _refuse_taken_port(host, port)
    model = SpeechModel(name, load_bundle(bundle_uri, device), version, max_instances)
    model.load()
    largest = model.bundle.spec.limits.max_bytes * 4 // 3 + 1024
    body_limit = max(largest, min(max_instances * largest, _BODY_BYTES))
    model_server.app.add_middleware(_Doorkeeper, limit=body_limit)

    class HostedRESTServer(RESTServer):
        """KServe's REST server on the address that was asked for (its own is 0.0.0.0, always), with our refusals."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.config.host = host

        def _add_exception_handlers(self, app: Any) -> None:
            super()._add_exception_handlers(app)
            app.add_exception_handler(InvalidInput, _invalid_input)
            app.add_exception_handler(RequestValidationError, _invalid_body)
            app.add_exception_handler(HTTPException, _http_error)

    model_server.RESTServer = HostedRESTServer
    server = ModelServer(http_port=port, enable_grpc=False, workers=1, enable_latency_logging=False)
    server.dataplane = _CheckedDataPlane(model_registry=server.registered_models)
    server.start([model])


class _BinaryInput(RequestInput):
    """An input whose data may lie behind the JSON."""

    data: list[Any] | None = None


class _BinaryRequest(InferenceRequest):
    """The JSON part of a request of the binary data extension."""

    inputs: list[_BinaryInput]


class _CheckedDataPlane(DataPlane):
    """A request that KServe cannot take apart is the client's error."""

    def metadata(self) -> dict[str, Any]:
        """KServe's, without the extension that is closed here."""
        return super().metadata() | {"extensions": ["binary_tensor_data"]}

    def decode(
        self,
        body: Any,
        headers: dict[str, str] | None,
        protocol_version: str = "v1",
        model_name: str | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        # Only a content type of exactly application/json is JSON to KServe; here every V1 body is.
        kept = {name: value for name, value in (headers or {}).items() if name != "content-type"}
        try:
            return super().decode(body, kept, protocol_version, model_name)
        except InvalidInput:
            raise
        except Exception as error:  # whatever the bytes of a client make KServe's parsers raise
            raise InvalidInput(f"not a request that can be read: {type(error).__name__}: {error!s:.200}") from None

    def decode_inference_request(
        self, body: bytes | InferenceRequest, headers: dict[str, str], model_name: str | None
    ) -> InferRequest:
        if isinstance(body, bytes):
            # KServe takes the JSON of a binary request as it is, whatever the types in it.
            length = headers.get(_BINARY)
            if length is not None and not (length.isdecimal() and len(length) < 20):
                raise InvalidInput(f"header {_BINARY}: expected a number, got {length[:20]!r}")
            try:
                content = orjson.loads(body[: int(length)] if length else body)
                if not isinstance(content, dict):
                    raise InvalidInput('expected a JSON object: {"inputs": [...]}')
                parsed = (_BinaryRequest if length else InferenceRequest).model_validate(content)
            except orjson.JSONDecodeError as error:
                raise InvalidInput(f"not valid JSON: {error}") from None
            except ValidationError as error:
                raise InvalidInput(_first_problem(error.errors())) from None
            if length is None:
                body = parsed
        else:
            parsed = body
        for text in (parsed.id or "", *(item.name for item in parsed.inputs)):
            if not _is_unicode(text):
                raise InvalidInput("the request holds text that is not valid Unicode")
        return super().decode_inference_request(body, headers, model_name)


class _Doorkeeper:
    """Refuses what is not for clients, and request bodies over a limit, while they arrive."""

    def __init__(self, app: Any, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _CLOSED.match(scope["path"]):
            await _refusal(404, "not served here")(scope, receive, send)
            return
        too_large = f"body over the limit of {self.limit} bytes"
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.limit:
            await _refusal(413, too_large)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, too_large)
            return message

        await self.app(scope, counted, send)


async def _invalid_input(request: Request, error: Exception) -> JSONResponse:
    # One line, without the traceback that KServe logs for every bad request.
    logger.info("%s: 400: %.300r", request.url.path, str(error))
    return _refusal(400, str(error))


async def _invalid_body(_: Request, error: Any) -> JSONResponse:
    return _refusal(400, _first_problem(error.errors()))


async def _http_error(_: Request, error: Any) -> JSONResponse:
    return _refusal(error.status_code, str(error.detail))


def _refusal(status: int, reason: str) -> JSONResponse:
    # A reason can quote the request, and JSON can hold half of a surrogate pair, which no answer can.
    return JSONResponse({"error": reason.encode(errors="replace").decode()}, status_code=status)


def _first_problem(errors: Any) -> str:
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"not valid JSON: {first['ctx']['error']}"
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "InferenceRequest"))
    return f"{place or 'body'}: {first['msg']}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_taken_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DeploymentError(f"port {port} on {host} cannot be used ({reason}); choose another") from None
