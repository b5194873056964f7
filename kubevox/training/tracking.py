"""MLflow runs: parameters, curves, lineage and the bundle of every training, kept by its training key.

MLflow takes more than a second to import, so it is imported where a run is really written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubevox
from kubevox import storage
from kubevox.errors import RegistryError
from kubevox.provenance import git_commit

if TYPE_CHECKING:
    from kubevox.evaluation.run import Evaluation

__all__ = ["TrackedRun", "log_evaluation", "mlflow_client", "track_run"]


def mlflow_client(tracking_uri: str) -> Any:
    """An MLflow client for a tracking server or a database; telemetry off, a database's folder made.

    Raises:
        RegistryError: the URI is none that MLflow can keep a registry in, or it does not answer.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    if tracking_uri.startswith("sqlite:///"):
        try:
            Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RegistryError(f"tracking.uri {tracking_uri}: {error.strerror}; choose another place") from None
    elif "://" not in tracking_uri:
        raise RegistryError(
            f"tracking.uri {tracking_uri!r}: a bare folder cannot hold a registry; use sqlite:///path/mlflow.db or "
            "http://host:port"
        )
    import logging

    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(tracking_uri)
    try:
        return mlflow.MlflowClient(tracking_uri)
    except Exception as error:  # whatever the database driver raises
        raise RegistryError(f"tracking.uri {tracking_uri}: MLflow cannot use it ({_first_line(error)})") from None


class TrackedRun:
    """One MLflow run, open for writing.

    Attributes:
        id: the run's id.
        fresh: whether it was created now.
    """

    def __init__(self, client: Any, run_id: str, fresh: bool) -> None:
        self.id, self.fresh, self._client = run_id, fresh, client

    def log_setting(self, parameters: dict[str, Any]) -> None:
        """Log parameters and lineage; what is logged already stays."""
        from mlflow.entities import Param

        known = self._client.get_run(self.id).data.params
        new = [Param(key, str(value)[:6000]) for key, value in parameters.items() if key not in known]
        self._client.log_batch(self.id, params=new)
        for key, value in (("git_commit", git_commit()), ("kubevox", kubevox.__version__)):
            self._client.set_tag(self.id, key, value)

    def log_epoch(self, figures: dict[str, float]) -> None:
        """Log one epoch's figures as a step of the curves."""
        import time

        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), int(figures["epoch"])
        metrics = [Metric(name, value, now, step) for name, value in figures.items() if name != "epoch"]
        self._client.log_batch(self.id, metrics=metrics)

    def log_history(self, history: Iterable[dict[str, float]]) -> None:
        """Log several epochs' figures."""
        for figures in history:
            self.log_epoch(figures)

    def log_metrics(self, figures: dict[str, float]) -> None:
        """Log single figures, such as the test split's."""
        for name, value in figures.items():
            self._client.log_metric(self.id, name, value)

    def log_bundle(self, bundle_uri: str) -> None:
        """Log the bundle's files beside the run, and their place in the store."""
        self._client.log_artifacts(self.id, str(storage.fetch(bundle_uri)), "bundle")
        self._client.set_tag(self.id, "bundle_uri", bundle_uri)

    def log_file(self, path: Path, folder: str) -> None:
        """Log one file, such as a report."""
        self._client.log_artifact(self.id, str(path), folder)


@contextlib.contextmanager
def track_run(
    tracking_uri: str, experiment: str, name: str, run_id: str | None = None, only_if_missing: bool = False
) -> Iterator[TrackedRun]:
    """Open an MLflow run for writing, and close it as finished or failed.

    Args:
        tracking_uri: MLflow's.
        experiment: created where there is none.
        name: a name for a new run (its first twelve characters are used).
        run_id: the run to go on with; a new one is made where MLflow does not know it.
        only_if_missing: leave the state of a run that is there alone.
    """
    client = mlflow_client(tracking_uri)
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else _create_experiment(client, tracking_uri, experiment)
        try:
            run = client.get_run(run_id) if run_id else None
        except MlflowException:
            run = None
        if run is not None and run.info.lifecycle_stage != "active":
            run = None  # deleted in the UI: nothing can be written to it any more
        fresh = run is None
        if run is None:
            run = client.create_run(experiment_id, run_name=name[:12])
        elif not only_if_missing:
            client.update_run(run.info.run_id, status="RUNNING")
    except MlflowException as error:
        raise _refused(tracking_uri, error) from None
    tracked = TrackedRun(client, run.info.run_id, fresh)
    if only_if_missing and not fresh:
        yield tracked
        return
    try:
        yield tracked
        client.set_terminated(tracked.id, "FINISHED")
    except BaseException as error:
        with contextlib.suppress(MlflowException):
            client.set_terminated(tracked.id, "FAILED")
        if isinstance(error, MlflowException):
            raise _refused(tracking_uri, error) from None
        raise


def log_evaluation(tracking_uri: str, run_id: str, evaluation: Evaluation) -> None:
    """Add the test split's figures, the verdict and the report to the run that trained the model."""
    client = mlflow_client(tracking_uri)
    from mlflow.exceptions import MlflowException

    run = TrackedRun(client, run_id, fresh=False)
    try:
        run.log_metrics(evaluation.headline())
        run.log_file(storage.fetch(storage.join(evaluation.uri, "report.html")), "evaluation")
        client.set_tag(run_id, "gate", "promote" if evaluation.verdict.promote else "reject")
        client.set_tag(run_id, "evaluation_uri", evaluation.uri)
    except MlflowException as error:
        raise _refused(tracking_uri, error) from None


def _create_experiment(client: Any, tracking_uri: str, name: str) -> str:
    """A database has no artifact store of its own: keep the files in a folder beside it."""
    place = None
    if tracking_uri.startswith("sqlite:///"):
        place = (Path(tracking_uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
    return client.create_experiment(name, artifact_location=place)


def _refused(tracking_uri: str, error: Exception) -> RegistryError:
    return RegistryError(f"tracking.uri {tracking_uri}: MLflow does not answer ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
