"""Work on many items side by side: worker processes, what becomes of them, and how they treat their memory."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

__all__ = ["CRASHED", "Workers", "chunks", "cores", "die_with", "keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

CRASHED: Any = object()
"""What :meth:`Workers.map` gives for an item that ended the process which worked on it."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Workers(Generic[_Item, _Result]):
    """A process a core, each with the same function; on systems other than Linux a thread a core.

    The processes are forked, so that what the function refers to is there without being sent. An item that ends its
    process (a codec that crashes) costs that item and no other.

    Args:
        work: what is done with an item; items and results are sent between processes, an exception comes back as such.
        workers: how many; None: one a core.
        chunk: items sent at a time.
    """

    def __init__(self, work: Callable[[_Item], _Result], workers: int | None = None, chunk: int = 16) -> None:
        self._work, self._chunk = work, chunk
        self._workers = workers or cores()

    def map(self, items: Iterable[_Item]) -> Iterator[_Result]:
        """The results in the items' order, or :data:`CRASHED`; no more items are drawn than are being worked on."""
        pool = self._pool(self._workers)
        pending: collections.deque[tuple[list[_Item], Future[list[_Result]]]] = collections.deque()
        left = chunks(items, self._chunk)
        try:
            while True:
                for chunk in itertools.islice(left, self._workers + 2 - len(pending)):
                    pending.append((chunk, self._submit(pool, chunk)))
                if not pending:
                    return
                chunk, future = pending.popleft()
                try:
                    results = future.result()
                except BrokenProcessPool:
                    # One of several chunks did it: this one is gone through item by item, the others begin anew.
                    pool.shutdown()
                    results, pool = self._one_by_one(chunk), self._pool(self._workers)
                    for place, (other, _) in enumerate(list(pending)):
                        pending[place] = (other, self._submit(pool, other))
                yield from results
        finally:
            for _, future in pending:
                future.cancel()
            wait([future for _, future in pending])
            pool.shutdown()

    def _one_by_one(self, chunk: list[_Item]) -> list[_Result]:
        results: list[_Result] = []
        pool = self._pool(1)
        for item in chunk:
            try:
                results += self._submit(pool, [item]).result()
            except BrokenProcessPool:
                results.append(CRASHED)
                pool = self._pool(1)
        pool.shutdown()
        return results

    def _submit(self, pool: Executor, chunk: list[_Item]) -> Future[list[_Result]]:
        try:
            return pool.submit(_work_on, chunk, self._here)
        except BrokenProcessPool as error:  # by a chunk given out before; whoever waits for this one learns it
            broken: Future[list[_Result]] = Future()
            broken.set_exception(error)
            return broken

    @property
    def _here(self) -> Callable[[_Item], _Result] | None:
        """The function, where the worker shares this process; a forked one was told when it began."""
        return None if _FORKS else self._work

    def _pool(self, workers: int) -> Executor:
        if _FORKS:
            return ProcessPoolExecutor(
                workers, multiprocessing.get_context("fork"), _begin_forked, (self._work, os.getpid())
            )
        return ThreadPoolExecutor(workers, "kubevox")


_FORKS = sys.platform == "linux"
_inherited: Callable[[Any], Any] | None = None


def _begin_forked(work: Callable[[Any], Any], parent: int) -> None:
    global _inherited
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    keep_freed_memory()
    gc.freeze()  # what is inherited is neither looked through nor, by that, copied
    _inherited = work


def _work_on(chunk: list[Any], work: Callable[[Any], Any] | None) -> list[Any]:
    work = work or _inherited
    assert work is not None  # noqa: S101 - a forked worker began with it
    return [work(item) for item in chunk]


def chunks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """The items, so many at a time; the last are as many as are left."""
    drawn = iter(items)
    while chunk := list(itertools.islice(drawn, size)):
        yield chunk


def cores() -> int:
    """How many cores this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, up to 256 MB, instead of giving it back to the system at once.

    Every batch takes and frees the same few arrays of some megabytes. By default glibc returns them to the system each
    time, and touching their pages anew takes as long as all of the arithmetic: 540 page faults a recording, and twice
    the time. For processes that do nothing but compute; where there is no glibc, nothing happens.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, 256 << 20)
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes


def die_with(parent: int) -> None:
    """Have the system end this process when its parent is gone, however that ended.

    A worker that waits for work would not notice: its siblings hold the other end of the pipe open.

    Args:
        parent: the parent's process id.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before that was said
        os._exit(1)
