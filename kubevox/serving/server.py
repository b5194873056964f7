"""KServe's model server with a bundle or a cascade in it: REST and gRPC, until a signal ends it.

What KServe leaves open is closed here: malformed bodies are 400 and not 422 or 500, a body has a size limit, no client
can unload the model, on a laptop the server listens on loopback only, and a server that is told to end answers what is
in flight, and what still comes while the senders hear of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
import uvloop
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kubevox.config import ServingConfig
from kubevox.errors import BusyError, DeploymentError
from kubevox.serving.dataplane import CheckedDataPlane, first_problem
from kubevox.serving.door import Door, busy_handler, refusal
from kubevox.serving.grpc import GrpcServer
from kubevox.serving.library import InvalidInput, ModelServer, RESTServer, logger, model_server
from kubevox.serving.model import SpeechModel
from kubevox.serving.openapi import document
from kubevox.serving.work import Worker

__all__ = ["serve"]

_HEAD_BYTES = 1 << 20  # of a request's line, headers, trailers and the sizes of its body's pieces
_BODY_BYTES = 64 << 20  # a body is held in memory: many recordings may share this, or one take as much as it may


def serve(
    model_uri: str,
    name: str,
    version: str = "unregistered",
    host: str = "127.0.0.1",
    port: int = 8080,
    device: str = "cpu",
    options: ServingConfig | None = None,
    log_store: str | None = None,
    grpc_port: int = 0,
) -> None:
    """Serve a bundle or a cascade until a signal ends it.

    Args:
        model_uri: the bundle's or the cascade's folder, local or in a store.
        name: the model's name in the URL.
        version: the registered version, told in every answer.
        host: the address to listen on; ``0.0.0.0`` in a pod.
        port: the HTTP port.
        device: "cpu", "cuda" or "auto".
        options: queue, limits, time-outs, log.
        log_store: where the inference log goes; None: nowhere.
        grpc_port: the port for gRPC; 0: none.

    Raises:
        BundleError: the model is missing or damaged.
        DeploymentError: a port is taken.
    """
    for asked in (port, *([grpc_port] if grpc_port else [])):
        _refuse_taken_port(host, asked)
    options = options or ServingConfig()
    # KServe's clients read proxies from the environment; no worker is to inherit more than it needs.
    model = SpeechModel(name, Worker(model_uri, device, options), version, log_store)
    server = _Server(http_port=port, enable_grpc=False, workers=1, enable_latency_logging=False)
    server.dataplane = CheckedDataPlane(server.registered_models, options.max_instances)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(server.run(model, host, grpc_port))


class _Server(ModelServer):
    """KServe's server, that begins by warming up the model and ends when all is answered."""

    async def run(self, model: SpeechModel, host: str, grpc_port: int) -> None:
        """Serve one model until told to end."""
        try:
            await model.begin()
            self.register_model(model)
            largest = model.greeting.limits.max_bytes * 4 // 3 + 1024
            body_limit = max(largest, min(model.options.max_instances * largest, _BODY_BYTES))
            rest = _RestServer(self, model, host, body_limit)
            grpc: GrpcServer | None = None
            if grpc_port:
                grpc = GrpcServer(self.dataplane, host, grpc_port, body_limit, model.options.max_connections)
                await grpc.start()
            await rest.start()
            if grpc is not None:
                await grpc.stop(model.options.grace_s)
        finally:
            await model.finish()


class _RestServer(RESTServer):
    """KServe's REST server behind the door, on the address that was asked for (its own is 0.0.0.0, always)."""

    def __init__(self, server: ModelServer, model: SpeechModel, host: str, body_limit: int) -> None:
        super().__init__(
            "kserve.model_server:app",
            server.dataplane,
            server.model_repository_extension,
            server.http_port,
            grace_period=max(1, round(model.options.grace_s)),
            timeout_keep_alive=server.timeout_keep_alive,
        )
        self._server = _DrainingServer(self.config, model.options.drain_s)
        self.config.host = host
        self.config.http = _Protocol
        logging.getLogger("uvicorn.access").handlers = []  # the door writes its own lines
        self.config.app = Door(
            model_server.app, model, server.dataplane, body_limit, ending=lambda: self._server.ending
        )
        model_server.app.openapi = lambda: document(model)

    def _add_middlewares(self, app: Any) -> None:
        """None: what KServe would time and print, the door does."""

    def _add_exception_handlers(self, app: Any) -> None:
        super()._add_exception_handlers(app)
        app.add_exception_handler(InvalidInput, _invalid_input)
        app.add_exception_handler(BusyError, busy_handler)
        app.add_exception_handler(RequestValidationError, _invalid_body)
        app.add_exception_handler(HTTPException, _http_error)


class _Protocol(HttpToolsProtocol):
    """uvicorn's, which would hold a head without an end in memory."""

    _beside_body = 0

    def data_received(self, data: bytes) -> None:
        """Bytes from a client."""
        self._beside_body += len(data)
        super().data_received(data)
        if self._beside_body > _HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"more than {_HEAD_BYTES} bytes beside the body")

    def on_body(self, body: bytes) -> None:
        """A piece of a body, which the door limits."""
        self._beside_body -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._beside_body = 0
        super().on_message_complete()


class _DrainingServer(uvicorn.Server):
    """Goes on for a while when told to end, saying so in every answer; then takes nothing new and answers the rest."""

    def __init__(self, config: uvicorn.Config, drain_s: float) -> None:
        super().__init__(config)
        self.ending = False
        self._drain_s = drain_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but what it has answered is not raised again: the process has more to end than this."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end, number)
        yield

    def _told_to_end(self, number: int) -> None:
        if self.ending or number == signal.SIGINT:
            self.should_exit = True
        if not self.ending:
            self.ending = True
            logger.info("told to end by signal %d: answering what is in flight", number)
            asyncio.get_running_loop().call_later(self._drain_s, setattr, self, "should_exit", True)


async def _invalid_input(request: Request, error: Exception) -> JSONResponse:
    # One line, without the traceback that KServe logs for every bad request.
    return refusal(400, str(error))


async def _invalid_body(_: Request, error: Any) -> JSONResponse:
    return refusal(400, first_problem(error.errors()))


async def _http_error(_: Request, error: Any) -> JSONResponse:
    return refusal(error.status_code, str(error.detail), error.headers)


def _refuse_taken_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DeploymentError(f"port {port} on {host} cannot be used ({reason}); choose another") from None
