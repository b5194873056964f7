"""The inference log: a row for each recording that was answered, in Parquet files in the store.

Rows are put down while a request is answered, which costs microseconds and never fails or waits; a thread writes them
to ``<store>/inference/<model>/<day>/<time>-<writer>-<number>.parquet``, each file whole or not at all. What is held in
memory is bounded: where the store cannot be written for long, rows are counted and left out. A process that is killed
loses what it had not written yet. There are no file names, no addresses and, unless the configuration asks for it, no
audio in it; the request's id is the key by which the truth can be joined later. ``docs/inference-log.md`` describes
every column.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import itertools
import json
import logging
import operator
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kubevox import storage
from kubevox.config import DriftConfig, InferenceLogConfig
from kubevox.errors import StorageError, ValidationError
from kubevox.provenance import canonical_json

__all__ = ["InferenceLog", "LoggedAnswer", "join_truth", "read_inference_log"]

_FORMAT = 1
_METADATA = b"kubevox"
_CHUNK = 512  # rows turned into columns at a time, so that nothing else waits long for the interpreter
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0  # between two attempts to write, doubled each time
_UTC = datetime.UTC

_COLUMNS = {
    "request_id": pa.string(),
    "instance": pa.int32(),
    "time": pa.timestamp("us", tz="UTC"),
    "model": pa.string(),
    "model_version": pa.string(),
    "bundle": pa.string(),
    "dataset": pa.string(),
    "protocol": pa.string(),
    "label": pa.string(),
    "confidence": pa.float32(),
    "abstained": pa.bool_(),
    "probabilities": pa.list_(pa.float32()),
    "answered_by": pa.string(),
    "duration_s": pa.float32(),
    "sample_rate": pa.int32(),
    "source_format": pa.string(),
    "queue_ms": pa.float32(),
    "decode_ms": pa.float32(),
    "features_ms": pa.float32(),
    "model_ms": pa.float32(),
    "total_ms": pa.float32(),
}
# Offsets of 64 bits: the audio of a day, read as one table, can be more than 2 GiB.
_AUDIO = {"audio": pa.large_binary()}
_WORDS = [name for name, kind in _COLUMNS.items() if kind == pa.string()]
_plain = operator.attrgetter(*(name for name in _COLUMNS if name != "probabilities"))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """What is kept of one recording's answer.

    Attributes:
        request_id: the request's.
        instance: which of the request's recordings, from 0.
        time: of the answer, with a time zone.
        model: the model's name.
        model_version: the registered version.
        bundle: the hash of the bundle that answered.
        dataset: the hash of the dataset that it was trained on.
        protocol: that the request came in: v1, v2, grpc or raw.
        label: the answer.
        confidence: the label's probability.
        abstained: whether that is below what the server is confident of.
        probabilities: of every label, in the order of the model's labels.
        answered_by: of a cascade, the role of the bundle that answered; else empty.
        duration_s: of the recording.
        sample_rate: of the recording as it came, in Hz.
        source_format: of the file as it came.
        queue_ms: how long it waited for a worker,
        decode_ms: was decoded,
        features_ms: how long its features took; None where they were not timed,
        model_ms: and the model,
        total_ms: and all of the request.
        drift: the drift features, where they are there already; see :meth:`InferenceLog.add_drift`.
        audio: the recording's file; kept only where the configuration says so.
    """

    request_id: str
    instance: int
    time: datetime.datetime
    model: str
    model_version: str
    bundle: str
    dataset: str
    protocol: str
    label: str
    confidence: float
    abstained: bool
    probabilities: Sequence[float]
    answered_by: str
    duration_s: float
    sample_rate: int
    source_format: str
    queue_ms: float
    decode_ms: float
    features_ms: float | None
    model_ms: float
    total_ms: float
    drift: Sequence[float] | None = None
    audio: bytes | None = None


class InferenceLog:
    """Writes what :meth:`put` is given, in a thread of its own.

    Args:
        config: when a file is written, and how much is held until then.
        store: the folder or bucket that it goes to.
        model: the model's name.
        labels: the model's, in the order of the probabilities.
        drift_config: of which features the drift values are; None: there will be none.

    Attributes:
        written: rows that are in the store.
        dropped: rows that found no room.
        failed: rows that could not be written before the end, or are no rows.
        audio_left_out: recordings that found no room, and whose rows go without.
    """

    def __init__(
        self,
        config: InferenceLogConfig,
        store: str,
        model: str,
        labels: Sequence[str],
        drift_config: DriftConfig | None = None,
    ) -> None:
        self.written = self.dropped = self.failed = self.audio_left_out = 0
        self._config = config
        self._folder = _folder(store, model)
        self._labels = list(labels)
        self._takes_drift = drift_config is not None
        drift = drift_config or DriftConfig()
        self._drift_names = drift.feature_names
        self._schema = _schema(self._labels, drift)
        self._rows: collections.deque[LoggedAnswer] = collections.deque()
        self._room = threading.Condition()
        self._in_hand = 0
        self._since = 0.0
        self._audio_waiting = self._audio_in_hand = 0
        # A file's worth of audio: some fit beside one another, so that there is room while one is written.
        self._audio_per_file = max(1, config.max_audio_bytes // 4)
        # Values that came since the last file was begun, and before that: those may be of rows that are not there yet.
        self._drift: dict[tuple[str, int], npt.NDArray[np.float32]] = {}
        self._older_drift: dict[tuple[str, int], npt.NDArray[np.float32]] = {}
        self._writer = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()
        self._ending = False
        self._deadline = float("inf")
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="kubevox-inference-log", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, row: LoggedAnswer) -> None:
        """Have a row written; or counted as dropped, where too many wait already."""
        with self._room:
            waiting = len(self._rows)
            if self._ending or waiting + self._in_hand >= self._config.max_rows:
                self.dropped += 1
                return
            if row.audio is not None:
                row = self._with_room_for_audio(row)
            if not waiting:
                self._since = time.monotonic()
            self._rows.append(row)
            if not waiting or waiting + 1 >= self._config.rows_per_file or self._audio_waiting >= self._audio_per_file:
                self._room.notify()

    def add_drift(self, request_id: str, instance: int, values: Sequence[float]) -> None:
        """Drift features that were computed after the answer; they count if the row is not written yet.

        Where a client has used an id twice, and both rows are in one file, neither gets them.

        Args:
            request_id: the row's.
            instance: the row's.
            values: as many as the drift features have names, in their order.
        """
        if not self._takes_drift:
            return
        if len(values) != len(self._drift_names):
            self._tell(
                "drift", "drift features are left out: %d values for %d names", len(values), len(self._drift_names)
            )
            return
        found = np.asarray(values, np.float32)
        with self._room:
            if len(self._drift) >= self._config.max_rows:
                del self._drift[next(iter(self._drift))]
            self._drift[request_id, instance] = found

    def close(self, timeout_s: float) -> None:
        """Write what waits, and end.

        Args:
            timeout_s: how long that may take; what is not written then is counted as failed.
        """
        with self._room:
            self._ending = True
            self._deadline = min(self._deadline, time.monotonic() + timeout_s)
            failed = self.failed
            self._room.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        with self._room:
            self.failed += len(self._rows) + self._in_hand
            self._rows.clear()
            self._in_hand = 0
            lost = self.failed - failed
        if lost:
            _log.warning("inference log %s: %d rows could not be written before the end", self._folder, lost)

    def _with_room_for_audio(self, row: LoggedAnswer) -> LoggedAnswer:
        size = len(row.audio or b"")
        kept = self._config.audio
        if kept and self._audio_waiting + self._audio_in_hand + size > self._config.max_audio_bytes:
            self.audio_left_out += 1
            kept = False
        if kept:
            self._audio_waiting += size
            return row
        return dataclasses.replace(row, audio=None)

    def _work(self) -> None:
        while rows := self._next_rows():
            try:
                for _, of_day in itertools.groupby(sorted(rows, key=operator.attrgetter("time")), key=_day_of):
                    self._write(list(of_day))
            except Exception:
                # Whatever it is, the server goes on, and so does its log.
                _log.exception("inference log %s: rows are lost", self._folder)
            with self._room:
                self.failed += self._in_hand  # what is left of them
                self._in_hand = self._audio_in_hand = 0

    def _next_rows(self) -> list[LoggedAnswer]:
        """The rows of a file, when it is time for one; none when all is written and there will be no more."""
        config = self._config
        with self._room:
            while True:
                if self._rows:
                    full = len(self._rows) >= config.rows_per_file or self._audio_waiting >= self._audio_per_file
                    left = self._since + config.seconds_per_file - time.monotonic()
                    if full or self._ending or left <= 0:
                        return self._taken()
                    self._room.wait(left)
                elif self._ending:
                    return []
                else:
                    self._room.wait()

    def _taken(self) -> list[LoggedAnswer]:
        rows: list[LoggedAnswer] = []
        audio = 0
        while self._rows and len(rows) < self._config.rows_per_file and audio < self._audio_per_file:
            row = self._rows.popleft()
            audio += len(row.audio or b"")
            rows.append(row)
        self._in_hand, self._audio_in_hand = len(rows), audio
        self._audio_waiting -= audio
        self._since = time.monotonic()
        return rows

    def _write(self, rows: list[LoggedAnswer]) -> None:
        table = self._table(rows)
        if not table.num_rows:
            return
        begun = rows[0].time.astimezone(_UTC)
        name = f"{begun:%H%M%S}.{begun.microsecond // 1000:03d}-{self._writer}-{next(self._numbers):05d}.parquet"
        uri = storage.join(self._folder, f"{begun:%Y-%m-%d}", name)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", use_dictionary=_WORDS)
        if self._stored(uri, sink.getvalue().to_pybytes()):
            with self._room:
                # Where close() has given up on them meanwhile they are counted as failed, though they are here.
                count = min(table.num_rows, self._in_hand)
                self.written += count
                self._in_hand -= count

    def _stored(self, uri: str, data: bytes) -> bool:
        """Whether a file could be written, sooner or later; False where the end came first."""
        pause = _PAUSE_S
        while True:
            try:
                storage.write_bytes(uri, data)
            except StorageError as error:
                self._tell("outage", "inference log: %s; it is tried again, and rows wait", error)
            else:
                if "outage" in self._told:
                    self._told.discard("outage")
                    _log.warning("inference log %s: written again; %d rows were dropped", self._folder, self.dropped)
                return True
            if not self._paused(pause):
                return False
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _paused(self, pause_s: float) -> bool:
        """Wait; whether there is time for another attempt."""
        with self._room:
            if not self._ending:
                self._room.wait_for(lambda: self._ending, pause_s)
                return True
        left = self._deadline - time.monotonic()
        time.sleep(max(0.0, min(_PAUSE_S, left)))
        return left > 0

    def _tell(self, what: str, message: str, *values: Any) -> None:
        """Log something the first time, and not again for every row."""
        if what not in self._told:
            self._told.add(what)
            _log.warning(message, *values)

    def _table(self, rows: list[LoggedAnswer]) -> pa.Table:
        drift = self._drift_of(rows)
        batches: list[pa.RecordBatch] = []
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            batches += self._batches(rows[part], drift[part])
        return pa.Table.from_batches(batches, self._schema)

    def _drift_of(self, rows: list[LoggedAnswer]) -> list[Any]:
        """The drift features of each row, or None."""
        keys = [(row.request_id, row.instance) for row in rows]
        used = collections.Counter(keys)
        with self._room:
            came = {key: self._drift.pop(key, None) for key in used}
            came = {key: self._older_drift.pop(key, None) if found is None else found for key, found in came.items()}
            self._older_drift, self._drift = self._drift, {}
        return [
            row.drift if row.drift is not None else came[key] if used[key] == 1 else None
            for row, key in zip(rows, keys, strict=True)
        ]

    def _batches(self, rows: list[LoggedAnswer], drift: list[Any]) -> Iterator[pa.RecordBatch]:
        """The rows in columns; each on its own where they are not all what a row has to be."""
        try:
            yield self._batch(rows, drift)
        except (ValueError, TypeError, OverflowError, AttributeError, pa.ArrowException) as error:
            if len(rows) > 1:
                for row, values in zip(rows, drift, strict=True):
                    yield from self._batches([row], [values])
            else:
                self._tell("row", "inference log: a row cannot be written: %s: %s", type(error).__name__, error)

    def _batch(self, rows: list[LoggedAnswer], drift: list[Any]) -> pa.RecordBatch:
        columns: dict[str, Any] = {}
        plain = zip(*map(_plain, rows), strict=True)
        for name, kind in _COLUMNS.items():
            if name == "probabilities":
                columns[name] = _lists(_matrix([row.probabilities for row in rows], len(self._labels)))
            else:
                columns[name] = pa.array(next(plain), kind)
        known = np.array([values is not None for values in drift])
        values = np.zeros((len(rows), len(self._drift_names)), np.float32)
        if known.any():
            values[known] = _matrix([one for one in drift if one is not None], len(self._drift_names))
        for name, column in zip(self._drift_names, np.ascontiguousarray(values.T), strict=True):
            columns[name] = pa.array(column, pa.float32(), mask=~known)
        columns["audio"] = pa.array([row.audio for row in rows], _AUDIO["audio"])
        return pa.record_batch(columns, schema=self._schema)


def read_inference_log(
    store: str,
    model: str,
    since: datetime.datetime | None = None,
    until: datetime.datetime | None = None,
    audio: bool = False,
) -> pa.Table:
    """The log of a model, in the order of time.

    Where versions of the model had other labels, the probabilities are brought into one order, with nulls for labels
    that a version did not know. The table's metadata name the labels and the drift features, as those of a file do.

    Args:
        store: the store.
        model: the model's name.
        since: the first moment; in UTC, where it has no time zone.
        until: the moment after the last.
        audio: whether with a column ``audio``.

    Raises:
        StorageError: a file is damaged or of another format, or the store does not answer.
    """
    since, until = _in_utc(since), _in_utc(until)
    folder = _folder(store, model)
    parts = []
    for day in storage.list_names(folder):
        if (since and day < f"{since:%Y-%m-%d}") or (until and day > f"{until:%Y-%m-%d}"):
            continue
        for name in storage.list_names(storage.join(folder, day)):
            if name.endswith(".parquet"):
                parts.append(_read(storage.join(folder, day, name), since, until, audio))
    labels = list(dict.fromkeys(itertools.chain.from_iterable(own for _, own in parts)))
    # What was computed under other settings has other columns; the usual ones are there in any case.
    tables = [_schema(labels, DriftConfig()).empty_table(), *(_aligned(table, own, labels) for table, own in parts)]
    whole = pa.concat_tables([table.replace_schema_metadata() for table in tables], promote_options="default")
    features = [name for name in whole.column_names if name not in _COLUMNS | _AUDIO]
    metadata = canonical_json({"inference_log": _FORMAT, "labels": labels, "drift_features": features})
    ordered = whole.select([*_COLUMNS, *features, *(_AUDIO if audio else ())])
    return ordered.replace_schema_metadata({_METADATA: metadata.encode()}).sort_by(
        [(name, "ascending") for name in ("time", "request_id", "instance")]
    )


def join_truth(table: pa.Table, truth: pa.Table) -> pa.Table:
    """The log with a column ``truth``: what a recording's label should have been, null where nobody said.

    Args:
        table: of :func:`read_inference_log`.
        truth: ``request_id``, ``label`` and, for requests of several recordings, ``instance``; where that column is
            missing, the first recording, 0, is meant.

    Raises:
        ValidationError: a column is missing, or a recording has two labels.
    """
    for name in ("request_id", "label"):
        if name not in truth.column_names:
            raise ValidationError(f"truth: column {name!r} is missing (there are: {', '.join(truth.column_names)})")
    if "instance" not in truth.column_names:
        truth = truth.append_column("instance", pa.array(np.zeros(len(truth), np.int32)))
    said = pa.table({"recording": _recordings(truth), "label": truth["label"].cast(pa.string())})
    said = said.drop_null().group_by(["recording", "label"]).aggregate([])  # whoever says the same twice says it once
    for found in said["recording"].value_counts():
        if found["counts"].as_py() > 1:
            request_id, _, instance = found["values"].as_py().rpartition(" ")
            raise ValidationError(f"truth: recording {instance} of request {request_id} has two different labels")
    places = pc.index_in(_recordings(table), value_set=said["recording"])
    return table.append_column("truth", said["label"].take(places))


def _folder(store: str, model: str) -> str:
    # Neither a path of its own nor a hidden folder.
    return storage.join(store, "inference", re.sub(r"^\.", "%2E", quote(model, safe="")))


def _schema(labels: Sequence[str], drift: DriftConfig) -> pa.Schema:
    features = drift.feature_names
    metadata = {
        "inference_log": _FORMAT,
        "labels": list(labels),
        "drift_features": features,
        "drift": drift.model_dump(mode="json"),
    }
    fields = _COLUMNS | dict.fromkeys(features, pa.float32()) | _AUDIO
    return pa.schema(list(fields.items()), {_METADATA: canonical_json(metadata).encode()})


def _read(
    uri: str, since: datetime.datetime | None, until: datetime.datetime | None, audio: bool
) -> tuple[pa.Table, list[str]]:
    """The rows of a file between two moments, and the labels of their probabilities."""
    try:
        file = pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)))
        said = json.loads(file.schema_arrow.metadata[_METADATA])
        if said["inference_log"] != _FORMAT:
            raise StorageError(
                f"{uri}: an inference log of format {said['inference_log']}; this version of Kubevox reads {_FORMAT}"
            )
        table = file.read([name for name in file.schema_arrow.names if audio or name not in _AUDIO])
        labels = list(said["labels"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        raise StorageError(f"{uri}: damaged: no inference log can be read from it; delete it") from None
    for moment, at_least in ((since, True), (until, False)):
        if moment is not None:
            limit = pa.scalar(moment, _COLUMNS["time"])
            table = table.filter((pc.greater_equal if at_least else pc.less)(table["time"], limit))
    return table, labels


def _aligned(table: pa.Table, own: Sequence[str], labels: Sequence[str]) -> pa.Table:
    """The table with its probabilities in the order of ``labels``."""
    if own == labels:
        return table
    places = [labels.index(label) for label in own]
    values = np.zeros((len(table), len(labels)), np.float32)
    values[:, places] = table["probabilities"].combine_chunks().flatten().to_numpy().reshape(-1, len(own))
    unknown = np.ones(values.shape, bool)
    unknown[:, places] = False
    column = table.schema.get_field_index("probabilities")
    return table.set_column(column, "probabilities", _lists(values, unknown))


def _matrix(rows: Sequence[Sequence[float]], width: int) -> npt.NDArray[np.float32]:
    values = np.array(rows, np.float32)
    if values.shape != (len(rows), width):
        raise ValueError(f"expected {width} values, got an array of shape {values.shape}")
    return values


def _lists(values: npt.NDArray[np.float32], unknown: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """A list for each row of a matrix."""
    rows, width = values.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    flat = pa.array(values.ravel(), mask=None if unknown is None else unknown.ravel())
    return pa.ListArray.from_arrays(offsets, flat)


def _recordings(table: pa.Table) -> pa.ChunkedArray:
    """What names a recording: the request's id, and which of its recordings."""
    instance = table["instance"].cast(pa.int32()).cast(pa.string())
    return pc.binary_join_element_wise(table["request_id"].cast(pa.string()), instance, " ")


def _in_utc(moment: datetime.datetime | None) -> datetime.datetime | None:
    if moment is None:
        return None
    return moment.replace(tzinfo=_UTC) if moment.tzinfo is None else moment.astimezone(_UTC)


def _day_of(row: LoggedAnswer) -> datetime.date:
    return row.time.astimezone(_UTC).date()
