"""Looking after versions: which there are, whether one is whole, and going back to an older one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kubevox import storage
from kubevox.data.audio import decode_stored
from kubevox.data.dataset import history
from kubevox.data.dataset.ingestion import refuse_forgotten
from kubevox.data.dataset.utterances import Shard, Utterance, read_encoded, read_utterances
from kubevox.data.dataset.versions import DatasetVersion, dataset_hash, read_rejects, resolve, versions
from kubevox.errors import AudioError, StorageError
from kubevox.processes import CRASHED, Workers
from kubevox.progress import ProgressBar
from kubevox.provenance import file_sha256

__all__ = ["Listed", "Verified", "list_versions", "rollback", "verify"]


@dataclass(frozen=True)
class Listed:
    """A version and its part in the datasets' histories.

    Attributes:
        version: as ``dataset.json`` describes it.
        datasets: the names under which it was ever current.
        current: the names under which it is.
    """

    version: DatasetVersion
    datasets: tuple[str, ...]
    current: tuple[str, ...]


@dataclass(frozen=True)
class Verified:
    """What became of looking at a whole version.

    Attributes:
        version: the version.
        recordings: whose audio decodes to what it is named.
        damages: a line each; none where the version is whole.
        gone: entries of histories that name versions which are no longer in the store: collected, or erased.
    """

    version: DatasetVersion
    recordings: int
    damages: tuple[str, ...]
    gone: int


def list_versions(store: str, name: str | None = None) -> list[Listed]:
    """The versions of a dataset, or of the whole store, oldest first.

    Args:
        store: a folder or ``s3://bucket/prefix``.
        name: the dataset's; None: all versions in the store, also those that were never current.

    Raises:
        StorageError: a version or a history is damaged.
    """
    histories = {
        dataset: [entry.dataset for entry in history.history(store, dataset)] for dataset in history.names(store)
    }
    listed = []
    for version in versions(store):
        datasets = tuple(dataset for dataset, hashes in histories.items() if version.hash in hashes)
        current = tuple(dataset for dataset in datasets if histories[dataset][-1] == version.hash)
        if name is None or name in datasets:
            listed.append(Listed(version, datasets, current))
    # Several may be made in one second: a history knows which was first.
    places = {digest: place for hashes in histories.values() for place, digest in reversed(list(enumerate(hashes)))}
    return sorted(
        listed,
        key=lambda one: (one.version.lineage.get("created", ""), places.get(one.version.hash, 0), one.version.hash),
    )


def rollback(store: str, name: str, wanted: str) -> tuple[DatasetVersion, str]:
    """Make an older version of a dataset its current one; what is newer stays in the store.

    Args:
        store: a folder or ``s3://bucket/prefix``.
        name: the dataset's.
        wanted: the beginning of the version's hash.

    Returns:
        The version, and the hash of the one that was current before, which may be the same.

    Raises:
        StorageError: there is no such version, it was never the dataset's, or it holds somebody who was forgotten.
    """
    version = resolve(store, name, wanted)
    while True:
        entries = history.history(store, name)
        if version.hash not in {entry.dataset for entry in entries}:
            others = [
                one for one in history.names(store) if version.hash in {e.dataset for e in history.history(store, one)}
            ]
            of = f"it is of {', '.join(map(repr, others))}" if others else "it is in no history"
            raise StorageError(f"{version.uri}: was never the current version of dataset {name!r}; {of}")
        before = entries[-1].dataset
        if before == version.hash:
            return version, before
        refuse_forgotten(version)
        if history.record(store, name, version.hash, "rollback", f"from {before[:12]}", onto=before):
            return version, before


def verify(version: DatasetVersion) -> Verified:
    """Look at everything that a version consists of, as it lies in the store, past any cache, on all cores.

    Compared are each shard with its hash, each recording's audio with its id, the rows with the version's hash, the
    counts with what is there, and the histories with the versions that they call current.

    Raises:
        StorageError: the store does not answer.
    """
    damages: list[str] = []
    rows: list[Utterance] = []
    sound = 0

    def look(shard: Shard) -> tuple[list[Utterance] | None, int, list[str]]:
        return _look(storage.join(version.store, shard.name), shard)

    with ProgressBar("verify", version.utterances, "recordings") as bar:
        results = Workers(look, chunk=1).map(version.shards)
        for shard, outcome in zip(version.shards, results, strict=True):
            if outcome is CRASHED:
                outcome = (None, 0, [f"{storage.join(version.store, shard.name)}: reading it ended the process"])
            found, decoded, wrong = outcome
            rows += found or []
            sound += decoded
            damages += wrong
            bar.update(shard.rows)
    damages += _damages_of_head(version, rows, unread=bool(damages))
    lost, gone = _damages_of_history(version)
    return Verified(version, sound, tuple(damages + lost), gone)


def _look(uri: str, shard: Shard) -> tuple[list[Utterance] | None, int, list[str]]:
    """A shard's rows (None where they cannot be told), how many recordings are sound, and what is damaged."""
    storage.forget_cached(uri)
    try:
        digest = file_sha256(storage.fetch(uri))
        if digest != shard.sha256:
            return None, 0, [f"{uri}: damaged: its bytes have the SHA-256 {digest[:12]}…, not that of its name"]
        rows = read_utterances(uri)
    except StorageError as error:
        return None, 0, [str(error)]
    except OSError as error:
        return None, 0, [f"{uri}: {error.strerror or error}"]
    damages = []
    if len(rows) != shard.rows:
        damages.append(f"{uri}: has {len(rows)} rows, where its version says {shard.rows}")
    wrong = dict(_unsound(uri))
    for row in rows:
        if (why := wrong.get(row.id)) is not None:
            damages.append(f"{uri}: recording {row.source_id}: {why}")
    return rows, sum(1 for row in rows if row.id not in wrong), damages


def _unsound(uri: str) -> Iterator[tuple[str, str]]:
    """Recordings of a shard whose audio is not what their ids say, and what is wrong."""
    for name, flac in read_encoded(uri):
        try:
            if decode_stored(flac).id != name:
                yield name, "its audio is not what its id says"
        except AudioError as error:
            yield name, str(error)


def _damages_of_head(version: DatasetVersion, rows: list[Utterance], unread: bool) -> list[str]:
    damages = []
    counted = []
    if not unread:
        if dataset_hash(rows) != version.hash:
            damages.append(f"{version.uri}: its rows have the hash {dataset_hash(rows)[:12]}…, not that of its name")
        if len(rows) != version.utterances:
            damages.append(f"{version.uri}: says {version.utterances} recordings, and has {len(rows)}")
        counted.append(("recordings in its corpora", [corpus["stored"] for corpus in version.corpora], len(rows)))
        counted.append(("recordings in its batches", [batch["utterances"] for batch in version.batches], len(rows)))
    try:
        rejects = read_rejects(version)
        if len(rejects) != version.rejects:
            damages.append(f"{version.uri}: says {version.rejects} that failed, and lists {len(rejects)}")
        counted.append(("that failed in its corpora", [corpus["failed"] for corpus in version.corpora], len(rejects)))
    except StorageError as error:
        damages.append(str(error))
    for what, counts, there in counted:
        if sum(counts) != there:
            damages.append(f"{version.uri}: counts {sum(counts)} {what}, and has {there}")
    for corpus in version.corpora:
        accounted = sum(corpus[column] for column in ("left_out", "forgotten", "stored", "failed"))
        if corpus["found"] != accounted:
            damages.append(f"{version.uri}: {corpus['name']}: {corpus['found']} found, {accounted} accounted for")
    return damages


def _damages_of_history(version: DatasetVersion) -> tuple[list[str], int]:
    """Histories whose current version is not there; and how many older entries name versions that were removed."""
    damages, gone = [], 0
    for name in history.names(version.store):
        try:
            entries = history.history(version.store, name)
        except StorageError as error:
            damages.append(str(error))
            continue
        there = {entry.dataset: _is_there(version.store, entry.dataset) for entry in entries}
        gone += sum(1 for entry in entries[:-1] if not there[entry.dataset])
        if entries and not there[entries[-1].dataset]:
            damages.append(
                f"{version.store}: the current version {entries[-1].dataset[:12]} of dataset {name!r} is not there; "
                "roll back to one that is"
            )
    return damages, gone


def _is_there(store: str, digest: str) -> bool:
    return storage.exists(storage.join(store, "datasets", digest, "dataset.json"))
