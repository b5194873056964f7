"""Which version of a dataset is the current one, and which were before: a log of immutable entries.

``<store>/history/<name>/<number>.json`` are written once each, by exactly one writer; the last one names the current
version. Going back is one more entry, which names an older version.
"""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass

from kubevox import storage
from kubevox.errors import StorageError
from kubevox.provenance import canonical_json, git_commit

__all__ = ["Entry", "current", "history", "names", "record"]


@dataclass(frozen=True)
class Entry:
    """A change of what the current version is.

    Attributes:
        dataset: the hash of the version that became current.
        operation: what made it so: ingest, add, window, forget or rollback.
        parent: the hash of the version that was current before; None for the first.
        created: when, ISO 8601 in UTC.
        commit: of the code.
        detail: the particulars, in a few words.
    """

    dataset: str
    operation: str
    parent: str | None
    created: str
    commit: str
    detail: str = ""


def history(store: str, name: str) -> list[Entry]:
    """All entries of a dataset, oldest first; none where nothing of that name was stored.

    Raises:
        StorageError: an entry is damaged.
    """
    folder = storage.join(store, "history", name)
    entries = []
    for number in storage.list_names(folder):
        uri = storage.join(folder, number)
        try:
            entries.append(Entry(**storage.read_json(uri)))
        except TypeError as error:
            raise StorageError(f"{uri}: damaged: {error}") from None
    return entries


def names(store: str) -> list[str]:
    """The datasets that have a history."""
    return storage.list_names(storage.join(store, "history"))


def current(store: str, name: str) -> str | None:
    """The hash of the current version; None where there is none."""
    entries = history(store, name)
    return entries[-1].dataset if entries else None


def record(store: str, name: str, dataset: str, operation: str, detail: str = "", onto: str | None = None) -> bool:
    """Make a version the current one.

    Args:
        store: the store.
        name: the dataset's.
        dataset: the version's hash.
        operation: what made it.
        detail: the particulars.
        onto: the hash that the new version grew from; where another became current meanwhile, nothing is recorded.
            None: whatever is current.

    Returns:
        Whether it was recorded.
    """
    while True:
        entries = history(store, name)
        parent = entries[-1].dataset if entries else None
        if onto is not None and parent != onto:
            return False
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = Entry(dataset, operation, parent, created, git_commit(), detail)
        uri = storage.join(store, "history", name, f"{len(entries):06d}.json")
        if storage.create(uri, canonical_json(asdict(entry)).encode()):
            return True
