"""What clients ask, whatever the protocol they ask it in: V1, a recording's bytes as the body, V2 over REST or gRPC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from kubevox.serving.library import InferInput, InferRequest, InvalidInput

__all__ = [
    "REQUEST_ID",
    "Protocol",
    "RawBody",
    "Recording",
    "recordings_of_raw",
    "recordings_of_v1",
    "recordings_of_v2",
]

Protocol = Literal["v1", "v2", "grpc", "raw"]
REQUEST_ID = re.compile(r"[!-~]{1,128}")
"""What a client may call its request: printable, without spaces."""


@dataclass(frozen=True, slots=True)
class RawBody:
    """A request whose body is a recording, and what its query string asks.

    Attributes:
        audio: the file's bytes.
        timeline: whether a timeline is wanted.
        label: of an explanation; None: the predicted one.
    """

    audio: bytes
    timeline: bool = False
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording of a request.

    Attributes:
        audio: a file's bytes or the base64 text of them; None where ``uri`` says where it is.
        uri: of a recording that is to be fetched.
        encoding: what ``audio`` is.
        timeline: whether a timeline is wanted.
        label: of an explanation; None: the predicted one.
    """

    audio: bytes | str | None = None
    uri: str | None = None
    encoding: Literal["base64", "raw", "either"] = "base64"
    timeline: bool = False
    label: str | None = None


def recordings_of_raw(body: RawBody) -> list[Recording]:
    """The recording that the body is."""
    return [Recording(body.audio, encoding="raw", timeline=body.timeline, label=body.label)]


def recordings_of_v1(payload: Any, most: int) -> list[Recording]:
    """The recordings of ``{"instances": [{"audio": "<base64>"}]}``.

    An instance may have ``uri`` in place of ``audio``, ``timeline`` (true or false) and ``label`` (of an explanation).

    Args:
        payload: the body.
        most: recordings a request may hold.

    Raises:
        InvalidInput: it is no such object, or holds too many; the message names the place.
    """
    if not isinstance(payload, dict):
        raise InvalidInput('expected a JSON object: {"instances": [{"audio": "<base64 of a WAV or FLAC file>"}]}')
    if "instances" not in payload:
        raise InvalidInput("key 'instances' is missing")
    instances = payload["instances"]
    if not isinstance(instances, list):
        raise InvalidInput("'instances' must be a list")
    _refuse_many(len(instances), most)
    return [_instance(instance, f"instances[{index}]") for index, instance in enumerate(instances)]


def recordings_of_v2(request: InferRequest, most: int) -> list[Recording]:
    """The recordings of a V2 request's input ``audio``: BYTES [N], base64 text each, or a file's bytes.

    Raw contents are the elements one behind the other, each behind its length: 4 bytes, little-endian.

    Args:
        request: as KServe reads it.
        most: recordings a request may hold.

    Raises:
        InvalidInput: there is no such input, or it holds too many.
    """
    inputs = {item.name: item for item in request.inputs}
    if "audio" not in inputs:
        raise InvalidInput(f"input 'audio' is missing (inputs given: {', '.join(sorted(inputs)) or 'none'})")
    audio = inputs["audio"]
    if audio.datatype != "BYTES":
        raise InvalidInput(f"input 'audio' must be of datatype BYTES, not {audio.datatype}")
    data = _elements(audio, most)
    _refuse_many(len(data), most)
    shape = list(audio.shape)
    if shape not in ([len(data)], [len(data), 1]):
        raise InvalidInput(f"input 'audio' has shape {shape} but {len(data)} elements; expected [{len(data)}]")
    for index, element in enumerate(data):
        if not isinstance(element, (str, bytes)):
            raise InvalidInput(f"recording {index}: expected base64 text, got {type(element).__name__}")
    return [Recording(element, encoding="either" if isinstance(element, bytes) else "base64") for element in data]


def _refuse_many(recordings: int, most: int) -> None:
    if recordings > most:
        raise InvalidInput(f"{recordings} recordings in one request, more than the limit of {most}")


def _elements(audio: InferInput, most: int) -> list[Any]:
    raw = audio._raw_data  # gRPC's raw_input_contents; KServe has unpacked those of REST
    if raw is None:
        return audio.data if isinstance(audio.data, list) else []
    elements: list[Any] = []
    at = 0
    while at < len(raw):
        _refuse_many(len(elements), most)
        size = int.from_bytes(raw[at : at + 4], "little")
        element = raw[at + 4 : at + 4 + size]
        if at + 4 + size > len(raw):
            raise InvalidInput("input 'audio': its raw contents end in the middle of an element")
        elements.append(element)
        at += 4 + size
    return elements


def _instance(instance: Any, place: str) -> Recording:
    if not isinstance(instance, dict) or not ("audio" in instance or "uri" in instance):
        raise InvalidInput(f"{place}: key 'audio' is missing")
    if "audio" in instance and "uri" in instance:
        raise InvalidInput(f"{place}: both 'audio' and 'uri' are given; leave one out")
    audio, uri = instance.get("audio"), instance.get("uri")
    if uri is None and not isinstance(audio, str):
        raise InvalidInput(f"{place}.audio: expected base64 text, got {type(audio).__name__}")
    if audio is None and not isinstance(uri, str):
        raise InvalidInput(f"{place}.uri: expected text, got {type(uri).__name__}")
    timeline, label = instance.get("timeline", False), instance.get("label")
    if not isinstance(timeline, bool):
        raise InvalidInput(f"{place}.timeline: expected true or false, got {type(timeline).__name__}")
    if "label" in instance and not isinstance(label, str):
        raise InvalidInput(f"{place}.label: expected text, got {type(label).__name__}")
    return Recording(audio, uri, timeline=timeline, label=label)
