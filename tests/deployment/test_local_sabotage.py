"""Sabotaged servers: bad in exactly the way that was asked for, and reached by nobody who did not ask."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

from kubevox.deployment.local import LocalBackend
from kubevox.deployment.sabotage import Sabotage, sabotaged
from tests.deployment.test_local_platform import ONE, PREDICT, STANDIN, TWO


async def answered(app: Any, method: str = "POST") -> tuple[int, dict[str, Any], float]:
    """The status, the content, and the seconds until the answer began."""
    sent: list[dict[str, Any]] = []
    began, took = time.perf_counter(), 0.0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal took
        took = took or time.perf_counter() - began
        sent.append(message)

    await app({"type": "http", "method": method}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"]), took


async def sound(scope: Any, receive: Any, send: Any, seconds: float = 0.0) -> None:
    await asyncio.sleep(seconds)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"predictions": []}'})


def test_a_share_of_the_requests_is_answered_500_and_names_the_version() -> None:
    async def run() -> list[tuple[int, dict[str, Any], float]]:
        app = Sabotage(sound, "errors", "2", share=0.1, factor=3.0)
        return [await answered(app) for _ in range(50)]

    answers = asyncio.run(run())
    assert [status for status, _, _ in answers[:10]] == [200] * 10, "at first it is sound"
    assert Counter(status for status, _, _ in answers[10:]) == {200: 36, 500: 4}
    assert all(
        content == {"error": "sabotaged", "model_version": "2"} for status, content, _ in answers if status == 500
    )


def test_an_answer_takes_as_many_times_as_long() -> None:
    slow, get = asyncio.run(_both(Sabotage(functools.partial(sound, seconds=0.05), "slow", "2", share=0.5, factor=3.0)))
    assert slow[0] == get[0] == 200
    assert 0.14 < slow[2] < 0.3
    assert get[2] < 0.1, "only predictions are slowed down, or it would never be ready"


async def _both(app: Any) -> tuple[Any, Any]:
    return await answered(app), await answered(app, "GET")


def test_a_command_is_wrapped_and_keeps_what_is_open_in_it() -> None:
    command = sabotaged(["server", "--name", "{model}", "--port", "{port}"], "errors", 0.05)
    assert command[:3] == [sys.executable, "-m", "kubevox.deployment.sabotage"]
    assert command[command.index("--port") + 1] == "{port}"
    assert command[command.index("--") + 1 :] == ["server", "--name", "{model}", "--port", "{server_port}"]


def test_a_server_that_crashes_ends_at_once_and_says_why() -> None:
    places = {"{model}": "mood", "{version}": "2", "{port}": "1"}
    command = [places.get(argument, argument) for argument in sabotaged(STANDIN, "crash")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stderr) == (1, "error: sabotaged: this server crashes on start\n")


def test_a_sabotaged_server_is_a_canary_like_any_other(tmp_path: Path) -> None:
    one = LocalBackend("mood", tmp_path, 10.0, 5.0, STANDIN, sabotaged(STANDIN, "errors", 0.1), stable=ONE, grace_s=3.0)
    with contextlib.closing(one):
        one.start_canary(TWO)
        canary = one.endpoints().canary
        assert canary is not None
        with httpx.Client(base_url=canary.url, trust_env=False) as client:
            answers = [client.post(PREDICT, json={}) for _ in range(30)]
            ready = client.get("/v2/models/mood/ready")
        assert Counter(answer.status_code for answer in answers) == {200: 28, 500: 2}
        assert ready.status_code == 200
        status = one.folder.status()
        assert status is not None
        before = psutil.Process(status.pid).children(recursive=True)
        assert len(before) == 3  # production, the sabotage, and the server behind it
        one.take_back()
        assert sum(process.is_running() for process in before) == 1


def test_a_serving_image_has_no_way_to_it(repository: Path) -> None:
    serving = [path.read_text() for path in (repository / "kubevox" / "serving").rglob("*.py")]
    assert not any("sabotage" in text for text in serving)
