"""Utterances and the shards that hold them: one row an utterance, the audio as FLAC of the canonical waveform.

A shard is an object named by its content, ``<store>/shards/<sha256>.parquet``, which any number of dataset versions may
list. What is read is compared with that name first.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kubevox import storage
from kubevox.data.audio import Waveform, decode_stored
from kubevox.errors import StorageError
from kubevox.provenance import file_sha256

__all__ = ["Shard", "ShardWriter", "Utterance", "read_audio", "read_encoded", "read_utterances", "schema"]

_ROW_GROUP_BYTES = 12 << 20  # one more recording, and a row group still stays below 16 MiB
_ROW_BYTES = 512  # what a row's other columns and its part of the file's metadata may take
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)  # what reading a damaged shard raises
_DESCRIBED = ("corpus", "speaker", "sex", "raw_label", "intensity", "language", "text", "partition")
STRINGS = ("id", *_DESCRIBED, "source_id")
_NAMED_BY_CONTENT = re.compile(r"(?:^|/)([0-9a-f]{64})\.parquet$")


@dataclass(frozen=True)
class Utterance:
    """One labelled recording's metadata; the columns of a shard, without the audio.

    ``id`` is the SHA-256 of the canonical waveform. ``speaker`` and ``source_id`` are pseudonyms behind ``corpus:``
    (:mod:`kubevox.data.pseudonyms`). ``partition`` is the part that the corpus' publication puts it in: train,
    validation, test or None. ``duration_s`` and ``sample_rate`` (Hz) are the canonical waveform's, ``source_bytes`` and
    ``source_sample_rate`` those of the file it came from.
    """

    id: str
    corpus: str
    speaker: str | None
    sex: str | None
    raw_label: str | None
    intensity: str | None
    language: str | None
    text: str | None
    partition: str | None
    duration_s: float
    sample_rate: int
    source_id: str
    source_bytes: int
    source_sample_rate: int

    def identity(self) -> list[Any]:
        """What a dataset's hash covers: the content and its canonical metadata, not the container it came in."""
        row = dataclasses.asdict(self)
        return [row[name] for name in sorted(row) if name not in ("source_bytes", "source_sample_rate")]


@dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
        sha256: of the file's bytes; its name.
        rows: utterances in it.
        bytes: the file's size.
        batch: the batch of data that it came with.
    """

    sha256: str
    rows: int
    bytes: int
    batch: str

    @property
    def name(self) -> str:
        """Its place in the store."""
        return f"shards/{self.sha256}.parquet"


def read_utterances(shards: str | Iterable[str]) -> list[Utterance]:
    """The metadata of one shard or several; the audio column is not read.

    Raises:
        StorageError: a shard is missing or damaged.
    """
    columns = [field.name for field in dataclasses.fields(Utterance)]
    rows: list[Utterance] = []
    for uri in [shards] if isinstance(shards, str) else shards:
        try:
            table = pq.read_table(_local(uri), columns=columns, page_checksum_verification=True)
            rows += [Utterance(**row) for row in table.to_pylist()]
        except _DAMAGE as error:
            raise _damaged(uri, error) from None
    return rows


def read_audio(shard: str, ids: Iterable[str] | None = None) -> Iterator[tuple[str, Waveform]]:
    """The utterances of a shard with their canonical waveforms, in the shard's order, a row group at a time.

    An id that occurs twice in the shard (a duplicate) comes once.

    Args:
        shard: the shard's URI.
        ids: the wanted utterances; all where None.

    Raises:
        StorageError: the shard is missing or damaged.
        AudioError: an utterance's stored audio is damaged.
    """
    for name, flac in read_encoded(shard, ids):
        yield name, decode_stored(flac, f"{shard}, utterance {name[:12]}")


def read_encoded(shard: str, ids: Iterable[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """As :func:`read_audio`, but the FLAC as it is stored, for whoever decodes it elsewhere.

    Raises:
        StorageError: the shard is missing or damaged.
    """
    wanted = None if ids is None else set(ids)
    seen: set[str] = set()
    try:
        with pq.ParquetFile(_local(shard), page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                names = file.read_row_group(group, columns=["id"]).column("id").to_pylist()
                if wanted is not None and not wanted.intersection(names):
                    continue
                audio = file.read_row_group(group, columns=["audio"]).column("audio")
                for name, value in zip(names, audio, strict=True):
                    if name in seen or (wanted is not None and name not in wanted):
                        continue
                    seen.add(name)
                    yield name, value["bytes"].as_py()
    except _DAMAGE as error:
        raise _damaged(shard, error) from None


def schema() -> pa.Schema:
    """The shards' schema, with the metadata by which Hugging Face ``datasets`` knows the audio column."""
    fields = [pa.field(name, pa.string()) for name in STRINGS[:-1]]
    fields += [
        pa.field("duration_s", pa.float64()),
        pa.field("sample_rate", pa.int32()),
        pa.field("source_id", pa.string()),
        pa.field("source_bytes", pa.int64()),
        pa.field("source_sample_rate", pa.int32()),
    ]
    features: dict[str, Any] = {field.name: {"dtype": str(field.type), "_type": "Value"} for field in fields}
    features["duration_s"]["dtype"] = "float64"
    features["audio"] = {"_type": "Audio"}
    fields.append(pa.field("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


class ShardWriter:
    """Writes rows into shards of a bounded size, in row groups of a bounded size.

    Args:
        folder: where the files are written.
        shard_bytes: the size that a shard does not exceed, but for a single recording that does.
        batch: the name of the batch that the rows belong to.
    """

    def __init__(self, folder: Path, shard_bytes: int, batch: str) -> None:
        self._folder, self._shard_bytes, self._batch = folder, shard_bytes, batch
        self._schema = schema()
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._written_bytes = 0
        self._rows = 0
        self._file: pq.ParquetWriter | None = None

    def is_full(self, flac: bytes) -> bool:
        """Whether another recording of this size belongs into the next shard."""
        size = self._written_bytes + self._pending_bytes + len(flac) + _ROW_BYTES
        return bool(self._rows) and size > self._shard_bytes

    def add(self, utterance: Utterance, flac: bytes) -> None:
        """Add a row to the shard."""
        size = len(flac) + _ROW_BYTES
        if self._pending and self._pending_bytes + size > _ROW_GROUP_BYTES:
            self._flush()
        audio = {"bytes": flac, "path": f"{utterance.id}.flac"}
        self._pending.append({**dataclasses.asdict(utterance), "audio": audio})
        self._pending_bytes += size
        self._rows += 1

    def finish(self) -> tuple[Shard, Path] | None:
        """End the shard and give its file; None where nothing was added."""
        if not self._rows:
            return None
        self._flush()
        assert self._file is not None  # noqa: S101 - there was a row
        self._file.close()
        path = self._path
        digest = file_sha256(path)
        shard = Shard(digest, self._rows, path.stat().st_size, self._batch)
        self._file, self._rows, self._written_bytes = None, 0, 0
        return shard, path.rename(self._folder / f"{digest}.parquet")

    @property
    def _path(self) -> Path:
        return self._folder / "shard.parquet"

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._file is None:
            self._file = pq.ParquetWriter(
                self._path,
                self._schema,
                compression=dict.fromkeys(STRINGS, "zstd") | {"audio.bytes": "none"},
                use_dictionary=list(_DESCRIBED),
                write_statistics=["id", "corpus", "speaker", "raw_label"],
                write_page_checksum=True,
            )
        self._file.write_table(pa.Table.from_pylist(self._pending, schema=self._schema))
        self._pending.clear()
        self._written_bytes += self._pending_bytes
        self._pending_bytes = 0


def _local(shard: str) -> Path:
    """The shard's file on this machine, compared with the hash that it is named by."""
    named = _NAMED_BY_CONTENT.search(shard)
    return storage.fetch(shard, sha256=named[1] if named else None)


def _damaged(shard: str, error: Exception) -> StorageError:
    return StorageError(f"{shard}: damaged shard ({' '.join(str(error).split())}); delete it and ingest again")
