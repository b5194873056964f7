"""A client of one model server: V1 and V2 over REST, as a rollout and the tests ask them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from kubevox.errors import DeploymentError

__all__ = ["ModelClient"]


class ModelClient:
    """Asks one model of a KServe server, over V1 and V2 REST.

    Args:
        url: the server, such as ``http://127.0.0.1:8080``.
        name: the model's name in the URL.
        timeout_s: for one request.
        headers: sent with every request; a gateway finds the service by ``Host``.
    """

    def __init__(self, url: str, name: str, timeout_s: float = 30.0, headers: Mapping[str, str] | None = None) -> None:
        import httpx

        self.name = name
        self._http = httpx.Client(base_url=url, timeout=timeout_s, headers=headers, trust_env=False)

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
