"""Ingest: recordings of corpora become shards, and the shards a dataset version.

Recordings are decoded and encoded on all cores, written in the corpora's order, and stored shard by shard. An ingest
that was ended half-way goes on behind the last shard that it stored. Names of people and of files are replaced by
pseudonyms on the way; the terminal tells a failed file's name, the store does not.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from kubevox import storage
from kubevox.config import AudioLimits, DataConfig
from kubevox.data.audio import decode, encode_flac
from kubevox.data.corpora import Corpus, Recording, by_machine, open_corpus
from kubevox.data.corpora.caps import cap
from kubevox.data.dataset import batches, history
from kubevox.data.dataset.forgetting import Suppressed
from kubevox.data.dataset.utterances import Shard, ShardWriter, Utterance, read_utterances
from kubevox.data.dataset.versions import FORMAT, DatasetVersion, load_dataset, publish_version, resolve
from kubevox.data.pseudonyms import Pseudonyms
from kubevox.errors import AudioError, CorpusError, StorageError, ValidationError
from kubevox.processes import CRASHED, Workers
from kubevox.progress import ProgressBar, note
from kubevox.provenance import content_hash

__all__ = [
    "Found",
    "Place",
    "Stored",
    "config_told",
    "ingest",
    "refuse_forgotten",
    "store_recordings",
    "survey",
    "tally",
    "tell",
]

_SHARD_STAGE = "ingest-shard"
_ENDING = re.compile(r"\.[a-z0-9]{1,5}")


class Place(NamedTuple):
    """The corpus that listed a recording, and where a person finds its file."""

    corpus: str
    origin: str


@dataclass(frozen=True)
class Found:
    """What the configured corpora hold, before anything is read.

    Attributes:
        corpora: opened, in the configuration's order.
        recordings: of all of them that no cap leaves out, with the names under which they are stored.
        places: stored source id to the corpus that listed it and where a person finds the file.
        counts: for each corpus, what was found, left out by a cap, and forgotten.
        names: what makes the pseudonyms; None where every voice is a machine's.
        key: changes whenever the recordings or what is made of them do.
    """

    corpora: list[Corpus]
    recordings: list[Recording]
    places: dict[str, Place]
    counts: list[dict[str, Any]]
    names: Pseudonyms | None
    key: str


@dataclass
class Stored:
    """Recordings that became shards.

    Attributes:
        shards: in order.
        utterances: their rows.
        rejects: what could not be decoded: source_id, corpus, speaker, batch, reason, message.
        created: shards that were not in the store before.
    """

    shards: list[Shard] = field(default_factory=list)
    utterances: list[Utterance] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    created: list[Shard] = field(default_factory=list)


def ingest(config: DataConfig, store: str) -> tuple[DatasetVersion, bool]:
    """Bring the configured corpora into the store as one dataset version.

    Unchanged sources (same files by path, size and time, same options) are recognised without being read. Content that
    is new becomes the current version of ``config.name``. With ``config.version`` nothing is ingested: that version of
    the store is taken.

    Args:
        config: the corpora, the limits on their audio, the shards' size.
        store: a folder or ``s3://bucket/prefix``.

    Returns:
        The version, and whether it was there already.

    Raises:
        ConfigError: an unknown corpus or option, or a key for pseudonyms that cannot be used.
        CorpusError: a corpus that is missing, empty or not as published.
        StorageError: the store does not answer, or keeps names under another key.
        ValidationError: more than ``max_rejected_share`` of the files could not be decoded; no version is made.
    """
    if config.version:
        version = resolve(store, config.name, config.version)
        refuse_forgotten(version)
        return version, True
    found = survey(config, store)
    if not found.recordings:
        raise CorpusError("nothing is left to ingest: all recordings are of people forgotten, or left out by a cap")
    known = storage.recall(store, "ingest", found.key)
    # By its name in this store, which may be a copy of the one that remembered it.
    uri = storage.join(store, "datasets", known["uri"].rpartition("/")[2]) if known else ""
    if known and storage.exists(storage.join(uri, "dataset.json")):
        version = load_dataset(uri)
        # The rejects of these sources: the version may have been made of others, with the same good recordings.
        _check_rejects(known["rejects"], version.utterances, known["first_reject"], found, config)
        _tell_unlisted(version, known["rejects"], known["first_reject"], found)
        _record(store, config.name, version)
        return version, True
    tell(found)
    stored = store_recordings(found, config, store, batches.BASE)
    counts = tally(found, stored)
    added = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    version, reused = publish_version(
        store,
        stored.utterances,
        stored.shards,
        stored.rejects,
        counts,
        [batches.describe(batches.BASE, counts, added, found.key)],
        any(count["synthetic"] for count in counts),
        found.names.fingerprint if found.names else None,
        {"operation": "ingest", "parent": None, "config": config_told(config)},
    )
    first = stored.rejects[0]["source_id"] if stored.rejects else ""
    answer = {"uri": version.uri, "rejects": len(stored.rejects), "first_reject": first}
    storage.remember(store, "ingest", found.key, answer)
    _tell_unlisted(version, len(stored.rejects), first, found)
    _record(store, config.name, version)
    return version, reused


def refuse_forgotten(version: DatasetVersion) -> None:
    """Keep a version from use that was made before somebody in it was forgotten.

    Raises:
        StorageError: there is such a person in it.
    """
    suppressed = Suppressed(version.store, Pseudonyms.of_store(version.store))
    if held := suppressed.held_by(version):
        raise StorageError(
            f"{version.uri}: holds {len(held)} recordings of people who were forgotten since; use the current version "
            "(kubevox data list), or purge this one (kubevox data forget --erase)"
        )


def _tell_unlisted(version: DatasetVersion, rejects: int, first: str, found: Found) -> None:
    """Say what failed of these sources, where the version was made before, of the same good recordings and others."""
    if rejects != version.rejects:
        such = f", such as {found.places[first].origin}" if first in found.places else ""
        note(
            f"ingest: {rejects} recordings could not be decoded{such}; version {version.hash[:12]} was made before, of "
            f"the same good recordings, and lists {version.rejects}"
        )


def _record(store: str, name: str, version: DatasetVersion) -> None:
    """Make new content the current version; what was current once is only made so again by a rollback."""
    entries = history.history(store, name)
    if version.hash not in {entry.dataset for entry in entries}:
        if entries and storage.exists(storage.join(store, "datasets", entries[-1].dataset, "dataset.json")):
            before = load_dataset(storage.join(store, "datasets", entries[-1].dataset))
            if lost := {one["name"] for one in before.batches} - {one["name"] for one in version.batches}:
                note(
                    f"ingest: the new version is without {', '.join(sorted(lost))}, which {before.hash[:12]} has, the "
                    "current one before; add them again, or go back with kubevox data rollback"
                )
        corpora = ", ".join(corpus["name"] for corpus in version.corpora)
        history.record(store, name, version.hash, "ingest", corpora)


def survey(config: DataConfig, store: str, batch: str | None = None) -> Found:
    """List the configured corpora's recordings under their pseudonyms, without reading them.

    Args:
        config: the corpora.
        store: the store that the pseudonyms are for.
        batch: what is put in front of each recording's path, so that batches may use the same file names.

    Raises:
        ConfigError: an unknown corpus or option.
        CorpusError: a corpus that is missing or empty, or two recordings of one name.
    """
    corpora = [open_corpus(source) for source in config.corpora]
    if twice := [name for name, count in Counter(corpus.name for corpus in corpora).items() if count > 1]:
        raise CorpusError(f"data.corpora: {twice[0]!r} is listed twice; put its recordings under one folder")
    names = None if all(corpus.synthetic for corpus in corpora) else Pseudonyms.of_user(store)
    recordings: list[Recording] = []
    counts = []
    places: dict[str, Place] = {}
    suppressed = Suppressed(store, names)
    marks: set[str] = set()
    for corpus, source in zip(corpora, config.corpora, strict=True):
        listed = list(corpus.recordings())
        _refuse_names_that_are_no_text(listed)
        chosen, left_out = cap(listed, source.max_recordings, source.max_per_class)
        counts.append(_count(corpus, listed, sum(left_out.values())))
        for recording in chosen:
            if batch is not None:
                recording = _within(recording, batch)
            own_name = recording.source_id
            if names is not None and not by_machine(recording.source_id):
                recording = _pseudonymised(recording, names, config.publish_names)
            if mark := suppressed.find(recording.speaker, *_names_of(recording, own_name, names)):
                marks.add(mark)
                counts[-1]["forgotten"] += 1
                continue
            if recording.source_id in places:
                first = places[recording.source_id].origin
                raise CorpusError(
                    f"{recording.origin}: named like {first} already is; each recording needs its own name"
                )
            places[recording.source_id] = Place(corpus.name, recording.origin)
            recordings.append(recording)
    key = content_hash(
        ["ingest", FORMAT, config.limits.digest(), config.shard_mb, config.publish_names],
        names.fingerprint if names else None,
        [
            [corpus.name, corpus.options.digest(), source.max_recordings, source.max_per_class, corpus.fingerprint()]
            for corpus, source in zip(corpora, config.corpora, strict=True)
        ],
        sorted(marks),
        *([batch] if batch is not None else []),
    )
    return Found(corpora, recordings, places, counts, names, key)


def store_recordings(found: Found, config: DataConfig, store: str, batch: str) -> Stored:
    """Decode the recordings and put them into the store's shards; no version lists them yet.

    Where the same recordings were being stored before and that was ended, this goes on behind their last whole shard.

    Args:
        found: the recordings.
        config: limits, the shards' size, and what share may fail.
        store: the store.
        batch: the name of the batch that they come with.

    Raises:
        CorpusError: none of them could be decoded.
        StorageError: the store does not answer.
        ValidationError: more than the configured share could not be decoded.
    """
    total = len(found.recordings)
    with ProgressBar("ingest", total, "files") as bar, storage.staging(store) as folder:
        filling = _Filling(found, config, store, batch, folder)
        filling.resume()
        bar.update(filling.start)
        for index, outcome in _decoded(found, config.limits, filling.start):
            if isinstance(outcome, AudioError):
                filling.reject(index, outcome)
            else:
                filling.add(index, *outcome)
            bar.update()
        try:
            rejects, stored = filling.all_rejects, filling.total
            first = rejects[0]["source_id"] if rejects else ""
            _check_rejects(len(rejects), stored, first, found, config)
            if not stored:
                why = _why(found, first, config.limits)
                raise CorpusError(f"none of the {total} recordings could be decoded: {why}")
        except (ValidationError, CorpusError):
            filling.take_back()
            raise
        filling.finish(total)
    return filling.stored


class _Filling:
    """Recordings going into shards, each of which is stored, and noted for a later attempt, once it is full."""

    def __init__(self, found: Found, config: DataConfig, store: str, batch: str, folder: Path) -> None:
        self.stored = Stored()
        self.start = 0  # the first recording of the shard that is being filled
        self._found, self._store, self._batch = found, store, batch
        self._writer = ShardWriter(folder, config.shard_mb << 20, batch)
        self._rows: list[Utterance] = []
        self._rejects: list[dict[str, Any]] = []
        self._notes: list[str] = []

    @property
    def all_rejects(self) -> list[dict[str, Any]]:
        return self.stored.rejects + self._rejects

    @property
    def total(self) -> int:
        return len(self.stored.utterances) + len(self._rows)

    def add(self, index: int, utterance: Utterance, flac: bytes) -> None:
        if self._writer.is_full(flac):
            self.finish(index)
        self._writer.add(utterance, flac)
        self._rows.append(utterance)

    def reject(self, index: int, error: AudioError) -> None:
        recording = self._found.recordings[index]
        self._rejects.append(
            {
                "source_id": recording.source_id,
                "corpus": _corpus_of(recording),
                "speaker": recording.speaker,
                "batch": self._batch,
                "reason": error.reason,
                "message": str(error).replace(recording.origin, recording.source_id),
            }
        )

    def finish(self, stop: int) -> None:
        """Store the shard, which holds the recordings from ``start`` to before ``stop``."""
        if (ended := self._writer.finish()) is not None:
            shard, path = ended
            if self._found.names is not None:
                self._found.names.bind(self._store)
            if storage.create_file(storage.join(self._store, shard.name), path):
                self.stored.created.append(shard)
            path.unlink(missing_ok=True)
            key = self._key()
            answer = {"stop": stop, "shard": asdict(shard), "rejects": self._rejects}
            storage.remember(self._store, _SHARD_STAGE, key, answer)
            self._notes.append(key)
            self.stored.shards.append(shard)
        self.stored.utterances += self._rows
        self.stored.rejects += self._rejects
        self._rows, self._rejects, self.start = [], [], stop

    def resume(self) -> None:
        """Take up the shards that an earlier, ended attempt stored."""
        while self.start < len(self._found.recordings):
            key = self._key()
            known = storage.recall(self._store, _SHARD_STAGE, key)
            if known is None or not storage.exists(uri := storage.join(self._store, Shard(**known["shard"]).name)):
                break
            self.stored.shards.append(Shard(**known["shard"]))
            self.stored.utterances += read_utterances(uri)
            self.stored.rejects += known["rejects"]
            self._notes.append(key)
            self.start = known["stop"]
        if self.start:
            note(f"ingest: goes on behind {self.start} recordings that were stored before")

    def take_back(self) -> None:
        """Leave nothing of this attempt in the store."""
        for key in self._notes:
            storage.delete(storage.join(self._store, "memo", _SHARD_STAGE, f"{key}.json"))
        for shard in self.stored.created:
            storage.delete(storage.join(self._store, shard.name))

    def _key(self) -> str:
        return content_hash("shard", self._found.key, self._batch, self.start)


def _decoded(
    found: Found, limits: AudioLimits, start: int
) -> Iterator[tuple[int, AudioError | tuple[Utterance, bytes]]]:
    """Recordings from ``start`` on, in order, decoded by all cores; what could not be is an error in their place."""

    def read(index: int) -> AudioError | tuple[Utterance, bytes]:
        return _read_recording(found.recordings[index], limits)

    indexes = range(start, len(found.recordings))
    for index, outcome in zip(indexes, Workers(read).map(indexes), strict=True):
        if outcome is CRASHED:
            outcome = AudioError("crashed", "its decoder crashed or was ended (out of memory?)")
        yield index, outcome


def _read_recording(recording: Recording, limits: AudioLimits) -> AudioError | tuple[Utterance, bytes]:
    try:
        # Not read into memory to find out that it is too large.
        with contextlib.suppress(OSError):
            if (size := Path(recording.origin).stat().st_size) > limits.max_bytes:
                raise AudioError("too_large", f"{recording.source_id}: {size} bytes, more than {limits.max_bytes}")
        data = recording.read()
        waveform, info = decode(data, limits, recording.source_id)
    except AudioError as error:
        return error
    except OSError as error:
        return AudioError("unreadable", f"{recording.source_id}: {error.strerror or error}")
    utterance = Utterance(
        id=waveform.id,
        corpus=_corpus_of(recording),
        speaker=recording.speaker,
        sex=recording.sex,
        raw_label=recording.raw_label,
        intensity=recording.intensity,
        language=recording.language,
        text=recording.text,
        partition=recording.partition,
        duration_s=waveform.duration_s,
        sample_rate=waveform.sample_rate,
        source_id=recording.source_id,
        source_bytes=info.size_bytes,
        source_sample_rate=info.sample_rate,
    )
    return utterance, encode_flac(waveform)


def _corpus_of(recording: Recording) -> str:
    return recording.corpus or recording.source_id.partition(":")[0]


def _within(recording: Recording, batch: str) -> Recording:
    """The recording with its batch in front of its path."""
    corpus, _, path = recording.source_id.partition(":")
    return replace(recording, source_id=f"{corpus}:{batch}/{path}")


def _pseudonymised(recording: Recording, names: Pseudonyms, publish_names: bool) -> Recording:
    return replace(
        recording,
        source_id=recording.source_id if publish_names else names.source(recording.source_id),
        speaker=names.speaker(recording.speaker) if recording.speaker else None,
    )


def _names_of(recording: Recording, own_name: str, names: Pseudonyms | None) -> set[str]:
    """The source ids that a recording may have been stored under: one ingest publishes names, another does not."""
    return {recording.source_id, own_name, *([names.source(own_name)] if names else [])}


def _refuse_names_that_are_no_text(listed: Sequence[Recording]) -> None:
    for recording in listed:
        try:
            recording.source_id.encode()
        except UnicodeEncodeError:
            raise CorpusError(f"{recording.origin!r}: its name is not UTF-8; give it another") from None


def _count(corpus: Corpus, listed: Sequence[Recording], left_out: int) -> dict[str, Any]:
    """What is told of a corpus beside a dataset: what it is, what was found, what is published."""
    published = corpus.published
    return {
        "name": corpus.name,
        "title": corpus.title,
        "licence": corpus.licence,
        "citation": corpus.citation,
        "homepage": corpus.homepage,
        "synthetic": corpus.synthetic or any(by_machine(recording.source_id) for recording in listed),
        "options": _without_place(corpus.options.model_dump(mode="json")),
        "found": len(listed),
        "left_out": left_out,
        "forgotten": 0,
        "labels": dict(sorted(Counter(r.raw_label for r in listed if r.raw_label).items())),
        "speakers": len({r.speaker for r in listed if r.speaker}),
        "published": {
            "recordings": published.recordings,
            "labels": dict(published.labels),
            "speakers": len(published.speakers),
            "source": published.source,
        }
        if published
        else None,
    }


def tell(found: Found) -> None:
    """Say what a person should know of the corpora before they are read; and look what else lies in them.

    That is another walk over their files, which sources that are recognised are spared.
    """
    for corpus, count in zip(found.corpora, found.counts, strict=True):
        count["passed_over"] = corpus.passed_over()
        _tell(count)


def _tell(count: dict[str, Any]) -> None:
    published = count["published"]
    if published and count["found"] != published["recordings"]:
        less = {
            label: f"{label} {count['labels'].get(label, 0)} of {number}"
            for label, number in published["labels"].items()
            if count["labels"].get(label, 0) != number
        }
        note(
            f"{count['name']}: {count['found']:,} recordings, published are {published['recordings']:,}"
            + (f" ({', '.join(less.values())})" if less else "")
        )
    if count["passed_over"]:
        others = ", ".join(f"{number} {ending}" for ending, number in count["passed_over"].items())
        note(f"{count['name']}: files that are none of its recordings, passed over: {others}")
    if count["left_out"]:
        note(f"{count['name']}: {count['left_out']:,} of {count['found']:,} recordings left out by its caps")


def tally(found: Found, stored: Stored) -> list[dict[str, Any]]:
    """The counts with what became of the recordings; nothing that was found is missing from them."""
    rows = Counter(found.places[utterance.source_id].corpus for utterance in stored.utterances)
    failed = Counter(found.places[reject["source_id"]].corpus for reject in stored.rejects)
    for count in found.counts:
        name = count["name"]
        if count["found"] != count["left_out"] + count["forgotten"] + rows[name] + failed[name]:
            raise AssertionError(f"{count} but stored {rows[name]}, failed {failed[name]}: recordings were lost")
    return [
        {
            **count,
            "passed_over": _endings(count["passed_over"]),
            "stored": rows[count["name"]],
            "failed": failed[count["name"]],
        }
        for count in found.counts
    ]


def _endings(passed_over: dict[str, int]) -> dict[str, int]:
    """Files by their endings, and all others together: a name without an ending is a name."""
    endings: Counter[str] = Counter()
    for ending, number in passed_over.items():
        endings[ending if _ENDING.fullmatch(ending) else "other"] += number
    return dict(sorted(endings.items()))


def config_told(config: DataConfig) -> dict[str, Any]:
    """The configuration as a dataset tells it: without places on this machine."""
    told = config.model_dump(mode="json", exclude={"version"})
    for source in told["corpora"]:
        del source["path"]
        source["options"] = _without_place(source["options"])
    return told


def _without_place(options: dict[str, Any]) -> dict[str, Any]:
    """A corpus' options with no folder of this machine: a list may be named by its full path."""
    return options | {"csv": Path(options["csv"]).name} if options.get("csv") else options


def _check_rejects(rejects: int, stored: int, first: str, found: Found, config: DataConfig) -> None:
    total, limit = rejects + stored, config.max_rejected_share
    if rejects and rejects / total > limit:
        more = f", and {rejects - 1} more" if rejects > 1 else ""
        raise ValidationError(
            f"{rejects} of {total} recordings cannot be used (data.max_rejected_share allows {limit:.0%}): "
            f"{_why(found, first, config.limits)}{more}; remove or replace what is damaged, or raise the limit"
        )


def _why(found: Found, source_id: str, limits: AudioLimits) -> str:
    """What is wrong with a recording, with the name by which a person finds it; the store does not keep that name."""
    recording = next((one for one in found.recordings if one.source_id == source_id), None)
    if recording is None:
        return source_id
    [outcome] = Workers[int, AudioError | tuple[Utterance, bytes]](lambda _: _read_recording(recording, limits)).map(
        [0]
    )
    reason = str(outcome) if isinstance(outcome, AudioError) else "its decoder crashed" if outcome is CRASHED else ""
    return f"{recording.origin}: {reason.removeprefix(f'{source_id}: ')}" if recording.origin not in reason else reason
