"""A rollout's way to the local platform: it says what is wanted, and waits until that is in force."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kubevox.deployment.backend import ChallengerError, Deployed, Endpoint, Endpoints, ServedVersion
from kubevox.deployment.local.servers import environment, last_words, server_command
from kubevox.deployment.local.state import PlatformFolder, PlatformSpec, PlatformStatus, ServerStatus, WantedServer
from kubevox.errors import DeploymentError

__all__ = ["LocalBackend"]

_LOOK_EVERY_S = 0.02
_START_S = 30.0  # for a supervisor, which imports little


class LocalBackend:
    """The local platform of a model as a :class:`~kubevox.deployment.backend.Backend`.

    Where a platform runs (``kubevox serve``), that one is used and stays. Otherwise one is started, which takes up what
    the spec says, and which ends with :meth:`close`, or with this process, however that ends.

    Args:
        model: the model's name in the URL.
        work_dir: the platform's files are in ``serving/<model>`` under it.
        start_timeout_s: for a model server to be ready.
        request_timeout_s: for a request through the route, and to drain.
        command: starts a model server, with ``{model}``, ``{bundle}``, ``{version}`` and ``{port}`` as arguments that
            are filled in; None: as the version in production was started, or else a server with its defaults.
        canary_command: likewise, for a challenger; None: as any other.
        stable: the registry's version in production, for a platform that was never told of one.
        grace_s: for requests in flight when something is ended.
    """

    name = "local"

    def __init__(
        self,
        model: str,
        work_dir: str | Path,
        start_timeout_s: float,
        request_timeout_s: float,
        command: Sequence[str] | None = None,
        canary_command: Sequence[str] | None = None,
        stable: ServedVersion | None = None,
        grace_s: float = 20.0,
    ) -> None:
        self.model = model
        self.folder = PlatformFolder(Path(work_dir).absolute() / "serving" / model)
        self._start_timeout_s, self._request_timeout_s = start_timeout_s, request_timeout_s
        self._command = list(command) if command is not None else None
        self._canary_command = list(canary_command) if canary_command is not None else self._command
        self._stable, self._grace_s = stable, grace_s
        self._own: subprocess.Popen[bytes] | None = None

    def observe(self) -> Deployed:
        """What is in force now; of a platform that has just been started, what is once its servers had their time.

        Raises:
            DeploymentError: the version in production does not start.
        """
        status = self._settled()
        return Deployed(
            stable=status.stable.served if status.stable is not None else None,
            canary=status.canary.served if status.canary is not None else None,
            canary_percent=status.canary_percent,
        )

    def start_canary(self, canary: ServedVersion) -> None:
        """Bring a challenger up beside the version in production, with no share of the route; return when it is ready.

        Raises:
            ChallengerError: it ended at start, or was not ready in time. It is gone then.
            DeploymentError: it is the version in production, or the platform does not start.
        """
        self._running()

        def start(spec: PlatformSpec) -> PlatformSpec:
            if spec.stable is not None and spec.stable.served == canary:
                raise DeploymentError(f"version {canary.version} of {self.model} is in production already")
            if spec.canary is not None and spec.canary.served == canary and not self._has_failed(spec.canary):
                return spec.model_copy(update={"canary_percent": 0})
            attempt = spec.canary.attempt + 1 if spec.canary is not None else spec.generation + 1
            command = self._canary_command or (spec.stable.command if spec.stable is not None else server_command())
            wanted = WantedServer.of(canary, command, self._start_timeout_s).model_copy(update={"attempt": attempt})
            return spec.model_copy(update={"canary": wanted, "canary_percent": 0})

        spec = self.folder.change(start)

        def ready(status: PlatformStatus) -> bool:
            self._refuse_failing(status)
            for server in status.coming:
                if server.served == canary and server.state == "failed":
                    raise ChallengerError(f"version {canary.version} of {self.model} {server.last_words}")
            there = status.canary is not None and status.canary.served == canary and status.canary.state == "ready"
            return there and status.generation >= spec.generation

        try:
            patience_s, what = self._start_timeout_s + self._grace_s, f"version {canary.version} to be ready"
            self._until(ready, patience_s, what, ChallengerError)
        except DeploymentError:
            self.folder.change(lambda spec: _without(spec, canary))
            raise

    def set_canary_percent(self, percent: int) -> None:
        """Give the canary a share of the route, 0 to 100; return when that is in force.

        Raises:
            DeploymentError: there is no canary, or there is no such share.
        """
        if not 0 <= percent <= 100:
            raise DeploymentError(f"{percent} % of the requests cannot be had; a share is 0 to 100")
        self._running()

        def set_(spec: PlatformSpec) -> PlatformSpec:
            if spec.canary is None and percent:
                raise DeploymentError(f"{self.model} has no canary that could get {percent} % of the requests")
            return spec.model_copy(update={"canary_percent": percent})

        spec = self.folder.change(set_)
        self._until(
            lambda status: status.generation >= spec.generation, self._start_timeout_s, f"{percent} % to be in force"
        )

    def endpoints(self) -> Endpoints:
        """The ways to what is deployed now."""
        status = self._settled()
        return Endpoints(Endpoint(status.url), _endpoint(status.stable), _endpoint(status.canary))

    def promote(self) -> None:
        """Make the canary the version in production, with all of the route; return when the one before has ended.

        Raises:
            DeploymentError: it does not answer, or there is neither a canary nor a version in production; or it was
                not in force in time, and where the version before still has the route all is as it was.
        """
        status, before = self._settled(), PlatformSpec()

        def promote(spec: PlatformSpec) -> PlatformSpec:
            nonlocal before
            before = spec
            if spec.canary is None:
                if spec.stable is None:
                    raise DeploymentError(f"{self.model} has no canary to promote")
                return spec
            version, canary = spec.canary.version, status.canary
            if canary is None or canary.served != spec.canary.served:
                raise DeploymentError(f"version {version} of {self.model} cannot be promoted: it is not in force")
            if canary.state != "ready":
                raise DeploymentError(f"version {version} of {self.model} cannot be promoted: it {canary.last_words}")
            return spec.model_copy(update={"stable": spec.canary, "canary": None, "canary_percent": 0})

        wanted = self.folder.change(promote)
        try:
            self._until_alone(wanted)
        except DeploymentError:
            # The canary has died in that very moment. Left so, nobody would start the version before again.
            self.folder.change(lambda spec: self._unpromoted(spec, wanted, before))
            raise

    def take_back(self) -> None:
        """Remove the canary; the version in production has all of the route again; return when the canary has ended."""
        self._running()
        self._until_alone(
            self.folder.change(lambda spec: spec.model_copy(update={"canary": None, "canary_percent": 0}))
        )

    def close(self) -> None:
        """End the platform, if it was only there for this rollout; what was in flight is answered."""
        if self._own is None:
            return
        own, self._own = self._own, None
        if own.stdin is not None:
            own.stdin.close()
        own.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            own.wait(timeout=3 * self._grace_s)
        own.kill()
        own.wait()

    def _unpromoted(self, spec: PlatformSpec, wanted: PlatformSpec, before: PlatformSpec) -> PlatformSpec:
        """What was wanted before a promotion, where that has not come into force and nobody wants anything else."""
        status = self.folder.status()
        in_force = status.stable.served if status is not None and status.stable is not None else None
        if spec != wanted or before.stable is None or in_force != before.stable.served:
            return spec
        return before.model_copy(update={"generation": spec.generation})

    def _has_failed(self, canary: WantedServer) -> bool:
        status = self.folder.status()
        return status is not None and any(
            server.served == canary.served and server.state == "failed" for server in status.coming
        )

    def _until_alone(self, spec: PlatformSpec) -> None:
        self._until(
            lambda status: status.generation >= spec.generation and not status.leaving,
            self._request_timeout_s + 3 * self._grace_s,
            "the version that has left to end",
        )

    def _settled(self) -> PlatformStatus:
        """What is in force, once nothing that is wanted is still starting for the first time."""

        def settled(status: PlatformStatus) -> bool:
            self._refuse_failing(status)
            return status.generation >= 0 or all(server.state == "failed" for server in status.coming)

        return self._until(settled, 2 * self._start_timeout_s, "what is wanted to be in force")

    def _refuse_failing(self, status: PlatformStatus) -> None:
        """Do not wait for a version in production that ends whenever it is started."""
        if status.stable is None:
            for server in status.coming:
                if server.failures and server.state != "failed":
                    raise DeploymentError(f"version {server.version} of {self.model} {server.last_words}")

    def _until(
        self,
        condition: Callable[[PlatformStatus], bool],
        timeout_s: float,
        what: str,
        error: type[DeploymentError] = DeploymentError,
    ) -> PlatformStatus:
        """The platform's status as soon as it fulfils the condition; one that ends meanwhile is started again."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self._running()
            if condition(status):
                return status
            if time.monotonic() > deadline:
                servers = (status.stable, status.canary, *status.coming, *status.leaving)
                stuck = [f"version {one.version} is {one.state}" for one in servers if one and one.state != "ready"]
                why = "; ".join(stuck) or "nothing is on its way"
                raise error(f"{self.model}: waited {timeout_s:g} s for {what} ({why})")
            time.sleep(_LOOK_EVERY_S)

    def _running(self) -> PlatformStatus:
        """The status of the platform that runs; one is started where none does.

        Raises:
            DeploymentError: it did not start.
        """
        deadline, started = time.monotonic() + _START_S, False
        while time.monotonic() < deadline:
            if self.folder.running():
                status = self.folder.status()
                if status is not None and not status.ending and _lives(status.pid):
                    return status
            elif self._own is not None and self._own.poll() is None:
                pass  # it has not got so far
            elif not started:
                self._start()
                started = True
            else:
                raise DeploymentError(f"the platform of {self.model} did not start: {self._said()}")
            time.sleep(_LOOK_EVERY_S)
        raise DeploymentError(f"the platform of {self.model} did not start within {_START_S:g} s: {self._said()}")

    def _start(self) -> None:
        """Start a platform that lives as long as this process, or until :meth:`close`."""
        self.folder.logs.mkdir(parents=True, exist_ok=True)
        self.folder.change(self._taken_up)
        command = [sys.executable, "-m", "kubevox.deployment.local", "--model", self.model]
        command += ["--folder", str(self.folder.path), "--grace_s", str(self._grace_s)]
        command += ["--request_timeout_s", str(self._request_timeout_s), "--leash"]
        if self._own is not None and self._own.stdin is not None:  # one that was killed
            self._own.stdin.close()
        with open(self._log, "wb") as log:
            self._own = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment(), start_new_session=True
            )

    def _taken_up(self, spec: PlatformSpec) -> PlatformSpec:
        """What was wanted when the last platform ended, with what the registry knows beside."""
        if spec.stable is None and self._stable is not None:
            if spec.canary is not None and spec.canary.served == self._stable:
                return spec.model_copy(update={"stable": spec.canary, "canary": None, "canary_percent": 0})
            stable = WantedServer.of(self._stable, self._command or server_command(), self._start_timeout_s)
            return spec.model_copy(update={"stable": stable})
        if spec.stable is not None and self._command is not None:  # not as the last one started it
            stable = WantedServer.of(spec.stable.served, self._command, self._start_timeout_s)
            return spec.model_copy(update={"stable": stable})
        return spec

    @property
    def _log(self) -> Path:
        return self.folder.logs / "supervisor.log"

    def _said(self) -> str:
        try:
            with open(self._log, "rb") as log:
                return last_words(log)
        except OSError:
            return "it said nothing"


def _without(spec: PlatformSpec, canary: ServedVersion) -> PlatformSpec:
    if spec.canary is None or spec.canary.served != canary:
        return spec
    return spec.model_copy(update={"canary": None, "canary_percent": 0})


def _endpoint(server: ServerStatus | None) -> Endpoint | None:
    return Endpoint(f"http://127.0.0.1:{server.port}") if server is not None and server.port is not None else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
