"""Listing, comparing and verifying versions, going back, and what a clean-up takes and leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox import storage
from kubevox.config import CorpusSource, DataConfig, SplitConfig, ValidateConfig
from kubevox.data.dataset import DatasetVersion, ingest, load_dataset, read_utterances, resolve
from kubevox.data.dataset.comparison import compare
from kubevox.data.dataset.forgetting import forget
from kubevox.data.dataset.growth import Window, add, slide
from kubevox.data.dataset.history import history
from kubevox.data.dataset.upkeep import list_versions, rollback, verify
from kubevox.data.pseudonyms import Pseudonyms
from kubevox.data.splits import load_split, make_split
from kubevox.data.validation import accepted_source_ids, validate
from kubevox.errors import StorageError
from kubevox.features.blocks import extract_shard, load_features, read_index
from kubevox.garbage import collect, find_garbage
from tests.data.arriving import make_arriving
from tests.tiny import FEATURES, PLAN, TASK, Tiny, untrained_bundle

WriteWav = Callable[..., Path]


def config(folder: Path, **options: object) -> DataConfig:
    return DataConfig(
        corpora=[CorpusSource(name="folder", path=str(folder))], max_rejected_share=0.5, publish_names=True, **options
    )


def current(store: str, name: str = "default") -> DatasetVersion:
    return resolve(store, name, "current")


@pytest.fixture(scope="module")
def arriving(write_wav: WriteWav, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_arriving(tmp_path_factory.mktemp("arriving"), write_wav, ("base", "b0", "b1"))


@pytest.fixture(scope="module")
def grown(arriving: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions: the base, with b0, with b1."""
    store = tmp_path_factory.mktemp("grown") / "store"
    ingest(config(arriving / "base"), str(store))
    for name in ("b0", "b1"):
        add(config(arriving / name), str(store), name)
    return store


@pytest.fixture
def store(grown: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(grown, tmp_path / "store"))


def hashes(store: str) -> list[str]:
    return [entry.dataset for entry in history(store, "default")]


def test_versions_are_listed_in_the_order_in_which_they_became_current(store: str, arriving: Path) -> None:
    ingest(config(arriving / "b0", name="other"), store)
    listed = list_versions(store, "default")
    assert [one.version.hash for one in listed] == hashes(store)
    assert [one.current for one in listed] == [(), (), ("default",)]
    assert {one.datasets for one in list_versions(store)} == {("default",), ("other",)}


def test_rolling_back_makes_an_older_version_current_and_keeps_the_newer(store: str) -> None:
    first, _, last = hashes(store)
    version, before = rollback(store, "default", first[:10])
    assert (version.hash, before) == (first, last)
    assert current(store).hash == first
    assert load_dataset(f"{store}/datasets/{last}").utterances == 12
    entry = history(store, "default")[-1]
    assert (entry.operation, entry.parent, entry.detail) == ("rollback", last, f"from {last[:12]}")
    assert rollback(store, "default", first) == (version, first)
    assert len(hashes(store)) == 4


def test_a_batch_can_be_added_to_the_version_that_was_rolled_back_to(store: str, arriving: Path) -> None:
    first, _, last = hashes(store)
    rollback(store, "default", first)
    version = add(config(arriving / "b1"), store, "b1").after
    assert [batch["name"] for batch in version.batches] == ["ingest", "b1"]
    assert add(config(arriving / "b0"), store, "b0").after.hash == last


def test_a_version_with_a_copy_of_somebody_who_was_forgotten_is_not_rolled_back_to(
    write_wav: WriteWav, tmp_path: Path
) -> None:
    """The version does not name the person: the recording stands there under another name."""
    store = str(tmp_path / "store")
    voice = write_wav(tmp_path / "person" / "sad" / "ann_0.wav", 0.3, frequency=333)
    write_wav(tmp_path / "base" / "sad" / "p0_0.wav", 0.3)
    shutil.copy(voice, tmp_path / "base" / "sad" / "p1_0.wav")
    before, _ = ingest(config(tmp_path / "base"), store)
    add(config(tmp_path / "person"), store, "person")
    names = Pseudonyms.of_store(store)
    assert names is not None
    forget(store, "default", {names.speaker("folder:ann")}, names)
    with pytest.raises(StorageError, match="1 recordings of people who were forgotten since"):
        rollback(store, "default", before.hash)


def test_a_version_of_another_dataset_is_not_rolled_back_to(store: str, arriving: Path) -> None:
    other, _ = ingest(config(arriving / "b0", name="other"), store)
    with pytest.raises(StorageError, match=r"never the current version of dataset 'default'; it is of 'other'"):
        rollback(store, "default", other.hash)


def test_a_version_with_somebody_who_was_forgotten_is_not_rolled_back_to(store: str) -> None:
    keys = Pseudonyms.of_store(store)
    assert keys is not None
    first = hashes(store)[0]
    forget(store, "default", {keys.speaker("folder:ann")}, keys)
    with pytest.raises(StorageError, match="2 recordings of people who were forgotten"):
        rollback(store, "default", first)


def test_two_versions_are_compared_recording_by_recording(store: str) -> None:
    first, _, last = (load_dataset(f"{store}/datasets/{digest}") for digest in hashes(store))
    found = compare(first, last)
    assert [row.source_id for row in found.added] == [
        f"folder:{batch}/{label}/{name}_0.wav"
        for batch, speaker in (("b0", "p1"), ("b1", "p2"))
        for label in ("angry", "sad")
        for name in ("ann", speaker)
    ]
    assert (found.removed, found.changed) == ((), ())
    assert found.counts(found.added)["batch"] == {"b0": 4, "b1": 4}
    assert found.counts(found.added)["label"] == {"angry": 4, "sad": 4}
    assert sorted(found.counts(found.added)["speaker"].values()) == [2, 2, 4]
    back = compare(last, first)
    assert (back.added, back.removed) == ((), found.added)


def test_a_recording_whose_label_or_audio_changed_is_told(store: str, arriving: Path, tmp_path: Path) -> None:
    lists = {}
    for name, label in (("one", "angry"), ("other", "sad")):
        folder = Path(shutil.copytree(arriving / "base", tmp_path / name))
        if name == "other":
            shutil.copy(arriving / "b0" / "sad" / "p1_0.wav", folder / "sad" / "p0_0.wav")
        rows = [f"angry/ann_0.wav,{label}", "sad/p0_0.wav,sad"]
        (folder / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
        source = CorpusSource(name="folder", path=str(folder), options={"csv": "list.csv"})
        lists[name], _ = ingest(DataConfig(corpora=[source], publish_names=True, name="listed"), store)
    found = compare(lists["one"], lists["other"])
    assert [change.fields for change in found.changed] == [("raw_label",), ("id",)]
    assert (found.added, found.removed) == ((), ())


def test_a_whole_version_has_no_damage(store: str) -> None:
    found = verify(current(store))
    assert (found.recordings, found.damages, found.gone) == (12, (), 0)


def test_a_flipped_bit_is_found_although_the_file_was_read_before(store: str) -> None:
    version = current(store)
    read_utterances(version.shard_uris)
    path = Path(version.shard_uris[1])
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = verify(version)
    [damage] = found.damages
    assert damage.startswith(f"{path}: damaged: its bytes")
    assert found.recordings == 8


def test_audio_that_is_not_what_its_id_says_is_found_in_a_shard_of_the_right_hash(store: str) -> None:
    version = current(store)
    table = pq.read_table(version.shard_uris[0])
    audio = table["audio"].to_pylist()
    audio[0], audio[1] = audio[1], {"bytes": b"no flac", "path": "x"}
    place = table.schema.get_field_index("audio")
    table = table.set_column(place, table.schema.field("audio"), pa.array(audio, table.schema.field("audio").type))
    pq.write_table(table, forged := Path(store, "forged"))
    digest = hashlib.sha256(forged.read_bytes()).hexdigest()
    forged.rename(Path(store, "shards", f"{digest}.parquet"))
    head = json.loads(Path(version.uri, "dataset.json").read_text())
    head["shards"][0]["sha256"] = digest
    Path(version.uri, "dataset.json").write_text(json.dumps(head))
    found = verify(load_dataset(version.uri))
    assert ["not what its id says" in line for line in found.damages] == [True, False]
    assert "stored audio is damaged" in found.damages[1]
    assert found.recordings == 10


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("utterances", 13, "says 13 recordings, and has 12"),
        ("rejects", 0, "says 0 that failed, and lists 1"),
    ],
)
def test_counts_that_are_wrong_are_found(store: str, key: str, value: int, told: str) -> None:
    head = Path(current(store).uri, "dataset.json")
    head.write_text(json.dumps({**json.loads(head.read_text()), key: value}))
    assert [told in line for line in verify(current(store)).damages] == [True]


@pytest.mark.parametrize(
    ("column", "told"),
    [("stored", "counts 13 recordings in its corpora, and has 12"), ("failed", "counts 2 that failed in its corpora")],
)
def test_counts_of_corpora_that_add_up_and_are_wrong_are_found(store: str, column: str, told: str) -> None:
    head = Path(current(store).uri, "dataset.json")
    content = json.loads(head.read_text())
    for key in ("found", column):
        content["corpora"][0][key] += 1
    head.write_text(json.dumps(content))
    assert [told in line for line in verify(current(store)).damages] == [True]


def test_a_row_that_was_left_out_changes_the_hash(store: str) -> None:
    head = Path(current(store).uri, "dataset.json")
    content = json.loads(head.read_text())
    head.write_text(json.dumps({**content, "shards": content["shards"][:-1], "utterances": 8}))
    assert any("its rows have the hash" in line for line in verify(current(store)).damages)


def test_missing_shards_rejects_and_current_versions_are_found(store: str, arriving: Path) -> None:
    other, _ = ingest(config(arriving / "b1", name="other"), store)
    version = current(store)
    shutil.rmtree(other.uri)
    Path(version.shard_uris[0]).unlink()
    Path(version.uri, "rejects.parquet").write_bytes(b"nothing")
    found = verify(version)
    assert len(found.damages) == 3
    assert "of dataset 'other' is not there" in found.damages[-1]


def test_nothing_is_garbage_in_a_young_store(store: str) -> None:
    Path(store, "tmp", "staging-dead").mkdir(parents=True)
    Path(store, "tmp", "staging-dead", "shard.parquet").write_bytes(b"half")
    unlisted = f"shards/{'0' * 64}.parquet"
    Path(store, unlisted).write_bytes(b"of an ingest that is on its way")
    found = find_garbage(store, keep=1)
    assert (found.objects, found.bytes) == ({}, 0)
    assert set(found.kept) == set(hashes(store))
    assert unlisted in find_garbage(store, keep=3, min_age_s=0).objects


def test_the_last_versions_stay_and_others_go_with_their_shards(store: str) -> None:
    base = load_dataset(f"{store}/datasets/{hashes(store)[0]}")
    slide(store, "default", Window(max_utterances=8))
    kept = slide(store, "default", Window(max_utterances=4)).after
    found = find_garbage(store, keep=1, min_age_s=0)
    assert set(found.kept) == {kept.hash}
    assert {path for path in found.objects if path.startswith("shards/")} == {
        shard.name for shard in (*base.shards, *load_dataset(f"{store}/datasets/{hashes(store)[1]}").shards)
    }
    assert all(Path(store, path).exists() for path in found.objects)
    collect(found)
    assert not any(Path(store, path).exists() for path in found.objects)
    assert sorted(path.name for path in Path(store, "datasets").iterdir()) == [kept.hash]
    assert verify(kept).damages == ()
    assert verify(kept).gone == 4
    assert find_garbage(store, keep=1, min_age_s=0).objects == {}


def test_versions_go_before_the_shards_that_they_list(store: str) -> None:
    slide(store, "default", Window(max_utterances=4))
    kinds = [path.partition("/")[0] for path in find_garbage(store, keep=1, min_age_s=0).objects]
    assert kinds.index("shards") > max(place for place, kind in enumerate(kinds) if kind == "datasets")
    assert kinds == sorted(kinds, key=["datasets", "memo", "splits", "validations", "features", "shards"].index)


def test_what_becomes_needed_while_a_clean_up_is_under_way_stays(store: str) -> None:
    second = hashes(store)[1]
    slide(store, "default", Window(max_utterances=4))
    found = find_garbage(store, keep=1, min_age_s=0)
    young = Path(store, "datasets", "e" * 64)  # somebody makes a version, and an old shard is what it needs
    shutil.copytree(Path(store, "datasets", second), young)
    collect(found)
    assert all(Path(uri).exists() for uri in load_dataset(str(young)).shard_uris)


def test_a_version_that_is_rolled_back_to_while_a_clean_up_is_under_way_stays(store: str) -> None:
    first = hashes(store)[0]
    slide(store, "default", Window(max_utterances=4))
    found = find_garbage(store, keep=1, min_age_s=0)
    assert f"datasets/{first}" in found.objects
    rollback(store, "default", first)
    collect(found)
    assert current(store).hash == first
    assert verify(current(store)).damages == ()


def test_what_killed_writers_left_behind_goes_too(store: str) -> None:
    dead = Path(store, "tmp", "staging-dead", "shard.parquet")
    dead.parent.mkdir(parents=True)
    dead.write_bytes(b"half")
    long_ago = time.time() - 1e6
    for path in (dead, dead.parent):
        os.utime(path, (long_ago, long_ago))
    found = find_garbage(store, keep=3, min_age_s=86_400)
    assert found.objects == {"unfinished/tmp/staging-dead/shard.parquet": 4}
    collect(found)
    assert not dead.parent.exists()


def test_nothing_is_collected_where_a_bundle_does_not_say_what_it_needs(store: str) -> None:
    bundle = Path(store, "bundles", "0" * 64, "bundle.json")
    bundle.parent.mkdir(parents=True)
    bundle.write_text("{}")
    with pytest.raises(StorageError, match="does not say which dataset version it is of"):
        find_garbage(store, keep=1, min_age_s=0)


def test_an_ingest_works_after_everything_it_remembered_was_collected(store: str, arriving: Path) -> None:
    slide(store, "default", Window(max_utterances=4))
    collect(find_garbage(store, keep=1, min_age_s=0))
    version, reused = ingest(config(arriving / "base", name="anew"), store)
    assert (reused, verify(version).damages) == (False, ())


@pytest.fixture
def trained_store(tiny: Tiny, write_wav: WriteWav, tmp_path: Path) -> str:
    """A store with split and features of a first version, and a second one that is current."""
    store = str(shutil.copytree(tiny.store, tmp_path / "tiny-store"))
    write_wav(tmp_path / "more" / "sad" / "s09_0.wav")
    add(config(tmp_path / "more"), store, "more")
    return store


def features_of(store: str, split_hash: str) -> None:
    """A run on this split finds all that it needs."""
    split = load_split(storage.join(store, "splits", split_hash))
    assert split.dataset.store == store
    indexes = [str(path) for path in Path(store, "features", "index").iterdir()]
    ids = [row[0] for row in split.rows]
    train = [row[0] for row in split.rows if row[2] == "train"]
    for frontend in FEATURES.frontends.values():
        assert len(load_features(indexes, frontend, FEATURES.recipes["default"], ids)) == len(ids)
        assert len(load_features(indexes, frontend, FEATURES.recipes["noise"], train)) == len(train)
    assert all(Path(block.uri).exists() for uri in indexes for block in read_index(uri).blocks)


def test_what_a_bundle_was_trained_on_stays_with_split_and_features(trained_store: str, tiny: Tiny) -> None:
    for path in Path(trained_store, "bundles").glob("*"):
        shutil.rmtree(path)
    bundle = untrained_bundle(tiny, trained_store)
    found = find_garbage(trained_store, keep=1, min_age_s=0)
    assert found.kept[tiny.split.dataset.hash] == ("bundle",)
    collect(found)
    features_of(trained_store, tiny.split.hash)
    assert verify(load_dataset(f"{trained_store}/datasets/{tiny.split.dataset.hash}")).damages == ()
    assert Path(bundle, "bundle.json").exists()


def test_splits_validations_and_features_go_with_their_version(trained_store: str, tiny: Tiny) -> None:
    for path in Path(trained_store, "bundles").glob("*"):
        shutil.rmtree(path)
    found = find_garbage(trained_store, keep=1, min_age_s=0)
    assert {kind for kind in found.counts if kind != "memo"} == {"datasets", "splits", "validations", "features"}
    assert find_garbage(trained_store, keep=2, min_age_s=0).counts.keys() <= {"memo"}
    collect(found)
    assert not list(Path(trained_store, "features").rglob("*.*"))
    assert not list(Path(trained_store, "splits").iterdir())
    assert verify(current(trained_store)).damages == ()


def test_features_of_another_split_of_a_kept_version_stay(trained_store: str, tiny: Tiny) -> None:
    version = load_dataset(f"{trained_store}/datasets/{tiny.split.dataset.hash}")
    accepted = accepted_source_ids(validate(version, TASK, ValidateConfig(), trained_store).uri)
    again, _ = make_split(version, accepted, TASK, SplitConfig(protocol="kfold", folds=3), trained_store)
    for shard in version.shard_uris:
        extract_shard(shard, again.split_of, FEATURES, PLAN, trained_store)
    assert again.split_of != tiny.split.split_of
    collect(find_garbage(trained_store, keep=2, min_age_s=0))
    features_of(trained_store, tiny.split.hash)
    features_of(trained_store, again.hash)


@settings(max_examples=10)
@given(
    windows=st.lists(st.integers(1, 12), max_size=3),
    keep=st.integers(1, 4),
    back=st.integers(0, 5),
)
def test_a_clean_up_never_takes_what_a_kept_version_needs(
    windows: list[int], keep: int, back: int, grown: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = str(shutil.copytree(grown, tmp_path_factory.mktemp("swept") / "store"))
    for limit in windows:
        slide(store, "default", Window(max_utterances=limit, keep_first=bool(limit % 2)))
    made = list(dict.fromkeys(hashes(store)))
    rollback(store, "default", made[back % len(made)])
    last = list(dict.fromkeys(reversed(hashes(store))))[:keep]
    found = find_garbage(store, keep, min_age_s=0)
    assert set(found.kept) == set(last)
    collect(found)
    assert {path.name for path in Path(store, "datasets").iterdir()} == set(last)
    listed = set()
    for digest in last:
        version = load_dataset(f"{store}/datasets/{digest}")
        assert verify(version).damages == ()
        listed |= {Path(uri).name for uri in version.shard_uris}
    assert {path.name for path in Path(store, "shards").iterdir()} == listed
