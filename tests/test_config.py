"""What a configuration may hold, and how it is refused."""

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel

from kubevox.config import (
    AudioLimits,
    Config,
    SplitConfig,
    StatisticsConfig,
    TaskConfig,
    TrainConfig,
    ValidateConfig,
    load_config,
    parse_model,
)
from kubevox.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
EMOTION = ROOT / "configs" / "emotion.yaml"
# Apart from the shipped ones, so that whoever tunes those meets no test.
MOOD = """
task:
  name: mood
  labels: [angry, happy, neutral, sad]
  map:
    ravdess: {calm: neutral, fearful: null}
store: somewhere
data:
  corpora:
    - name: synthetic
      path: null
      options: {languages: [en]}
split:
  validation_share: 0.2
  test_share: 0.2
features:
  frontends:
    logmel: {kind: logmel, sample_rate: 16000, mels: 64, fmax_hz: 8000}
    statistics: {kind: statistics}
  recipes:
    default: {kind: original}
    noise: {kind: noise, sigma: 0.035}
    shift: {kind: shift, max_samples: 5000}
model: {architecture: rescnn, frontend: logmel, recipes: [default]}
train:
  epochs: 45
  schedule: {kind: one_cycle}
  spec_augment: null
baseline:
  model: {architecture: cnn1d, frontend: statistics, recipes: [default, noise, shift]}
gate:
  min_uar: 0.4
"""


def refusal(path: Path, *overrides: str) -> str:
    """The text of the error, which is one line."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.fixture
def mood(tmp_path):
    """A small configuration."""
    path = tmp_path / "mood.yaml"
    path.write_text(MOOD)
    return path


@pytest.fixture
def edited(mood):
    """The small configuration with some text replaced."""

    def edit(old: str, new: str) -> Path:
        assert MOOD.count(old) == 1
        mood.write_text(MOOD.replace(old, new))
        return mood

    return edit


def absent(model: BaseModel, given: Any, prefix: str = "") -> list[str]:
    """The keys of a loaded section that its file leaves to a default."""
    missing = []
    for name in type(model).model_fields:
        if name not in given:
            missing.append(prefix + name)
        else:
            missing += absent_in(getattr(model, name), given[name], f"{prefix}{name}.")
    return missing


def absent_in(value: Any, given: Any, prefix: str) -> list[str]:
    if isinstance(value, BaseModel):
        return absent(value, given, prefix)
    if isinstance(value, dict):
        return [key for name, item in value.items() for key in absent_in(item, given[name], f"{prefix}{name}.")]
    if isinstance(value, list):
        return [key for i, item in enumerate(value) for key in absent_in(item, given[i], f"{prefix}{i}.")]
    return []


def test_configurations_are_shipped_for_both_tasks():
    assert {path.name for path in SHIPPED} >= {"emotion.yaml", "language.yaml"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_choice_of_a_run_stands_in_the_shipped_file(path):
    assert absent(load_config(path), yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_configuration_survives_json(path):
    config = load_config(path)
    assert Config.from_json(config.to_json()) == config
    for name in ("task", "data", "validation", "split", "features", "train", "evaluate", "gate", "deploy"):
        section = getattr(config, name)
        assert type(section).from_json(section.to_json()) == section
    assert parse_model(config.model.to_json()) == config.model


def test_equal_sections_have_equal_digests_whatever_the_order_of_their_keys():
    forward, backward = TrainConfig(epochs=3, seed=1), TrainConfig.model_validate({"seed": 1, "epochs": 3})
    assert forward.digest() == backward.digest() != TrainConfig(epochs=4, seed=1).digest()


def test_overrides_reach_sections_lists_and_unions(mood):
    config = load_config(
        mood,
        [
            "train.epochs=5",
            "train.learning_rate=1e-4",
            "data.corpora.0.options.languages=[da, sv]",
            "train.schedule={kind: plateau, patience: 7}",
            "baseline=null",
            "train.epochs=6",
        ],
    )
    assert config.train.epochs == 6  # the last word counts
    assert config.train.learning_rate == 1e-4
    assert config.data.corpora[0].options["languages"] == ["da", "sv"]
    assert (config.train.schedule.kind, config.train.schedule.patience) == ("plateau", 7)
    assert config.baseline is None


def test_an_override_can_open_a_section_that_the_file_leaves_out_or_null(mood):
    assert load_config(mood).train.spec_augment is None
    config = load_config(mood, ["train.spec_augment.bands=1", "deploy.check_clips=3"])
    assert (config.train.spec_augment.bands, config.deploy.check_clips) == (1, 3)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        # unknown keys
        ("train.epoch=5", ["unknown key 'train.epoch'", "value 5", "'train.epochs'"]),
        ("trian.epochs=5", ["unknown key 'trian'", "5", "'train'"]),
        ("data.corpora.0.pth=x", ["unknown key 'data.corpora.0.pth'", "'x'", "'data.corpora.0.path'"]),
        ("features.recipes.noise.sgma=1", ["'features.recipes.noise.sgma'", "'features.recipes.noise.sigma'"]),
        ("features.frontends.logmel.mel=32", ["'features.frontends.logmel.mel'", "'features.frontends.logmel.mels'"]),
        ("baseline.model.kernels=5", ["'baseline.model.kernels'", "'baseline.model.kernel'"]),
        ("train.schedule.warmup=0.1", ["'train.schedule.warmup'", "'train.schedule.warmup_share'"]),
        ("model.kernel=3", ["unknown key 'model.kernel'", "3"]),  # a key of the union's other member
        # wrong types
        ("train.epochs=many", ["'train.epochs' = 'many'", "integer"]),
        ("train.epochs=5.5", ["'train.epochs' = 5.5", "integer"]),
        ("train.epochs=true", ["'train.epochs' = True", "no true or false"]),
        ("validation.sample_rates=[yes]", ["'validation.sample_rates' = [True]", "no true or false"]),
        ("gate.min_uar=high", ["'gate.min_uar' = 'high'", "number"]),
        ("gate.min_uar=.nan", ["'gate.min_uar' = nan", "finite"]),
        ("gate.max_latency_p95_ms=.inf", ["'gate.max_latency_p95_ms' = inf", "finite"]),
        ("task=5", ["'task' = 5", "a section of keys"]),
        ("train.schedule=null", ["'train.schedule' = None", "a section of keys"]),
        ("data.corpora=ravdess", ["'data.corpora' = 'ravdess'", "list"]),
        ("store=null", ["'store' = None", "string"]),
        ("split.disjoint_sentences=maybe", ["'split.disjoint_sentences' = 'maybe'", "boolean"]),
        ("model.channels=[16, -2]", ["'model.channels.1' = -2", "greater than 0"]),
        # impossible values
        ("train.epochs=0", ["'train.epochs' = 0", "greater than 0"]),
        ("gate.min_uar=1.5", ["'gate.min_uar' = 1.5", "less than or equal to 1"]),
        ("train.device=gpu", ["'train.device' = 'gpu'", "'cuda'"]),
        ("model.architecture=rescn", ["'model.architecture' = 'rescn'", "did you mean 'rescnn'?"]),
        ("train.schedule.kind=cosine", ["'train.schedule.kind' = 'cosine'", "one_cycle, plateau"]),
        ("train.schedule={}", ["'train.schedule.kind'", "needed"]),
        ("task.labels=[angry]", ["'task.labels' = ['angry']", "at least 2"]),
        ("task.labels=[angry, angry]", ["'task.labels'", "listed twice"]),
        # values that do not go together
        ("split.validation_share=0.9", ["'split.validation_share' = 0.9", "test_share = 0.2"]),
        ("validation.min_duration_s=70", ["'validation.min_duration_s' = 70", "max_duration_s = 60"]),
        ("data.limits.min_sample_rate=192000", ["'data.limits.min_sample_rate' = 192000", "max_sample_rate"]),
        ("features.frontends.logmel.fmax_hz=9000", ["logmel.fmax_hz' = 9000", "sample_rate / 2 = 8000"]),
        ("baseline.model.strides=[[1]]", ["'baseline.model.strides' = [[1]]", "filters"]),
        ("task.map.ravdess.calm=neutrl", ["'task.map.ravdess.calm' = 'neutrl'", "task.labels"]),
        ("data.labels=[hapy, sad]", ["'data.labels'", "'hapy'", "task.labels"]),
        ("data.labels=[sad]", ["'data.labels' = ['sad']", "two"]),
        ("model.frontend=lgmel", ["'model.frontend' = 'lgmel'", "['logmel', 'statistics']"]),
        ("model.frontend=statistics", ["'model.frontend' = 'statistics'", "rescnn", "'logmel'"]),
        ("baseline.model.recipes=[nois]", ["'baseline.model.recipes' = ['nois']", "features.recipes"]),
        # YAML's own surprises, and overrides that are none
        ("task.map={ravdess: {no: angry}}", ["False", "task.map.ravdess", "quotes"]),
        ("train.epochs=[", ["not valid YAML"]),
        ("train.epochs", ["expected section.key=value"]),
        ("=5", ["expected section.key=value"]),
        ("train.epochs.most=3", ["train.epochs", "not a section"]),
        ("data.corpora.1.name=x", ["'1'", "list of 1"]),
    ],
)
def test_a_wrong_override_is_refused_in_one_line_that_names_it(override, words, mood):
    text = refusal(mood, "train.batch_size=16", override)
    assert f"--set {override.partition('=')[0]}" in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  epochs: 45", "  epoch: 45", ["unknown key 'train.epoch'", "45", "did you mean 'train.epochs'?"]),
        ("gate:", "gates:", ["unknown key 'gates'", "did you mean 'gate'?"]),
        ("\ntask:", "\ntak:", ["unknown key 'tak'", "did you mean 'task'?"]),
        ("  epochs: 45", "  epochs: lots", ["'train.epochs' = 'lots'"]),
        ("  test_share: 0.2", "  test_share: 0.8", ["'split.validation_share' = 0.2", "test_share = 0.8"]),
        ("  name: mood", "", ["'task.name' is missing"]),
        ("  min_uar: 0.4", "  min_uar: 0.4\n  min_uar: 0.1", ["'min_uar' stands twice", "line"]),
        ("gate:", "task: {}\ngate:", ["'task' stands twice"]),
        ("task:", "task: [", ["not valid YAML", "line"]),
        ("gate:", "1: {}\ngate:", ["key 1", "top level", "quotes"]),
        ("gate:", '"a\\nb": {}\ngate:', ["unknown key 'a b'"]),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_it(edited, old, new, words):
    path = edited(old, new)
    text = refusal(path)
    assert text.startswith(f"{path}: ")
    for word in words:
        assert word in text


def test_values_that_do_not_go_together_name_the_file_and_the_override_beside_them(edited):
    path = edited("  validation_share: 0.2", "  validation_share: 0.5")
    assert refusal(path, "split.test_share=0.5").startswith(f"{path} with --set split.test_share: ")
    path = edited("  test_share: 0.2", "  test_share: 0.8")
    assert refusal(path, "train.epochs=2").startswith(f"{path}: ")  # an override of something else has no part in it


def test_a_file_that_is_no_configuration_is_refused(tmp_path):
    assert "no-such.yaml: cannot be read (No such file" in refusal(tmp_path / "no-such.yaml")
    assert "cannot be read (Is a directory" in refusal(tmp_path)
    for content in (b"", b"- task\n", b"task\n"):
        (tmp_path / "c.yaml").write_bytes(content)
        assert "expected sections" in refusal(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(tmp_path / "c.yaml")


def typed_keys(kind: Any, tree: Any, prefix: str = "") -> list[str]:
    """The dotted keys of a configuration's sections, without the names that a person chooses (recipes, raw labels)."""
    keys = []
    for name, field in kind.model_fields.items():
        keys.append(prefix + name)
        keys += keys_under(field.annotation, tree.get(name), f"{prefix}{name}.")
    return keys


def keys_under(annotation: Any, tree: Any, prefix: str) -> list[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return keys_under(arguments[0], tree, prefix)
    if origin in (Union, types.UnionType):
        fitting = [a for a in arguments if not isinstance(tree, dict) or chosen(a, tree)]
        return [key for argument in fitting for key in keys_under(argument, tree, prefix)]
    if isinstance(tree, dict) and origin is dict:
        return [key for name, item in tree.items() for key in keys_under(arguments[1], item, f"{prefix}{name}.")]
    if isinstance(tree, list) and origin is list:
        return [key for i, item in enumerate(tree) for key in keys_under(arguments[0], item, f"{prefix}{i}.")]
    if isinstance(tree, dict) and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return typed_keys(annotation, tree, prefix)
    return []


def chosen(kind: Any, tree: dict[str, Any]) -> bool:
    """Whether a union's member is the one that the tree's tag names."""
    fields = getattr(kind, "model_fields", {})
    return all(tree.get(tag) == fields[tag].default for tag in ("kind", "architecture") if tag in fields)


KEYS = typed_keys(Config, yaml.safe_load(EMOTION.read_text()))


@st.composite
def misspelt(draw):
    """A known key, and the same with one character of its last word dropped or two swapped."""
    key = draw(st.sampled_from(KEYS))
    section, dot, word = key.rpartition(".")
    at = draw(st.integers(0, len(word) - 1))
    if draw(st.booleans()):
        wrong = word[:at] + word[at + 1 :]
    else:
        wrong = word[:at] + word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :]
    assume(wrong and section + dot + wrong not in KEYS)
    return key, section + dot + wrong


@given(misspelt())
def test_a_misspelt_key_is_named_with_the_key_that_was_meant(keys):
    meant, written = keys
    text = refusal(EMOTION, f"{written}=1")
    assert text.startswith(f"--set {written}: unknown key '{written}' (value 1)")
    _, _, word = written.rpartition(".")
    if len(word) > 3:
        section = meant.rpartition(".")[0]
        assert f"did you mean '{section}." in text if section else "did you mean '" in text


def test_all_sections_have_keys_that_can_be_misspelt():
    assert {"task.name", "data.corpora.0.path", "split.seed", "model.architecture", "gate.min_uar"} <= set(KEYS)
    assert len(KEYS) > 100


def test_a_section_read_from_broken_json_is_refused_in_one_line():
    for text in ("{", "[1]", '{"epochs": 0}', '{"epochss": 1}', "null"):
        with pytest.raises(ConfigError, match="section TrainConfig") as caught:
            TrainConfig.from_json(text)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="model: not JSON"):
        parse_model("{")


def test_a_range_of_one_value_is_no_contradiction():
    assert AudioLimits(min_sample_rate=16_000, max_sample_rate=16_000).max_sample_rate == 16_000
    assert ValidateConfig(min_duration_s=2.0, max_duration_s=2.0).max_duration_s == 2.0
    assert SplitConfig(validation_share=0.4, test_share=0.4).test_share == 0.4
    assert StatisticsConfig(mels=20, mfccs=20).mfccs == 20


def test_labels_that_a_run_does_not_select_are_known_and_left_out(mood):
    config = load_config(mood, ["data.labels=[sad, neutral]", "task.map.ravdess.cross=angry"])
    task = config.run_task
    assert config.labels == task.labels == ["sad", "neutral"]
    assert task.label_of("ravdess", "sad") == (True, "sad")
    assert task.label_of("ravdess", "calm") == (True, "neutral")
    assert task.label_of("ravdess", "cross") == (True, None)  # through the corpus' own map
    assert task.label_of("folder", "happy") == (True, None)  # a label of the task, by its own name
    assert task.label_of("ravdess", "fearful") == (True, None)  # left out all along
    assert task.label_of("ravdess", "cheerful") == (False, None)
    assert TaskConfig.from_json(task.to_json()) == task


def test_without_a_selection_the_task_is_unchanged(mood):
    config = load_config(mood)
    assert config.run_task == config.task
    assert config.labels == config.task.labels


def test_a_corpus_own_map_comes_before_the_common_one():
    task = TaskConfig(name="t", labels=["a", "b"], map={"*": {"x": "a", "y": "a"}, "corpus": {"x": "b", "a": None}})
    assert task.label_of("corpus", "x") == (True, "b")
    assert task.label_of("corpus", "y") == (True, "a")
    assert task.label_of("corpus", "a") == (True, None)
    assert task.label_of("other", "a") == (True, "a")
    assert task.label_of("other", None) == (False, None)


def test_only_the_frontends_and_recipes_that_models_name_count(mood):
    config = load_config(mood)
    assert config.feature_plan == {"logmel": ["default"], "statistics": ["default", "noise", "shift"]}
    assert set(config.used_features.frontends) == {"logmel", "statistics"}
    alone = load_config(mood, ["baseline=null", "model.recipes=[shift]"])
    assert alone.feature_plan == {"logmel": ["default", "shift"]}  # validation and test rows need the original
    assert set(alone.used_features.frontends) == {"logmel"}
    assert set(alone.used_features.recipes) == {"default", "shift"}
    # A frontend that no model names changes nothing that is computed.
    other = load_config(mood, ["baseline=null", "model.recipes=[shift]", "features.frontends.statistics.hop=256"])
    assert other.used_features.digest() == alone.used_features.digest()


def test_names_in_the_registry_follow_the_task_unless_given(mood):
    config = load_config(mood)
    assert (config.experiment, config.registered_model) == ("mood", "kubevox-mood")
    named = load_config(mood, ["tracking.experiment=e", "tracking.registered_model=m"])
    assert (named.experiment, named.registered_model) == ("e", "m")


def test_a_configuration_is_checked_without_the_heavy_libraries():
    code = "import json, sys, kubevox.config; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "pyarrow", "kfp", "mlflow", "kserve", "numpy"} & set(json.loads(run.stdout))
