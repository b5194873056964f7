"""Deploying with live model servers and MLflow: who holds at every step is champion; otherwise the old one stays."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kubevox.config import DeployConfig, RolloutConfig
from kubevox.config.rollout import ErrorTest
from kubevox.data.audio import decode
from kubevox.data.dataset import read_utterances
from kubevox.deployment.backend import ServedVersion
from kubevox.deployment.local import LocalBackend
from kubevox.deployment.record import RolloutRecord
from kubevox.deployment.rollout import Rollout, RolloutEvent, deploy
from kubevox.errors import BundleError, DeploymentError, KubevoxError, RegistryError
from kubevox.evaluation.run import Evaluation, evaluate
from kubevox.models.bundle import load_bundle
from kubevox.registry import ModelVersion, Registry
from kubevox.training.loop import TrainResult
from tests.tiny import EVALUATE, FEATURES, LENIENT, Tiny, untrained_bundle

pytestmark = pytest.mark.e2e

NAME = "kubevox-mood"
# As little as a rollout can decide by, of models that know nothing, on six recordings of one validation speaker: how
# it decides is tested against the stand-in platform.
HASTY = RolloutConfig(
    steps=[50],
    dwell_s=0.0,
    confidence=0.8,
    share_margin=0.2,
    errors=ErrorTest(acceptable=0.05, unacceptable=0.3, false_alarm=0.1, miss=0.1),
    latency_answers=48,
    max_latency_factor=1000.0,
    max_mix_divergence=1.0,
    min_agreement=0.0,
    uar_margin=1.0,
)
CONFIG = DeployConfig(check_clips=3, rollout=HASTY)


@dataclass(frozen=True)
class Challenger:
    """An accepted bundle and the registry that it goes to."""

    bundle: str
    evaluation: Evaluation
    run_id: str
    store: str
    tracking: str

    def deploy(self, **how: Any) -> Rollout:
        """Roll it out."""
        return deploy(self.bundle, self.evaluation.uri, self.run_id, NAME, CONFIG, self.store, self.tracking, **how)

    def champion(self) -> ModelVersion | None:
        return Registry(self.tracking).champion(NAME)

    def versions(self) -> list[str]:
        from kubevox.training.tracking import mlflow_client

        found = mlflow_client(self.tracking).search_model_versions(f"name = '{NAME}'")
        return sorted(str(version.version) for version in found)


@pytest.fixture(scope="module")
def accepted(tiny: Tiny, trained: TrainResult) -> Evaluation:
    return evaluate(trained.bundle_uri, tiny.blocks, tiny.split.uri, FEATURES, EVALUATE, LENIENT, tiny.store)


def in_a_registry_of_its_own(tiny: Tiny, trained: TrainResult, accepted: Evaluation, folder: Path) -> Challenger:
    shutil.copy(tiny.tracking.removeprefix("sqlite:///"), folder / "mlflow.db")
    tracking = f"sqlite:///{folder / 'mlflow.db'}"
    return Challenger(trained.bundle_uri, accepted, trained.run_id, str(folder / "store"), tracking)


@pytest.fixture
def challenger(tiny: Tiny, trained: TrainResult, accepted: Evaluation, tmp_path: Path) -> Challenger:
    """The trained bundle and a registry without any model."""
    return in_a_registry_of_its_own(tiny, trained, accepted, tmp_path)


@pytest.fixture(scope="module")
def deployed(
    tiny: Tiny, trained: TrainResult, accepted: Evaluation, tmp_path_factory: pytest.TempPathFactory
) -> Challenger:
    """The trained bundle as champion, by a rollout."""
    challenger = in_a_registry_of_its_own(tiny, trained, accepted, tmp_path_factory.mktemp("deployed"))
    with warnings.catch_warnings(record=True) as shown:
        outcome = challenger.deploy()
    assert (outcome.outcome, outcome.version, outcome.champion, outcome.previous) == ("promoted", "1", "1", None)
    assert [str(warning.message) for warning in shown if warning.category is UserWarning] == []
    return challenger


@pytest.fixture
def with_champion(challenger: Challenger, tiny: Tiny, tmp_path: Path) -> Challenger:
    """The trained bundle, and another that is champion."""
    registry = Registry(challenger.tracking)
    old = registry.register(NAME, untrained_bundle(tiny, tmp_path, seed=5), challenger.run_id, {"rollout": "promoted"})
    registry.promote(old)
    return challenger


def changed(evaluation: Evaluation, folder: Path, **columns: list[object]) -> Evaluation:
    """A copy of the evaluation with other predictions."""
    uri = folder / "evaluations" / "changed"
    shutil.copytree(evaluation.uri, uri)
    table = pq.read_table(uri / "predictions.parquet")
    for name, values in columns.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(
            position, table.schema.field(position), pa.array(values, table.schema.field(name).type)
        )
    pq.write_table(table, uri / "predictions.parquet")
    return replace(evaluation, uri=str(uri))


def not_champion(challenger: Challenger) -> ModelVersion:
    """The version of a rollout that came to nothing, after it was checked that the old champion stayed."""
    champion = challenger.champion()
    assert champion is not None
    assert champion.version == "1"
    assert champion.bundle_uri != challenger.bundle
    assert challenger.versions() == ["1", "2"]
    version = Registry(challenger.tracking).find(NAME, challenger.bundle)
    assert version is not None
    return version


def test_an_accepted_bundle_becomes_champion_with_its_lineage(deployed: Challenger, tiny: Tiny) -> None:
    champion = deployed.champion()
    assert champion is not None
    assert (champion.version, champion.bundle_uri, champion.run_id) == ("1", deployed.bundle, deployed.run_id)
    expected = {
        "task": "mood",
        "dataset_hash": tiny.split.dataset.hash,
        "split_hash": tiny.split.hash,
        "training_key": load_bundle(deployed.bundle).spec.training_key,
        "evaluation_uri": deployed.evaluation.uri,
        "synthetic_data": "false",
        "rollout": "promoted",
    }
    assert expected.items() <= champion.tags.items()
    assert champion.tags["git_commit"]
    assert float(champion.tags["test_uar"]) == pytest.approx(deployed.evaluation.scores.uar.value, abs=1e-4)


def test_the_record_holds_every_step(deployed: Challenger) -> None:
    champion = deployed.champion()
    assert champion is not None
    record = RolloutRecord.from_dict(json.loads(Path(champion.tags["rollout_record"]).read_text()))
    assert (record.model, record.version, record.previous, record.new) == (NAME, "1", None, True)
    assert (record.outcome, record.backend) == ("promoted", "local")
    assert [transition.state for transition in record.transitions] == [
        *("registered", "candidate", "ready", "conforming", "probing", "promoting", "promoted", "champion")
    ]
    assert record.conformity is not None
    assert (record.conformity.protocols, record.conformity.recordings) == (("v1", "v2"), 3)
    assert record.conformity.largest_difference <= record.conformity.tolerance == 1e-5
    (probing,) = record.steps
    assert (
        champion.tags["rollout_0_error_rate"] == f"pass: 0 [0, {probing.checks[0].high:.4g}] of {probing.checks[0].n}"
    )
    page = Path(champion.tags["rollout_record"].replace(".json", ".html")).read_text()
    assert f"Rollout of {NAME} version 1" in page


def test_a_version_that_was_deleted_from_the_registry_keeps_no_rollout_from_its_end(
    deployed: Challenger, capsys: pytest.CaptureFixture[str]
) -> None:
    from kubevox.deployment.rollout import _Mlflow

    version = Registry(deployed.tracking).find(NAME, deployed.bundle)
    assert version is not None
    record = RolloutRecord.from_dict(json.loads(Path(version.tags["rollout_record"]).read_text()))
    _Mlflow(Registry(deployed.tracking), NAME).conclude(replace(record, version="99"), "rollouts/1.json")
    assert f"{NAME} version 99 was deleted from the registry meanwhile" in capsys.readouterr().err


def test_the_training_run_is_finished_still(deployed: Challenger) -> None:
    from kubevox.training.tracking import mlflow_client

    assert mlflow_client(deployed.tracking).get_run(deployed.run_id).info.status == "FINISHED"


def test_the_same_bundle_is_no_new_version(deployed: Challenger) -> None:
    outcome = deployed.deploy()
    assert (outcome.outcome, outcome.champion, outcome.previous) == ("promoted", "1", "1")
    assert (outcome.registered, outcome.recordings) == (False, 3)
    assert outcome.reason == "version 1 was in production already and answers as it was evaluated"
    assert deployed.versions() == ["1"]


def test_mlflow_predicts_with_the_registered_version_as_the_bundle_does(
    deployed: Challenger, tiny: Tiny, tiny_corpus: Path
) -> None:
    import mlflow

    from kubevox.training.tracking import mlflow_client

    mlflow_client(deployed.tracking)
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    sources = [row.source_id.removeprefix("folder:") for row in read_utterances(tiny.split.dataset.shard_uris)[:3]]
    recordings = [(tiny_corpus / source).read_bytes() for source in sources]
    answer = model.predict(pd.DataFrame({"audio": recordings}))
    bundle = load_bundle(deployed.bundle)
    assert list(answer.columns) == bundle.spec.labels
    waveforms = [decode(data, bundle.spec.limits)[0] for data in recordings]
    np.testing.assert_allclose(answer.to_numpy(), bundle.predict(waveforms), atol=1e-6)


def test_mlflow_keeps_the_bundle_itself_and_no_pickle(deployed: Challenger) -> None:
    from kubevox.training.tracking import mlflow_client

    client = mlflow_client(deployed.tracking)
    folder = Path(client.get_model_version_download_uri(NAME, "1").removeprefix("file://"))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert not [file.name for file in files if file.suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")]
    for name in ("bundle.json", "model.safetensors"):
        (kept,) = [file for file in files if file.name == name]
        assert kept.read_bytes() == Path(deployed.bundle, name).read_bytes()


def test_answers_that_are_not_the_evaluators_leave_the_old_champion(with_champion: Challenger, tmp_path: Path) -> None:
    evaluation = with_champion.evaluation
    probabilities = list(evaluation.probabilities().values())
    shifted = [[p + 0.001 if index == 0 else p for index, p in enumerate(row)] for row in probabilities]
    tampered = replace(with_champion, evaluation=changed(evaluation, tmp_path, probabilities=shifted))
    outcome = tampered.deploy()
    assert (outcome.outcome, outcome.criterion, outcome.champion) == ("rolled_back", "conformity", "1")
    assert "served and evaluated probabilities differ by 0.001 over V1" in outcome.reason
    tags = not_champion(tampered).tags
    assert (tags["rollout"], tags["rollout_reason"]) == ("rolled_back", outcome.reason)


def test_a_failed_version_is_tried_again_and_forgiven(
    with_champion: Challenger, tmp_path: Path, accepted: Evaluation
) -> None:
    missing = replace(with_champion, evaluation=changed(accepted, tmp_path, utterance=["0" * 64] * 6))
    with pytest.raises(DeploymentError, match="000000"):
        missing.deploy()
    assert not_champion(missing).tags["rollout"] == "failed"
    events: list[RolloutEvent] = []
    outcome = with_champion.deploy(on_event=events.append)
    assert (outcome.outcome, outcome.champion, outcome.previous) == ("promoted", "2", "1")
    champion = with_champion.champion()
    assert champion is not None
    assert (champion.version, champion.tags["rollout"], champion.tags["rollout_reason"]) == ("2", "promoted", "")
    assert champion.tags["rollout_50_share"].startswith("pass: 0.5 [0.")
    record = events[-1].record
    assert record is not None
    assert [(report.percent, report.outcome) for report in record.steps] == [(50, "pass"), (100, "pass")]
    assert {event.percent for event in events if event.kind == "look"} == {50, 100}


def test_a_bundle_that_cannot_be_read_leaves_the_old_champion(with_champion: Challenger, tmp_path: Path) -> None:
    """Its weights are lost between the registration and the start."""
    bundle = Path(shutil.copytree(with_champion.bundle, tmp_path / "bundles" / Path(with_champion.bundle).name))
    evaluation = replace(changed(with_champion.evaluation, tmp_path), bundle_uri=str(bundle))
    head = Path(evaluation.uri, "evaluation.json")
    head.write_text(json.dumps(json.loads(head.read_text()) | {"bundle": str(bundle)}))
    broken = replace(with_champion, bundle=str(bundle), evaluation=evaluation)
    registry = Registry(broken.tracking)
    registry.register(NAME, broken.bundle, broken.run_id, {})
    (bundle / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"cannot be read .*model\.safetensors") as caught:
        broken.deploy()
    assert len(str(caught.value).splitlines()) == 1
    tags = not_champion(broken).tags
    assert tags["rollout"] == "failed"
    assert "model.safetensors" in tags["rollout_reason"]


def test_a_challenger_whose_server_ends_at_start_leaves_the_old_champion(with_champion: Challenger) -> None:
    ends = [sys.executable, "-c", "raise SystemExit('error: no such layer')"]
    champion = with_champion.champion()
    assert champion is not None
    work_dir = Path(with_champion.store).parent
    stable = ServedVersion(champion.version, champion.bundle_uri)
    backend = LocalBackend("mood", work_dir, 60.0, 30.0, canary_command=ends, stable=stable)
    outcome = with_champion.deploy(backend=backend)
    assert (outcome.outcome, outcome.criterion, outcome.champion) == ("rolled_back", "start", "1")
    assert "no such layer" in outcome.reason
    assert not_champion(with_champion).tags["rollout"] == "rolled_back"


@pytest.mark.parametrize("damage", ["no parquet", "missing", "empty", "another column", "too few probabilities"])
def test_predictions_that_cannot_be_used_leave_the_old_champion(
    damage: str, with_champion: Challenger, tmp_path: Path
) -> None:
    probabilities = [[0.5, 0.5]] * 6 if damage == "too few probabilities" else None
    evaluation = changed(
        with_champion.evaluation, tmp_path, **{"probabilities": probabilities} if probabilities else {}
    )
    path = Path(evaluation.uri, "predictions.parquet")
    if damage == "no parquet":
        path.write_bytes(b"nothing")
    elif damage == "missing":
        path.unlink()
    elif damage == "empty":
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    elif damage == "another column":
        pq.write_table(pq.read_table(path).drop_columns("utterance"), path)
    damaged = replace(with_champion, evaluation=evaluation)
    with pytest.raises(KubevoxError, match=r"predictions\.parquet") as caught:
        damaged.deploy()
    assert len(str(caught.value).splitlines()) == 1
    assert not_champion(damaged).tags["rollout"] == "failed"


def test_a_rejected_bundle_is_not_even_registered(with_champion: Challenger, tiny: Tiny, tmp_path: Path) -> None:
    strict = LENIENT.model_copy(update={"max_parameters": 1})
    rejected = evaluate(
        with_champion.bundle, tiny.blocks, tiny.split.uri, FEATURES, EVALUATE, strict, with_champion.store
    )
    assert not rejected.verdict.promote
    with pytest.raises(DeploymentError, match="rejected by the gate"):
        replace(with_champion, evaluation=rejected).deploy()
    assert with_champion.versions() == ["1"]


def test_an_evaluation_of_another_bundle_is_refused(with_champion: Challenger, tiny: Tiny, tmp_path: Path) -> None:
    other = untrained_bundle(tiny, tmp_path, seed=8)
    with pytest.raises(DeploymentError, match="is of another bundle"):
        replace(with_champion, bundle=other).deploy()
    assert with_champion.versions() == ["1"]


def test_a_registry_without_the_model_has_no_champion(challenger: Challenger) -> None:
    assert challenger.champion() is None
    assert Registry(challenger.tracking).find(NAME, challenger.bundle) is None


def test_a_registry_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match=r"tracking\.uri http://127\.0\.0\.1:9: MLflow"):
        Registry("http://127.0.0.1:9").champion(NAME)


def test_the_newest_version_of_a_bundle_is_found_by_number(challenger: Challenger) -> None:
    registry = Registry(challenger.tracking)
    for _ in range(2):
        registry.register(NAME, challenger.bundle, challenger.run_id, {"rollout": "failed"})
    found = registry.find(NAME, challenger.bundle)
    assert found is not None
    assert found.version == "2"
