"""More than a server can do, and the end of a server that is at work: nobody is left without an answer."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from pathlib import Path

import grpc
import httpx
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from kubevox.config import ServingConfig
from kubevox.deployment.local import free_port
from kubevox.models.bundle import Bundle, load_bundle
from tests.serving.live import Live, live_server
from tests.serving.load import Load, send
from tests.serving.recordings import LIMITS, recording
from tests.tiny import Tiny, untrained_bundle

pytestmark = pytest.mark.e2e

WAV = recording()
PREDICT = "/v1/models/mood:predict"


@pytest.fixture(scope="module")
def bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(untrained_bundle(tiny, tmp_path_factory.mktemp("store"), seed=9, limits=LIMITS))


def options(**changes: object) -> list[str]:
    return ["--options", ServingConfig(**({"workers": 1, "log": {"enabled": False}} | changes)).to_json()]  # type: ignore[arg-type]


def test_more_than_it_can_do_is_answered_200_or_503_and_then_it_is_itself_again(bundle: Bundle, tmp_path: Path) -> None:
    slow = options(max_queue=8, max_batch=1)
    with live_server(bundle.uri, *slow, module="tests.serving.slow_server") as server:
        # It manages 50 a second.
        load = asyncio.run(send(server.url + PREDICT, WAV, rate=150, seconds=2))
        assert set(load.statuses) == {200, 503}
        assert len(load.sent) == 300
        assert all(int(one.retry_after or 0) >= 1 for one in load.of(503))
        assert len(load.of(200)) > 60
        # Who is let in waits for the queue before him at the most.
        assert load.latency_ms(0.95) < 1000
        after = asyncio.run(send(server.url + PREDICT, WAV, rate=20, seconds=0.5))
        assert after.statuses == {200: 10}


def test_open_requests_are_limited_and_a_body_that_does_not_arrive_is_given_up(bundle: Bundle) -> None:
    with live_server(bundle.uri, *options(max_connections=4, request_timeout_s=3.0, work_timeout_s=3.0)) as server:
        held = [_half_a_request(server) for _ in range(4)]
        server.until(lambda: server.metric("kubevox_requests_in_flight") == 5.0)  # and the one that asks
        response = server.http.post(PREDICT, content=WAV, headers={"content-type": "audio/wav"})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert server.http.get("/v2/models/mood/ready").status_code == 200
        for one in held[1:]:
            one.close()
        server.until(lambda: server.metric("kubevox_requests_in_flight") == 2.0)
        assert server.http.post(PREDICT, content=WAV, headers={"content-type": "audio/wav"}).status_code == 200
        held[0].settimeout(10)
        assert held[0].recv(1000).startswith(b"HTTP/1.1 408")
        held[0].close()


def test_calls_over_grpc_are_limited_too(bundle: Bundle) -> None:
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="audio", datatype="BYTES", shape=[20], contents=pb.InferTensorContents(bytes_contents=[WAV] * 20)
    )
    asked = pb.ModelInferRequest(model_name="mood", inputs=[tensor])
    arguments = [*options(max_connections=1, drain_s=0.0), "--grpc_port", str(free_port())]
    with (
        live_server(bundle.uri, *arguments, module="tests.serving.slow_server") as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        first = stub.ModelInfer.future(asked)
        server.until(lambda: server.metric("kubevox_queued") > 0)
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            stub.ModelInfer(asked)
        assert first.result(20).model_name == "mood"
        assert stub.ModelInfer(asked).model_name == "mood"


def _half_a_request(server: Live) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0))
    sock.sendall(
        f"POST {PREDICT} HTTP/1.1\r\nhost: a\r\ncontent-type: audio/wav\r\ncontent-length: {len(WAV)}\r\n\r\n".encode()
        + WAV[:100]
    )
    return sock


@pytest.mark.parametrize("drain_s", [0.5, pytest.param(0.0, marks=pytest.mark.acceptance)])
def test_told_to_end_under_load_it_answers_everything_that_it_has_got(drain_s: float, bundle: Bundle) -> None:
    async def under_load(server: Live) -> tuple[Load, float, float]:
        began = time.monotonic()
        loading = asyncio.create_task(send(server.url + PREDICT, WAV, rate=100, seconds=1.5))
        await asyncio.sleep(0.5)
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        load = await loading
        await asyncio.to_thread(server.process.wait, 30)
        return load, told - began, time.monotonic() - told

    with live_server(bundle.uri, *options(drain_s=drain_s)) as server:
        load, told_s, took_s = asyncio.run(under_load(server))
        assert server.process.returncode == 0
        assert "Traceback" not in server.log()
    assert set(load.statuses) <= {200, 0}
    in_flight = [one for one in load.sent if one.written_s is not None and one.written_s < told_s]
    assert len(in_flight) > 30
    assert {one.status for one in in_flight} == {200}
    assert len(load.of(200)) >= 100 * (0.5 + drain_s) - 5
    # Who came too late found no one listening; a handshake that the system completes just before that is reset.
    assert len([one for one in load.of(0) if "Connect call failed" not in one.error]) <= 2
    assert took_s < 5.0


def test_while_it_ends_it_says_that_it_is_not_ready_and_closes_connections(bundle: Bundle) -> None:
    with live_server(bundle.uri, *options(drain_s=3.0)) as server:
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda: server.http.get("/v2/models/mood/ready").status_code == 503)
        response = server.http.post(PREDICT, content=WAV, headers={"content-type": "audio/wav"})
        assert response.status_code == 200
        assert response.headers["connection"] == "close"
        assert server.http.get("/v2/health/ready").json() == {"error": "the server ends"}
        server.process.send_signal(signal.SIGINT)  # no need to wait so long
        assert server.process.wait(2.5) == 0
