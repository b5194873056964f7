"""``kubevox features``, as a person meets it: what it prints and writes, and with which exit code it ends."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from kubevox.cli import main
from kubevox.config import AudioLimits, load_config
from kubevox.data.audio import decode

ROOT = Path(__file__).resolve().parent.parent
EMOTION = str(ROOT / "configs" / "emotion.yaml")


def tree(root: Path) -> dict:
    return {
        "task": {"name": "mood", "labels": ["angry", "happy", "sad"]},
        "store": str(root / "store"),
        "data": {"corpora": [{"name": "folder", "path": str(root / "corpus")}], "shard_mb": 1},
        "features": {
            "device": "cpu",
            "workers": 1,
            "frontends": {
                "statistics": {"kind": "statistics", "offset_s": 0.0, "duration_s": 1.0},
                "half": {"kind": "statistics", "offset_s": 0.0, "duration_s": 0.5, "stored": "float16"},
            },
            "recipes": {
                "default": {"kind": "original"},
                "noise": {"kind": "noise"},
                "same": {"kind": "original"},
                "far": {
                    "kind": "chain",
                    "steps": [{"kind": "shift", "max_samples": 900}, {"kind": "noise", "sigma": 0.01}],
                },
            },
        },
        "model": {"architecture": "cnn1d", "frontend": "statistics", "recipes": ["default", "noise"]},
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a configuration."""
    (tmp_path / "mood.yaml").write_text(yaml.safe_dump(tree(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def features(folder, monkeypatch, capsys):
    """Run ``kubevox features …``: exit code, standard output, standard error."""

    def run(command: str, *arguments: str, config: str = "mood.yaml"):
        monkeypatch.setattr(sys, "argv", ["kubevox", "features", command, "--config", config, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def recordings(folder, write_wav):
    """Three recordings of different lengths and rates, one of them in a subfolder."""
    write_wav(folder / "in" / "b.wav", 1.2, 16_000)
    write_wav(folder / "in" / "a.flac", 0.9, 22_050, frequency=330.0)
    write_wav(folder / "in" / "deep" / "c.wav", 1.0, 16_000, frequency=440.0, channels=2)
    (folder / "in" / "notes.txt").write_text("not a recording")
    return folder / "in"


def read(path: Path):
    """A table's rows: paths, ids, recipes, values; and its metadata."""
    with pq.ParquetFile(path) as file:
        table = file.read()
        about = json.loads(file.metadata.metadata[b"kubevox"])
    values = table.column("values").combine_chunks().to_numpy_ndarray()
    return *(table.column(name).to_pylist() for name in ("path", "id", "recipe")), values, about


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(text: str) -> str:
    """An error is one line that says so."""
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1
    return text


class TestCompute:
    def test_a_folder_becomes_a_row_a_recording_and_recipe(self, features, recordings, folder):
        arguments = ["--recipe", "default", "--recipe", "noise", "--output", "f.parquet", "--json"]
        code, out, err = features("compute", "in", *arguments)
        assert (code, err) == (0, "")
        paths, ids, recipes, values, about = read(folder / "f.parquet")
        files = ["in/a.flac", "in/b.wav", "in/deep/c.wav"]
        assert paths == [file for file in files for _ in range(2)]
        assert recipes == ["default", "noise"] * 3
        assert ids[::2] == [decode(Path(file).read_bytes(), AudioLimits())[0].id for file in files]
        assert ids[::2] == ids[1::2]
        assert values.dtype == np.float32
        assert values.shape == (6, 270)
        assert not np.array_equal(values[::2], values[1::2])
        assert about["feature_names"][:2] == ["zero_crossing_rate", "rms"]
        assert len(about["feature_names"]) == 270
        config = load_config("mood.yaml").features
        assert about["frontend"]["name"] == "statistics"
        assert about["frontend"]["config"] == config.frontends["statistics"].model_dump(mode="json")
        assert about["frontend"]["version"] >= 1
        assert about["recipes"]["noise"]["config"] == config.recipes["noise"].model_dump(mode="json")
        closing = json.loads(out)
        assert {key: closing[key] for key in ("recordings", "rows", "failed", "output")} == {
            "recordings": 3,
            "rows": 6,
            "failed": 0,
            "output": "f.parquet",
        }
        assert closing["hours"] == pytest.approx(3.1 / 3600, abs=1e-5)
        assert closing["seconds"] > 0
        assert closing["clips_per_s"] > 0
        assert names_in(folder) == ["f.parquet", "in", "mood.yaml"]

    def test_rows_are_the_very_bits_of_the_pipelines_blocks(self, features, folder, make_corpus):
        indexes, corpus = extracted(features, folder, make_corpus)
        from kubevox.features.blocks import load_features

        code, _, _ = features(
            "compute", str(corpus), "--recipe", "default", "--recipe", "noise", "--output", "f.parquet"
        )
        assert code == 0
        _, ids, recipes, values, _ = read(folder / "f.parquet")
        rows = {(id, recipe): value for id, recipe, value in zip(ids, recipes, values, strict=True)}
        for recipe, wanted in {"default": set(ids), "noise": training_ids(folder)}.items():
            assert wanted
            expected = load_features(indexes, "statistics", recipe, sorted(wanted))
            assert np.array_equal(expected, [rows[id, recipe] for id in sorted(wanted)])

    @pytest.mark.parametrize("options", [["--batch-size", "1"], ["--batch-size", "2"], ["--workers", "2"]])
    def test_neither_batches_nor_processes_change_a_bit(self, options, features, recordings, folder):
        arguments = ["in", "--recipe", "far", "--recipe", "default"]
        assert features("compute", *arguments, "--output", "once.parquet")[0] == 0
        assert features("compute", *arguments, *options, "--output", "again.parquet")[0] == 0
        once, again = read(folder / "once.parquet"), read(folder / "again.parquet")
        assert once[:3] == again[:3]
        assert np.array_equal(once[3], again[3])

    def test_the_frontend_is_chosen_by_name_and_stored_as_it_says(self, features, recordings, folder):
        assert features("compute", "in", "--frontend", "half", "--output", "f.parquet")[0] == 0
        *_, recipes, values, about = read(folder / "f.parquet")
        assert set(recipes) == {"default"}
        assert values.dtype == np.float16
        assert about["frontend"]["name"] == "half"

    def test_names_that_mean_the_same_have_a_row_each(self, features, recordings, folder):
        recipes = ["--recipe", "same", "--recipe", "default", "--recipe", "same"]
        assert features("compute", "in/b.wav", *recipes, "--output", "f.parquet")[0] == 0
        _, _, recipes, values, _ = read(folder / "f.parquet")
        assert recipes == ["same", "default"]
        assert np.array_equal(values[0], values[1])

    def test_equal_recordings_keep_their_own_paths(self, features, recordings, folder):
        (folder / "in" / "copy.wav").write_bytes((folder / "in" / "b.wav").read_bytes())
        assert features("compute", "in", "in/b.wav", "--output", "f.parquet")[0] == 0
        paths, ids, *_ = read(folder / "f.parquet")
        assert paths == ["in/a.flac", "in/b.wav", "in/copy.wav", "in/deep/c.wav"]
        assert ids[1] == ids[2]

    def test_what_cannot_be_used_is_named_and_the_rest_computed(self, features, recordings, folder, write_wav):
        (recordings / "aa.wav").write_bytes(b"RIFF, but not really")
        write_wav(recordings / "bb.wav", 0.02)
        arguments = ["in", "nowhere.wav", "--recipe", "noise", "--output", "f.parquet", "--json"]
        code, out, err = features("compute", *arguments)
        assert code == 1
        lines = err.splitlines()
        assert [line.split(":")[1].strip() for line in lines] == ["in/aa.wav", "in/bb.wav", "nowhere.wav"]
        assert all(line.startswith("error: ") for line in lines)
        assert "too short" in lines[1]
        assert read(folder / "f.parquet")[0] == ["in/a.flac", "in/b.wav", "in/deep/c.wav"]
        assert json.loads(out) | {"recordings": 3, "rows": 3, "failed": 3} == json.loads(out)

    def test_the_limits_of_the_configuration_hold(self, features, recordings):
        code, _, err = features("compute", "in/b.wav", "--set", "data.limits.max_bytes=9", "--output", "f.parquet")
        assert code == 1
        assert "more than the limit of 9" in one_line(err)

    def test_where_nothing_can_be_used_there_is_no_file(self, features, folder):
        (folder / "x.wav").write_bytes(b"")
        (folder / "f.parquet").write_bytes(b"of an earlier run")
        code, out, err = features("compute", "x.wav", "--output", "new.parquet", "--json")
        assert code == 1
        assert "x.wav: the file is empty" in one_line(err)
        assert json.loads(out)["output"] is None
        assert features("compute", "x.wav", "--output", "f.parquet")[:2] == (1, "")
        assert names_in(folder) == ["f.parquet", "mood.yaml", "x.wav"]
        assert (folder / "f.parquet").read_bytes() == b"of an earlier run"

    def test_an_interrupted_run_leaves_what_was_there(self, features, recordings, folder, monkeypatch):
        (folder / "f.parquet").write_bytes(b"of an earlier run")
        import kubevox.cli.feature_table as feature_table

        def interrupted(data, limits, name):
            if name == "in/deep/c.wav":
                raise KeyboardInterrupt
            return decode(data, limits, name)

        monkeypatch.setattr(feature_table, "decode", interrupted)
        code, out, _ = features("compute", "in", "--batch-size", "1", "--output", "f.parquet")
        assert code != 0
        assert out == ""
        assert names_in(folder) == ["f.parquet", "in", "mood.yaml"]
        assert (folder / "f.parquet").read_bytes() == b"of an earlier run"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["in", "--frontend", "statistic"], "--frontend statistic: the configuration has no such frontend"),
            (["in", "--recipe", "loud"], "known are default, far, noise, same"),
            (["in", "--device", "gpu"], "'features.device' = 'gpu'"),
            (["in", "--workers", "0"], "'features.workers' = 0"),
            (["empty"], "'empty': no recordings"),
            (["in", "--output", "nowhere/f.parquet"], "there is no folder nowhere"),
            (["in", "--output", "in"], "this is a folder"),
        ],
    )
    def test_wrong_usage_ends_with_2_and_one_line(self, arguments, words, features, recordings, folder):
        (folder / "empty").mkdir()
        code, out, err = features("compute", "--output", "f.parquet", *arguments)
        assert (code, out) == (2, "")
        assert words in one_line(err)
        assert names_in(folder) == ["empty", "in", "mood.yaml"]


def extracted(features, folder: Path, make_corpus, **options) -> tuple[list[str], Path]:
    """Ingest, split and ``features extract`` a small corpus: its block indexes' URIs, and the corpus' folder."""
    from kubevox.data.dataset import ingest
    from kubevox.data.splits import make_split
    from kubevox.data.validation import accepted_source_ids, validate

    config = load_config("mood.yaml")
    corpus = make_corpus(folder / "corpus", clips=1, **options)
    dataset, _ = ingest(config.data, config.store)
    checked = validate(dataset, config.task, config.validation, config.store)
    split, _ = make_split(dataset, accepted_source_ids(checked.uri), config.task, config.split, config.store)
    (folder / "uris.json").write_text(json.dumps([dataset.uri, split.uri]))
    code, out, _ = features("extract", "--dataset", dataset.uri, "--split", split.uri)
    assert code == 0
    return out.splitlines(), corpus


def training_ids(folder: Path) -> set[str]:
    from kubevox.data.splits import load_split

    _, split = json.loads((folder / "uris.json").read_text())
    return {id for id, part in load_split(split).split_of.items() if part == "train"}


class TestExtract:
    def test_it_leaves_what_the_pipelines_step_leaves(self, features, folder, make_corpus):
        indexes, _ = extracted(features, folder, make_corpus)
        from components.extract_features import extract_features

        config = load_config("mood.yaml")
        dataset, split = json.loads((folder / "uris.json").read_text())
        from kubevox.data.dataset import load_dataset

        assert indexes == [
            extract_features.python_func(
                shard, split, config.used_features.to_json(), json.dumps(config.feature_plan), config.store
            )
            for shard in load_dataset(dataset).shard_uris
        ]
        code, out, err = features("extract", "--dataset", dataset, "--split", split, "--json")
        assert (code, err) == (0, "")
        told = json.loads(out)
        assert told == {"dataset": dataset, "split": split, "indexes": indexes, "computed": 0, "reused": 2}

    def test_in_whatever_order_it_works_it_tells_the_shards_in_theirs(self, features, folder, make_corpus, monkeypatch):
        import kubevox.cli.features as commands
        from kubevox.data.dataset import utterances

        monkeypatch.setattr(utterances, "_ROW_GROUP_BYTES", 1)
        indexes, _ = extracted(features, folder, make_corpus, seconds=2.0, rate=48_000)
        assert len(indexes) > 1
        dataset, split = json.loads((folder / "uris.json").read_text())
        for order in itertools.islice(itertools.permutations(range(len(indexes))), 6):
            monkeypatch.setattr(
                commands, "_own_order", lambda shards, *_, order=order: [shards[index] for index in order]
            )
            code, out, _ = features("extract", "--dataset", dataset, "--split", split)
            assert code == 0
            assert out.splitlines() == indexes

    def test_processes_take_the_shards_in_orders_of_their_own(self):
        from kubevox.cli.features import _own_order

        shards = [f"store/part-{number:05}.parquet" for number in range(8)]
        orders = [_own_order(shards, host, process) for host in ("a", "b") for process in range(100, 160)]
        assert all(sorted(order) == shards for order in orders)
        assert len({tuple(order) for order in orders}) > 100
        assert {order[0] for order in orders} == set(shards)
        assert _own_order(shards, "a", 100) == orders[0]

    def test_a_split_of_another_dataset_is_refused(self, features, folder, make_corpus):
        extracted(features, folder, make_corpus)
        dataset, split = json.loads((folder / "uris.json").read_text())
        from kubevox.data.dataset import ingest

        make_corpus(folder / "corpus", speakers=7, clips=1)
        other, _ = ingest(load_config("mood.yaml").data, load_config("mood.yaml").store)
        assert other.uri != dataset
        code, out, err = features("extract", "--dataset", other.uri, "--split", split)
        assert (code, out) == (2, "")
        assert "made of the dataset" in one_line(err)

    def test_a_dataset_that_is_not_there_is_named(self, features):
        code, out, err = features("extract", "--dataset", "nowhere/d", "--split", "nowhere/s")
        assert (code, out) == (1, "")
        assert "nowhere/d" in one_line(err)


class TestList:
    def test_frontends_and_recipes_are_told(self, features):
        code, out, err = features("list")
        assert (code, err) == (0, "")
        rows = {line.split()[0]: line for line in out.splitlines() if line}
        assert "270" in rows["statistics"]
        assert "22050 Hz" in rows["statistics"]
        assert "0 to 0.5 s" in rows["half"]
        assert "float16" in rows["half"]
        assert "shift (max_samples 900, seed 0), then noise (sigma 0.01, seed 0)" in rows["far"]

    def test_json_tells_the_same(self, features):
        code, out, _ = features("list", "--json")
        assert code == 0
        told = json.loads(out)
        assert told["frontends"]["half"] | {"shape": [270], "duration_s": 0.5} == told["frontends"]["half"]
        assert told["recipes"]["noise"]["sigma"] == 0.035

    def test_an_encoder_that_is_not_here_is_listed_without_a_shape(self, features):
        section = "features.frontends.ssl={kind: ssl, model: ./nowhere, layer: 3}"
        code, out, _ = features("list", "--set", section, "--json")
        assert code == 0
        assert json.loads(out)["frontends"]["ssl"]["shape"] is None
        assert features("list", "--set", section)[0] == 0


class TestNames:
    def test_there_is_a_name_for_each_value(self, features):
        code, out, _ = features("names", "statistics")
        assert code == 0
        lines = out.splitlines()
        assert len(lines) == len(set(lines)) == 270
        assert lines[0] == "zero_crossing_rate"

    def test_an_unknown_frontend_is_told_with_the_known_ones(self, features):
        code, out, err = features("names", "mfcc")
        assert (code, out) == (2, "")
        assert "known are half, statistics" in one_line(err)


@pytest.mark.parametrize("command", [[], ["compute"], ["extract"], ["list"], ["names"]])
def test_the_help_has_an_example(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kubevox", "features", *command, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    out = capsys.readouterr().out
    assert f"kubevox features {command[0]}" in " ".join(out.split()) if command else "compute" in out


@pytest.mark.parametrize("arguments", [["--help"], ["features", "list", "--config", EMOTION]])
def test_what_computes_nothing_loads_no_torch(arguments):
    code = (
        f"import sys; sys.argv = ['kubevox', *{arguments!r}]\nfrom kubevox.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'mlflow', 'pyarrow'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
