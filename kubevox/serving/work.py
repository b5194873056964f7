"""What passes between the server's front and its workers: recordings one way, answers the other.

A message is its length, a JSON text, and the recordings' bytes behind it. Free of torch: the front holds none.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from kubevox.config import AudioLimits, ServingConfig

__all__ = [
    "HEADER",
    "Answer",
    "Failure",
    "Greeting",
    "Item",
    "LateDrift",
    "Refusal",
    "Task",
    "Window",
    "Worker",
    "items_from",
    "pack_answers",
    "pack_drift",
    "pack_failure",
    "pack_greeting",
    "pack_items",
    "said_from",
]

Task = Literal["predict", "timeline", "explain"]
HEADER = struct.Struct("<Q")
"""Before each message: how many bytes follow."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker process is told when it begins.

    Attributes:
        model_uri: a bundle or a cascade.
        device: "cpu", "cuda" or "auto".
        options: the server's.
    """

    model_uri: str
    device: str
    options: ServingConfig


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a worker says when it is ready: all that the front need know of the model.

    Attributes:
        hash: of the bundle, or of the cascade.
        dataset_hash: what the model was trained on.
        limits: what a recording may be.
        shortest_s: the shortest recording that is taken.
        window_s: how much of a recording one answer rests on.
        parts: of a cascade, each bundle's hash by its role; else empty.
        drift_names: of the drift features.
    """

    task: str
    labels: tuple[str, ...]
    hash: str
    dataset_hash: str
    limits: AudioLimits
    shortest_s: float
    window_s: float
    parts: dict[str, str] = field(default_factory=dict)
    drift_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One recording and what is wanted of it.

    Attributes:
        key: by which its drift features are told afterwards; 0: they are not wanted.
        name: what it is called in errors.
        audio: a file's bytes, or the base64 text of them.
        encoding: which of the two; "either" where only the first bytes tell.
        task: what is wanted.
        label: of an explanation; None: the predicted one.
        keep_audio: whether the file's bytes come back, for the log.
    """

    key: int
    name: str
    audio: bytes | str
    encoding: Literal["base64", "raw", "either"] = "base64"
    task: Task = "predict"
    label: str | None = None
    keep_audio: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a recording has no answer: it is the client's to mend."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a recording and its probabilities."""

    start_s: float
    end_s: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found of one recording.

    Attributes:
        probabilities: calibrated, in the labels' order.
        answered_by: of a cascade: "mini" or "premium"; else "".
        duration_s: of the recording.
        analysed_s: how much of it the answer rests on.
        decode_ms: from bytes to waveform.
        features_ms: of the batch that it was in; None where a cascade does not tell.
        model_ms: likewise.
        batch: how many recordings were computed together.
        windows: of a timeline.
        explanation: of an explanation.
        audio: the file's bytes, where they are to be kept.
    """

    probabilities: tuple[float, ...]
    answered_by: str
    duration_s: float
    analysed_s: float
    sample_rate: int
    source_format: str
    decode_ms: float
    features_ms: float | None
    model_ms: float
    batch: int
    windows: tuple[Window, ...] = ()
    explanation: dict[str, Any] | None = None
    audio: bytes | None = None


@dataclass(frozen=True, slots=True)
class LateDrift:
    """Drift features that a worker found time for, after the recording was answered."""

    key: int
    values: list[float]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a worker cannot serve the model."""

    message: str


def pack_items(items: Sequence[Item]) -> bytes:
    """A batch, as the front sends it."""
    blobs = [item.audio.encode(errors="replace") if isinstance(item.audio, str) else item.audio for item in items]
    fields = [
        (item.key, item.name, item.encoding, item.task, item.label, item.keep_audio, len(blob))
        for item, blob in zip(items, blobs, strict=True)
    ]
    return _framed(fields, blobs)


def items_from(content: bytearray) -> list[Item]:
    """A batch, as a worker gets it."""
    fields, rest = _parts(content)
    items, at = [], 0
    for key, name, encoding, task, label, keep_audio, size in fields:
        items.append(Item(key, name, bytes(rest[at : at + size]), encoding, task, label, keep_audio))
        at += size
    return items


def pack_answers(answers: Sequence[Answer | Refusal]) -> bytes:
    """A worker's answers to a batch."""
    blobs = [answer.audio or b"" if isinstance(answer, Answer) else b"" for answer in answers]
    said = [
        {"refusal": [answer.reason, answer.message]}
        if isinstance(answer, Refusal)
        else {
            "answer": [getattr(answer, name) for name in _PLAIN],
            "windows": answer.windows,
            "explanation": answer.explanation,
            "audio": len(blob) if answer.audio is not None else None,
        }
        for answer, blob in zip(answers, blobs, strict=True)
    ]
    return _framed({"answers": said}, blobs)


def pack_greeting(greeting: Greeting) -> bytes:
    """What a worker says first."""
    fields = {name: getattr(greeting, name) for name in Greeting.__slots__}
    return _framed({"greeting": fields | {"limits": greeting.limits.model_dump()}})


def pack_drift(late: LateDrift) -> bytes:
    """Drift features of a recording that was answered before."""
    return _framed({"drift": [late.key, late.values]})


def pack_failure(failure: Failure) -> bytes:
    """What a worker says in place of a greeting."""
    return _framed({"failure": failure.message})


def said_from(content: bytearray) -> Greeting | Failure | LateDrift | list[Answer | Refusal]:
    """What a worker said."""
    fields, rest = _parts(content)
    if "answers" in fields:
        return _answers(fields["answers"], rest)
    if "drift" in fields:
        return LateDrift(*fields["drift"])
    if "failure" in fields:
        return Failure(fields["failure"])
    said = fields["greeting"]
    tuples = {name: tuple(said[name]) for name in ("labels", "drift_names")}
    return Greeting(**{**said, **tuples, "limits": AudioLimits(**said["limits"])})


# The fields of an answer that are numbers, words or rows of numbers.
_PLAIN = (
    "probabilities",
    "answered_by",
    "duration_s",
    "analysed_s",
    "sample_rate",
    "source_format",
    "decode_ms",
    "features_ms",
    "model_ms",
    "batch",
)


def _answers(said: list[dict[str, Any]], rest: memoryview) -> list[Answer | Refusal]:
    answers: list[Answer | Refusal] = []
    at = 0
    for one in said:
        if "refusal" in one:
            answers.append(Refusal(*one["refusal"]))
            continue
        plain = dict(zip(_PLAIN, one["answer"], strict=True))
        plain["probabilities"] = tuple(plain["probabilities"])
        windows = tuple(Window(w["start_s"], w["end_s"], tuple(w["probabilities"])) for w in one["windows"])
        size = one["audio"]
        audio = None if size is None else bytes(rest[at : at + size])
        at += size or 0
        answers.append(Answer(**plain, windows=windows, explanation=one["explanation"], audio=audio))
    return answers


def _framed(fields: Any, blobs: Sequence[bytes] = ()) -> bytes:
    text = orjson.dumps(fields)
    size = _TEXT.size + len(text) + sum(map(len, blobs))
    return b"".join([HEADER.pack(size), _TEXT.pack(len(text)), text, *blobs])


def _parts(content: bytearray) -> tuple[Any, memoryview]:
    whole = memoryview(content)
    (size,) = _TEXT.unpack_from(whole)
    return orjson.loads(whole[_TEXT.size : _TEXT.size + size]), whole[_TEXT.size + size :]


_TEXT = struct.Struct("<I")
