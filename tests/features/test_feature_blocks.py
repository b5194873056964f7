"""Feature blocks: computed once, named by their content, checked when read, and augmented for training only."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from unittest.mock import ANY

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kubevox.config import (
    ChainRecipe,
    FeaturesConfig,
    LogMelConfig,
    NoiseRecipe,
    OriginalRecipe,
    PitchRecipe,
    ShiftRecipe,
    StatisticsConfig,
)
from kubevox.data.dataset import DatasetVersion, read_audio, read_utterances
from kubevox.errors import AudioError, ConfigError, StorageError
from kubevox.features import (
    BlockIndex,
    augment,
    augmentation,
    block_key,
    blocks,
    build_frontend,
    extract_shard,
    extraction,
    feature_shape,
    features_of,
    frontends,
    load_features,
    read_index,
)

LOGMEL = LogMelConfig(mels=16, duration_s=1.0)
FEATURES = FeaturesConfig(
    frontends={"logmel": LOGMEL, "statistics": StatisticsConfig()},
    recipes={"default": OriginalRecipe(), "noise": NoiseRecipe(), "shift": ShiftRecipe()},
    device="cpu",
)
PLAN = {"logmel": ["default", "noise"]}
SPLITS = ("train", "validation", "test")
HEX = st.text("0123456789abcdef", min_size=4, max_size=4)


@pytest.fixture
def wanted(dataset: DatasetVersion) -> dict[str, str]:
    rows = read_utterances(dataset.shard_uris)
    return {row.id: SPLITS[index % 3] for index, row in enumerate(rows)}


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def extract_all(dataset: DatasetVersion, wanted: dict[str, str], store: str, **changes: object) -> list[BlockIndex]:
    features = FEATURES.model_copy(update=changes)
    return [extract_shard(shard, wanted, features, PLAN, store) for shard in dataset.shard_uris]


def of_split(wanted: dict[str, str], *splits: str) -> list[str]:
    return [id for id, split in wanted.items() if split in splits]


def test_stored_features_are_those_of_serving_bit_for_bit(
    dataset: DatasetVersion, wanted: dict[str, str], store: str
) -> None:
    assert len(dataset.shard_uris) > 1
    plan = {"logmel": ["default"], "statistics": ["default"]}
    indexes = [extract_shard(shard, wanted, FEATURES, plan, store).uri for shard in dataset.shard_uris]
    ids = sorted(wanted)
    waveforms = {id: waveform for shard in dataset.shard_uris for id, waveform in read_audio(shard)}
    for name, config in FEATURES.frontends.items():
        frontend = build_frontend(config)
        stored = load_features(indexes, name, "default", ids)
        assert stored.shape == (len(ids), *frontend.shape)
        for id, row in zip(ids, stored, strict=True):
            assert np.array_equal(row, features_of(waveforms[id], frontend))


def test_augmented_features_are_those_of_the_augmented_samples(
    dataset: DatasetVersion, wanted: dict[str, str], store: str
) -> None:
    indexes = [index.uri for index in extract_all(dataset, wanted, store)]
    ids = of_split(wanted, "train")
    stored = load_features(indexes, LOGMEL, NoiseRecipe(), ids)
    frontend = build_frontend(LOGMEL)
    waveforms = {id: waveform for shard in dataset.shard_uris for id, waveform in read_audio(shard)}
    for id, row in zip(ids, stored, strict=True):
        samples = torch.from_numpy(frontend.prepare(waveforms[id]))[None]
        augmented = augment(samples, [id], NoiseRecipe(), LOGMEL.sample_rate)
        assert np.array_equal(row, frontend(augmented, augmented=True)[0].numpy())


def test_no_validation_or_test_utterance_is_ever_augmented(
    dataset: DatasetVersion, wanted: dict[str, str], store: str
) -> None:
    plan = {"logmel": ["noise", "shift", "default"], "statistics": ["shift", "default"]}
    indexes = [extract_shard(shard, wanted, FEATURES, plan, store) for shard in dataset.shard_uris]
    for block in (block for index in indexes for block in index.blocks):
        ids = pq.read_table(block.uri, columns=["id"]).column("id").to_pylist()
        assert len(ids) == block.rows
        splits = {wanted[id] for id in ids}
        assert splits == (set(SPLITS) if block.recipe == "default" else {"train"})
    with pytest.raises(StorageError, match="have no features"):
        load_features([index.uri for index in indexes], "logmel", "shift", of_split(wanted, "validation"))


def test_what_is_there_is_not_computed_again(
    dataset: DatasetVersion, wanted: dict[str, str], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract_all(dataset, wanted, store)
    assert all((index.computed, index.reused) == (2, 0) for index in first)

    def forbidden(*_: object) -> None:
        raise AssertionError("audio was decoded, or a frontend built")

    monkeypatch.setattr(blocks, "read_encoded", forbidden)
    monkeypatch.setattr(extraction, "build_frontend", forbidden)
    again = extract_all(dataset, wanted, store, batch_size=5)
    assert [index.uri for index in again] == [index.uri for index in first]
    assert all((index.computed, index.reused) == (0, 2) for index in again)
    assert [read_index(index.uri).blocks for index in first] == [index.blocks for index in again]


def test_a_changed_recipe_computes_only_its_own_blocks(
    dataset: DatasetVersion, wanted: dict[str, str], store: str
) -> None:
    extract_all(dataset, wanted, store)
    recipes = FEATURES.recipes | {"noise": NoiseRecipe(sigma=0.1)}
    again = extract_all(dataset, wanted, store, recipes=recipes)
    assert all((index.computed, index.reused) == (1, 1) for index in again)


@pytest.mark.parametrize("damage", ["truncated", "one byte changed", "another block's content", "empty", "not Parquet"])
def test_a_damaged_block_is_named_when_read_and_replaced_when_extracted(
    dataset: DatasetVersion, wanted: dict[str, str], store: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    index = extract_shard(dataset.shard_uris[0], wanted, FEATURES, PLAN, store)
    path, other = (Path(block.uri) for block in index.blocks)
    content = path.read_bytes()
    middle = len(content) // 3
    path.write_bytes(
        {
            "truncated": content[:middle],
            "one byte changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "another block's content": other.read_bytes(),
            "empty": b"",
            "not Parquet": b"features" * 100,
        }[damage]
    )
    ids = [row.id for row in read_utterances(dataset.shard_uris[0])]
    with pytest.raises(StorageError, match=f"{path.name}: damaged feature block"):
        load_features([index.uri], "logmel", "default", ids)
    again = extract_shard(dataset.shard_uris[0], wanted, FEATURES, PLAN, store)
    assert (again.computed, again.reused, again.uri) == (1, 1, index.uri)
    assert f"{path.name}: damaged" in capsys.readouterr().err
    assert path.read_bytes() == content


def test_a_missing_block_is_named(dataset: DatasetVersion, wanted: dict[str, str], store: str) -> None:
    index = extract_shard(dataset.shard_uris[0], wanted, FEATURES, PLAN, store)
    Path(index.blocks[0].uri).unlink()
    ids = [row.id for row in read_utterances(dataset.shard_uris[0])]
    with pytest.raises(StorageError, match=Path(index.blocks[0].uri).name):
        load_features([index.uri], "logmel", "default", ids)


def test_features_that_nobody_extracted_are_named(dataset: DatasetVersion, wanted: dict[str, str], store: str) -> None:
    index = extract_shard(dataset.shard_uris[0], wanted, FEATURES, PLAN, store)
    ids = [row.id for row in read_utterances(dataset.shard_uris[0])]
    with pytest.raises(StorageError, match="frontend statistics, recipe original: no such features"):
        load_features([index.uri], StatisticsConfig(), OriginalRecipe(), ids)
    with pytest.raises(StorageError, match="1 of 2 utterances have no features, such as nobody"):
        load_features([index.uri], "logmel", "default", [ids[0], "nobody"])


def test_a_name_with_two_meanings_is_refused_and_a_configuration_is_not(
    dataset: DatasetVersion, wanted: dict[str, str], store: str
) -> None:
    changed = LogMelConfig(mels=16, duration_s=1.0, fmin_hz=100.0)
    first, second = dataset.shard_uris[:2]
    indexes = [
        extract_shard(first, wanted, FEATURES, PLAN, store).uri,
        extract_shard(second, wanted, FEATURES.model_copy(update={"frontends": {"logmel": changed}}), PLAN, store).uri,
    ]
    ids = [row.id for row in read_utterances(second)]
    with pytest.raises(StorageError, match="different configurations"):
        load_features(indexes, "logmel", "default", ids)
    assert load_features(indexes, changed, "default", ids).shape == (len(ids), *feature_shape(changed))


def test_rows_come_in_the_order_asked_for_and_as_often(
    dataset: DatasetVersion, wanted: dict[str, str], store: str
) -> None:
    indexes = [index.uri for index in extract_all(dataset, wanted, store)]
    ids = sorted(wanted, reverse=True)
    values = load_features(indexes, "logmel", "default", [*ids, ids[0]])
    assert np.array_equal(values[:-1][::-1], load_features(indexes, "logmel", "default", ids[::-1]))
    assert np.array_equal(values[-1], values[0])
    assert load_features(indexes, "logmel", "default", []).shape == (0, *feature_shape(FEATURES.frontends["logmel"]))


def test_a_shard_without_wanted_utterances_has_an_empty_index(dataset: DatasetVersion, store: str) -> None:
    index = extract_shard(dataset.shard_uris[0], {"elsewhere": "train"}, FEATURES, PLAN, store)
    assert (index.blocks, index.computed, index.reused) == ((), 0, 0)
    assert read_index(index.uri).blocks == ()


def test_a_shard_without_training_utterances_has_no_augmented_block(dataset: DatasetVersion, store: str) -> None:
    wanted = {row.id: "test" for row in read_utterances(dataset.shard_uris[0])}
    index = extract_shard(dataset.shard_uris[0], wanted, FEATURES, PLAN, store)
    assert [block.recipe for block in index.blocks] == ["default"]


def test_an_utterance_too_short_is_named_and_nothing_is_left(
    dataset: DatasetVersion, wanted: dict[str, str], store: str
) -> None:
    late = FEATURES.model_copy(update={"frontends": {"logmel": LogMelConfig(offset_s=3.0, duration_s=1.0)}})
    with pytest.raises(AudioError, match=r"^folder:\S+: too short: .* needs at least 3\.04 s"):
        extract_shard(dataset.shard_uris[0], wanted, late, PLAN, store)
    assert [path for path in Path(store).rglob("*") if path.is_file()] == []


def test_an_unknown_frontend_or_recipe_is_named(dataset: DatasetVersion, wanted: dict[str, str], store: str) -> None:
    with pytest.raises(ConfigError, match=r"features\.frontends: there is no 'wav2vec'; known are logmel, statistics"):
        extract_shard(dataset.shard_uris[0], wanted, FEATURES, {"wav2vec": ["default"]}, store)
    with pytest.raises(ConfigError, match=r"features\.recipes: there is no 'echo'"):
        extract_shard(dataset.shard_uris[0], wanted, FEATURES, {"logmel": ["echo"]}, store)


def test_an_index_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text('{"blocks": [{"uri": "x"}]}')
    with pytest.raises(StorageError, match=r"index\.json: not an index of feature blocks"):
        read_index(str(path))


_FILL = """
import json, sys
from kubevox.config import FeaturesConfig
from kubevox.features import extract_shard
shards, wanted, features, plan, store = json.load(sys.stdin)
print(*(extract_shard(shard, wanted, FeaturesConfig.from_json(features), plan, store).uri for shard in shards))
"""


def test_two_processes_fill_one_store_with_the_same(
    dataset: DatasetVersion, wanted: dict[str, str], store: str
) -> None:
    request = json.dumps([dataset.shard_uris, wanted, FEATURES.to_json(), PLAN, store])
    command = [sys.executable, "-c", _FILL]
    processes = [subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(request)
        process.stdin.close()
    found = [process.stdout.read().split() for process in processes if process.stdout is not None]
    assert [process.wait(60) for process in processes] == [0, 0]
    again = extract_all(dataset, wanted, store)
    assert found == [[index.uri for index in again]] * 2
    assert not any(index.computed for index in again)
    assert not list((Path(store) / "tmp").iterdir())


def test_a_damaged_index_is_replaced(dataset: DatasetVersion, wanted: dict[str, str], store: str) -> None:
    index = extract_shard(dataset.shard_uris[0], wanted, FEATURES, PLAN, store)
    Path(index.uri).write_bytes(b"{")
    with pytest.raises(StorageError, match=Path(index.uri).name):
        read_index(index.uri)
    assert extract_shard(dataset.shard_uris[0], wanted, FEATURES, PLAN, store).reused == 2
    assert read_index(index.uri).blocks == index.blocks


@given(ids=st.lists(HEX, unique=True, min_size=1), other=HEX, data=st.data())
def test_a_blocks_key_is_its_content(ids: list[str], other: str, data: st.DataObject) -> None:
    key = block_key(ids, LOGMEL, OriginalRecipe())
    assert block_key(data.draw(st.permutations(ids)), LOGMEL, OriginalRecipe()) == key
    assert block_key(ids, LOGMEL, NoiseRecipe()) != block_key(ids, LOGMEL, NoiseRecipe(seed=1)) != key
    assert block_key(ids, LogMelConfig(), OriginalRecipe()) != key
    if other not in ids:
        assert block_key([*ids, other], LOGMEL, OriginalRecipe()) != key


def test_a_moved_store_keeps_its_features(
    dataset: DatasetVersion, wanted: dict[str, str], store: str, tmp_path: Path
) -> None:
    index = extract_shard(dataset.shard_uris[0], wanted, FEATURES, PLAN, store)
    ids = [row.id for row in read_utterances(dataset.shard_uris[0])]
    before = load_features([index.uri], "logmel", "default", ids)
    shutil.move(store, tmp_path / "elsewhere")
    moved = str(tmp_path / "elsewhere") + index.uri.removeprefix(store)
    assert np.array_equal(load_features([moved], "logmel", "default", ids), before)


def test_a_new_version_of_the_code_is_another_block(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = ChainRecipe(steps=(PitchRecipe(), NoiseRecipe()))
    before = block_key(["a"], LOGMEL, OriginalRecipe()), block_key(["a"], LOGMEL, chain)
    monkeypatch.setitem(augmentation._VERSIONS, "pitch", 99)
    assert (block_key(["a"], LOGMEL, OriginalRecipe()), block_key(["a"], LOGMEL, chain)) == (before[0], ANY)
    assert block_key(["a"], LOGMEL, chain) != before[1]
    monkeypatch.setitem(frontends._VERSIONS, "logmel", 99)
    assert block_key(["a"], LOGMEL, OriginalRecipe()) != before[0]


def test_half_precision_is_stored_as_such_and_is_what_serving_computes(
    dataset: DatasetVersion, wanted: dict[str, str], store: str
) -> None:
    config = LOGMEL.model_copy(update={"stored": "float16"})
    features = FEATURES.model_copy(update={"frontends": {"logmel": config}})
    index = extract_shard(dataset.shard_uris[0], wanted, features, {"logmel": ["default"]}, store)
    stored = pq.read_table(index.blocks[0].uri).column("values")
    assert stored.type.value_type == pa.float16()
    waveforms = dict(read_audio(dataset.shard_uris[0]))
    values = load_features([index.uri], config, "default", list(waveforms))
    frontend = build_frontend(config)
    for row, waveform in zip(values, waveforms.values(), strict=True):
        assert np.array_equal(row, features_of(waveform, frontend))


def test_one_new_shard_is_all_that_is_computed(dataset: DatasetVersion, wanted: dict[str, str], store: str) -> None:
    rest = dataset.shard_uris[1:]
    for shard in rest:
        extract_shard(shard, wanted, FEATURES, PLAN, store)
    again = extract_all(dataset, wanted, store)
    assert [(index.computed, index.reused) for index in again] == [(2, 0)] + [(0, 2)] * len(rest)


@pytest.mark.slow
def test_workers_on_one_store_one_of_them_killed_leave_what_a_single_run_leaves(
    dataset: DatasetVersion, wanted: dict[str, str], tmp_path: Path
) -> None:
    """Two processes fill one cache; one is killed with -9 half-way and started again."""
    (tmp_path / "work.json").write_text(json.dumps({"shards": list(dataset.shard_uris), "wanted": wanted}))
    program = tmp_path / "fill.py"
    program.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "from kubevox.config import FeaturesConfig\n"
        "from kubevox.features import extract_shard\n"
        "folder, store = Path(sys.argv[1]), sys.argv[2]\n"
        "work = json.loads((folder / 'work.json').read_text())\n"
        "features = FeaturesConfig.from_json((folder / 'features.json').read_text())\n"
        "for shard in work['shards']:\n"
        "    extract_shard(shard, work['wanted'], features, {'logmel': ['default', 'noise']}, store)\n"
        "    print('shard done', flush=True)\n"
    )
    (tmp_path / "features.json").write_text(FEATURES.to_json())

    def start(store: Path) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, program, tmp_path, store], stdout=PIPE, text=True)

    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert start(alone).wait() == 0
    killed, other = start(shared), start(shared)
    assert killed.stdout is not None
    killed.stdout.readline()  # half-way: one shard is there, the next is being computed
    killed.kill()
    killed.wait()
    assert start(shared).wait() == 0
    assert other.wait() == 0

    def content(store: Path) -> dict[str, bytes]:
        return {str(path.relative_to(store)): path.read_bytes() for path in (store / "features").rglob("*.*")}

    assert content(shared) == content(alone)
    assert len(content(alone)) == 3 * len(dataset.shard_uris)
