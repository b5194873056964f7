"""The inference log: what was put down is in the store, what was not is counted, and no request ever waits for it."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubevox import storage
from kubevox.config import DriftConfig, InferenceLogConfig
from kubevox.errors import StorageError, ValidationError
from kubevox.serving import inference_log
from kubevox.serving.inference_log import InferenceLog, LoggedAnswer, join_truth, read_inference_log
from tests import test_storage, test_storage_faults

LABELS = ["angry", "happy", "sad"]
NOON = datetime.datetime(2026, 3, 16, 12, 0, 0, 123_456, datetime.UTC)
FEATURES = DriftConfig().feature_names
DRIFT = [float(number) for number in range(len(FEATURES))]

# A bucket whose server fails on demand, and a real one.
server = test_storage_faults.server
s3_folder, s3_server, bucket = test_storage.s3_folder, test_storage.s3_server, test_storage.bucket


def answer(number: int = 0, **fields: Any) -> LoggedAnswer:
    said: dict[str, Any] = {
        "request_id": f"request-{number:05d}",
        "instance": 0,
        "time": NOON + datetime.timedelta(milliseconds=number),
        "model": "mood",
        "model_version": "7",
        "bundle": "b" * 64,
        "dataset": "d" * 64,
        "protocol": "v1",
        "label": "happy",
        "confidence": 0.75,
        "abstained": False,
        "probabilities": (0.125, 0.75, 0.125),
        "answered_by": "",
        "duration_s": 3.0,
        "sample_rate": 16_000,
        "source_format": "FLAC",
        "queue_ms": 0.5,
        "decode_ms": 1.5,
        "features_ms": 2.5,
        "model_ms": 3.5,
        "total_ms": 9.0,
    }
    return LoggedAnswer(**(said | fields))


Make = Callable[..., InferenceLog]


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def make(store: str) -> Iterator[Make]:
    """``make(…)``: a log that has begun, of the given configuration; ended with the test."""
    begun = []

    def log(
        place: str = store,
        model: str = "mood",
        labels: list[str] = LABELS,
        drift: DriftConfig | None = DriftConfig(),  # noqa: B008 - frozen
        **config: Any,
    ) -> InferenceLog:
        one = InferenceLog(InferenceLogConfig(**config), place, model, labels, drift)
        one.start()
        begun.append(one)
        return one

    yield log
    for one in begun:
        one.close(0.0)


def until(true: Callable[[], Any], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.005)


def files(store: str, model: str = "mood") -> list[Path]:
    return sorted(Path(store, "inference", model).rglob("*.parquet"))


def counts(log: InferenceLog) -> tuple[int, int, int]:
    return log.written, log.dropped, log.failed


# What is written


def test_rows_are_read_as_they_were_put(make, store):
    log = make(audio=True)
    rows = [
        answer(0),
        answer(1, instance=3, label="sad", probabilities=(0.25, 0.25, 0.5), confidence=0.5, abstained=True),
        answer(2, features_ms=None, answered_by="premium", protocol="grpc", drift=DRIFT),
        answer(3, audio=b"fLaC...", source_format="OGG", sample_rate=44_100, request_id="ø/é 音"),
    ]
    for row in rows:
        log.put(row)
    log.close(10)
    assert counts(log) == (4, 0, 0)
    read = read_inference_log(store, "mood", audio=True).to_pylist()
    for row, found in zip(rows, read, strict=True):
        values = [found.pop(name) for name in FEATURES]
        assert values == (DRIFT if row.drift else [None] * len(FEATURES))
        expected = dataclasses.asdict(row)
        del expected["drift"]
        assert found == expected | {"probabilities": list(row.probabilities)}


NUMBER = st.floats(width=32, allow_nan=False)
ROW = st.fixed_dictionaries(
    {
        "request_id": st.text(st.characters(codec="utf-8"), max_size=20),
        "instance": st.integers(0, 2**31 - 1),
        "time": st.datetimes(
            datetime.datetime(1970, 1, 2), datetime.datetime(2200, 1, 1), timezones=st.just(datetime.UTC)
        ),
        "label": st.sampled_from(LABELS),
        "confidence": NUMBER,
        "abstained": st.booleans(),
        "probabilities": st.tuples(NUMBER, NUMBER, NUMBER),
        "features_ms": st.none() | NUMBER,
        "drift": st.none() | st.lists(NUMBER, min_size=len(FEATURES), max_size=len(FEATURES)),
        "audio": st.none() | st.binary(max_size=50),
    }
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_rows=st.lists(ROW, max_size=12), rows_per_file=st.integers(1, 5))
def test_whatever_is_put_is_read(store, given_rows, rows_per_file):
    shutil.rmtree(store, ignore_errors=True)
    log = InferenceLog(
        InferenceLogConfig(rows_per_file=rows_per_file, audio=True), store, "mood", LABELS, DriftConfig()
    )
    log.start()
    rows = [answer(**fields) for fields in given_rows]
    for row in rows:
        log.put(row)
    log.close(20)
    assert counts(log) == (len(rows), 0, 0)

    def known(row: Any, get: Callable[[Any, str], Any]) -> str:
        fields = {name: get(row, name) for name in given_rows[0] if name not in ("drift", "time")}
        return repr(sorted((fields | {"probabilities": list(fields["probabilities"])}).items())) + str(get(row, "time"))

    read = read_inference_log(store, "mood", audio=True).to_pylist()
    assert sorted(known(row, dict.get) for row in read) == sorted(known(row, getattr) for row in rows)


def test_a_file_says_what_is_in_it(make, store):
    log = make()
    for number in (5, 3, 4):
        log.put(answer(number))
    log.close(10)
    (path,) = files(store)
    assert re.fullmatch(r"120000\.126-[0-9a-f]{12}-00000\.parquet", path.name)
    assert path.parent == Path(store, "inference", "mood", "2026-03-16")
    file = pq.ParquetFile(path)
    said = json.loads(file.schema_arrow.metadata[b"kubevox"])
    assert said == {
        "inference_log": 1,
        "labels": LABELS,
        "drift_features": FEATURES,
        "drift": DriftConfig().model_dump(mode="json"),
    }
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    names = [field.name for field in dataclasses.fields(LoggedAnswer) if field.name not in ("drift", "audio")]
    assert file.schema_arrow.names == [*names, *FEATURES, "audio"]
    assert file.read()["time"].to_pylist() == [answer(number).time for number in (3, 4, 5)]


def test_the_columns_are_the_same_whatever_is_logged(make, store):
    for model, config in {"a": {"drift": None}, "b": {"audio": True}, "c": {}}.items():
        log = make(model=model, **config)
        log.put(answer(model=model))
        log.close(10)
    schemas = [pq.read_schema(files(store, model)[0]).remove_metadata() for model in "abc"]
    assert schemas[0] == schemas[1] == schemas[2]


def test_a_file_is_written_when_it_is_full(make, store):
    log = make(rows_per_file=10, seconds_per_file=1e6)
    for number in range(9):
        log.put(answer(number))
    assert log.written == 0
    for number in range(9, 25):
        log.put(answer(number))
    until(lambda: log.written == 20)
    log.close(10)
    assert [pq.read_metadata(path).num_rows for path in files(store)] == [10, 10, 5]
    assert counts(log) == (25, 0, 0)


def test_a_file_is_written_when_its_first_row_is_old(make, store):
    log = make(seconds_per_file=0.1)
    begun = time.monotonic()
    log.put(answer(0))
    until(lambda: log.written == 1)
    assert 0.1 <= time.monotonic() - begun < 5
    log.put(answer(1))
    log.put(answer(2))
    until(lambda: log.written == 3)
    assert len(files(store)) == 2


def test_every_row_lies_in_the_folder_of_its_day(make, store):
    log = make()
    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    midnight = datetime.datetime(2026, 3, 17, tzinfo=datetime.UTC)
    for number in range(-3, 3):
        log.put(answer(time=(midnight + datetime.timedelta(microseconds=number)).astimezone(zone)))
    log.close(10)
    assert [(path.parent.name, path.name[:10], pq.read_metadata(path).num_rows) for path in files(store)] == [
        ("2026-03-16", "235959.999", 3),
        ("2026-03-17", "000000.000", 3),
    ]


def test_a_models_name_leads_nowhere_else(make, store):
    for model in ("../../evil", "..", ".", "a b", "ö"):
        log = make(model=model)
        log.put(answer(model=model))
        log.close(10)
        assert read_inference_log(store, model)["model"].to_pylist() == [model]
    assert sorted(path.name for path in Path(store, "inference").iterdir()) == [
        "%2E",
        "%2E.",
        "%2E.%2F..%2Fevil",
        "%C3%B6",
        "a%20b",
    ]
    assert [path.name for path in Path(store).iterdir()] == ["inference"]


# What is not


def outage(store: str) -> Path:
    """Something that lies where the log's folder ought to be."""
    block = Path(store, "inference")
    block.parent.mkdir(parents=True, exist_ok=True)
    block.write_text("in the way")
    return block


def test_an_outage_costs_rows_only_beyond_what_is_held_and_one_line(make, store, caplog, monkeypatch):
    monkeypatch.setattr(inference_log, "_PAUSE_S", 0.01)
    block = outage(store)
    log = make(max_rows=50, rows_per_file=20)
    for number in range(200):
        log.put(answer(number))
    until(lambda: caplog.records)
    for number in range(200, 300):
        log.put(answer(number))
    assert counts(log) == (0, 250, 0)
    assert log._in_hand + len(log._rows) == 50
    assert len(caplog.records) == 1
    assert "it is tried again" in caplog.text
    block.unlink()
    until(lambda: log.written == 40)  # what is left is no full file
    log.put(answer(300))
    log.close(10)
    assert counts(log) == (51, 250, 0)
    assert read_inference_log(store, "mood")["request_id"].to_pylist() == [
        f"request-{number:05d}" for number in (*range(50), 300)
    ]
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records[1:]] == [
        "written again; 250 rows were dropped"
    ]


def test_an_end_in_an_outage_comes_in_time_and_counts_what_is_lost(make, store, caplog):
    outage(store)
    log = make(rows_per_file=10)
    for number in range(25):
        log.put(answer(number))
    begun = time.monotonic()
    log.close(0.5)
    assert time.monotonic() - begun < 3
    assert counts(log) == (0, 0, 25)
    log.close(0.5)
    log.put(answer(99))
    assert counts(log) == (0, 1, 25)
    assert "25 rows could not be written" in caplog.text
    assert not log._thread.is_alive()


def test_an_end_in_an_outage_still_writes_what_it_can(make, store):
    block = outage(store)
    log = make()
    log.put(answer())
    threading.Timer(0.3, block.unlink).start()
    log.close(10)
    assert counts(log) == (1, 0, 0)


def test_a_store_that_hangs_does_not_hold_up_a_request(make, tmp_path, server, monkeypatch):
    hanging = threading.Event()

    class Hangs:
        def __enter__(self) -> None:
            hanging.wait(20)

        def __exit__(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(server, "lock", Hangs())
    log = make("s3://bucket/store", max_rows=100, rows_per_file=10)
    begun = time.monotonic()
    for number in range(500):
        log.put(answer(number))
        log.add_drift(f"request-{number:05d}", 0, DRIFT)
    assert time.monotonic() - begun < 1
    assert log.dropped == 400
    log.close(0.2)
    assert time.monotonic() - begun < 5
    assert counts(log) == (0, 400, 100)
    hanging.set()


def test_rows_that_are_none_are_counted_and_spare_the_others(make, store, caplog):
    log = make()
    log.put(answer(0))
    log.put(answer(1, probabilities=(0.5, 0.5)))
    log.put(answer(2, request_id="\ud800"))
    log.put(answer(3, sample_rate=2**40))
    log.put(answer(4, confidence="high"))
    log.put(answer(5, drift=[1.0]))
    log.put(answer(6))
    log.close(10)
    assert counts(log) == (2, 0, 5)
    assert [row["request_id"][-1] for row in read_inference_log(store, "mood").to_pylist()] == ["0", "6"]
    assert caplog.text.count("cannot be written") == 1


def test_even_what_cannot_be_sorted_does_not_end_the_log(make, store):
    log = make(rows_per_file=2)
    log.put(answer(0, time=None))
    log.put(answer(1))
    until(lambda: log.failed == 2)
    log.put(answer(2))
    log.close(10)
    assert counts(log) == (1, 0, 2)


def test_rows_may_come_from_many_threads(make, store):
    log = make(rows_per_file=97)

    def work(first: int) -> None:
        for number in range(first, first + 500):
            log.put(answer(number))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 4000, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close(20)
    assert counts(log) == (4000, 0, 0)
    assert len(set(read_inference_log(store, "mood")["request_id"].to_pylist())) == 4000


def test_putting_a_row_down_costs_microseconds(make):
    log = make()
    rows = [answer(number) for number in range(5000)]
    took = []
    for row in rows:
        begun = time.perf_counter_ns()
        log.put(row)
        took.append(time.perf_counter_ns() - begun)
    assert np.median(took) < 20_000  # it is below one microsecond where nothing else runs


# Drift features


def test_drift_features_may_come_after_the_row_or_before_it(make, store):
    log = make()
    log.put(answer(0))
    log.add_drift("request-00000", 0, DRIFT)
    log.add_drift("request-00001", 1, DRIFT[::-1])
    log.add_drift("nobody", 0, DRIFT)
    log.put(answer(1, instance=1))
    log.put(answer(1, instance=2))
    log.put(answer(2, drift=DRIFT))
    log.close(10)
    read = read_inference_log(store, "mood").select(FEATURES).to_pylist()
    assert [list(row.values()) for row in read] == [DRIFT, DRIFT[::-1], [None] * len(DRIFT), DRIFT]


def test_drift_features_that_find_no_row_are_forgotten(make, store):
    log = make(rows_per_file=1, max_rows=10)
    for number in range(50):
        log.add_drift(f"nobody-{number}", 0, DRIFT)
    assert len(log._drift) == 10
    for number in range(3):
        log.put(answer(number))
        until(lambda number=number: log.written == number + 1)
    assert not log._drift
    assert not log._older_drift
    log.add_drift("request-00002", 0, DRIFT)  # its file is written
    log.close(10)
    assert read_inference_log(store, "mood")["rms_mean"].null_count == 3


def test_where_a_client_uses_an_id_twice_no_row_gets_anothers_features(make, store):
    log = make()
    for number in range(3):
        log.put(answer(number, request_id="same"))
    log.add_drift("same", 0, DRIFT)
    log.close(10)
    assert read_inference_log(store, "mood")["rms_mean"].null_count == 3


def test_wrong_or_unwanted_drift_features_are_left_out(make, store, caplog):
    log, without = make(), make(model="other", drift=None)
    for one in (log, without):
        one.put(answer(0))
        one.add_drift("request-00000", 0, DRIFT[1:])
        one.add_drift("request-00000", 0, [])
        one.close(10)
    without.add_drift("request-00000", 0, DRIFT)
    assert caplog.text.count("drift features are left out") == 1
    for model in ("mood", "other"):
        assert read_inference_log(store, model)["rms_mean"].null_count == 1


# Audio


def test_no_audio_is_kept_unless_it_is_asked_for(make, store):
    log = make()
    log.put(answer(0, audio=b"somebody's voice"))
    log.close(10)
    assert read_inference_log(store, "mood", audio=True)["audio"].to_pylist() == [None]
    assert "audio" not in read_inference_log(store, "mood").column_names
    assert b"somebody" not in files(store)[0].read_bytes()


def test_audio_in_memory_has_a_bound_and_rows_beyond_it_go_without(make, store, monkeypatch):
    monkeypatch.setattr(inference_log, "_PAUSE_S", 0.01)
    block = outage(store)
    log = make(audio=True, max_audio_bytes=1000)
    for number in range(30):
        log.put(answer(number, audio=bytes(90)))
    assert log.audio_left_out == 30 - 11
    block.unlink()
    until(lambda: log.written == 9)  # three files' worth
    log.put(answer(30, audio=bytes(90)))
    log.close(10)
    assert counts(log) == (31, 0, 0)
    kept = [audio is not None for audio in read_inference_log(store, "mood", audio=True)["audio"].to_pylist()]
    assert kept == [True] * 11 + [False] * 19 + [True]


def test_files_with_audio_stay_small(make, store):
    log = make(audio=True, max_audio_bytes=4000, seconds_per_file=1e6)
    for number in range(20):
        log.put(answer(number, audio=os.urandom(500)))
        until(lambda number=number: log.written >= (number + 1) // 2 * 2)
    assert [pq.read_metadata(path).num_rows for path in files(store)] == [2] * 10


# A process that ends


WRITES = """
import itertools, sys
from kubevox.config import DriftConfig, InferenceLogConfig
from kubevox.serving.inference_log import InferenceLog
from tests.serving.test_inference_log import DRIFT, LABELS, answer
log = InferenceLog(InferenceLogConfig(rows_per_file=50), sys.argv[1], "mood", LABELS, DriftConfig())
log.start()
print("begun", flush=True)
for number in itertools.count():
    while number - log.written > 500:
        pass
    log.put(answer(number % 5000, drift=DRIFT))
"""


def test_a_process_that_is_killed_leaves_whole_files_or_none(store):
    process = subprocess.Popen([sys.executable, "-c", WRITES, store], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process, process.stdout:
        process.stdout.readline()
        until(lambda: len(files(store)) >= 9)
        process.send_signal(signal.SIGKILL)
    seen = files(store)
    assert [pq.read_table(path).num_rows for path in seen] == [50] * len(seen)
    assert len(read_inference_log(store, "mood")) == 50 * len(seen)
    storage.sweep(store, 0.0)
    left = [path for path in Path(store).rglob("*") if path.is_file()]
    assert sorted(left) == seen


# Buckets


def test_a_log_in_a_bucket_gets_over_faults(make, server, monkeypatch):
    monkeypatch.setattr("kubevox.storage.buckets.PATIENCE_S", 0.05)
    monkeypatch.setattr(inference_log, "_PAUSE_S", 0.01)
    server.faults[:] = ["slow down"] * 500
    log = make("s3://bucket/store", rows_per_file=10)
    for number in range(35):
        log.put(answer(number))
    until(lambda: len(server.faults) < 450)
    server.faults[:] = ["reset", "lost", "slow down"]
    log.close(20)
    assert counts(log) == (35, 0, 0)
    assert [pq.read_metadata(pa.BufferReader(data)).num_rows for data, _ in server.objects.values()] == [10, 10, 10, 5]


@pytest.mark.acceptance
def test_a_log_in_a_real_bucket(make, bucket):
    log = make(bucket, rows_per_file=10, audio=True)
    for number in range(35):
        log.put(answer(number, audio=os.urandom(10_000)))
    log.close(20)
    assert counts(log) == (35, 0, 0)
    read = read_inference_log(bucket, "mood", audio=True)
    assert [len(audio) for audio in read["audio"].to_pylist()] == [10_000] * 35


# Reading


def test_a_log_is_read_between_two_moments(make, store):
    log = make(rows_per_file=7)
    for hour, number in itertools.product(range(0, 72, 6), range(3)):
        log.put(answer(number, time=NOON + datetime.timedelta(hours=hour, minutes=number)))
    log.close(10)
    everything = read_inference_log(store, "mood")["time"].to_pylist()
    assert everything == sorted(everything)
    assert len(everything) == 36
    for first, last in itertools.combinations([None, -1, 0, 11, 12, 30, 42, 66, 80, None], 2):
        since, until = (None if hours is None else NOON + datetime.timedelta(hours=hours) for hours in (first, last))
        expected = [t for t in everything if (since is None or t >= since) and (until is None or t < until)]
        assert read_inference_log(store, "mood", since, until)["time"].to_pylist() == expected
    naive = NOON.replace(tzinfo=None) + datetime.timedelta(hours=30)
    assert read_inference_log(store, "mood", naive)["time"].to_pylist() == everything[15:]


def test_a_log_that_is_not_there_has_no_rows_and_all_columns(store):
    empty = read_inference_log(store, "mood")
    assert len(empty) == 0
    assert empty.column_names[-len(FEATURES) :] == FEATURES
    assert len(join_truth(empty, pa.table({"request_id": ["a"], "label": ["sad"]}))) == 0


def test_versions_with_other_labels_are_read_in_one_order(make, store):
    for number, labels in enumerate((["angry", "happy"], ["happy", "angry"], ["happy", "sad", "angry"])):
        log = make(labels=labels)
        values = {"angry": 0.5, "happy": 0.25, "sad": 0.125}
        log.put(answer(number, probabilities=tuple(values[label] for label in labels)))
        log.close(10)
    read = read_inference_log(store, "mood")
    assert json.loads(read.schema.metadata[b"kubevox"])["labels"] == ["angry", "happy", "sad"]
    assert read["probabilities"].to_pylist() == [[0.5, 0.25, None], [0.5, 0.25, None], [0.5, 0.25, 0.125]]


def test_other_drift_features_are_other_columns(make, store):
    fewer = DriftConfig(mfccs=12)
    more = DriftConfig(mfccs=14)
    for number, config in enumerate((fewer, more)):
        log = make(drift=config)
        log.put(answer(number, drift=[1.0] * len(config.feature_names)))
        log.close(10)
    read = read_inference_log(store, "mood")
    features = json.loads(read.schema.metadata[b"kubevox"])["drift_features"]
    assert set(features) == set(more.feature_names)
    assert [read[name].to_pylist() for name in ("mfcc_11_mean", "mfcc_12_mean", "mfcc_13_std")] == [
        [1.0, 1.0],
        [None, 1.0],
        [None, 1.0],
    ]


@pytest.mark.parametrize("damage", ["cut", "other", "nothing", "format", "text"])
def test_a_file_that_cannot_be_read_is_named(make, store, damage):
    log = make()
    log.put(answer())
    log.close(10)
    (path,) = files(store)
    content = path.read_bytes()
    if damage == "format":
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({b"kubevox": b'{"inference_log": 2}'}), path)
    elif damage == "other":
        pq.write_table(pa.table({"a": [1]}), path)
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "nothing": b"", "text": b"hello"}[damage])
    words = "format 2" if damage == "format" else "damaged"
    with pytest.raises(StorageError, match=rf"^{re.escape(str(path))}: .*{words}"):
        read_inference_log(store, "mood")


# The truth


def log_of(make: Make, store: str) -> pa.Table:
    log = make()
    for number, instance in ((0, 0), (1, 0), (1, 1), (2, 0)):
        log.put(answer(number, instance=instance))
    log.close(10)
    return read_inference_log(store, "mood")


def test_the_truth_is_joined_by_request_and_recording(make, store):
    truth = pa.table(
        {
            "label": ["sad", "angry", "angry", "happy", None],
            "request_id": ["request-00001", "request-00000", "request-00000", "unknown", "request-00002"],
            "instance": [1, 0, 0, 0, 0],
        }
    )
    table = log_of(make, store)
    joined = join_truth(table, truth)
    assert joined["truth"].to_pylist() == ["angry", None, "sad", None]
    assert joined.drop_columns("truth") == table


def test_without_a_recordings_number_the_first_is_meant(make, store):
    truth = pa.table({"request_id": ["request-00001"], "label": pa.array(["sad"]).dictionary_encode()})
    assert join_truth(log_of(make, store), truth)["truth"].to_pylist() == [None, "sad", None, None]


def test_a_truth_that_contradicts_itself_or_lacks_a_column_is_refused(make, store):
    table = log_of(make, store)
    with pytest.raises(ValidationError, match="recording 0 of request a b has two different labels"):
        join_truth(table, pa.table({"request_id": ["a b", "a b"], "label": ["sad", "happy"]}))
    with pytest.raises(ValidationError, match="column 'label' is missing"):
        join_truth(table, pa.table({"request_id": ["a"]}))


# What is documented

DOCUMENT = "docs/inference-log.md"


def test_every_column_is_documented_in_its_order(repository, make, store):
    text = (repository / DOCUMENT).read_text()
    documented = re.findall(r"^\| `(\w+)` \| ([\w<>\[\] ,]+?) \|", text, re.MULTILINE)
    log = make()
    log.put(answer())
    log.close(10)
    schema = pq.read_schema(files(store)[0])
    kinds = {"timestamp[us, tz=UTC]": "timestamp", "list<element: float>": "list<float>", "large_binary": "binary"}
    plain = [
        (field.name, kinds.get(str(field.type), str(field.type))) for field in schema if field.name not in FEATURES
    ]
    assert documented == plain
    for name in FEATURES:
        stem = re.sub(r"_(mean|std)$", "", re.sub(r"_\d+", "_N", name))
        assert f"`{stem}" in text


def test_the_examples_run(repository, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = make(".kubevox/store", "emotion")
    for number in range(20):
        log.put(answer(number, model="emotion", label=LABELS[number % 3], drift=DRIFT))
    log.close(10)
    truth = pa.table({"request_id": [f"request-{n:05d}" for n in range(0, 20, 2)], "label": ["happy"] * 10})
    pq.write_table(truth, "truth.parquet")
    examples = re.findall(r"```python\n(.*?)```", (repository / DOCUMENT).read_text(), re.DOTALL)
    assert len(examples) >= 3
    found: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, DOCUMENT, "exec"), found)  # noqa: S102 - our own document
    assert len(found["log"]) == 20
    assert found["accuracy"] == pytest.approx(0.3)
    assert found["by_label"].to_dict() == {"angry": 7, "happy": 7, "sad": 6}
