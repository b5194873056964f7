"""Dataset versions: what names them, when they are made anew, and what is refused."""

import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import CorpusSource, DataConfig
from kubevox.data.audio import decode
from kubevox.data.dataset import Utterance, ingest, load_dataset, read_audio, read_utterances
from kubevox.errors import AudioError, ConfigError, CorpusError, KubevoxError, StorageError, ValidationError


def config_of(folder: Path, **fields) -> DataConfig:
    return DataConfig(corpora=[CorpusSource(name="folder", path=str(folder))], **{"publish_names": True, **fields})


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "store")


def stored(store: str) -> list[str]:
    """All files of the store, without the notes on what was done before."""
    root = Path(store)
    files = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return sorted(name for name in files if not name.startswith("memo/"))


def test_a_corpus_becomes_shards_with_its_labels_and_speakers(folder_corpus, store):
    folder = folder_corpus(speakers=3, labels=("happy", "sad"), clips=2)
    version, reused = ingest(config_of(folder), store)
    assert not reused
    assert (version.utterances, version.rejects, version.synthetic) == (12, 0, False)
    assert version.hours == pytest.approx(12 / 3600)
    utterances = read_utterances(version.shard_uris)
    assert [u.source_id for u in utterances] == sorted(u.source_id for u in utterances)
    assert {u.raw_label for u in utterances} == {"happy", "sad"}
    assert len({u.speaker for u in utterances}) == 3
    for utterance in utterances:
        data = (folder / utterance.source_id.removeprefix("folder:")).read_bytes()
        waveform, _ = decode(data, config_of(folder).limits)
        assert (utterance.id, utterance.source_bytes) == (waveform.id, len(data))
        assert (utterance.duration_s, utterance.sample_rate) == (1.0, 16_000)


def test_what_is_read_back_is_the_waveform_that_was_stored(folder_corpus, store):
    version, _ = ingest(config_of(folder_corpus()), store)
    utterances = read_utterances(version.shard_uris)
    audio = {name: waveform for uri in version.shard_uris for name, waveform in read_audio(uri)}
    assert list(audio) == [u.id for u in utterances]
    assert all(waveform.id == name for name, waveform in audio.items())
    some = {utterances[3].id, utterances[5].id, "of nobody"}
    assert {name for name, _ in read_audio(version.shard_uris[0], some)} == some - {"of nobody"}


def test_the_hash_is_of_the_content_not_of_order_container_place_or_time(folder_corpus, tmp_path):
    folder = folder_corpus()
    first, _ = ingest(config_of(folder), str(tmp_path / "one"))
    files = list(folder.rglob("*.wav"))
    random.Random(0).shuffle(files)
    moved = tmp_path / "elsewhere"
    for file in files:  # created in another order, in another container, at another time
        copy = moved / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        samples, rate = soundfile.read(file, dtype="int16")
        soundfile.write(copy, samples, rate, subtype="PCM_24", format="WAVEX")
        os.utime(copy, (0, 0))
    second, reused = ingest(config_of(moved, shard_mb=1), str(tmp_path / "two"))
    assert not reused
    assert second.hash == first.hash
    assert load_dataset(second.uri).uri.endswith(first.hash)


@pytest.mark.parametrize("change", ["audio", "label", "speaker", "rate", "new file", "lost file"])
def test_any_change_of_content_makes_a_new_version_and_keeps_the_old(change, folder_corpus, store, write_wav):
    folder = folder_corpus()
    before, _ = ingest(config_of(folder), store)
    file = folder / "sad" / "s00_0.wav"
    samples, rate = soundfile.read(file, dtype="int16")
    if change == "audio":
        samples[100] ^= 1
        soundfile.write(file, samples, rate)
    elif change == "label":
        file.rename(folder / "happy" / "s00_9.wav")
    elif change == "speaker":
        file.rename(folder / "sad" / "s01_9.wav")
    elif change == "rate":
        soundfile.write(file, samples, 2 * rate)
    elif change == "new file":
        write_wav(folder / "sad" / "s99_0.wav")
    else:
        file.unlink()
    after, reused = ingest(config_of(folder), store)
    assert not reused
    assert after.hash != before.hash
    assert read_utterances(before.shard_uris) != read_utterances(after.shard_uris)


def test_unchanged_files_are_recognised_without_being_read(folder_corpus, store):
    folder = folder_corpus()
    first, _ = ingest(config_of(folder), store)
    for file in folder.rglob("*.wav"):  # whoever reads one now finds that it is no recording
        times = file.stat()
        file.write_bytes(b"x" * times.st_size)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    again, reused = ingest(config_of(folder), store)
    assert reused
    assert again == first


def test_a_copied_store_answers_for_itself(folder_corpus, store, tmp_path):
    data = config_of(folder_corpus())
    first, _ = ingest(data, store)
    copy = shutil.copytree(store, tmp_path / "copy")
    again, reused = ingest(data, str(copy))
    assert reused
    assert (again.store, again.hash) == (str(copy), first.hash)


def test_a_version_that_was_deleted_is_made_again(folder_corpus, store):
    folder = folder_corpus()
    first, _ = ingest(config_of(folder), store)
    shutil.rmtree(first.uri)
    again, reused = ingest(config_of(folder), store)
    assert not reused
    assert again == first
    assert load_dataset(again.uri) == again


def test_undecodable_files_within_the_allowed_share_are_listed(folder_corpus, store):
    folder = folder_corpus()
    whole = (folder / "sad" / "s00_0.wav").read_bytes()
    (folder / "sad" / "s00_8.wav").write_bytes(whole[:-500])
    (folder / "happy" / "s00_9.wav").write_text("This is a letter.\n" * 20)
    version, _ = ingest(config_of(folder, max_rejected_share=0.1), store)
    assert (version.utterances, version.rejects) == (36, 2)
    rejects = pq.read_table(Path(version.uri) / "rejects.parquet").to_pylist()
    assert [(row["source_id"], row["reason"]) for row in rejects] == [
        ("folder:happy/s00_9.wav", "not_audio"),
        ("folder:sad/s00_8.wav", "truncated"),
    ]
    assert all(row["message"].startswith(f"{row['source_id']}: ") for row in rejects)
    assert not any(str(folder) in row["message"] for row in rejects)
    assert {row["speaker"] for row in rejects} == {u.speaker for u in read_utterances(version.shard_uris)} & {
        row["speaker"] for row in rejects
    }


@pytest.mark.parametrize("damage", ["truncated", "renamed text", "empty"])
def test_undecodable_files_above_the_allowed_share_leave_nothing(damage, folder_corpus, store):
    folder = folder_corpus()
    bad = folder / "sad" / "s00_0.wav"
    whole = bad.read_bytes()
    bad.write_bytes({"truncated": whole[:-500], "renamed text": b"a letter\n" * 50, "empty": b""}[damage])
    with pytest.raises(ValidationError, match=rf"1 of 36 recordings cannot be used .*{bad}: ") as caught:
        ingest(config_of(folder), store)
    assert len(str(caught.value).splitlines()) == 1
    assert stored(store) == []
    assert not [path for path in Path(store).rglob("*") if path.is_file()]


def test_the_allowed_share_also_holds_for_a_version_that_is_there(folder_corpus, store):
    folder = folder_corpus()
    clean, _ = ingest(config_of(folder), store)
    (folder / "sad" / "s00_9.wav").write_bytes(b"")
    lax = config_of(folder, max_rejected_share=0.5)
    # The good recordings are the same, so the version is; what was rejected on the way is another matter.
    assert ingest(lax, store)[0].hash == clean.hash
    assert ingest(lax, store)[1]
    with pytest.raises(ValidationError, match="1 of 37 recordings"):
        ingest(config_of(folder), store)


def test_what_failed_beside_recordings_that_are_stored_already_is_said(folder_corpus, store, capfd):
    folder = folder_corpus()
    clean, _ = ingest(config_of(folder), store)
    (folder / "sad" / "s00_9.wav").write_bytes(b"")
    for _ in range(2):  # also when it is recognised
        capfd.readouterr()
        assert ingest(config_of(folder, max_rejected_share=0.5), store)[0].hash == clean.hash
        assert re.search(
            r"1 recordings could not be decoded, such as .*s00_9\.wav.* lists 0", "".join(capfd.readouterr())
        )


def test_a_corpus_without_a_usable_recording_is_refused(folder_corpus, store, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CorpusError, match=rf"no recordings under {empty}; expected LABEL/SPEAKER"):
        ingest(config_of(empty), store)
    with pytest.raises(CorpusError, match="nowhere is not a folder"):
        ingest(config_of(tmp_path / "nowhere"), store)
    (empty / "sad").mkdir()
    (empty / "sad" / "s0_1.wav").write_bytes(b"")
    with pytest.raises(CorpusError, match="none of the 1 recordings could be decoded"):
        ingest(config_of(empty, max_rejected_share=1.0), store)
    with pytest.raises(ConfigError, match=r"unknown corpus 'foldr'.*did you mean 'folder'"):
        ingest(DataConfig(corpora=[CorpusSource(name="foldr", path=str(empty))]), store)
    folder = str(folder_corpus())
    twice = [CorpusSource(name="folder", path=folder), CorpusSource(name="folder", path=str(empty))]
    with pytest.raises(CorpusError, match="'folder' is listed twice"):
        ingest(DataConfig(corpora=twice), store)
    assert stored(store) == []


def make_noise(folder: Path, clips: int, seconds: float) -> Path:
    """Recordings that FLAC cannot make smaller."""
    chance = np.random.default_rng(0)
    for clip in range(clips):
        path = folder / "noise" / f"s{clip % 5}_{clip:04d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, chance.integers(-32768, 32767, round(16_000 * seconds), np.int16), 16_000)
    return folder


@pytest.mark.parametrize(("clips", "seconds"), [(28, 4.0), (600, 0.05)], ids=["long", "short"])
def test_shards_stay_below_their_size(clips, seconds, tmp_path, store):
    version, _ = ingest(config_of(make_noise(tmp_path / "noise", clips, seconds), shard_mb=1), store)
    assert len(version.shards) > 1
    for listed, uri in zip(version.shards, version.shard_uris, strict=True):
        content = Path(uri).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (listed.sha256, listed.bytes)
    sizes = [Path(uri).stat().st_size for uri in version.shard_uris]
    assert max(sizes) <= 1 << 20
    assert min(sizes[:-1]) > 0.7 * (1 << 20)  # full, but for the last
    assert sum(len(read_utterances(uri)) for uri in version.shard_uris) == clips


def test_row_groups_stay_below_16_mebibytes(tmp_path, store):
    version, _ = ingest(config_of(make_noise(tmp_path / "noise", 11, 50.0), shard_mb=64), store)
    (uri,) = version.shard_uris
    metadata = pq.ParquetFile(uri).metadata
    assert metadata.num_row_groups > 1
    assert all(metadata.row_group(i).total_byte_size <= 16 << 20 for i in range(metadata.num_row_groups))
    assert len(list(read_audio(uri))) == 11


def test_shards_tell_hugging_face_datasets_that_they_hold_audio(folder_corpus, store):
    version, _ = ingest(config_of(folder_corpus()), store)
    schema = pq.read_schema(version.shard_uris[0])
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features.pop("audio") == {"_type": "Audio"}
    assert set(features) == {field.name for field in dataclasses.fields(Utterance)}
    assert features["duration_s"] == {"dtype": "float64", "_type": "Value"}
    row = pq.read_table(version.shard_uris[0]).slice(0, 1).to_pylist()[0]
    assert row["audio"]["path"] == f"{row['id']}.flac"
    assert row["audio"]["bytes"][:4] == b"fLaC"


def test_hugging_face_datasets_loads_a_version(folder_corpus, store, tmp_path):
    datasets = pytest.importorskip("datasets")
    version, _ = ingest(config_of(folder_corpus()), store)
    loaded = datasets.load_dataset("parquet", data_files=version.shard_uris, cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.num_rows == version.utterances
    assert isinstance(loaded.features["audio"], datasets.Audio)


def test_dataset_json_tells_where_the_data_came_from(folder_corpus, store):
    folder = folder_corpus()
    version, _ = ingest(config_of(folder), store)
    head = json.loads((Path(version.uri) / "dataset.json").read_text())
    told = head["corpora"][0]
    assert (told["name"], told["found"], told["left_out"], told["stored"], told["failed"]) == ("folder", 36, 0, 36, 0)
    assert told["labels"] == {"angry": 12, "happy": 12, "sad": 12}
    assert set(head["lineage"]) == {"operation", "parent", "config", "commit", "kubevox", "created"}
    assert str(folder) not in json.dumps(head)
    assert [shard["rows"] for shard in head["shards"]] == [36]


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """A shard that may be read, and copied to be damaged."""
    folder = make_noise(tmp_path_factory.mktemp("noise"), 4, 0.1)
    version, _ = ingest(config_of(folder), str(tmp_path_factory.mktemp("store")))
    return Path(version.shard_uris[0])


def read_everything(uri: str) -> list:
    """The rows and the audio; that the audio is what its id says."""
    audio = dict(read_audio(uri))
    assert {name: waveform.id for name, waveform in audio.items()} == {name: name for name in audio}
    return [read_utterances(uri), list(audio)]


@settings(max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_one_damaged_byte_in_a_shard_is_noticed(shard, place, change):
    content = bytearray(shard.read_bytes())
    content[int(place * len(content))] ^= change
    damaged = shard.with_name("damaged.parquet")
    damaged.write_bytes(content)
    try:
        found = read_everything(str(damaged))
    except (StorageError, AudioError) as error:
        text = str(error)
    else:  # a byte that means nothing, in the Parquet metadata
        assert found == read_everything(str(shard))
        return
    assert text.startswith(f"{damaged}")
    assert len(text.splitlines()) == 1


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_off_shard_is_named(shard, share):
    content = shard.read_bytes()
    damaged = shard.with_name("damaged.parquet")
    damaged.write_bytes(content[: int(share * len(content))])
    for read in (read_utterances, lambda uri: list(read_audio(uri))):
        with pytest.raises(StorageError, match=r"damaged\.parquet: damaged shard") as caught:
            read(str(damaged))
        assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_dataset_version_is_refused(folder_corpus, store):
    version, _ = ingest(config_of(folder_corpus()), store)
    Path(version.shard_uris[0]).unlink()
    for read in (read_utterances, lambda uris: list(read_audio(uris[0]))):
        with pytest.raises(StorageError, match=r"[0-9a-f]{64}\.parquet: no such file"):
            read(version.shard_uris)
    for content in ("{", "{}", "[]"):
        (Path(version.uri) / "dataset.json").write_text(content)
        with pytest.raises(StorageError, match=r"dataset\.json") as caught:
            load_dataset(version.uri)
        assert len(str(caught.value).splitlines()) == 1
    (Path(version.uri) / "dataset.json").unlink()
    with pytest.raises(KubevoxError, match="no dataset version here"):
        load_dataset(version.uri)
