"""What two versions of a dataset have in common and what not: recording by recording, by source id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from kubevox import storage
from kubevox.data.dataset.utterances import Utterance, read_utterances
from kubevox.data.dataset.versions import DatasetVersion

__all__ = ["Change", "Difference", "compare"]


@dataclass(frozen=True)
class Change:
    """A recording that both versions have under one name, and not the same.

    Attributes:
        before: its row in the one version.
        after: its row in the other.
        fields: what differs; ``id`` is the audio.
    """

    before: Utterance
    after: Utterance
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """From one version to another; rows are ordered by source id.

    Attributes:
        before: the one version.
        after: the other.
        added: rows of source ids that only the other has.
        removed: rows of source ids that only the one has.
        changed: rows of source ids that both have, and not alike.
        batches: source id to batch, of all rows above.
    """

    before: DatasetVersion
    after: DatasetVersion
    added: tuple[Utterance, ...]
    removed: tuple[Utterance, ...]
    changed: tuple[Change, ...]
    batches: dict[str, str]

    def counts(self, rows: Iterable[Utterance]) -> dict[str, dict[str, int]]:
        """How many of the rows there are of each corpus, label, speaker and batch, the most first."""
        rows = list(rows)
        counters = {
            "corpus": Counter(row.corpus for row in rows),
            "label": Counter(row.raw_label or row.language or "unlabelled" for row in rows),
            "speaker": Counter(row.speaker or "unknown" for row in rows),
            "batch": Counter(self.batches[row.source_id] for row in rows),
        }
        return {name: dict(sorted(c.items(), key=lambda item: (-item[1], item[0]))) for name, c in counters.items()}


def compare(before: DatasetVersion, after: DatasetVersion) -> Difference:
    """Compare two versions; shards that both list are not opened.

    Raises:
        StorageError: a shard is missing or damaged.
    """
    shared = {shard.sha256 for shard in before.shards} & {shard.sha256 for shard in after.shards}
    old, batches = _rows(before, shared)
    new, newer = _rows(after, shared)
    changes = []
    for source_id in sorted(old.keys() & new.keys()):
        one, other = old[source_id], new[source_id]
        if one.identity() != other.identity():
            fields = tuple(name for name in vars(one) if getattr(one, name) != getattr(other, name))
            changes.append(Change(one, other, fields))
    return Difference(
        before,
        after,
        tuple(new[source_id] for source_id in sorted(new.keys() - old.keys())),
        tuple(old[source_id] for source_id in sorted(old.keys() - new.keys())),
        tuple(changes),
        batches | newer,
    )


def _rows(version: DatasetVersion, without: set[str]) -> tuple[dict[str, Utterance], dict[str, str]]:
    """Rows by source id, and their batches."""
    rows: dict[str, Utterance] = {}
    batches: dict[str, str] = {}
    for shard in version.shards:
        if shard.sha256 not in without:
            found = read_utterances(storage.join(version.store, shard.name))
            rows.update((utterance.source_id, utterance) for utterance in found)
            batches.update((utterance.source_id, shard.batch) for utterance in found)
    return rows, batches
