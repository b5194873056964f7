"""The process that a serving image runs: its flags, what it imports, where it listens, how it says no."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kubevox.config import RemoteAudioConfig, ServingConfig
from kubevox.deployment.local import free_port, model_server
from kubevox.errors import DeploymentError
from tests.tiny import Tiny, untrained_bundle


def serving(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kubevox.serving", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd, check=False)


def one_line(ended: subprocess.CompletedProcess[str]) -> str:
    """The error, which is the last line and the only one that is no log."""
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


@pytest.fixture(scope="module")
def bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> str:
    return untrained_bundle(tiny, tmp_path_factory.mktemp("store"))


def test_help_tells_every_flag() -> None:
    ended = serving("--help")
    assert ended.returncode == 0
    for flag in ("--model_name", "--model_dir", "--model_version", "--host", "--http_port", "--device"):
        assert flag in ended.stdout


def test_a_missing_name_or_an_unknown_flag_is_wrong_usage() -> None:
    assert serving("--model_dir", "/nowhere").returncode == 2
    ended = serving("--model_name", "mood", "--colour", "red")
    assert ended.returncode == 2
    assert "--colour" in ended.stderr


def test_serving_needs_neither_mlflow_nor_kfp_and_leaves_the_arguments_alone(repository: Path) -> None:
    """KServe parses the arguments of the process: it would take --config for its own --configure_logging."""
    program = (
        "import sys; import kubevox.serving.server; "
        "print(sys.argv[1:], [name for name in ('mlflow', 'kfp', 'optuna', 'matplotlib') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, "--config", "configs/emotion.yaml", "--workers", "many"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=repository, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "['--config', 'configs/emotion.yaml', '--workers', 'many'] []"


def test_options_that_cannot_be_are_one_clear_line(bundle: str) -> None:
    ended = serving("--model_name", "mood", "--model_dir", bundle, "--max_instances", "0")
    assert "'max_instances' = 0" in one_line(ended)


def test_what_is_wrong_after_the_workers_have_begun_is_one_clear_line_too(bundle: str) -> None:
    options = ServingConfig(workers=1, remote=RemoteAudioConfig(hosts=["xn--é.test"])).to_json()
    port = str(free_port())
    ended = serving("--model_name", "mood", "--model_dir", bundle, "--http_port", port, "--options", options)
    assert "xn--é.test" in one_line(ended)


def test_told_to_end_while_it_starts_it_ends(bundle: str) -> None:
    """Also as the first process of a container, which no signal ends by itself."""
    command = [sys.executable, "-m", "kubevox.serving", "--model_name", "mood", "--model_dir", bundle]
    with subprocess.Popen([*command, "--http_port", str(free_port())], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not psutil.Process(process.pid).children():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_that_is_taken_is_one_clear_line(bundle: str, taken_port: int) -> None:
    ended = serving(
        "--model_name", "mood", "--model_dir", bundle, "--host", "127.0.0.1", "--http_port", str(taken_port)
    )
    assert one_line(ended).startswith(f"error: port {taken_port} on 127.0.0.1 cannot be used (")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_a_port_that_is_taken_on_one_address_is_taken_on_all(host: str, bundle: str, taken_port: int) -> None:
    from kubevox.serving.server import serve

    with pytest.raises(DeploymentError, match=f"port {taken_port} on {host} cannot be used .*; choose another"):
        serve(bundle, "mood", host=host, port=taken_port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99_999), ("192.0.2.1", 8080)])
def test_an_address_that_cannot_be_is_one_clear_line(host: str, port: int, bundle: str) -> None:
    from kubevox.serving.server import serve

    with pytest.raises(DeploymentError, match=f"port {port} on {host} cannot be used"):
        serve(bundle, "mood", host=host, port=port)


def test_a_bundle_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    port = str(free_port())
    ended = serving("--model_name", "mood", "--model_dir", str(tmp_path / "gone"), "--http_port", port)
    assert "gone" in one_line(ended)


def test_a_server_that_cannot_start_says_why_in_its_last_words(bundle: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "models"))
    (copy / "model.safetensors").write_bytes(b"no weights")
    with (
        pytest.raises(DeploymentError, match=r"mood ended at start: error: bundle .*models: damaged"),
        model_server(str(copy), "mood", "1", 60.0, 5.0),
    ):
        pytest.fail("it started")


def test_a_server_that_takes_too_long_is_given_up_and_ended(bundle: str) -> None:
    with (
        pytest.raises(DeploymentError, match=r"not ready within 0\.2 s"),
        model_server(bundle, "mood", "1", 0.2, 5.0),
    ):
        pytest.fail("it was ready at once")


@pytest.mark.e2e
def test_a_server_starts_also_where_temporary_files_lie_deep(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "/".join(["as-deep-as-the-folder-of-a-run"] * 4)
    deep.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(deep))
    with model_server(bundle, "mood", "1", 60.0, 5.0) as client:
        assert client.ready()


@pytest.mark.e2e
def test_a_server_for_this_machine_listens_on_loopback_only_and_ends_with_its_context(bundle: str) -> None:
    with model_server(bundle, "mood", "1", 60.0, 5.0) as client:
        port = client._http.base_url.port
        assert port is not None
        listening = {
            (line.split()[1], line.split()[3])
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
        }
        assert listening == {(f"0100007F:{port:04X}", "0A")}
    with socket.socket() as probe:
        probe.settimeout(1)
        assert probe.connect_ex(("127.0.0.1", port)) != 0
