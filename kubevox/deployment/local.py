"""A KServe model server as a process of this machine: the local stand-in for an InferenceService."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kubevox.errors import DeploymentError

__all__ = ["ModelClient", "free_port", "model_server"]


class ModelClient:
    """Asks one model of a KServe server, over V1 and V2 REST.

    Args:
        url: the server, such as ``http://127.0.0.1:8080``.
        name: the model's name in the URL.
        timeout_s: for one request.
    """

    def __init__(self, url: str, name: str, timeout_s: float = 30.0) -> None:
        import httpx

        self.name = name
        self._http = httpx.Client(base_url=url, timeout=timeout_s, trust_env=False)

    def ready(self) -> bool:
        """Whether the model answers that it is ready."""
        import httpx

        try:
            return self._http.get(f"/v2/models/{self.name}/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def predict_v1(self, recordings: Sequence[bytes]) -> list[dict[str, Any]]:
        """The predictions of ``POST /v1/models/NAME:predict``, one a recording.

        Raises:
            DeploymentError: the server refused or did not answer.
        """
        body = {"instances": [{"audio": base64.b64encode(data).decode()} for data in recordings]}
        return self._post(f"/v1/models/{self.name}:predict", body)["predictions"]

    def predict_v2(self, recordings: Sequence[bytes]) -> dict[str, Any]:
        """The outputs of ``POST /v2/models/NAME/infer`` by name, and under ``model_version`` the version.

        Raises:
            DeploymentError: the server refused or did not answer.
        """
        data = [base64.b64encode(recording).decode() for recording in recordings]
        body = {"inputs": [{"name": "audio", "shape": [len(data)], "datatype": "BYTES", "data": data}]}
        answer = self._post(f"/v2/models/{self.name}/infer", body)
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        return outputs | {"model_version": answer.get("model_version")}

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        import httpx

        try:
            response = self._http.post(path, json=body)
        except httpx.HTTPError as error:
            raise DeploymentError(f"model server: {path} did not answer ({type(error).__name__}: {error})") from None
        if response.status_code != 200:
            raise DeploymentError(f"model server: {path} answered {response.status_code}: {response.text[:200]}")
        return response.json()


@contextlib.contextmanager
def model_server(
    bundle_uri: str, name: str, version: str, start_timeout_s: float, request_timeout_s: float
) -> Iterator[ModelClient]:
    """Run a KServe model server on a bundle, ready to answer, for as long as the context lasts.

    Raises:
        DeploymentError: it ended, or was not ready in time; its last words are in the message.
    """
    port = free_port()
    command = [sys.executable, "-m", "kubevox.serving", "--model_name", name, "--model_dir", bundle_uri]
    command += ["--model_version", version, "--host", "127.0.0.1", "--http_port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment())
        client = ModelClient(f"http://127.0.0.1:{port}", name, request_timeout_s)
        try:
            deadline = time.monotonic() + start_timeout_s
            while not client.ready():
                if process.poll() is not None:
                    raise DeploymentError(f"the model server for {name} ended at start: {_last_words(log)}")
                if time.monotonic() > deadline:
                    raise DeploymentError(
                        f"the model server for {name} was not ready within {start_timeout_s:g} s: {_last_words(log)}"
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
    """A port on loopback that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment() -> dict[str, str]:
    # The server is no pipeline step: its output is a log, not events.
    return {name: value for name, value in os.environ.items() if name != "KUBEVOX_EVENTS"}


def _last_words(log: Any) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
