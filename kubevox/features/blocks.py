"""Feature blocks: the features of one shard's selected utterances under one frontend and one recipe.

A block is a Parquet file, ``<store>/features/<key>.parquet``: a column ``id``, a column ``values`` of fixed-shape
tensors (float32, or float16 where the frontend says so) and, where the frontend listens for speech, a column
``speech_ratio``. Its key is the hash of the utterance ids, the frontend and the recipe, each with its parameters, the
content of the files it names and the version of its code. Its checksum lies in the file's metadata and is compared
whenever it is read. A block appears whole or not at all, and the first writer wins, so any number of workers may fill
one store at once; what two of them compute twice is equal. The device is not part of the key: a CPU and a GPU agree
within the tolerance of float32.

What a shard's extraction leaves for training is an index, ``<store>/features/index/<hash>.json``: a few lines that name
the blocks by their keys, so that a store can be moved.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kubevox import storage
from kubevox.config import FeaturesConfig, FrontendConfig, RecipeConfig, Section, parse_section
from kubevox.data.audio import decode_stored
from kubevox.data.dataset import read_encoded, read_utterances
from kubevox.errors import ConfigError, StorageError
from kubevox.features.augmentation import recipe_version
from kubevox.features.frontends import feature_shape, frontend_version
from kubevox.features.pins import identity, pinned
from kubevox.progress import ProgressBar, note
from kubevox.provenance import canonical_json, content_hash

if TYPE_CHECKING:
    from kubevox.features.extraction import Extracted, Target

__all__ = ["Block", "BlockIndex", "block_key", "extract_shard", "load_features", "read_index"]

_FORMAT = 2
_SPLITS = ("train", "validation", "test")
_DEFAULT = "default"
_ROW_GROUP = 16 << 20  # bytes of values gathered before they are written


class Block(Section):
    """One feature block as an index describes it; ``frontend`` and ``recipe`` are the names the run's config gave.

    ``uri`` is where the block lies beside the index it was read from; an index holds the key only.
    """

    key: str
    uri: str
    rows: int
    frontend: str
    frontend_config: FrontendConfig
    frontend_version: int
    recipe: str
    recipe_config: RecipeConfig
    recipe_version: list[int]


@dataclass(frozen=True)
class BlockIndex:
    """The blocks of one shard.

    Attributes:
        uri: of the index itself; what a pipeline's stage passes on.
        blocks: one for each frontend and recipe that has utterances in the shard; none where the shard has none.
        computed: how many of them this call computed (not stored).
        reused: how many it found in the store (not stored).
    """

    uri: str
    blocks: tuple[Block, ...]
    computed: int = 0
    reused: int = 0


def block_key(ids: Iterable[str], frontend_config: FrontendConfig, recipe_config: RecipeConfig) -> str:
    """The name of a block: the hash of the utterances, the frontend and the recipe.

    Parameters, code and files count: a frontend or recipe that names files is to be pinned to their content.
    """
    return content_hash(
        ["feature-block", _FORMAT],
        sorted(ids),
        [identity(frontend_config), frontend_version(frontend_config)],
        [identity(recipe_config), recipe_version(recipe_config)],
    )


def extract_shard(
    shard_uri: str,
    wanted: Mapping[str, str],
    features: FeaturesConfig,
    plan: Mapping[str, Sequence[str]],
    store: str,
) -> BlockIndex:
    """Bring the features of a shard's wanted utterances into the store.

    The recipe ``default`` covers all wanted utterances, any other only those of the training split. Blocks that are in
    the store and sound are not computed again; where all are, no audio is decoded. Otherwise each recording is decoded
    once, and cut and resampled once for each frontend, on all cores or on a GPU.

    Args:
        shard_uri: a shard of a dataset version.
        wanted: the split (``train``, ``validation`` or ``test``) of each wanted utterance id, of this shard or others.
        features: the frontends and recipes that ``plan`` names, the device and the batch size.
        plan: the recipes wanted of each frontend, by name.
        store: a folder or ``s3://bucket/prefix``.

    Returns:
        The shard's index; without blocks where the shard holds nothing wanted.

    Raises:
        AudioError: an utterance is too short for a frontend; the message names it.
        ConfigError: ``plan`` names a frontend or a recipe that ``features`` does not have.
        StorageError: the shard is missing or damaged.
    """
    if strange := sorted(set(wanted.values()).difference(_SPLITS)):
        raise ValueError(f"unknown split {strange[0]!r}; expected one of {', '.join(_SPLITS)}")
    store = storage.absolute(store)
    source_ids = {row.id: row.source_id for row in read_utterances(shard_uri) if row.id in wanted}
    blocks: list[Block] = []
    pending: list[_Task] = []
    for frontend, recipe in _planned(features, plan):
        # Everything but the recordings as they are is for training only: protocol before score.
        ids = [id for id in source_ids if recipe == _DEFAULT or wanted[id] == "train"]
        if not ids:
            continue
        block = _describe(features, frontend, recipe, ids, store)
        blocks.append(block)
        if not (there := storage.exists(block.uri)) or not _is_sound(block):
            pending.append(_Task(block, frozenset(ids), damaged=there))
    if pending:
        _compute(shard_uri, pending, features, store, source_ids)
    content = {"format": _FORMAT, "blocks": [block.model_dump(mode="json", exclude={"uri"}) for block in blocks]}
    data = canonical_json(content).encode()
    uri = storage.join(store, "features", "index", f"{content_hash(content)}.json")
    if not storage.create(uri, data) and storage.read_bytes(uri) != data:
        storage.write_bytes(uri, data)  # what was there is damaged
    return BlockIndex(uri, tuple(blocks), computed=len(pending), reused=len(blocks) - len(pending))


def read_index(uri: str) -> BlockIndex:
    """Read a shard's index.

    Raises:
        StorageError: it is missing or damaged.
    """
    content = storage.read_json(uri)
    store = uri.rpartition("/features/index/")[0]
    try:
        blocks = tuple(
            parse_section(Block, {**block, "uri": _uri_of(store, block["key"])}, "block") for block in content["blocks"]
        )
    except (ConfigError, KeyError, TypeError) as error:
        raise StorageError(f"{uri}: not an index of feature blocks ({error})") from None
    return BlockIndex(uri, blocks)


def load_features(
    index_uris: Iterable[str], frontend: str | FrontendConfig, recipe: str | RecipeConfig, ids: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Features of the utterances, in the order of ``ids``: float32 [len(ids), *shape].

    Args:
        index_uris: the indexes of the shards that hold the utterances.
        frontend: the frontend's configuration, of which only blocks of the present version count; or the name it has
            in the indexes, where that means the same in all of them.
        recipe: the recipe's configuration, or its name.
        ids: the wanted utterances.

    Raises:
        StorageError: an utterance has no such features, a block is missing or damaged, or a name is ambiguous.
    """
    blocks = [block for uri in index_uris for block in read_index(uri).blocks]
    blocks = [block for block in blocks if _is_frontend(block, frontend) and _is_recipe(block, recipe)]
    what = f"frontend {_name(frontend)}, recipe {_name(recipe)}"
    meanings = {canonical_json([_meaning(block), identity(block.recipe_config)]) for block in blocks}
    if len(meanings) > 1:
        raise StorageError(f"{what}: the indexes hold features of different configurations under these names")
    if not meanings:
        raise StorageError(f"{what}: no such features in the indexes; run extract_features with this configuration")
    rows: dict[str, list[int]] = {}
    for row, id in enumerate(ids):
        rows.setdefault(id, []).append(row)
    values: npt.NDArray[np.float32] | None = None
    missing = set(rows)
    for block in {block.key: block for block in blocks}.values():
        for names, group in _read(block):
            if values is None:  # the shape as it was stored: an encoder, which knows it too, may be elsewhere
                values = np.empty((len(ids), *group.shape[1:]), np.float32)
            for name, value in zip(names, group, strict=True):
                for row in rows.get(name, ()):
                    values[row] = value
            missing.difference_update(names)
    if missing or values is None:
        some = ", ".join(sorted(missing)[:3])
        raise StorageError(f"{what}: {len(missing)} of {len(rows)} utterances have no features, such as {some}")
    return values


@dataclass(frozen=True)
class _Task:
    """A block that is to be computed; ``damaged`` where something unusable has its name."""

    block: Block
    ids: frozenset[str]
    damaged: bool


class _BlockWriter:
    """Writes a block's rows, a row group at a time, into a file that nobody sees yet."""

    def __init__(self, path: Path, config: FrontendConfig) -> None:
        self.path, self._shape = path, feature_shape(config)
        self._dtype = np.dtype(config.stored)
        self._type = pa.fixed_shape_tensor(pa.from_numpy_dtype(self._dtype), self._shape)
        columns = [pa.field("id", pa.string(), nullable=False), pa.field("values", self._type)]
        if config.vad is not None:
            columns.append(pa.field("speech_ratio", pa.float32()))
        self._schema = pa.schema(columns)
        self._digest = hashlib.sha256()
        self._rows = 0
        self._waiting: list[tuple[list[str], npt.NDArray[Any], list[float] | None]] = []
        self._bytes = 0
        # Floats of audio hardly compress: reading fast is worth more.
        self._file = pq.ParquetWriter(
            path, self._schema, compression="none", use_dictionary=False, write_statistics=["id"]
        )

    def add(self, ids: list[str], values: npt.NDArray[np.float32], speech_ratio: list[float] | None = None) -> None:
        """Append rows: float32 [len(ids), *shape], and the share of speech in each recording."""
        self._waiting.append((ids, values.astype(self._dtype, copy=False), speech_ratio))
        self._bytes += self._waiting[-1][1].nbytes
        if self._bytes >= _ROW_GROUP:
            self._flush()

    def finish(self, block: Block) -> None:
        """Write what is left and the metadata, and close the file."""
        self._flush()
        description = {
            "format": _FORMAT,
            "key": block.key,
            "frontend": {"config": block.frontend_config.model_dump(mode="json"), "version": block.frontend_version},
            "recipe": {"config": block.recipe_config.model_dump(mode="json"), "version": block.recipe_version},
            "shape": list(self._shape),
            "rows": self._rows,
            "sha256": self._digest.hexdigest(),
        }
        self._file.add_key_value_metadata({"kubevox": canonical_json(description)})
        self._file.close()

    def close(self) -> None:
        """Let go of the file; harmless after :meth:`finish`."""
        self._file.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        ids = [id for some, _, _ in self._waiting for id in some]
        values = np.concatenate([some for _, some, _ in self._waiting])
        _digest_rows(self._digest, ids, values)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), int(np.prod(self._shape)))
        columns = [pa.array(ids, pa.string()), pa.ExtensionArray.from_storage(self._type, flat)]
        if "speech_ratio" in self._schema.names:
            ratios = [ratio for _, _, some in self._waiting for ratio in some or ()]
            columns.append(pa.array(ratios, pa.float32()))
        self._file.write_table(pa.table(columns, schema=self._schema))
        self._rows += len(ids)
        self._waiting, self._bytes = [], 0


def _planned(features: FeaturesConfig, plan: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    for frontend, recipes in plan.items():
        _check_known("frontends", frontend, features.frontends)
        for recipe in recipes:
            _check_known("recipes", recipe, features.recipes)
        yield from ((frontend, recipe) for recipe in dict.fromkeys(recipes))


def _check_known(kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ConfigError(f"features.{kind}: there is no {name!r}; known are {', '.join(sorted(known))}")


def _describe(features: FeaturesConfig, frontend: str, recipe: str, ids: Collection[str], store: str) -> Block:
    frontend_config, recipe_config = pinned(features.frontends[frontend]), pinned(features.recipes[recipe])
    key = block_key(ids, frontend_config, recipe_config)
    return Block(
        key=key,
        uri=_uri_of(store, key),
        rows=len(ids),
        frontend=frontend,
        frontend_config=frontend_config,
        frontend_version=frontend_version(frontend_config),
        recipe=recipe,
        recipe_config=recipe_config,
        recipe_version=recipe_version(recipe_config),
    )


def _compute(
    shard_uri: str, tasks: list[_Task], features: FeaturesConfig, store: str, source_ids: Mapping[str, str]
) -> None:
    from kubevox.features.extraction import Extractor, Source

    wanted = {id for task in tasks for id in task.ids}
    # Two names may mean the same: it is computed once.
    by_target: dict[Target, list[int]] = {}
    for number, task in enumerate(tasks):
        by_target.setdefault((task.block.frontend_config, task.block.recipe_config), []).append(number)
    # Recordings that want the same share one tuple of it.
    plans: dict[tuple[Target, ...], tuple[Target, ...]] = {}

    def sources() -> Iterator[Source]:
        for id, flac in read_encoded(shard_uri, wanted):
            targets = tuple(target for target, numbers in by_target.items() if id in tasks[numbers[0]].ids)
            decode = functools.partial(decode_stored, flac, source_ids[id])
            yield Source(id, source_ids[id], decode, plans.setdefault(targets, targets))

    extractor = Extractor([config for config, _ in by_target], features.device, features.batch_size, features.workers)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(storage.staging(store))
        writers = [
            _BlockWriter(folder / f"{index}.parquet", task.block.frontend_config) for index, task in enumerate(tasks)
        ]
        for writer in writers:
            stack.callback(writer.close)
        stack.enter_context(extractor)
        bar = stack.enter_context(ProgressBar("extract_features", len(wanted), "clips"))
        hours, started = 0.0, time.monotonic()
        for done in extractor(sources()):
            _write(done, by_target, writers)
            hours += done.seconds / 3600
            elapsed = max(time.monotonic() - started, 1e-9)
            bar.update(done.recordings, audio=f"{hours:.2f} h", speed=f"{hours * 3600 / elapsed:.0f} x real time")
        for task, writer in zip(tasks, writers, strict=True):
            writer.finish(task.block)
            storage.create_file(task.block.uri, writer.path, replace=task.damaged)


def _write(done: Extracted, by_target: Mapping[Target, list[int]], writers: list[_BlockWriter]) -> None:
    for target, (ids, values) in done.values.items():
        ratios = done.speech_ratio.get(target[0])
        for number in by_target[target]:
            writers[number].add(ids, values, None if ratios is None else [ratios[id] for id in ids])


def _read(block: Block) -> Iterator[tuple[list[str], npt.NDArray[np.float32]]]:
    """A block's row groups: ids, and float32 [rows, *shape]. The checksum is compared after the last one.

    Raises:
        StorageError: the block is missing or damaged; what was read before must not be used.
    """
    path = storage.fetch(block.uri)
    try:
        with pq.ParquetFile(path) as file:
            description = json.loads(file.metadata.metadata[b"kubevox"])
            if description["key"] != block.key:
                raise ValueError("it holds another block's content")
            digest = hashlib.sha256()
            for number in range(file.num_row_groups):
                group = file.read_row_group(number, columns=["id", "values"])
                ids = group.column("id").to_pylist()
                values = group.column("values").combine_chunks().to_numpy_ndarray()
                _digest_rows(digest, ids, values)
                yield ids, values
            if digest.hexdigest() != description["sha256"]:
                raise ValueError("its checksum does not match its content")
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        if str(path) != block.uri:
            path.unlink(missing_ok=True)  # a copy in the cache: the next reader fetches the original again
        why = " ".join(str(error).split())
        raise StorageError(
            f"{block.uri}: damaged feature block ({why}); run extract_features again to replace it"
        ) from None


def _is_sound(block: Block) -> bool:
    try:
        for _ in _read(block):
            pass
    except StorageError as error:
        note(str(error).partition(";")[0] + "; computing it again")
        return False
    return True


def _digest_rows(digest: Any, ids: Iterable[str], values: npt.NDArray[np.float32]) -> None:
    for id, value in zip(ids, values, strict=True):
        digest.update(id.encode())
        digest.update(np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False).data)


def _uri_of(store: str, key: str) -> str:
    return storage.join(store, "features", f"{key}.parquet")


def _meaning(block: Block) -> list[Any]:
    return [identity(block.frontend_config), block.frontend_version]


def _is_frontend(block: Block, frontend: str | FrontendConfig) -> bool:
    if isinstance(frontend, str):
        return block.frontend == frontend
    return _meaning(block) == [identity(pinned(frontend)), frontend_version(frontend)]


def _is_recipe(block: Block, recipe: str | RecipeConfig) -> bool:
    if isinstance(recipe, str):
        return block.recipe == recipe
    return [identity(block.recipe_config), block.recipe_version] == [identity(pinned(recipe)), recipe_version(recipe)]


def _name(thing: str | FrontendConfig | RecipeConfig) -> str:
    return repr(thing) if isinstance(thing, str) else thing.kind
