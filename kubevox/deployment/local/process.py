"""One model server under a supervisor: started, waited for, started again when it ends, drained before it is ended."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp

from kubevox.deployment.local.router import Upstream
from kubevox.deployment.local.servers import environment, filled_in, free_port, is_free, last_words
from kubevox.deployment.local.state import ServerStatus, WantedServer
from kubevox.processes import die_with

__all__ = ["ServerProcess"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0
_WELL_S = 60.0  # a server that lived so long starts from the shortest pause again
_ASK_EVERY_S = 0.05
_LOG_BYTES = 16 << 20  # a log that is longer begins anew; the one before is kept beside it


class ServerProcess:
    """A model server.

    Args:
        wanted: what it serves and how it is started.
        model: the model's name in the URL.
        log: where its output goes.
        grace_s: for requests in flight, and then for the process, when it is ended.
        request_timeout_s: how long it may be silent about a request.
        changed: called at every change of its state.
    """

    def __init__(
        self,
        wanted: WantedServer,
        model: str,
        log: Path,
        grace_s: float,
        request_timeout_s: float,
        changed: Callable[[], None],
    ) -> None:
        self.wanted = wanted
        self.was_ready = False
        self.persistent = False  # whether it is tried again although it never was ready
        self.upstream = Upstream(wanted.version, request_timeout_s)
        self.status = ServerStatus(version=wanted.version, bundle_uri=wanted.bundle_uri, state="starting")
        self._model, self._log, self._grace_s, self._changed = model, log, grace_s, changed
        self._port = 0  # kept from one start to the next, so that who asks this server directly finds it again
        self._life = asyncio.ensure_future(self._live())
        self._ending: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self.status.state == "ready"

    @property
    def ended(self) -> bool:
        """Whether it left, and is gone."""
        return self._ending is not None and self._ending.done()

    def leave(self, drain: bool = True) -> asyncio.Task[None]:
        """Answer what it was given, then end; nothing new may be given to it any more."""
        if self._ending is None:
            self._tell(state="leaving")
            self._ending = asyncio.ensure_future(self._leave(drain))
            self._ending.add_done_callback(lambda _: self._changed())
        return self._ending

    def keep_log_short(self) -> None:
        """Begin the log anew where it has grown long; what the process says next goes to its new beginning."""
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > _LOG_BYTES:
                self._log.with_suffix(".log.1").write_bytes(self._log.read_bytes())
                os.truncate(self._log, 0)

    async def _leave(self, drain: bool) -> None:
        if drain:
            await self.upstream.drained(self._grace_s)
        self._life.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._life
        await self.upstream.close()

    async def _live(self) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                reason = await self._run_once()
            except OSError as error:  # no room for its log, or no more descriptors
                reason = f"cannot be started ({error})"
            self._tell(failures=self.status.failures + 1, last_words=reason, pid=None)
            if not (self.was_ready or self.persistent):
                self._tell(state="failed")
                return
            self._tell(state="restarting")
            if time.monotonic() - began > _WELL_S:
                pause = _FIRST_PAUSE_S
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            self._tell(state="starting")

    async def _run_once(self) -> str:
        """From the start of a process to its end; returns why it ended, or why it was ended."""
        port = self._port = self._port if is_free(self._port) else free_port()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "ab+") as log:  # appending, so that the file can be cut short under the process
            began_at = log.seek(0, os.SEEK_END)
            try:
                process = await asyncio.create_subprocess_exec(
                    *filled_in(self.wanted.command, self._model, self.wanted.version, self.wanted.bundle, port),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment(),
                    # A group of its own: Ctrl-C is the supervisor's, which ends its servers when they are drained.
                    start_new_session=True,
                    preexec_fn=functools.partial(die_with, os.getpid()),
                )
            except OSError as error:
                return f"cannot be started ({self.wanted.command[0]}: {error.strerror or error})"
            try:
                self._tell(pid=process.pid, port=port)
                await self.upstream.open(port)
                if await self._until_ready(process, port):
                    self.was_ready = self.upstream.alive = True
                    self._tell(state="ready")
                    await process.wait()
                    return f"ended{_how(process)}: {last_words(log, began_at)}"
                if process.returncode is not None:
                    return f"ended at start{_how(process)}: {last_words(log, began_at)}"
                return f"not ready within {self.wanted.start_timeout_s:g} s: {last_words(log, began_at)}"
            finally:
                await self.upstream.close()
                await self._end(process)

    async def _until_ready(self, process: asyncio.subprocess.Process, port: int) -> bool:
        url = f"http://127.0.0.1:{port}/v2/models/{self._model}/ready"
        deadline = time.monotonic() + self.wanted.start_timeout_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0), trust_env=False) as session:
            while process.returncode is None and time.monotonic() < deadline:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(url) as answer:
                        if answer.status == 200:
                            return True
                await asyncio.sleep(_ASK_EVERY_S)
        return False

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """End the process and what it started, if it has not ended."""
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self._grace_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers, where it left any
        await process.wait()

    def _tell(self, **changes: object) -> None:
        leaving = {"state": "leaving"} if self.status.state == "leaving" else {}
        self.status = self.status.model_copy(update=changes | leaving)
        self._changed()


def _how(process: asyncio.subprocess.Process) -> str:
    code = process.returncode
    if code is None or code == 0:
        return ""
    if code > 0:
        return f" (exit code {code})"
    with contextlib.suppress(ValueError):
        return f" ({signal.Signals(-code).name})"
    return f" (signal {-code})"
