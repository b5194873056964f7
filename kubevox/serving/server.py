"""KServe's model server with a bundle in it.

What KServe leaves open is closed here: malformed bodies are 400 and not 422 or 500, a body has a size limit, and on a
laptop the server listens on loopback only.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import kserve.model_server
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.server import RESTServer

from kserve import ModelServer
from kubevox.errors import DeploymentError
from kubevox.models.bundle import load_bundle
from kubevox.serving.model import SpeechModel

__all__ = ["serve"]


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
    body_limit = max_instances * (model.bundle.spec.limits.max_bytes * 4 // 3 + 1024)
    app = kserve.model_server.app
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_middleware(_BodyLimit, limit=body_limit)

    class HostedRESTServer(RESTServer):
        """KServe's REST server on the address that was asked for; its own is 0.0.0.0, always."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.config.host = host

    kserve.model_server.RESTServer = HostedRESTServer
    server = ModelServer(http_port=port, enable_grpc=False, workers=1, enable_latency_logging=False)
    server.dataplane = _CheckedDataPlane(model_registry=server.registered_models)
    server.start([model])


class _CheckedDataPlane(DataPlane):
    """A request that KServe cannot take apart is the client's error."""

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().decode(*args, **kwargs)
        except InvalidInput:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, InferenceError) as error:
            raise InvalidInput(f"unrecognized request format: {type(error).__name__}: {error}") from None


class _BodyLimit:
    """Refuses request bodies over a limit, while they arrive."""

    def __init__(self, app: Any, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.limit:
            await JSONResponse({"error": f"body over the limit of {self.limit} bytes"}, 413)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise InvalidInput(f"body over the limit of {self.limit} bytes")
            return message

        await self.app(scope, counted, send)


async def _bad_request(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return JSONResponse({"error": f"{place or 'body'}: {first['msg']}"}, status_code=400)


def _refuse_taken_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DeploymentError(f"port {port} on {host} cannot be used ({error.strerror}); choose another") from None
