"""Dataset versions: immutable, named by their content, audio inside Parquet shards.

``<store>/datasets/<hash>/`` holds ``part-NNNNN.parquet`` (one row an utterance, the audio as FLAC of the canonical
waveform), ``rejects.parquet`` (what could not be decoded) and ``dataset.json`` (counts, sources, lineage). Hugging Face
``datasets`` reads the shards as an audio dataset; DuckDB and pandas read them as tables.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import kubevox
from kubevox import storage
from kubevox.config import AudioLimits, DataConfig
from kubevox.data.audio import Waveform, decode, decode_stored, encode_flac
from kubevox.data.corpora import Corpus, Recording, open_corpus
from kubevox.errors import AudioError, CorpusError, StorageError, ValidationError
from kubevox.progress import ProgressBar
from kubevox.provenance import content_hash, git_commit

__all__ = ["DatasetVersion", "Utterance", "ingest", "load_dataset", "read_audio", "read_encoded", "read_utterances"]

_FORMAT = 1
_ROW_GROUP_BYTES = 12 << 20  # one more recording, and a row group still stays below 16 MiB
_ROW_BYTES = 512  # what a row's other columns and its part of the file's metadata may take
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)  # what reading a damaged shard raises
_STRINGS = ("id", "corpus", "speaker", "sex", "raw_label", "intensity", "language", "text", "source_id")


@dataclass(frozen=True)
class Utterance:
    """One labelled recording's metadata; the columns of a shard, without the audio.

    ``id`` is the SHA-256 of the canonical waveform; ``duration_s`` and ``sample_rate`` (Hz) are its own, while
    ``source_bytes`` and ``source_sample_rate`` belong to the file it came from.
    """

    id: str
    corpus: str
    speaker: str | None
    sex: str | None
    raw_label: str | None
    intensity: str | None
    language: str | None
    text: str | None
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
class DatasetVersion:
    """A dataset as ``dataset.json`` describes it."""

    uri: str
    hash: str
    shards: tuple[str, ...]
    utterances: int
    rejects: int
    hours: float
    synthetic: bool
    corpora: tuple[dict[str, Any], ...]

    @property
    def shard_uris(self) -> list[str]:
        """The shards' URIs, in order."""
        return [storage.join(self.uri, name) for name in self.shards]


def ingest(config: DataConfig, store: str) -> tuple[DatasetVersion, bool]:
    """Bring the configured corpora into the store as one dataset version.

    Unchanged sources (same files by path, size and time, same options) are recognised without being read.

    Args:
        config: the corpora, the limits on their audio, the shards' size.
        store: a folder or ``s3://bucket/prefix``.

    Returns:
        The version, and whether it was there already.

    Raises:
        ConfigError: an unknown corpus or option.
        CorpusError: a corpus that is missing, empty or not as published.
        ValidationError: more than ``max_rejected_share`` of the files could not be decoded; nothing is stored.
    """
    corpora = [open_corpus(source) for source in config.corpora]
    names = [corpus.name for corpus in corpora]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise CorpusError(f"data.corpora: {twice[0]!r} is listed twice; put its recordings under one folder")
    key = content_hash(
        ["ingest", _FORMAT, config.limits.digest(), config.shard_mb, os.environ.get("KUBEVOX_PSEUDONYM_KEY", "")],
        [[corpus.name, corpus.options.digest(), corpus.fingerprint()] for corpus in corpora],
    )
    if (known := storage.recall(store, "ingest", key)) and storage.exists(storage.join(known["uri"], "dataset.json")):
        version = load_dataset(known["uri"])
        # The rejects of these sources: the version may have been made of others, with the same good recordings.
        _check_rejects(known["rejects"], version.utterances, known["first_reject"], config.max_rejected_share)
        return version, True
    with storage.staging(store) as folder:
        writer = _ShardWriter(folder, config.shard_mb << 20)
        rejects: list[dict[str, str]] = []
        with ProgressBar("ingest", sum(len(corpus) for corpus in corpora), "files") as bar:
            for corpus in corpora:
                for recording in corpus.recordings():
                    try:
                        writer.add(*_read_recording(recording, corpus, config.limits))
                    except AudioError as error:
                        rejects.append(
                            {"source_id": recording.source_id, "reason": error.reason, "message": str(error)}
                        )
                    bar.update()
        writer.close()
        first_reject = rejects[0]["message"] if rejects else ""
        _check_rejects(len(rejects), writer.rows, first_reject, config.max_rejected_share)
        if not writer.rows:
            raise CorpusError(f"none of the {len(rejects)} recordings could be decoded: {first_reject}")
        version = _finish(folder, store, writer, rejects, corpora)
        fresh = storage.publish(folder, version.uri, "dataset.json")
    answer = {"uri": version.uri, "rejects": len(rejects), "first_reject": first_reject}
    storage.remember(store, "ingest", key, answer)
    return load_dataset(version.uri), not fresh


def load_dataset(uri: str) -> DatasetVersion:
    """Read ``dataset.json``.

    Raises:
        StorageError: there is no complete dataset version under the URI.
    """
    head = storage.join(uri, "dataset.json")
    if not storage.exists(head):
        raise StorageError(f"{uri}: no dataset version here (no dataset.json)")
    content = storage.read_json(head)
    try:
        return DatasetVersion(
            uri=uri,
            hash=content["hash"],
            shards=tuple(shard["name"] for shard in content["shards"]),
            utterances=content["utterances"],
            rejects=content["rejects"],
            hours=content["hours"],
            synthetic=content["synthetic"],
            corpora=tuple(content["corpora"]),
        )
    except (KeyError, TypeError) as error:
        raise StorageError(f"{head}: damaged ({error!r}); delete the folder and run again") from None


def read_utterances(shards: str | Iterable[str]) -> list[Utterance]:
    """The metadata of one shard or several; the audio column is not read.

    Raises:
        StorageError: a shard is missing or damaged.
    """
    columns = [field.name for field in dataclasses.fields(Utterance)]
    rows: list[Utterance] = []
    for uri in [shards] if isinstance(shards, str) else shards:
        try:
            table = pq.read_table(storage.fetch(uri), columns=columns, page_checksum_verification=True)
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
        with pq.ParquetFile(storage.fetch(shard), page_checksum_verification=True) as file:
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
    fields = [pa.field(name, pa.string()) for name in _STRINGS[:8]]
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


class _ShardWriter:
    """Writes rows into shards of a bounded size, in row groups of a bounded size."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._schema = schema()
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._written_bytes = 0
        self._file: pq.ParquetWriter | None = None
        self._sources: set[str] = set()
        self.identities: list[list[Any]] = []
        self.shards: list[dict[str, Any]] = []
        self.rows = 0
        self.seconds = 0.0

    def add(self, utterance: Utterance, flac: bytes) -> None:
        if utterance.source_id in self._sources:
            raise CorpusError(f"{utterance.source_id}: two recordings have this source id")
        self._sources.add(utterance.source_id)
        size = len(flac) + _ROW_BYTES
        if self._pending and self._pending_bytes + size > _ROW_GROUP_BYTES:
            self._flush()
        if self._written_bytes + self._pending_bytes + size > self._shard_bytes and self.shards:
            self._end_shard()
        if not self.shards or self.shards[-1]["closed"]:
            self.shards.append({"name": f"part-{len(self.shards):05d}.parquet", "rows": 0, "closed": False})
        path = f"{utterance.id}.flac"
        self._pending.append({**dataclasses.asdict(utterance), "audio": {"bytes": flac, "path": path}})
        self._pending_bytes += size
        self.identities.append(utterance.identity())
        self.shards[-1]["rows"] += 1
        self.rows += 1
        self.seconds += utterance.duration_s

    def close(self) -> None:
        if self.shards:
            self._end_shard()

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._file is None:
            self._file = pq.ParquetWriter(
                self._folder / self.shards[-1]["name"],
                self._schema,
                compression=dict.fromkeys(_STRINGS, "zstd") | {"audio.bytes": "none"},
                use_dictionary=["corpus", "speaker", "sex", "raw_label", "intensity", "language", "text"],
                write_statistics=["id", "corpus", "speaker", "raw_label"],
                write_page_checksum=True,
            )
        self._file.write_table(pa.Table.from_pylist(self._pending, schema=self._schema))
        self._pending.clear()
        self._written_bytes += self._pending_bytes
        self._pending_bytes = 0

    def _end_shard(self) -> None:
        self._flush()
        if self._file is not None:
            self._file.close()
            self._file = None
        shard = self.shards[-1]
        if not shard["closed"]:
            path = self._folder / shard["name"]
            shard.update(closed=True, bytes=path.stat().st_size, sha256=_sha256(path))
        self._written_bytes = 0


def _finish(
    folder: Path, store: str, writer: _ShardWriter, rejects: list[dict[str, str]], corpora: list[Corpus]
) -> DatasetVersion:
    reject_schema = pa.schema([(name, pa.string()) for name in ("source_id", "reason", "message")])
    pq.write_table(pa.Table.from_pylist(rejects, schema=reject_schema), folder / "rejects.parquet")
    digest = content_hash([_FORMAT], sorted(writer.identities, key=lambda row: json.dumps(row)))
    version = DatasetVersion(
        uri=storage.join(store, "datasets", digest),
        hash=digest,
        shards=tuple(shard["name"] for shard in writer.shards),
        utterances=writer.rows,
        rejects=len(rejects),
        hours=writer.seconds / 3600,
        synthetic=any(corpus.synthetic for corpus in corpora),
        corpora=tuple(
            {
                "name": corpus.name,
                "title": corpus.title,
                "licence": corpus.licence,
                "citation": corpus.citation,
                "synthetic": corpus.synthetic,
                "path": str(corpus.path) if corpus.path else None,
                "options": corpus.options.model_dump(mode="json"),
            }
            for corpus in corpora
        ),
    )
    head = {
        "format": _FORMAT,
        "hash": digest,
        "utterances": version.utterances,
        "rejects": version.rejects,
        "hours": version.hours,
        "synthetic": version.synthetic,
        "shards": [{k: v for k, v in shard.items() if k != "closed"} for shard in writer.shards],
        "corpora": list(version.corpora),
        # Beside the hash, not in it: the same recordings give the same version on any day.
        "lineage": {
            "commit": git_commit(),
            "kubevox": kubevox.__version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    }
    (folder / "dataset.json").write_text(json.dumps(head, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return version


def _read_recording(recording: Recording, corpus: Corpus, limits: AudioLimits) -> tuple[Utterance, bytes]:
    try:
        data = recording.read()
    except OSError as error:
        raise AudioError("unreadable", f"{recording.origin}: {error.strerror or error}") from None
    waveform, info = decode(data, limits, recording.origin)
    utterance = Utterance(
        id=waveform.id,
        corpus=corpus.name,
        speaker=recording.speaker,
        sex=recording.sex,
        raw_label=recording.raw_label,
        intensity=recording.intensity,
        language=recording.language,
        text=recording.text,
        duration_s=waveform.duration_s,
        sample_rate=waveform.sample_rate,
        source_id=recording.source_id,
        source_bytes=info.size_bytes,
        source_sample_rate=info.sample_rate,
    )
    return utterance, encode_flac(waveform)


def _check_rejects(rejects: int, accepted: int, first: str, limit: float) -> None:
    total = rejects + accepted
    if rejects and rejects / total > limit:
        more = f", and {rejects - 1} more" if rejects > 1 else ""
        raise ValidationError(
            f"{rejects} of {total} recordings cannot be used (data.max_rejected_share allows {limit:.0%}): "
            f"{first}{more}; remove or replace what is damaged, or raise the limit"
        )


def _damaged(shard: str, error: Exception) -> StorageError:
    return StorageError(f"{shard}: damaged shard ({' '.join(str(error).split())}); delete its dataset and run again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
