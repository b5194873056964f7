"""The requests that a rollout sends, and what became of each.

Nothing is ever sent twice: whoever counts failures must see each of them. An answer is one of three things: a
prediction; ``busy`` (429 or 503 with Retry-After), which is how a server that has enough to do says so; or a failure.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from kubevox.deployment.backend import Endpoint

__all__ = ["Answer", "Clients", "Recording", "Traffic", "counts"]

Kind = Literal["answered", "busy", "failed"]

_SHOWN = 120  # characters of what a server said


@dataclass(frozen=True)
class Recording:
    """A labelled recording as it is sent.

    Attributes:
        utterance: its id.
        label: the true one.
        audio: a file's bytes.
    """

    utterance: str
    label: str
    audio: bytes


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
        utterance: what was asked about.
        at: when it was sent, in seconds since 1970.
        seconds: until the whole answer was there, or none came.
        kind: answered, busy or failed.
        status: of HTTP; 0 where no answer came.
        version: that the answer names; None where it names none.
        label: the prediction; None where there is none.
        problem: why it failed, in a few words.
    """

    utterance: str
    at: float
    seconds: float
    kind: Kind
    status: int
    version: str | None = None
    label: str | None = None
    problem: str = ""


class Traffic:
    """Asks a model over V1, each request once; use as an asynchronous context manager.

    Args:
        name: the model's, in the URL.
        timeout_s: for one request.
        concurrency: requests on their way at once, at most.
        requests_per_s: sent at most; infinity for as fast as answers come.
    """

    def __init__(self, name: str, timeout_s: float, concurrency: int, requests_per_s: float = float("inf")) -> None:
        self._path = f"/v1/models/{name}:predict"
        self._timeout_s, self._concurrency, self._interval_s = timeout_s, concurrency, 1 / requests_per_s
        self._next = 0.0
        self._session: Any = None

    async def __aenter__(self) -> Traffic:
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._concurrency),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            auto_decompress=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, endpoint: Endpoint, recordings: Iterable[Recording]) -> list[Answer]:
        """Send recordings one by one, as many at once as may be; the answers come in the recordings' order."""
        free = asyncio.Semaphore(self._concurrency)
        sent: list[asyncio.Task[Answer]] = []

        async def one(recording: Recording) -> Answer:
            try:
                return await self.ask(endpoint, recording)
            finally:
                free.release()

        try:
            for recording in recordings:
                await free.acquire()
                await self._turn()
                sent.append(asyncio.create_task(one(recording)))
            return list(await asyncio.gather(*sent))
        finally:
            for task in sent:
                task.cancel()

    async def pair(self, first: Endpoint, second: Endpoint, recording: Recording) -> tuple[Answer, Answer]:
        """Send a recording to one endpoint and, when that has answered, to another."""
        await self._turn()
        one = await self.ask(first, recording)
        await self._turn()
        return one, await self.ask(second, recording)

    async def ask(self, endpoint: Endpoint, recording: Recording) -> Answer:
        """Send one recording, at once."""
        import aiohttp

        body = _body(recording.audio)
        headers = {"content-type": "application/json"} | endpoint.headers
        at, started = time.time(), time.perf_counter()

        def ended(kind: Kind, status: int, **said: Any) -> Answer:
            return Answer(recording.utterance, at, time.perf_counter() - started, kind, status, **said)

        try:
            # A redirect is no answer: it would be a second request.
            async with self._session.post(
                endpoint.url.rstrip("/") + self._path, data=body, headers=headers, allow_redirects=False
            ) as response:
                content = await response.read()
        except TimeoutError:
            return ended("failed", 0, problem=f"no answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return ended("failed", 0, problem=f"{type(error).__name__}: {error}"[:_SHOWN])
        status = response.status
        if status in (429, 503) and "Retry-After" in response.headers:
            return ended("busy", status, version=_version(content))
        if status != 200:
            return ended("failed", status, version=_version(content), problem=f"{status}: {_text(content)}")
        prediction = _prediction(content)
        if prediction is None:
            return ended("failed", status, version=_version(content), problem=f"no prediction: {_text(content)}")
        return ended("answered", status, version=prediction[0], label=prediction[1])

    async def _turn(self) -> None:
        """Wait until the next request may be sent."""
        now = time.monotonic()
        self._next = max(self._next, now) + self._interval_s
        if (pause := self._next - self._interval_s - now) > 0:
            await asyncio.sleep(pause)


class Clients:
    """Clients that ask the route at a steady rate, whatever becomes of their requests; use as a context manager.

    They run in a thread of their own, and begin each request when its time has come, not when the one before has been
    answered (an open loop).

    Args:
        name: the model's, in the URL.
        route: where they ask.
        recordings: what they send, over and over.
        requests_per_s: all together.
        timeout_s: for one request.

    Attributes:
        answers: what became of their requests so far, in the order in which that was known.
    """

    def __init__(
        self,
        name: str,
        route: Endpoint,
        recordings: Sequence[Recording],
        requests_per_s: float,
        timeout_s: float = 30.0,
    ) -> None:
        self.answers: list[Answer] = []
        self._name, self._route, self._recordings = name, route, recordings
        self._interval_s, self._timeout_s = 1 / requests_per_s, timeout_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()), name="clients", daemon=True)

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    async def _ask(self) -> None:
        waiting: set[asyncio.Task[None]] = set()
        async with Traffic(self._name, self._timeout_s, concurrency=0) as traffic:

            async def one(recording: Recording) -> None:
                self.answers.append(await traffic.ask(self._route, recording))

            due = time.monotonic()
            for recording in itertools.cycle(self._recordings):
                if self._stop.is_set():
                    break
                task = asyncio.create_task(one(recording))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
                due += self._interval_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.gather(*waiting)


def counts(answers: Iterable[Answer]) -> dict[str, int]:
    """How many there were of each kind and version, such as ``answered 2`` or ``failed 503``."""
    seen: Counter[str] = Counter()
    for answer in answers:
        what = answer.version if answer.kind == "answered" else answer.status or "without an answer"
        seen[f"{answer.kind} {what}"] += 1
    return dict(sorted(seen.items()))


def _body(audio: bytes) -> bytes:
    return b'{"instances":[{"audio":"' + base64.b64encode(audio) + b'"}]}'


def _prediction(content: bytes) -> tuple[str | None, str] | None:
    """The version and the label of an answer; None where it is no prediction."""
    try:
        (prediction,) = json.loads(content)["predictions"]
        label, version = prediction["label"], prediction.get("model_version")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return (None if version is None else str(version), label) if isinstance(label, str) else None


def _version(content: bytes) -> str | None:
    """The version that a refusal names, where it names one."""
    try:
        version = json.loads(content).get("model_version")
    except (ValueError, AttributeError):
        return None
    return None if version is None else str(version)


def _text(content: bytes) -> str:
    return " ".join(content[:_SHOWN].decode(errors="replace").split())
