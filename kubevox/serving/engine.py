"""The front's side of the work: one bounded queue, and workers that take batches from it.

A worker that is free takes what waits, up to ``max_batch`` recordings and its fair share where others are free too:
under light load that is one recording at once, without any wait for company; under heavy load batches form by
themselves. Where the queue has no room a request is refused at once, so that what is accepted is answered in time. A
worker that ends, or takes too long, is replaced; its recordings are tried one by one, and the one that did it is
refused.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import logging
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from typing import Any

from kubevox.errors import BundleError, BusyError, KubevoxError
from kubevox.processes import cores
from kubevox.serving import worker_process
from kubevox.serving.work import (
    HEADER,
    Answer,
    Failure,
    Greeting,
    Item,
    LateDrift,
    Refusal,
    Worker,
    pack_items,
    said_from,
)

__all__ = ["Engine", "Entry", "Outcome", "prepare"]

_START_S = 120.0
_LONGEST_PAUSE_S = 5.0  # between two attempts to replace a worker, doubled each time
_LONGEST_TMPDIR = 64

_log = logging.getLogger(__name__)

Entry = Callable[[Worker, socket.socket, int], None]
"""Told what to serve, its channel and its parent's process id."""


def prepare() -> None:
    """Have the process begin from which workers are forked: it imports torch while this one imports other things."""
    _context()
    # Its socket is a file, whose path the system limits to some hundred characters: a deep TMPDIR is too long.
    usual = tempfile.gettempdir()
    tempfile.tempdir = usual if len(usual) <= _LONGEST_TMPDIR else "/tmp"  # noqa: S108 - mkdtemp makes a folder in it
    try:
        forkserver.ensure_running()
    finally:
        tempfile.tempdir = usual


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a recording, and how long it waited for a worker."""

    answer: Answer | Refusal
    queue_ms: float


@dataclass(slots=True, eq=False)
class _Waiting:
    """A recording in the queue."""

    item: Item
    deadline: float
    since: float
    done: asyncio.Future[Outcome] = field(repr=False)

    @property
    def wanted(self) -> bool:
        return not self.done.done()

    def end(self, outcome: Outcome) -> None:
        if self.wanted:
            self.done.set_result(outcome)

    def fail(self, error: KubevoxError) -> None:
        if self.wanted:
            self.done.set_exception(error)


class Engine:
    """The queue and the workers of one model.

    Args:
        told: what each worker serves.
        entry: where a worker process begins; None: ``worker_process.main``.
        on_batch: told the size of each batch.
        on_drift: told the drift features of a recording, when a worker found time for them.

    Attributes:
        greeting: what the workers say of the model; None before :meth:`start`.
        restarts: workers that were replaced.
    """

    def __init__(
        self,
        told: Worker,
        entry: Entry | None = None,
        on_batch: Callable[[int], None] = lambda _: None,
        on_drift: Callable[[LateDrift], None] = lambda _: None,
    ) -> None:
        self.greeting: Greeting | None = None
        self.restarts = 0
        self._told, self._entry, self._options = told, entry or worker_process.main, told.options
        self._on_batch, self._on_drift = on_batch, on_drift
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._arrived = asyncio.Condition()
        self._idle = 0
        self._per_recording_s = 0.01
        self._keys = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._begun: list[_Process] = []

    @property
    def waiting(self) -> int:
        """Recordings in the queue."""
        return len(self._queue)

    @property
    def ready(self) -> bool:
        """Whether any worker is there to answer."""
        return any(process.alive for process in self._begun)

    def room_for(self, recordings: int) -> bool:
        """Whether the queue takes so many more; an empty one takes any request."""
        return not self._queue or len(self._queue) + recordings <= self._options.max_queue

    def key(self) -> int:
        """A new key for an item whose drift features are wanted."""
        return next(self._keys)

    async def start(self) -> Greeting:
        """Start the workers; return when all are ready. Where that fails, :meth:`stop` ends those that are.

        Raises:
            BundleError: the model cannot be loaded.
        """
        count = self._options.workers or (1 if self._told.device == "cuda" else cores())
        # The first alone: what is wrong with the model is then said once.
        self._begun = [await self._new_process()]

        async def one_more() -> None:
            self._begun.append(await self._new_process())

        for failed in await asyncio.gather(*(one_more() for _ in range(count - 1)), return_exceptions=True):
            if failed is not None:
                raise failed
        self.greeting = self._begun[0].greeting
        self._tasks = [asyncio.create_task(self._serve(place)) for place in range(count)]
        while self._idle < count:
            await asyncio.sleep(0)
        return self.greeting

    async def submit(self, items: Sequence[Item], timeout_s: float) -> list[Outcome]:
        """What becomes of some recordings, in their order.

        Args:
            items: a request's.
            timeout_s: they must all be answered within.

        Raises:
            BusyError: the queue is full, or the time was over.
        """
        if not self.room_for(len(items)):
            raise BusyError(f"{len(self._queue)} recordings wait already; try again", self.retry_after_s)
        now, loop = time.monotonic(), asyncio.get_running_loop()
        waiting = [_Waiting(item, now + timeout_s, now, loop.create_future()) for item in items]
        self._queue.extend(waiting)
        try:
            async with self._arrived:
                self._arrived.notify(min(len(waiting), max(1, self._idle)))
            async with asyncio.timeout(timeout_s):
                return await asyncio.gather(*(one.done for one in waiting))
        except TimeoutError:
            raise BusyError(f"not answered within {timeout_s:g} s; try again", self.retry_after_s) from None
        finally:
            for one in waiting:
                one.done.cancel()

    async def stop(self) -> None:
        """End the workers. Who still waits is told that the server ends."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._queue:
            self._queue.popleft().fail(BusyError("the server ends", 1.0))
        for process in self._begun:
            await process.end()

    @property
    def retry_after_s(self) -> float:
        """When a client may try again: what waits now is worked off by then, at the pace of late."""
        return max(1.0, len(self._queue) * self._per_recording_s / max(1, len(self._begun)))

    async def _new_process(self) -> _Process:
        prepare()
        process = _Process(self._told, self._entry)
        try:
            await process.begin(self._on_drift, self._wake_all)
        except BaseException:
            await process.end()
            raise
        return process

    async def _serve(self, place: int) -> None:
        """One worker's loop; a worker that has ended is replaced, also where nothing waits."""
        pause = 0.0
        while True:
            if not self._begun[place].alive:
                await asyncio.sleep(pause)
                pause = 0.0 if await self._replace(place) else min(_LONGEST_PAUSE_S, max(0.4, 2 * pause))
                continue
            batch = await self._next_batch(place)
            try:
                await self._work_or_find_out(place, batch)
            except asyncio.CancelledError:
                for one in batch:
                    one.fail(BusyError("the server ends", 1.0))
                raise

    async def _work_or_find_out(self, place: int, batch: Sequence[_Waiting]) -> None:
        """Have a batch answered; where its worker is lost with it, whatever of it can be."""
        try:
            await self._work(place, batch)
        except _GoneError as error:
            if len(batch) == 1 and error.reason == "timeout":
                self._refuse(batch[0], error)
                return
            # Which of them did it is found by trying each alone; or none did, and the worker was killed.
            for one in batch:
                await self._try_alone(place, one)

    async def _try_alone(self, place: int, one: _Waiting) -> None:
        if not one.wanted:
            return
        if not self._begun[place].alive and not await self._replace(place):
            one.fail(BusyError("the model server has lost a worker; try again", self.retry_after_s))
            return
        try:
            # In less time than the batch had, so that there is some left for the others.
            await self._work(place, [one], 0.5)
        except _GoneError as error:
            self._refuse(one, error)

    def _refuse(self, one: _Waiting, error: _GoneError) -> None:
        one.end(Outcome(Refusal(error.reason, f"{one.item.name}: {error}"), 0.0))

    async def _replace(self, place: int) -> bool:
        self.restarts += 1
        await self._begun[place].end()
        try:
            self._begun[place] = await self._new_process()
        except (KubevoxError, OSError) as error:
            _log.error("worker %d ended and cannot be replaced: %s; it is tried again", place, error)
            return False
        _log.warning("worker %d ended and was replaced", place)
        return True

    async def _next_batch(self, place: int) -> list[_Waiting]:
        """What waits, as much as is this worker's share; empty where the worker has ended meanwhile."""
        while True:
            async with self._arrived:
                self._idle += 1
                try:
                    await self._arrived.wait_for(lambda: self._queue or not self._begun[place].alive)
                finally:
                    self._idle -= 1
                if not self._begun[place].alive:
                    self._arrived.notify()  # for another
                    return []
                batch = self._take(1 + self._idle)
                if self._queue:
                    self._arrived.notify()
            if batch:
                return batch

    async def _wake_all(self) -> None:
        async with self._arrived:
            self._arrived.notify_all()

    def _take(self, workers: int) -> list[_Waiting]:
        """The recordings at the head of the queue, a fair share for one of so many free workers."""
        now = time.monotonic()
        share = min(self._options.max_batch, -(-len(self._queue) // workers))
        batch: list[_Waiting] = []
        while self._queue and len(batch) < share:
            if batch and self._queue[0].item.task != "predict":
                break  # it may take long, and goes alone
            one = self._queue.popleft()
            if not one.wanted:
                continue  # nobody waits for it any more
            if now > one.deadline:
                one.fail(BusyError("not answered in time; try again", self.retry_after_s))
                continue
            batch.append(one)
            if one.item.task != "predict":
                break
        return batch

    async def _work(self, place: int, batch: Sequence[_Waiting], share: float = 1.0) -> None:
        """Have a batch answered, within a share of the time that there is for one."""
        if not batch:
            return
        begun = time.monotonic()
        alone = batch[0].item.task != "predict"
        limit = self._options.request_timeout_s if alone else share * self._options.work_timeout_s
        try:
            answers = await self._begun[place].ask([one.item for one in batch], limit)
        except _GoneError:
            await self._begun[place].end()
            raise
        self._on_batch(len(batch))
        took = (time.monotonic() - begun) / len(batch)
        self._per_recording_s += 0.05 * (took - self._per_recording_s)
        for one, answer in zip(batch, answers, strict=True):
            one.end(Outcome(answer, 1000 * (begun - one.since)))


class _GoneError(Exception):
    """A worker that ended or took too long, and so what it worked on is to blame."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Process:
    """One worker process and the way to it."""

    def __init__(self, told: Worker, entry: Entry) -> None:
        self._told, self._entry = told, entry
        self._process: Any = None
        self._channel: socket.socket | None = None
        self._listening: asyncio.Task[None] | None = None
        self._answers: asyncio.Future[list[Answer | Refusal]] | None = None
        self.greeting: Greeting

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._listening is not None and not self._listening.done()

    async def begin(self, heard: Callable[[LateDrift], None], ended: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start it; return when it has greeted.

        Raises:
            BundleError: the model cannot be loaded, or the process ended.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._channel = ours
        self._process = _context().Process(
            target=self._entry, args=(self._told, theirs, os.getpid()), name="kubevox-worker", daemon=True
        )
        await asyncio.to_thread(self._process.start)
        theirs.close()
        try:
            async with asyncio.timeout(_START_S):
                said = await self._receive()
        except TimeoutError:
            raise BundleError(f"a worker for {self._told.model_uri} was not ready within {_START_S:g} s") from None
        except ConnectionError:
            raise BundleError(f"a worker for {self._told.model_uri} ended while it started") from None
        if isinstance(said, Failure):
            raise BundleError(said.message)
        assert isinstance(said, Greeting)  # noqa: S101 - what a worker says first
        self.greeting = said
        self._listening = asyncio.create_task(self._listen(heard))
        self._listening.add_done_callback(lambda task: None if task.cancelled() else _run(ended()))

    async def ask(self, items: Sequence[Item], timeout_s: float) -> list[Answer | Refusal]:
        """Its answers to a batch.

        Raises:
            _GoneError: it ended, or did not answer in time and was ended.
        """
        assert self._channel is not None  # noqa: S101 - it has begun
        self._answers = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_sendall(self._channel, pack_items(items))
                return await self._answers
        except TimeoutError:
            raise _GoneError("timeout", f"could not be worked on within {timeout_s:g} s") from None
        except ConnectionError:
            raise _GoneError("crashed", "ended the process that decoded it; the file is damaged") from None
        finally:
            self._answers.cancel()

    async def end(self) -> None:
        """End it at once; it holds nothing that could be lost."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        if self._channel is not None:
            self._channel.close()
        if self._process is not None and self._process.pid is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.join, 5.0)

    async def _listen(self, heard: Callable[[LateDrift], None]) -> None:
        try:
            while True:
                said = await self._receive()
                if isinstance(said, LateDrift):
                    heard(said)
                elif isinstance(said, list) and self._answers is not None and not self._answers.done():
                    self._answers.set_result(said)
        except ConnectionError as error:
            if self._answers is not None and not self._answers.done():
                self._answers.set_exception(error)

    async def _receive(self) -> Greeting | Failure | LateDrift | list[Answer | Refusal]:
        head = await self._exactly(HEADER.size)
        return said_from(await self._exactly(HEADER.unpack(head)[0]))

    async def _exactly(self, size: int) -> bytearray:
        assert self._channel is not None  # noqa: S101 - it has begun
        loop, content = asyncio.get_running_loop(), bytearray(size)
        view, at = memoryview(content), 0
        while at < size:
            got = await loop.sock_recv_into(self._channel, view[at:])
            if not got:
                raise ConnectionResetError("the worker ended")
            at += got
        return content


_running: set[asyncio.Task[None]] = set()


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Have it done soon; the loop itself holds tasks only weakly."""
    task = asyncio.get_running_loop().create_task(work)
    _running.add(task)
    task.add_done_callback(_running.discard)


def _context() -> Any:
    """Workers are forked from a process that has imported torch and the library, and has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kubevox.serving.worker"])
    return context
