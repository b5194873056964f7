"""Feature blocks: the features of one shard's selected utterances under one frontend and one recipe.

A block is a Parquet file, ``<store>/features/<key>.parquet``: a column ``id`` and a column ``values`` of fixed-shape
float32 tensors. Its key is the hash of the utterance ids, the frontend (parameters and version) and the recipe; its
checksum lies in the file's metadata and is compared whenever it is read. The first writer wins. The device is not part
of the key: a CPU and a GPU agree within the tolerance of float32.

What a shard's extraction leaves for training is an index, ``<store>/features/index/<hash>.json``: a few lines that name
the blocks by their keys, so that a store can be moved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
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
from kubevox.data.dataset import read_audio, read_utterances
from kubevox.errors import AudioError, ConfigError, StorageError
from kubevox.features.augmentation import augment
from kubevox.features.frontends import build_frontend, feature_shape, frontend_version
from kubevox.progress import ProgressBar, note
from kubevox.provenance import canonical_json, content_hash

if TYPE_CHECKING:
    from kubevox.features.frontends.base import Frontend

__all__ = ["Block", "BlockIndex", "block_key", "extract_shard", "load_features", "read_index"]

_FORMAT = 1
_SPLITS = ("train", "validation", "test")
_DEFAULT = "default"
_CHUNK = 128  # utterances decoded before they are computed and written; bounds the memory, and is a row group


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


def block_key(
    ids: Iterable[str], frontend_config: FrontendConfig, frontend_version: int, recipe_config: RecipeConfig
) -> str:
    """The name of a block: the hash of the utterances, the frontend with its version, and the recipe with its seed."""
    return content_hash(
        ["feature-block", _FORMAT],
        sorted(ids),
        [frontend_config.model_dump(mode="json"), frontend_version],
        recipe_config.model_dump(mode="json"),
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
    once, and prepared once for each frontend, a chunk at a time.

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
    meanings = {(block.frontend_config, block.frontend_version, block.recipe_config) for block in blocks}
    if len(meanings) > 1:
        raise StorageError(f"{what}: the indexes hold features of different configurations under these names")
    if not meanings:
        raise StorageError(f"{what}: no such features in the indexes; run extract_features with this configuration")
    rows: dict[str, list[int]] = {}
    for row, id in enumerate(ids):
        rows.setdefault(id, []).append(row)
    values = np.empty((len(ids), *feature_shape(blocks[0].frontend_config)), np.float32)
    missing = set(rows)
    for block in {block.key: block for block in blocks}.values():
        for names, group in _read(block):
            for name, value in zip(names, group, strict=True):
                for row in rows.get(name, ()):
                    values[row] = value
            missing.difference_update(names)
    if missing:
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
        self._type = pa.fixed_shape_tensor(pa.float32(), self._shape)
        self._schema = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("values", self._type)])
        self._digest = hashlib.sha256()
        self._rows = 0
        # Floats of audio hardly compress: reading fast is worth more.
        self._file = pq.ParquetWriter(
            path, self._schema, compression="none", use_dictionary=False, write_statistics=["id"]
        )

    def add(self, ids: list[str], values: npt.NDArray[np.float32]) -> None:
        """Append rows: float32 [len(ids), *shape]."""
        _digest_rows(self._digest, ids, values)
        width = int(np.prod(self._shape))
        flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
        columns = [pa.array(ids, pa.string()), pa.ExtensionArray.from_storage(self._type, flat)]
        self._file.write_table(pa.table(columns, schema=self._schema))
        self._rows += len(ids)

    def finish(self, block: Block) -> None:
        """Write the metadata and close the file."""
        description = {
            "format": _FORMAT,
            "key": block.key,
            "frontend": {"config": block.frontend_config.model_dump(mode="json"), "version": block.frontend_version},
            "recipe": block.recipe_config.model_dump(mode="json"),
            "shape": list(self._shape),
            "rows": self._rows,
            "sha256": self._digest.hexdigest(),
        }
        self._file.add_key_value_metadata({"kubevox": canonical_json(description)})
        self._file.close()

    def close(self) -> None:
        """Let go of the file; harmless after :meth:`finish`."""
        self._file.close()


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
    config, version = features.frontends[frontend], frontend_version(features.frontends[frontend])
    key = block_key(ids, config, version, features.recipes[recipe])
    return Block(
        key=key,
        uri=_uri_of(store, key),
        rows=len(ids),
        frontend=frontend,
        frontend_config=config,
        frontend_version=version,
        recipe=recipe,
        recipe_config=features.recipes[recipe],
    )


def _compute(
    shard_uri: str, tasks: list[_Task], features: FeaturesConfig, store: str, source_ids: Mapping[str, str]
) -> None:
    wanted = {id for task in tasks for id in task.ids}
    # Two names may mean one frontend: it is built, and each recording prepared for it, once.
    configs = dict.fromkeys(task.block.frontend_config for task in tasks)
    frontends = {config: build_frontend(config, features.device) for config in configs}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(storage.staging(store))
        writers = [
            _BlockWriter(folder / f"{index}.parquet", task.block.frontend_config) for index, task in enumerate(tasks)
        ]
        for writer in writers:
            stack.callback(writer.close)
        bar = stack.enter_context(ProgressBar("extract_features", len(wanted), "clips"))
        chunk: list[tuple[str, dict[FrontendConfig, npt.NDArray[np.float32]]]] = []
        for id, waveform in read_audio(shard_uri, wanted):
            needed = dict.fromkeys(task.block.frontend_config for task in tasks if id in task.ids)
            try:
                chunk.append((id, {config: frontends[config].prepare(waveform) for config in needed}))
            except AudioError as error:
                raise AudioError(error.reason, f"{source_ids[id]}: {error}") from None
            if len(chunk) >= max(_CHUNK, features.batch_size):
                _write_chunk(chunk, tasks, writers, frontends, features.batch_size)
                bar.update(len(chunk))
                chunk.clear()
        if chunk:
            _write_chunk(chunk, tasks, writers, frontends, features.batch_size)
            bar.update(len(chunk))
        for task, writer in zip(tasks, writers, strict=True):
            writer.finish(task.block)
            content = writer.path.read_bytes()
            if task.damaged:
                storage.write_bytes(task.block.uri, content)
            else:
                storage.create(task.block.uri, content)


def _write_chunk(
    chunk: list[tuple[str, dict[FrontendConfig, npt.NDArray[np.float32]]]],
    tasks: list[_Task],
    writers: list[_BlockWriter],
    frontends: Mapping[FrontendConfig, Frontend],
    batch_size: int,
) -> None:
    for task, writer in zip(tasks, writers, strict=True):
        config, recipe = task.block.frontend_config, task.block.recipe_config
        chosen = [(id, prepared[config]) for id, prepared in chunk if id in task.ids]
        if chosen:
            samples = [augment(samples, id, recipe) for id, samples in chosen]
            writer.add([id for id, _ in chosen], frontends[config].extract(samples, batch_size))


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
        digest.update(np.ascontiguousarray(value, dtype="<f4").data)


def _uri_of(store: str, key: str) -> str:
    return storage.join(store, "features", f"{key}.parquet")


def _is_frontend(block: Block, frontend: str | FrontendConfig) -> bool:
    if isinstance(frontend, str):
        return block.frontend == frontend
    return (block.frontend_config, block.frontend_version) == (frontend, frontend_version(frontend))


def _is_recipe(block: Block, recipe: str | RecipeConfig) -> bool:
    return block.recipe == recipe if isinstance(recipe, str) else block.recipe_config == recipe


def _name(thing: str | FrontendConfig | RecipeConfig) -> str:
    return repr(thing) if isinstance(thing, str) else thing.kind
