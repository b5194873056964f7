"""What is wanted of a local platform, and what is in force: two JSON files in the platform's folder.

    <work dir>/serving/<model>/spec.json     what is wanted; written by a rollout, or by ``kubevox serve``
                               status.json   what is in force; written by the supervisor only
                               lock          held by the supervisor for as long as it lives
                               logs/         what the servers say

Both files appear whole, by a rename. The spec outlives everybody: a supervisor that starts takes it up again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from kubevox import storage
from kubevox.config import Section
from kubevox.deployment.backend import ServedVersion
from kubevox.errors import ConfigError, DeploymentError

__all__ = [
    "PlatformFolder",
    "PlatformSpec",
    "PlatformStatus",
    "ServerStatus",
    "WantedServer",
    "platform_folder",
]

_Document = TypeVar("_Document", bound=Section)


class WantedServer(Section):
    """A model server that shall run.

    Attributes:
        version: the registered version's number.
        bundle_uri: what it serves.
        bundle: the same, and it means so in every working directory.
        command: what starts it; the arguments ``{model}``, ``{bundle}``, ``{version}`` and ``{port}`` are filled in.
        start_timeout_s: it has so long to be ready.
        attempt: told apart from the last time that the same was wanted and failed.
    """

    version: str
    bundle_uri: str
    bundle: str
    command: list[str] = Field(min_length=1)
    start_timeout_s: float = Field(default=90.0, gt=0.0)
    attempt: int = 0

    @classmethod
    def of(cls, served: ServedVersion, command: Sequence[str], start_timeout_s: float) -> WantedServer:
        """A server of a version."""
        return cls(
            version=served.version,
            bundle_uri=served.bundle_uri,
            bundle=storage.absolute(served.bundle_uri),
            command=list(command),
            start_timeout_s=start_timeout_s,
        )

    @property
    def served(self) -> ServedVersion:
        """The version, as a rollout speaks of it."""
        return ServedVersion(self.version, self.bundle_uri)


class PlatformSpec(Section):
    """What is wanted.

    Attributes:
        generation: counts the changes.
        stable: in production.
        canary: beside it.
        canary_percent: of the requests that the canary gets.
    """

    generation: int = 0
    stable: WantedServer | None = None
    canary: WantedServer | None = None
    canary_percent: int = Field(default=0, ge=0, le=100)


class ServerStatus(Section):
    """A model server, as the supervisor finds it.

    Attributes:
        version: the registered version's number.
        bundle_uri: what it serves.
        state: ``failed`` is a canary that ended, or was not ready in time, before it ever was; ``restarting`` is one
            that will be started again.
        pid: its process; None where there is none now.
        port: on loopback.
        failures: how often it ended by itself or was not ready in time.
        last_words: of the last time that it did.
    """

    version: str
    bundle_uri: str
    state: Literal["starting", "ready", "restarting", "failed", "leaving"]
    pid: int | None = None
    port: int | None = None
    failures: int = 0
    last_words: str = ""

    @property
    def served(self) -> ServedVersion:
        """The version, as a rollout speaks of it."""
        return ServedVersion(self.version, self.bundle_uri)


class PlatformStatus(Section):
    """What is in force.

    Attributes:
        pid: the supervisor.
        host: the router's address.
        port: the router's port.
        ending: whether it was told to end.
        generation: the spec's, once all of it is in force; -1 until then for the first time.
        stable: gets the route's requests, but for the canary's share.
        canary: gets its share of them.
        canary_percent: that share.
        coming: wanted, and not yet (or never) in force.
        leaving: answering what they were given before, then to end.
    """

    pid: int
    host: str
    port: int
    ending: bool = False
    generation: int = -1
    stable: ServerStatus | None = None
    canary: ServerStatus | None = None
    canary_percent: int = 0
    coming: list[ServerStatus] = Field(default=[])
    leaving: list[ServerStatus] = Field(default=[])

    @property
    def url(self) -> str:
        """The router, for clients on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104
        return f"http://{host}:{self.port}"


@dataclass(frozen=True)
class PlatformFolder:
    """The files of one model's platform."""

    path: Path

    @property
    def logs(self) -> Path:
        """What the servers say, a file a version."""
        return self.path / "logs"

    def spec(self) -> PlatformSpec:
        """What is wanted; nothing, where nobody ever wanted anything.

        Raises:
            DeploymentError: the file is damaged.
        """
        return self._read("spec.json", PlatformSpec) or PlatformSpec()

    def spec_changed(self) -> int:
        """Another number after each change of the spec; 0 where there is none."""
        try:
            found = os.stat(self.path / "spec.json")
        except FileNotFoundError:
            return 0
        return 1 + abs(hash((found.st_ino, found.st_mtime_ns, found.st_size)))

    def status(self) -> PlatformStatus | None:
        """What the last supervisor said is in force; None before there was one.

        It holds only while :meth:`running`.

        Raises:
            DeploymentError: the file is damaged.
        """
        return self._read("status.json", PlatformStatus)

    def change(self, how: Callable[[PlatformSpec], PlatformSpec]) -> PlatformSpec:
        """Change what is wanted, one at a time; returns what is wanted then."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked("spec.lock"):
            spec = self.spec()
            wanted = how(spec)
            if wanted != spec:
                wanted = wanted.model_copy(update={"generation": spec.generation + 1})
                self._write("spec.json", wanted)
            return wanted

    def publish(self, status: PlatformStatus) -> None:
        """Say what is in force; for the supervisor only."""
        self._write("status.json", status)

    def running(self) -> bool:
        """Whether a supervisor lives, by the lock that it holds."""
        try:
            with open(self.path / "lock", "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True

    @contextlib.contextmanager
    def held(self, patience_s: float = 0.5) -> Iterator[None]:
        """Be the one supervisor of this folder for as long as the context lasts.

        Raises:
            DeploymentError: there is another.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + patience_s
        with open(self.path / "lock", "ab") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # for a moment, by somebody who looks whether it is held
                    if time.monotonic() > deadline:
                        status = self.status()
                        who = f"process {status.pid} serves it at {status.url}" if status else "another serves it"
                        raise DeploymentError(f"{self.path}: {who}; end that one first") from None
                    time.sleep(0.02)
            (self.path / "status.json").unlink(missing_ok=True)  # the last supervisor's
            yield

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(self.path / name, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self, name: str, kind: type[_Document]) -> _Document | None:
        try:
            return kind.from_json((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ConfigError, OSError, UnicodeDecodeError) as error:
            why = " ".join(str(error).split())
            raise DeploymentError(f"{self.path / name}: damaged ({why}); delete it and serve again") from None

    def _write(self, name: str, document: Section) -> None:
        unfinished = self.path / f".{name}.{os.getpid()}"
        unfinished.write_text(document.model_dump_json(indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self.path / name)


def platform_folder(model: str, tracking_uri: str, store: str) -> PlatformFolder:
    """Where the platform of a model of one registry lies.

    The registry says which version is in production, so the platform lies beside its database; where the registry is
    a server, beside the store; where that is a bucket, in ``.kubevox``.

    Args:
        model: the model's name in the URL.
        tracking_uri: MLflow's.
        store: the store.
    """
    if tracking_uri.startswith("sqlite:///"):
        work_dir = Path(tracking_uri.removeprefix("sqlite:///")).parent
    elif "://" not in store:
        work_dir = Path(store).expanduser().parent
    else:
        work_dir = Path(".kubevox")
    return PlatformFolder(work_dir.absolute() / "serving" / model)
