"""Features of many recordings under many frontends and recipes, on all cores or a GPU, in bounded memory.

Each recording is decoded once; each frontend cuts and resamples it once; each recipe starts from there. Recordings of
one rate and length share every operation. On a CPU a process a core takes a chunk of recordings from bytes to features;
with a GPU threads decode ahead, into pinned memory, and the GPU resamples, augments and computes whole batches
while the results of the batch before travel back.
"""

from __future__ import annotations

import collections
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kubevox.config import FrontendConfig, RecipeConfig
from kubevox.data.audio import Waveform
from kubevox.errors import AudioError, KubevoxError
from kubevox.features.augmentation import augment_all, transforms, vocoder
from kubevox.features.frontends import Frontend, build_frontend
from kubevox.features.resampling import resample
from kubevox.processes import chunks, cores, die_with, keep_freed_memory

if TYPE_CHECKING:
    from kubevox.features.frontends.ssl import Ssl

__all__ = ["Extracted", "Extractor", "Source", "Target"]

Target = tuple[FrontendConfig, RecipeConfig]
Values = npt.NDArray[np.float32]

# Recordings a chunk: on a CPU enough for a chunk's small operations to cost little each, on a GPU enough to fill it.
_CPU_CHUNK, _GPU_CHUNK = 48, 256


@dataclass(frozen=True)
class Source:
    """A recording that can be decoded when its turn comes.

    Attributes:
        id: the utterance's id; recipes draw by it. None: its waveform's, computed once that is decoded.
        name: what the recording is called in errors.
        decode: gives its canonical waveform; called in a worker process, so it must be picklable.
        targets: the frontends and recipes wanted of it.
    """

    id: str | None
    name: str
    decode: Callable[[], Waveform]
    targets: Sequence[Target]


@dataclass
class Extracted:
    """The features of a chunk of recordings.

    Attributes:
        recordings: how many recordings the chunk had.
        seconds: their duration.
        values: for each target the ids of the recordings that wanted it, and float32 [ids, *shape], in their order.
        speech_ratio: of each recording (by id) for each frontend that listens for speech.
        failed: the recordings that could not be used, with what was wrong; only where failures are collected.
    """

    recordings: int
    seconds: float = 0.0
    values: dict[Target, tuple[list[str], Values]] = field(default_factory=dict)
    speech_ratio: dict[FrontendConfig, dict[str, float]] = field(default_factory=dict)
    failed: list[tuple[Source, AudioError]] = field(default_factory=list)


@dataclass
class _Prepared:
    """A chunk, decoded: for each frontend the stretches that it looks at, by rate and length."""

    sources: list[Source]
    # The sources' ids; of one that could not be used, whatever is known.
    ids: list[str]
    seconds: float
    failed: list[tuple[Source, AudioError]]
    speech_ratio: dict[FrontendConfig, dict[str, float]]
    # (sample rate, samples) -> the sources' places in the chunk, and float32 [recordings, samples]
    groups: dict[FrontendConfig, dict[tuple[int, int], tuple[list[int], Tensor]]]


class Extractor:
    """Computes features; the order of what goes in is the order of what comes out.

    Its workers start with the first recordings and stay until :meth:`close`; use it as a context manager.

    Args:
        configs: the frontends that will be wanted.
        device: ``cpu``, ``cuda`` or ``auto``.
        batch_size: recordings a chunk; None: what was measured to be best.
        workers: threads that decode and, without a GPU, compute; None: all cores that this process may use.
        collect_failures: report recordings that cannot be used in :attr:`Extracted.failed`, instead of raising.

    Raises:
        ConfigError: a frontend that cannot be built, or a device that is not there.
    """

    def __init__(
        self,
        configs: Iterable[FrontendConfig],
        device: str = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
        collect_failures: bool = False,
    ) -> None:
        self.frontends: Mapping[FrontendConfig, Frontend] = {
            config: build_frontend(config, device) for config in dict.fromkeys(configs)
        }
        devices = {frontend.device for frontend in self.frontends.values()}
        self.device = devices.pop() if devices else torch.device("cpu")
        on_gpu = self.device.type != "cpu"
        self._chunk = batch_size or (_GPU_CHUNK if on_gpu else _CPU_CHUNK)
        self._workers = workers or cores()
        self._collect = collect_failures
        # Elsewhere a fork is not there, or not safe.
        self._forks = not on_gpu and self._workers > 1 and sys.platform == "linux"
        self._executor: Executor | None = None

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; whoever calls it again starts new ones."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def __call__(self, sources: Iterable[Source]) -> Iterator[Extracted]:
        """The features of all sources, chunk after chunk.

        No more sources are drawn than are being worked on, so any number of them takes the memory of a few chunks.

        Raises:
            AudioError: a recording cannot be decoded or is too short; the message begins with its name.
        """
        keep_freed_memory()
        if self.device.type == "cpu":
            work = _from_bytes_adopted if self._forks else self._from_bytes
            yield from self._ahead(chunks(sources, self._chunk), work, self._workers + 2)
            return
        # The results of a chunk are fetched after the next one was given to the GPU.
        waiting: collections.deque[_OnDevice] = collections.deque()
        for prepared in self._ahead(chunks(sources, self._chunk), self._prepare, 4):
            waiting.append(self._launch(prepared))
            if len(waiting) > 1:
                yield waiting.popleft().fetch()
        yield from (launched.fetch() for launched in waiting)

    def _ahead(self, chunks: Iterable[list[Source]], work: Callable, most: int) -> Iterator:
        """Work on chunks side by side, at most so many at once, and hand the results out in their order."""
        pending: collections.deque[Future] = collections.deque()
        pool = self._executor = self._executor or self._pool()
        try:
            for chunk in chunks:
                pending.append(pool.submit(work, chunk))
                if len(pending) >= most:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            self._executor = None
            raise KubevoxError(
                "a worker that computed features was ended from outside (out of memory?); set features.workers lower"
            ) from None
        finally:
            # Someone who stops half-way leaves no work behind.
            for future in pending:
                future.cancel()
            wait(pending)

    def _pool(self) -> Executor:
        """Processes that compute, or threads that decode for a GPU.

        Between two small operations of torch a thread needs Python's one interpreter lock: two threads were a third
        slower than two processes. They are forked, so that frontends and libraries are there at once; a child computes
        on one thread and takes no lock that another of the parent's threads may hold.
        """
        if self._forks:
            for frontend in self.frontends.values():
                frontend.warm_up()  # once here, not once in each child
            return ProcessPoolExecutor(self._workers, multiprocessing.get_context("fork"), _adopt, (self, os.getpid()))
        return ThreadPoolExecutor(self._workers, "kubevox-features")

    def _from_bytes(self, chunk: list[Source]) -> Extracted:
        return self._launch(self._prepare(chunk)).fetch()

    def _prepare(self, chunk: list[Source]) -> _Prepared:
        """Decode a chunk's recordings and cut what each frontend looks at."""
        seconds, failed, ids = 0.0, [], [source.id or "" for source in chunk]
        ratios: dict[FrontendConfig, dict[str, float]] = {}
        cuts: dict[FrontendConfig, dict[tuple[int, int], list[tuple[int, Values]]]] = {}
        for place, source in enumerate(chunk):
            try:
                waveform = source.decode()
                # All or nothing: a recording that one frontend cannot use is reported, not half used.
                stretches, heard_ratios = {}, {}
                for config in dict.fromkeys(config for config, _ in source.targets):
                    heard, ratio = self.frontends[config].listen(waveform)
                    stretches[config] = self.frontends[config].cut(heard)
                    if ratio is not None:
                        heard_ratios[config] = ratio
            except AudioError as error:
                named = AudioError(error.reason, _named(source.name, str(error)))
                if not self._collect:
                    raise named from None
                failed.append((source, named))
                continue
            seconds += waveform.duration_s
            if source.id is None:
                ids[place] = waveform.id
            for config, ratio in heard_ratios.items():
                ratios.setdefault(config, {})[ids[place]] = ratio
            for config, stretch in stretches.items():
                group = cuts.setdefault(config, {}).setdefault((waveform.sample_rate, len(stretch)), [])
                group.append((place, stretch))
        groups = {
            config: {key: self._stack(config, key[0], group) for key, group in by_key.items()}
            for config, by_key in cuts.items()
        }
        return _Prepared(chunk, ids, seconds, failed, ratios, groups)

    def _stack(self, config: FrontendConfig, rate: int, group: list[tuple[int, Values]]) -> tuple[list[int], Tensor]:
        places, stretches = [place for place, _ in group], [stretch for _, stretch in group]
        if self.device.type == "cpu":
            return places, torch.from_numpy(self.frontends[config].resample(stretches, rate))
        return places, torch.from_numpy(np.stack(stretches)).pin_memory()

    @torch.inference_mode()
    def _launch(self, prepared: _Prepared) -> _OnDevice:
        """Compute a chunk's features; on a GPU, without waiting for them."""
        launched = _OnDevice(prepared, {})
        for config, groups in prepared.groups.items():
            frontend = self.frontends[config]
            for (rate, _), (places, samples) in groups.items():
                if self.device.type != "cpu":
                    on_device = samples.to(self.device, non_blocking=True)
                    samples = frontend.fit(resample(on_device, rate, config.sample_rate))
                self._compute(config, places, samples, launched)
        for target, unencoded in launched.unencoded.items():
            launched.parts[target] = [_encoded(cast("Ssl", self.frontends[target[0]]), unencoded)]
        launched.unencoded.clear()
        return launched

    def _compute(self, config: FrontendConfig, places: list[int], samples: Tensor, launched: _OnDevice) -> None:
        frontend, sources = self.frontends[config], launched.prepared.sources
        wanted: dict[RecipeConfig, list[int]] = {}
        for row, place in enumerate(places):
            for one, recipe in sources[place].targets:
                if one == config:
                    wanted.setdefault(recipe, []).append(row)
        by_rows: dict[tuple[int, ...], list[RecipeConfig]] = {}
        for recipe, rows in wanted.items():
            by_rows.setdefault(tuple(rows), []).append(recipe)
        for chosen, recipes in by_rows.items():
            batch = samples if len(chosen) == len(places) else samples[list(chosen)]
            ids = [launched.prepared.ids[places[row]] for row in chosen]
            # What a recipe transforms to begin with may be what the features of the recording as it is need too.
            powers: list[Tensor] = []
            if takes := frontend.takes_powers(vocoder.FRAME, vocoder.HOP):
                recipes = sorted(recipes, key=lambda recipe: (recipe.kind == "original", not transforms(recipe)))
            for recipe, changed in augment_all(batch, ids, recipes, config.sample_rate, powers if takes else None):
                target, rows, fitted = (config, recipe), [places[row] for row in chosen], frontend.fit(changed)
                if config.kind == "ssl" and self.device.type != "cpu":
                    # Recordings keep their own length there: a group is often one recording, which fills no GPU.
                    launched.unencoded.setdefault(target, []).append((rows, fitted))
                else:
                    original = recipe.kind == "original"
                    values = (
                        frontend.of_powers(fitted, powers) if original and powers else frontend(fitted, not original)
                    )
                    launched.parts.setdefault(target, []).append((rows, values))


@dataclass
class _OnDevice:
    """A chunk's features as they come to be: for each target, places in the chunk and values on the device.

    ``unencoded`` holds samples [recordings, n] in the values' stead, until all of the chunk's are there.
    """

    prepared: _Prepared
    parts: dict[Target, list[tuple[list[int], Tensor]]]
    unencoded: dict[Target, list[tuple[list[int], Tensor]]] = field(default_factory=dict)

    def fetch(self) -> Extracted:
        """The features in the order of the recordings, on the CPU."""
        prepared = self.prepared
        done = Extracted(len(prepared.sources), prepared.seconds, {}, prepared.speech_ratio, prepared.failed)
        for target, parts in self.parts.items():
            places = [place for some, _ in parts for place in some]
            values = torch.cat([value for _, value in parts]).cpu().numpy()
            order = np.argsort(places, kind="stable")
            done.values[target] = ([prepared.ids[places[index]] for index in order], values[order])
        return done


def _encoded(frontend: Ssl, groups: Sequence[tuple[list[int], Tensor]]) -> tuple[list[int], Tensor]:
    """Places in the chunk and features of all groups of equal length, in batches that span groups.

    Args:
        frontend: what encodes.
        groups: the recordings' places, and their samples [recordings, n], each group with an n of its own.

    Returns:
        The places as they came, and float32 [places, *shape] on the frontend's device.
    """
    places = [place for some, _ in groups for place in some]
    return places, frontend.encode([row for _, samples in groups for row in samples])


_adopted: Extractor | None = None


def _adopt(extractor: Extractor, parent: int) -> None:
    """Begin a forked worker's life: it has its parent's frontends already."""
    die_with(parent)
    global _adopted
    _adopted = extractor
    gc.freeze()  # what is inherited is neither looked through nor, by that, copied
    torch.set_num_threads(1)


def _from_bytes_adopted(chunk: list[Source]) -> Extracted:
    assert _adopted is not None  # noqa: S101 - set before the first task
    return _adopted._from_bytes(chunk)


def _named(name: str, message: str) -> str:
    return message if message.startswith(f"{name}:") else f"{name}: {message}"
