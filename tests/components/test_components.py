"""Components are thin: what they import, how long they are, and what they hand on."""

import ast
import json
import sys
from pathlib import Path

import pytest
from kfp import dsl

from components.find_champion import find_champion
from components.ingest import ingest
from components.split import split
from components.train import train
from components.validate import validate
from kubevox.config import CorpusSource, DataConfig, SplitConfig, TaskConfig, ValidateConfig
from kubevox.data.dataset import load_dataset
from kubevox.data.splits import load_split
from kubevox.errors import ConfigError, SplitError, ValidationError
from kubevox.progress import parse_event

FILES = sorted(path for path in (Path(__file__).parents[2] / "components").glob("*.py") if path.name != "__init__.py")
TASK = TaskConfig(name="mood", labels=["angry", "happy", "sad"]).to_json()
VALIDATION = ValidateConfig().to_json()


def test_every_stage_has_its_component():
    stages = {"ingest", "validate", "split", "extract_features", "train", "evaluate", "deploy"}
    assert stages <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_module_scope_imports_kfp_and_the_standard_library_only(path):
    imported = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.partition(".")[0])
    assert imported <= set(sys.stdlib_module_names) | {"kfp"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_component_fits_a_screen_and_is_one_function_that_takes_its_library_from_the_image(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 110
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == [path.stem]
    (decorator,) = functions[0].decorator_list
    settings = {keyword.arg: ast.unparse(keyword.value) for keyword in decorator.keywords}
    assert settings["install_kfp_package"] == "False"  # else every task would run pip
    assert "KUBEVOX_IMAGE" in settings["base_image"]
    assert "packages_to_install" not in settings


@pytest.fixture
def artifact(tmp_path):
    """An output artifact as KFP's local runner hands it in."""

    def make(kind: type[dsl.Artifact], name: str) -> dsl.Artifact:
        return kind(name=name, uri=str(tmp_path / name), metadata={})

    return make


@pytest.fixture
def said(monkeypatch, capsys):
    """The events that components emitted since the last call."""
    monkeypatch.setenv("KUBEVOX_EVENTS", "1")
    return lambda: [event for line in capsys.readouterr().out.splitlines() if (event := parse_event(line))]


def data(folder: Path, **options) -> str:
    return DataConfig(corpora=[CorpusSource(name="folder", path=str(folder))], **options).to_json()


def test_the_first_three_stages_hand_on_uris_and_readable_artifacts(folder_corpus, tmp_path, artifact, said):
    store = str(tmp_path / "store")
    report, certificate = artifact(dsl.HTML, "report"), artifact(dsl.Artifact, "certificate")
    handed = tmp_path / "split-uri"
    for reused in (False, True):
        dataset = ingest.python_func(data=data(folder_corpus()), store=store)
        validated = validate.python_func(dataset=dataset, task=TASK, config=VALIDATION, store=store, report=report)
        items = split.python_func(
            dataset=dataset,
            validation=validated,
            task=TASK,
            config=SplitConfig().to_json(),
            store=store,
            split=str(handed),
            certificate=certificate,
        )
        results = {event["stage"]: event["fields"] for event in said() if event["kind"] == "result"}
        assert {stage: fields["reused"] for stage, fields in results.items()} == dict.fromkeys(
            ("ingest", "validate", "split"), reused
        )
    assert load_dataset(dataset).utterances == results["ingest"]["utterances"] == 36
    assert (results["validate"]["accepted"], results["validate"]["quarantined"]) == (36, 0)
    made = load_split(handed.read_text())
    assert items == [{"shard": shard, "split": made.uri} for shard in load_dataset(dataset).shard_uris]
    assert results["split"]["speakers"] == made.certificate["speakers"] == {"train": 4, "validation": 1, "test": 1}
    # What a person reads, with the store's URI in the metadata; the artifact's own URI stays KFP's.
    assert Path(report.path).read_text().lstrip().lower().startswith("<!doctype html>")
    assert json.loads(Path(certificate.path).read_text()) == made.certificate
    assert report.metadata == {"validation": validated}
    assert certificate.metadata == {"split": made.uri}
    assert (report.uri, certificate.uri) == (str(tmp_path / "report"), str(tmp_path / "certificate"))


def test_a_users_error_passes_through_a_component(folder_corpus, tmp_path, artifact):
    store = str(tmp_path / "store")
    folder = folder_corpus(speakers=2)
    dataset = ingest.python_func(data=data(folder), store=store)
    report, certificate = artifact(dsl.HTML, "report"), artifact(dsl.Artifact, "certificate")
    validated = validate.python_func(dataset=dataset, task=TASK, config=VALIDATION, store=store, report=report)
    with pytest.raises(SplitError, match="at least 3 speakers"):
        split.python_func(
            dataset=dataset,
            validation=validated,
            task=TASK,
            config=SplitConfig().to_json(),
            store=store,
            split=str(tmp_path / "split-uri"),
            certificate=certificate,
        )
    assert not (tmp_path / "split-uri").exists()
    (folder / "sad" / "s00_0.wav").write_bytes(b"a letter")
    with pytest.raises(ValidationError, match=r"s00_0\.wav: not a recording"):
        ingest.python_func(data=data(folder), store=store)
    with pytest.raises(ConfigError, match="'corpra'"):
        ingest.python_func(data='{"corpra": []}', store=store)


def test_a_baseline_that_is_not_wanted_trains_nothing(tmp_path, artifact):
    handed = tmp_path / "run"
    values = dict.fromkeys(("split", "config", "features", "limits", "store", "tracking", "experiment"), "")
    curves = artifact(dsl.Metrics, "curves")
    assert train.python_func(blocks=[], model="null", run_id=str(handed), curves=curves, **values) == ""
    assert handed.read_text() == ""


def test_a_fresh_registry_has_no_champion(tmp_path, said):
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert find_champion.python_func(name="kubevox-mood", tracking=tracking) == ""
    (event,) = said()
    assert (event["stage"], event["fields"]["version"]) == ("find_champion", None)
