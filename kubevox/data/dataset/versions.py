"""Dataset versions: immutable, named by their content.

``<store>/datasets/<hash>/`` holds ``dataset.json`` (shards, counts, sources, lineage) and ``rejects.parquet`` (what
could not be decoded); the shards lie in ``<store>/shards/`` and may belong to several versions.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import kubevox
from kubevox import storage
from kubevox.data.dataset import history
from kubevox.data.dataset.utterances import Shard, Utterance
from kubevox.errors import StorageError
from kubevox.provenance import content_hash, git_commit

__all__ = [
    "DatasetVersion",
    "load_dataset",
    "publish_version",
    "read_rejects",
    "resolve",
    "rewrite_rejects",
    "versions",
]

FORMAT = 2
_HEAD = "dataset.json"
_REJECTS = "rejects.parquet"
_REJECT_COLUMNS = ("source_id", "corpus", "speaker", "batch", "reason", "message")
_REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in _REJECT_COLUMNS])


@dataclass(frozen=True)
class DatasetVersion:
    """A dataset as ``dataset.json`` describes it.

    Attributes:
        uri: its folder in the store.
        hash: over its rows: ids and canonical metadata.
        shards: what holds its rows, in order.
        utterances: rows.
        rejects: recordings that were found and could not be decoded.
        hours: of audio.
        synthetic: whether any of its voices is made by a machine.
        corpora: for each corpus its title, licence, citation and counts (``found``, ``left_out`` by a cap, ``failed``,
            ``stored``, by label and of speakers), beside what is ``published`` of it.
        batches: what was added when, oldest first, as :func:`~kubevox.data.dataset.batches.describe` has them.
        key_fingerprint: of the key that its names are pseudonyms under; None where it has none.
        lineage: commit, version, time and operation that made it; no part of what makes two versions equal.
    """

    uri: str
    hash: str
    shards: tuple[Shard, ...]
    utterances: int
    rejects: int
    hours: float
    synthetic: bool
    corpora: tuple[dict[str, Any], ...]
    batches: tuple[dict[str, Any], ...] = field(compare=False)
    key_fingerprint: str | None
    lineage: dict[str, Any] = field(compare=False)

    @property
    def store(self) -> str:
        """The store that it lies in."""
        return self.uri.rpartition("/datasets/")[0]

    @property
    def shard_uris(self) -> list[str]:
        """The shards' URIs, in order."""
        return [storage.join(self.store, shard.name) for shard in self.shards]


def load_dataset(uri: str) -> DatasetVersion:
    """Read ``dataset.json``.

    Raises:
        StorageError: there is no complete dataset version under the URI.
    """
    head = storage.join(uri, _HEAD)
    if not storage.exists(head):
        raise StorageError(f"{uri}: no dataset version here (no {_HEAD})")
    content = storage.read_json(head)
    try:
        if content["format"] != FORMAT:
            raise StorageError(f"{uri}: a dataset version of format {content['format']}, not {FORMAT}; ingest again")
        return DatasetVersion(
            uri=uri,
            hash=content["hash"],
            shards=tuple(Shard(**shard) for shard in content["shards"]),
            utterances=content["utterances"],
            rejects=content["rejects"],
            hours=content["hours"],
            synthetic=content["synthetic"],
            corpora=tuple(content["corpora"]),
            batches=tuple(content["batches"]),
            key_fingerprint=content["key_fingerprint"],
            lineage=content["lineage"],
        )
    except (KeyError, TypeError) as error:
        raise StorageError(f"{head}: damaged ({error!r}); delete the folder and run again") from None


def read_rejects(version: DatasetVersion) -> list[dict[str, str]]:
    """What could not be decoded: ``source_id``, ``corpus``, ``speaker``, ``batch``, ``reason``, ``message``.

    Raises:
        StorageError: it is missing or damaged.
    """
    uri = storage.join(version.uri, _REJECTS)
    try:
        return pq.read_table(storage.fetch(uri)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri}: damaged ({error}); delete the dataset version and ingest again") from None


def rewrite_rejects(
    version: DatasetVersion,
    rejects: Sequence[Mapping[str, Any]],
    corpora: Sequence[Mapping[str, Any]],
    batches: Sequence[Mapping[str, Any]],
) -> DatasetVersion:
    """Write a version's rejects again, with the counts that go with them; its name does not cover either.

    For taking a person out of them; nothing else of a version is ever written again.

    Returns:
        The version as it is now.
    """
    head = storage.join(version.uri, _HEAD)
    buffer = pa.BufferOutputStream()
    pq.write_table(_rejects_table(rejects), buffer)
    storage.write_bytes(storage.join(version.uri, _REJECTS), buffer.getvalue().to_pybytes())
    told = {**storage.read_json(head), "rejects": len(rejects), "corpora": list(corpora), "batches": list(batches)}
    storage.write_bytes(head, _head_text(told).encode())
    storage.forget_cached(version.uri)
    return load_dataset(version.uri)


def _rejects_table(rejects: Sequence[Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rejects), schema=_REJECT_SCHEMA)


def _head_text(head: Mapping[str, Any]) -> str:
    return json.dumps(head, indent=2, ensure_ascii=False) + "\n"


def dataset_hash(utterances: Iterable[Utterance]) -> str:
    """What names a version: the hash over its rows in one order, whatever order, shards and day they came in."""
    identities = sorted((utterance.identity() for utterance in utterances), key=lambda row: json.dumps(row))
    return content_hash([FORMAT], identities)


def publish_version(
    store: str,
    utterances: Sequence[Utterance],
    shards: Sequence[Shard],
    rejects: Sequence[Mapping[str, Any]],
    corpora: Sequence[Mapping[str, Any]],
    batches: Sequence[Mapping[str, Any]],
    synthetic: bool,
    key_fingerprint: str | None,
    lineage: Mapping[str, Any],
) -> tuple[DatasetVersion, bool]:
    """Make a version of shards that the store holds; readers see all of it or nothing.

    Args:
        store: the store.
        utterances: all rows of the shards.
        shards: in order.
        rejects: what could not be decoded.
        corpora: as :class:`DatasetVersion` has them.
        batches: likewise.
        synthetic: whether any voice is made by a machine.
        key_fingerprint: of the pseudonyms' key.
        lineage: ``operation``, and what else tells how it was made; code and time are added.

    Returns:
        The version, and whether the same content was there already.

    Raises:
        StorageError: a shard is not there, or the store cannot be written.
    """
    digest = dataset_hash(utterances)
    uri = storage.join(store, "datasets", digest)
    for shard in shards:
        if not storage.exists(storage.join(store, shard.name)):
            raise StorageError(f"{storage.join(store, shard.name)}: gone while it was to be listed; run again")
    head = {
        "format": FORMAT,
        "hash": digest,
        "utterances": len(utterances),
        "rejects": len(rejects),
        "hours": sum(utterance.duration_s for utterance in utterances) / 3600,
        "synthetic": synthetic,
        "key_fingerprint": key_fingerprint,
        "shards": [asdict(shard) for shard in shards],
        "corpora": list(corpora),
        "batches": list(batches),
        # Beside the hash, not in it: the same recordings give the same version on any day.
        "lineage": {
            **lineage,
            "commit": git_commit(),
            "kubevox": kubevox.__version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    }
    with storage.staging(store) as folder:
        pq.write_table(_rejects_table(rejects), folder / _REJECTS)
        (folder / _HEAD).write_text(_head_text(head), encoding="utf-8")
        fresh = storage.publish(folder, uri, _HEAD)
    return load_dataset(uri), not fresh


def versions(store: str) -> list[DatasetVersion]:
    """All complete versions in a store, oldest first.

    Raises:
        StorageError: one is damaged.
    """
    folder = storage.join(store, "datasets")
    found = [storage.join(folder, name) for name in storage.list_names(folder)]
    loaded = [load_dataset(uri) for uri in found if storage.exists(storage.join(uri, _HEAD))]
    return sorted(loaded, key=lambda version: (version.lineage.get("created", ""), version.hash))


def resolve(store: str, name: str, wanted: str) -> DatasetVersion:
    """The version that ``current`` or the beginning of a hash means.

    Raises:
        StorageError: there is none, or several.
    """
    if wanted == "current":
        digest = history.current(store, name)
        if digest is None:
            others = ", ".join(history.names(store)) or "none"
            raise StorageError(f"store {store}: no dataset {name!r} yet (there are: {others}); ingest first")
        return load_dataset(storage.join(store, "datasets", digest))
    found = [digest for digest in storage.list_names(storage.join(store, "datasets")) if digest.startswith(wanted)]
    if len(found) != 1:
        which = f"{len(found)} dataset versions begin" if found else "no dataset version begins"
        raise StorageError(f"store {store}: {which} with {wanted!r}; kubevox data list names them")
    return load_dataset(storage.join(store, "datasets", found[0]))
