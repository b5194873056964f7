from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from kubevox import erasure, storage
from kubevox.cli.forget import forget as forget_command
from kubevox.config import CorpusSource, DataConfig, SplitConfig, ValidateConfig
from kubevox.data.audio import decode_stored
from kubevox.data.dataset import ingest, load_dataset, read_audio, read_utterances, resolve, versions
from kubevox.data.dataset.forgetting import forget
from kubevox.data.dataset.history import record
from kubevox.data.pseudonyms import Pseudonyms
from kubevox.data.splits import make_split
from kubevox.data.validation import accepted_source_ids, validate
from kubevox.errors import StorageError
from kubevox.evaluation.run import evaluate
from kubevox.registry import Registry
from kubevox.training.checkpoint import Checkpoint, save_checkpoint
from tests.tiny import EVALUATE, FEATURES, LENIENT, TASK, Tiny, prepare, untrained_bundle

CONFIG = """
task: {{name: mood, labels: [angry, happy, sad]}}
store: {store}
tracking: {{uri: "{tracking}"}}
data: {{corpora: [{{name: folder, path: {corpus}}}], publish_names: true}}
"""


@dataclass(frozen=True)
class World:
    """A store in which everything was done once, and which each test gets as it was."""

    tiny: Tiny
    config: Path
    pristine: Path
    names: dict[str, str]
    ids: dict[str, set[str]]

    @property
    def store(self) -> Path:
        return Path(self.tiny.store)

    def speaker(self, split: str) -> str:
        """Somebody of a split."""
        return self.tiny.split.speakers(split)[0]  # type: ignore[arg-type]

    def run(self, *arguments: str) -> Result:
        app = typer.Typer()
        app.command()(forget_command)
        return CliRunner().invoke(app, [*arguments, "--config", str(self.config)])

    def paths(self) -> set[str]:
        """Every finished object of the store."""
        paths = {path.relative_to(self.store).as_posix() for path in self.store.rglob("*") if path.is_file()}
        return {path for path in paths if not re.search(r"(^|/)\.", path)}

    def traces(self, speaker: str) -> list[str]:
        """Every object but the bundles that tells of somebody, or in which he can be heard."""
        asked = {speaker, *self.ids[speaker]} | {
            row.source_id for row in self.tiny.split.utterances if row.speaker == speaker
        }
        found = []
        for path in sorted(path for path in self.store.rglob("*") if path.is_file()):
            inside = path.relative_to(self.store).as_posix()
            if inside.startswith("bundles/"):
                continue
            data = path.read_bytes()
            if inside.endswith(".parquet") and inside.startswith(
                ("shards", "features", "splits", "eval", "vali", "data")
            ):
                rows = pq.read_table(path).to_pylist()
                audio = [row.pop("audio")["bytes"] for row in rows if "audio" in row]
                if self.ids[speaker] & {decode_stored(flac, inside).id for flac in audio}:
                    found.append(f"{inside} (heard)")
                data = repr(rows).encode() + repr(pq.read_schema(path).metadata).encode()
            # Not `folder:angry/s01_0` in `folder:angry/s01_01`.
            if any(re.search(re.escape(name.encode()) + rb"(?![\w])", data) for name in asked):
                found.append(inside)
        return found


def restored(world: World) -> World:
    shutil.rmtree(world.store)
    shutil.copytree(world.pristine, world.store)
    return world


@pytest.fixture(scope="module")
def built(make_corpus: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("erasure")
    corpus = make_corpus(root / "corpus", 6, clips=1, seconds=1.0)
    tiny = prepare(root, corpus)
    store = tiny.store
    trained = tiny.train()
    evaluation = evaluate(trained.bundle_uri, tiny.blocks, tiny.split.uri, FEATURES, EVALUATE, LENIENT, store, "", "")
    rollout = {"model": "mood", "bundle": trained.bundle_uri, "evaluation": evaluation.uri, "outcome": "promoted"}
    storage.write_bytes(f"{store}/rollouts/{'7' * 64}.json", json.dumps(rollout).encode())
    unfinished = Checkpoint(1, {"w": torch.zeros(2)}, {}, {}, torch.get_rng_state(), {"split": tiny.split.hash})
    save_checkpoint(f"{store}/checkpoints/{'8' * 64}", unfinished)

    someone = tiny.split.speakers("train")[0]
    others = [name for name in tiny.split.speakers("train", "validation") if name != someone]
    registry = Registry(tiny.tracking)
    champion = registry.register("mood", trained.bundle_uri, trained.run_id, {"split_hash": tiny.split.hash})
    registry.promote(champion)
    without = untrained_bundle(tiny, store, seed=1, speakers=others, split_hash="1" * 64)
    registry.register("other", without, trained.run_id, {})
    registry.register("other", untrained_bundle(tiny, store, seed=2), trained.run_id, {})
    gone = untrained_bundle(tiny, store, seed=3)
    registry.register("lost", gone, trained.run_id, {})
    shutil.rmtree(gone)
    untrained_bundle(tiny, store, seed=4)  # registered nowhere

    names = Pseudonyms.of_store(store)
    assert names is not None
    record(store, "second", tiny.split.dataset.hash, "ingest")  # the same version under another name
    config = root / "config.yaml"
    config.write_text(CONFIG.format(store=store, tracking=tiny.tracking, corpus=corpus))
    leftovers = Path(store, "tmp", "staging-killed1")
    leftovers.mkdir(parents=True)
    (leftovers / "shard.parquet").write_bytes(b"PAR1 half a shard")
    Path(store, "splits", ".certificate.json.abcd1234").write_text(json.dumps({"speaker": someone}))
    ids: dict[str, set[str]] = {}
    for row in tiny.split.utterances:
        ids.setdefault(str(row.speaker), set()).add(row.id)
    own = {names.speaker(f"folder:s{number:02d}"): f"folder:s{number:02d}" for number in range(6)}
    world = World(tiny, config, root / "pristine", own, ids)
    shutil.copytree(store, world.pristine)
    return world


@pytest.fixture
def world(built: World) -> World:
    return restored(built)


def registered(told: dict[str, Any]) -> set[tuple[str, str]]:
    return {(model["name"], model["version"]) for model in told["models"] if model["name"]}


def verified(store: Path) -> None:
    """Every version that can be read is whole: its shards are there, sound, and hold what it says."""
    for version in versions(str(store)):
        rows = read_utterances(version.shard_uris)
        assert len(rows) == version.utterances
        heard = {waveform.id for shard in version.shard_uris for _, waveform in read_audio(shard)}
        assert heard == {row.id for row in rows}


def test_nothing_in_the_whole_store_tells_of_an_erased_person(world: World) -> None:
    speaker = world.speaker("train")
    assert len(world.traces(speaker)) > 8
    result = world.run(speaker, "--erase", "--yes")
    assert result.exit_code == 0, result.output
    assert world.traces(speaker) == []
    verified(world.store)
    assert not list(world.store.glob("erasures/*"))


def test_what_was_made_of_an_erased_persons_split_goes_with_it(world: World) -> None:
    world.run(world.speaker("train"), "--erase", "--yes")
    for folder in ("splits", "validations", "evaluations", "checkpoints", "rollouts", "features", "memo/train"):
        assert not [path for path in world.store.glob(f"{folder}/**/*") if path.is_file()], folder
    assert len(list(world.store.glob("bundles/*"))) == 4


def test_a_training_is_not_remembered_when_its_split_is_purged(world: World) -> None:
    """Also where only the bundle still tells which split the training was on."""
    shutil.rmtree(world.store / "checkpoints")
    assert list(world.store.glob("memo/train/*"))
    world.run(world.speaker("train"), "--erase", "--yes")
    assert not list(world.store.glob("memo/train/*"))


def test_someone_only_tested_on_is_erased_and_no_model_blamed(world: World) -> None:
    speaker = world.speaker("test")
    told = json.loads(world.run(speaker, "--erase", "--yes", "--json").output)
    assert told["models"] == []
    assert world.traces(speaker) == []


def test_everybody_else_is_kept_whole(world: World) -> None:
    speaker = world.speaker("train")
    before = {row.id: row for row in read_utterances(resolve(str(world.store), "default", "current").shard_uris)}
    world.run(speaker, "--erase", "--yes")
    now = resolve(str(world.store), "default", "current")
    rows = read_utterances(now.shard_uris)
    assert rows == [row for row in before.values() if row.speaker != speaker]
    again, _ = ingest(world.tiny.data, str(world.store))
    assert again.hash == now.hash
    verified(world.store)


def test_those_who_stay_keep_their_split(world: World) -> None:
    speaker = world.speaker("train")
    before = {row.speaker: world.tiny.split.split_of[row.id] for row in world.tiny.split.utterances}
    world.run(speaker, "--erase", "--yes")
    store = str(world.store)
    dataset = resolve(store, "default", "current")
    checked = validate(dataset, TASK, ValidateConfig(), store)
    split, _ = make_split(dataset, accepted_source_ids(checked.uri), TASK, SplitConfig(), store)
    assert {row.speaker: split.split_of[row.id] for row in split.utterances} == {
        name: where for name, where in before.items() if name != speaker
    }


def test_every_registered_model_trained_on_the_person_is_named_and_no_other(world: World) -> None:
    speaker = world.speaker("train")
    for options in ([], ["--erase", "--yes"]):
        told = json.loads(world.run(speaker, *options, "--json").output)
        assert registered(told) == {("mood", "1"), ("other", "2"), ("lost", "1")}
        assert [model["champion"] for model in told["models"] if model["name"] == "mood"] == [True]
        assert len([model for model in told["models"] if model["name"] is None]) == 1
        restored(world)
    other = next(name for name in world.tiny.split.speakers("train", "validation") if name != speaker)
    told = json.loads(world.run(other, "--json").output)
    assert registered(told) == {("mood", "1"), ("other", "1"), ("other", "2"), ("lost", "1")}


def test_a_model_that_used_the_audio_under_another_name_is_named(world: World) -> None:
    """The bundle lists another speaker for the recording; the split tells which recordings were used."""
    speaker = world.speaker("train")
    untrained_bundle(world.tiny, world.store, seed=9, speakers=["folder:somebody"])
    models = erasure.trained_on(str(world.store), "sqlite:////nowhere/mlflow.db", [speaker], world.ids[speaker])
    hidden = [
        model
        for model in models
        if json.loads(Path(model.bundle, "bundle.json").read_text())["speakers"] == ["folder:somebody"]
    ]
    assert len(hidden) == 1


def test_a_model_of_which_nothing_can_be_told_is_listed_with_the_reason(world: World) -> None:
    registry = Registry(world.tiny.tracking)
    told = json.loads(world.run(world.speaker("test"), "--json").output)
    assert told["models"] == []
    elsewhere = untrained_bundle(world.tiny, world.store, seed=6, speakers=["folder:x"], key_fingerprint="f" * 16)
    run = registry.versions()[0].run_id
    version = registry.register("elsewhere", elsewhere, run, {})
    try:
        told = json.loads(world.run(world.speaker("test"), "--json").output)
        assert registered(told) == {("elsewhere", version.version)}
        assert "under another key" in told["models"][0]["advice"]
    finally:
        registry._client.delete_registered_model("elsewhere")


def test_models_are_deleted_where_asked_but_not_the_champion(world: World) -> None:
    result = world.run(world.speaker("train"), "--erase", "--models", "--yes")
    assert result.exit_code == 1
    assert "the champion of mood" in result.output
    left = [json.loads(path.read_text())["training_key"] for path in world.store.glob("bundles/*/bundle.json")]
    assert len(left) == 2
    assert f"{1:064d}" in left  # not trained on them
    assert world.traces(world.speaker("train")) == []


def test_the_corpus_own_name_will_do(world: World) -> None:
    speaker = world.speaker("train")
    result = world.run(world.names[speaker])
    assert result.exit_code == 0
    assert f"{world.names[speaker]} is {speaker}" in result.output
    assert world.traces(speaker)  # older versions are still there


def test_without_a_terminal_nothing_is_purged_unasked(world: World) -> None:
    before = sorted(path for path in world.store.rglob("*") if path.is_file())
    result = world.run(world.speaker("train"), "--erase")
    assert isinstance(result.exception, StorageError)
    assert "--yes" in str(result.exception)
    assert "would be purged" in result.output
    assert sorted(path for path in world.store.rglob("*") if path.is_file()) == before


def test_a_stranger_is_one_clear_line(world: World) -> None:
    result = world.run("folder:nobody")
    assert isinstance(result.exception, StorageError)
    assert re.search(r"folder:nobody: not in version \w+ of dataset 'default'.*--erase", str(result.exception))
    assert not list(world.store.glob("forgotten/*"))


def test_someone_forgotten_before_can_still_be_erased(world: World) -> None:
    speaker = world.speaker("validation")
    assert world.run(speaker).exit_code == 0
    assert world.traces(speaker)
    assert world.run(world.names[speaker], "--erase", "--yes").exit_code == 0
    assert world.traces(speaker) == []
    assert world.run(speaker, "--erase", "--yes").exit_code == 0  # and once more, of whom nothing is left


def test_a_version_that_became_current_meanwhile_is_not_purged(world: World) -> None:
    speaker, store = world.speaker("train"), str(world.store)
    old = resolve(store, "default", "current")
    names = Pseudonyms.of_store(store)
    for name in ("default", "second"):
        forget(store, name, {speaker}, names)
    record(store, "default", old.hash, "rollback")
    with pytest.raises(StorageError, match="current version of dataset 'default'"):
        erasure.erase(store, [speaker])
    assert load_dataset(old.uri) == old


def test_a_damaged_object_is_named_and_not_passed_over(world: World) -> None:
    path = world.store / "features" / f"{'a' * 64}.parquet"
    path.write_bytes(b"PAR1 damaged")
    result = world.run(world.speaker("train"), "--erase", "--yes")
    assert result.exit_code == 1
    assert f"features/{path.name}: cannot be opened" in result.output


def test_recordings_that_no_shard_tells_of_are_named(world: World) -> None:
    """A version was collected, an evaluation on it was kept: whose recordings it lists, nobody can say any more."""
    lost = world.store / "evaluations" / ("b" * 64)
    lost.mkdir()
    pq.write_table(pa.table({"utterance": ["c" * 64]}), lost / "predictions.parquet")
    output = world.run(world.speaker("train"), "--erase", "--yes").output
    assert f"evaluations/{lost.name}" in output
    assert (lost / "predictions.parquet").exists()


def test_a_copy_in_a_dataset_that_does_not_name_the_person_goes_too(
    world: World, write_wav: Callable[..., Path], tmp_path: Path
) -> None:
    speaker, store = world.speaker("train"), str(world.store)
    corpus = Path(str(world.tiny.data.corpora[0].path))
    write_wav(tmp_path / "sad" / "t01_0.wav", frequency=555)
    shutil.copy(next(corpus.rglob(f"{world.names[speaker].removeprefix('folder:')}_*.wav")), tmp_path / "sad/t02_0.wav")
    ingest(DataConfig(name="third", corpora=[CorpusSource(name="folder", path=str(tmp_path))]), store)
    result = world.run(speaker, "--erase", "--yes")
    assert result.exit_code == 0, result.output
    assert world.traces(speaker) == []
    assert resolve(store, "third", "current").utterances == 1


@pytest.mark.parametrize("told", ["{}", "[]", "{"])
def test_a_bundle_that_cannot_say_whom_it_learnt_from_is_listed(world: World, told: str) -> None:
    damaged = world.store / "bundles" / ("d" * 64)
    damaged.mkdir()
    (damaged / "bundle.json").write_text(told)
    models = json.loads(world.run(world.speaker("test"), "--json").output)["models"]
    assert [(model["bundle"], model["deleted"]) for model in models] == [(str(damaged), False)]
    assert "bundle.json is damaged" in models[0]["advice"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("last.safetensors", b"\xff" * 20),
        ("told.json.gz", gzip.compress(json.dumps(list(range(999))).encode())[:300] + b"damaged"),
    ],
)
def test_damage_of_any_kind_does_not_end_the_search(world: World, name: str, content: bytes) -> None:
    path = world.store / "checkpoints" / ("c" * 64) / name
    path.parent.mkdir()
    path.write_bytes(content)
    assert erasure.holdings(str(world.store), [world.speaker("train")]).unreadable == (
        path.relative_to(world.store).as_posix(),
    )


def test_what_is_out_of_reach_is_said(world: World) -> None:
    output = world.run(world.speaker("train"), "--erase", "--yes").output
    assert "out of reach" in output
    for thing in ("MLflow", "KFP", "backups", "corpora's own files", "caches", "logs"):
        assert thing in output


KILLED = """
import os, signal, sys
from kubevox import erasure, storage
from kubevox.data.dataset import history
from kubevox.data.dataset.forgetting import forget
from kubevox.data.pseudonyms import Pseudonyms

store, speaker, moment = sys.argv[1], sys.argv[2], int(sys.argv[3])
done = 0

def counted(change):
    def count(*args, **options):
        global done
        if done == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return change(*args, **options)
    return count

for name in ("create", "create_file", "delete", "publish", "write_bytes"):
    setattr(storage, name, counted(getattr(storage, name)))
for name in history.names(store):
    forget(store, name, {speaker}, Pseudonyms.of_store(store))
erasure.erase(store, [speaker])
print(done)
"""


def test_killed_at_any_moment_it_is_completed_by_the_next(world: World) -> None:
    speaker, store = world.speaker("train"), str(world.store)

    def run(moment: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, store, speaker, str(moment)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    whole = run(-1)
    assert whole.returncode == 0, whole.stderr
    undisturbed = world.paths()
    steps = int(whole.stdout)
    assert steps > 15
    for moment in {*range(0, steps, max(1, steps // 8)), steps - 1}:
        restored(world)
        assert run(moment).returncode == -9
        verified(world.store)  # no version lists a shard that is gone
        names = Pseudonyms.of_store(store)
        for name in ("default", "second"):
            forget(store, name, {speaker}, names)
        erasure.erase(store, [speaker])
        assert world.traces(speaker) == [], moment
        assert world.paths() == undisturbed, moment
        verified(world.store)
