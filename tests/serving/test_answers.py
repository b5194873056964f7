"""What a live server answers beside labels: its schema, timelines, explanations, ids, metrics; over REST and gRPC."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from kubevox.config import ServingConfig
from kubevox.data.audio import decode
from kubevox.deployment.local import free_port
from kubevox.models.bundle import Bundle, load_bundle
from kubevox.serving.inference_log import read_inference_log
from tests.serving.live import Live, live_server
from tests.serving.recordings import LIMITS, recording, text
from tests.tiny import Tiny, untrained_bundle

pytestmark = pytest.mark.e2e

WAV, LONG = recording(), recording(seconds=3.3, rate=8_000)
PREDICT, EXPLAIN, INFER = "/v1/models/mood:predict", "/v1/models/mood:explain", "/v2/models/mood/infer"
OPTIONS = ServingConfig(workers=1, min_confidence=0.5, timeline_max_s=5.0)


@pytest.fixture(scope="module")
def bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(untrained_bundle(tiny, tmp_path_factory.mktemp("store"), seed=9, limits=LIMITS))


@pytest.fixture(scope="module")
def log_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def live(bundle: Bundle, log_store: str) -> Iterator[Live]:
    options = ["--options", OPTIONS.to_json(), "--log_store", log_store, "--grpc_port", str(free_port())]
    with live_server(bundle.uri, *options) as server:
        yield server


@pytest.fixture(scope="module")
def http(live: Live) -> httpx.Client:
    return live.http


@pytest.fixture(scope="module")
def api(http: httpx.Client) -> dict[str, Any]:
    response = http.get("/openapi.json")
    assert response.status_code == 200
    return response.json()


def schema(api: dict[str, Any], path: str) -> Draft202012Validator:
    """What the document says of a path's good answers."""
    answer = api["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    return Draft202012Validator(answer | {"components": api["components"]})


def raw(http: httpx.Client, data: bytes, path: str = PREDICT, kind: str = "audio/wav", **asked: str) -> httpx.Response:
    return http.post(path, content=data, params=asked, headers={"content-type": kind})


@pytest.mark.parametrize("kind", ["audio/wav", "audio/x-wav", "Audio/FLAC; codecs=flac"])
def test_a_recording_can_be_the_body(kind: str, http: httpx.Client, bundle: Bundle) -> None:
    response = raw(http, WAV, kind=kind)
    assert response.status_code == 200
    (answer,) = response.json()["predictions"]
    expected = bundle.predict([decode(WAV, LIMITS)[0]])[0]
    np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-5)


def test_a_body_that_is_no_recording_is_refused_as_such(http: httpx.Client) -> None:
    response = raw(http, b"only text, and no base64 either")
    assert response.status_code == 400
    assert "not a recording" in response.json()["error"]


def test_an_answer_has_everything_that_the_document_promises(
    http: httpx.Client, api: dict[str, Any], bundle: Bundle
) -> None:
    body = http.post(PREDICT, json={"instances": [{"audio": text(WAV)}, {"audio": text(LONG[:20_000])}]})
    assert body.status_code == 400  # the second is cut off
    body = http.post(PREDICT, json={"instances": [{"audio": text(WAV)}] * 2}).json()
    schema(api, PREDICT).validate(body)
    answer = body["predictions"][0]
    assert set(answer) == set(api["components"]["schemas"]["Prediction"]["required"])
    assert answer["confidence"] == answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())
    assert answer["abstained"] == (answer["confidence"] < 0.5)
    assert (answer["bundle"], answer["dataset"]) == (bundle.hash, bundle.spec.dataset_hash)
    assert body["timing_ms"]["total"] >= body["timing_ms"]["model"] > 0


def test_a_timeline_stands_beside_the_answer(http: httpx.Client, api: dict[str, Any]) -> None:
    body = {"instances": [{"audio": text(recording(seconds=2.0)), "timeline": True}, {"audio": text(WAV)}]}
    answer = http.post(PREDICT, json=body).json()
    schema(api, PREDICT).validate(answer)
    first, second = answer["predictions"]
    assert "timeline" not in second
    windows = first["timeline"]["windows"]
    assert [(window["start_s"], window["end_s"]) for window in windows] == [(0, 1), (0.5, 1.5), (1, 2)]
    mean = np.mean([list(window["probabilities"].values()) for window in windows], axis=0)
    np.testing.assert_allclose(list(first["timeline"]["probabilities"].values()), mean, atol=1e-6)
    alone = http.post(PREDICT, json={"instances": [{"audio": text(recording(seconds=2.0))}]}).json()["predictions"][0]
    assert first["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_a_long_recording_is_refused_but_for_a_timeline(http: httpx.Client) -> None:
    assert "longer than the limit of 2 s" in raw(http, LONG).json()["error"]
    response = raw(http, LONG, timeline="true")
    assert response.status_code == 200
    assert response.json()["predictions"][0]["timeline"]["windows"][-1]["end_s"] == 3.3
    assert raw(http, recording(seconds=5.5, rate=8_000), timeline="true").status_code == 400
    assert "timeline" in raw(http, WAV, timeline="perhaps").json()["error"]


def test_an_explanation_says_what_spoke_for_the_label(http: httpx.Client, api: dict[str, Any], bundle: Bundle) -> None:
    body = http.post(EXPLAIN, json={"instances": [{"audio": text(WAV)}, {"audio": text(WAV), "label": "sad"}]})
    assert body.status_code == 200, body.text
    schema(api, EXPLAIN).validate(body.json())
    own, asked = body.json()["explanations"]
    assert own["explanation"]["label"] == own["label"]
    assert asked["explanation"]["label"] == "sad"
    assert asked["label"] == own["label"]
    refused = http.post(EXPLAIN, json={"instances": [{"audio": text(WAV), "label": "bored"}]})
    assert refused.status_code == 400
    assert "recording 0: no label 'bored'" in refused.json()["error"]
    assert raw(http, WAV, EXPLAIN, label="happy").json()["explanations"][0]["explanation"]["label"] == "happy"


@pytest.mark.parametrize(
    ("instance", "word"),
    [
        ({"audio": text(WAV), "uri": "https://a/b.wav"}, "both 'audio' and 'uri'"),
        ({"uri": 5}, "instances[0].uri: expected text, got int"),
        ({"uri": "https://example.org/a.wav"}, "serving.remote.hosts"),
        ({"uri": "s3://bucket/a.wav"}, "serving.remote.buckets"),
        ({"uri": "file:///etc/passwd"}, "file:///etc/passwd"),
        ({"audio": text(WAV), "timeline": "yes"}, "instances[0].timeline"),
        ({"audio": text(WAV), "label": 3}, "instances[0].label"),
    ],
)
def test_what_an_instance_may_ask_is_checked(instance: dict[str, Any], word: str, http: httpx.Client) -> None:
    response = http.post(PREDICT, json={"instances": [instance]})
    assert response.status_code == 400
    assert word in response.json()["error"]


def test_a_request_keeps_the_id_that_it_came_with_and_gets_one_otherwise(http: httpx.Client) -> None:
    body = {"instances": [{"audio": text(WAV)}]}
    given = http.post(PREDICT, json=body, headers={"x-request-id": "mine-42"})
    assert given.headers["x-request-id"] == given.json()["id"] == "mine-42"
    made = http.post(PREDICT, json=body)
    assert re.fullmatch("[0-9a-f]{32}", made.headers["x-request-id"])
    assert made.json()["id"] == made.headers["x-request-id"]
    odd = http.post(PREDICT, json=body, headers={"x-request-id": "with spaces, and öther letters".encode()})
    assert re.fullmatch("[0-9a-f]{32}", odd.headers["x-request-id"])
    assert http.post(PREDICT, json={}, headers={"x-request-id": "refused"}).headers["x-request-id"] == "refused"
    twice = http.post(PREDICT, json=body, headers=[("x-request-id", "first"), ("x-request-id", "and a second")])
    assert twice.headers["x-request-id"] == twice.json()["id"] == "first"


def test_prometheus_is_told_of_requests_stages_labels_and_errors(http: httpx.Client) -> None:
    def told() -> dict[str, float]:
        lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith("kubevox_")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    before = told()
    label = raw(http, WAV).json()["predictions"][0]["label"]
    raw(http, b"nothing")
    after = told()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown('kubevox_requests_total{model="mood",route="predict",status="200",version="7"}') == 1
    assert grown('kubevox_requests_total{model="mood",route="predict",status="400",version="7"}') == 1
    assert grown(f'kubevox_predictions_total{{answered_by="",label="{label}",model="mood",version="7"}}') == 1
    assert grown('kubevox_audio_seconds_total{model="mood",version="7"}') == pytest.approx(1.0)
    for stage in ("queue", "decode", "features", "model"):
        assert grown(f'kubevox_stage_seconds_count{{model="mood",stage="{stage}",version="7"}}') == 1
    assert grown('kubevox_confidence_count{model="mood",version="7"}') == 1
    assert grown('kubevox_batch_size_count{model="mood",version="7"}') == 2  # what is refused was worked on too
    assert after['kubevox_queued{model="mood",version="7"}'] == 0


def test_the_log_of_requests_holds_ids_and_nothing_of_the_clients(live: Live) -> None:
    raw(live.http, WAV)
    live.http.post(PREDICT, json={"instances": [{"audio": "somebody's secret"}]}, headers={"x-request-id": "seen"})
    live.until(lambda: '"request":"seen"' in live.log())
    lines = [json.loads(line[line.index("{") :]) for line in live.log().splitlines() if '"request":"seen"' in line]
    assert [(line["route"], line["status"]) for line in lines] == [("predict", 400)]
    assert "secret" not in live.log()
    assert "127.0.0.1:" not in "".join(line for line in live.log().splitlines() if "predict" in line)


def grpc_request(*recordings: bytes, **changes: Any) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="audio",
        datatype="BYTES",
        shape=[len(recordings)],
        contents=pb.InferTensorContents(bytes_contents=recordings),
    )
    return pb.ModelInferRequest(**({"model_name": "mood", "id": "g-1", "inputs": [tensor]} | changes))


def raw_grpc_request(contents: bytes, recordings: int = 1) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="audio", datatype="BYTES", shape=[recordings])
    return pb.ModelInferRequest(model_name="mood", inputs=[tensor], raw_input_contents=[contents])


def test_grpc_answers_as_rest_does(live: Live, bundle: Bundle) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{live.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        assert stub.ModelReady(pb.ModelReadyRequest(name="mood")).ready
        answer = stub.ModelInfer(grpc_request(WAV, text(WAV).encode()))
    assert (answer.model_name, answer.model_version, answer.id) == ("mood", "7", "g-1")
    outputs = {output.name: output for output in answer.outputs}
    rows = np.array(outputs["probabilities"].contents.fp32_contents).reshape(2, 3)
    expected = bundle.predict([decode(WAV, LIMITS)[0]])[0]
    np.testing.assert_allclose(rows, [expected, expected], atol=1e-5)
    assert list(outputs["label"].contents.bytes_contents) == [bundle.spec.labels[expected.argmax()].encode()] * 2


def test_grpc_takes_raw_contents_and_ids_like_those_of_rest(live: Live) -> None:
    raw = b"".join(struct.pack("<I", len(data)) + data for data in (WAV, text(WAV).encode()))
    with grpc.insecure_channel(f"127.0.0.1:{live.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(raw_grpc_request(raw, 2), metadata=[("x-request-id", "mine-43")])
        usual = stub.ModelInfer(grpc_request(WAV, WAV, id=""), metadata=[("x-request-id", "of several words")])
    assert answer.id == "mine-43"
    assert re.fullmatch("[0-9a-f]{32}", usual.id)
    assert list(answer.outputs) == list(usual.outputs)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (grpc_request(b"nothing"), "INVALID_ARGUMENT"),
        (grpc_request(), "INVALID_ARGUMENT"),
        (grpc_request(WAV, model_name="other"), "NOT_FOUND"),
        (grpc_request(inputs=[]), "INVALID_ARGUMENT"),
        (grpc_request(raw_input_contents=[b"abc", b"def"]), "INVALID_ARGUMENT"),
        (grpc_request(raw_input_contents=[b"\xff\xff\xff\xffabc"]), "INVALID_ARGUMENT"),
        *((raw_grpc_request(raw), "INVALID_ARGUMENT") for raw in (b"", b"abc", b"\xff\xff\xff\xffabc", b"\3\0\0\0abc")),
        (raw_grpc_request(bytes(4_000_000), 1_000_000), "INVALID_ARGUMENT"),
        (grpc_request(*[b""] * 1_000_000), "INVALID_ARGUMENT"),
    ],
)
def test_grpc_says_what_is_wrong(message: pb.ModelInferRequest, status: str, live: Live) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{live.grpc_port}") as channel, pytest.raises(grpc.RpcError) as caught:
        GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=5)
    assert caught.value.code().name == status  # type: ignore[attr-defined]


def test_no_client_unloads_the_model_over_grpc(live: Live) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{live.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="mood"))
        assert stub.ModelReady(pb.ModelReadyRequest(name="mood")).ready


def test_every_answer_is_in_the_inference_log_with_its_drift_features(bundle: Bundle, tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"drain_s": 0.0})
    with live_server(bundle.uri, "--options", options.to_json(), "--log_store", str(tmp_path)) as server:
        ids = [raw(server.http, WAV).json()["id"] for _ in range(3)]
        server.http.post(INFER, json={"id": "v2", "inputs": []})  # refused, so not in it
    table = read_inference_log(str(tmp_path), "mood")
    rows = {row["request_id"]: row for row in table.to_pylist()}
    assert list(rows) == ids
    row = rows[ids[0]]
    assert (row["model_version"], row["bundle"], row["protocol"]) == ("7", bundle.hash, "raw")
    assert row["duration_s"] == pytest.approx(1.0)
    assert not {"audio"} & {name for name in table.column_names if row[name] is not None}
