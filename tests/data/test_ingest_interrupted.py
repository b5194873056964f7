"""An ingest that is killed, refused or left by a worker: what it leaves, and what the next one makes of it."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from kubevox import storage
from kubevox.config import CorpusSource, DataConfig
from kubevox.data.corpora.folder import Folder
from kubevox.data.dataset import DatasetVersion, ingest, read_audio, read_rejects, read_utterances

MOMENTS = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Noise, so that a shard of a megabyte is soon full; one file is damaged."""
    folder = tmp_path_factory.mktemp("corpus")
    chance = np.random.default_rng(0)
    for clip in range(260):
        path = folder / ("sad", "happy")[clip % 2] / f"s{clip % 7}_{clip:04d}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, chance.integers(-32768, 32767, 16_000, np.int16), 16_000)
    (folder / "sad" / "s0_9999.wav").write_text("no recording")
    return folder


def config_of(corpus: Path) -> DataConfig:
    return DataConfig(
        corpora=[CorpusSource(name="folder", path=str(corpus))], shard_mb=1, max_rejected_share=0.1, name="calls"
    )


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> tuple[DatasetVersion, float]:
    """What comes of it when nothing happens, and how long that takes."""
    store = str(tmp_path_factory.mktemp("store"))
    begun = time.monotonic()
    version, _ = ingest(config_of(corpus), store)
    return version, time.monotonic() - begun


def run(corpus: Path, store: str) -> None:
    os.setsid()
    ingest(config_of(corpus), store)


def assert_whole(version: DatasetVersion) -> None:
    """Every row is there and sounds as it is named, and nothing lies in the store that nobody lists."""
    rows = read_utterances(version.shard_uris)
    assert len(rows) == version.utterances == 260
    assert len(read_rejects(version)) == version.rejects == 1
    heard = {name: wave.id for uri in version.shard_uris for name, wave in read_audio(uri)}
    assert all(name == id for name, id in heard.items())
    assert {row.id for row in rows} == set(heard)
    assert storage.list_names(storage.join(version.store, "datasets")) == [version.hash]
    listed = {f"{shard.sha256}.parquet" for shard in version.shards}
    assert set(storage.list_names(storage.join(version.store, "shards"))) == listed


@pytest.mark.slow
def test_killed_at_any_moment_the_next_ingest_makes_the_same_version(corpus, undisturbed, tmp_path):
    expected, duration = undisturbed
    context = multiprocessing.get_context("fork")
    chance, unfinished = random.Random(7), 0
    for moment in range(MOMENTS):
        store = str(tmp_path / f"store-{moment}")
        process = context.Process(target=run, args=(corpus, store))
        process.start()
        process.join(chance.uniform(0, 1.1 * duration))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            unfinished += not Path(store, "datasets").exists()
        version, _ = ingest(config_of(corpus), store)
        assert version == expected.__class__(**{**vars(expected), "uri": version.uri})
        assert_whole(version)
    assert unfinished > MOMENTS // 4


def test_an_ingest_that_was_ended_goes_on_behind_its_last_shard(corpus, undisturbed, tmp_path, monkeypatch, capfd):
    store, stored = str(tmp_path / "store"), []
    create_file = storage.create_file

    def end_after_three(uri, path, *args, **kwargs):
        if len(stored) == 3:
            raise KeyboardInterrupt
        stored.append(uri)
        return create_file(uri, path, *args, **kwargs)

    monkeypatch.setattr(storage, "create_file", end_after_three)
    with pytest.raises(KeyboardInterrupt):
        ingest(config_of(corpus), store)
    monkeypatch.undo()
    read = []
    describe = Folder.describe

    def watched(self, file):
        recording = describe(self, file)
        return recording.__class__(**{**vars(recording), "read": lambda: read.append(file) or file.read_bytes()})

    monkeypatch.setattr(Folder, "describe", watched)
    version, reused = ingest(config_of(corpus), store)
    assert (version.hash, reused) == (undisturbed[0].hash, False)
    rows = sum(pq.read_metadata(uri).num_rows for uri in stored)
    assert f"goes on behind {rows} recordings" in capfd.readouterr().err
    assert_whole(version)


def test_a_recording_whose_decoder_crashes_is_one_failed_recording(corpus, tmp_path, monkeypatch):
    describe = Folder.describe

    def fatal(self, file):
        recording = describe(self, file)
        if file.stem not in ("s3_0010", "s4_0011"):
            return recording
        return recording.__class__(**{**vars(recording), "read": lambda: os.kill(os.getpid(), signal.SIGKILL)})

    monkeypatch.setattr(Folder, "describe", fatal)
    version, _ = ingest(config_of(corpus), str(tmp_path / "store"))
    assert (version.utterances, version.rejects) == (258, 3)
    assert sorted(row["reason"] for row in read_rejects(version)) == ["crashed", "crashed", "not_audio"]
