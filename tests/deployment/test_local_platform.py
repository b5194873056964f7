"""The local platform: what is asked for is in force when a call returns; nobody who is killed leaves a half state."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from kubevox.deployment.backend import Deployed, ServedVersion
from kubevox.deployment.local import LocalBackend, PlatformFolder, PlatformSpec, WantedServer, platform_folder
from kubevox.deployment.local.servers import last_words
from kubevox.deployment.local.state import ServerStatus
from kubevox.errors import DeploymentError

PREDICT = "/v1/models/mood:predict"
HTTP = httpx.Client(trust_env=False, timeout=20)
STANDIN = [
    sys.executable,
    "-P",
    str(Path(__file__).with_name("standin.py")),
    "--name",
    "{model}",
    "--version",
    "{version}",
]
STANDIN += ["--port", "{port}"]
ONE, TWO, THREE = (ServedVersion(version, f"/bundles/{version}") for version in "123")


def backend(work: Path, *behaviour: str, canary: tuple[str, ...] = (), stable: ServedVersion | None = ONE) -> Any:
    """A back end whose servers are stand-ins; what they do can be told."""
    commands = ([*STANDIN, *behaviour], [*STANDIN, *canary])
    return LocalBackend("mood", work, 10.0, 5.0, *commands, stable=stable, grace_s=3.0)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The work folder of a platform that runs for all tests which do not end it."""
    folder = tmp_path_factory.mktemp("work")
    with contextlib.closing(backend(folder)) as one:
        one.observe()
        yield folder


@pytest.fixture
def platform(work: Path) -> LocalBackend:
    """That platform with version 1 in production, as if it had just been started."""
    one = backend(work)
    one.take_back()
    if one.observe().stable != ONE:
        one.start_canary(ONE)
        one.promote()
    until(lambda: (status := one.folder.status()) and status.stable and status.stable.state == "ready", "version 1")
    return one


def until(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    return pytest.fail(f"waited {timeout_s:g} s for {what}")


def version(url: str) -> str:
    """The version that answers one request; whatever is no answer fails the test."""
    answer = HTTP.post(url + PREDICT, json={})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0]["model_version"]


def processes(one: LocalBackend) -> dict[str, int]:
    """The processes of a platform: its supervisor's and its servers' by version."""
    status = one.folder.status()
    assert status is not None
    servers = [server for server in (status.stable, status.canary) if server is not None and server.pid is not None]
    return {"supervisor": status.pid} | {server.version: server.pid or 0 for server in servers}


def gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


class Clients:
    """Clients that send request after request, without ever trying one again, and count what they are answered."""

    def __init__(self, url: str, clients: int = 6) -> None:
        self.url, self.clients = url, clients
        self.answers: Counter[tuple[int, str]] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()

    def __enter__(self) -> Clients:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        until(lambda: self.answers, "the first answer")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=20) as client:
            await asyncio.gather(*(self._ask(client, bool(number % 2)) for number in range(self.clients)))

    async def _ask(self, client: httpx.AsyncClient, keep: bool) -> None:
        headers = {} if keep else {"connection": "close"}
        while not self._stop.is_set():
            try:
                answer = await client.post(PREDICT, json={}, headers=headers)
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
                continue
            content = answer.json()
            by = content["predictions"][0]["model_version"] if "predictions" in content else content["model_version"]
            self.answers[answer.status_code, by] += 1


def test_a_rollout_from_nothing_to_a_second_version(tmp_path: Path) -> None:
    with contextlib.closing(backend(tmp_path, stable=None)) as one:
        assert one.observe() == Deployed(None, None, 0)
        with pytest.raises(DeploymentError, match="mood has no canary to promote"):
            one.promote()
        one.start_canary(ONE)
        assert one.observe() == Deployed(None, ONE, 0)
        ways = one.endpoints()
        assert ways.stable is None
        assert ways.canary is not None
        assert version(ways.canary.url) == "1"
        assert HTTP.post(ways.route.url + PREDICT, json={}).status_code == 503
        one.set_canary_percent(100)
        assert version(ways.route.url) == "1"
        one.promote()
        assert one.observe() == Deployed(ONE, None, 0)
        one.start_canary(TWO)
        one.set_canary_percent(10)
        assert one.observe() == Deployed(ONE, TWO, 10)
        ways = one.endpoints()
        assert ways.stable is not None
        assert ways.canary is not None
        assert (version(ways.stable.url), version(ways.canary.url)) == ("1", "2")
        assert Counter(version(ways.route.url) for _ in range(100)) == {"1": 90, "2": 10}
        before = processes(one)
        one.take_back()
        assert one.observe() == Deployed(ONE, None, 0)
        assert gone(before["2"])
        one.start_canary(TWO)
        one.promote()
        assert one.observe() == Deployed(TWO, None, 0)
        assert gone(before["1"])
        assert version(ways.route.url) == "2"
    assert not one.folder.running()


def test_whatever_is_so_already_is_not_done_again(platform: LocalBackend) -> None:
    platform.take_back()
    platform.set_canary_percent(0)
    platform.promote()
    assert platform.observe() == Deployed(ONE, None, 0)
    platform.start_canary(TWO)
    before = processes(platform)
    platform.start_canary(TWO)
    platform.set_canary_percent(50)
    platform.set_canary_percent(50)
    assert processes(platform) == before
    assert platform.observe() == Deployed(ONE, TWO, 50)
    platform.start_canary(TWO)
    assert platform.observe() == Deployed(ONE, TWO, 0)
    assert processes(platform) == before
    platform.promote()
    platform.promote()
    assert processes(platform) == {"supervisor": before["supervisor"], "2": before["2"]}


def test_another_canary_takes_the_place_of_the_first(platform: LocalBackend) -> None:
    platform.start_canary(TWO)
    platform.set_canary_percent(50)
    first = processes(platform)["2"]
    platform.start_canary(THREE)
    assert platform.observe() == Deployed(ONE, THREE, 0)
    until(lambda: gone(first), "the first canary to end")


def test_what_cannot_be_is_refused(platform: LocalBackend) -> None:
    with pytest.raises(DeploymentError, match="mood has no canary that could get 10 %"):
        platform.set_canary_percent(10)
    for percent in (-1, 101):
        with pytest.raises(DeploymentError, match=f"{percent} % of the requests cannot be had"):
            platform.set_canary_percent(percent)
    with pytest.raises(DeploymentError, match="version 1 of mood is in production already"):
        platform.start_canary(ONE)
    assert platform.observe() == Deployed(ONE, None, 0)


@pytest.mark.slow
def test_no_request_fails_by_any_switching_under_load(platform: LocalBackend) -> None:
    """Every call of the back end, in a random but repeatable order, while clients ask without pause."""
    chance = random.Random(7)
    expected, next_version = Deployed(ONE, None, 0), 2
    asked = []
    with Clients(platform.endpoints().route.url) as clients:
        for _ in range(16):
            there = expected.canary is not None
            call = chance.choice(
                ["percent", "percent", "promote", "take back"] if there else ["start", "start", "promote"]
            )
            asked.append(call)
            if call == "start":
                canary = ServedVersion(str(next_version), f"/bundles/{next_version}")
                next_version += 1
                platform.start_canary(canary)
                expected = Deployed(expected.stable, canary, 0)
            elif call == "percent":
                percent = chance.choice([0, 10, 50, 100])
                platform.set_canary_percent(percent)
                expected = Deployed(expected.stable, expected.canary, percent)
            elif call == "promote":
                platform.promote()
                expected = Deployed(expected.canary or expected.stable, None, 0)
            else:
                platform.take_back()
                expected = Deployed(expected.stable, None, 0)
            assert platform.observe() == expected, asked
    assert clients.failures == []
    assert {status for status, _ in clients.answers} == {200}
    assert sum(clients.answers.values()) > 300
    assert len({by for _, by in clients.answers}) > 2


def test_a_canary_that_crashes_on_start_leaves_its_last_words_and_nothing_else(
    platform: LocalBackend, work: Path
) -> None:
    one = backend(work, canary=("--crash",))
    said = r"^version 2 of mood ended at start \(exit code 1\): error: the weights are damaged"
    with Clients(platform.endpoints().route.url) as clients:
        for _ in range(2):  # and is tried again when it is asked for again
            with pytest.raises(DeploymentError, match=said):
                one.start_canary(TWO)
    assert clients.failures == []
    assert set(clients.answers) == {(200, "1")}
    assert one.observe() == Deployed(ONE, None, 0)
    assert one.folder.spec().canary is None


def test_a_canary_that_is_never_ready_is_given_up_and_ended(platform: LocalBackend, work: Path) -> None:
    one = LocalBackend("mood", work, 0.7, 5.0, STANDIN, [*STANDIN, "--never_ready"])
    with pytest.raises(DeploymentError, match=r"version 2 of mood not ready within 0\.7 s"):
        one.start_canary(TWO)
    assert one.observe() == Deployed(ONE, None, 0)
    supervisor = psutil.Process(processes(platform)["supervisor"])
    until(lambda: len(supervisor.children()) == 1, "the canary's process to end")


def test_a_command_that_is_not_there_is_named(platform: LocalBackend, work: Path) -> None:
    one = LocalBackend("mood", work, 10.0, 5.0, STANDIN, ["/no/such/server"])
    with pytest.raises(DeploymentError, match=r"cannot be started \(/no/such/server: No such file"):
        one.start_canary(TWO)
    assert platform.observe() == Deployed(ONE, None, 0)


def test_a_version_in_production_that_does_not_start_is_told_by_whoever_asks(tmp_path: Path) -> None:
    with contextlib.closing(backend(tmp_path, "--crash")) as one:
        with pytest.raises(DeploymentError, match=r"version 1 of mood ended at start .* the weights are damaged"):
            one.observe()
        with pytest.raises(DeploymentError, match="the weights are damaged"):
            one.endpoints()


def test_a_canary_that_crashes_later_costs_clients_only_what_it_was_answering(
    platform: LocalBackend, work: Path
) -> None:
    one = backend(work, canary=("--crash_after", "20"))
    one.start_canary(TWO)
    one.set_canary_percent(50)
    before = processes(one)

    def canary() -> ServerStatus:
        status = one.folder.status()
        assert status is not None
        assert status.canary is not None
        return status.canary

    with Clients(platform.endpoints().route.url) as clients:
        until(lambda: canary().failures, "the crash")
        until(lambda: canary().state == "ready", "it to be back")
    assert clients.failures == []
    assert {by for status, by in clients.answers if status != 200} == {"2"}, "a 502 names who did not answer"
    assert clients.answers[200, "1"] > clients.answers[200, "2"]
    assert "ended (exit code 3): error: out of memory" in canary().last_words
    assert one.observe() == Deployed(ONE, TWO, 50)
    assert processes(one)["2"] != before["2"]


def test_a_promotion_that_never_comes_into_force_is_undone(platform: LocalBackend, work: Path) -> None:
    """The canary is killed in the moment of its promotion, and comes up no more."""
    marker = work / "broken"
    one = LocalBackend("mood", work, 10.0, 0.2, STANDIN, _until_there(marker), stable=ONE, grace_s=0.1)
    one.start_canary(TWO)
    before = one.folder.spec()
    change = one.folder.change

    def change_and_kill(how: Callable[[PlatformSpec], PlatformSpec]) -> PlatformSpec:
        if not marker.exists():
            marker.touch()
            os.kill(processes(one)["2"], signal.SIGKILL)
            until(lambda: (status := one.folder.status()) and status.canary and status.canary.failures, "its end")
        return change(how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlatformFolder, "change", lambda self, how: change_and_kill(how))
        with pytest.raises(DeploymentError, match=r"waited .* for the version that has left to end"):
            one.promote()
    assert one.folder.spec().model_copy(update={"generation": before.generation}) == before
    one.take_back()
    assert one.observe() == Deployed(ONE, None, 0)
    assert version(one.endpoints().route.url) == "1"


def _until_there(marker: Path) -> list[str]:
    """A stand-in's command that starts until the file is there."""
    script = 'test ! -e "$0" && exec "$@"'
    return ["/bin/sh", "-c", script, str(marker), *STANDIN]


def test_a_canary_that_is_not_in_force_is_not_promoted(tmp_path: Path) -> None:
    with contextlib.closing(backend(tmp_path, canary=("--crash",))) as one:
        one.observe()
        wanted = WantedServer.of(TWO, [*STANDIN, "--crash"], 10.0)
        one.folder.change(lambda spec: spec.model_copy(update={"canary": wanted}))
        with pytest.raises(DeploymentError, match="version 2 of mood cannot be promoted: it is not in force"):
            one.promote()
        assert one.observe() == Deployed(ONE, None, 0)


def test_a_version_in_production_that_is_killed_is_started_again_where_it_was(platform: LocalBackend) -> None:
    ways = platform.endpoints()
    before = processes(platform)
    os.kill(before["1"], signal.SIGKILL)
    until(lambda: processes(platform).get("1", before["1"]) != before["1"], "another process")
    until(lambda: (status := platform.folder.status()) and status.stable and status.stable.state == "ready", "it back")
    assert platform.endpoints() == ways
    assert version(ways.route.url) == "1"
    status = platform.folder.status()
    assert status is not None
    assert status.stable is not None
    assert status.stable.failures > 0
    assert "ended (SIGKILL)" in status.stable.last_words


@pytest.mark.parametrize("query", ["whole", ""])
def test_a_server_that_dies_in_the_middle_of_an_answer_is_seen_to_have(query: str, platform: LocalBackend) -> None:
    """Where the answer has not begun that is a 502; where it has, the connection is cut short of its end."""
    url = f"{platform.endpoints().route.url}/die?{query}"
    before = processes(platform)["1"]
    if query:
        answer = httpx.post(url, trust_env=False)
        assert answer.status_code == 502
        assert answer.json()["model_version"] == "1"
    else:
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            httpx.post(url, trust_env=False)
    until(lambda: processes(platform).get("1", before) != before, "it to be started again")


def test_what_a_canary_was_answering_is_answered_when_it_is_taken_back(platform: LocalBackend, work: Path) -> None:
    backend(work, canary=("--delay_s", "0.5")).start_canary(TWO)
    platform.set_canary_percent(100)
    url = platform.endpoints().route.url
    answered: list[str] = []
    client = threading.Thread(target=lambda: answered.append(version(url)))
    client.start()
    until(lambda: HTTP.get(f"{url}/-/status").json()["in_flight"]["2"] == 1, "the request to be on its way")
    platform.take_back()
    assert version(url) == "1"
    client.join()
    assert answered == ["2"]


def test_a_killed_supervisor_takes_its_servers_along_and_the_next_takes_the_spec_up(tmp_path: Path) -> None:
    with contextlib.closing(backend(tmp_path)) as one:
        one.start_canary(TWO)
        one.set_canary_percent(10)
        before = processes(one)
        os.kill(before["supervisor"], signal.SIGKILL)
        until(lambda: all(gone(pid) for pid in before.values()), "every process to end")
        assert one.observe() == Deployed(ONE, TWO, 10)
        after = processes(one)
        assert set(after) == set(before)
        assert not set(after.values()) & set(before.values())
        one.promote()
        assert one.observe() == Deployed(TWO, None, 0)


ROLLOUT = """
import sys
from pathlib import Path
from tests.deployment.test_local_platform import ONE, TWO, backend
one = backend(Path(sys.argv[1]))
steps = {"stable": one.observe, "canary": lambda: one.start_canary(TWO), "10": lambda: one.set_canary_percent(10),
         "promoted": one.promote, "back": one.take_back}
for step in sys.argv[2:]:
    steps[step]()
print("there", flush=True)
sys.stdin.read()
"""


def rollout(work: Path, *steps: str) -> subprocess.Popen[bytes]:
    """A process that drives a platform so far, and then waits to be killed."""
    command = [sys.executable, "-c", ROLLOUT, str(work), *steps]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "found"),
    [
        pytest.param(["stable"], Deployed(ONE, None, 0), marks=pytest.mark.acceptance),
        pytest.param(["canary"], Deployed(ONE, TWO, 0), marks=pytest.mark.acceptance),
        (["canary", "10"], Deployed(ONE, TWO, 10)),
        pytest.param(["canary", "10", "promoted"], Deployed(TWO, None, 0), marks=pytest.mark.acceptance),
        pytest.param(["canary", "10", "back"], Deployed(ONE, None, 0), marks=pytest.mark.acceptance),
    ],
)
def test_a_killed_rollout_leaves_what_the_next_one_finds(steps: list[str], found: Deployed, tmp_path: Path) -> None:
    killed = rollout(tmp_path, *steps)
    pids = processes(backend(tmp_path))
    killed.kill()
    killed.wait()
    with contextlib.closing(backend(tmp_path)) as one:
        assert one.observe() == found
        until(lambda: all(gone(pid) for pid in pids.values()), "the killed one's platform to end")
        if found.canary is not None:
            one.take_back()
        assert one.observe() == Deployed(found.stable, None, 0)


def supervised(work: Path, *flags: str) -> subprocess.Popen[str]:
    """A platform that is there before any rollout, as ``kubevox serve`` runs it."""
    folder = PlatformFolder(work / "serving" / "mood")
    folder.change(lambda spec: spec.model_copy(update={"stable": wanted(ONE)}))
    command = [sys.executable, "-m", "kubevox.deployment.local", "--model", "mood", "--folder", str(folder.path)]
    return subprocess.Popen([*command, "--grace_s", "5", *flags], stderr=subprocess.PIPE, text=True)


def wanted(served: ServedVersion, *behaviour: str) -> WantedServer:
    return WantedServer.of(served, [*STANDIN, *behaviour], 10.0)


def test_a_platform_that_runs_is_used_and_stays(tmp_path: Path) -> None:
    serving = supervised(tmp_path)
    with contextlib.closing(backend(tmp_path, stable=None)) as one:
        until(one.folder.running, "the platform")
        assert one.observe() == Deployed(ONE, None, 0)
        assert processes(one)["supervisor"] == serving.pid
        one.start_canary(TWO)
        one.promote()
    assert one.folder.running()
    serving.terminate()
    _, said = serving.communicate(timeout=10)
    assert serving.returncode == 0
    assert [line.rpartition(" at ")[0] or line for line in said.splitlines()] == [
        "serving mood version 1",
        "version 2 is ready beside it",
        "serving mood version 2",
    ]


@pytest.mark.parametrize("how", ["the folder", "the port"])
def test_a_second_platform_is_refused_in_one_line(how: str, platform: LocalBackend, work: Path, tmp_path: Path) -> None:
    port = platform.endpoints().route.url.rpartition(":")[2]
    second = supervised(work if how == "the folder" else tmp_path, "--port", port)
    _, said = second.communicate(timeout=20)
    assert second.returncode == 1
    assert len(said.splitlines()) == 1
    if how == "the folder":
        assert f"process {processes(platform)['supervisor']} serves it at http://127.0.0.1:{port}" in said
    else:
        assert said.startswith(f"error: port {port} on 127.0.0.1 cannot be used (Address already in use)")


def test_a_version_in_production_that_must_start_and_does_not_ends_the_platform(tmp_path: Path) -> None:
    folder = PlatformFolder(tmp_path / "serving" / "mood")
    folder.change(lambda spec: spec.model_copy(update={"stable": wanted(ONE, "--crash")}))
    command = [sys.executable, "-m", "kubevox.deployment.local", "--model", "mood", "--folder", str(folder.path)]
    ended = subprocess.run([*command, "--must_start"], capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert "version 1 of mood ended at start (exit code 1): error: the weights are damaged" in ended.stderr


def test_sigterm_under_load_answers_what_is_in_flight_and_ends_in_time(tmp_path: Path) -> None:
    serving = supervised(tmp_path)
    folder = PlatformFolder(tmp_path / "serving" / "mood")
    folder.change(lambda spec: spec.model_copy(update={"stable": wanted(ONE, "--delay_s", "0.1")}))
    status = until(lambda: (found := folder.status()) and found.generation > 0 and not found.leaving and found, "it")
    pids = [process.pid for process in psutil.Process(serving.pid).children()]
    with Clients(status.url, 20) as clients:
        began = time.monotonic()
        serving.terminate()
        serving.wait(timeout=10)
        took = time.monotonic() - began
    assert serving.returncode == 0
    assert took < 5
    assert {status for status, _ in clients.answers} == {200}
    # Afterwards nobody listens; but nothing that was accepted went unanswered. The system may complete one handshake
    # between the last accept and the close, and then resets it.
    failures = [failure.partition("(")[0] for failure in clients.failures]
    assert set(failures) <= {"ConnectError", "ReadError"}
    assert failures.count("ReadError") <= 1
    assert all(gone(pid) for pid in pids)


def test_a_damaged_spec_is_named_and_nothing_is_served_by_guess(tmp_path: Path) -> None:
    one = backend(tmp_path)
    one.folder.path.mkdir(parents=True)
    (one.folder.path / "spec.json").write_text('{"stable": 5}')
    with pytest.raises(DeploymentError, match=r"spec\.json: damaged .*; delete it and serve again"):
        one.observe()
    assert not one.folder.running()


def test_a_spec_that_is_damaged_later_changes_nothing(platform: LocalBackend) -> None:
    url = platform.endpoints().route.url
    file = platform.folder.path / "spec.json"
    before = file.read_text()
    file.write_text("{")
    log = platform.folder.logs / "supervisor.log"
    until(lambda: "going on with what was wanted before" in log.read_text(), "the supervisor to say so")
    assert version(url) == "1"
    file.write_text(before)
    assert platform.observe() == Deployed(ONE, None, 0)


@pytest.mark.acceptance
def test_a_folder_that_is_deleted_under_a_platform_costs_nobody_an_answer(tmp_path: Path) -> None:
    serving = supervised(tmp_path)
    folder = PlatformFolder(tmp_path / "serving" / "mood")
    url = until(lambda: (status := folder.status()) and status.stable and status.url, "it")
    shutil.rmtree(tmp_path / "serving")
    for _ in range(20):
        assert version(url) == "1"
        time.sleep(0.01)
    serving.terminate()
    _, said = serving.communicate(timeout=10)
    assert serving.returncode == 0
    assert "the spec is gone; going on with what was wanted before" in said


def test_what_the_registry_knows_is_taken_up_with_what_was_wanted(tmp_path: Path) -> None:
    one = backend(tmp_path, "--delay_s", "1", stable=ONE)
    now, before = wanted(ONE, "--delay_s", "1"), wanted(ONE)
    canary = wanted(TWO)
    assert one._taken_up(PlatformSpec()) == PlatformSpec(stable=now)
    # Its promotion was cut short between the registry, which was told, and the platform, which was not.
    assert one._taken_up(PlatformSpec(canary=before, canary_percent=50)) == PlatformSpec(stable=before)
    # What the platform has in production it was told by a rollout; only how it is started may be new.
    both = PlatformSpec(stable=before, canary=canary, canary_percent=10)
    assert one._taken_up(both) == both.model_copy(update={"stable": now})
    other = PlatformSpec(stable=canary)
    assert backend(tmp_path, stable=ONE)._taken_up(other) == other


def test_changes_of_the_spec_by_many_at_once_are_all_kept(tmp_path: Path) -> None:
    folder = PlatformFolder(tmp_path / "mood")

    def add() -> None:
        for _ in range(20):
            folder.change(lambda spec: spec.model_copy(update={"canary_percent": spec.canary_percent + 1}))

    threads = [threading.Thread(target=add) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.spec() == PlatformSpec(generation=100, canary_percent=100)
    assert json.loads((folder.path / "spec.json").read_text())["generation"] == 100


@pytest.mark.parametrize(
    ("said", "since", "words"),
    [
        (b"", 0, "it said nothing"),
        (b"one\n\ntwo  \n\n", 0, "two"),
        (b"error: no such bundle\nshutting down\n", 0, "error: no such bundle"),
        (b"error: of the last start\nhello\n", 25, "hello"),
        (b"after it was cut short", 10_000, "after it was cut short"),
        (b"x" * 200_000 + b"\n" + b"y" * 400, 0, "y" * 300),
        (b"caf\xe9", 0, "caf\ufffd"),
    ],
)
def test_last_words_are_an_error_or_else_the_last_line(said: bytes, since: int, words: str) -> None:
    assert last_words(io.BytesIO(said), since) == words


def test_a_long_log_begins_anew_and_keeps_what_was_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubevox.deployment.local import process

    monkeypatch.setattr(process, "_LOG_BYTES", 1000)
    log = tmp_path / "1.log"
    server = process.ServerProcess.__new__(process.ServerProcess)
    server._log = log
    with open(log, "ab") as written:
        written.write(b"x" * 2000)
        written.flush()
        server.keep_log_short()
        written.write(b"after")
    assert log.read_bytes() == b"after"
    assert log.with_suffix(".log.1").read_bytes() == b"x" * 2000


@pytest.mark.parametrize(
    ("tracking", "store", "folder"),
    [
        ("sqlite:////data/kubevox/mlflow.db", "s3://bucket/store", "/data/kubevox/serving/mood"),
        ("http://mlflow:5000", "/data/kubevox/store", "/data/kubevox/serving/mood"),
        ("http://mlflow:5000", "s3://bucket/store", f"{Path.cwd()}/.kubevox/serving/mood"),
        ("sqlite:///.kubevox/mlflow.db", ".kubevox/store", f"{Path.cwd()}/.kubevox/serving/mood"),
    ],
)
def test_the_platform_of_a_registry_lies_beside_it(tracking: str, store: str, folder: str) -> None:
    assert platform_folder("mood", tracking, store).path == Path(folder)


def test_nobody_listens_but_on_loopback(platform: LocalBackend) -> None:
    port = int(platform.endpoints().route.url.rpartition(":")[2])
    pids = set(processes(platform).values())
    listening = {
        connection.laddr.ip
        for pid in pids
        for connection in psutil.Process(pid).connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) == 0
