"""What a rollout sends, and how it counts what becomes of that."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from kubevox.deployment.backend import Endpoint, ServedVersion
from kubevox.deployment.traffic import Answer, Clients, Recording, Traffic, counts
from tests.deployment.stand_in_platform import PlatformBackend, recordings, running_platform


@pytest.fixture(scope="module")
def running() -> Iterator[PlatformBackend]:
    with running_platform() as backend:
        yield backend


@pytest.fixture
def platform(running: PlatformBackend) -> PlatformBackend:
    running.reset(ServedVersion("1", "bundles/good"))
    return running


def sent(endpoint: Endpoint, count: int = 20, **how: float) -> list[Answer]:
    settings = {"timeout_s": 5.0, "concurrency": 4} | how

    async def send() -> list[Answer]:
        async with Traffic("mood", **settings) as traffic:  # type: ignore[arg-type]
            return await traffic.send(endpoint, recordings(count))

    return asyncio.run(send())


def test_answers_come_in_the_recordings_order_with_version_and_label(platform: PlatformBackend) -> None:
    answers = sent(platform.endpoints().route)
    assert [answer.utterance for answer in answers] == [recording.utterance for recording in recordings(20)]
    assert {(answer.kind, answer.status, answer.version) for answer in answers} == {("answered", 200, "1")}
    right = sum(answer.label == recording.label for answer, recording in zip(answers, recordings(20), strict=True))
    assert right > 12
    assert all(0 < answer.seconds < 5 for answer in answers)


@pytest.mark.parametrize(
    ("bundle", "kind", "status", "problem"),
    [
        ("errors", "failed", 500, '500: {"error": "it broke"}'),
        ("busy", "busy", 503, ""),
        ("garbled", "failed", 200, 'no prediction: {"predictions": []}'),
    ],
)
def test_what_is_no_prediction_is_busy_or_a_failure(
    platform: PlatformBackend, bundle: str, kind: str, status: int, problem: str
) -> None:
    platform.reset(ServedVersion("1", f"bundles/{bundle}"))
    (answer,) = sent(platform.endpoints().route, 1)
    assert (answer.kind, answer.status, answer.problem, answer.version) == (kind, status, problem, None)


def test_a_503_without_retry_after_is_a_failure(platform: PlatformBackend) -> None:
    (answer,) = sent(Endpoint(f"{platform.url}/canary"), 1)
    assert (answer.kind, answer.status) == ("failed", 503)


def test_nobody_there_and_no_answer_in_time_are_failures_and_are_not_tried_again(platform: PlatformBackend) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        (refused,) = sent(Endpoint(f"http://127.0.0.1:{closed.getsockname()[1]}"), 1)
    assert (refused.kind, refused.status) == ("failed", 0)
    assert "Connect" in refused.problem
    platform.reset(ServedVersion("1", "bundles/good"), delay_ms=400)
    answers = sent(platform.endpoints().route, 2, timeout_s=0.1)
    assert {(answer.kind, answer.status, answer.problem) for answer in answers} == {
        ("failed", 0, "no answer within 0.1 s")
    }


def test_every_request_is_sent_once(platform: PlatformBackend) -> None:
    platform.reset(ServedVersion("1", "bundles/errors-0.3"))
    answers = sent(platform.endpoints().route, 60)
    seen = counts(answers)
    assert {f"1: {name.split()[-1]}": count for name, count in seen.items() if name.startswith("failed")} == {
        "1: 500": platform.answered()["1: 500"]
    }
    assert sum(platform.answered().values()) == 60


def test_no_more_requests_are_on_their_way_than_may_be(platform: PlatformBackend) -> None:
    platform.reset(ServedVersion("1", "bundles/good"), delay_ms=20)
    answers = sent(platform.endpoints().route, 12, concurrency=3)
    begun = sorted((answer.at, 1) for answer in answers)
    ended = sorted((answer.at + answer.seconds - 1e-3, -1) for answer in answers)
    together = most = 0
    for _, change in sorted(begun + ended):
        together += change
        most = max(most, together)
    assert most <= 3


def test_requests_are_no_faster_than_they_may_be(platform: PlatformBackend) -> None:
    started = time.monotonic()
    sent(platform.endpoints().route, 11, requests_per_s=50.0)
    assert time.monotonic() - started >= 0.2


def test_headers_of_an_endpoint_go_with_every_request(platform: PlatformBackend) -> None:
    heard: list[bytes] = []

    async def ask() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with Traffic("mood", 5.0, 1) as traffic:
            endpoint = Endpoint(f"http://127.0.0.1:{port}", {"Host": "mood.kubevox.example.org"})
            answered = await traffic.ask(endpoint, Recording("0", "happy", b"happy 1"))
        server.close()
        assert (answered.kind, answered.status) == ("busy", 429)

    asyncio.run(ask())
    assert b"Host: mood.kubevox.example.org" in heard[0]
    assert b"POST /v1/models/mood:predict" in heard[0]


def test_a_pair_is_asked_one_after_the_other(platform: PlatformBackend) -> None:
    platform.start_canary(ServedVersion("2", "bundles/permuted"))
    ways = platform.endpoints()
    assert ways.stable is not None
    assert ways.canary is not None

    async def pair() -> tuple[Answer, Answer]:
        async with Traffic("mood", 5.0, 4) as traffic:
            return await traffic.pair(ways.canary, ways.stable, recordings(1)[0])  # type: ignore[arg-type]

    canary, stable = asyncio.run(pair())
    assert (canary.version, stable.version) == ("2", "1")
    assert stable.at >= canary.at
    assert canary.label != stable.label


def test_clients_keep_asking_at_their_rate_though_answers_are_slow(platform: PlatformBackend) -> None:
    platform.reset(ServedVersion("1", "bundles/good"), delay_ms=100)
    with Clients("mood", platform.endpoints().route, recordings(), requests_per_s=100) as clients:
        deadline = time.monotonic() + 10
        while len(clients.answers) < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert counts(clients.answers) == {"answered 1": len(clients.answers)}
    assert sum(platform.answered().values()) == len(clients.answers)  # none is given up when they leave
    begun = sorted(answer.at for answer in clients.answers)
    assert begun[-1] - begun[0] < len(begun) * 0.05  # one after the other they would have taken twice as long
