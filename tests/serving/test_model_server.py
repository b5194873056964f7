"""A live KServe model server: its answers are the bundle's, and nothing that a client sends is a server error."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import AudioLimits
from kubevox.data.audio import decode
from kubevox.deployment.local import ModelClient, model_server
from kubevox.models.bundle import Bundle, load_bundle
from tests.tiny import Tiny, untrained_bundle

pytestmark = pytest.mark.e2e

LIMITS = AudioLimits(min_duration_s=0.5, max_duration_s=2.0, max_bytes=100_000, max_channels=2)
V1, V2 = "/v1/models/mood:predict", "/v2/models/mood/infer"


def recording(
    seconds: float = 1.0, rate: int = 16_000, channels: int = 1, container: str = "WAV", subtype: str = "PCM_16"
) -> bytes:
    """A tone in noise."""
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * 220 * (1 + time) * time)
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(time))
    buffer = io.BytesIO()
    samples = np.stack([(tone + noise) / (1 + channel) for channel in range(channels)], axis=1)
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


GOOD = text(recording())
RECORDINGS = {
    "wav": recording(),
    "flac": recording(container="FLAC"),
    "stereo": recording(channels=2),
    "24 bit": recording(subtype="PCM_24"),
    "float": recording(subtype="FLOAT", seconds=0.8),
    "44.1 kHz": recording(rate=44_100, seconds=0.6),
    "8 kHz": recording(rate=8_000, seconds=1.9),
    "ogg": recording(container="OGG", subtype="VORBIS"),
}


@pytest.fixture(scope="module")
def bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(untrained_bundle(tiny, tmp_path_factory.mktemp("store"), limits=LIMITS))


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[ModelClient]:
    with model_server(bundle.uri, "mood", "7", 60.0, 30.0) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: ModelClient) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server._http.base_url, timeout=30.0, trust_env=False) as client:
        yield client


def expected(bundle: Bundle, recordings: list[bytes]) -> np.ndarray:
    return bundle.predict([decode(data, LIMITS)[0] for data in recordings])


def refused(response: httpx.Response, *words: str, status: int = 400) -> None:
    """A refusal is JSON with a reason of one line."""
    assert response.status_code == status, response.text
    reason = response.json()["error"]
    assert reason
    for word in words:
        assert word in reason, reason
    assert "Traceback" not in reason


def v2(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "audio", "shape": [1], "datatype": "BYTES", "data": [GOOD]} | changes]}


def binary(http: httpx.Client, header: Any, tail: bytes = b"", length: str | None = None) -> httpx.Response:
    """A V2 request of the binary data extension: JSON, then the elements."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": length or str(len(head)),
    }
    return http.post(V2, content=head + tail, headers=headers)


def element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def behind(size: Any, **changes: Any) -> dict[str, Any]:
    """An input whose data lies behind the JSON."""
    described = {"name": "audio", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    return {"inputs": [described | changes]}


# What it answers


@pytest.mark.parametrize("kind", RECORDINGS)
def test_v1_answers_as_the_bundle_does(kind: str, server: ModelClient, bundle: Bundle) -> None:
    (answer,) = server.predict_v1([RECORDINGS[kind]])
    (row,) = expected(bundle, [RECORDINGS[kind]])
    assert list(answer["probabilities"]) == bundle.spec.labels
    np.testing.assert_allclose(list(answer["probabilities"].values()), row, atol=1e-5)
    assert answer["label"] == bundle.spec.labels[row.argmax()]
    assert answer["model_version"] == "7"
    assert answer["bundle"] == bundle.hash == Path(bundle.uri).name
    waveform, _ = decode(RECORDINGS[kind], LIMITS)
    assert answer["duration_analysed_s"] == pytest.approx(min(waveform.duration_s, 1.0), abs=1e-3)


def test_v2_answers_as_the_bundle_does(http: httpx.Client, bundle: Bundle) -> None:
    recordings = list(RECORDINGS.values())
    data = [text(data) for data in recordings]
    response = http.post(V2, json={"id": "forty-two"} | v2(shape=[len(data)], data=data))
    answer = response.json()
    assert response.status_code == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("mood", "7", "forty-two")
    assert answer["parameters"] == {"labels": "angry,happy,sad", "bundle": bundle.hash}
    outputs = {output["name"]: output for output in answer["outputs"]}
    probabilities = expected(bundle, recordings)
    assert outputs["label"]["datatype"] == "BYTES"
    assert outputs["label"]["shape"] == [len(data)]
    assert outputs["label"]["data"] == [bundle.spec.labels[index] for index in probabilities.argmax(axis=1)]
    assert outputs["probabilities"]["datatype"] == "FP32"
    assert outputs["probabilities"]["shape"] == [len(data), 3]
    np.testing.assert_allclose(np.reshape(outputs["probabilities"]["data"], (-1, 3)), probabilities, atol=1e-5)
    assert outputs["duration_analysed_s"]["shape"] == [len(data)]


def test_a_request_of_several_is_answered_in_its_order(server: ModelClient, bundle: Bundle) -> None:
    recordings = list(RECORDINGS.values())
    answers = server.predict_v1(recordings)
    served = [list(answer["probabilities"].values()) for answer in answers]
    np.testing.assert_allclose(served, expected(bundle, recordings), atol=1e-5)
    assert len({answer["probabilities"]["angry"] for answer in answers}) > len(recordings) / 2, "they are not alike"


def test_wav_and_flac_of_one_recording_get_the_same_answer(server: ModelClient) -> None:
    assert server.predict_v1([RECORDINGS["wav"]]) == server.predict_v1([RECORDINGS["flac"]])


def test_requests_at_the_same_time_do_not_disturb_each_other(server: ModelClient, bundle: Bundle) -> None:
    from concurrent.futures import ThreadPoolExecutor

    recordings = list(RECORDINGS.values()) * 3
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda data: server.predict_v1([data])[0], recordings))
    served = [list(answer["probabilities"].values()) for answer in answers]
    np.testing.assert_allclose(served, expected(bundle, recordings), atol=1e-5)


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "application/x-www-form-urlencoded", None]
)
@pytest.mark.parametrize("path", [V1, V2])
def test_json_is_read_whatever_it_is_called(path: str, content_type: str | None, http: httpx.Client) -> None:
    """``curl -d`` calls everything a form, and many clients name a character set."""
    body = {"instances": [{"audio": GOOD}]} if path == V1 else v2()
    headers = {"content-type": content_type} if content_type else {}
    assert http.post(path, content=json.dumps(body).encode(), headers=headers).status_code == 200


def test_the_binary_extension_carries_base64_too(http: httpx.Client) -> None:
    tail = element(GOOD.encode())
    response = binary(http, behind(len(tail)), tail)
    assert response.status_code == 200
    assert response.json()["outputs"] == http.post(V2, json=v2()).json()["outputs"]


def test_a_cloud_event_is_answered(http: httpx.Client) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "a", "ce-type": "b"}
    response = http.post(V1, json={"instances": [{"audio": GOOD}]}, headers=headers)
    assert response.status_code == 200
    assert response.json()["predictions"][0]["label"] in ("angry", "happy", "sad")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/", {"status": "alive"}),
        ("/v1/models", {"models": ["mood"]}),
        ("/v1/models/mood", {"name": "mood", "ready": True}),
        ("/v2", {"name": "kserve", "extensions": ["binary_tensor_data"]}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models", {"models": ["mood"]}),
        ("/v2/models/mood/ready", {"name": "mood", "ready": True}),
        ("/v2/models/mood", {"inputs": [{"name": "audio", "datatype": "BYTES", "shape": [-1]}]}),
    ],
)
def test_readiness_and_metadata_are_told(path: str, part: dict[str, Any], http: httpx.Client) -> None:
    response = http.get(path)
    assert response.status_code == 200
    assert part.items() <= response.json().items()


def test_the_metadata_name_every_output(http: httpx.Client) -> None:
    described = {output["name"]: output["shape"] for output in http.get("/v2/models/mood").json()["outputs"]}
    assert described == {"label": [-1], "probabilities": [-1, 3], "duration_analysed_s": [-1]}
    assert set(described) == {output["name"] for output in http.post(V2, json=v2()).json()["outputs"]}


# What it refuses

WAV = recording()
BAD_AUDIO = {
    "no base64": ("not base64!", "base64"),
    "not ascii": ("föö", "base64"),
    "cut off base64": (GOOD[:-1], "base64"),
    "text": (text(b"this is no recording, only some text\n" * 20), "not a recording"),
    "empty": ("", "empty"),
    "no samples": (text(recording(seconds=0)), "samples"),
    "a truncated WAV": (text(WAV[: len(WAV) // 2]), "truncated"),
    "a WAV's header": (text(WAV[:44]), "truncated"),
    "a truncated FLAC": (text(RECORDINGS["flac"][:2000]), "truncated"),
    "too short": (text(recording(seconds=0.4)), "too short"),
    "too long": (text(recording(seconds=2.1, rate=8_000)), "longer"),
    "unfolds into hours": (text(soundless(seconds=3600)) if False else GOOD[:8], ""),
    "too large": (text(b"\0" * 100_001), "bytes"),
    "too many channels": (text(recording(channels=3, seconds=0.6)), "channels"),
    "an odd sample rate": (text(recording(rate=4_000)), "sample rate"),
}
