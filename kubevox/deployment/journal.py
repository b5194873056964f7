"""What a rollout writes down before and after everything that it does, so that any moment is one to go on from.

    <store>/rollouts/<model>/NNNNNN.json   the log of a model's rollouts; each entry is written once, by one process
                             alive.json    who rolls out now, and his last sign of life; replaced every few seconds

The log is also what keeps two rollouts of one model apart: the first entry of a process claims the log, its last one
releases it, and an entry that somebody else has written meanwhile tells a process that it has lost its claim. A claim
whose process was killed is taken over: on the same machine at once, from another after the lease.

The journal tells what was intended. What is in force only the back end knows.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from kubevox import storage
from kubevox.deployment.backend import ServedVersion
from kubevox.deployment.record import Conformity, State, StepReport, Verdict
from kubevox.errors import DeploymentError, StorageError
from kubevox.provenance import content_hash

__all__ = ["Ending", "Entry", "Journal", "OvertakenError", "Owner", "Start"]

_ENTRY = re.compile(r"\d{6,}\.json")
_ALIVE = "alive.json"
_BEATS = 3  # signs of life a lease


class OvertakenError(DeploymentError):
    """Another process has the rollout now; whoever gets this keeps his hands off."""


@dataclass(frozen=True)
class Owner:
    """A process that rolls out.

    Attributes:
        host: the machine's name.
        machine: tells one running machine, or container, from another.
        pid: the process.
        began: when the process began, in the machine's own count; a number may be given to another process later.
    """

    host: str
    machine: str
    pid: int
    began: str

    @classmethod
    def this(cls) -> Owner:
        """The process that asks."""
        return cls(socket.gethostname(), _machine(), os.getpid(), _began(os.getpid()) or "")

    @property
    def gone(self) -> bool | None:
        """Whether the process has ended; None where that cannot be told from here."""
        if self.machine != _machine():
            return None
        return _began(self.pid) != self.began


@dataclass(frozen=True)
class Start:
    """What a rollout set out with.

    Attributes:
        challenger: who wants to be champion.
        stable: the version in production.
        evaluation: by which the challenger was accepted.
        backend: where the servers run.
        new: whether this rollout registered the challenger.
        synthetic: whether it was trained on machines' voices.
        config: ``deploy.rollout``.
    """

    challenger: ServedVersion
    stable: ServedVersion | None
    evaluation: str = ""
    backend: str = ""
    new: bool = False
    synthetic: bool = False
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class Ending:
    """How a rollout ends, and why."""

    outcome: Verdict
    criterion: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        number: its place in the log, from 1.
        at: when it was written, in seconds since 1970.
        event: the state that the rollout comes to, or who has the log.
        rollout: names the rollout; "" between two of them.
        percent: of the route that the challenger is meant to have.
        note: why, where that is not plain.
        owner: who claims or releases the log.
        start: with ``registered``.
        conformity: with ``conforming``.
        report: with ``passed``, with ``taking_back`` after a step, and with ``promoting`` of a first version.
        ending: with ``taking_back``, ``rolled_back`` and ``champion``.
        uri: with ``recorded``: the record.
        bundle: the challenger's, so that whoever erases a model finds all that names it.
    """

    number: int
    at: float
    event: State | Literal["claimed", "released"]
    rollout: str = ""
    percent: int = 0
    note: str = ""
    owner: Owner | None = None
    start: Start | None = None
    conformity: Conformity | None = None
    report: StepReport | None = None
    ending: Ending | None = None
    uri: str = ""
    bundle: str = ""


_ENTRIES: TypeAdapter[Entry] = TypeAdapter(Entry)


class Journal:
    """The log of a model's rollouts; use as a context manager, which has it for itself.

    Args:
        store: a folder or ``s3://bucket/prefix``.
        model: the registered model's name.
        lease_s: after so long without a sign of life another machine's process may take over.

    Attributes:
        last_sign: of life, of the process that had the log before, in seconds since 1970.

    Raises:
        DeploymentError: (on entering) another process is rolling the model out.
    """

    def __init__(self, store: str, model: str, lease_s: float) -> None:
        self.model = model
        self._folder = storage.join(store, "rollouts", re.sub(r"^\.", "%2E", quote(model, safe="")))
        self._lease_s = lease_s
        self._last = 0
        self._entries: list[Entry] = []
        self.last_sign = 0.0
        self._resting = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Journal:
        claim = self._read()
        if claim is not None and claim.owner is not None:
            self.last_sign = max(claim.at, self._last_sign(claim.owner))
            if claim.event == "claimed":
                self._refuse_living(claim.owner)
        self.append("claimed", owner=Owner.this())
        self._beat()
        self._heart = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resting.set()
        if self._heart is not None:
            self._heart.join()
        # What has been taken over is not this process' to release, and a claim that stays is found to be stale.
        with contextlib.suppress(DeploymentError, StorageError):
            self.append("released", owner=Owner.this())

    @property
    def rollout(self) -> Sequence[Entry]:
        """The states of the last rollout, in order; none where there never was one."""
        return self._entries

    @property
    def unfinished(self) -> bool:
        """Whether the last rollout has not come to its end."""
        return bool(self._entries) and self._entries[-1].event != "recorded"

    def begin(self, start: Start) -> Entry:
        """Write the first entry of a new rollout."""
        self._entries = []
        name = content_hash(self.model, start.challenger.bundle_uri, self._last, time.time())
        return self.append("registered", rollout=name, start=start, bundle=start.challenger.bundle_uri)

    def append(self, event: State | Literal["claimed", "released"], **what: Any) -> Entry:
        """Write an entry.

        Raises:
            OvertakenError: another process has taken the log over.
            StorageError: the store does not answer.
        """
        if self._entries and "rollout" not in what and event not in ("claimed", "released"):
            what |= {"rollout": self._entries[-1].rollout, "bundle": self._entries[-1].bundle}
        entry = Entry(self._last + 1, time.time(), event, **what)
        data = _ENTRIES.dump_json(entry, exclude_defaults=True, indent=1)
        if not storage.create(storage.join(self._folder, f"{entry.number:06d}.json"), data):
            raise OvertakenError(
                f"{self.model}: another process has taken this rollout over meanwhile; see {self._folder}"
            )
        self._last = entry.number
        if event not in ("claimed", "released"):
            self._entries.append(entry)
        return entry

    def _read(self) -> Entry | None:
        """Read the last rollout; returns who last claimed or released the log."""
        names = [name for name in storage.list_names(self._folder) if _ENTRY.fullmatch(name)]
        self._last = int(names[-1].removesuffix(".json")) if names else 0
        found: list[Entry] = []
        claim: Entry | None = None
        for name in reversed(names):
            entry = self._entry(name)
            if entry.event not in ("claimed", "released"):
                if not found or found[-1].event != "registered":
                    found.append(entry)
            elif claim is None:
                claim = entry
            if claim is not None and found and found[-1].event == "registered":
                break
        whole = bool(found) and found[-1].event == "registered"  # else its beginning was erased, with its model
        self._entries = found[::-1] if whole else []
        return claim

    def _entry(self, name: str) -> Entry:
        uri = storage.join(self._folder, name)
        try:
            return _ENTRIES.validate_json(storage.read_bytes(uri))
        except ValidationError as error:
            why = " ".join(str(error).split())[:200]
            raise DeploymentError(f"{uri}: damaged ({why}); delete the folder and run again") from None

    def _refuse_living(self, owner: Owner) -> None:
        gone, silent = owner.gone, time.time() - self.last_sign
        if gone or (gone is None and silent > self._lease_s):
            return
        who = f"{self.model} is being rolled out by process {owner.pid} on {owner.host}"
        if gone is None:
            raise DeploymentError(
                f"{who}, whose last sign of life is {max(0.0, silent):.0f} s old; run again when it has ended, or when "
                f"there was none for {self._lease_s:g} s (deploy.rollout.lease_s)"
            )
        raise DeploymentError(f"{who}; wait until it has ended")

    def _last_sign(self, owner: Owner) -> float:
        with contextlib.suppress(StorageError, ValueError, KeyError, TypeError):
            told = json.loads(storage.read_bytes(storage.join(self._folder, _ALIVE)))
            if (told["machine"], told["pid"]) == (owner.machine, owner.pid):
                return float(told["at"])
        return 0.0

    def _beat(self) -> None:
        owner = Owner.this()
        told = {"host": owner.host, "machine": owner.machine, "pid": owner.pid, "at": time.time()}
        with contextlib.suppress(StorageError):  # the next one may be heard
            storage.write_bytes(storage.join(self._folder, _ALIVE), json.dumps(told).encode())

    def _keep_beating(self) -> None:
        while not self._resting.wait(self._lease_s / _BEATS):
            self._beat()


@functools.cache
def _machine() -> str:
    """A name that two processes share when each can see whether the other lives."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _began(pid: int) -> str | None:
    """When a process of this machine began, in clock ticks since the machine did; None where there is none."""
    try:
        # proc(5): the name, in parentheses, may hold anything; the state comes next, field 22 is the start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
        return _answers(pid)
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _answers(pid: int) -> str | None:
    """As :func:`_began` where there is no /proc: whether there is such a process is all that is known."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
