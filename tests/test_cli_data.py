"""``kubevox data``, as a person meets it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kubevox.cli import app
from kubevox.data.dataset import read_utterances, resolve
from kubevox.errors import ConfigError, CorpusError, StorageError

DOCUMENTATION = Path(__file__).parent.parent / "docs" / "data.md"
COMMANDS = [
    "ingest",
    "validate",
    "add",
    "window",
    "simulate",
    "where",
    "list",
    "show",
    "diff",
    "verify",
    "rollback",
    "gc",
]
COMMANDS += ["forget", "corpora", "download", "card"]


@pytest.fixture(scope="module")
def arriving(make_corpus: Callable[..., Path], write_wav: Callable[..., Path], tmp_path_factory: Any) -> Path:
    """The corpus ``base``, and the batches b0 and b1."""
    folder = tmp_path_factory.mktemp("arriving")
    make_corpus(folder / "base", 3, clips=1, seconds=0.8)
    for number, name in enumerate(("b0", "b1")):
        for label in ("angry", "sad"):
            write_wav(folder / name / label / f"p{number}_0.wav", 0.8, frequency=300 + 50 * number + len(label))
    return folder


@pytest.fixture
def data(repository: Path, arriving: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``kubevox data …`` on a store of the test's own; ``expected`` is the error that it is to end with."""
    monkeypatch.chdir(arriving)

    def run(command: str, *arguments: object, ok: bool = True) -> Result:
        words = ["data", command, *map(str, arguments)]
        words += ["--config", str(repository / "configs" / "emotion.yaml"), "--set", "data.name=calls"]
        words += ["--store", str(tmp_path / "store")] if command != "simulate" else []
        result = CliRunner().invoke(app, words)
        assert (result.exit_code == 0) is ok, result.output
        return result

    return run


@pytest.fixture
def grown(data: Callable[..., Result]) -> list[str]:
    """The hashes of three versions: base, with b0, with b1."""
    data("ingest", "--corpora", "folder=base")
    for name in ("b0", "b1"):
        data("add", name)
    return [one["hash"] for one in json.loads(data("list", "--json").stdout)]


def test_every_command_teaches_itself() -> None:
    told = CliRunner().invoke(app, ["data", "--help"]).stdout
    assert [name for name in COMMANDS if not re.search(rf"^\W*{name}\b", told, re.MULTILINE)] == []
    for name in COMMANDS:
        page = CliRunner().invoke(app, ["data", name, "--help"]).stdout
        assert "Usage:" in page
        assert "--json" in page


def test_ingest_prints_the_version_and_knows_it_again(data: Callable[..., Result], tmp_path: Path) -> None:
    first = data("ingest", "--corpora", "folder=base")
    version = resolve(str(tmp_path / "store"), "calls", "current")
    assert first.stdout.strip() == version.uri
    assert "9 recordings" in first.stderr
    again = json.loads(data("ingest", "--corpora", "folder=base", "--json").stdout)
    assert (again["hash"], again["reused"], again["current"]) == (version.hash, True, True)


def test_ingest_says_that_it_did_not_take_the_place_of_a_newer_version(
    data: Callable[..., Result], grown: list[str]
) -> None:
    assert "another version is current" in data("ingest", "--corpora", "folder=base").stderr


def test_validate_tells_the_counts_and_where_the_report_is(data: Callable[..., Result], grown: list[str]) -> None:
    done = data("validate", "--set", "validation.max_quarantined_share=1")
    assert "13 recordings: " in done.stderr
    assert Path(done.stdout.strip()).name == "report.html"
    assert Path(done.stdout.strip()).exists()


def test_the_list_marks_the_current_version(data: Callable[..., Result], grown: list[str]) -> None:
    lines = data("list").stdout.splitlines()
    assert [line[:1] for line in lines[1:]] == [" ", " ", "*"]
    assert [line.split()[-5:] for line in lines[1:]][-1][1:] == ["add", "13", "0.00", "3"]
    assert lines[3].split()[1] == grown[2][:12]
    data("rollback", grown[0][:8])
    assert [line[:1] for line in data("list").stdout.splitlines()[1:]] == ["*", " ", " "]


def test_an_empty_store_has_an_empty_list_and_a_hint(data: Callable[..., Result]) -> None:
    done = data("list")
    assert done.stdout == ""
    assert "kubevox data ingest makes the first" in done.stderr


def test_show_tells_corpora_batches_and_shards(data: Callable[..., Result], grown: list[str]) -> None:
    told = data("show", grown[2][:8], "--shards").stdout
    assert f"version     {grown[2]}  (current of calls)" in told
    assert re.search(r"folder\s+13 found\s+13 stored\s+5 speakers", told)
    assert re.findall(r"^  (\S+)\s+added", told, re.MULTILINE) == ["ingest", "b0", "b1"]
    assert told.count(".parquet") == 3
    assert json.loads(data("show", "--json").stdout)["hash"] == grown[2]


def test_diff_counts_and_lists(data: Callable[..., Result], grown: list[str]) -> None:
    text = data("diff", grown[0][:8]).stdout
    assert "added  4" in text
    assert "by batch: b0 2, b1 2" in text
    told = json.loads(data("diff", grown[2], grown[1], "--json").stdout)
    assert len(told["removed"]["ids"]) == 2
    assert told["removed"]["counts"]["label"] == {"angry": 1, "sad": 1}
    assert (told["added"]["ids"], told["changed"]["ids"]) == ([], [])


def test_verify_exits_with_1_and_names_each_damage(
    data: Callable[..., Result], grown: list[str], tmp_path: Path
) -> None:
    assert "13 of 13 recordings in 3 shards" in data("verify").stdout
    shards = resolve(str(tmp_path / "store"), "calls", "current").shard_uris
    Path(shards[0]).write_bytes(b"nothing")
    Path(shards[1]).unlink()
    done = data("verify", ok=False)
    assert done.exit_code == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert all(shard in error for shard, error in zip(shards[:2], errors, strict=True))


def test_a_batch_that_is_there_is_told_so(data: Callable[..., Result], grown: list[str]) -> None:
    told = data("add", "b1").stdout
    assert "batch 'b1' was there already" in told
    assert f"version {grown[2][:12]} stays current" in told


def test_other_recordings_under_a_taken_name_are_an_error(data: Callable[..., Result], grown: list[str]) -> None:
    done = data("add", "b1", "--batch", "b0", ok=False)
    assert isinstance(done.exception, CorpusError)
    assert "'b0'" in str(done.exception)


def test_the_window_slides_with_a_batch_and_alone(data: Callable[..., Result]) -> None:
    data("ingest", "--corpora", "folder=base")
    data("add", "b0", "--recorded", "2020-01-01")
    told = json.loads(data("add", "b1", "--max-age-days", "30", "--json").stdout)
    assert (told["dropped"], told["added"]["name"]) == (["b0"], "b1")
    assert "dropped: ingest" in data("window", "--max-utterances", "3").stdout
    assert "stays current" in data("window", "--max-utterances", "3").stdout


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        ("window", [], "--max-age-days"),
        ("window", ["--keep-first"], "--keep-first"),
        ("add", ["b0", "--corpora", "folder=b1"], "name one of them"),
        ("add", ["--corpora", "folder=b1"], "--batch"),
        ("ingest", ["--corpora", "revdess=b1"], "did you mean 'ravdess'"),
        ("ingest", ["--corpora", " "], "names none"),
        ("add", ["b0", "--recorded", "yesterday"], "yesterday"),
        ("gc", ["--keep", "0"], "--keep"),
        ("simulate", ["--to", "x", "--noise", "brown"], "white or pink"),
        ("simulate", ["--to", "x", "--class-shift", "angry"], "expected label=share"),
    ],
)
def test_wrong_usage_exits_with_2(data: Callable[..., Result], command: str, arguments: list[str], told: str) -> None:
    done = data(command, *arguments, ok=False)
    assert done.exit_code == 2
    assert told in done.stderr


@pytest.mark.parametrize("command", ["show", "verify", "validate", "window", "add"])
def test_a_dataset_without_a_version_is_one_clear_line(data: Callable[..., Result], command: str) -> None:
    arguments = {"window": ["--max-utterances", "1"], "add": ["b0"]}.get(command, [])
    done = data(command, *arguments, ok=False)
    assert isinstance(done.exception, StorageError)
    assert "no dataset 'calls' yet" in str(done.exception)


def test_gc_tells_first_and_removes_when_asked(data: Callable[..., Result], grown: list[str], tmp_path: Path) -> None:
    data("window", "--max-utterances", "3")
    assert "would be removed: 0 objects" in data("gc", "--keep", "1").stdout
    told = data("gc", "--keep", "1", "--min-age-hours", "0").stdout
    assert re.search(r"^  datasets  3  [\d,]+ bytes$", told, re.MULTILINE)
    assert "nothing was removed; --delete does it" in told
    assert len(list((tmp_path / "store" / "datasets").iterdir())) == 4
    done = json.loads(data("gc", "--keep", "1", "--min-age-hours", "0", "--delete", "--json").stdout)
    assert (done["deleted"], len(done["kept"])) == (True, 1)
    assert len(list((tmp_path / "store" / "datasets").iterdir())) == 1
    data("verify")


def test_simulated_batches_are_added_as_they_are(
    data: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--base", 3, "--batches", 2, "--size", 3, "--noise-snr-db", 10, "--start-at", 2]
    told = data("simulate", "--to", tmp_path / "made", "--corpora", "folder=base", *arguments).stdout
    assert [line.split()[3] for line in told.splitlines()] == ["clean", "clean", "shifted"]
    monkeypatch.chdir(tmp_path / "made")
    data("ingest", "--set", "data.corpora=[{name: folder, path: base, options: {csv: recordings.csv}}]")
    for name in ("batch-01", "batch-02"):
        data("add", name)
    version = resolve(str(tmp_path / "store"), "calls", "current")
    assert [batch["name"] for batch in version.batches] == ["ingest", "batch-01", "batch-02"]
    assert len({row.speaker for row in read_utterances(version.shard_uris)}) <= 3


def test_where_finds_the_files_of_corpora_and_of_batches(
    data: Callable[..., Result], grown: list[str], arriving: Path, tmp_path: Path
) -> None:
    version = resolve(str(tmp_path / "store"), "calls", "current")
    rows = {shard.batch: read_utterances(uri) for shard, uri in zip(version.shards, version.shard_uris, strict=True)}
    base, batch = rows["ingest"][0].source_id, rows["b1"][0].source_id
    assert data("where", base, "--corpora", "folder=base").stdout.strip() == str(arriving / "base/angry/s00_0.wav")
    found = data("where", batch, "--folder", "b1").stdout.strip()
    assert Path(found).parent.parent == arriving / "b1"
    done = data("where", base, "folder:0123", "--corpora", "folder=base", ok=False)
    assert done.exit_code == 1
    assert done.stdout.strip() == str(arriving / "base/angry/s00_0.wav")
    assert "error: folder:0123: none of the recordings of folder" in done.stderr


def test_a_batch_that_is_no_name_is_wrong_usage(data: Callable[..., Result], grown: list[str]) -> None:
    assert isinstance(data("add", "b0", "--batch", "B 0", ok=False).exception, ConfigError)


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(1, len(snippets())))
def test_the_page_s_code_reads_a_shard(
    number: int,
    data: Callable[..., Result],
    arriving: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, code = snippets()[0], snippets()[number]
    for module in re.findall(r"^import (\w+)", code, re.MULTILINE):
        pytest.importorskip(module)
    if "import datasets" in code:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data("ingest", "--corpora", "folder=base")
    (tmp_path / ".kubevox").mkdir()
    shutil.move(tmp_path / "store", tmp_path / ".kubevox" / "store")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(first.replace('"emotion"', '"calls"'), names)  # noqa: S102 - the page's own code
    exec(code, names)  # noqa: S102
    told = capsys.readouterr().out
    assert "angry" in told
    assert "16000" in told or "duckdb" in code


def test_the_readme_s_code_reads_a_shard(
    data: Callable[..., Result], arriving: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = DOCUMENTATION.parents[1] / "README.md"
    [code] = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    data("ingest", "--corpora", "folder=base")
    (tmp_path / ".kubevox").mkdir()
    shutil.move(tmp_path / "store", tmp_path / ".kubevox" / "store")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace('"emotion"', '"calls"'), names)  # noqa: S102 - the README's own code
    assert names["rate"] == 16_000
    assert len(names["samples"]) == round(names["table"]["duration_s"][0] * names["rate"])
