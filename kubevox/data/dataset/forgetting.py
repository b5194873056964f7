"""Forgetting a person: a version of the dataset without his recordings, and a list that keeps him from coming back.

Shards that hold the person are written again without his rows, the others are listed by the new version as they are.
What else bears the audio of one of his recordings, under whatever name, goes too: the voice is his. Older versions stay
as they were; :mod:`kubevox.erasure` purges them.

``<store>/forgotten/<mark>.json`` is the list. A mark is a second keyed hash, of the pseudonym: whoever has the key can
ask whether a recording's speaker is on the list, and nobody can read from the list who is.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubevox import storage
from kubevox.data.corpora import by_machine
from kubevox.data.dataset import history
from kubevox.data.dataset.utterances import Shard, ShardWriter, Utterance, read_encoded, read_utterances
from kubevox.data.dataset.versions import DatasetVersion, publish_version, read_rejects, resolve, rewrite_rejects
from kubevox.data.pseudonyms import Pseudonyms
from kubevox.errors import StorageError
from kubevox.provenance import canonical_json, content_hash

__all__ = ["Forgotten", "Suppressed", "forget", "identify", "speakers_of"]

_FOLDER = "forgotten"
_UNBOUNDED = 1 << 62  # a shard without some rows is no larger than it was


@dataclass(frozen=True)
class Forgotten:
    """What forgetting did to one dataset.

    Attributes:
        dataset: its name.
        before: the version that was current.
        after: the version that is current now.
        utterances: rows that went.
        copies: how many of these bore the same audio under another speaker's name, or under none.
        rejects: recordings that could not be decoded, and are no longer listed.
        shards: shards that were written again, or left out.
    """

    dataset: str
    before: DatasetVersion
    after: DatasetVersion
    utterances: int
    copies: int
    rejects: int
    shards: int


class Suppressed:
    """The people whom a store is not to take in again.

    Args:
        store: the store.
        names: what makes its pseudonyms; None where every voice is a machine's.
    """

    def __init__(self, store: str, names: Pseudonyms | None) -> None:
        self._store, self._names = store, names
        listed = storage.list_names(storage.join(store, _FOLDER))
        self._marks = {name.removesuffix(".json") for name in listed}

    def find(self, speaker: str | None, *source_ids: str) -> str | None:
        """The mark by which a recording of this speaker (a pseudonym) or under these source ids is listed, or None."""
        if not self._marks:
            return None
        asked = [("speaker", speaker), *(("source", source_id) for source_id in source_ids)]
        marks = (self._mark(kind, name) for kind, name in asked if name)
        return next((mark for mark in marks if mark in self._marks), None)

    def held_by(self, version: DatasetVersion) -> set[str]:
        """Source ids of a version that are, or whose speakers are, on the list; making it current brings them back."""
        if not self._marks:
            return set()
        named = [(row.speaker, row.source_id) for row in read_utterances(version.shard_uris)]
        named += [(reject["speaker"], reject["source_id"]) for reject in read_rejects(version)]
        return {source_id for speaker, source_id in named if self.find(speaker, source_id)}

    def add(self, speakers: Iterable[str], source_ids: Iterable[str] = ()) -> None:
        """Put people, and single recordings, on the list.

        Args:
            speakers: pseudonyms.
            source_ids: recordings that bear such a person's audio under another name.
        """
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        for kind, names in (("speaker", speakers), ("source", source_ids)):
            for mark in {self._mark(kind, name) for name in names} - self._marks:
                uri = storage.join(self._store, _FOLDER, f"{mark}.json")
                storage.create(uri, canonical_json({"forgotten": today}).encode())
                self._marks.add(mark)

    def _mark(self, kind: str, name: str) -> str:
        if self._names is None or by_machine(name):  # what no key protects, and nobody is harmed by
            return content_hash("forgotten", kind, name)
        return self._names.mark(f"{kind}:{name}")


def speakers_of(version: DatasetVersion) -> set[str]:
    """All speakers of a version, also those of whom nothing could be decoded."""
    rows = {utterance.speaker for utterance in read_utterances(version.shard_uris)}
    return {name for name in rows | {reject["speaker"] for reject in read_rejects(version)} if name}


def identify(asked: str, known: Collection[str], names: Pseudonyms | None, suppressed: Suppressed) -> str | None:
    """The pseudonym that a person means who names a speaker.

    Args:
        asked: a pseudonym, or ``corpus:`` and the corpus' own id.
        known: the pseudonyms among which it is looked for.
        names: what makes them; None where every voice is a machine's.
        suppressed: the people who were forgotten before.

    Returns:
        The pseudonym; None where there is no such speaker, and none was forgotten.

    Raises:
        StorageError: it is no ``corpus:id``.
    """
    if not all(asked.partition(":")):
        raise StorageError(f"speaker {asked!r}: expected a pseudonym such as ravdess:5f0c2b71d9aa, or corpus:id")
    candidates = [asked, *([names.speaker(asked)] if names else [])]
    for candidate in candidates:
        if candidate in known:
            return candidate
    return next((one for one in candidates if suppressed.find(one)), None)


def forget(
    store: str, name: str, speakers: Collection[str], names: Pseudonyms | None, known_ids: Collection[str] = ()
) -> Forgotten | None:
    """Make a current version without some people, and keep them from being ingested again.

    The list is written first: whoever ingests from then on leaves them out. An ingest that was already under way may
    still bring them in; forgetting them again after it has ended takes them out.

    Args:
        store: the store.
        name: the dataset's.
        speakers: pseudonyms.
        names: what makes them; None where every voice is a machine's.
        known_ids: utterance ids of theirs that other versions tell of: what bears such audio here goes as well.

    Returns:
        What was done; None where the current version holds nothing of them.

    Raises:
        StorageError: there is no current version, or a shard of it is missing or damaged.
    """
    while True:
        before = resolve(store, name, "current")
        rows = [read_utterances(uri) for uri in before.shard_uris]
        ids = {utterance.id for shard in rows for utterance in shard if utterance.speaker in speakers}.union(known_ids)
        gone = [[u for u in shard if u.speaker in speakers or u.id in ids] for shard in rows]
        copies = [u for shard in gone for u in shard if u.speaker not in speakers]
        rejects = read_rejects(before)
        kept_rejects = [reject for reject in rejects if reject["speaker"] not in speakers]
        Suppressed(store, names).add(speakers, [copy.source_id for copy in copies])
        count = sum(map(len, gone))
        if not count and len(kept_rejects) == len(rejects):
            return None
        shards, kept = _without(before, rows, gone)
        left = [reject for reject in rejects if reject["speaker"] in speakers]
        corpora = _counts_without(before.corpora, [u for shard in gone for u in shard], left)
        after, _ = publish_version(
            store,
            kept,
            shards,
            kept_rejects,
            corpora,
            _batches_without(before, gone, left),
            before.synthetic,
            before.key_fingerprint,
            {"operation": "forget", "parent": before.hash, "config": before.lineage.get("config")},
        )
        after = _without_rejects(after, speakers)
        told = Forgotten(name, before, after, count, len(copies), len(left), sum(1 for shard in gone if shard))
        people = "1 person" if len(speakers) == 1 else f"{len(speakers)} people"
        if after.hash == before.hash or history.record(
            store, name, after.hash, "forget", f"{people}, {count} recordings", onto=before.hash
        ):
            return told


def _without(
    version: DatasetVersion, rows: Sequence[Sequence[Utterance]], gone: Sequence[Sequence[Utterance]]
) -> tuple[list[Shard], list[Utterance]]:
    """A version's shards and rows without some rows."""
    shards: list[Shard] = []
    left: list[Utterance] = []
    with storage.staging(version.store) as folder:
        for shard, uri, held, dropped in zip(version.shards, version.shard_uris, rows, gone, strict=True):
            lost = {utterance.source_id for utterance in dropped}
            kept = [utterance for utterance in held if utterance.source_id not in lost]
            left += kept
            if kept:
                shards.append(_written_again(version.store, shard, uri, kept, folder) if dropped else shard)
    return shards, left


def _written_again(store: str, shard: Shard, uri: str, kept: Sequence[Utterance], folder: Path) -> Shard:
    writer = ShardWriter(folder, _UNBOUNDED, shard.batch)
    for utterance, flac in _with_audio(uri, kept):
        writer.add(utterance, flac)
    ended = writer.finish()
    assert ended is not None  # noqa: S101 - there is a row
    written, path = ended
    storage.create_file(storage.join(store, written.name), path)
    path.unlink(missing_ok=True)
    return written


def _with_audio(uri: str, kept: Sequence[Utterance]) -> Iterator[tuple[Utterance, bytes]]:
    """Rows of a shard with their FLAC; the reader gives each recording once, a shard may have it twice."""
    left = Counter(utterance.id for utterance in kept)
    recordings = read_encoded(uri, left)
    held: dict[str, bytes] = {}
    for utterance in kept:
        while utterance.id not in held:
            name, flac = next(recordings)
            held[name] = flac
        yield utterance, held[utterance.id]
        left[utterance.id] -= 1
        if not left[utterance.id]:
            del held[utterance.id]


def _counts_without(
    corpora: Sequence[Mapping[str, Any]], gone: Sequence[Utterance], rejects: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The corpora's counts: what is no longer stored or failed is forgotten; the sum stays what was found."""
    counts = [{**corpus, "forgotten": corpus.get("forgotten", 0)} for corpus in corpora]
    named = [(utterance.corpus, "stored") for utterance in gone] + [(str(r["corpus"]), "failed") for r in rejects]
    for corpus, column in named:
        # A list of recordings may name other corpora than its own: they are counted where the list is.
        own = (count for count in counts if count["name"] == corpus and count[column])
        others = (count for count in counts if count[column])
        if (count := next(own, None) or next(others, None)) is not None:
            count[column] -= 1
            count["forgotten"] += 1
    return counts


def _batches_without(
    version: DatasetVersion, gone: Sequence[Sequence[Utterance]], rejects: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    batches = []
    for batch in version.batches:
        name = batch["name"]
        lost = [u for shard, rows in zip(version.shards, gone, strict=True) if shard.batch == name for u in rows]
        counts = _counts_without(batch["counts"], lost, [reject for reject in rejects if reject["batch"] == name])
        batches.append({**batch, "utterances": batch["utterances"] - len(lost), "counts": counts})
    return batches


def _without_rejects(version: DatasetVersion, speakers: Collection[str]) -> DatasetVersion:
    """The version with none of the people's rejects, which its name does not cover.

    A version of the same rows may have been there before, with these people among its rejects: they are taken out of
    its files, which are otherwise never written again.
    """
    rejects = read_rejects(version)
    kept = [reject for reject in rejects if reject["speaker"] not in speakers]
    if len(kept) == len(rejects):
        return version
    gone = [reject for reject in rejects if reject["speaker"] in speakers]
    return rewrite_rejects(
        version,
        kept,
        _counts_without(version.corpora, [], gone),
        _batches_without(version, [[] for _ in version.shards], gone),
    )
