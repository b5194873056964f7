"""``kubevox cascade``, as a person meets it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kubevox.cli import main
from kubevox.config import Config, MiniConfig, TrackingConfig, load_config
from kubevox.errors import ConfigError
from kubevox.models.bundle import load_bundle
from kubevox.models.cascade import Cascade, load_model, read_cascade
from kubevox.registry import CHAMPION
from kubevox.training.loop import train
from kubevox.training.tracking import mlflow_client
from tests.tiny import CNN1D, EVALUATE, FEATURES, RESCNN, TASK, TRAIN, Tiny, untrained_bundle

ROOT = Path(__file__).resolve().parent.parent
MINI = MiniConfig(model=RESCNN.model_copy(update={"channels": [4], "recipes": ["default"]}), train=TRAIN)
Kubevox = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def champion(tiny: Tiny) -> str:
    """A bundle that the registry calls champion of ``kubevox-cascaded``."""
    uri, name = untrained_bundle(tiny, tiny.store, RESCNN, seed=11), "kubevox-cascaded"
    client = mlflow_client(tiny.tracking)
    client.create_registered_model(name)
    client.set_registered_model_alias(
        name, CHAMPION, client.create_model_version(name, uri, tags={"bundle_uri": uri}).version
    )
    return uri


@pytest.fixture(scope="module")
def config(tiny: Tiny, champion: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of the champion's run."""
    settings = Config(
        task=TASK,
        store=tiny.store,
        tracking=TrackingConfig(uri=tiny.tracking, registered_model="kubevox-cascaded"),
        data=tiny.data,
        features=FEATURES,
        model=RESCNN,
        train=TRAIN,
        mini=MINI,
        evaluate=EVALUATE,
    )
    file = tmp_path_factory.mktemp("config") / "mood.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    return file


@pytest.fixture
def kubevox(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kubevox:
    """Run ``kubevox …``: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kubevox", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def one_line(text: str) -> str:
    """An error is one line that says so."""
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1
    return text


def test_a_small_model_is_trained_and_put_before_the_champion(
    kubevox: Kubevox, config: Path, champion: str, tiny: Tiny, tmp_path: Path
) -> None:
    code, out, err = kubevox("cascade", "build", "--config", str(config), "--json")
    assert code == 0, err
    told = json.loads(out)
    cascade = load_model(told["uri"])
    assert isinstance(cascade, Cascade)
    assert cascade.premium.hash == Path(champion).name == told["premium"]
    assert cascade.mini.spec.model == MINI.model
    assert cascade.mini.spec.split_hash == tiny.split.hash
    assert (told["margin"], told["threshold"], told["reused"]) == (0.01, cascade.threshold, False)
    assert "mini: rescnn, best of 3 epochs" in err

    # The same in words: trained before, built before.
    code, out, err = kubevox("cascade", "build", "--config", str(config))
    assert code == 0
    assert "(trained before)" in err
    assert "(built before)" in out
    for words in ("mini  ", "premium  ", "Threshold  ", "to premium", "mean ms", told["uri"], "report.html"):
        assert words in out
    assert sum(line.startswith("*") for line in out.splitlines()) == 1

    # As training does it: known by the training key, and logged.
    again = train(
        tiny.split.uri,
        tiny.blocks,
        MINI.model,
        MINI.train,
        FEATURES,
        tiny.data.limits,
        tiny.store,
        tiny.tracking,
        "mood",
    )
    assert again.reused
    assert Path(again.bundle_uri).name == cascade.mini.hash

    # What it says of itself, and the folder that a pod is brought.
    code, out, _ = kubevox("cascade", "show", told["uri"])
    assert code == 0
    assert cascade.hash in out
    assert "Threshold  " in out
    code, out, _ = kubevox("cascade", "show", told["uri"], "--json")
    assert json.loads(out)["figures"] == told["figures"]
    folder = str(tmp_path / "models")
    assert kubevox("cascade", "export", told["uri"], folder) == (0, f"{folder}\n", "")
    assert load_model(folder).hash == cascade.hash


def test_named_bundles_are_taken_whatever_the_registry_and_the_configuration_say(
    kubevox: Kubevox, config: Path, tiny: Tiny
) -> None:
    mini = untrained_bundle(tiny, tiny.store, CNN1D, seed=1)
    premium = untrained_bundle(tiny, tiny.store, RESCNN, seed=2)
    code, out, err = kubevox(
        *("cascade", "build", "--config", str(config), "--set", "mini=null", "--json"),
        *("--mini", mini, "--premium", premium),
    )
    assert code == 0, err
    told = json.loads(out)
    assert (told["mini"], told["premium"]) == (load_bundle(mini).hash, load_bundle(premium).hash)
    assert read_cascade(told["uri"])[0].margin == 0.01


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--set", "mini=null"], 2, "mini: the configuration has none; add the section, or name a bundle with --mini"),
        (["--set", "tracking.registered_model=other"], 1, "no champion of other in sqlite"),
        (["--premium", "nowhere/bundle"], 1, "nowhere/bundle"),
        (["--mini", "nowhere/bundle"], 1, "nowhere/bundle"),
        (["--set", "mini.modle=1"], 2, "unknown key 'mini.modle'"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_remedy(
    arguments: list[str], code: int, words: str, kubevox: Kubevox, config: Path
) -> None:
    ended, out, err = kubevox("cascade", "build", "--config", str(config), *arguments)
    assert (ended, out) == (code, "")
    assert words in one_line(err)


@pytest.mark.parametrize("command", [["show", "nowhere"], ["export", "nowhere", "somewhere"]])
def test_a_cascade_that_is_not_there_is_named(command: list[str], kubevox: Kubevox) -> None:
    code, out, err = kubevox("cascade", *command)
    assert (code, out) == (1, "")
    assert "nowhere" in one_line(err)


def test_without_a_champion_asking_makes_no_database(kubevox: Kubevox, config: Path, tmp_path: Path) -> None:
    tracking = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    code, _, err = kubevox("cascade", "build", "--config", str(config), "--set", tracking)
    assert code == 1
    assert "no champion of kubevox-cascaded" in one_line(err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", ["emotion", "language"])
def test_the_small_model_changes_nothing_of_a_run(task: str) -> None:
    """Neither what its stages are given nor the features that they compute."""
    file = ROOT / "configs" / f"{task}.yaml"
    with_mini, without = load_config(file), load_config(file, ["mini=null"])
    assert with_mini.mini is not None
    assert with_mini.mini.margin > 0
    from pipelines.training import arguments

    assert arguments(with_mini, "store", "tracking") == arguments(without, "store", "tracking")
    assert with_mini.used_features == without.used_features
    assert with_mini.feature_plan == without.feature_plan


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mini.model.frontend=lgmel", "'mini.model.frontend' = 'lgmel'"),
        ("mini.model.frontend=statistics", "rescnn needs one of kind 'logmel'"),
        ("mini.model.recipes=[nois]", "'mini.model.recipes' = ['nois']"),
        ("mini.margin=1", "'mini.margin' = 1"),
        ("mini.train.epoch=1", "did you mean 'mini.train.epochs'?"),
    ],
)
def test_a_wrong_mini_section_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT / "configs" / "emotion.yaml", [override])
    assert words in str(caught.value)
