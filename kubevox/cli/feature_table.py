"""Features of recordings that are in no dataset, in one Parquet file that appears whole or not at all."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kubevox.cli.options import read_recording
from kubevox.config import AudioLimits, FeaturesConfig, FrontendConfig, RecipeConfig
from kubevox.data.audio import Waveform, decode
from kubevox.errors import AudioError, ConfigError, StorageError
from kubevox.features.augmentation import recipe_version
from kubevox.features.extraction import Extracted, Extractor, Source
from kubevox.features.frontends.base import Frontend
from kubevox.features.pins import pinned, recordings_in
from kubevox.progress import ProgressBar
from kubevox.provenance import canonical_json

__all__ = ["Summary", "find_recordings", "write_features"]

_FORMAT = 1
_ROW_GROUP = 16 << 20  # bytes of values gathered before they are written


@dataclass(frozen=True)
class Summary:
    """What was computed.

    Attributes:
        recordings: whose features were computed.
        rows: of the table: one a recording and recipe.
        failed: recordings that could not be used.
        hours: of audio in those that could.
        seconds: what the work took, from the first recording to the finished file.
        clips_per_s: recordings computed a second.
        output: the file; None where no recording could be used and there is none.
    """

    recordings: int
    rows: int
    failed: int
    hours: float
    seconds: float
    clips_per_s: float
    output: str | None


def find_recordings(paths: Sequence[Path]) -> list[Path]:
    """The files, and the recordings in the folders and their subfolders (sorted), each once.

    A file that is named is taken as it is, whatever its name ends in.

    Raises:
        ConfigError: a folder without recordings.
    """
    found = (file for path in paths for file in (recordings_in(path, "PATHS") if path.is_dir() else [path]))
    return list(dict.fromkeys(found))


def write_features(
    files: Sequence[Path],
    output: Path,
    features: FeaturesConfig,
    frontend: str,
    recipes: Sequence[str],
    limits: AudioLimits,
    refused: Callable[[AudioError], None],
) -> Summary:
    """Compute the features of recordings under one frontend and some recipes, and write them to a Parquet file.

    A row a recording and recipe, in the order of the files and, within a recording, of the recipes: ``path``, ``id``
    (the utterance's id, by which recipes draw: rows equal those of a feature block), ``recipe``, ``values`` (a tensor
    of fixed shape) and, where the frontend listens for speech, ``speech_ratio``. The file's metadata say under
    ``kubevox``, as JSON, what was computed. What was there under the name is replaced once everything is done.

    Args:
        files: the recordings; any number takes the memory of a few chunks.
        output: the file to write.
        features: the frontends and recipes that there are, the device, the batch size and the workers.
        frontend: a name among the former.
        recipes: names among the latter.
        limits: what is accepted as a recording.
        refused: told of each recording that cannot be used; the others are computed all the same.

    Raises:
        ConfigError: an unknown name, or a frontend that cannot be built.
        StorageError: the file cannot be written.
    """
    config = pinned(_named("frontend", frontend, features.frontends))
    wanted = {name: pinned(_named("recipe", name, features.recipes)) for name in recipes}
    # Two names may mean the same: it is computed once.
    targets = tuple(dict.fromkeys((config, recipe) for recipe in wanted.values()))
    extractor = Extractor([config], features.device, features.batch_size, features.workers, collect_failures=True)
    drawn: collections.deque[str] = collections.deque()

    def sources() -> Iterator[Source]:
        for file in files:
            drawn.append(str(file))
            yield Source(None, str(file), functools.partial(_decode, file, limits), targets)

    recordings = failed = 0
    hours, started = 0.0, time.monotonic()
    with _whole(output) as (temporary, keep):
        table = _Table(temporary, extractor.frontends[config], frontend, wanted)
        with contextlib.closing(table), ProgressBar("features", len(files), "clips") as bar:
            for done in extractor(sources()):
                unusable = {source.name for source, _ in done.failed}
                # What comes out has the order of what went in.
                paths = [path for path in (drawn.popleft() for _ in range(done.recordings)) if path not in unusable]
                for _, error in done.failed:
                    refused(error)
                table.add(paths, done)
                recordings, failed = recordings + len(paths), failed + len(done.failed)
                hours += done.seconds / 3600
                elapsed = max(time.monotonic() - started, 1e-9)
                speed = f"{(recordings + failed) / elapsed:.0f} clips/s"
                bar.update(done.recordings, speed=speed, audio=f"{hours / elapsed:.3f} h/s")
        if recordings:
            keep()
    seconds = max(time.monotonic() - started, 1e-9)
    return Summary(
        recordings,
        recordings * len(wanted),
        failed,
        round(hours, 6),
        round(seconds, 3),
        round(recordings / seconds, 1),
        str(output) if recordings else None,
    )


class _Table:
    """Rows of features on their way into a file, a row group at a time."""

    def __init__(self, path: Path, frontend: Frontend, name: str, recipes: Mapping[str, RecipeConfig]) -> None:
        config: FrontendConfig = frontend.config
        self._config, self._recipes = config, recipes
        self._dtype, self._size = np.dtype(config.stored), int(np.prod(frontend.shape))
        self._type = pa.fixed_shape_tensor(pa.from_numpy_dtype(self._dtype), frontend.shape)
        columns = [pa.field(column, pa.string(), nullable=False) for column in ("path", "id", "recipe")]
        columns.append(pa.field("values", self._type))
        if config.vad is not None:
            columns.append(pa.field("speech_ratio", pa.float32()))
        described = {
            "format": _FORMAT,
            "frontend": {"name": name, "config": config.model_dump(mode="json"), "version": frontend.version},
            "shape": list(frontend.shape),
            "feature_names": frontend.feature_names,
            "recipes": {
                name: {"config": recipe.model_dump(mode="json"), "version": recipe_version(recipe)}
                for name, recipe in recipes.items()
            },
        }
        self._schema = pa.schema(columns, metadata={"kubevox": canonical_json(described)})
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0
        # Floats of audio hardly compress: reading fast is worth more.
        self._file = pq.ParquetWriter(
            path, self._schema, compression="none", use_dictionary=["recipe"], write_statistics=["path", "id", "recipe"]
        )

    def add(self, paths: Sequence[str], done: Extracted) -> None:
        """Append a chunk's rows; ``paths`` are its recordings that could be used."""
        if not paths:
            return
        found = [done.values[self._config, recipe] for recipe in self._recipes.values()]
        ids = found[0][0]
        # [recordings, recipes, *shape]: a recording's rows lie together, whatever the chunks were.
        values: npt.NDArray[Any] = np.stack([some for _, some in found], axis=1).astype(self._dtype, copy=False)
        times = len(self._recipes)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), self._size)
        columns = [
            pa.array([_printable(path) for path in paths for _ in range(times)], pa.string()),
            pa.array([id for id in ids for _ in range(times)], pa.string()),
            pa.array(list(self._recipes) * len(paths), pa.string()),
            pa.ExtensionArray.from_storage(self._type, flat),
        ]
        if self._config.vad is not None:
            ratios = done.speech_ratio[self._config]
            columns.append(pa.array([ratios[id] for id in ids for _ in range(times)], pa.float32()))
        self._waiting.append(pa.record_batch(columns, schema=self._schema))
        self._bytes += values.nbytes
        if self._bytes >= _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting, self._bytes = [], 0


@contextlib.contextmanager
def _whole(output: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A temporary name beside the output, and a function that makes it the output; gone otherwise, also on Ctrl-C.

    Raises:
        ConfigError: there is no folder for the output, or a folder of its name.
        StorageError: the file cannot be written.
    """
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}; create it first")
    if output.is_dir():
        raise ConfigError(
            f"--output {output}: this is a folder; name a file in it, such as {output / 'features.parquet'}"
        )
    try:
        descriptor, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
        os.close(descriptor)
        temporary = Path(name)
        kept = False

        def keep() -> None:
            nonlocal kept
            kept = True

        try:
            yield temporary, keep
            if kept:
                temporary.chmod(0o644)
                os.replace(temporary, output)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"--output {output}: cannot be written ({error.strerror or error})") from None


def _decode(file: Path, limits: AudioLimits) -> Waveform:
    return decode(read_recording(file, limits), limits, str(file))[0]


def _named(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise ConfigError(
            f"--{kind} {name}: the configuration has no such {kind}; known are {', '.join(sorted(known))}"
        )
    return known[name]


def _printable(path: str) -> str:
    # A name of a file may be any bytes, a Parquet string may not.
    return path.encode("utf-8", "backslashreplace").decode()
