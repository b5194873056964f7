"""Training: certified splits only, deterministic, resumable, everything told to MLflow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kubevox import storage
from kubevox.config import Cnn1dConfig, EarlyStopping
from kubevox.errors import SplitError, TrainingError
from kubevox.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kubevox.training.loop import TrainResult, training_key
from tests.tiny import FEATURES, RESCNN, TRAIN, Tiny, prepare

CNN1D = Cnn1dConfig(filters=[[4], [8]], strides=[[2], [2]], dense=[8])


def test_training_leaves_a_bundle_and_its_history(trained: TrainResult) -> None:
    assert [epoch["epoch"] for epoch in trained.history] == [1, 2, 3]
    assert 1 <= trained.best_epoch <= 3
    assert storage.exists(f"{trained.bundle_uri}/bundle.json")
    assert not trained.reused


def test_what_was_trained_once_is_reused(trained: TrainResult, tiny: Tiny) -> None:
    again = tiny.train()
    assert again.reused
    assert again.bundle_uri == trained.bundle_uri
    assert again.run_id == trained.run_id


def test_mlflow_has_parameters_curves_lineage_and_the_bundle(trained: TrainResult, tiny: Tiny) -> None:
    client = mlflow.MlflowClient(tiny.tracking)
    run = client.get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "3"
    assert run.data.params["split_hash"] == tiny.split.hash
    assert run.data.params["dataset_hash"] == tiny.split.dataset.hash
    assert run.data.tags["git_commit"]
    assert [point.step for point in client.get_metric_history(trained.run_id, "val_uar")] == [1, 2, 3]
    files = {file.path for file in client.list_artifacts(trained.run_id, "bundle")}
    assert files == {"bundle/bundle.json", "bundle/model.safetensors"}


def test_a_new_tracking_server_is_told_of_a_reused_training(trained: TrainResult, tiny: Tiny, tmp_path: Path) -> None:
    elsewhere = Tiny(tiny.store, f"sqlite:///{tmp_path / 'other.db'}", tiny.data, tiny.split, tiny.blocks)
    again = elsewhere.train()
    assert again.reused
    run = mlflow.MlflowClient(elsewhere.tracking).get_run(again.run_id)
    assert run.data.params["split_hash"] == tiny.split.hash


@pytest.mark.parametrize("model", [RESCNN, CNN1D], ids=["rescnn", "cnn1d"])
def test_the_same_seed_gives_the_same_bundle_in_another_store(
    model: Cnn1dConfig, tiny: Tiny, tiny_corpus: Path, tmp_path: Path
) -> None:
    here, there = tiny.train(model), prepare(tmp_path, tiny_corpus).train(model)
    assert Path(here.bundle_uri).name == Path(there.bundle_uri).name
    assert here.history == there.history


def test_another_seed_gives_another_bundle(trained: TrainResult, tiny: Tiny) -> None:
    assert tiny.train(config=TRAIN.model_copy(update={"seed": 1})).bundle_uri != trained.bundle_uri


@pytest.mark.parametrize("balance", ["none", "sampler"])
def test_other_ways_to_balance_labels_train(balance: str, tiny: Tiny) -> None:
    assert tiny.train(config=TRAIN.model_copy(update={"balance": balance, "epochs": 1})).history


def test_early_stopping_ends_a_training_without_progress(tiny: Tiny) -> None:
    stopping = EarlyStopping(monitor="uar", min_delta=0.99, patience=2)
    result = tiny.train(config=TRAIN.model_copy(update={"epochs": 30, "early_stopping": stopping}))
    assert len(result.history) < 30


def test_a_loss_that_is_no_number_is_an_error_that_names_the_key(tiny: Tiny) -> None:
    with pytest.raises(TrainingError, match=r"train\.learning_rate"):
        tiny.train(config=TRAIN.model_copy(update={"learning_rate": 1e30}))


def test_a_moved_speaker_is_refused_even_where_training_could_be_reused(tiny_corpus: Path, tmp_path: Path) -> None:
    pipeline = prepare(tmp_path, tiny_corpus)
    pipeline.train()
    path = Path(pipeline.split.uri) / "split.parquet"
    table = pq.read_table(path)
    moved = ["train" if split == "test" else split for split in table["split"].to_pylist()]
    pq.write_table(table.set_column(2, "split", pa.array(moved)), path)
    with pytest.raises(SplitError, match="no valid certificate"):
        pipeline.train()


_VICTIM = """
import sys
from pathlib import Path
from tests.tiny import RESCNN, TRAIN, prepare
pipeline = prepare(Path(sys.argv[1]), Path(sys.argv[2]))
pipeline.train(config=TRAIN.model_copy(update={"epochs": 40, "seed": 3}))
"""


@pytest.mark.slow
def test_a_training_killed_midway_ends_as_an_undisturbed_one(tiny: Tiny, tiny_corpus: Path, tmp_path: Path) -> None:
    config = TRAIN.model_copy(update={"epochs": 40, "seed": 3})
    root = Path(__file__).resolve().parents[2]
    victim = subprocess.Popen(
        [sys.executable, "-c", _VICTIM, str(tmp_path), str(tiny_corpus)], cwd=root, env=os.environ | {"PYTHONPATH": "."}
    )
    key = training_key(tiny.split, RESCNN, config, FEATURES, tiny.data.limits)
    checkpoint = tmp_path / "store" / "checkpoints" / key / "last.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    saved = load_checkpoint(str(checkpoint.parent))
    assert saved is not None
    assert 0 < saved.epoch < 40, "killed too late to tell"
    resumed = prepare(tmp_path, tiny_corpus).train(config=config)
    assert resumed.resumed_at == saved.epoch
    undisturbed = tiny.train(config=config)
    assert undisturbed.resumed_at == 0
    assert resumed.history == undisturbed.history
    assert Path(resumed.bundle_uri).name == Path(undisturbed.bundle_uri).name
    assert resumed.run_id == saved.figures["run_id"], "the same MLflow run goes on"


def _checkpoint() -> Checkpoint:
    weights = {"layer.weight": torch.randn(3, 2)}
    return Checkpoint(4, weights, weights, {"0.exp_avg": torch.randn(3, 2)}, torch.get_rng_state(), {"run_id": "r"})


def test_a_checkpoint_is_read_back_as_it_was(tmp_path: Path) -> None:
    written = _checkpoint()
    save_checkpoint(str(tmp_path), written)
    read = load_checkpoint(str(tmp_path))
    assert read is not None
    assert (read.epoch, read.figures) == (4, {"run_id": "r"})
    assert torch.equal(read.random, written.random)
    for group in ("model", "best", "optimiser"):
        for name, tensor in getattr(written, group).items():
            assert torch.equal(getattr(read, group)[name], tensor)


def test_a_damaged_checkpoint_is_said_and_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(str(tmp_path), _checkpoint())
    (tmp_path / "last.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    assert load_checkpoint(str(tmp_path)) is None
    assert "starts over" in capsys.readouterr().err
