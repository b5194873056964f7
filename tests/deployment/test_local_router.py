"""The weighted route: exact shares, bodies and headers as they are, and an answer whatever becomes of a server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.deployment.local import listening
from kubevox.deployment.local.listening import RouteServer, listen
from kubevox.deployment.local.router import Router, Share, Upstream
from kubevox.deployment.local.servers import free_port
from tests.deployment.standin import StandIn

PREDICT = "/v1/models/mood:predict"


@dataclass
class Route:
    """A router in this process, with two stand-ins behind it."""

    router: Router
    stable: Upstream
    canary: Upstream
    port: int
    client: httpx.AsyncClient

    async def raw(self, sent: bytes) -> bytes:
        """All that is answered to some bytes, until the connection is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        received = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return received

    async def versions(self, requests: int) -> Counter[str]:
        """Which versions answered."""
        answers = [await self.client.post(PREDICT, json={}) for _ in range(requests)]
        return Counter(answer.json()["predictions"][0]["model_version"] for answer in answers)


@contextlib.asynccontextmanager
async def standin(version: str, **behaviour: Any) -> AsyncIterator[int]:
    flags = {"name": "mood", "version": version, "delay_s": 0.0, "crash_after": 0, "never_ready": False} | behaviour
    listener = listen("127.0.0.1", 0)
    server = RouteServer(StandIn(argparse.Namespace(**flags)), 1.0)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await serving


@contextlib.asynccontextmanager
async def routed(timeout_s: float = 5.0, most: int = 1024, **behaviour: Any) -> AsyncIterator[Route]:
    router = Router("mood", timeout_s, most)
    async with contextlib.AsyncExitStack() as stack:
        upstreams = []
        for version in ("1", "2"):
            upstream = Upstream(version, timeout_s)
            await upstream.open(await stack.enter_async_context(standin(version, **behaviour)))
            stack.push_async_callback(upstream.close)
            upstream.alive = True
            upstreams.append(upstream)
        router.direct(*upstreams, 0)
        listener = listen("127.0.0.1", 0)
        port = listener.getsockname()[1]
        server = RouteServer(router, 5.0)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10)
        await stack.enter_async_context(client)
        yield Route(router, *upstreams, port, client)
        await client.aclose()
        server.should_exit = server.force_exit = True
        await asyncio.wait_for(serving, 10)


class Shared:
    """One route for all tests that leave it as it was."""

    loop: asyncio.AbstractEventLoop
    route: Route


@pytest.fixture(autouse=True, scope="module")
def shared_route() -> Iterator[None]:
    """No test of this file looks at how a server ends."""
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setattr(listening, "_LAST_READ_S", 0.0)
        context = routed()
        Shared.loop, Shared.route = runner.get_loop(), runner.run(context.__aenter__())
        yield
        runner.run(context.__aexit__(None, None, None))


def with_route(test: Callable[[Route], Awaitable[None]], **how: Any) -> None:
    """Run a test on the shared route, or on one of its own where it wants a special one."""

    async def run() -> None:
        async with routed(**how) as route:
            await test(route)

    async def share() -> None:
        route = Shared.route
        route.router.direct(route.stable, route.canary, 0)
        route.stable.alive = route.canary.alive = True
        await test(route)

    if how:
        asyncio.run(run())
    else:
        Shared.loop.run_until_complete(share())


@given(percent=st.integers(0, 100), requests=st.integers(0, 1000))
def test_after_every_request_the_canary_is_less_than_a_round_away_from_its_share(percent: int, requests: int) -> None:
    share, canarys = Share(percent), 0
    whole = next(size for size in range(1, 101) if percent * size % 100 == 0)
    for number in range(1, requests + 1):
        canarys += share.is_canarys()
        assert abs(canarys - number * percent / 100) < whole
        if number % whole == 0:
            assert canarys == number * percent // 100


def test_a_client_that_repeats_itself_does_not_send_the_canary_the_same_request_every_time() -> None:
    share = Share(10)
    assert len({number % 10 for number in range(1000) if share.is_canarys()}) == 10


@pytest.mark.parametrize("percent", [0, 10, 33, 50, 100])
def test_the_canary_answers_exactly_its_share(percent: int) -> None:
    async def test(route: Route) -> None:
        route.router.direct(route.stable, route.canary, percent)
        assert (await route.versions(200))["2"] == 2 * percent

    with_route(test)


def test_only_posts_are_shared_out() -> None:
    async def test(route: Route) -> None:
        route.router.direct(route.stable, route.canary, 100)
        for _ in range(5):
            assert (await route.client.get("/v2/models/mood/ready")).status_code == 200
        assert await route.versions(4) == {"2": 4}
        metrics = (await route.client.get("/-/metrics")).text
        assert 'kubevox_router_requests_total{status="200",version="1"} 5.0' in metrics
        assert 'kubevox_router_requests_total{status="200",version="2"} 4.0' in metrics
        assert 'kubevox_router_weight_percent{version="2"} 100.0' in metrics

    with_route(test, timeout_s=1.0)


def test_a_canary_that_is_gone_costs_no_client_its_answer() -> None:
    async def test(route: Route) -> None:
        route.router.direct(route.stable, route.canary, 50)
        route.canary.alive = False
        assert await route.versions(10) == {"1": 10}

    with_route(test)


def test_without_a_version_that_is_ready_the_answer_is_503_and_says_when_to_come_back() -> None:
    async def test(route: Route) -> None:
        route.stable.alive = False
        answer = await route.client.post(PREDICT, json={})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json() == {"error": "no version of mood is ready"}
        assert (await route.client.get("/-/ready")).status_code == 503
        route.router.direct(None, route.canary, 0)  # a first version, not yet in production
        assert (await route.client.get("/v2/models/mood/ready")).status_code == 200
        assert (await route.client.post(PREDICT, json={})).status_code == 503

    with_route(test)


def test_more_requests_than_it_takes_at_once_are_refused_and_not_queued() -> None:
    async def test(route: Route) -> None:
        answers = await asyncio.gather(*(route.client.post(PREDICT, json={}) for _ in range(5)))
        assert Counter(answer.status_code for answer in answers) == {200: 2, 503: 3}
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.headers["retry-after"] == "1"
        assert (await route.client.post(PREDICT, json={})).status_code == 200

    with_route(test, most=2, delay_s=0.1)


def test_a_request_arrives_as_it_was_sent() -> None:
    async def test(route: Route) -> None:
        sent = (
            b"PUT /echo?a=%20b&c=//%C3%A9 HTTP/1.1\r\nHost: model.example.org\r\nX-Request-Id: mine\r\nCookie: k=v\r\n"
            b"Authorization: Basic eDp5\r\nX-Name: caf\xc3\xa9\r\nContent-Encoding: own\r\nX-Twice: 1\r\nX-Twice: 2\r\n"
            b"X-Hop: dropped\r\nTE: trailers\r\nConnection: close, x-hop\r\nContent-Length: 3\r\n\r\nabc"
        )
        received = await route.raw(sent)
        head, _, body = received.partition(b"\r\n\r\n")
        told = json.loads(body)
        headers = [tuple(pair) for pair in told.pop("headers")]
        assert told == {"method": "PUT", "path": "/echo", "query": "a=%20b&c=//%C3%A9", "bytes": 3}
        assert sorted(headers) == [
            ("authorization", "Basic eDp5"),
            ("content-encoding", "own"),
            ("content-length", "3"),
            ("cookie", "k=v"),
            ("host", "model.example.org"),
            ("x-name", "caf\u00c3\u00a9"),  # its bytes, read as Latin-1 by the stand-in
            ("x-request-id", "mine"),
            ("x-twice", "1"),
            ("x-twice", "2"),
        ]
        assert head.startswith(b"HTTP/1.1 201")
        assert b"\r\nx-own: caf\xe9\r\n" in head
        assert b"\r\nset-cookie: a=1\r\n" in head

    with_route(test)


def test_a_request_without_an_id_gets_one() -> None:
    async def test(route: Route) -> None:
        ids = []
        for _ in range(2):
            told = (await route.client.post("/echo", content=b"x")).json()
            ids.append(dict(told["headers"])["x-request-id"])
        assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
        assert ids[0] != ids[1]

    with_route(test)


@given(body=st.integers(0, 600_000).map(bytes), chunked=st.booleans())
@settings(max_examples=30)
def test_bodies_of_any_length_arrive_whole(body: bytes, chunked: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    async def test(route: Route) -> None:
        answer = await route.client.post("/echo", content=parts() if chunked else body)
        assert answer.json()["bytes"] == len(body)

    with_route(test)


def test_large_bodies_stream_both_ways_with_bounded_memory() -> None:
    megabytes = 150

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(megabytes):
            yield bytes(1 << 20)

    async def test(route: Route) -> None:
        process = psutil.Process()
        before = process.memory_info().rss
        answer = await route.client.post("/count", content=parts())
        assert answer.json() == {"bytes": megabytes << 20}
        received = 0
        async with route.client.stream("GET", f"/stream?{megabytes * 16}") as streamed:
            async for part in streamed.aiter_bytes():
                received += len(part)
        assert received == megabytes << 20
        assert process.memory_info().rss - before < 40 << 20

    with_route(test)


def test_a_server_that_refuses_before_it_has_read_is_heard() -> None:
    async def test(route: Route) -> None:
        for _ in range(5):
            answer = await route.client.post("/refuse", content=bytes(4 << 20))
            assert (answer.status_code, answer.json()) == (413, {"error": "too large"})
        assert await route.versions(3) == {"1": 3}

    with_route(test)


def test_a_server_that_is_silent_is_504_and_names_the_version() -> None:
    async def test(route: Route) -> None:
        answer = await route.client.post(PREDICT, json={})
        assert answer.status_code == 504
        assert answer.json() == {"error": "version 1 did not answer within 0.15 s", "model_version": "1"}

    with_route(test, timeout_s=0.15, delay_s=30.0)


def test_a_server_that_is_not_there_is_502_and_names_the_version() -> None:
    async def test(route: Route) -> None:
        await route.stable.open(free_port())
        route.stable.alive = True
        answer = await route.client.post(PREDICT, json={})
        assert answer.status_code == 502
        assert answer.json()["model_version"] == "1"
        assert answer.json()["error"].startswith("version 1 did not answer (")

    with_route(test, timeout_s=1.0)


def test_a_client_that_leaves_frees_the_server() -> None:
    async def test(route: Route) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", route.port)
        del reader
        writer.write(b"POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await _until(lambda: route.stable.in_flight == 1)
        writer.close()
        assert await route.stable.drained(5)
        for _ in range(100):
            if (await route.client.get("/left")).json():
                break
        else:
            pytest.fail("the server was not told")

    with_route(test)


def test_a_client_that_leaves_in_the_middle_of_its_request_frees_the_server() -> None:
    async def test(route: Route) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", route.port)
        writer.write(b"POST /count HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + bytes(1 << 20))
        await _until(lambda: route.stable.in_flight == 1)
        await writer.drain()
        writer.close()
        assert await route.stable.drained(5)
        assert await route.versions(2) == {"1": 2}

    with_route(test)


@pytest.mark.parametrize("sent", [0, 1 << 20])
def test_a_client_that_sends_no_more_is_408(sent: int) -> None:
    async def test(route: Route) -> None:
        head = b"POST /count HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9000000\r\n\r\n"
        answer = await route.raw(head + bytes(sent))
        assert answer.startswith(b"HTTP/1.1 408")
        assert await route.stable.drained(5)

    with_route(test, timeout_s=0.15)


def test_a_head_that_never_ends_is_cut_off_by_size_and_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_HEAD_S", 0.3)

    async def test(route: Route) -> None:
        assert await route.raw(b"GET / HTTP/1.1\r\nX: ") == b""
        reader, writer = await asyncio.open_connection("127.0.0.1", route.port)
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        answer = b""
        with contextlib.suppress(OSError):  # it does not read on
            for _ in range(64):
                writer.write(bytes(b"x" * 4096))
                await writer.drain()
                await asyncio.sleep(0)
        with contextlib.suppress(OSError):
            answer = await reader.read()
        writer.close()
        assert not answer or answer.startswith(b"HTTP/1.1 400 ")  # what is still on its way may cut the answer off
        assert (await route.client.get("/v2/models/mood/ready")).status_code == 200

    with_route(test)


@pytest.mark.parametrize("target", ["*", "@127.0.0.1/", "http:", "//x:y@z/", "/%00%ff/../..//?#"])
def test_a_strange_target_reaches_no_other_host(target: str) -> None:
    async def test(route: Route) -> None:
        answer = await route.raw(f"OPTIONS {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert re.match(rb"HTTP/1.1 4\d\d ", answer)

    with_route(test)


def test_an_upgrade_and_an_expectation_end_here() -> None:
    async def test(route: Route) -> None:
        answer = await route.raw(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close, upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 201")
        assert b"upgrade" not in answer
        answer = await route.raw(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n"
            b"Content-Length: 2\r\n\r\nab"
        )
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201")
        assert b"expect" not in answer.lower()

    with_route(test)


def test_the_routers_own_paths_are_its_own() -> None:
    async def test(route: Route) -> None:
        assert (await route.client.get("/-/ready")).json() == {"ready": True}
        assert (await route.client.get("/-/status")).json()["in_flight"] == {"1": 0, "2": 0}
        assert (await route.client.get("/-/other")).status_code == 404

    with_route(test)


def test_ports_are_taken_outside_the_range_that_clients_get() -> None:
    for _ in range(20):
        port = free_port()
        with socket.socket() as client:
            client.bind(("127.0.0.1", 0))
            assert port < client.getsockname()[1]


async def _until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
