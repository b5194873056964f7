"""What a store holds that nobody needs any more: found by marking what is needed, removed by sweeping the rest.

Needed are the last versions of each dataset's history, and the version and split that any bundle of the store was
trained on, so that every model can be evaluated, audited and asked about its people. With them go their shards, splits,
validations and the feature blocks that a run on one of these splits could use. What was written within the last day is
never touched: an ingest may be on its way. Bundles, checkpoints, evaluations, rollouts, assignments, histories and the
list of the forgotten stay in any case.

Versions go first and shards last, so that no version ever lists a shard that is gone; what was ended half-way is
completed by the next.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kubevox import storage
from kubevox.data.dataset import DatasetVersion, history, load_dataset, read_utterances
from kubevox.data.dataset import versions as all_versions
from kubevox.errors import StorageError
from kubevox.features.blocks import Block, block_key, read_index
from kubevox.progress import ProgressBar

__all__ = ["Garbage", "collect", "find_garbage"]

DAY_S = 86_400.0
_WRITING_S = 3600.0  # for so long a writer may pause, whatever age is asked for
_HEADS = {
    "datasets": "dataset.json",
    "splits": "certificate.json",
    "validations": "validation.json",
    "bundles": "bundle.json",
    "cascades": "cascade.json",
}
_ORDER = ("datasets", "memo", "splits", "validations", "features", "shards", "unfinished")


@dataclass(frozen=True)
class Garbage:
    """What nobody needs.

    Attributes:
        store: the store.
        kept: the hash of each version that stays, and why: the datasets that have it among their last, ``bundle`` or
            ``new``.
        objects: what goes, in the order in which it goes: each object or folder by its path, with its size in bytes.
        older_than_s: how long nothing may have been written to it.
    """

    store: str
    kept: Mapping[str, tuple[str, ...]]
    objects: Mapping[str, int]
    older_than_s: float

    @property
    def bytes(self) -> int:
        """What it takes up."""
        return sum(self.objects.values())

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Objects and bytes of each kind: datasets, memo, splits, validations, features, shards, unfinished."""
        kinds: dict[str, tuple[int, int]] = {}
        for path, size in self.objects.items():
            count, total = kinds.get(_kind(path), (0, 0))
            kinds[_kind(path)] = (count + 1, total + size)
        return kinds


@dataclass
class _Unit:
    """A folder that is there as a whole or not at all, or an object."""

    path: str
    bytes: int = 0
    modified: float = 0.0
    members: set[str] = field(default_factory=set)


def find_garbage(store: str, keep: int = 3, min_age_s: float = DAY_S) -> Garbage:
    """Find what nobody needs; nothing is removed.

    Args:
        store: a folder or ``s3://bucket/prefix``.
        keep: how many versions of each dataset's history stay: those that were current last.
        min_age_s: what was written later, in seconds, stays; what is not finished stays for an hour in any case.

    Raises:
        StorageError: the store does not answer, or something is damaged that tells what is needed; then nothing is
            known to be garbage.
    """
    since = time.time() - min_age_s
    units = _units(store)
    old = {path for path, unit in units.items() if unit.modified <= since}
    kept = _kept(store, units, old, keep)
    needed = {f"datasets/{digest}" for digest in kept}
    versions = {digest: load_dataset(storage.join(store, "datasets", digest)) for digest in kept}
    needed |= {shard.name for version in versions.values() for shard in version.shards}
    made_of: dict[str, dict[str, str]] = {"splits": {}, "validations": {}}
    for kind, paths in made_of.items():
        for path in _of(units, kind):
            told = _head(store, units[path])
            if told is None:
                needed.add(path)  # half of it, in a bucket
            elif (digest := told["dataset"]["hash"] if kind == "splits" else told["dataset_hash"]) in kept:
                paths[path] = digest
        needed |= set(paths)
    needed |= _usable_features(store, units, versions, made_of["splits"], made_of["validations"])
    swept = {path for kind in ("datasets", "splits", "validations", "features", "shards") for path in _of(units, kind)}
    gone = (swept & old) - needed
    gone |= {path for path in _of(units, "memo") if path in old and _is_stale(store, path, units, gone)}
    sizes = {path: units[path].bytes for path in gone} | _unfinished(store, units, min(since, time.time() - _WRITING_S))
    ordered = sorted(sizes, key=lambda path: (_ORDER.index(_kind(path)), _is_block(path), path))
    return Garbage(store, kept, {path: sizes[path] for path in ordered}, min_age_s)


def collect(garbage: Garbage) -> list[str]:
    """Remove it.

    Returns:
        What was removed beside it: what writers that were killed left behind in a bucket, which has no name.

    Raises:
        StorageError: something could not be removed.
    """
    named = [path for path in garbage.objects if _kind(path) != "unfinished"]
    with ProgressBar("gc", len(named), "objects") as bar:
        for kind, paths in itertools.groupby(named, _kind):
            needed = _needed_meanwhile(garbage.store, kind)
            for path in paths:
                if path not in needed:
                    storage.delete(storage.join(garbage.store, path))
                bar.update()
    return storage.sweep(garbage.store, max(garbage.older_than_s, _WRITING_S))


def _needed_meanwhile(store: str, kind: str) -> set[str]:
    """What others began to need since the search: versions made current again, and old shards in new versions."""
    if kind == "datasets":
        return {f"datasets/{history.current(store, name)}" for name in history.names(store)}
    if kind == "shards":
        return {shard.name for version in all_versions(store) for shard in version.shards}
    return set()


def _units(store: str) -> dict[str, _Unit]:
    units: dict[str, _Unit] = {}
    for one in storage.walk(store):
        path = one.uri[len(store.rstrip("/")) + 1 :]
        kind, _, rest = path.partition("/")
        name = rest.partition("/")[0]
        where = f"{kind}/{name}" if kind in _HEADS and "/" in rest else path
        unit = units.setdefault(where, _Unit(where))
        unit.bytes += one.size
        unit.modified = max(unit.modified, one.modified)
        unit.members.add(path)
    return units


def _kept(store: str, units: Mapping[str, _Unit], old: set[str], keep: int) -> dict[str, tuple[str, ...]]:
    reasons: dict[str, list[str]] = {}
    for name in history.names(store):
        newest_first = dict.fromkeys(entry.dataset for entry in reversed(history.history(store, name)))
        # At least the current one, whatever is asked for; what was erased counts for nothing.
        there = [digest for digest in newest_first if f"datasets/{digest}" in units]
        for digest in there[: max(1, keep)]:
            reasons.setdefault(digest, []).append(name)
    for path in _of(units, "bundles"):
        told = _head(store, units[path])
        if told is not None:
            reasons.setdefault(told["dataset_hash"], []).append("bundle")
    for path in _of(units, "datasets"):
        if path not in old:
            reasons.setdefault(path.partition("/")[2], []).append("new")
    whole = {path.partition("/")[2] for path in _of(units, "datasets") if f"{path}/dataset.json" in units[path].members}
    return {digest: tuple(dict.fromkeys(why)) for digest, why in reasons.items() if digest in whole}


def _usable_features(
    store: str,
    units: Mapping[str, _Unit],
    versions: Mapping[str, DatasetVersion],
    splits: Mapping[str, str],
    validations: Mapping[str, str],
) -> set[str]:
    """The blocks and indexes that a run on one of the splits could use.

    A block is named by its utterances, frontend and recipe. The names that a run would look for are computed, under
    each frontend and recipe that any index of the store has; no block is opened.

    Args:
        store: the store.
        units: what is in it.
        versions: the versions that stay, by hash.
        splits: the splits that stay, and the hash of each one's version.
        validations: likewise.
    """
    listed = {
        path: read_index(storage.join(store, path)).blocks for path in units if path.startswith("features/index/")
    }
    kinds = {_meaning(block): block for blocks in listed.values() for block in blocks}
    if not kinds:
        return set()
    ids_of: dict[str, dict[str, list[str]]] = {}
    names: set[str] = set()
    for path, digest in splits.items():
        if digest not in ids_of:
            ids_of[digest] = _ids_by_shard(store, versions[digest], validations)
        wanted = _table(storage.join(store, path, "split.parquet"), "utterance", "split")
        for members in ids_of[digest].values():
            everything = [id for id in members if id in wanted]
            for ids in (everything, [id for id in everything if wanted[id] == "train"]):
                if ids:
                    names |= {block_key(ids, one.frontend_config, one.recipe_config) for one in kinds.values()}
    indexes = {path for path, members in listed.items() if all(block.key in names for block in members)}
    return indexes | {f"features/{key}.parquet" for key in names}


def _ids_by_shard(store: str, version: DatasetVersion, validations: Mapping[str, str]) -> dict[str, list[str]]:
    """Each shard's utterance ids: a validation lists them too, and is smaller to fetch than the audio."""
    shards: dict[str, list[str]] = {}
    known = next((path for path, digest in validations.items() if digest == version.hash), None)
    if known is not None:
        rows = _read(storage.join(store, known, "rows.parquet"), ["id", "shard"])
        for id, shard in zip(rows["id"].to_pylist(), rows["shard"].to_pylist(), strict=True):
            shards.setdefault(shard, []).append(id)
    else:
        for uri in version.shard_uris:
            shards[uri] = [utterance.id for utterance in read_utterances(uri)]
    return {shard: list(dict.fromkeys(ids)) for shard, ids in shards.items()}


def _meaning(block: Block) -> tuple[str, str]:
    return block.frontend_config.model_dump_json(), block.recipe_config.model_dump_json()


def _table(uri: str, key: str, value: str) -> dict[str, str]:
    rows = _read(uri, [key, value])
    return dict(zip(rows[key].to_pylist(), rows[value].to_pylist(), strict=True))


def _read(uri: str, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(storage.fetch(uri), columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri}: damaged ({error}); delete its folder and run again") from None


def _is_stale(store: str, path: str, units: Mapping[str, _Unit], gone: set[str]) -> bool:
    """Whether what a stage remembers points at what is not there, or will not be."""
    answer = storage.read_json(storage.join(store, path))
    if not isinstance(answer, dict):
        raise StorageError(f"{storage.join(store, path)}: damaged: no stage's answer; delete it")
    stage = path.split("/")[1]
    if stage == "ingest":
        named = f"datasets/{_last(answer.get('uri', ''))}"
    elif stage == "ingest-shard":
        named = f"shards/{answer.get('shard', {}).get('sha256')}.parquet"
    elif stage == "train":
        named = f"bundles/{_last(answer.get('bundle_uri', ''))}"
    elif stage == "cascade":
        named = f"cascades/{_last(answer.get('uri', ''))}"
    else:
        return False
    return named not in units or named in gone


def _unfinished(store: str, units: Mapping[str, _Unit], since: float) -> dict[str, int]:
    """What writers that were killed left behind, by its path."""
    whole = {path for unit in units.values() for path in unit.members}
    left = {}
    for one in storage.walk(store, unfinished=True):
        path = one.uri[len(store.rstrip("/")) + 1 :]
        if path not in whole and one.modified <= since:
            left[f"unfinished/{path}"] = one.size
    return left


def _head(store: str, unit: _Unit) -> dict[str, Any] | None:
    """What a folder says of itself; None where it has no head and so is not there for its readers."""
    head = f"{unit.path}/{_HEADS[_kind(unit.path)]}"
    if head not in unit.members:
        return None
    told = storage.read_json(storage.join(store, head))
    wanted = {"bundles": "dataset_hash", "validations": "dataset_hash", "splits": "dataset"}[_kind(unit.path)]
    if not isinstance(told, dict) or wanted not in told:
        raise StorageError(f"{storage.join(store, head)}: damaged: does not say which dataset version it is of")
    return told


def _of(units: Mapping[str, _Unit], kind: str) -> list[str]:
    return sorted(path for path in units if _kind(path) == kind)


def _kind(path: str) -> str:
    return path.partition("/")[0]


def _is_block(path: str) -> bool:
    """Indexes go before the blocks that they name."""
    return _kind(path) == "features" and not path.startswith("features/index/")


def _last(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]
