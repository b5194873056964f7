"""Which models were trained on a person, and the purge of everything in a store that holds him.

What holds the person is found by opening every object of the store, not by knowing where it ought to be: the columns of
text of Parquet files, the header of safetensors files, the bytes of all others are searched for the pseudonym, and for
the utterance ids and source ids that any shard or table of the store gives the person. What names such an object by its
hash goes with it (a checkpoint of a purged split, the evaluation of a model on it).

The purge is written down before its first step and struck out after its last, so that one that was ended half-way is
completed by the next. Dataset versions go first and shards last: no version ever lists a shard that is gone, and until
the end the store itself still tells which ids are the person's. No other stage may work in the store meanwhile: what a
run that began before still writes is found by erasing again, and looked for once more before this ends.
"""

from __future__ import annotations

import contextlib
import gzip
import html
import io
import json
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kubevox import storage
from kubevox.data.dataset import history
from kubevox.errors import StorageError
from kubevox.progress import ProgressBar
from kubevox.provenance import canonical_json, content_hash
from kubevox.registry import Registry

__all__ = [
    "Erased",
    "Holdings",
    "TrainedModel",
    "erase",
    "holdings",
    "out_of_reach",
    "people",
    "recordings",
    "trained_on",
]

_FOLDERS = ("datasets", "validations", "splits", "evaluations", "checkpoints", "bundles", "cascades", "encoders")
_KEPT = ("bundles", "encoders", "forgotten", "erasures", "pseudonym-key.json")
_REWRITTEN = ("assignments", "history")
_NOT_BY_HASH = (*_KEPT, *_REWRITTEN, "datasets", "shards", "tmp")
_UNFINISHED = re.compile(r"(?:^|/)(?:\.[^/]+|tmp/.+)$")
_HASH = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_HEX_LENGTHS = (12, 20, 64)  # speakers, sources, utterances
_ID_COLUMNS = ("id", "utterance")
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, EOFError, zlib.error)


@dataclass(frozen=True)
class TrainedModel:
    """A model that a person's recordings went into, by training or by choosing the best epoch.

    Attributes:
        bundle: the bundle's URI; "" where the registry does not say.
        name: of the registered model; None for a bundle that is in the store only.
        version: of the registered model; None likewise.
        champion: whether the alias ``champion`` points at it.
        doubt: why it cannot be told whether they are in it; "" where they are.
    """

    bundle: str
    name: str | None = None
    version: str | None = None
    champion: bool = False
    doubt: str = ""

    @property
    def advice(self) -> str:
        """What to do about it."""
        if self.doubt:
            return f"whether they are in it cannot be told: {self.doubt}"
        if self.champion:
            return "train again on the new version and promote that, then delete this version in MLflow"
        if self.name:
            return "delete this version in MLflow; its weights keep what they learnt"
        return "not registered: --erase --models deletes it"


@dataclass(frozen=True)
class Holdings:
    """What of a store holds some people.

    Attributes:
        ids: their utterance ids.
        source_ids: the source ids of these recordings.
        objects: what goes: each object or folder, by its path in the store, with its kind and size in bytes.
        rewritten: objects that stay without them: path to the new content.
        unreadable: objects that cannot be opened, so that nobody can say whom they hold.
        orphans: objects with utterances that no shard holds any more, so that nobody can say whose they are.
    """

    ids: frozenset[str]
    source_ids: frozenset[str]
    objects: Mapping[str, tuple[str, int]]
    rewritten: Mapping[str, bytes]
    unreadable: tuple[str, ...]
    orphans: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many objects of each kind go or are rewritten."""
        kinds = [kind for kind, _ in self.objects.values()] + [_kind(path) for path in self.rewritten]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    @property
    def bytes(self) -> int:
        """What the objects that go take up."""
        return sum(size for _, size in self.objects.values())


@dataclass(frozen=True)
class Erased:
    """What a purge did.

    Attributes:
        counts: objects of each kind that were removed or rewritten.
        bytes: what was freed.
        unreadable: as in :class:`Holdings`, what is left of it.
        orphans: likewise.
    """

    counts: Mapping[str, int]
    bytes: int
    unreadable: tuple[str, ...]
    orphans: tuple[str, ...]


def people(store: str) -> set[str]:
    """Everybody whom any table of a store names, in whichever version."""
    return {
        name
        for _, table in _tables(storage.walk(store, unfinished=True))
        for name in table["speaker"].unique().to_pylist()
        if name
    }


def recordings(store: str, speakers: Collection[str]) -> set[str]:
    """The utterance ids of some people, in whichever version."""
    return _recordings_of(list(storage.walk(store)), speakers)[0]


def trained_on(
    store: str,
    tracking_uri: str,
    speakers: Collection[str],
    ids: Collection[str] = (),
    key_fingerprint: str | None = None,
) -> list[TrainedModel]:
    """Every registered model, and every bundle of the store, that was trained on some people or chosen by them.

    A bundle names its speakers; where it is gone from the store, MLflow's copy of it does. A recording that was used
    under another name is found through the split, while that is there. A registered model of which nothing can be told
    is listed too, with the reason.

    Args:
        store: the store.
        tracking_uri: MLflow's; a database file that is not there holds no models.
        speakers: pseudonyms.
        ids: their utterance ids.
        key_fingerprint: of the key that the pseudonyms are made with; None for machines' voices.

    Raises:
        RegistryError: the registry does not answer.
        StorageError: the store does not answer.
    """
    models = []
    registered: set[str] = set()

    def asked(told: Mapping[str, Any]) -> tuple[bool, str]:
        if not set(speakers).isdisjoint(told["speakers"]) or _learnt_from(store, str(told["split_hash"]), ids):
            return True, ""
        theirs = told.get("key_fingerprint")
        other = theirs is not None and key_fingerprint is not None and theirs != key_fingerprint
        return other, "its speakers' names are pseudonyms under another key" if other else ""

    if not tracking_uri.startswith("sqlite:///") or Path(tracking_uri.removeprefix("sqlite:///")).exists():
        registry = Registry(tracking_uri)
        champions: dict[str, str | None] = {}
        for version in registry.versions():
            uri = version.bundle_uri.rstrip("/")
            registered.add(uri.rpartition("/")[2])
            told = _told(uri) or registry.description(version)
            listed, doubt = asked(told) if told else (True, "its bundle is nowhere to be read")
            if not listed:
                continue
            if version.name not in champions:
                champion = registry.champion(version.name)
                champions[version.name] = champion.version if champion else None
            is_champion = champions[version.name] == version.version
            models.append(TrainedModel(uri, version.name, version.version, is_champion, doubt))
    folder = storage.join(store, "bundles")
    for name in storage.list_names(folder):
        uri = storage.join(folder, name)
        if name in registered:
            continue
        told = _told(uri)
        is_there = storage.exists(storage.join(uri, "bundle.json"))
        listed, doubt = asked(told) if told else (is_there, "its bundle.json is damaged")
        if listed:
            models.append(TrainedModel(uri, doubt=doubt))
    return models


def holdings(store: str, speakers: Collection[str], bundles: Collection[str] = ()) -> Holdings:
    """Search the whole store for some people.

    Args:
        store: a folder or ``s3://bucket/prefix``.
        speakers: pseudonyms.
        bundles: bundles (URIs) that are to go as well.

    Raises:
        StorageError: the store does not answer.
    """
    listed = [one for one in storage.walk(store, unfinished=True) if _kind(_inside(store, one.uri)) != "encoders"]
    ids, source_ids, known = _recordings_of(listed, speakers)
    needles = _Needles({*speakers, *ids, *source_ids})
    units: dict[str, _Unit] = {}
    unreadable, orphans, rewritten = [], set(), {}
    with ProgressBar("search", len(listed), "objects") as bar:
        for one in listed:
            path = _inside(store, one.uri)
            unit = units.setdefault(_unit(path), _Unit(_unit(path)))
            unit.bytes += one.size
            bar.update()
            try:
                content = _open(one.uri, path)
            except FileNotFoundError:
                continue  # gone meanwhile
            except StorageError:
                if storage.exists(one.uri):
                    raise
                continue
            except _DAMAGE:
                if _UNFINISHED.search(path):
                    unit.holds = True  # half a file of a writer that was killed
                else:
                    unreadable.append(path)
                continue
            unit.names.update(content.hashes)
            if content.utterances - known:
                orphans.add(unit.path)
            if any(needles.found(text) for text in content.texts):
                if _kind(path) in _REWRITTEN and not _UNFINISHED.search(path):
                    rewritten[path] = _without(content, path, needles)
                else:
                    unit.holds = True
    going = {storage.absolute(uri).rpartition("/")[2] for uri in bundles}
    purged = _closure(units, going)
    return Holdings(
        frozenset(ids),
        frozenset(source_ids),
        {unit.path: (_kind(unit.path), unit.bytes) for unit in sorted(purged, key=_order)},
        rewritten,
        tuple(sorted(set(unreadable).difference(*({unit.path} for unit in purged)))),
        tuple(sorted(orphans - {unit.path for unit in purged})),
    )


def erase(store: str, speakers: Collection[str], bundles: Collection[str] = ()) -> Erased:
    """Purge everything in a store that holds some people, except bundles that are not named.

    The people are to be forgotten first: a version that is current is not purged.

    Args:
        store: a folder or ``s3://bucket/prefix``.
        speakers: pseudonyms.
        bundles: bundles (URIs) that are to go as well.

    Raises:
        StorageError: a current version still holds them, something cannot be removed, or something that holds them
            keeps being written.
    """
    counts: dict[str, int] = {}
    freed = 0
    _complete(store)
    for _ in range(3):
        found = holdings(store, speakers, bundles)
        if not found.objects and not found.rewritten:
            storage.forget_cached(store)
            return Erased(counts, freed, found.unreadable, found.orphans)
        _refuse_current(store, found)
        plan = {
            "delete": list(found.objects),
            "write": {path: content.decode() for path, content in found.rewritten.items()},
        }
        text = canonical_json(plan).encode()
        storage.write_bytes(storage.join(store, "erasures", f"{content_hash(text)}.json"), text)
        _complete(store)
        freed += found.bytes
        for kind, count in found.counts.items():
            counts[kind] = counts.get(kind, 0) + count
    raise StorageError(
        f"{storage.join(store, next(iter({**found.objects, **found.rewritten})))}: written again while it was erased; "
        "end what works in this store, and run this again"
    )


def out_of_reach(store: str, tracking_uri: str, models: Sequence[TrainedModel]) -> list[str]:
    """What a purge of the store leaves, in words for the person who has to see to it."""
    lines = []
    if models:
        lines.append("what the models named above learnt, in MLflow and in every copy of them in service")
    lines.append(
        f"MLflow at {tracking_uri}: copies of bundles, reports and runs; delete the versions and runs there, then "
        "`mlflow gc`"
    )
    runs = None if store.startswith("s3://") else Path(store).parent / "runs"
    where = f"{runs}" if runs is not None and runs.is_dir() else "the pipeline root, locally the folder `runs`"
    lines.append(f"KFP's artifacts, caches and logs of earlier runs ({where}): reports and what steps said")
    if store.startswith("s3://"):
        versioning = _versioning(store)
        lines.append(
            "older versions that the bucket keeps of objects which were deleted or replaced before this "
            f"(versioning is {versioning}), its replicas, and temporary folders (kubevox-staging-*) on other machines"
        )
    lines += [
        "backups and snapshots of the store, and other stores",
        "the corpora's own files; they are left out when these are ingested again, but stay where they are",
        "caches on other machines (~/.cache/kubevox, KUBEVOX_CACHE)",
        "logs of requests to model servers, and terminal output",
    ]
    return lines


@dataclass
class _Unit:
    """An object, or a folder that is there as a whole or not at all."""

    path: str
    holds: bool = False
    bytes: int = 0
    names: set[str] = field(default_factory=set)

    @property
    def own(self) -> str:
        """The hash that it is named by, or ""."""
        return Path(self.path).name.split(".")[0]


@dataclass(frozen=True)
class _Content:
    """What is looked at in an object: its text, the hashes that its JSON names, and the utterances that it lists."""

    texts: list[bytes]
    hashes: set[str] = field(default_factory=set)
    utterances: set[str] = field(default_factory=set)


class _Needles:
    """Finds names in text, also where JSON or HTML writes some characters in its own way.

    Names that end in hex digits, as nearly all do, are found by looking up each run of such digits.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._hex: dict[int, set[bytes]] = {length: set() for length in _HEX_LENGTHS}
        self._plain: dict[bytes, re.Pattern[bytes]] = {}
        for name in names:
            tail = name.rpartition(":")[2]
            if len(tail) in _HEX_LENGTHS and re.fullmatch(r"[0-9a-f]+", tail):
                self._hex[len(tail)].add(tail.encode())
                continue
            for form in {name, json.dumps(name)[1:-1], html.escape(name)}:
                # Not where it is only the beginning of a longer name.
                self._plain[form.encode()] = re.compile(rb"(?<!\w)" + re.escape(form.encode()) + rb"(?![\w/-]|\.\w)")

    def found(self, text: bytes) -> bool:
        if any(self._in_run(match[0]) for match in re.finditer(rb"[0-9a-f]{12,}", text)):
            return True
        return any(form in text and pattern.search(text) for form, pattern in self._plain.items())

    def _in_run(self, run: bytes) -> bool:
        if len(run) in self._hex:
            return run in self._hex[len(run)]
        return any(
            names and any(run[start : start + length] in names for start in range(len(run) - length + 1))
            for length, names in self._hex.items()
        )


def _told(bundle: str) -> dict[str, Any] | None:
    """What a bundle says of itself; None where there is none, or it is damaged."""
    if not bundle:
        return None
    with contextlib.suppress(StorageError):
        told = storage.read_json(storage.join(bundle, "bundle.json"))
        if isinstance(told, dict) and {"speakers", "split_hash"}.issubset(told):
            return told
    return None


def _learnt_from(store: str, split: str, ids: Collection[str]) -> bool:
    uri = storage.join(store, "splits", split, "split.parquet")
    if not ids or not storage.exists(uri):
        return False
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)), columns=["utterance", "split"])
    except _DAMAGE:
        return False
    used = table.filter(pc.not_equal(table["split"], "test"))["utterance"].to_pylist()
    return not set(ids).isdisjoint(used)


def _recordings_of(listed: Sequence[storage.Stored], speakers: Collection[str]) -> tuple[set[str], set[str], set[str]]:
    """Utterance ids and source ids of some people, as any table of the store tells; and all ids that a shard holds."""
    tables = list(_tables(listed))
    ids: set[str] = set()
    source_ids: set[str] = set()
    known: set[str] = set()
    wanted = pa.array(sorted(speakers), pa.string())
    for uri, table in tables:
        theirs = table.filter(pc.is_in(table["speaker"], wanted))
        source_ids.update(theirs["source_id"].to_pylist())
        if "id" in table.column_names:
            ids.update(theirs["id"].to_pylist())
            known.update(table["id"].to_pylist() if "/shards/" in uri else ())
    wanted = pa.array(sorted(ids), pa.string())
    for _, table in tables:
        if "id" in table.column_names:  # the same audio under another name
            source_ids.update(table.filter(pc.is_in(table["id"], wanted))["source_id"].to_pylist())
    return ids, source_ids, known


def _tables(listed: Iterable[storage.Stored]) -> Iterator[tuple[str, pa.Table]]:
    """The tables of a store that say who is heard in which recording."""
    for one in listed:
        if not one.uri.endswith(".parquet"):
            continue
        with contextlib.suppress(StorageError, *_DAMAGE), pq.ParquetFile(_source(one.uri)) as file:
            columns = [name for name in ("id", "source_id", "speaker") if name in file.schema_arrow.names]
            if {"source_id", "speaker"}.issubset(columns):
                yield one.uri, file.read(columns=columns)


def _open(uri: str, path: str) -> _Content:
    """What an object holds that can be searched.

    Raises:
        OSError: and others, where it cannot be read as what its name says.
    """
    if path.endswith(".parquet"):
        with pq.ParquetFile(_source(uri)) as file:
            return _parquet(file)
    data = _read(uri)
    if path.endswith(".safetensors"):
        header = data[8 : 8 + int.from_bytes(data[:8], "little")]
        return _Content([header], set(_HASH.findall(header.decode())))
    if path.endswith(".gz"):
        data = gzip.decompress(data)
    named = set(_HASH.findall(data.decode("utf-8", "replace"))) if path.endswith((".json", ".gz")) else set()
    return _Content([data], named)


def _parquet(file: pq.ParquetFile) -> _Content:
    texts = [b"\n".join((file.metadata.metadata or {}).values())]
    utterances: set[str] = set()
    schema = file.schema
    leaves = [schema.column(number) for number in range(len(schema.names))]
    paths = [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"]
    for group in range(file.num_row_groups):
        for path in paths:
            values = _strings(file.read_row_group(group, columns=[path]))
            texts.append("\n".join(values).encode())
            if path in _ID_COLUMNS:
                utterances.update(values)
    return _Content(texts, set(), utterances)


def _strings(table: pa.Table) -> list[str]:
    """The different strings of a table of one leaf column, however deep it lies."""
    array = table.column(0).combine_chunks()
    while pa.types.is_nested(array.type):
        array = pc.struct_field(array, [0]) if pa.types.is_struct(array.type) else array.flatten()
    return [value for value in array.unique().to_pylist() if value is not None]


def _without(content: _Content, path: str, needles: _Needles) -> bytes:
    """A log's entry without the people: where speakers were placed, or what was done to a dataset.

    Entries are otherwise written once, because each must have exactly one writer and the next ones build upon it.
    Taking a name out changes neither: the entry keeps its number, and nobody who is left in it is moved.
    """
    entry = json.loads(content.texts[0])
    if _kind(path) == "history":
        entry |= {"detail": ""}
    else:
        entry = {name: split for name, split in entry.items() if not needles.found(name.encode())}
    return canonical_json(entry).encode()


def _closure(units: Mapping[str, _Unit], bundles: Collection[str]) -> list[_Unit]:
    """The units that hold the people, and those that name such a unit by its hash, and so on."""
    purged = {unit.path for unit in units.values() if unit.holds and _kind(unit.path) not in _KEPT}
    purged |= {unit.path for unit in units.values() if _kind(unit.path) == "bundles" and unit.own in bundles}
    shards = {units[path].own for path in purged if _kind(path) == "shards"}
    purged |= {unit.path for unit in units.values() if _kind(unit.path) == "datasets" and unit.names & shards}
    hashes = {units[path].own for path in purged} - {""}
    # A model of a purged split may be remembered by its training key alone.
    trained = [unit for unit in units.values() if _kind(unit.path) == "bundles"]
    keys = {name for unit in trained if unit.names & hashes for name in unit.names}
    hashes |= {key for key in keys if f"checkpoints/{key}" in units or f"memo/train/{key}.json" in units}
    while True:
        more = {
            unit.path
            for unit in units.values()
            if unit.path not in purged
            and _kind(unit.path) not in _NOT_BY_HASH
            and (unit.own in hashes or unit.names & hashes)
        }
        if not more:
            return [units[path] for path in purged]
        purged |= more
        hashes |= {units[path].own for path in more}


def _order(unit: _Unit) -> tuple[int, str]:
    """Versions first, shards last; between them what was made of a thing before the thing."""
    order = (
        "datasets",
        "rollouts",
        "memo",
        "evaluations",
        "bundles",
        "checkpoints",
        "features",
        "splits",
        "validations",
    )
    kind = _kind(unit.path)
    return (len(order) + 1 if kind == "shards" else order.index(kind) if kind in order else len(order), unit.path)


def _complete(store: str) -> None:
    """Do what was written down, and strike it out."""
    folder = storage.join(store, "erasures")
    for name in storage.list_names(folder):
        plan = storage.read_json(storage.join(folder, name))
        for path in plan["delete"]:
            storage.delete(storage.join(store, path), purge=True)
        for path, content in plan["write"].items():
            uri = storage.join(store, path)
            if store.startswith("s3://"):
                storage.delete(uri, purge=True)  # a bucket may keep what is written over
            storage.write_bytes(uri, content.encode())
        storage.delete(storage.join(folder, name), purge=True)


def _refuse_current(store: str, found: Holdings) -> None:
    for name in history.names(store):
        if f"datasets/{history.current(store, name)}" in found.objects:
            raise StorageError(
                f"store {store}: the current version of dataset {name!r} holds them; something made it current "
                "meanwhile: end what works in this store, and run this again"
            )


def _versioning(store: str) -> str:
    from kubevox.storage import buckets

    try:
        status = buckets._client().get_bucket_versioning(store.removeprefix("s3://").partition("/")[0]).status
    except Exception:  # whatever a server says that does not know the question, or refuses it
        return "not known: the bucket does not tell"
    return {"Enabled": "on", "Suspended": "suspended"}.get(str(status), "off")


def _source(uri: str) -> Any:
    return io.BytesIO(_read(uri)) if uri.startswith("s3://") else uri


def _read(uri: str) -> bytes:
    """An object's bytes, past the cache; of a local safetensors file only the header."""
    if uri.startswith("s3://"):
        return storage.read_bytes(uri)
    with open(uri, "rb") as file:
        if not uri.endswith(".safetensors"):
            return file.read()
        size = file.read(8)
        return size + file.read(min(int.from_bytes(size, "little"), os.fstat(file.fileno()).st_size))


def _inside(store: str, uri: str) -> str:
    return uri[len(store.rstrip("/")) + 1 :]


def _kind(path: str) -> str:
    return path.partition("/")[0]


def _unit(path: str) -> str:
    """The folder that an object belongs to, where folders are there as a whole; else the object."""
    first, _, rest = path.partition("/")
    name, slash, _ = rest.partition("/")
    return f"{first}/{name}" if first in _FOLDERS and slash and not name.startswith(".") else path
