"""The model registry: MLflow model versions that point at bundles, and the alias ``champion``.

A version's files are the bundle plus a few lines that let ``mlflow.pyfunc.load_model`` use it (a model from code, not a
pickle). Where the version came from is in its tags: run, dataset, split, commit, bundle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import kubevox
from kubevox import storage
from kubevox.errors import RegistryError
from kubevox.training.tracking import mlflow_client

__all__ = ["CHAMPION", "ModelVersion", "Registry"]

CHAMPION = "champion"

_MODEL_CODE = '''"""Lets mlflow.pyfunc use a Kubevox bundle: recordings' bytes in, probabilities out."""

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class KubevoxModel(PythonModel):
    """The bundle behind MLflow's predict: a column of audio file bytes in, a column a label out."""

    def load_context(self, context):
        from kubevox.models.bundle import load_bundle

        self.bundle = load_bundle(context.artifacts["bundle"])

    def predict(self, context, model_input: pd.DataFrame, params=None):
        from kubevox.data.audio import decode

        spec = self.bundle.spec
        waveforms = [decode(bytes(audio), spec.limits)[0] for audio in model_input["audio"]]
        return pd.DataFrame(self.bundle.predict(waveforms), columns=spec.labels)


set_model(KubevoxModel())
'''


@dataclass(frozen=True)
class ModelVersion:
    """A registered version of a model."""

    name: str
    version: str
    bundle_uri: str
    run_id: str
    tags: dict[str, str]


class Registry:
    """One MLflow registry.

    Args:
        tracking_uri: a database (``sqlite:///...``) or a server (``http://...``).
    """

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self._client = mlflow_client(tracking_uri)

    def champion(self, name: str) -> ModelVersion | None:
        """The version in production, or None where there is none yet.

        Raises:
            RegistryError: the registry does not answer.
        """
        from mlflow.exceptions import MlflowException

        try:
            return _version(self._client.get_model_version_by_alias(name, CHAMPION))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise self._unreachable(error) from None

    def find(self, name: str, bundle_uri: str) -> ModelVersion | None:
        """The newest version that is this bundle, or None."""
        with self._answers():
            found = self._client.search_model_versions(f"name = '{name}'")
        versions = [_version(item) for item in found]
        same = [version for version in versions if version.bundle_uri == bundle_uri]
        return max(same, key=lambda version: int(version.version), default=None)

    def versions(self) -> list[ModelVersion]:
        """All versions of all registered models, by name and number."""
        found: list[Any] = []
        token = None
        with self._answers():
            while True:
                page = self._client.search_model_versions(max_results=1000, page_token=token)
                found += page
                if not (token := page.token):
                    break
        return sorted((_version(item) for item in found), key=lambda version: (version.name, int(version.version)))

    def description(self, version: ModelVersion) -> dict[str, Any] | None:
        """What ``bundle.json`` says in MLflow's own copy of a version's files; None where that copy is gone."""
        import json
        import tempfile
        from pathlib import Path

        from mlflow.artifacts import download_artifacts, list_artifacts
        from mlflow.exceptions import MlflowException

        try:
            place = f"{self._client.get_model_version_download_uri(version.name, version.version)}/artifacts"
            [folder] = [item.path for item in list_artifacts(artifact_uri=place) if item.is_dir]
            name = folder.rpartition("/")[2]
            with tempfile.TemporaryDirectory() as temporary:
                file = download_artifacts(artifact_uri=f"{place}/{name}/bundle.json", dst_path=temporary)
                return json.loads(Path(file).read_bytes())
        except (MlflowException, OSError, ValueError):
            return None

    def register(
        self, name: str, bundle_uri: str, run_id: str, tags: dict[str, str], description: str = ""
    ) -> ModelVersion:
        """Make the bundle a new version, with its files in MLflow, its lineage in tags, its card as description."""
        import tempfile
        from pathlib import Path

        folder = storage.fetch(bundle_uri)
        with _without_advice(), self._answers(), tempfile.TemporaryDirectory() as temporary:
            import mlflow
            from mlflow.exceptions import MlflowException
            from mlflow.models import ModelSignature
            from mlflow.types import ColSpec, Schema

            code = Path(temporary) / "kubevox_model.py"
            code.write_text(_MODEL_CODE, encoding="utf-8")
            with mlflow.start_run(run_id=run_id):
                logged = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(code),
                    artifacts={"bundle": str(folder)},
                    signature=ModelSignature(inputs=Schema([ColSpec("binary", "audio")])),
                    # Given, so that MLflow does not spend ten seconds on guessing them.
                    pip_requirements=[f"kubevox=={kubevox.__version__}"],
                )
            with contextlib.suppress(MlflowException):
                self._client.create_registered_model(name)
            version = self._client.create_model_version(
                name, logged.model_uri, run_id=run_id, tags=tags | {"bundle_uri": bundle_uri}, description=description
            )
        return _version(version)

    def tag(self, version: ModelVersion, tags: dict[str, str]) -> None:
        """Add tags to a version."""
        with self._answers():
            for key, value in tags.items():
                self._client.set_model_version_tag(version.name, version.version, key, value)

    def promote(self, version: ModelVersion) -> None:
        """Move the alias ``champion`` to a version."""
        with self._answers():
            self._client.set_registered_model_alias(version.name, CHAMPION, version.version)

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> RegistryError:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return RegistryError(f"tracking.uri {self.tracking_uri}: MLflow refused: {line[:300]}")


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """MLflow advises to give an example, from which to infer the signature that it is given."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*input example was not provided", UserWarning)
        yield


def _version(item: Any) -> ModelVersion:
    tags = dict(item.tags)
    return ModelVersion(item.name, str(item.version), tags.get("bundle_uri", ""), item.run_id or "", tags)
