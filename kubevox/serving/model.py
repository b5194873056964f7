"""The KServe model: recordings in, calibrated probabilities out, over the bundle that was evaluated.

V1: ``{"instances": [{"audio": "<base64>"}]}``; V2: an input ``audio`` of BYTES [N]. Whatever is wrong with a request is
an ``InvalidInput`` (400) that says what; a server that has no room is a :class:`~kubevox.errors.BusyError` (503).
Nothing that a client sends may be a 500.
"""

from __future__ import annotations

import asyncio
import datetime
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kubevox.config import DriftConfig, ServingConfig
from kubevox.errors import AudioError
from kubevox.serving import answers, metrics
from kubevox.serving.answers import Answered, label_of
from kubevox.serving.engine import Engine
from kubevox.serving.inference_log import InferenceLog, LoggedAnswer
from kubevox.serving.library import InferRequest, InferResponse, InvalidInput, Model
from kubevox.serving.remote import RemoteAudio
from kubevox.serving.requests import (
    REQUEST_ID,
    Protocol,
    RawBody,
    Recording,
    recordings_of_raw,
    recordings_of_v1,
    recordings_of_v2,
)
from kubevox.serving.work import Greeting, Item, LateDrift, Refusal, Task, Worker

__all__ = ["SpeechModel"]


@dataclass(frozen=True)
class _Request:
    """A request, read."""

    id: str
    protocol: Protocol
    recordings: Sequence[Recording]
    since: float
    v2: InferRequest | None = None


@dataclass(frozen=True)
class _Result:
    """A request, answered."""

    request: _Request
    answered: Answered
    explained: bool


class SpeechModel(Model):
    """A bundle or a cascade as a KServe model.

    Args:
        name: the model's name in the URL.
        told: what its workers serve, and how.
        version: the registered version, told in every answer.
        log_store: where the inference log goes; None: there is none.

    Attributes:
        greeting: what the workers say of the model; there when it has begun.
    """

    def __init__(self, name: str, told: Worker, version: str, log_store: str | None = None) -> None:
        super().__init__(name)
        self.version = version
        self.options: ServingConfig = told.options
        self.greeting: Greeting
        labels = {"model": name, "version": version}
        batch_size = metrics.BATCH_SIZE.labels(**labels)
        self._engine = Engine(told, on_batch=batch_size.observe, on_drift=self._late_drift)
        self._log_store = log_store
        self._log: InferenceLog | None = None
        self._remote: RemoteAudio | None = None
        self._drift_wanted: dict[int, tuple[str, int]] = {}
        self._stages = {
            stage: metrics.STAGE.labels(**labels, stage=stage) for stage in ("queue", "decode", "features", "model")
        }
        self._confidence = metrics.CONFIDENCE.labels(**labels)
        self._abstained = metrics.ABSTAINED.labels(**labels)
        self._audio_seconds = metrics.AUDIO_SECONDS.labels(**labels)
        self._predictions: dict[tuple[str, str], Any] = {}
        metrics.QUEUED.labels(**labels).set_function(lambda: self._engine.waiting)
        metrics.RESTARTS.labels(**labels).set_function(lambda: self._engine.restarts)

    async def begin(self) -> None:
        """Start the workers, warm, and the log; the model is ready when this returns.

        Raises:
            BundleError: the model cannot be loaded.
        """
        self.greeting = await self._engine.start()
        self._remote = RemoteAudio(self.options.remote, self.greeting.limits.max_bytes)
        logged = self.options.log
        if logged.enabled and self._log_store is not None:
            drift = DriftConfig() if logged.drift else None
            self._log = InferenceLog(logged, self._log_store, self.name, self.greeting.labels, drift)
            self._log.start()
            rows = {"model": self.name, "version": self.version}
            for fate in ("written", "dropped", "failed", "audio_left_out"):
                metrics.LOG_ROWS.labels(**rows, fate=fate).set_function(
                    lambda fate=fate: getattr(self._log, fate)  # type: ignore[misc]
                )
        self.ready = True

    async def finish(self) -> None:
        """End the workers, when nothing is in flight any more, and write what is left of the log.

        It is to be called where :meth:`begin` has failed too: the process cannot end before its workers.
        """
        await self._engine.stop()
        if self._remote is not None:
            await self._remote.close()
        if self._log is not None:
            await asyncio.to_thread(self._log.close, 10.0)

    async def healthy(self) -> bool:
        """Whether a worker is there to answer; what KServe's readiness asks."""
        return self.ready and self._engine.ready

    @property
    def shortest_s(self) -> float:
        """The shortest recording that is taken."""
        return self.greeting.shortest_s

    @property
    def busy(self) -> bool:
        """Whether the queue has no room even for one recording more."""
        return not self._engine.room_for(1)

    @property
    def retry_after_s(self) -> float:
        """When a refused client may try again."""
        return self._engine.retry_after_s

    def validate(self, payload: Any) -> Any:
        """Nothing is left to check after :meth:`preprocess`."""
        return payload

    async def preprocess(self, payload: Any, headers: dict[str, str] | None = None) -> _Request:
        """Read the request: which recordings, and what is wanted of them."""
        since = time.monotonic()
        protocol: Protocol
        if isinstance(payload, InferRequest):
            # gRPC gives metadata in place of HTTP's headers; only REST has a content length or type.
            protocol = "grpc" if payload.from_grpc else "v2"
            recordings = recordings_of_v2(payload, self.options.max_instances)
        elif isinstance(payload, RawBody):
            protocol, recordings = "raw", recordings_of_raw(payload)
        else:
            protocol, recordings = "v1", recordings_of_v1(payload, self.options.max_instances)
        if not recordings:
            raise InvalidInput("the request holds no recording")
        for index, recording in enumerate(recordings):
            if recording.label is not None and recording.label not in self.greeting.labels:
                raise InvalidInput(
                    f"recording {index}: no label {recording.label!r:.40}; one of {', '.join(self.greeting.labels)}"
                )
        named = (headers or {}).get("x-request-id", "")
        if not REQUEST_ID.fullmatch(named):
            named = uuid.uuid4().hex  # over HTTP the door has seen to it
        v2 = payload if isinstance(payload, InferRequest) else None
        return _Request(named, protocol, recordings, since, v2)

    async def predict(self, payload: _Request, headers: dict[str, str] | None = None) -> _Result:
        """Have the workers answer; a timeline where one is asked."""
        tasks: list[Task] = ["timeline" if recording.timeline else "predict" for recording in payload.recordings]
        return await self._answered(payload, tasks, explained=False)

    async def explain(self, payload: _Request, headers: dict[str, str] | None = None) -> _Result:
        """Have the workers say which seconds and bands spoke for the label."""
        return await self._answered(payload, ["explain"] * len(payload.recordings), explained=True)

    async def postprocess(
        self, result: _Result, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> dict[str, Any] | InferResponse:
        """The answer in the request's own protocol."""
        if result.request.v2 is not None:
            return answers.v2(result.answered, result.request.v2, self.name)
        return answers.explanations(result.answered) if result.explained else answers.v1(result.answered)

    def get_input_types(self) -> list[dict[str, Any]]:
        """The V2 metadata of the input."""
        return [{"name": "audio", "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """The V2 metadata of the outputs."""
        return [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "confidence", "datatype": "FP32", "shape": [-1]},
            {"name": "abstained", "datatype": "BOOL", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(self.greeting.labels)]},
            {"name": "duration_analysed_s", "datatype": "FP32", "shape": [-1]},
        ]

    async def _answered(self, request: _Request, tasks: Sequence[Task], explained: bool) -> _Result:
        assert self._remote is not None  # noqa: S101 - it has begun
        uris = [recording.uri for recording in request.recordings if recording.uri is not None]
        try:
            async with self._remote.fetched(uris) as contents:
                items = self._items(request, tasks, iter(contents))
                left = self.options.request_timeout_s - (time.monotonic() - request.since)
                outcomes = await self._engine.submit(items, max(0.001, left))
        except AudioError as error:
            raise InvalidInput(str(error)) from None
        for outcome in outcomes:
            if isinstance(outcome.answer, Refusal):
                raise InvalidInput(outcome.answer.message)
        total_ms = 1000 * (time.monotonic() - request.since)
        answered = Answered(request.id, self.greeting, self.version, self.options.min_confidence, outcomes, total_ms)
        self._count(answered)
        if self._log is not None:
            self._write(request, answered)
        return _Result(request, answered, explained)

    def _items(self, request: _Request, tasks: Sequence[Task], contents: Iterator[bytes]) -> list[Item]:
        """The work that a request is; ``contents`` are of its recordings named by URI, in their order."""
        logged = self.options.log if self._log is not None else None
        items = []
        for index, (recording, task) in enumerate(zip(request.recordings, tasks, strict=True)):
            key = 0
            if logged and logged.drift:
                key = self._engine.key()
                self._drift_wanted[key] = (request.id, index)
                # A worker that had no time for some never tells; the oldest go.
                while len(self._drift_wanted) > logged.max_rows:
                    self._drift_wanted.pop(next(iter(self._drift_wanted)))
            items.append(
                Item(
                    key,
                    f"recording {index}",
                    next(contents) if recording.audio is None else recording.audio,
                    "raw" if recording.audio is None else recording.encoding,
                    task,
                    recording.label,
                    logged is not None and logged.audio,
                )
            )
        return items

    def _count(self, answered: Answered) -> None:
        for outcome, answer in zip(answered.outcomes, answered.answers, strict=True):
            label, confidence = label_of(answer, self.greeting.labels)
            counter = self._predictions.get((label, answer.answered_by))
            if counter is None:
                counter = self._predictions[label, answer.answered_by] = metrics.PREDICTIONS.labels(
                    model=self.name, version=self.version, label=label, answered_by=answer.answered_by
                )
            counter.inc()
            self._confidence.observe(confidence)
            if confidence < self.options.min_confidence:
                self._abstained.inc()
            self._audio_seconds.inc(answer.duration_s)
            for stage, milliseconds in (
                ("queue", outcome.queue_ms),
                ("decode", answer.decode_ms),
                ("features", answer.features_ms),
                ("model", answer.model_ms),
            ):
                if milliseconds is not None:
                    self._stages[stage].observe(milliseconds / 1000)

    def _write(self, request: _Request, answered: Answered) -> None:
        assert self._log is not None  # noqa: S101 - asked before
        now = datetime.datetime.now(datetime.UTC)
        for index, (outcome, answer) in enumerate(zip(answered.outcomes, answered.answers, strict=True)):
            label, confidence = label_of(answer, self.greeting.labels)
            self._log.put(
                LoggedAnswer(
                    request_id=request.id,
                    instance=index,
                    time=now,
                    model=self.name,
                    model_version=self.version,
                    bundle=self.greeting.parts.get(answer.answered_by, self.greeting.hash),
                    dataset=self.greeting.dataset_hash,
                    protocol=request.protocol,
                    label=label,
                    confidence=confidence,
                    abstained=confidence < self.options.min_confidence,
                    probabilities=answer.probabilities,
                    answered_by=answer.answered_by,
                    duration_s=answer.duration_s,
                    sample_rate=answer.sample_rate,
                    source_format=answer.source_format,
                    queue_ms=outcome.queue_ms,
                    decode_ms=answer.decode_ms,
                    features_ms=answer.features_ms,
                    model_ms=answer.model_ms,
                    total_ms=answered.total_ms,
                    drift=None,
                    audio=answer.audio,
                )
            )

    def _late_drift(self, late: LateDrift) -> None:
        found = self._drift_wanted.pop(late.key, None)
        if found is not None and self._log is not None:
            self._log.add_drift(*found, late.values)
