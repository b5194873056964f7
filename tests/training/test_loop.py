"""Training: certified splits only, deterministic, resumable, everything told to MLflow."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from kubevox import storage
from kubevox.config import (
    AudioLimits,
    CorpusSource,
    DataConfig,
    EarlyStopping,
    ModelConfig,
    OneCycle,
    Plateau,
    SplitConfig,
    TaskConfig,
)
from kubevox.data.dataset import ingest, read_utterances
from kubevox.data.splits import make_split
from kubevox.errors import RegistryError, SplitError, TrainingError
from kubevox.features import extract_shard, load_features, read_index
from kubevox.models.bundle import load_bundle
from kubevox.training.checkpoint import load_checkpoint
from kubevox.training.loop import TrainResult, training_key
from kubevox.training.tracking import TrackedRun, mlflow_client, track_run
from tests.tiny import CNN1D, FEATURES, RESCNN, TRAIN, Tiny, prepare

MODELS = {"rescnn": RESCNN, "cnn1d": CNN1D.model_copy(update={"recipes": ["default", "noise"]})}


@pytest.fixture
def elsewhere(tiny: Tiny, trained: TrainResult, tmp_path: Path) -> Tiny:
    """The same split and features, with a store for what training makes and an MLflow of the test's own."""
    # Making a database takes MLflow seconds; a copy of one that is there is as good.
    shutil.copy(tiny.tracking.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    return dataclasses.replace(tiny, store=str(tmp_path / "store"), tracking=f"sqlite:///{tmp_path / 'mlflow.db'}")


def with_config(**changes: Any) -> Any:
    return TRAIN.model_copy(update=changes)


def interrupted_after(epochs: int, monkeypatch: pytest.MonkeyPatch, tiny: Tiny, *arguments: Any) -> None:
    """Train until the user presses Ctrl-C while an epoch's figures are logged."""
    log_epoch = TrackedRun.log_epoch

    def press(run: TrackedRun, figures: dict[str, float]) -> None:
        if figures["epoch"] > epochs:
            raise KeyboardInterrupt
        log_epoch(run, figures)

    with monkeypatch.context() as patched:
        patched.setattr(TrackedRun, "log_epoch", press)
        with pytest.raises(KeyboardInterrupt):
            tiny.train(*arguments)


def test_training_leaves_a_bundle_and_its_history(trained: TrainResult, tiny: Tiny) -> None:
    assert [epoch["epoch"] for epoch in trained.history] == [1, 2, 3]
    losses = [epoch["val_loss"] for epoch in trained.history]
    assert trained.best_epoch == 1 + losses.index(min(losses))
    assert not trained.reused
    spec = load_bundle(trained.bundle_uri).spec
    assert (spec.split_hash, spec.dataset_hash) == (tiny.split.hash, tiny.split.dataset.hash)
    assert spec.training_key == trained.key
    assert set(spec.speakers).isdisjoint(tiny.split.speakers("test"))
    assert len(spec.speakers) == 5


@pytest.mark.parametrize("name", MODELS)
def test_validation_rows_are_never_augmented(name: str, tiny: Tiny) -> None:
    """The best epoch's validation loss is that of the bundle on the recordings as they are."""
    result = tiny.train(MODELS[name])
    bundle = load_bundle(result.bundle_uri)
    rows = tiny.split.of("validation")
    ids = [utterance.id for utterance, _ in rows]
    features = load_features(tiny.blocks, bundle.spec.frontend, FEATURES.recipes["default"], ids)
    with torch.inference_mode():
        logits = bundle.classifier(torch.from_numpy(features))
    truth = torch.tensor([bundle.spec.labels.index(label) for _, label in rows])
    loss = float(torch.nn.functional.cross_entropy(logits, truth))
    assert loss == pytest.approx(result.history[result.best_epoch - 1]["val_loss"], abs=1e-5)
    for index in tiny.blocks:
        for block in read_index(index).blocks:
            if block.recipe != "default":
                augmented = set(pq.read_table(block.uri, columns=["id"])["id"].to_pylist())
                assert augmented == {utterance.id for utterance, _ in tiny.split.of("train")}


def test_what_was_trained_once_is_reused(trained: TrainResult, tiny: Tiny) -> None:
    again = tiny.train()
    assert again.reused
    assert again.bundle_uri == trained.bundle_uri
    assert again.run_id == trained.run_id


def test_other_audio_limits_are_another_bundle(trained: TrainResult, tiny: Tiny) -> None:
    limits = AudioLimits(max_duration_s=5.0)
    data = tiny.data.model_copy(update={"limits": limits})
    result = dataclasses.replace(tiny, data=data).train()
    assert not result.reused
    assert load_bundle(result.bundle_uri).spec.limits == limits


def test_a_bundle_that_was_lost_is_made_again(elsewhere: Tiny) -> None:
    first = elsewhere.train()
    shutil.rmtree(first.bundle_uri)
    again = elsewhere.train()
    assert not again.reused
    assert again.bundle_uri == first.bundle_uri
    assert Path(again.bundle_uri, "bundle.json").exists()


def test_mlflow_has_parameters_curves_lineage_and_the_bundle(trained: TrainResult, tiny: Tiny) -> None:
    client = mlflow.MlflowClient(tiny.tracking)
    run = client.get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "3"
    assert run.data.params["split_hash"] == tiny.split.hash
    assert run.data.params["dataset_hash"] == tiny.split.dataset.hash
    assert run.data.params["train.learning_rate"] == "0.001"
    assert run.data.params["model.architecture"] == "rescnn"
    assert run.data.tags["git_commit"]
    assert run.data.tags["bundle_uri"] == trained.bundle_uri
    assert set(run.data.metrics) == {"train_loss", "val_loss", "val_uar", "learning_rate"}
    assert [point.step for point in client.get_metric_history(trained.run_id, "val_uar")] == [1, 2, 3]
    files = {file.path for file in client.list_artifacts(trained.run_id, "bundle")}
    assert files == {"bundle/bundle.json", "bundle/model.safetensors"}


def test_a_new_tracking_server_is_told_of_a_reused_training_once(elsewhere: Tiny, tmp_path: Path) -> None:
    first = elsewhere.train()
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "new.db")
    moved = dataclasses.replace(elsewhere, tracking=f"sqlite:///{tmp_path / 'new.db'}")
    client = mlflow_client(moved.tracking)
    client.delete_run(first.run_id)
    again = moved.train()
    assert again.reused
    assert again.run_id != first.run_id
    run = client.get_run(again.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["split_hash"] == moved.split.hash
    assert [point.step for point in client.get_metric_history(again.run_id, "val_loss")] == [1, 2, 3]
    assert moved.train().run_id == again.run_id


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_bundle_in_another_store(
    name: str, tiny: Tiny, tiny_corpus: Path, elsewhere: Tiny, tmp_path: Path
) -> None:
    there = dataclasses.replace(prepare(tmp_path / "there", tiny_corpus), tracking=elsewhere.tracking)
    first, second = tiny.train(MODELS[name]), there.train(MODELS[name])
    assert Path(first.bundle_uri).name == Path(second.bundle_uri).name
    assert first.history == second.history
    assert first.bundle_uri != second.bundle_uri


def test_another_seed_gives_another_bundle(trained: TrainResult, elsewhere: Tiny) -> None:
    assert Path(elsewhere.train(config=with_config(seed=1)).bundle_uri).name != Path(trained.bundle_uri).name


@pytest.fixture(scope="module")
def one_sided(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Noise, eight clips under one label for each under the other: there is nothing to learn but how many there are."""
    root = tmp_path_factory.mktemp("one-sided")
    chance = np.random.default_rng(0)
    for speaker in range(12):
        for clip in range(9):
            path = root / "corpus" / ("often" if clip else "seldom") / f"s{speaker}_{clip}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * chance.standard_normal(16_000), 16_000)
    data = DataConfig(corpora=[CorpusSource(name="folder", path=str(root / "corpus"))])
    store = str(root / "store")
    dataset, _ = ingest(data, store)
    task = TaskConfig(name="mood", labels=["often", "seldom"])
    every = [utterance.source_id for utterance in read_utterances(dataset.shard_uris)]
    split, _ = make_split(dataset, every, task, SplitConfig(), store)
    plan = {"statistics": ["default"]}
    blocks = [extract_shard(shard, split.split_of, FEATURES, plan, store).uri for shard in dataset.shard_uris]
    return Tiny(store, tiny.tracking, data, split, blocks)


def test_balance_decides_how_much_is_given_to_a_seldom_label(one_sided: Tiny) -> None:
    ids = [utterance.id for utterance, _ in one_sided.split.of("validation", "test")]
    given = {}
    for balance in ("none", "weights", "sampler"):
        config = with_config(
            balance=balance, epochs=8, batch_size=16, mixup=0.0, label_smoothing=0.0, learning_rate=0.01
        )
        bundle = load_bundle(one_sided.train(CNN1D, config).bundle_uri)
        features = load_features(one_sided.blocks, bundle.spec.frontend, FEATURES.recipes["default"], ids)
        with torch.inference_mode():  # without the temperature, which few validation rows leave to chance
            logits = bundle.classifier(torch.from_numpy(features))
        given[balance] = float(logits.softmax(dim=1)[:, 1].mean())
    assert given["none"] + 0.02 < min(given["weights"], given["sampler"])


def test_early_stopping_ends_a_training_without_progress(elsewhere: Tiny) -> None:
    stopping = EarlyStopping(monitor="loss", min_delta=100.0, patience=2)
    result = elsewhere.train(config=with_config(epochs=30, early_stopping=stopping))
    assert len(result.history) == 3, "one epoch is always better than none, then two are not"
    assert result.best_epoch == 1


def test_the_best_epoch_is_chosen_by_the_figure_that_is_monitored(elsewhere: Tiny) -> None:
    stopping = EarlyStopping(monitor="uar", min_delta=0.0, patience=10)
    result = elsewhere.train(config=with_config(epochs=6, learning_rate=0.01, early_stopping=stopping))
    figures = [epoch["val_uar"] for epoch in result.history]
    assert result.best_epoch == 1 + figures.index(max(figures))


def test_one_cycle_warms_up_and_ends_near_zero(elsewhere: Tiny) -> None:
    result = elsewhere.train(config=with_config(epochs=8, schedule=OneCycle(warmup_share=0.4)))
    rates = [epoch["learning_rate"] for epoch in result.history]
    assert rates[0] < max(rates) <= 1e-3
    assert rates[-1] < 1e-3 / 100


def test_plateau_lowers_the_rate_only_where_nothing_gets_better(elsewhere: Tiny) -> None:
    schedule = Plateau(factor=0.4, patience=0, min_learning_rate=1e-3)
    config = with_config(epochs=8, learning_rate=0.03, schedule=schedule, mixup=1.0)
    rates = [epoch["learning_rate"] for epoch in elsewhere.train(CNN1D, config).history]
    assert all(after == before or after == max(0.4 * before, 1e-3) for before, after in pairwise(rates))
    assert rates[0] == 0.03
    assert min(rates) >= 1e-3


def test_a_loss_that_is_no_number_is_an_error_that_names_the_key(elsewhere: Tiny) -> None:
    with pytest.raises(TrainingError, match=r"epoch 1: .*train\.learning_rate \(now 1e\+30\)"):
        elsewhere.train(config=with_config(learning_rate=1e30))
    assert storage.list_names(f"{elsewhere.store}/bundles") == []
    newest = mlflow_client(elsewhere.tracking).search_runs(
        [mlflow_client(elsewhere.tracking).get_experiment_by_name("mood").experiment_id], max_results=1
    )[0]
    assert newest.info.status == "FAILED"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_an_error_that_names_the_key(elsewhere: Tiny) -> None:
    with pytest.raises(TrainingError, match=r"train\.device 'cuda'"):
        elsewhere.train(config=with_config(device="cuda"))


def test_a_tracking_server_that_does_not_answer_is_named_before_anything_is_trained(
    elsewhere: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match=r"tracking\.uri http://127\.0\.0\.1:9"):
        dataclasses.replace(elsewhere, tracking="http://127.0.0.1:9").train()
    assert storage.list_names(f"{elsewhere.store}/checkpoints") == []


@pytest.mark.parametrize("uri", ["mlruns", "/dev/null/mlflow.db"])
def test_a_place_that_cannot_hold_a_registry_is_named(uri: str) -> None:
    with pytest.raises(RegistryError, match=uri):
        mlflow_client(uri if uri == "mlruns" else f"sqlite:///{uri}")


def test_a_run_that_fails_is_left_as_failed(elsewhere: Tiny) -> None:
    with pytest.raises(ZeroDivisionError), track_run(elsewhere.tracking, "mood", "a-name-of-a-run") as run:
        _ = 1 / 0
    found = mlflow_client(elsewhere.tracking).get_run(run.id)
    assert (found.info.status, found.info.run_name) == ("FAILED", "a-name-of-a-")


def test_a_moved_speaker_is_refused_even_where_training_could_be_reused(elsewhere: Tiny, tmp_path: Path) -> None:
    uri = tmp_path / "splits" / elsewhere.split.hash
    shutil.copytree(elsewhere.split.uri, uri)
    pipeline = dataclasses.replace(elsewhere, split=dataclasses.replace(elsewhere.split, uri=str(uri)))
    assert not pipeline.train().reused
    assert pipeline.train().reused
    table = pq.read_table(uri / "split.parquet")
    moved = ["train" if split == "test" else split for split in table["split"].to_pylist()]
    pq.write_table(table.set_column(2, "split", pa.array(moved)), uri / "split.parquet")
    with pytest.raises(SplitError, match="no valid certificate"):
        pipeline.train()
    with pytest.raises(SplitError, match="no valid certificate"):
        pipeline.train(config=with_config(seed=9))
    assert len(storage.list_names(f"{pipeline.store}/bundles")) == 1


@pytest.mark.parametrize(
    ("name", "schedule"), [("rescnn", OneCycle()), ("cnn1d", Plateau(patience=0))], ids=["rescnn", "cnn1d"]
)
def test_an_interrupted_training_ends_as_an_undisturbed_one(
    name: str, schedule: OneCycle | Plateau, elsewhere: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: ModelConfig = MODELS[name]
    config = with_config(epochs=6, schedule=schedule, balance="sampler", learning_rate=0.01)
    interrupted_after(3, monkeypatch, elsewhere, model, config)
    assert storage.list_names(f"{elsewhere.store}/bundles") == []
    resumed = elsewhere.train(model, config)
    assert resumed.resumed_at == 3
    undisturbed = dataclasses.replace(elsewhere, store=str(tmp_path / "undisturbed")).train(model, config)
    assert undisturbed.resumed_at == 0
    assert resumed.history == undisturbed.history
    assert resumed.best_epoch == undisturbed.best_epoch
    assert Path(resumed.bundle_uri).name == Path(undisturbed.bundle_uri).name


def test_a_training_that_is_taken_up_goes_on_in_its_mlflow_run(
    elsewhere: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow_client(elsewhere.tracking)
    experiment = client.get_experiment_by_name("mood").experiment_id
    before = {run.info.run_id for run in client.search_runs([experiment])}
    config = with_config(seed=4)
    interrupted_after(1, monkeypatch, elsewhere, RESCNN, config)
    (started,) = {run.info.run_id for run in client.search_runs([experiment])} - before
    assert client.get_run(started).info.status == "FAILED"
    resumed = elsewhere.train(RESCNN, config)
    assert resumed.run_id == started
    assert client.get_run(started).info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(started, "val_loss")] == [1, 2, 3]


def test_a_damaged_checkpoint_starts_the_training_over(
    elsewhere: Tiny, trained: TrainResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted_after(2, monkeypatch, elsewhere)
    (checkpoint,) = Path(elsewhere.store, "checkpoints").glob("*/last.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    capsys.readouterr()
    result = elsewhere.train()
    assert capsys.readouterr().err.count("is damaged") == 1
    assert result.resumed_at == 0
    assert Path(result.bundle_uri).name == Path(trained.bundle_uri).name


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
