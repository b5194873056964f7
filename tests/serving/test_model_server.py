"""A live KServe model server: its answers are the bundle's, and nothing that a client sends is a server error."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.data.audio import decode, encode_flac
from kubevox.deployment.local import ModelClient, model_server
from kubevox.models.bundle import Bundle, load_bundle
from tests.serving.recordings import LIMITS, recording, silence, text
from tests.tiny import Tiny, untrained_bundle

pytestmark = pytest.mark.e2e

V1, V2 = "/v1/models/mood:predict", "/v2/models/mood/infer"
TRAILERS = f"POST {V1} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n"
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
    # A seed of which the recordings get different labels.
    return load_bundle(untrained_bundle(tiny, tmp_path_factory.mktemp("store"), seed=9, limits=LIMITS))


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
    assert answer["parameters"] == {
        "labels": "angry,happy,sad",
        "bundle": bundle.hash,
        "dataset": bundle.spec.dataset_hash,
    }
    outputs = {output["name"]: output for output in answer["outputs"]}
    probabilities = expected(bundle, recordings)
    assert outputs["label"]["datatype"] == "BYTES"
    assert outputs["label"]["shape"] == [len(data)]
    assert outputs["label"]["data"] == [bundle.spec.labels[index] for index in probabilities.argmax(axis=1)]
    assert len(set(outputs["label"]["data"])) > 1
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
    waveform, _ = decode(WAV, LIMITS)
    assert server.predict_v1([WAV]) == server.predict_v1([encode_flac(waveform)])


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
    assert described == {
        "label": [-1],
        "confidence": [-1],
        "abstained": [-1],
        "probabilities": [-1, 3],
        "duration_analysed_s": [-1],
    }
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
    "a truncated FLAC": (text(RECORDINGS["flac"][:2000]), "incomplete"),
    "too short": (text(recording(seconds=0.4)), "too short"),
    "too long": (text(recording(seconds=2.1, rate=8_000)), "longer"),
    "small, and long when unfolded": (text(silence(seconds=300)), "longer"),
    "too large": (text(b"\0" * 100_001), "bytes"),
    "too many channels": (text(recording(channels=3, seconds=0.6)), "channels"),
    "an odd sample rate": (text(recording(rate=4_000)), "sample rate"),
}


@pytest.mark.parametrize("kind", BAD_AUDIO)
def test_audio_that_cannot_be_used_is_refused_with_its_reason(kind: str, http: httpx.Client) -> None:
    audio, word = BAD_AUDIO[kind]
    refused(http.post(V1, json={"instances": [{"audio": audio}]}), word)
    refused(http.post(V2, json=v2(data=[audio])), word)


def test_the_bad_one_of_several_recordings_is_named(http: httpx.Client) -> None:
    refused(http.post(V1, json={"instances": [{"audio": GOOD}, {"audio": text(b"text")}]}), "recording 1")
    refused(http.post(V2, json=v2(shape=[2], data=[GOOD, text(b"text")])), "recording 1")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ([], "JSON object"),
        ("text", "JSON object"),
        (1, "JSON object"),
        ({}, "'instances' is missing"),
        ({"inputs": []}, "'instances' is missing"),
        ({"instances": None}, "must be a list"),
        ({"instances": {}}, "must be a list"),
        ({"instances": GOOD}, "must be a list"),
        ({"instances": []}, "no recording"),
        ({"instances": [None]}, "instances[0]: key 'audio' is missing"),
        ({"instances": [GOOD]}, "instances[0]: key 'audio' is missing"),
        ({"instances": [{"audio": GOOD}, {"sound": GOOD}]}, "instances[1]: key 'audio' is missing"),
        ({"instances": [{"audio": None}]}, "got NoneType"),
        ({"instances": [{"audio": 5}]}, "got int"),
        ({"instances": [{"audio": True}]}, "got bool"),
        ({"instances": [{"audio": [GOOD]}]}, "got list"),
        ({"instances": [{"audio": {"b64": GOOD}}]}, "got dict"),
        ({"instances": [{"audio": GOOD}] * 65}, "limit of 64"),
    ],
)
def test_v1_says_what_is_wrong_with_a_body(body: Any, word: str, http: httpx.Client) -> None:
    refused(http.post(V1, json=body), word)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ([], "JSON object"),
        ({}, "inputs: Field required"),
        ({"inputs": {}}, "inputs"),
        ({"inputs": []}, "'audio' is missing"),
        ({"inputs": [None]}, "inputs.0"),
        ({"inputs": [{"name": "audio"}]}, "inputs.0.shape"),
        (v2(name="sound"), "'audio' is missing (inputs given: sound)"),
        (v2(name=5), "inputs.0.name"),
        (v2(datatype="FP32"), "must be of datatype BYTES, not FP32"),
        (v2(datatype="FP16"), "FP16"),
        (v2(datatype=""), "must be of datatype BYTES"),
        (v2(datatype=None), "inputs.0.datatype"),
        (v2(shape=[]), "shape []"),
        (v2(shape=[2]), "shape [2] but 1 elements"),
        (v2(shape=[-1]), "shape [-1]"),
        (v2(shape=[1, 1, 1]), "shape [1, 1, 1]"),
        (v2(shape=[10**30]), "shape"),
        (v2(shape="1"), "inputs.0.shape"),
        (v2(shape=[None]), "inputs.0.shape.0"),
        (v2(data=None), "inputs.0.data"),
        (v2(data=GOOD), "inputs.0.data"),
        (v2(data=[]), "0 elements"),
        (v2(data=[], shape=[0]), "no recording"),
        (v2(data=[5]), "got int"),
        (v2(data=[[GOOD]]), "got list"),
        (v2(data=[GOOD] * 65, shape=[65]), "limit of 64"),
        ({"id": 5} | v2(), "id"),
        ({"outputs": 5} | v2(), "outputs"),
    ],
)
def test_v2_says_what_is_wrong_with_a_body(body: Any, word: str, http: httpx.Client) -> None:
    refused(http.post(V2, json=body), word)
    refused(http.post(V2, content=json.dumps(body).encode(), headers={"content-type": "text/plain"}))


@pytest.mark.parametrize("path", [V1, V2])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"nothing", b"null", b"\xff\xfe", b"\x00", b'{"instances": NaN}', b"[" * 100_000, b'{"a":' * 5_000],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_what_is_no_json_is_refused(path: str, content: bytes, content_type: str, http: httpx.Client) -> None:
    refused(http.post(path, content=content, headers={"content-type": content_type}))


@pytest.mark.parametrize(
    "body",
    [
        b'{"id": "\\ud800", "inputs": []}',
        json.dumps({"id": "\ud800"} | v2()).encode(),
        json.dumps(v2(name="\ud800")).encode(),
        json.dumps(v2(datatype="\ud800")).encode(),
        json.dumps(v2(data=["\ud800"])).encode(),
        json.dumps(v2(parameters={"\ud800": []})).encode(),
    ],
)
def test_half_a_surrogate_pair_which_no_answer_can_hold_is_refused(body: bytes, http: httpx.Client) -> None:
    refused(http.post(V2, content=body, headers={"content-type": "application/json"}))


TAIL = element(GOOD.encode())


@pytest.mark.parametrize(
    ("header", "tail", "word"),
    [
        (b"\xff\x00 garbage", b"", "not valid JSON"),
        (b"null", b"", "JSON object"),
        ([1, 2], b"", "JSON object"),
        ({}, b"", "inputs"),
        ({"inputs": "audio"}, b"", "inputs"),
        ({"inputs": [5]}, b"", "inputs.0"),
        (behind(len(TAIL)), b"", ""),
        (behind(3), b"abc", ""),
        (behind(8), b"\xff\xff\xff\xffabcd", ""),
        (behind(-1), TAIL, ""),
        (behind(1.5), TAIL, ""),
        (behind("all"), TAIL, ""),
        (behind(None), TAIL, ""),
        (behind(len(TAIL), shape=[10**30]), TAIL, ""),
        (behind(len(TAIL), shape=[2]), TAIL, ""),
        (behind(len(TAIL), shape=1), TAIL, "inputs.0.shape"),
        (behind(len(TAIL), name=["audio"]), TAIL, "inputs.0.name"),
        (behind(len(TAIL), datatype=None), TAIL, "inputs.0.datatype"),
        (behind(len(TAIL), datatype="NONE"), TAIL, "datatype"),
        (behind(4, datatype="FP32"), b"abcd", "must be of datatype BYTES"),
        (behind(len(TAIL), parameters=["binary_data_size"]), TAIL, "parameters"),
        (behind(len(TAIL), parameters={}), TAIL, "data"),
        ({"id": {"a": 1}} | behind(len(TAIL)), TAIL, "id"),
        ({"outputs": [5]} | behind(len(TAIL)), TAIL, "outputs.0"),
        (v2(shape=None), b"", "inputs.0.shape"),
        (v2(data=5), b"", "inputs.0.data"),
    ],
)
def test_a_binary_request_that_is_none_is_refused(header: Any, tail: bytes, word: str, http: httpx.Client) -> None:
    response = binary(http, header, tail)
    refused(response, word)
    assert len(response.text) < 500, "a reason does not repeat the request"


@pytest.mark.parametrize("length", ["abc", "-5", "1.5", "9" * 5_000, "99999999", "²"])
def test_a_length_of_the_binary_extension_that_is_none_is_refused(length: str, http: httpx.Client) -> None:
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": length.encode()}
    response = http.post(V2, content=b"{", headers=headers)
    assert response.status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"ce-specversion": "99"},
        {"ce-contenttype": "application/json"},
        {"ce-time": "yesterday"},
        {"content-type": "application/cloudevents+json"},
    ],
)
def test_a_cloud_event_that_is_none_is_refused(headers: dict[str, str], http: httpx.Client) -> None:
    event = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "a", "ce-type": "b"}
    refused(http.post(V1, content=b"\xff\xfe", headers=event | headers))
    whole = dict.fromkeys(("time", "type", "source", "id", "specversion", "data"), 1)
    refused(http.post(V1, json=whole, headers=headers))


def test_a_model_that_is_not_there_is_404(http: httpx.Client) -> None:
    refused(http.post("/v1/models/other:predict", json={"instances": [{"audio": GOOD}]}), "other", status=404)
    refused(http.post("/v2/models/other/infer", json=v2()), "other", status=404)
    refused(http.get("/v2/models/other/ready"), "other", status=404)
    refused(http.get("/v1/models/other"), "other", status=404)
    refused(http.get("/nowhere"), status=404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/models/mood/unload"),
        ("POST", "/v2/repository/models/mood/load"),
        ("POST", "/v2/repositor%79/models/mood/unload"),
        ("POST", "/v2/models/mood/versions/1/infer"),
        ("GET", "/v2/models/mood/versions/1"),
        ("GET", "/v2/models/mood/versions/1/ready"),
    ],
)
def test_a_client_cannot_unload_the_model_nor_ask_for_what_is_not_there(
    method: str, path: str, http: httpx.Client
) -> None:
    refused(http.request(method, path, json=v2()), status=404)
    assert http.get("/v2/models/mood/ready").status_code == 200


@pytest.mark.parametrize("path", [V1, V2])
def test_the_wrong_method_is_refused(path: str, http: httpx.Client) -> None:
    refused(http.delete(path), status=405)


@pytest.mark.parametrize("path", [V1, V2])
def test_a_body_over_the_limit_is_refused_whether_its_length_is_declared_or_not(path: str, http: httpx.Client) -> None:
    size = 64 * (LIMITS.max_bytes * 4 // 3 + 1024) + 1
    refused(http.post(path, content=b" " * size, headers={"content-type": "application/json"}), "limit", status=413)

    def in_pieces() -> Iterator[bytes]:
        for _ in range(1 + size // (1 << 20)):
            yield b" " * (1 << 20)

    refused(http.post(path, content=in_pieces(), headers={"content-type": "application/json"}), "limit", status=413)


@pytest.mark.parametrize("start", ["GET /", "GET / HTTP/1.1\r\na: ", "GET / HTTP/1.1\r\n", TRAILERS])
def test_what_surrounds_a_body_does_not_grow_without_end(start: str, http: httpx.Client) -> None:
    piece = b"a: b\r\n" * 10_000 if start.endswith("\r\n") else b"a" * 60_000
    with socket.create_connection(("127.0.0.1", http.base_url.port or 0), timeout=10) as sock:
        sock.sendall(start.encode())
        with pytest.raises(ConnectionError):
            sock.sendall(1000 * piece)
    assert http.get("/v2/models/mood/ready").status_code == 200


@pytest.mark.parametrize("accept", ["text/plain; version=x", "application/openmetrics-text; version=1.x", "*/*", ""])
def test_metrics_are_told_whatever_is_accepted(accept: str, http: httpx.Client) -> None:
    response = http.get("/metrics", headers={"accept": accept})
    assert response.status_code == 200
    assert "kubevox_queued" in response.text


@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream", "application/cloudevents+json"])
@pytest.mark.parametrize(("path", "start"), [(V1, '{"instances": ['), (V2, '{"inputs": ['), (V2, '{"id": "", "x": [')])
def test_millions_of_elements_are_refused_at_once(path: str, start: str, kind: str, http: httpx.Client) -> None:
    body = start.encode() + 2_000_000 * b"{}," + b"{}]}"
    refused(http.post(path, content=body, headers={"content-type": kind}, timeout=5.0), "elements")


KEYS = st.sampled_from(
    ["instances", "audio", "inputs", "name", "shape", "datatype", "data", "parameters", "id", "outputs", "", "b64"]
)
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**20)
    | st.floats()
    | st.text(max_size=5)
    | st.text("\ud800\udfffa", max_size=2)
    | st.sampled_from([GOOD, "audio", "BYTES", "FP16", "FP32"])
)
DOCUMENTS = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))
INPUTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("audio") | DOCUMENTS,
        "shape": st.just([1]) | DOCUMENTS,
        "datatype": st.just("BYTES") | DOCUMENTS,
        "data": st.lists(st.just(GOOD) | DOCUMENTS, max_size=2) | DOCUMENTS,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-9, 9) | ATOMS}) | DOCUMENTS,
    },
)
V2_BODIES = st.fixed_dictionaries(
    {"inputs": st.lists(INPUTS, max_size=2) | DOCUMENTS},
    optional={"id": DOCUMENTS, "outputs": st.lists(INPUTS, max_size=1) | DOCUMENTS, "parameters": DOCUMENTS},
)
V1_BODIES = st.fixed_dictionaries(
    {"instances": st.lists(st.fixed_dictionaries({"audio": DOCUMENTS}) | DOCUMENTS, max_size=3)}
)


@given(DOCUMENTS | V1_BODIES | V2_BODIES, st.sampled_from([V1, V2, "binary"]), st.binary(max_size=20))
@settings(max_examples=120)
def test_no_json_document_is_a_server_error(http: httpx.Client, body: Any, path: str, tail: bytes) -> None:
    content = json.dumps(body).encode()
    if path == "binary":
        response = binary(http, content, tail)
    else:
        response = http.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400), response.text
    assert response.status_code == 200 or response.json()["error"]


@given(st.binary(max_size=300), st.integers(0, 60))
@settings(max_examples=60)
def test_no_audio_bytes_are_a_server_error(http: httpx.Client, junk: bytes, at: int) -> None:
    """Bytes that begin as a recording does."""
    for start in (WAV[:at], RECORDINGS["flac"][:at], RECORDINGS["ogg"][:at]):
        response = http.post(V1, json={"instances": [{"audio": text(start + junk + WAV[at : at + 2_000])}]})
        assert response.status_code in (200, 400), response.text


def test_after_all_this_it_still_answers(server: ModelClient, bundle: Bundle) -> None:
    (answer,) = server.predict_v1([WAV])
    np.testing.assert_allclose(list(answer["probabilities"].values()), expected(bundle, [WAV])[0], atol=1e-5)
