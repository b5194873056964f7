"""``kubevox serve`` and ``kubevox rollout``: what they refuse, what they begin with, and what a person is shown."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from kubevox.cli import app
from kubevox.cli.rollout_view import JsonView, LineView, LiveView, View, view_for
from kubevox.cli.serve import to_serve
from kubevox.deployment.backend import ServedVersion
from kubevox.deployment.checks import Check
from kubevox.deployment.local import PlatformSpec, WantedServer, free_port
from kubevox.deployment.record import RolloutRecord, Side, StepReport
from kubevox.deployment.rehearsal import SCENARIOS, Rehearsed
from kubevox.deployment.rollout import Rollout, RolloutEvent
from kubevox.deployment.traffic import Answer
from kubevox.errors import ConfigError, RegistryError
from kubevox.progress import note
from tests.tiny import EVALUATE, FEATURES, LENIENT, prepare

ROOT = Path(__file__).resolve().parent.parent
EMOTION = str(ROOT / "configs" / "emotion.yaml")
COMMAND = ["server", "--port", "{port}"]
ONE, TWO = (ServedVersion(version, f"/bundles/{version}") for version in "12")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--grpc-port", "9000"], "the route is HTTP; add --direct to serve gRPC without it"),
        (["rollout"], "name a challenger with --bundle URI, or a rehearsal with --rehearse all"),
        (["rollout", "--bundle", "x", "--rehearse", "all"], "one of the two"),
        (["rollout", "--rehearse", "good,bad"], "--rehearse bad: there is no such rehearsal; there are crash, errors"),
    ],
)
def test_what_makes_no_sense_is_refused_as_wrong_usage(arguments: list[str], words: str) -> None:
    ended = CliRunner().invoke(app, [*arguments, "--config", EMOTION])
    assert isinstance(ended.exception, ConfigError)
    assert words in str(ended.exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve"], "no champion of kubevox-emotion"),
        (["serve", "--direct"], "no champion of kubevox-emotion"),
        (["rollout", "--rehearse", "all"], "no champion of kubevox-emotion"),
        (["rollout", "--bundle", "bundles/x"], "there is nothing; train first: make run"),
    ],
)
def test_without_a_champion_the_remedy_is_told_and_nothing_is_made(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, [*arguments, "--config", EMOTION])
    assert isinstance(ended.exception, RegistryError)
    assert words in str(ended.exception)
    assert "make run" in str(ended.exception)
    assert list(tmp_path.iterdir()) == []


def wanted(served: ServedVersion, command: list[str] = COMMAND, attempt: int = 0) -> WantedServer:
    return WantedServer.of(served, command, 9.0).model_copy(update={"attempt": attempt})


def test_serving_begins_with_the_champion_whatever_was_served_before() -> None:
    before = PlatformSpec(generation=4, stable=wanted(TWO, ["old"]))
    assert to_serve(before, ONE, COMMAND, 9.0) == PlatformSpec(generation=4, stable=wanted(ONE))
    assert to_serve(PlatformSpec(), ONE, COMMAND, 9.0) == PlatformSpec(stable=wanted(ONE))


def test_a_challenger_that_nobody_watches_is_at_hand_but_gets_no_requests() -> None:
    before = PlatformSpec(stable=wanted(ONE, ["old"]), canary=wanted(TWO, ["old"], 3), canary_percent=50)
    assert to_serve(before, ONE, COMMAND, 9.0) == PlatformSpec(stable=wanted(ONE), canary=wanted(TWO, attempt=3))


def test_a_challenger_that_is_champion_by_now_is_in_production() -> None:
    before = PlatformSpec(stable=wanted(ONE), canary=wanted(TWO), canary_percent=50)
    assert to_serve(before, TWO, COMMAND, 9.0) == PlatformSpec(stable=wanted(TWO))


SHARE = Check("share", "pass", 0.104, 0.08, 0.13, 0.1, 400, "the route sent the challenger 42 of 400 requests")
REPORT = StepReport(10, 0.0, 4.0, (SHARE,), {"route": Side(400, 0, 0, 0.01, 0.02, {}, {}, {})})
RECORD = RolloutRecord(
    "mood",
    "1-slow",
    "",
    "",
    "1",
    "local",
    False,
    "rolled_back",
    "latency_p95",
    "too slow",
    0.0,
    1.0,
    (),
    None,
    (REPORT,),
)
ANSWERS = tuple(
    Answer("", 0.0, 0.01, kind, 200 if kind == "answered" else 500, version)
    for kind, version in [("answered", "1")] * 9 + [("answered", "1-slow"), ("failed", "1-slow")]  # type: ignore[list-item]
)


def watched(view: View) -> str:
    """A rehearsal and a rollout, as the view shows them."""
    events = [
        RolloutEvent("state", 1.0, "1-slow", "registered", 0),
        RolloutEvent("state", 1.0, "1-slow", "watching", 10),
        RolloutEvent("look", 2.0, "1-slow", "watching", 10, report=REPORT),
        RolloutEvent("state", 3.0, "1-slow", "passed", 10, report=REPORT),
        RolloutEvent("state", 4.0, "1-slow", "taking_back", 0, "too slow"),
        RolloutEvent("end", 4.0, "1-slow", "recorded", 0, record=RECORD),
    ]
    with view:
        view.begin("1-slow: its server takes 3 times as long")
        for event in events:
            view.event(event)
        note("version 1-slow is taken back: too slow")
        note("finishing a rollout that was interrupted")
        print("deploy: 30/400 requests", file=sys.stderr)
        rehearsed = Rehearsed(SCENARIOS["slow"], "1-slow", RECORD, "", ANSWERS)
        view.rehearsed(rehearsed, "slow.html")
        view.summary([rehearsed])
        view.rolled_out(Rollout("mood", "2", "1", "1", "rolled_back", "uar", "worse", 8, 0.0, True, "r.json", "r.html"))
    assert isinstance(view.out, io.StringIO)
    return view.out.getvalue()


@pytest.mark.parametrize("kind", [LineView, LiveView])
def test_a_rollout_is_told_in_lines(kind: type[View]) -> None:
    told = watched(kind(io.StringIO()))
    for line in (
        "1-slow: its server takes 3 times as long",
        "it gets 10 % of the requests",
        "10 % passed: 1 checks, observed share 10.4% of 400",
        "it is taken back: too slow",
        "finishing a rollout that was interrupted",
        "taken back (latency_p95), as it had to be",
        "clients: 10 answered (9 by 1, 1 by 1-slow), 1 failed (1 by 1-slow)",
        "1 by it, 0 by switching",
        "mood version 2 was taken back; version 1 stays champion",
    ):
        assert line in told
    assert told.count("too slow") == 1, "what the states say is not said twice"
    assert "30/400" not in told
    assert "registered" not in told


def test_a_rollout_is_told_in_json() -> None:
    told = [json.loads(line) for line in watched(JsonView(io.StringIO())).splitlines()]
    assert [event["event"] for event in told] == [
        *("begin", "state", "state", "look", "state", "state", "note", "note", "rehearsed", "rolled_out"),
    ]
    assert told[3]["checks"][0]["value"] == 0.104
    rehearsed = told[8]
    assert (rehearsed["as_expected"], rehearsed["observed_percent"]) == (True, {"10": 10.4})
    assert (rehearsed["failed_by_challenger"], rehearsed["failed_by_switching"]) == (1, 0)


def test_what_suits_a_pipe_is_lines() -> None:
    assert type(view_for(io.StringIO(), as_json=False)) is LineView
    assert type(view_for(io.StringIO(), as_json=True)) is JsonView


@contextlib.contextmanager
def started(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "kubevox.cli", *arguments]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


@pytest.mark.acceptance
def test_a_rollout_takes_place_in_what_is_served_and_what_it_promotes_is_served_on(
    make_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    """Serve a champion, roll another bundle out by the command line under traffic, end, serve again."""
    from kubevox.deployment.rehearsal import permuted, retempered
    from kubevox.evaluation.run import evaluate
    from kubevox.models.bundle import load_bundle, save_bundle
    from kubevox.registry import Registry
    from kubevox.training.tracking import mlflow_client

    tiny = prepare(tmp_path, make_corpus(tmp_path / "corpus", speakers=40, clips=3))
    result = tiny.train()
    registry = Registry(tiny.tracking)
    registry.promote(registry.register("kubevox-mood", result.bundle_uri, result.run_id, {}))
    trained = load_bundle(result.bundle_uri)

    def challenger(change: Callable[[Any], Any]) -> tuple[str, str]:
        changed = change(trained)
        uri = save_bundle(changed.classifier, changed.spec, tiny.store)
        evaluation = evaluate(uri, tiny.blocks, tiny.split.uri, FEATURES, EVALUATE, LENIENT, tiny.store)
        registry.register("kubevox-mood", uri, result.run_id, {})
        mlflow_client(tiny.tracking).set_tag(result.run_id, "bundle_uri", uri)
        return uri, evaluation.uri

    options = ["--config", EMOTION]
    for override in ("task.name=mood", f"tracking.uri={tiny.tracking}", f"store={tiny.store}"):
        options += ["--set", override]
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    recording = next((tmp_path / "corpus").rglob("*.wav"))
    body = {"content": recording.read_bytes(), "headers": {"content-type": "audio/wav"}}

    def answered() -> str:
        answer = httpx.post(f"{url}/v1/models/mood:predict", **body, trust_env=False)  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"][0]["model_version"]

    def ready(process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200:
                    return
            time.sleep(0.1)
        pytest.fail("it is not served")

    def rolled_out(uri: str, evaluation: str) -> tuple[int, dict[str, Any]]:
        command = [
            sys.executable,
            "-m",
            "kubevox.cli",
            "rollout",
            "--bundle",
            uri,
            "--evaluation",
            evaluation,
            "--json",
        ]
        ended = subprocess.run(
            [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
        )
        assert ended.stdout, ended.stderr
        return ended.returncode, json.loads(ended.stdout.splitlines()[-1])

    with started("serve", "--port", str(port), *options, cwd=tmp_path) as serving:
        ready(serving)
        assert answered() == "1"
        second = subprocess.run(
            [sys.executable, "-m", "kubevox.cli", "serve", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 1
        assert f"mood is served already at {url} by process {serving.pid}" in second.stderr
        code, outcome = rolled_out(*challenger(permuted))
        assert (code, outcome["outcome"], outcome["champion"]) == (3, "rolled_back", "1"), outcome
        assert answered() == "1"
        code, outcome = rolled_out(*challenger(retempered))
        assert (code, outcome["outcome"], outcome["champion"]) == (0, "promoted", "3"), outcome
        assert answered() == "3"
        serving.terminate()
        _, said = serving.communicate(timeout=30)
        assert serving.returncode == 0
    assert f"serving mood version 1 at {url}/v1/models/mood:predict" in said
    assert "version 2 was taken back" in said
    assert f"serving mood version 3 at {url}" in said
    with started("serve", "--port", str(port), *options, cwd=tmp_path) as again:
        ready(again)
        assert answered() == "3"
        again.send_signal(signal.SIGINT)
        again.communicate(timeout=30)
        assert again.returncode == 0
    logged = list(Path(tiny.store).rglob("inference*"))
    assert logged, "the servers keep an inference log in the store"
