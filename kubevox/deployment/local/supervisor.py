"""The process that keeps a local platform as its spec says: the stand-in for KServe's controller.

It compares what is wanted with what runs, starts what is missing, and directs the route only to what is ready; what is
no longer wanted answers what it was given and is ended. When it is killed, its servers go with it, and the next one
takes the spec up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kubevox.deployment.local.listening import RouteServer, listen
from kubevox.deployment.local.process import ServerProcess
from kubevox.deployment.local.router import Router
from kubevox.deployment.local.state import PlatformFolder, PlatformSpec, PlatformStatus, WantedServer
from kubevox.errors import DeploymentError

__all__ = ["Platform", "supervise"]

_LOOK_EVERY_S = 0.05  # at the spec
_LAME_S = 0.3  # from telling clients to use no connection again, to closing the port


@dataclass(frozen=True)
class Platform:
    """How a platform is run.

    Attributes:
        model: the model's name in the URL.
        folder: its files.
        host: the address that the route listens on.
        port: the port; 0 for any.
        grace_s: for requests in flight when a server, or all, is ended.
        request_timeout_s: how long a server may be silent about a request.
        must_start: end when the version in production fails at its first start, in place of trying again.
    """

    model: str
    folder: PlatformFolder
    host: str = "127.0.0.1"
    port: int = 0
    grace_s: float = 20.0
    request_timeout_s: float = 60.0
    must_start: bool = False


def supervise(platform: Platform, say: Callable[[str], None], leash: int | None = None) -> None:
    """Keep a platform until a signal ends it.

    Args:
        platform: which, and how.
        say: told what changes, a line each.
        leash: a pipe's descriptor; the platform ends when nobody holds the pipe's other end any more.

    Raises:
        DeploymentError: the folder has a supervisor, the port is taken, or the version in production did not start
            and was to.
    """
    with platform.folder.held():
        platform.folder.spec()  # a damaged one is refused here, and not served as if nothing were wanted
        listener = listen(platform.host, platform.port)
        try:
            import uvloop
        except ImportError:  # uvicorn[standard] brings it, where there is one
            asyncio.run(_Supervisor(platform, listener, say).run(leash))
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_Supervisor(platform, listener, say).run(leash))


class _Supervisor:
    def __init__(self, platform: Platform, listener: socket.socket, say: Callable[[str], None]) -> None:
        self._platform, self._listener, self._say = platform, listener, say
        self._folder = platform.folder
        self._host, self._port = listener.getsockname()[:2]
        self._router = Router(platform.model, platform.request_timeout_s)
        self._router.status = lambda: self._status().model_dump(mode="json")
        self._servers: dict[str, ServerProcess] = {}  # those that run for what is wanted, by what is wanted
        self._leaving: list[ServerProcess] = []
        self._stable: ServerProcess | None = None  # these three are in force
        self._canary: ServerProcess | None = None
        self._percent = 0
        self._generation = -1
        self._ending = False
        self._told: PlatformStatus | None = None
        self._failures: dict[str, int] = {}
        self._wanted, self._spec_read, self._silenced = PlatformSpec(), -1, False

    async def run(self, leash: int | None) -> None:
        self._changed, self._stop = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
                loop.add_signal_handler(number, self._end_soon, number)
        if leash is not None:
            loop.add_reader(leash, self._watch_leash, leash)
        server = RouteServer(self._router, self._platform.grace_s)
        routing = asyncio.ensure_future(server.serve(sockets=[self._listener]))
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            while not stopped.done():
                self._reconcile(self._spec())
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({changed, stopped, routing}, timeout=_LOOK_EVERY_S, return_when="FIRST_COMPLETED")
                changed.cancel()
                self._changed.clear()
                if routing.done():
                    routing.result()
                    raise DeploymentError("the router ended by itself; serve again")
        finally:
            await self._end(server, routing)

    def _spec(self) -> PlatformSpec:
        """What is wanted; what was, for as long as the file cannot be read."""
        changed = self._folder.spec_changed()
        if changed != self._spec_read:
            was_there, self._spec_read = self._spec_read > 0, changed
            try:
                if not changed and was_there:
                    raise DeploymentError(f"{self._folder.path}: the spec is gone")
                self._wanted = self._folder.spec()
            except DeploymentError as error:
                self._say(f"{error}; going on with what was wanted before")
        return self._wanted

    def _reconcile(self, spec: PlatformSpec) -> None:
        stable, canary = self._server(spec.stable), self._server(spec.canary)
        if stable is not None:
            stable.persistent = True
        if stable is None or stable.ready:
            self._stable = stable  # until then the one before stays, if there is one
        if canary is not self._canary:
            self._canary = canary if canary is not None and canary.ready else None
        self._percent = spec.canary_percent if self._canary is not None else 0
        self._router.direct(_upstream(self._stable), _upstream(self._canary), self._percent)
        wanted = {id(stable), id(canary), id(self._stable)}
        for key, server in list(self._servers.items()):
            server.keep_log_short()
            if id(server) not in wanted:
                del self._servers[key]
                self._leaving.append(server)
                server.leave()
        self._leaving = [server for server in self._leaving if not server.ended]
        if self._stable is stable and self._canary is canary:
            self._generation = spec.generation
        self._tell()
        if self._platform.must_start and stable is not None and not stable.was_ready and stable.status.failures:
            raise DeploymentError(
                f"version {stable.wanted.version} of {self._platform.model} {stable.status.last_words}"
            )

    def _server(self, wanted: WantedServer | None) -> ServerProcess | None:
        if wanted is None:
            return None
        key = wanted.to_json()
        if key not in self._servers:
            log = self._folder.logs / f"{re.sub(r'[^A-Za-z0-9._-]', '_', wanted.version)}.log"
            platform = self._platform
            self._servers[key] = ServerProcess(
                wanted, platform.model, log, platform.grace_s, platform.request_timeout_s, self._changed.set
            )
        return self._servers[key]

    def _status(self) -> PlatformStatus:
        in_force = (self._stable, self._canary)
        return PlatformStatus(
            pid=os.getpid(),
            host=self._host,
            port=self._port,
            ending=self._ending,
            generation=self._generation,
            stable=self._stable.status if self._stable is not None else None,
            canary=self._canary.status if self._canary is not None else None,
            canary_percent=self._percent,
            coming=[server.status for server in self._servers.values() if server not in in_force],
            leaving=[server.status for server in self._leaving],
        )

    def _tell(self) -> None:
        status = self._status()
        if status == self._told:
            return
        try:
            self._folder.publish(status)
        except OSError as error:  # tried again at the next look; what is served is served meanwhile
            if not self._silenced:
                self._say(f"{self._folder.path}: the status cannot be written ({error.strerror})")
            self._silenced = True
            return
        before, self._told, self._silenced = self._told, status, False
        for line in self._news(before, status):
            self._say(line)

    def _news(self, before: PlatformStatus | None, now: PlatformStatus) -> list[str]:
        """What a person who watches wants to know of a change."""
        lines = []
        stable, canary = (now.stable and now.stable.version), (now.canary and now.canary.version)
        stable_before = before.stable.version if before and before.stable else None
        canary_before = before.canary.version if before and before.canary else None
        if stable != stable_before and stable is not None:
            lines.append(
                f"serving {self._platform.model} version {stable} at {now.url}/v1/models/{self._platform.model}:predict"
            )
        if canary is not None:
            if canary != canary_before:
                lines.append(f"version {canary} is ready beside it")
            if now.canary_percent != (before.canary_percent if before and canary == canary_before else 0):
                lines.append(f"version {canary} gets {now.canary_percent} % of the requests")
        elif canary_before is not None and stable != canary_before:
            lines.append(f"version {canary_before} was taken back")
        for server in self._servers.values():
            failures = server.status.failures
            if failures > self._failures.get(server.wanted.version, 0):
                lines.append(f"version {server.wanted.version} {server.status.last_words}")
            self._failures[server.wanted.version] = failures
        return lines

    def _end_soon(self, number: int) -> None:
        if self._stop.is_set() and number == signal.SIGINT:  # Ctrl-C again: at once; the servers go with this process
            os._exit(130)
        self._stop.set()

    def _watch_leash(self, leash: int) -> None:
        if not os.read(leash, 1024):
            asyncio.get_running_loop().remove_reader(leash)
            self._stop.set()

    async def _end(self, server: RouteServer, routing: asyncio.Future[None]) -> None:
        """Answer what is in flight, then end the servers."""
        self._ending = self._router.closing = True
        with contextlib.suppress(OSError):
            self._folder.publish(self._status())
        if not routing.done():
            if server.server_state.connections:
                await asyncio.sleep(_LAME_S)
            server.should_exit = True
            await asyncio.wait({routing})
        servers = [*self._servers.values(), *self._leaving]
        await asyncio.gather(*(one.leave(drain=False) for one in servers), return_exceptions=True)


def _upstream(server: ServerProcess | None) -> Any:
    return server.upstream if server is not None else None
