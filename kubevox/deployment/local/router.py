"""The weighted route: one port, of whose requests the canary gets its exact share.

A plain ASGI application, run by uvicorn, that hands requests on by aiohttp's client and its pool of connections.
Bodies are streamed both ways; status and headers pass as they are, but for those that belong to one connection. A POST
is sent on once and never repeated on the client's behalf.

``GET /-/status``, ``/-/metrics`` and ``/-/ready`` are the router's own; every other path is the servers'.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from yarl import URL

__all__ = ["Router", "Share", "Upstream"]

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_OWN = b"/-/"
# RFC 9110, section 7.6.1; `expect` is answered here, before the body is asked for.
_OF_ONE_CONNECTION = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade expect".split()
)
_HELD_BYTES = 256 << 10  # a body up to this is held until it is whole, a larger one is streamed
_POOLED_S = 2.0  # a connection that idles longer is not used again: servers close theirs after 5 s
_CONNECT_S = 5.0
_GONE = 499  # nginx's: the client left before it was answered
_BUCKETS = (0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Share:
    """Which of the next requests are the canary's: in each round exactly its percentage, at random places.

    A round is as short as the percentage allows: 10 requests for 10 %, 2 for 50 %, 100 for 33 %. The places are random,
    so that a client that repeats its recordings in a fixed order does not send the canary the same one every time.
    """

    def __init__(self, percent: int) -> None:
        divisor = math.gcd(percent, 100)
        self._canary, self._requests = percent // divisor, 100 // divisor
        self._round: list[bool] = []

    def is_canarys(self) -> bool:
        """Whether the next request is."""
        if not self._round:
            self._round = [True] * self._canary + [False] * (self._requests - self._canary)
            random.shuffle(self._round)
        return self._round.pop()


class Upstream:
    """One version's model server, as the router sees it.

    Args:
        version: the registered version's number.
        request_timeout_s: how long the server may be silent before it is given up.
    """

    def __init__(self, version: str, request_timeout_s: float) -> None:
        self.version = version
        self.alive = False
        self.in_flight = 0
        self._timeout_s = request_timeout_s
        self._idle = asyncio.Event()
        self._idle.set()
        self._session: aiohttp.ClientSession | None = None
        self._port = 0

    async def open(self, port: int) -> None:
        """Send requests to this port of loopback from now on; connections to the one before are dropped."""
        await self.close()
        self._port = port
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_POOLED_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=self._timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Drop every connection."""
        self.alive = False
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def drained(self, timeout_s: float) -> bool:
        """Wait until every request that was given to it is answered; returns whether that was in time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    @contextlib.contextmanager
    def busy(self) -> Any:
        """One more request is its to answer."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def request(
        self, method: str, path: bytes, query: bytes, headers: CIMultiDict[str], body: Any
    ) -> aiohttp.ClientResponse:
        """Send a request on; the answer's body is still to be read.

        Raises:
            aiohttp.ClientError: it did not answer.
            TimeoutError: not in time.
        """
        if self._session is None:
            raise aiohttp.ClientConnectionError("its server ended")
        url = URL.build(
            scheme="http",
            host="127.0.0.1",
            port=self._port,
            path=path.decode("latin-1"),
            query_string=query.decode("latin-1"),
            encoded=True,
        )
        return await self._session.request(method, url, headers=headers, data=body, allow_redirects=False)


@dataclass(frozen=True)
class _Table:
    """Where requests go."""

    stable: Upstream | None = None
    canary: Upstream | None = None
    percent: int = 0


class Router:
    """The ASGI application.

    Args:
        model: the model's name, for messages.
        request_timeout_s: how long a server may take to answer, or a client to send its next bytes.
        most: requests on their way at once; more are answered 503.
    """

    def __init__(self, model: str, request_timeout_s: float = 60.0, most: int = 1024) -> None:
        self.model, self.most, self.closing = model, most, False
        self.status: Callable[[], dict[str, Any]] = dict  # what /-/status tells beside the router's own figures
        self._timeout_s = request_timeout_s
        self._table = _Table()
        self._share = Share(0)
        self._in_flight = 0
        self._metrics = _Metrics()

    def direct(self, stable: Upstream | None, canary: Upstream | None, percent: int) -> None:
        """Send every request from now on by this rule; those that are on their way stay where they are."""
        table = _Table(stable, canary, percent)
        if table == self._table:
            return
        if percent != self._table.percent or canary is not self._table.canary:
            self._share = Share(percent)
        self._table = table
        self._metrics.weigh(table)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        path = scope["raw_path"]
        if path.startswith(_OWN):
            await self._own(path.removeprefix(_OWN).decode("latin-1"), send)
            return
        upstream = self._choose(scope["method"])
        answer = _Answer(send, closing=self.closing)
        if not path.startswith(b"/"):
            await answer.refuse(400, "the request names no path")
        elif upstream is None:
            await answer.refuse(503, f"no version of {self.model} is ready", retry_after_s=1)
        elif self._in_flight >= self.most:
            await answer.refuse(503, f"{self.most} requests are on their way already", retry_after_s=1)
        else:
            started = time.perf_counter()
            self._in_flight += 1
            try:
                with upstream.busy():
                    await _Exchange(upstream, scope, receive, answer, self._timeout_s).run()
            finally:
                self._in_flight -= 1
                self._metrics.answered(upstream.version, answer.status, time.perf_counter() - started)
            return
        self._metrics.answered("none", answer.status, 0.0)

    def _choose(self, method: str) -> Upstream | None:
        table = self._table
        stable = table.stable if table.stable is not None and table.stable.alive else None
        canary = table.canary if table.canary is not None and table.canary.alive else None
        if method == "POST":
            # A canary that is gone has no share: clients do not pay for it.
            return canary if self._share.is_canarys() and canary is not None else stable
        # What is asked of the service itself (health, metadata, metrics) is not shared out.
        return canary if table.stable is None else stable

    async def _own(self, name: str, send: Send) -> None:
        answer = _Answer(send, closing=self.closing)
        if name == "metrics":
            await answer.whole(200, [(b"content-type", b"text/plain; version=0.0.4")], self._metrics.text(self._table))
        elif name == "status":
            upstreams = [self._table.stable, self._table.canary]
            own = {"in_flight": {one.version: one.in_flight for one in upstreams if one is not None}}
            await answer.json(200, self.status() | own)
        elif name == "ready":
            ready = self._choose("GET") is not None
            await answer.json(200 if ready else 503, {"ready": ready})
        else:
            await answer.refuse(404, "the router has status, metrics and ready here")


class _Answer:
    """What a client is answered, once."""

    def __init__(self, send: Send, closing: bool) -> None:
        self._send, self._closing = send, closing
        self.status = 0

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        if self._closing:  # so that no client sends its next request into a connection that is about to end
            headers = [*headers, (b"connection", b"close")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def more(self, body: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        if not any(name == b"content-length" for name, _ in headers):
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        await self.start(status, headers)
        await self.more(body, more=False)

    async def json(self, status: int, content: dict[str, Any], retry_after_s: int | None = None) -> None:
        headers = [(b"content-type", b"application/json")]
        if retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % retry_after_s))
        await self.whole(status, headers, orjson.dumps(content))

    async def refuse(
        self, status: int, reason: str, version: str | None = None, retry_after_s: int | None = None
    ) -> None:
        """One JSON line; where a version failed, it is named as it names itself in its answers."""
        content = {"error": reason} | ({"model_version": version} if version is not None else {})
        await self.json(status, content, retry_after_s)


class _Exchange:
    """A request on its way to one server, and the answer on its way back."""

    def __init__(
        self, upstream: Upstream, scope: dict[str, Any], receive: Receive, answer: _Answer, timeout_s: float
    ) -> None:
        self._upstream, self._scope, self._receive, self._answer = upstream, scope, receive, answer
        self._timeout_s = timeout_s
        self._gone = False  # the client
        self._slow = False  # the client
        self._watch: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = asyncio.current_task()

    async def run(self) -> None:
        """Answer the client, whatever becomes of the server; nothing is answered to a client that left."""
        who = f"version {self._upstream.version}"
        try:
            body = await self._body()
            if not self._gone:
                await self._hand_on(body)
        except asyncio.CancelledError:
            if not self._gone or self._task is None:
                raise
            self._task.uncancel()
        except _SlowClientError:
            await self._failed(408, f"no bytes of the request came for {self._timeout_s:g} s")
        except TimeoutError:
            await self._failed(504, f"{who} did not answer within {self._timeout_s:g} s", self._upstream.version)
        except ValueError as error:  # aiohttp's, about a header that it would not write
            await self._failed(400, f"the request cannot be sent on ({error})")
        except aiohttp.ClientError as error:
            reason = f"{who} did not answer ({type(error).__name__}: {error})"
            await self._failed(502, reason, self._upstream.version)
        finally:
            if self._watch is not None:
                self._watch.cancel()
        if self._gone:
            self._answer.status = _GONE

    async def _failed(self, status: int, reason: str, version: str | None = None) -> None:
        if self._slow:
            status, reason, version = 408, f"no bytes of the request came for {self._timeout_s:g} s", None
        if self._gone:
            return
        if not self._answer.status:
            await self._answer.refuse(status, reason, version)
        # Where an answer had begun, returning without its end makes uvicorn cut the connection: the client sees
        # that it did not get all.

    async def _hand_on(self, body: Any) -> None:
        scope = self._scope
        request = await self._upstream.request(
            scope["method"], scope["raw_path"], scope["query_string"], _onwards(scope["headers"]), body
        )
        try:
            headers = [(name.lower(), value) for name, value in request.raw_headers]
            headers = _without_connection(headers)
            if request.content_length is not None and request.content_length <= _HELD_BYTES:
                # Read to its end before anything is told, so that a server that dies over it is a 502.
                content = await request.read()
                self._unwatch()
                await self._answer.whole(request.status, headers, content)
            else:
                await self._answer.start(request.status, headers)
                async for part in request.content.iter_any():
                    await self._answer.more(part)
                self._unwatch()
                await self._answer.more(b"", more=False)
        except BaseException:
            request.close()
            raise
        request.release()

    async def _body(self) -> Any:
        """The request's body: whole where it is small, else the rest of it still to come."""
        held = bytearray()
        while True:
            part, more = await self._next()
            held += part
            if not more:
                self._watch = asyncio.ensure_future(self._until_gone())
                return bytes(held) or None
            if len(held) > _HELD_BYTES:
                return self._stream(bytes(held))

    async def _stream(self, held: bytes) -> AsyncIterator[bytes]:
        yield held
        more = True
        while more:
            part, more = await self._next()
            if part:
                yield part
        self._watch = asyncio.ensure_future(self._until_gone())

    async def _next(self) -> tuple[bytes, bool]:
        try:
            async with asyncio.timeout(self._timeout_s):
                message = await self._receive()
        except TimeoutError:
            self._slow = True
            raise _SlowClientError from None
        if message["type"] == "http.disconnect":
            self._gone = True
            raise aiohttp.ClientConnectionError("the client left")
        return message.get("body", b""), message.get("more_body", False)

    async def _until_gone(self) -> None:
        """Let go of the server when the client does not wait for its answer any more."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def _unwatch(self) -> None:
        # From here on `receive` would also tell of an end that is ours.
        if self._watch is not None:
            self._watch.cancel()


class _SlowClientError(Exception):
    """A client that began a request and sends no more of it."""


class _Metrics:
    """The router's own figures, for Prometheus."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "kubevox_router_requests", "Requests by version and status.", ["version", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "kubevox_router_request_seconds",
            "From a request's head to the end of its answer, by version.",
            ["version"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._weight = Gauge(
            "kubevox_router_weight_percent",
            "Share of the POST requests, by version.",
            ["version"],
            registry=self._registry,
        )
        self._busy = Gauge(
            "kubevox_router_in_flight", "Requests on their way, by version.", ["version"], registry=self._registry
        )

    def answered(self, version: str, status: int, seconds: float) -> None:
        self._requests.labels(version, str(status)).inc()
        if seconds:
            self._seconds.labels(version).observe(seconds)

    def weigh(self, table: _Table) -> None:
        self._weight.clear()
        if table.stable is not None:
            self._weight.labels(table.stable.version).set(100 - table.percent)
        if table.canary is not None:
            self._weight.labels(table.canary.version).set(table.percent)

    def text(self, table: _Table) -> bytes:
        self._busy.clear()
        for upstream in (table.stable, table.canary):
            if upstream is not None:
                self._busy.labels(upstream.version).set(upstream.in_flight)
        return generate_latest(self._registry)


def _onwards(headers: list[tuple[bytes, bytes]]) -> CIMultiDict[str]:
    """A request's headers for the server, with an id where the client gave none."""
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    kept: CIMultiDict[str] = CIMultiDict()
    for name, value in _without_connection(headers):
        if not (chunked and name == b"content-length"):
            kept.add(name.decode("latin-1"), _text(value))
    if "x-request-id" not in kept:
        kept["X-Request-Id"] = uuid.uuid4().hex
    return kept


def _without_connection(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers (names in lower case) without those that belong to one connection, or are named as such."""
    dropped = _OF_ONE_CONNECTION
    for name, value in headers:
        if name == b"connection":
            dropped = dropped | {word.strip().lower() for word in value.split(b",")}
    return [(name, value) for name, value in headers if name not in dropped]


def _text(value: bytes) -> str:
    # aiohttp writes headers as UTF-8, so that these bytes come out as they came in; others are taken for Latin-1.
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
