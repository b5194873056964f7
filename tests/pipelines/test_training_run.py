"""The whole pipeline through KFP's local runner on a tiny corpus, then a live KServe server; marked e2e."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import yaml
from mlflow import MlflowClient
from safetensors import safe_open

from kubevox import storage
from kubevox.deployment.local import ModelClient, free_port
from kubevox.page import SYNTHETIC_NOTICE
from kubevox.registry import Registry

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "data.corpora.0.options={languages: [en], speakers: 6, sentences: 2, emotions: [anger, neutral, sadness]}",
    "data.labels=[angry, neutral, sad]",
    "data.shard_mb=1",
    "model.channels=[4, 8]",
    "train.epochs=3",
    "baseline.model.filters=[[8]]",
    "baseline.model.strides=[[2]]",
    "baseline.train.epochs=2",
    "evaluate.bootstrap_samples=100",
    "evaluate.latency_clips=3",
    "gate={min_uar: 0.0, min_worst_recall: 0.0, max_calibration_error: 1.0, max_latency_p95_ms: 60000.0, "
    "max_parameters: 5000000, champion_margin: 0.9}",
    "deploy.check_clips=3",
    # Models that know nothing, on six recordings of one validation speaker: as little as a rollout can decide by.
    "deploy.rollout={steps: [50], dwell_s: 0, confidence: 0.8, share_margin: 0.2, latency_answers: 48, "
    "max_latency_factor: 1000, max_mix_divergence: 1, min_agreement: 0, uar_margin: 1, "
    "errors: {acceptable: 0.05, unacceptable: 0.3, false_alarm: 0.1, miss: 0.1}}",
]


class Run:
    """One ``python -m pipelines run`` in its own process."""

    def __init__(self, work: Path, *overrides: str, corpora: str | None = None, extra: tuple[str, ...] = ()) -> None:
        settings = [*TINY, f"store={work / 'store'}", f"tracking.uri=sqlite:///{work / 'mlflow.db'}", *overrides]
        self.arguments = ["run", "--config", "configs/emotion.yaml", "--work-dir", str(work / "work"), "--json", *extra]
        self.arguments += ["--corpora", corpora] if corpora else []
        self.arguments += [word for setting in settings for word in ("--set", setting)]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", *self.arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def finish(self) -> tuple[int, dict[str, Any], str]:
        process = self.start()
        out, err = process.communicate(timeout=300)
        return process.returncode, json.loads(out) if out.strip() else {}, err


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def compiled(work: Path) -> Path:
    path = work / "pipeline.yaml"
    command = [sys.executable, "-m", "pipelines", "compile", "--output", str(path), "--config", "configs/emotion.yaml"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def promoted(work: Path, compiled: Path) -> dict[str, Any]:
    """A first run, from the compiled YAML: every stage for real."""
    code, outcome, err = Run(work, extra=("--pipeline", str(compiled))).finish()
    assert code == 0, err
    return outcome


def stage(outcome: dict[str, Any], name: str) -> dict[str, Any]:
    return [result for result in outcome["stages"] if result["stage"] == name][-1]


def test_compiled_yaml_is_loaded_again_by_kfp_and_holds_every_stage(compiled: Path) -> None:
    from kfp import components

    component = components.load_component_from_file(str(compiled))
    tasks = component.pipeline_spec.root.dag.tasks
    assert {"ingest", "validate", "split", "for-loop-1", "train", "train-2", "evaluate", "condition-2"} <= set(tasks)
    executors = component.pipeline_spec.deployment_spec["executors"]
    for name in executors:
        command = " ".join(executors[name]["container"]["command"])
        assert "pip install" not in command, f"{name} would install packages at every task"


def test_compiled_yaml_carries_no_path_of_this_machine(compiled: Path) -> None:
    assert str(ROOT) not in compiled.read_text()


def test_run_promotes_and_deploy_really_ran(promoted: dict[str, Any], work: Path) -> None:
    assert promoted["outcome"] == "promoted"
    deployed = stage(promoted, "deploy")
    champion = Registry(f"sqlite:///{work / 'mlflow.db'}").champion("kubevox-emotion")
    assert champion is not None
    assert champion.version == deployed["version"] == "1"
    assert champion.tags["rollout"] == "promoted"
    assert champion.tags["dataset_hash"] in stage(promoted, "ingest")["dataset"]
    record = json.loads(Path(champion.tags["rollout_record"]).read_text())
    assert record["outcome"] == "promoted"
    states = [transition["state"] for transition in record["transitions"]]
    assert (states[0], states[-2:]) == ("registered", ["promoted", "champion"])
    assert Path(deployed["timeline"]).read_text().startswith("<!doctype html>")


def test_run_trains_on_several_shards(promoted: dict[str, Any]) -> None:
    assert sum(result["stage"] == "extract_features" for result in promoted["stages"]) > 1


def test_reports_say_first_that_the_data_is_synthetic(promoted: dict[str, Any]) -> None:
    for name in ("evaluate", "validate"):
        page = Path(stage(promoted, name)["report"]).read_text()
        body = page[page.index("<body") :]
        first = body.lower().index("synthetic")
        assert "no evidence about people" in body[first : first + 400].lower()
        assert first < body.index("<h1")


def test_model_card_says_first_that_the_data_is_synthetic(promoted: dict[str, Any], work: Path) -> None:
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    card = client.get_model_version("kubevox-emotion", stage(promoted, "deploy")["version"]).description
    assert SYNTHETIC_NOTICE in card.splitlines()[0]


def test_bundle_holds_no_pickle(promoted: dict[str, Any]) -> None:
    bundle = Path(stage(promoted, "train")["bundle"])
    assert sorted(path.name for path in bundle.iterdir()) == ["bundle.json", "model.safetensors"]


@contextlib.contextmanager
def serving(work: Path) -> Iterator[ModelClient]:
    port = free_port()
    command = [sys.executable, "-m", "kubevox.cli", "serve", "--config", "configs/emotion.yaml", "--port", str(port)]
    command += ["--set", f"tracking.uri=sqlite:///{work / 'mlflow.db'}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        client = ModelClient(f"http://127.0.0.1:{port}", "emotion")
        try:
            deadline = time.monotonic() + 60
            while not client.ready() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)


def test_champion_answers_a_live_request_as_the_evaluator_did(promoted: dict[str, Any], work: Path) -> None:
    from kubevox.data.dataset import read_audio
    from kubevox.data.splits import load_split
    from kubevox.evaluation.run import load_evaluation

    report = Path(stage(promoted, "evaluate")["report"])
    expected = load_evaluation(str(report.parent)).probabilities()
    split = load_split(stage(promoted, "split")["split"])
    with serving(work) as client:
        for shard in split.dataset.shard_uris:
            for name, waveform in read_audio(shard, expected):
                wav = work / "request.wav"
                soundfile.write(wav, waveform.pcm << 8, waveform.sample_rate, subtype="PCM_24")
                answer = client.predict_v1([wav.read_bytes()])[0]
                served = [answer["probabilities"][label] for label in split.labels]
                np.testing.assert_allclose(served, expected[name], atol=1e-5)
                assert answer["model_version"] == "1"
                assert 0 < answer["duration_analysed_s"] <= 3.0
        second = client.predict_v2([wav.read_bytes()])
        assert second["label"] == [answer["label"]]
        url = str(client._http.base_url)
        bad = httpx.post(f"{url}/v1/models/emotion:predict", json={"instances": [{"audio": "bm8="}]}, trust_env=False)
        assert bad.status_code == 400
        assert base64.b64decode("bm8=") == b"no"


def test_second_run_reuses_every_costly_stage(promoted: dict[str, Any], work: Path) -> None:
    code, outcome, err = Run(work).finish()
    assert code == 0, err
    reused = {result["stage"] for result in outcome["stages"] if result.get("reused")}
    assert reused == {"ingest", "validate", "split", "extract_features", "train", "evaluate"}
    assert stage(outcome, "deploy")["version"] == "1", "the same bundle is no new version"


def test_rejected_run_ends_with_3_and_names_every_failed_criterion(promoted: dict[str, Any], work: Path) -> None:
    strict = "gate={min_uar: 1.0, min_worst_recall: 1.0, max_calibration_error: 1.0, max_latency_p95_ms: 60000.0, "
    strict += "max_parameters: 10, champion_margin: 0.9}"
    code, outcome, err = Run(work, strict).finish()
    assert code == 3
    assert outcome["outcome"] == "rejected"
    failed = " ".join(outcome["stages"][-1]["criteria"])
    assert "gate.min_uar" in failed or "uar" in failed
    assert "parameters" in failed
    assert "REJECTED" in err
    assert not any(result["stage"] == "deploy" for result in outcome["stages"])
    champion = Registry(f"sqlite:///{work / 'mlflow.db'}").champion("kubevox-emotion")
    assert champion is not None
    assert champion.version == "1"


@pytest.mark.acceptance
def test_a_challenger_that_is_taken_back_ends_the_run_with_3_and_names_the_criterion(
    promoted: dict[str, Any], work: Path
) -> None:
    nobody = TINY[-1].replace("min_agreement: 0", "min_agreement: 1")
    code, outcome, err = Run(work, "train.epochs=1", "train.seed=11", "baseline=null", nobody).finish()
    assert code == 3, err
    deployed = stage(outcome, "deploy")
    assert (deployed["outcome"], deployed["champion"]) == ("rolled_back", "1")
    assert "agreement" in deployed["criterion"].split(", ")
    assert f"Rollout    version {deployed['version']} TAKEN BACK; version 1 stays champion" in err
    assert "100% are the least (deploy.rollout.min_agreement)" in err
    assert "Try it" not in err
    champion = Registry(f"sqlite:///{work / 'mlflow.db'}").champion("kubevox-emotion")
    assert champion is not None
    assert champion.version == "1"


def test_bad_file_ends_the_run_with_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "angry"
    folder.mkdir(parents=True)
    (folder / "anna_1.wav").write_text("this is no recording\n" * 200)
    code, _, err = Run(tmp_path, corpora=f"folder={tmp_path / 'corpus'}").finish()
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "anna_1.wav" in errors[0]
    assert "Traceback" not in err
    assert not list((tmp_path / "store").glob("datasets/*"))
    assert not list((tmp_path / "store").glob("tmp/*"))


def test_tampered_split_stops_the_run_though_all_could_be_reused(promoted: dict[str, Any], work: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(stage(promoted, "split")["split"]) / "split.parquet"
    before = path.read_bytes()
    rows = pq.read_table(path)
    moved = ["train" if split == "test" else split for split in rows["split"].to_pylist()]
    pq.write_table(rows.set_column(2, "split", pa.array(moved)), path)
    try:
        code, _, err = Run(work).finish()
    finally:
        path.write_bytes(before)
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "no valid certificate" in errors[0]


def test_killed_run_resumes_and_ends_as_an_undisturbed_one(promoted: dict[str, Any], work: Path) -> None:
    slow = ("train.epochs=6", "train.early_stopping.patience=6", "baseline=null", "train.seed=7")
    process = Run(work, *slow).start()
    known = set(storage.list_names(str(work / "store" / "checkpoints")))
    checkpoint = None
    deadline = time.monotonic() + 120
    while checkpoint is None and process.poll() is None and time.monotonic() < deadline:
        for name in set(storage.list_names(str(work / "store" / "checkpoints"))) - known:
            path = work / "store" / "checkpoints" / name / "last.safetensors"
            checkpoint = path if path.exists() else None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert checkpoint is not None
    with safe_open(str(checkpoint), framework="np") as file:
        done = int(file.metadata()["epoch"])
    assert 0 < done < 6, "killed too late to tell"
    code, outcome, err = Run(work, *slow).finish()
    assert code == 0, err
    assert stage(outcome, "train")["resumed_at"] >= done
    # The same again in a store that knows nothing of the first attempt.
    fresh = work / "fresh"
    code, undisturbed, err = Run(fresh, *slow).finish()
    assert code == 0, err
    assert stage(undisturbed, "train")["resumed_at"] == 0
    assert Path(stage(outcome, "train")["bundle"]).name == Path(stage(undisturbed, "train")["bundle"]).name
    assert stage(outcome, "evaluate")["figures"]["test_uar"] == stage(undisturbed, "evaluate")["figures"]["test_uar"]


def test_configuration_typo_ends_with_2_and_one_line() -> None:
    command = [sys.executable, "-m", "pipelines", "run", "--config", "configs/emotion.yaml", "--set", "train.epoch=3"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines() == [
        "error: --set train.epoch: unknown key 'train.epoch' (value 3); did you mean 'train.epochs'?"
    ]


def test_shipped_tasks_differ_only_in_configuration() -> None:
    """A third task is a configuration file: both shipped ones have the same sections."""
    emotion, language = (
        yaml.safe_load((ROOT / f"configs/{task}.yaml").read_text()) for task in ("emotion", "language")
    )
    assert emotion.keys() == language.keys()
