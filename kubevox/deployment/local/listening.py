"""How this package listens: uvicorn on a socket of ours, hardened, and ended without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kubevox.errors import DeploymentError

__all__ = ["RouteServer", "listen"]

_LAST_READ_S = 0.2  # from closing the port, to closing the connections that have sent nothing
_MOST_HEAD_BYTES = 64 << 10
_HEAD_S = 10.0  # for a request's head to arrive whole
_IDLE_S = 75  # for a client's connection between two requests; longer than clients keep theirs


def listen(host: str, port: int) -> socket.socket:
    """A socket on the address.

    Raises:
        DeploymentError: it is taken, or cannot be.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # The protocol is named: asyncio turns Nagle's algorithm off only where it is, and answers then take 40 ms more.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise DeploymentError(f"port {port} on {host} cannot be used ({error.strerror}); choose another") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise DeploymentError(f"port {port} on {host} cannot be used ({reason}); choose another") from None
    return listener


class RouteServer(uvicorn.Server):
    """uvicorn, under a process that answers signals itself.

    Args:
        app: the ASGI application.
        grace_s: for requests in flight when it ends.
    """

    def __init__(self, app: Any, grace_s: float) -> None:
        config = uvicorn.Config(
            app,
            http=_GuardedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=max(1, round(grace_s)),
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Leave them to the supervisor."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and read what was sent to connections that are there, before the idle ones are closed.

        uvicorn's own would reset connections that wait to be accepted, and close those whose request it has not read.
        """
        loop, waiting = asyncio.get_running_loop(), []
        for listener in sockets or []:
            listener.listen(
                0
            )  # the system takes one connection more at the most, between the last accept and the close
            with contextlib.suppress(OSError):  # BlockingIOError: there are no more
                while True:
                    waiting.append(listener.accept()[0])
        for server in self.servers:
            server.close()
        for connection in waiting:
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(self._protocol, connection)
        if waiting or self.server_state.connections:
            await asyncio.sleep(_LAST_READ_S)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        return _GuardedProtocol(config=self.config, server_state=self.server_state, app_state={})


class _GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a bound on a request's head, in bytes and in time."""

    _head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A head is waited for."""
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._await_head()
        super().on_message_begin()

    def data_received(self, data: bytes) -> None:
        """Part of a head, or of a body."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._deadline is not None and self._head_bytes > _MOST_HEAD_BYTES:
            if self.cycle is None or self.cycle.response_complete:
                self.send_400_response(f"the request's head is longer than {_MOST_HEAD_BYTES} bytes")
            else:
                self.transport.close()

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._head_is_done()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """No head will come any more."""
        self._head_is_done()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_bytes = 0
        if self._deadline is None:
            self._deadline = self.loop.call_later(_HEAD_S, self.transport.close)

    def _head_is_done(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
