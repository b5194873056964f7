"""The command line, as a person meets it: what it prints, and with which exit code it ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kubevox import __version__
from kubevox.config import load_config

ROOT = Path(__file__).resolve().parent.parent
EMOTION = str(ROOT / "configs" / "emotion.yaml")


@pytest.fixture
def kubevox(tmp_path):
    """Run ``kubevox …`` in an empty folder: exit code, standard output, standard error."""

    def run(*arguments: str):
        command = [sys.executable, "-m", "kubevox.cli", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


def one_line(text: str) -> str:
    """An error is one line that says so."""
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1
    return text


def test_the_help_names_the_commands(kubevox):
    code, out, _ = kubevox("--help")
    assert code == 0
    for command in ("predict", "serve", "config"):
        assert command in out


def test_the_version_is_told(kubevox):
    assert kubevox("--version") == (0, f"kubevox {__version__}\n", "")


@pytest.mark.parametrize("task", ["emotion", "language"])
def test_a_printed_configuration_can_be_loaded_and_is_the_same(task, kubevox, tmp_path):
    file = str(ROOT / "configs" / f"{task}.yaml")
    code, out, _ = kubevox("config", file, "--set", "train.epochs=5")
    assert code == 0
    (tmp_path / "printed.yaml").write_text(out)
    assert load_config(tmp_path / "printed.yaml") == load_config(file, ["train.epochs=5"])
    assert yaml.safe_load(out)["train"]["epochs"] == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["config", EMOTION, "--set", "train.epoch=5"],
            "unknown key 'train.epoch' (value 5); did you mean 'train.epochs'?",
        ),
        (["config", EMOTION, "--set", "train.epochs=0"], "'train.epochs' = 0"),
        (["config", EMOTION, "--set", "data.corpora.0.name=ravdes"], "unknown corpus 'ravdes'"),
        (["config", EMOTION, "--set", "data.corpora=[{name: ravdess}]"], "corpus 'ravdess' needs a path"),
        (["config", EMOTION, "--set", "data.corpora.0.options={language: en}"], "unknown key 'language'"),
        (["config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["predict", "--config", "nowhere.yaml", "x.wav"], "nowhere.yaml: cannot be read"),
        (["predict", "--config", EMOTION, "--set", "store=", "x.wav"], "'store' = None"),
        (["serve", "--config", EMOTION, "--set", "gate.uar=1"], "unknown key 'gate.uar'"),
    ],
)
def test_a_wrong_configuration_ends_with_2_and_one_line(arguments, words, kubevox):
    code, out, err = kubevox(*arguments)
    assert (code, out) == (2, "")
    assert words in one_line(err)


@pytest.mark.parametrize("arguments", [["predict"], ["predikt"], ["predict", "--bundel", "x", "y"], ["config"]])
def test_wrong_usage_ends_with_2(arguments, kubevox):
    code, out, err = kubevox(*arguments)
    assert (code, out) == (2, "")
    assert "Usage" in err


@pytest.mark.parametrize("command", [["predict", "clip.wav"], ["serve", "--port", "1"]])
def test_without_a_champion_the_remedy_is_told(command, kubevox, tmp_path):
    code, out, err = kubevox(*command, "--config", EMOTION)
    assert (code, out) == (1, "")
    line = one_line(err)
    assert "no champion of kubevox-emotion" in line
    assert "make run TASK=emotion" in line
    assert list(tmp_path.iterdir()) == []  # asking makes no database


def test_a_bundle_that_is_not_there_is_named(kubevox):
    code, out, err = kubevox("predict", "--bundle", "nowhere/bundle", "clip.wav")
    assert (code, out) == (1, "")
    assert "nowhere/bundle" in one_line(err)


def test_json_in_a_configuration_is_yaml_too(kubevox, tmp_path):
    tree = yaml.safe_load(Path(EMOTION).read_text())
    (tmp_path / "c.json").write_text(json.dumps(tree))
    code, out, _ = kubevox("config", "c.json")
    assert code == 0
    assert yaml.safe_load(out) == load_config(EMOTION).model_dump(mode="json")
