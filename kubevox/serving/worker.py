"""A worker: a process that turns bytes into answers, with the model in it and nothing else.

Decoding, features and model all happen here, so that a codec that crashes or hangs costs a worker and not the server.
Workers are forked from a process that has imported this module and has run nothing: a new one is there in a moment.
"""

from __future__ import annotations

import binascii
import collections
import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pybase64
import torch

from kubevox.config import DriftConfig
from kubevox.data.audio import SourceInfo, Waveform, decode
from kubevox.data.containers import container_of
from kubevox.errors import AudioError, KubevoxError
from kubevox.features.frontends import build_frontend, minimum_duration_s
from kubevox.features.frontends.base import features_of
from kubevox.models.bundle import Bundle
from kubevox.models.cascade import Cascade, load_model
from kubevox.processes import die_with, keep_freed_memory
from kubevox.serving.work import (
    HEADER,
    Answer,
    Failure,
    Greeting,
    Item,
    LateDrift,
    Refusal,
    Window,
    Worker,
    items_from,
    pack_answers,
    pack_drift,
    pack_failure,
    pack_greeting,
)

__all__ = ["Computer", "run"]

_MOST_PENDING_DRIFT = 32
_DRIFT_SHARE = 0.05  # of a worker's time that drift features may take
_MOST_PENDING_BYTES = 16 << 20
_WINDOWS_AT_ONCE = 64


class Computer:
    """The model and all that is done with it.

    Args:
        told: which model, where, with what options.

    Raises:
        BundleError: it is missing or damaged.
    """

    def __init__(self, told: Worker) -> None:
        self.options = told.options
        self.model: Bundle | Cascade = load_model(told.model_uri, told.device)
        self.premium = self.model.premium if isinstance(self.model, Cascade) else self.model
        self.limits = self.model.limits if isinstance(self.model, Cascade) else self.model.spec.limits
        logged = told.options.log
        self._drift = build_frontend(DriftConfig()) if logged.enabled and logged.drift else None

    def greeting(self) -> Greeting:
        """What the front need know."""
        spec = self.premium.spec
        parts = {}
        if isinstance(self.model, Cascade):
            parts = {"mini": self.model.mini.hash, "premium": self.model.premium.hash}
        return Greeting(
            task=spec.task,
            labels=tuple(spec.labels),
            hash=self.model.hash,
            dataset_hash=spec.dataset_hash,
            limits=self.limits,
            shortest_s=max(self.limits.min_duration_s, minimum_duration_s(spec.frontend)),
            window_s=spec.frontend.offset_s + spec.frontend.duration_s,
            parts=parts,
            drift_names=tuple(DriftConfig().feature_names) if self._drift else (),
        )

    def warm_up(self) -> None:
        """Answer stretches of silence, alone and as a batch, so that no caller waits for caches and kernels."""
        frontend = self.premium.spec.frontend
        seconds = max(1.0, minimum_duration_s(frontend))
        silence = Waveform(np.zeros(round(seconds * frontend.sample_rate), np.int32), frontend.sample_rate)
        for size in {1, self.options.max_batch}:
            for _ in range(3):
                self._probabilities([silence] * size)
        if isinstance(self.model, Cascade):
            self.model.premium.predict([silence])
        if self._drift:
            features_of(silence, self._drift)

    def work(self, items: Sequence[Item]) -> list[Answer | Refusal]:
        """An answer or a refusal for each item; recordings of the task ``predict`` are computed together."""
        found: list[Answer | Refusal | None] = [None] * len(items)
        decoded: list[tuple[int, Waveform, SourceInfo, float]] = []
        for place, item in enumerate(items):
            started = time.perf_counter()
            try:
                data = _bytes_of(item, self.limits.max_bytes)
                waveform, info = self._decode(data, item)
                if item.task == "predict":
                    decoded.append((place, waveform, info, _ms(started)))
                else:
                    found[place] = self._alone(item, waveform, info, _ms(started))
            except AudioError as error:
                found[place] = Refusal(error.reason, str(error))
        for place, answer in self._together(items, decoded):
            found[place] = answer
        return [answer for answer in found if answer is not None]

    def drift(self, item: Item) -> npt.NDArray[np.float32] | None:
        """The drift features of a recording that was answered: float32 [values]; None where it has none."""
        assert self._drift is not None  # noqa: S101 - asked only where it is wanted
        try:
            waveform, _ = self._decode(_bytes_of(item, self.limits.max_bytes), item)
            return features_of(waveform, self._drift)
        except AudioError:
            return None

    def _decode(self, data: bytes, item: Item) -> tuple[Waveform, SourceInfo]:
        limits = self.limits
        if item.task == "timeline":
            longest = max(limits.max_duration_s, self.options.timeline_max_s)
            limits = limits.model_copy(update={"max_duration_s": longest})
        waveform, info = decode(data, limits, item.name)
        if waveform.duration_s < limits.min_duration_s:
            raise AudioError(
                "too_short",
                f"{item.name}: {waveform.duration_s:.2f} s is too short; at least {limits.min_duration_s:g} s are "
                "needed",
            )
        return waveform, info

    def _together(
        self, items: Sequence[Item], decoded: Sequence[tuple[int, Waveform, SourceInfo, float]]
    ) -> list[tuple[int, Answer | Refusal]]:
        if not decoded:
            return []
        try:
            answers = self._predict([waveform for _, waveform, _, _ in decoded])
        except AudioError as error:
            if len(decoded) == 1:
                place = decoded[0][0]
                return [(place, Refusal(error.reason, f"{items[place].name}: {error}"))]
            # One of them is too short for the frontend: which, shows when each is alone.
            return [pair for one in decoded for pair in self._together(items, [one])]
        return [
            (
                place,
                replace(
                    answer,
                    sample_rate=info.sample_rate,
                    source_format=info.format,
                    decode_ms=decode_ms,
                    audio=_bytes_of(items[place], self.limits.max_bytes) if items[place].keep_audio else None,
                ),
            )
            for (place, _, info, decode_ms), answer in zip(decoded, answers, strict=True)
        ]

    def _predict(self, waveforms: Sequence[Waveform]) -> list[Answer]:
        rows, answered_by, features_ms, model_ms = self._probabilities(waveforms)
        return [
            Answer(
                probabilities=tuple(row),
                answered_by=role,
                duration_s=waveform.duration_s,
                analysed_s=self._bundle(role).frontend.analysed_s(waveform),
                sample_rate=waveform.sample_rate,
                source_format="",
                decode_ms=0.0,
                features_ms=features_ms,
                model_ms=model_ms,
                batch=len(waveforms),
            )
            for waveform, row, role in zip(waveforms, rows.tolist(), answered_by, strict=True)
        ]

    def _probabilities(
        self, waveforms: Sequence[Waveform]
    ) -> tuple[npt.NDArray[np.float32], list[str], float | None, float]:
        """Probabilities [N, labels], who answered each, and the milliseconds of features and of the model."""
        started = time.perf_counter()
        if isinstance(self.model, Cascade):
            answer = self.model.answer(waveforms)
            roles = ["premium" if by_premium else "mini" for by_premium in answer.by_premium.tolist()]
            return answer.probabilities, roles, None, _ms(started)
        features = self.model.features(waveforms)
        between = time.perf_counter()
        probabilities = self.model.probabilities(features)
        return probabilities, [""] * len(waveforms), 1000 * (between - started), _ms(between)

    def _bundle(self, role: str) -> Bundle:
        return self.model.mini if role == "mini" and isinstance(self.model, Cascade) else self.premium

    def _alone(self, item: Item, waveform: Waveform, info: SourceInfo, decode_ms: float) -> Answer:
        """A timeline or an explanation, beside the answer to the recording itself."""
        (answer,) = self._predict([waveform])
        answer = replace(answer, sample_rate=info.sample_rate, source_format=info.format, decode_ms=decode_ms)
        if item.task == "timeline":
            return replace(answer, windows=self._timeline(waveform))
        from kubevox.models.explanation import explain

        bundle = self._bundle(answer.answered_by)
        return replace(answer, explanation=explain(bundle, waveform, item.label).to_dict())

    def _timeline(self, waveform: Waveform) -> tuple[Window, ...]:
        """The recording in windows as long as one answer's stretch, each overlapping the one before it."""
        config, rate = self.premium.spec.frontend, waveform.sample_rate
        length = round((config.offset_s + config.duration_s) * rate)
        hop = max(1, round(self.options.timeline_hop * length))
        shortest = max(minimum_duration_s(config), self.limits.min_duration_s) * rate
        total = len(waveform.pcm)
        starts = [start for start in range(0, total, hop) if start == 0 or total - start >= shortest]
        # What the last full window covers to the end needs no shorter one after it.
        while len(starts) > 1 and starts[-2] + length >= total:
            starts.pop()
        windows: list[Window] = []
        for first in range(0, len(starts), _WINDOWS_AT_ONCE):
            some = starts[first : first + _WINDOWS_AT_ONCE]
            rows, *_ = self._probabilities([Waveform(waveform.pcm[at : at + length], rate) for at in some])
            windows += [
                Window(at / rate, min(at + length, total) / rate, tuple(row))
                for at, row in zip(some, rows.tolist(), strict=True)
            ]
        return tuple(windows)


def run(told: Worker, channel: socket.socket, parent: int) -> None:
    """A worker's life: greet, answer batches, and compute drift features while there is nothing else to do.

    Args:
        told: which model, where, with what options.
        channel: to the front; when it is closed the worker ends.
        parent: the front's process id.
    """
    _die_with_front(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front says when to end
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    keep_freed_memory()
    torch.set_num_threads(told.options.threads)
    channel.setblocking(True)
    try:
        computer = Computer(told)
        computer.warm_up()
    except KubevoxError as error:
        channel.sendall(pack_failure(Failure(str(error))))
        return
    channel.sendall(pack_greeting(computer.greeting()))
    gc.collect()
    gc.freeze()  # what is there now stays: nothing of it need be looked through again
    later: collections.deque[Item] = collections.deque()
    pace = _Pace(_DRIFT_SHARE)
    with contextlib.suppress(ConnectionError):
        while (items := _next(channel, computer, later, pace)) is not None:
            answers = computer.work(items)
            channel.sendall(pack_answers(answers))
            for item, answer in zip(items, answers, strict=True):
                # Bounded: what finds no room goes without, and so does everything under a load that leaves no time.
                held = sum(len(waiting.audio) for waiting in later) + len(item.audio)
                if item.key and isinstance(answer, Answer) and held < _MOST_PENDING_BYTES:
                    later.append(item)
                    if len(later) > _MOST_PENDING_DRIFT:
                        later.popleft()


class _Pace:
    """Keeps what is done in idle moments to a share of the time: a core that is idle here is wanted elsewhere."""

    def __init__(self, share: float) -> None:
        self._rest = 1.0 / share - 1.0
        self._next = 0.0

    @property
    def wait_s(self) -> float:
        """How long to wait before more is done."""
        return max(0.0, self._next - time.monotonic())

    def did(self, seconds: float) -> None:
        """Something was done that took so long."""
        self._next = time.monotonic() + self._rest * seconds


def _next(channel: socket.socket, computer: Computer, later: collections.deque[Item], pace: _Pace) -> list[Item] | None:
    """The next batch; while there is none, the drift features of recordings that were answered."""
    while later and not select.select([channel], [], [], pace.wait_s)[0]:
        item, began = later.popleft(), time.monotonic()
        values = computer.drift(item)
        if values is not None:
            channel.sendall(pack_drift(LateDrift(item.key, values.tolist())))
        pace.did(time.monotonic() - began)
    content = _receive(channel)
    return None if content is None else items_from(content)


def _receive(channel: socket.socket) -> bytearray | None:
    """The next message of a blocking socket; None where the other end has closed it."""
    head = _exactly(channel, HEADER.size)
    return None if head is None else _exactly(channel, HEADER.unpack(head)[0])


def _die_with_front(parent: int) -> None:
    """End when the front is gone. The process that this one was forked from is another one, and ends with it too."""
    die_with(os.getppid())
    try:
        os.kill(parent, 0)
    except ProcessLookupError:
        os._exit(1)


def _exactly(channel: socket.socket, size: int) -> bytearray | None:
    content = bytearray(size)
    view, at = memoryview(content), 0
    while at < size:
        got = channel.recv_into(view[at:])
        if not got:
            return None
        at += got
    return content


def _bytes_of(item: Item, most: int) -> bytes:
    """A recording's bytes, from base64 where they came so.

    Raises:
        AudioError: ``too_large`` or ``not_base64``.
    """
    audio = item.audio
    # No base64 text begins as a recording does.
    if isinstance(audio, bytes) and (item.encoding == "raw" or (item.encoding == "either" and container_of(audio))):
        return audio
    if len(audio) * 3 // 4 > most + 3:
        raise AudioError("too_large", f"{item.name}: more than the limit of {most} bytes")
    try:
        return pybase64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise AudioError("not_base64", f"{item.name}: not valid base64") from None


def _ms(started: float) -> float:
    return 1000 * (time.perf_counter() - started)
