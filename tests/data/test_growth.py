"""Batches that are added, windows that drop them, and what stays of the versions before."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import CorpusSource, DataConfig
from kubevox.data.dataset import DatasetVersion, growth, ingest, load_dataset, read_rejects, read_utterances, resolve
from kubevox.data.dataset.forgetting import forget, speakers_of
from kubevox.data.dataset.growth import Window, add, slide
from kubevox.data.dataset.history import history
from kubevox.data.dataset.upkeep import rollback, verify
from kubevox.data.dataset.versions import dataset_hash
from kubevox.data.pseudonyms import Pseudonyms
from kubevox.errors import ConfigError, CorpusError, StorageError, ValidationError
from tests.data.arriving import make_arriving

WriteWav = Callable[..., Path]
BATCHES = ("b0", "b1", "b2", "b3")
TODAY = datetime.date(2026, 6, 30)


def config(folder: Path, **options: object) -> DataConfig:
    return DataConfig(corpora=[CorpusSource(name="folder", path=str(folder))], max_rejected_share=0.5, **options)


def current(store: str) -> DatasetVersion:
    return resolve(store, "default", "current")


def names(version: DatasetVersion) -> list[str]:
    return [batch["name"] for batch in version.batches]


def assert_accounted(version: DatasetVersion) -> None:
    """Nothing that was found is lost, in the whole and in each batch."""
    for counts in (version.corpora, *(batch["counts"] for batch in version.batches)):
        for count in counts:
            assert count["found"] == sum(count[name] for name in ("left_out", "forgotten", "stored", "failed"))
    assert sum(count["stored"] for count in version.corpora) == version.utterances
    assert sum(count["failed"] for count in version.corpora) == version.rejects == len(read_rejects(version))


@pytest.fixture(scope="module")
def arriving(write_wav: WriteWav, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus ``base`` and four batches with the same file names; b1 has a file that is none."""
    return make_arriving(tmp_path_factory.mktemp("arriving"), write_wav, ("base", *BATCHES))


@pytest.fixture(scope="module")
def ingested(arriving: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("ingested") / "store"
    ingest(config(arriving / "base"), str(store))
    return store


@pytest.fixture
def store(ingested: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(ingested, tmp_path / "store"))


def test_a_batch_becomes_a_version_on_top_of_the_current_one(store: str, arriving: Path) -> None:
    before = current(store)
    grown = add(config(arriving / "b0"), store, "b0", recorded=TODAY)
    assert current(store) == grown.after == load_dataset(grown.after.uri)
    assert grown.before == before
    assert names(grown.after) == ["ingest", "b0"]
    assert grown.after.utterances == 8
    assert grown.after.shards[: len(before.shards)] == before.shards
    assert grown.after.lineage["parent"] == before.hash
    entry = history(store, "default")[-1]
    assert (entry.operation, entry.parent, entry.detail) == ("add", before.hash, "b0: 4 recordings")
    assert grown.after.batches[1]["recorded"] == "2026-06-30"


def test_nothing_that_was_stored_is_written_again(store: str, arriving: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in Path(store, "shards").iterdir()}
    add(config(arriving / "b0"), store, "b0")
    after = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in Path(store, "shards").iterdir()}
    assert before.items() < after.items()


def test_counts_are_summed_over_the_batches(store: str, arriving: Path) -> None:
    add(config(arriving / "b0"), store, "b0")
    version = add(config(arriving / "b1"), store, "b1").after
    assert_accounted(version)
    [counts] = version.corpora
    assert (counts["found"], counts["stored"], counts["failed"]) == (13, 12, 1)
    assert counts["labels"] == {"angry": 6, "sad": 7}
    assert counts["speakers"] == 4  # ann is in every batch
    [reject] = read_rejects(version)
    assert (reject["batch"], reject["reason"]) == ("b1", "not_audio")


def test_the_same_batch_is_recognised_without_being_read(
    store: str, arriving: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add(config(arriving / "b0"), store, "b0")
    monkeypatch.setattr(growth, "store_recordings", None)
    again = add(config(arriving / "b0"), store, "b0")
    assert (again.before, again.after, again.added, again.dropped) == (first.after, first.after, None, ())
    assert len(history(store, "default")) == 2


def test_the_same_batch_is_recognised_when_it_lies_elsewhere(store: str, arriving: Path, tmp_path: Path) -> None:
    first = add(config(arriving / "b1"), store, "b1")
    moved = Path(shutil.copytree(arriving / "b1", tmp_path / "moved", copy_function=shutil.copy))
    os.utime(moved / "sad" / "ann_0.wav", (1, 1))
    assert add(config(moved), store, "b1").after == first.after
    assert len(history(store, "default")) == 2


def test_other_recordings_under_a_taken_name_are_refused(store: str, arriving: Path) -> None:
    before = add(config(arriving / "b0"), store, "b0").after
    with pytest.raises(CorpusError, match="other recordings under that name"):
        add(config(arriving / "b2"), store, "b0")
    assert current(store) == before


def test_recordings_named_like_earlier_ones_are_refused(store: str, arriving: Path, tmp_path: Path) -> None:
    open_names = {"publish_names": True}
    nested = tmp_path / "nested"
    shutil.copytree(arriving / "b0" / "angry", nested / "b2" / "angry")
    ingest(config(nested, **open_names, name="nested"), store)
    with pytest.raises(CorpusError, match="such as folder:b2/angry/ann_0"):
        add(config(arriving / "b2", **open_names, name="nested"), store, "b2")


def test_the_same_audio_may_come_twice(store: str, arriving: Path) -> None:
    version = add(config(arriving / "base"), store, "again").after
    rows = read_utterances(version.shard_uris)
    assert (len(rows), len({row.id for row in rows}), len({row.source_id for row in rows})) == (8, 4, 8)


def test_a_batch_needs_a_dataset_to_be_added_to(tmp_path: Path, arriving: Path) -> None:
    with pytest.raises(StorageError, match="no dataset 'default' yet"):
        add(config(arriving / "b0"), str(tmp_path / "none"), "b0")


@pytest.mark.parametrize("name", ["", "B0", "a/b", "../x", "a b", ".hidden"])
def test_a_batch_s_name_can_stand_in_a_source_id(store: str, arriving: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="small letters"):
        add(config(arriving / "b0"), store, name)


def test_a_failed_batch_leaves_the_current_version(store: str, arriving: Path, tmp_path: Path) -> None:
    (tmp_path / "bad" / "sad").mkdir(parents=True)
    (tmp_path / "bad" / "sad" / "x_1.wav").write_bytes(b"no recording")
    before = current(store)
    with pytest.raises(CorpusError, match="none of the 1 recordings"):
        add(config(tmp_path / "bad").model_copy(update={"max_rejected_share": 1.0}), store, "bad")
    assert current(store) == before


def test_the_order_of_adding_does_not_matter(store: str, arriving: Path, ingested: Path, tmp_path: Path) -> None:
    other = str(shutil.copytree(ingested, tmp_path / "other"))
    for name in ("b0", "b1", "b2"):
        add(config(arriving / name), store, name)
    for name in ("b2", "b0", "b1"):
        add(config(arriving / name), other, name)
    assert current(store).hash == current(other).hash
    assert names(current(store)) != names(current(other))


def test_another_batch_that_came_first_is_not_lost(store: str, arriving: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = growth.publish_version
    others = ["b1", "b2"]

    def publish_after_another(*args: object) -> object:
        if others:
            add(config(arriving / others[0]), store, others.pop(0))
        return publish(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(growth, "publish_version", publish_after_another)
    add(config(arriving / "b0"), store, "b0")
    assert sorted(names(current(store))) == ["b0", "b1", "b2", "ingest"]
    assert current(store).utterances == 16


def test_batches_that_processes_add_at_once_are_all_there(store: str, arriving: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)

    def work(name: str) -> None:
        barrier.wait()
        add(config(arriving / name), store, name)

    processes = [context.Process(target=work, args=(name,)) for name in ("b0", "b1")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(names(current(store))) == ["b0", "b1", "ingest"]
    assert not verify(current(store)).damages


def test_a_window_of_age_drops_whole_batches(store: str, arriving: Path) -> None:
    for day, name in ((1, "b0"), (20, "b1"), (29, "b2")):
        add(config(arriving / name), store, name, recorded=datetime.date(2026, 6, day))
    grown = slide(store, "default", Window(max_age_days=10), today=TODAY)
    assert grown.dropped == ("b0",)
    assert names(grown.after) == ["ingest", "b1", "b2"]
    assert slide(store, "default", Window(max_age_days=9), today=TODAY).dropped == ("b1",)
    assert history(store, "default")[-1].detail == "without b1"
    assert read_rejects(current(store)) == []
    assert_accounted(current(store))


def test_a_window_of_a_number_drops_the_oldest_and_never_the_newest(store: str, arriving: Path) -> None:
    add(config(arriving / "b0"), store, "b0", recorded=datetime.date(2026, 6, 20))
    add(config(arriving / "b1"), store, "b1", recorded=datetime.date(2026, 6, 1))
    far = datetime.date(2030, 1, 1)
    add(config(arriving / "b2"), store, "b2", recorded=far)
    assert slide(store, "default", Window(max_utterances=15)).dropped == ("b1",)
    assert slide(store, "default", Window(max_utterances=8, keep_first=True)).dropped == ("b0",)
    assert slide(store, "default", Window(max_utterances=1)).dropped == ("ingest",)
    assert names(current(store)) == ["b2"]
    assert slide(store, "default", Window(max_utterances=1)).dropped == ()


def test_the_batch_that_the_dataset_began_with_can_be_kept(store: str, arriving: Path) -> None:
    add(config(arriving / "b0"), store, "b0", recorded=datetime.date(2020, 1, 1))
    version = slide(store, "default", Window(max_age_days=1, keep_first=True), today=datetime.date(2040, 1, 1)).after
    assert names(version) == ["ingest"]


def test_a_window_that_leaves_nothing_is_refused(store: str) -> None:
    with pytest.raises(ValidationError, match="leaves nothing: the newest batch, 'ingest'"):
        slide(store, "default", Window(max_age_days=1), today=datetime.date(2040, 1, 1))
    with pytest.raises(ConfigError, match="needs a limit"):
        slide(store, "default", Window(keep_first=True))


def test_a_window_may_be_longer_than_the_calendar(store: str) -> None:
    assert slide(store, "default", Window(max_age_days=10_000_000)).dropped == ()


def test_a_batch_that_was_rolled_back_and_comes_again_keeps_its_date(
    store: str, arriving: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same recordings are the same version, and a version is never changed."""
    first = add(config(arriving / "b0"), store, "b0", datetime.date(2026, 1, 1))
    rollback(store, "default", first.before.hash)
    again = add(config(arriving / "b0"), store, "b0", datetime.date(2026, 6, 1))
    assert again.added == current(store).batches[-1]
    assert again.added["recorded"] == "2026-01-01"
    assert "as of 2026-01-01" in "".join(capfd.readouterr())


def test_a_window_slides_while_a_batch_is_added(store: str, arriving: Path) -> None:
    add(config(arriving / "b0"), store, "b0", recorded=datetime.date(2026, 1, 1))
    window = Window(max_utterances=8, keep_first=True)
    grown = add(config(arriving / "b1"), store, "b1", recorded=TODAY, window=window)
    assert (names(grown.after), grown.dropped) == (["ingest", "b1"], ("b0",))
    late = add(
        config(arriving / "b2"), store, "b2", recorded=datetime.date(2020, 1, 1), window=Window(max_age_days=2000)
    )
    assert (late.added, late.after) == (None, grown.after)


def test_people_who_were_forgotten_do_not_come_with_a_batch(store: str, arriving: Path) -> None:
    keys = Pseudonyms.of_store(store)
    assert keys is not None
    ann = keys.speaker("folder:ann")
    forget(store, "default", {ann}, keys)
    version = add(config(arriving / "b1"), store, "b1").after
    assert ann not in speakers_of(version)
    assert_accounted(version)
    assert slide(store, "default", Window(max_utterances=3)).dropped == ("ingest",)
    assert_accounted(current(store))


def test_counts_hold_when_somebody_is_forgotten_before_the_window_slides(store: str, arriving: Path) -> None:
    keys = Pseudonyms.of_store(store)
    assert keys is not None
    for name in ("b1", "b2"):
        add(config(arriving / name), store, name)
    forget(store, "default", {keys.speaker("folder:ann"), keys.speaker("folder:p2")}, keys)
    assert_accounted(current(store))
    assert slide(store, "default", Window(max_utterances=2)).dropped == ("ingest",)
    assert [batch["utterances"] for batch in current(store).batches] == [0, 2]
    assert_accounted(current(store))


def test_somebody_who_is_forgotten_meanwhile_stays_out(
    store: str, arriving: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Pseudonyms.of_store(store)
    assert keys is not None
    ann, publish, asked = keys.speaker("folder:ann"), growth.publish_version, []

    def publish_after_forgetting(*args: object) -> object:
        if not asked:
            asked.append(forget(store, "default", {ann}, keys))
        return publish(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(growth, "publish_version", publish_after_forgetting)
    version = add(config(arriving / "b0"), store, "b0").after
    assert ann not in speakers_of(version)
    assert names(version) == ["ingest", "b0"]


def test_an_ingest_says_which_batches_its_version_lacks(
    store: str, arriving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = add(config(arriving / "b0"), store, "b0").after
    other = Path(shutil.copytree(arriving / "base", tmp_path / "grown-base"))
    shutil.copy(arriving / "b3" / "sad" / "p4_0.wav", other / "sad")
    ingest(config(other), store)
    assert f"without b0, which {grown.hash[:12]} has" in capsys.readouterr().err


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(BATCHES)),
        st.tuples(st.just("window"), st.integers(1, 17)),
        st.tuples(st.just("rollback"), st.integers(0, 5)),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=12)
@given(steps=steps)
def test_whatever_is_done_every_version_stays_readable(
    steps: list[tuple[str, object]], arriving: Path, ingested: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = str(shutil.copytree(ingested, tmp_path_factory.mktemp("steps") / "store"))
    made = {current(store).hash: read_utterances(current(store).shard_uris)}
    for step, what in steps:
        before, files = current(store), {path: path.stat().st_ino for path in Path(store, "shards").iterdir()}
        if step == "add":
            grown = add(config(arriving / str(what)), store, str(what))
            assert set(before.shards) <= set(grown.after.shards)
        elif step == "window":
            grown = slide(store, "default", Window(max_utterances=int(str(what)), keep_first=True))
            assert set(grown.after.shards) <= set(before.shards)
        else:
            rollback(store, "default", sorted(made)[int(str(what)) % len(made)])
        now = current(store)
        assert files.items() <= {path: path.stat().st_ino for path in Path(store, "shards").iterdir()}.items()
        made.setdefault(now.hash, read_utterances(now.shard_uris))
        assert_accounted(now)
    for digest, rows in made.items():
        version = load_dataset(f"{store}/datasets/{digest}")
        assert read_utterances(version.shard_uris) == rows
        assert dataset_hash(rows) == digest
    by_rows = {frozenset(row.source_id for row in rows) for rows in made.values()}
    assert len(by_rows) == len(made)
