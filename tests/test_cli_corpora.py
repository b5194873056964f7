"""``kubevox data corpora``, ``download`` and ``card``, as a person meets them."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner, Result

from kubevox.cli.corpora import app
from kubevox.config import CorpusSource, DataConfig
from kubevox.data.corpora import corpus_names
from kubevox.data.corpora.base import Download
from kubevox.data.corpora.ravdess import Ravdess
from kubevox.data.dataset import ingest
from kubevox.errors import ConfigError, CorpusError, StorageError

NAMES = ["Actor_01/03-01-01-01-01-01-01.wav", "Actor_02/03-01-05-01-01-01-02.wav"]


@pytest.fixture
def data(repository, monkeypatch):
    """Run ``kubevox data …`` in the repository."""
    monkeypatch.chdir(repository)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)

    return run


@pytest.fixture
def ravdess(monkeypatch, tmp_path) -> Iterator[None]:
    """RAVDESS with a small archive at a source on this machine."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in NAMES:
            archive.writestr(name, name)
    content = packed.getvalue()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("KUBEVOX_CACHE", str(tmp_path / "cache"))
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/speech.zip"
        checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
        monkeypatch.setattr(Ravdess, "downloads", (Download(url, "speech.zip", checksum, len(content)),))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield
        server.shutdown()
        thread.join()


def test_corpora_are_listed_with_their_licences(data):
    lines = data("corpora").stdout.splitlines()
    assert lines[0].split() == ["name", "title", "languages", "recordings", "download", "licence"]
    assert [line.split()[0] for line in lines[1:]] == corpus_names()
    [line] = [line for line in lines if line.startswith("ravdess ")]
    assert " 1440 " in line
    assert line.endswith("CC BY-NC-SA 4.0")


def test_corpora_are_listed_for_machines(data):
    found = {entry["name"]: entry for entry in json.loads(data("corpora", "--json").stdout)}
    assert sorted(found) == corpus_names()
    assert found["tess"] == {
        "name": "tess",
        "title": "Toronto emotional speech set (TESS)",
        "languages": ["en"],
        "recordings": 2800,
        "speakers": 2,
        "licence": "CC BY-NC-ND 4.0",
        "download": True,
    }
    assert found["savee"]["download"] is False


def test_the_table_of_the_docs_is_printed(data, repository):
    assert data("corpora", "--markdown").stdout in (repository / "docs" / "corpora.md").read_text()


def test_a_download_ends_with_the_folder(data, ravdess, tmp_path):
    ended = data("download", "ravdess", "--to", tmp_path / "it")
    assert ended.exit_code == 0
    assert ended.stdout == f"{tmp_path / 'it'}\n"
    assert "CC BY-NC-SA 4.0" in ended.stderr
    assert sorted(p.relative_to(tmp_path / "it").as_posix() for p in (tmp_path / "it").glob("*/*.wav")) == NAMES


def test_a_download_without_a_place_goes_into_the_cache(data, ravdess, tmp_path):
    told = json.loads(data("download", "ravdess", "--json", "--keep-archives").stdout)
    folder = tmp_path / "cache" / "corpora" / "ravdess"
    assert (told["name"], told["path"], told["licence"]) == ("ravdess", str(folder), "CC BY-NC-SA 4.0")
    assert (folder / ".downloads" / "speech.zip").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["download", "savee"], CorpusError, "how to get it: registration"),
        (["download", "synthetic"], CorpusError, "made on this machine"),
        (["download", "ravdes"], ConfigError, "did you mean 'ravdess'"),
        (["download", "fleurs", "--option", "locale=[da_dk]"], ConfigError, "did you mean 'locales'"),
        (["download", "fleurs", "--option", "locales"], ConfigError, "expected name=value"),
        (["download", "fleurs", "--option", "locales=["], ConfigError, "not valid YAML"),
        (["card", "ravdes"], ConfigError, "did you mean 'ravdess'"),
        (["card", "ravdess", "--dataset", "/nowhere"], StorageError, "no dataset version here"),
        (["card", "ravdess", "--to", "/dev/null/card.md"], ConfigError, "cannot be written"),
    ],
)
def test_what_a_person_gets_wrong_is_one_line(data, arguments, error, said):
    ended = data(*arguments)
    assert isinstance(ended.exception, error)
    assert said in str(ended.exception)
    assert "\n" not in str(ended.exception)


def test_a_card_is_printed_or_written(data, tmp_path, repository):
    expected = (repository / "docs" / "data-cards" / "emodb.md").read_text()
    assert data("card", "emodb").stdout == expected
    file = tmp_path / "cards" / "emodb.md"
    assert data("card", "emodb", "--to", file).stdout == f"{file}\n"
    assert file.read_text() == expected
    assert json.loads(data("card", "emodb", "--json").stdout)["card"] == expected


def test_a_card_takes_other_tasks(data, tmp_path):
    (tmp_path / "mood.yaml").write_text(
        "task: {name: mood, labels: [up, down], map: {emodb: {happiness: up, sadness: down}}}\n"
        "data: {corpora: [{name: synthetic}]}\nfeatures: {frontends: {logmel: {kind: logmel}}}\n"
    )
    text = data("card", "emodb", "--config", tmp_path / "mood.yaml").stdout
    assert "| happiness | 71 | up |" in text
    assert "task emotion" not in text


def test_a_card_of_a_dataset_has_what_was_found(data, tmp_path, write_wav):
    for name in NAMES:
        write_wav(tmp_path / "it" / name, 1.0)
    version, _ = ingest(
        DataConfig(corpora=[CorpusSource(name="ravdess", path=str(tmp_path / "it"))]), str(tmp_path / "store")
    )
    text = data("card", "ravdess", "--dataset", version.uri).stdout
    assert "| all | 1440 | 2 | -1438 |" in text


def test_a_validation_needs_its_dataset(data):
    ended = data("card", "ravdess", "--validation", "somewhere")
    assert ended.exit_code == 2
    assert "name the dataset version" in ended.stderr


def test_every_command_says_how_it_is_used(data):
    for command in ("corpora", "download", "card"):
        assert "Example: kubevox data" in " ".join(data(command, "--help").stdout.split())


def test_listing_the_corpora_imports_nothing_heavy(repository):
    code = (
        "from kubevox.cli.corpora import app; app(['corpora'], standalone_mode=False); import sys; print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=100)
    loaded = set(run.stdout.splitlines()[-1].split())
    assert "kubevox.data.corpora.ravdess" in loaded
    assert not {"torch", "pandas", "matplotlib", "pyarrow"} & loaded
