"""Data that arrive: a batch becomes a new version on top of the current one, and a window drops old batches.

A new version lists the shards of the one that it grew from, the same objects, beside the batch's own. Where another
process made a version current meanwhile, the new one is built again on that; nobody's batch is lost.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubevox import storage
from kubevox.config import DataConfig
from kubevox.data.dataset import history
from kubevox.data.dataset.batches import Window, check_name, date_of, describe, merge
from kubevox.data.dataset.forgetting import Suppressed
from kubevox.data.dataset.ingestion import Found, Stored, config_told, store_recordings, survey, tally, tell
from kubevox.data.dataset.utterances import Shard, Utterance, read_utterances
from kubevox.data.dataset.versions import DatasetVersion, dataset_hash, publish_version, read_rejects, resolve
from kubevox.errors import CorpusError
from kubevox.progress import note

__all__ = ["Grown", "Window", "add", "slide"]


@dataclass(frozen=True)
class Grown:
    """What became of a dataset's current version.

    Attributes:
        before: the version that was current.
        after: the version that is current now; the same where there was nothing to do.
        added: the batch that it has more, as ``dataset.json`` describes it; None where it has none.
        dropped: the names of the batches that a window dropped, in their order.
    """

    before: DatasetVersion
    after: DatasetVersion
    added: dict[str, Any] | None
    dropped: tuple[str, ...]


@dataclass
class _Rows:
    """The rows of shards, each read once."""

    known: dict[str, list[Utterance]] = field(default_factory=dict)

    def of(self, version: DatasetVersion, shard: Shard) -> list[Utterance]:
        if shard.sha256 not in self.known:
            self.known[shard.sha256] = read_utterances(storage.join(version.store, shard.name))
        return self.known[shard.sha256]


def add(
    config: DataConfig,
    store: str,
    batch: str,
    recorded: datetime.date | None = None,
    window: Window | None = None,
    today: datetime.date | None = None,
) -> Grown:
    """Add a batch of recordings to the current version of a dataset.

    A batch that the current version has already, under the same name and with the same content, is recognised; the same
    recordings under another name are stored, and left to validation, which quarantines duplicates.

    Args:
        config: its corpora are the batch's; its name is the dataset's.
        store: a folder or ``s3://bucket/prefix``.
        batch: the batch's name, which stands in front of the paths in its recordings' source ids.
        recorded: the day of the recordings; None: they count as of today.
        window: what is kept of the batches, this one among them; None: all.
        today: from when ages are counted; None: the day it is, in UTC.

    Raises:
        ConfigError: the batch's name cannot be used, an unknown corpus or option, or a window without a limit.
        CorpusError: a corpus that is missing or empty; the name is taken by other recordings.
        StorageError: the dataset has no version yet, or the store does not answer.
        ValidationError: more than ``max_rejected_share`` of the files could not be decoded, or the window leaves
            nothing; no version is made.
    """
    check_name(batch)
    resolve(store, config.name, "current")  # not after hours of decoding
    while True:
        found = survey(config, store, batch)
        if not found.recordings:
            raise CorpusError(f"batch {batch!r}: nothing is left to add: all of its recordings are of people forgotten")
        grown = _add(found, config, store, batch, recorded, window, today)
        if grown is not None:
            return grown


def slide(store: str, name: str, window: Window, today: datetime.date | None = None) -> Grown:
    """Drop the batches of a dataset's current version that a window does not keep.

    Raises:
        ConfigError: the window has no limit.
        StorageError: the dataset has no version yet, or the store does not answer.
        ValidationError: the window leaves nothing.
    """
    rows = _Rows()
    while True:
        parent = resolve(store, name, "current")
        kept = window.kept(parent.batches, today)
        grown = _grow(store, name, parent, kept, None, rows, parent.lineage.get("config"))
        if grown is not None:
            return grown


@dataclass(frozen=True)
class _New:
    """A batch that a version is to have more."""

    batch: dict[str, Any]
    corpora: list[dict[str, Any]]
    stored: Stored
    fingerprint: str | None


def _add(
    found: Found,
    config: DataConfig,
    store: str,
    batch: str,
    recorded: datetime.date | None,
    window: Window | None,
    today: datetime.date | None,
) -> Grown | None:
    """As :func:`add`; None where somebody of the batch was forgotten meanwhile, so that it is to be listed again."""
    rows = _Rows()
    stored: Stored | None = None
    while True:
        parent = resolve(store, config.name, "current")
        known = next((one for one in parent.batches if one["name"] == batch), None)
        new = None
        if known is None or known["key"] != found.key:
            if stored is None:
                tell(found)
                stored = store_recordings(found, config, store, batch)
            if known is None:
                corpora = tally(found, stored)
                added = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                told = describe(batch, corpora, added, found.key, recorded)
                new = _New(told, corpora, stored, found.names.fingerprint if found.names else None)
            elif not _is_same(parent, batch, stored, rows):
                raise CorpusError(
                    f"batch {batch!r}: version {parent.hash[:12]} of dataset {config.name!r} has other recordings "
                    "under that name; give this one another"
                )
            # Who forgets somebody writes that down first: whatever becomes current after that is noticed here.
            suppressed = Suppressed(store, found.names)
            if any(suppressed.find(one.speaker, one.source_id) for one in stored.utterances):
                return None
        batches = [*parent.batches, *([new.batch] if new else [])]
        kept = window.kept(batches, today) if window else batches
        grown = _grow(store, config.name, parent, kept, new, rows, config_told(config))
        if grown is not None:
            return grown


def _grow(
    store: str,
    name: str,
    parent: DatasetVersion,
    batches: Sequence[Mapping[str, Any]],
    new: _New | None,
    rows: _Rows,
    config: Any,
) -> Grown | None:
    """Make a version of some of the parent's batches, and of the new one, current; None where another was faster."""
    names = {batch["name"] for batch in batches}
    dropped = tuple(batch["name"] for batch in parent.batches if batch["name"] not in names)
    if new is not None and new.batch["name"] not in names:
        new = None  # so old that the window drops it at once
    if new is None and not dropped:
        return Grown(parent, parent, None, ())
    shards = [shard for shard in parent.shards if shard.batch in names]
    utterances = [utterance for shard in shards for utterance in rows.of(parent, shard)]
    rejects = [reject for reject in read_rejects(parent) if reject["batch"] in names]
    described = list(parent.corpora)
    fingerprint = parent.key_fingerprint
    if new is not None:
        _refuse_same_names(new, utterances, rejects)
        for shard, count in _shards_with_rows(new.stored):
            rows.known[shard.sha256] = count
        shards += new.stored.shards
        utterances += new.stored.utterances
        rejects += new.stored.rejects
        described += new.corpora
        fingerprint = new.fingerprint or fingerprint
    corpora = merge(batches, described, _speakers(batches, parent, shards, rows, rejects))
    operation = "add" if new else "window"
    version, reused = publish_version(
        store,
        utterances,
        shards,
        rejects,
        corpora,
        batches,
        any(corpus["synthetic"] for corpus in corpora),
        fingerprint,
        {"operation": operation, "parent": parent.hash, "config": config},
    )
    detail = [f"{new.batch['name']}: {new.batch['utterances']} recordings"] if new else []
    detail += [f"without {', '.join(dropped)}"] if dropped else []
    if not history.record(store, name, version.hash, operation, "; ".join(detail), onto=parent.hash):
        return None
    return Grown(parent, version, _as_stored(version, new.batch, reused) if new else None, dropped)


def _as_stored(version: DatasetVersion, batch: dict[str, Any], reused: bool) -> dict[str, Any]:
    """The batch as the version has it, which may have been made before of the same recordings, and rolled back."""
    stored: dict[str, Any] = next(one for one in version.batches if one["name"] == batch["name"])
    if reused and stored["recorded"] != batch["recorded"]:
        note(
            f"add: version {version.hash[:12]} was made before, with batch {batch['name']!r} as of {date_of(stored)}; "
            "that stays its date, unless the batch gets another name"
        )
    return stored


def _shards_with_rows(stored: Stored) -> list[tuple[Shard, list[Utterance]]]:
    start, pairs = 0, []
    for shard in stored.shards:
        pairs.append((shard, stored.utterances[start : start + shard.rows]))
        start += shard.rows
    return pairs


def _is_same(parent: DatasetVersion, batch: str, stored: Stored, rows: _Rows) -> bool:
    """Whether the parent has these recordings under the batch's name; where they lay does not count."""
    there = [utterance for shard in parent.shards if shard.batch == batch for utterance in rows.of(parent, shard)]
    return dataset_hash(there) == dataset_hash(stored.utterances)


def _refuse_same_names(new: _New, utterances: Sequence[Utterance], rejects: Sequence[Mapping[str, Any]]) -> None:
    taken = {utterance.source_id for utterance in utterances} | {reject["source_id"] for reject in rejects}
    coming = [utterance.source_id for utterance in new.stored.utterances]
    coming += [reject["source_id"] for reject in new.stored.rejects]
    if both := taken.intersection(coming):
        raise CorpusError(
            f"batch {new.batch['name']!r}: {len(both)} of its recordings are named like recordings of earlier batches, "
            f"such as {min(both)}; give the batch another name"
        )


def _speakers(
    batches: Sequence[Mapping[str, Any]],
    parent: DatasetVersion,
    shards: Sequence[Shard],
    rows: _Rows,
    rejects: Sequence[Mapping[str, Any]],
) -> dict[str, int]:
    """How many people are heard in what several batches have of a corpus."""
    listing = {batch["name"]: batch["corpora"] for batch in batches}
    heard: dict[str, set[str]] = defaultdict(set)
    named = [(shard.batch, one.corpus, one.speaker) for shard in shards for one in rows.of(parent, shard)]
    named += [(reject["batch"], reject["corpus"], reject["speaker"]) for reject in rejects]
    for batch, corpus, speaker in named:
        # A list of recordings may name other corpora than its own: they are counted where the list is.
        own = corpus if corpus in listing[batch] else "folder" if "folder" in listing[batch] else listing[batch][0]
        if speaker:
            heard[own].add(speaker)
    return {corpus: len(people) for corpus, people in heard.items()}
