"""A model server as a process, with everything that a test wants of it at hand."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from kubevox.deployment.local import free_port

__all__ = ["Live", "live_server"]


@dataclass
class Live:
    """A running server."""

    url: str
    http: httpx.Client
    process: subprocess.Popen[bytes]
    grpc_port: int
    _log: Any

    def log(self) -> str:
        """What it printed until now."""
        with open(self._log.name, encoding="utf-8", errors="replace") as file:
            return file.read()

    def metric(self, start: str) -> float:
        """The first of the metrics that begin so."""
        found = re.search(rf"^{re.escape(start)}.* ([-+.e\d]+)$", self.http.get("/metrics").text, re.MULTILINE)
        assert found, start
        return float(found[1])

    def until(self, so: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for something, for a while."""
        deadline = time.monotonic() + seconds
        while not so():
            assert time.monotonic() < deadline, self.log()[-2000:]
            time.sleep(0.01)

    def memory_mb(self) -> float:
        """Memory of the server and all its workers in MB, what they share counted once (PSS)."""
        import psutil

        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return sum(process.memory_full_info().pss for process in family) / 1e6


@contextlib.contextmanager
def live_server(bundle_uri: str, *arguments: str, module: str = "kubevox.serving") -> Iterator[Live]:
    """Version 7 of the model `mood`, ready, for as long as the context lasts; ended by SIGTERM."""
    port = free_port()
    command = [sys.executable, "-m", module, "--model_name", "mood", "--model_dir", bundle_uri, "--model_version", "7"]
    command += ["--host", "127.0.0.1", "--http_port", str(port), *arguments]
    url = f"http://127.0.0.1:{port}"
    grpc_port = int(arguments[arguments.index("--grpc_port") + 1]) if "--grpc_port" in arguments else 0
    with (
        tempfile.NamedTemporaryFile() as log,
        httpx.Client(base_url=url, timeout=60.0, trust_env=False) as http,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        server = Live(url, http, process, grpc_port, log)

        def ready() -> bool:
            assert process.poll() is None, server.log()
            try:
                return http.get("/v2/models/mood/ready").status_code == 200
            except httpx.HTTPError:
                return False

        try:
            server.until(ready, 60.0)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
