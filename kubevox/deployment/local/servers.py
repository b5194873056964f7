"""Model servers as processes of this machine: how one is started, and one for as long as a context lasts."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from kubevox import storage
from kubevox.config import ServingConfig
from kubevox.deployment.local.client import ModelClient
from kubevox.errors import DeploymentError
from kubevox.processes import die_with

__all__ = ["environment", "filled_in", "free_port", "is_free", "last_words", "model_server", "server_command"]

_FIRST_PORT = 20_000
_SAID = 64 << 10  # bytes of a log's end that are looked through for last words


def server_command(
    device: str = "cpu", options: ServingConfig | None = None, log_store: str | None = None
) -> list[str]:
    """The command that starts a model server, with ``{model}``, ``{bundle}``, ``{version}`` and ``{port}`` left open.

    Args:
        device: "cpu", "cuda" or "auto".
        options: the configuration's ``serving`` section; None: the defaults. A server is not told to answer on for a
            while when it is ended: the router has drained it by then.
        log_store: the store that the inference log goes to; None: nowhere.
    """
    options = (options or ServingConfig()).model_copy(update={"drain_s": 0.0})
    command = [sys.executable, "-m", "kubevox.serving", "--model_name", "{model}", "--model_dir", "{bundle}"]
    command += ["--model_version", "{version}", "--host", "127.0.0.1", "--http_port", "{port}", "--device", device]
    command += ["--options", options.to_json()]
    command += ["--log_store", storage.absolute(log_store)] if log_store is not None else []
    return command


def filled_in(command: Sequence[str], model: str, version: str, bundle: str, port: int) -> list[str]:
    """A server's command with everything in it; only whole arguments are replaced."""
    places = {"{model}": model, "{bundle}": bundle, "{version}": version, "{port}": str(port)}
    return [places.get(argument, argument) for argument in command]


@contextlib.contextmanager
def model_server(
    bundle_uri: str, name: str, version: str, start_timeout_s: float, request_timeout_s: float
) -> Iterator[ModelClient]:
    """Run a KServe model server on a bundle, ready to answer, for as long as the context lasts.

    Raises:
        DeploymentError: it ended, or was not ready in time; its last words are in the message.
    """
    port = free_port()
    command = filled_in(server_command(), name, version, bundle_uri, port)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(),
            preexec_fn=functools.partial(die_with, os.getpid()),
        )
        client = ModelClient(f"http://127.0.0.1:{port}", name, request_timeout_s)
        try:
            deadline = time.monotonic() + start_timeout_s
            while not client.ready():
                if process.poll() is not None:
                    raise DeploymentError(f"the model server for {name} ended at start: {last_words(log)}")
                if time.monotonic() > deadline:
                    raise DeploymentError(
                        f"the model server for {name} was not ready within {start_timeout_s:g} s: {last_words(log)}"
                    )
                time.sleep(0.1)
            yield client
        finally:
            client.close()
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port on loopback that is free at this moment, and that no outgoing connection will be given.

    A server takes seconds until it listens. By then a port of the range that the system gives to clients may be the
    near end of somebody's connection.
    """
    for _ in range(100):
        port = random.randrange(_FIRST_PORT, _first_given_to_clients())
        if is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of loopback at this moment; 0 is no port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return port != 0


def environment() -> dict[str, str]:
    """A server's environment; it is no pipeline step: its output is a log, not events."""
    return {name: value for name, value in os.environ.items() if name != "KUBEVOX_EVENTS"}


def last_words(log: IO[bytes], since: int = 0) -> str:
    """What a process that ended said last: its error where it named one, else its last line."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(since if since <= size else 0, size - _SAID))  # it may have been cut short meanwhile
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1][:300]


def _first_given_to_clients() -> int:
    with contextlib.suppress(OSError, ValueError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if first > _FIRST_PORT + 1000:
            return first
    return 32_768
