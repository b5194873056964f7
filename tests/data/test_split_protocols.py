"""The protocols: k folds, a corpus held out, published partitions; and that no certificate can say what is not so."""

import copy
import json
import shutil
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp import dsl

from components.split import split as stage
from kubevox.config import CorpusSource, DataConfig, SplitConfig, TaskConfig, ValidateConfig
from kubevox.data.dataset import ingest
from kubevox.data.splits import SPLITS, assign_speakers, load_split, make_split
from kubevox.data.validation import validate
from kubevox.errors import ConfigError, SplitError
from kubevox.progress import parse_event
from kubevox.provenance import content_hash
from tests.data.split_layouts import LABELS, TASK, stored, utterance

KFOLD = SplitConfig(protocol="kfold", folds=4)
LEAVE_OUT = SplitConfig(protocol="leave_one_corpus_out", held_out="b")
PUBLISHED = SplitConfig(protocol="published")
PROTOCOLS = [SplitConfig(folds=3), KFOLD, LEAVE_OUT, PUBLISHED]
NAMES = [config.protocol for config in PROTOCOLS]


def speaker_of(number, corpus, speaker, labels=LABELS, partition=None, sex=None):
    """A speaker's recordings, one of each label; ``number`` leaves room for 100."""
    return [
        utterance(100 * number + i, speaker, corpus, sex, partition, label, f"sentence {i}")
        for i, label in enumerate(labels)
    ]


@st.composite
def mixtures(draw, first: int = 0):
    """Corpora a and b with speakers enough, and others of all kinds: named or not, with partitions or without."""
    layout = [
        one
        for i in range(8 if not first else 0)
        for one in speaker_of(i, "ab"[i % 2], f"s{i}", partition=("train", "validation", "test", "train")[i // 2])
    ]
    more = draw(
        st.lists(
            st.tuples(
                st.sampled_from("abcd"),
                st.booleans(),
                st.sampled_from([None, "train", "validation", "test"]),
                st.lists(st.sampled_from(LABELS), min_size=1, max_size=4),
            ),
            max_size=12,
        )
    )
    for i, (corpus, named, partition, labels) in enumerate(more, start=100 + first):
        layout += speaker_of(i, corpus, f"s{i}" if named else None, labels, partition)
    return layout


def divided(layout, store, config, task=TASK):
    dataset = stored(layout, store)
    return make_split(dataset, [u.source_id for u in layout], task, config, store)[0]


def by_group(split):
    """Each speaker, or recording without one, to what the split says of it."""
    found = defaultdict(set)
    for u, row in zip(split.utterances, split.rows, strict=True):
        found[u.speaker or u.id].add((row[2], row[3]))
    return found


@pytest.mark.parametrize("config", PROTOCOLS, ids=NAMES)
@settings(max_examples=15)
@given(layout=mixtures())
def test_no_speaker_is_in_two_splits_and_no_recording_is_lost(config, layout):
    with tempfile.TemporaryDirectory() as store:
        split = divided(layout, store, config)
        assert all(len({part for part, _ in parts}) == 1 for parts in by_group(split).values())
        assert {row[2] for row in split.rows} == set(SPLITS)
        assert len(split.rows) == len({row[0] for row in split.rows})
        assert len(split.rows) + sum(split.certificate["left_out"].values()) == len(layout)
        anonymous = Counter(u.corpus for u in split.utterances if u.speaker is None)
        assert split.certificate["unverified_corpora"] == anonymous
        names = [check["name"] for check in split.certificate["checks"]]
        assert ("speaker-disjoint: unverified" in names) == bool(anonymous)


@pytest.mark.parametrize("config", PROTOCOLS, ids=NAMES)
@settings(max_examples=10)
@given(layout=mixtures(), more=mixtures(first=100))
def test_growth_moves_nobody(config, layout, more):
    with tempfile.TemporaryDirectory() as store:
        before = by_group(divided(layout, store, config))
        after = by_group(divided(layout + more, store, config))
        if config.protocol != "kfold":  # folds of the other protocols divide what there is anew
            before, after = ({k: {p for p, _ in v} for k, v in found.items()} for found in (before, after))
        assert {group: after[group] for group in before} == before


@settings(max_examples=10)
@given(layout=mixtures(), folds=st.integers(3, 5), seed=st.integers(0, 2))
def test_every_placed_recording_is_test_in_one_of_the_folds(layout, folds, seed):
    with tempfile.TemporaryDirectory() as store:
        tested, fold_of = Counter(), defaultdict(set)
        for fold in range(folds):
            config = SplitConfig(protocol="kfold", folds=folds, fold=fold, seed=seed)
            split = divided(layout, store, config)
            for u, (id, _, part, number) in zip(split.utterances, split.rows, strict=True):
                if u.speaker is None and u.partition is not None:  # nobody knows who speaks: as it was published
                    assert (part, number) == (u.partition, None)
                    continue
                expected = {fold: "test", (fold + 1) % folds: "validation"}.get(number, "train")
                assert part == expected
                tested[id] += part == "test"
                fold_of[id].add(number)
        placed = {u.id for u in layout if u.speaker or u.partition is None}
        assert tested == dict.fromkeys(placed, 1)
        assert all(len(numbers) == 1 for numbers in fold_of.values())
        assert len(list((Path(store) / "assignments").iterdir())) == 1


@settings(max_examples=15)
@given(layout=mixtures())
def test_leaving_a_corpus_out_tests_on_all_of_it_and_nothing_else(layout):
    with tempfile.TemporaryDirectory() as store:
        split = divided(layout, store, LEAVE_OUT)
        assert {u.id for u, _ in split.of("test")} == {u.id for u in layout if u.corpus == "b"}
        others = {u.id: u for u in layout if u.corpus != "b"}
        for u, _ in split.of("train"):
            assert u.speaker or u.partition in (None, "train")
        for u, _ in split.of("validation"):
            assert u.speaker or u.partition in (None, "validation")
        unused = set(others) - {u.id for u in split.utterances}
        assert unused == {id for id, u in others.items() if u.speaker is None and u.partition == "test"}


def test_a_person_of_the_corpus_held_out_is_not_trained_on_under_another():
    layout = [u for i in range(6) for u in speaker_of(i, "ab"[i % 2], f"s{i}")]
    copied = utterance(900, "s1", "b", label="sad")
    borrowed = [copied.__class__(**{**vars(copied), "corpus": "a"})]
    with tempfile.TemporaryDirectory() as store:
        split = divided(layout + borrowed, store, LEAVE_OUT)
        assert split.certificate["left_out"] == {"speakers of the held-out corpus in other corpora": 1}
        assert copied.id not in split.split_of


@settings(max_examples=15)
@given(layout=mixtures())
def test_published_partitions_are_kept_where_speakers_are_not_known(layout):
    with tempfile.TemporaryDirectory() as store:
        split = divided(layout, store, SplitConfig())
        for u in split.utterances:
            if u.speaker is None and u.partition:
                assert split.split_of[u.id] == u.partition


@settings(max_examples=15)
@given(layout=mixtures(), config=st.sampled_from([PUBLISHED, SplitConfig(published="keep")]))
def test_all_published_partitions_are_kept_where_that_is_asked_for(layout, config):
    with tempfile.TemporaryDirectory() as store:
        split = divided(layout, store, config)
        assert all(split.split_of[u.id] == u.partition for u in split.utterances if u.partition)
        assert dict(passed(split))["published-partitions"] is True


def passed(split):
    return [(check["name"], check["passed"]) for check in split.certificate["checks"]]


def test_partitions_can_be_ignored(tmp_path):
    layout = [one for i in range(30) for one in speaker_of(i, "crowd", None, partition="train")]
    split = divided(layout, str(tmp_path), SplitConfig(published="ignore"))
    assert {row[2] for row in split.rows} == set(SPLITS)
    assert dict(passed(split))["published-partitions"] is None


def test_a_speakers_other_recordings_go_where_his_partition_is(tmp_path):
    layout = [u for i in range(6) for u in speaker_of(i, "a", f"s{i}", partition=SPLITS[i % 3])]
    layout += speaker_of(7, "a", "s1")  # s1 is in validation
    split = divided(layout, str(tmp_path), PUBLISHED)
    assert by_group(split)["a:s1"] == {("validation", 0)}


def test_a_published_partition_that_leaks_a_speaker_is_refused_with_the_number(tmp_path):
    layout = [u for i in range(9) for u in speaker_of(i, "a", f"s{i % 5}", partition=SPLITS[i % 3])]
    for config, remedy in ((PUBLISHED, "use another split.protocol"), (SplitConfig(published="keep"), "to ignore")):
        with pytest.raises(SplitError, match=rf"share 4 of 5 speakers, such as a:s0 \(train and test\); .*{remedy}"):
            divided(layout, str(tmp_path), config)
    assert divided(layout, str(tmp_path), SplitConfig()).certificate["speakers"]["test"] == 1


def test_a_partition_is_not_kept_against_what_was_placed_before(tmp_path):
    layout = [one for i in range(30) for one in speaker_of(i, "crowd", None, partition=SPLITS[i % 3])]
    divided(layout, str(tmp_path), SplitConfig(published="ignore"))
    with pytest.raises(
        SplitError, match=r"recordings whose published partition .*in another split since an earlier"
    ) as e:
        divided(layout, str(tmp_path), SplitConfig())
    assert len(str(e.value).splitlines()) == 1
    kept = divided(layout, str(tmp_path / "fresh"), SplitConfig())
    again = divided(layout, str(tmp_path / "fresh"), SplitConfig(published="ignore"))
    assert again.rows == kept.rows  # once assigned, they stay


@pytest.mark.parametrize(
    ("config", "layout", "words"),
    [
        (KFOLD, [("a", 3)], "4 folds need at least 4 speakers; the accepted recordings have 3: a:s0, a:s1, a:s2"),
        (LEAVE_OUT, [("a", 3)], r"'b': no accepted recording is of it \(corpora: a\); name one"),
        (LEAVE_OUT, [("b", 3)], r"'b': all accepted recordings are of it \(corpora: b\); add a corpus"),
        (LEAVE_OUT, [("a", 1), ("b", 3)], "needs at least 2 speakers, to train and validate"),
        (PUBLISHED, [("a", 3)], r"no accepted recording has a published partition \(corpora: a\)"),
    ],
)
def test_what_a_protocol_cannot_divide_is_refused_in_a_line(config, layout, words, tmp_path):
    recordings = [u for j, (c, n) in enumerate(layout) for i in range(n) for u in speaker_of(10 * j + i, c, f"s{i}")]
    with pytest.raises(SplitError, match=words) as caught:
        divided(recordings, str(tmp_path), config)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "splits").exists()
    assert not (tmp_path / "assignments").exists()


def test_a_label_that_only_the_corpus_held_out_has_cannot_be_learnt(tmp_path):
    layout = [u for i in range(6) for u in speaker_of(i, "ab"[i % 2], f"s{i}", LABELS if i % 2 else LABELS[:2])]
    with pytest.raises(SplitError, match=r"label sad \(3 speakers\); only b, which is held out, has it: leave it out"):
        divided(layout, str(tmp_path), LEAVE_OUT)


def test_partitions_that_leave_a_split_empty_are_refused(tmp_path):
    layout = [u for i in range(6) for u in speaker_of(i, "a", f"s{i}", partition=("train", "test")[i % 2])]
    with pytest.raises(SplitError, match=r"validation split is empty: .*train 3, validation 0, test 3; no published"):
        divided(layout, str(tmp_path), PUBLISHED)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"protocol": "kfold", "folds": 2}, "needs 3 at least"),
        ({"protocol": "kfold", "fold": 5}, "one of 0 to 4"),
        ({"fold": 1}, "protocol kfold only"),
        ({"held_out": "ravdess"}, "leave_one_corpus_out"),
        ({"protocol": "leave_one_corpus_out"}, "needs a corpus"),
        ({"protocol": "published", "published": "ignore"}, "keep what is published"),
    ],
)
def test_a_protocol_without_what_it_needs_is_refused(values, words):
    with pytest.raises(ConfigError, match=words) as caught:
        SplitConfig.from_json(json.dumps(values))
    assert len(str(caught.value).splitlines()) == 1


def test_many_small_corpora_together_hold_the_shares():
    layout = [(u, u.raw_label) for i in range(45) for u in speaker_of(i, f"c{i // 3:02d}", f"s{i}")]
    assert Counter(assign_speakers(layout, SplitConfig(), {}).values()) == {"train": 27, "validation": 9, "test": 9}


def test_a_corpus_of_two_speakers_does_not_disturb_the_others():
    layout = [(u, u.raw_label) for i in range(12) for u in speaker_of(i, "a" if i < 10 else "pair", f"s{i}")]
    assigned = assign_speakers(layout, SplitConfig(), {})
    of_a = Counter(split for name, split in assigned.items() if name.startswith("a:"))
    assert of_a == {"train": 6, "validation": 2, "test": 2}


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(3, 12)), min_size=3, max_size=3), st.integers(0, 3))
def test_each_language_has_speakers_in_each_split(sizes, seed):
    layout = [
        (u, label)
        for j, (label, (corpus, count)) in enumerate(zip(LABELS, sizes, strict=True))
        for i in range(count)
        for u in speaker_of(100 * j + i, corpus, f"{label}{i}", [label])
    ]
    assigned = assign_speakers(layout, SplitConfig(seed=seed), {})
    for label, (_, count) in zip(LABELS, sizes, strict=True):
        counts = Counter(assigned[name] for name in {u.speaker for u, other in layout if other == label})
        assert set(counts) == set(SPLITS)
        assert all(abs(counts[split] - 0.2 * count) <= 1 for split in ("validation", "test"))


def test_a_label_of_a_single_corpus_is_warned_of(tmp_path):
    layout = [u for i in range(12) for u in speaker_of(i, "ab"[i % 2], f"s{i}", LABELS if i % 2 else LABELS[:2])]
    warnings = divided(layout, str(tmp_path), SplitConfig()).certificate["warnings"]
    assert warnings[0].startswith("labels that a single corpus has: sad (b); ")
    alone = [u for u in layout if u.corpus == "b"]
    warnings = divided(alone, str(tmp_path / "alone"), SplitConfig()).certificate["warnings"]
    assert not [line for line in warnings if "single corpus" in line]  # there is no other channel


def test_labels_of_one_speaker_or_none_are_warned_of(tmp_path):
    layout = [u for i in range(10) for u in speaker_of(i, "a", f"s{i}", LABELS if i else ["angry", "happy"])]
    layout = [u for u in layout if u.raw_label != "sad" or u.speaker in ("a:s1", "a:s2", "a:s3")]
    split = divided(layout, str(tmp_path), SplitConfig())
    warnings = " | ".join(split.certificate["warnings"])
    counts = {name: len({u.speaker for u, label in split.of(name) if label == "sad"}) for name in SPLITS}
    for name, count in counts.items():
        assert (f"{name} has fewer than 2 speakers of sad (1)" in warnings) == (count == 1)
        assert (f"{name} has no recording of sad" in warnings) == (count == 0)
    assert min(counts.values()) < 2
    assert dict(passed(split))["label-coverage"] is (None if 0 in counts.values() else True)


def test_the_stage_tells_the_warnings(folder_corpus, tmp_path, capsys, monkeypatch):
    folder, store = folder_corpus(speakers=3, clips=1), str(tmp_path / "store")
    source = CorpusSource(name="folder", path=str(folder))
    dataset, _ = ingest(DataConfig(corpora=[source]), store)
    checked = validate(dataset, TASK, ValidateConfig(), store)
    monkeypatch.setenv("KUBEVOX_EVENTS", "1")
    stage.python_func(
        dataset=dataset.uri,
        validation=checked.uri,
        task=TASK.to_json(),
        config=SplitConfig().to_json(),
        store=store,
        split=str(tmp_path / "uri"),
        certificate=dsl.Artifact(name="certificate", uri=str(tmp_path / "certificate"), metadata={}),
    )
    events = [event for line in capsys.readouterr().out.splitlines() if (event := parse_event(line))]
    told = [event["message"] for event in events if event["kind"] == "note"]
    warnings = load_split((tmp_path / "uri").read_text()).certificate["warnings"]
    assert "test has fewer than 2 speakers of angry (1), happy (1), sad (1)" in warnings
    assert told == [f"split: {warning}" for warning in warnings]
    assert events[-1]["fields"]["warnings"] == warnings


# A certificate is worth what its checks are.


@pytest.fixture(scope="module", params=PROTOCOLS, ids=NAMES)
def pristine(request, tmp_path_factory):
    """A split of each protocol, of named and unnamed speakers, in a store of its own."""
    layout = [u for i in range(12) for u in speaker_of(i, "ab"[i % 2], f"s{i}", partition=(*SPLITS, None)[i // 2 % 4])]
    layout += [u for i in range(20, 26) for u in speaker_of(i, "crowd", None, partition=SPLITS[i % 3])]
    return divided(layout, str(tmp_path_factory.mktemp("store")), request.param)


@pytest.fixture
def split(pristine, tmp_path):
    """The same in a store that may be tampered with."""
    shutil.copytree(Path(pristine.uri).parents[1], tmp_path / "store")
    return load_split(f"{tmp_path}/store/splits/{pristine.hash}")


def leaves(value, path=()):
    """The paths to all values of nested dicts and lists, also to the containers."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, inner in items for leaf in leaves(inner, (*path, key)))]


# What a reader would believe; shares and seed are no statement about the rows.
SAID = (
    "checks",
    "warnings",
    "single_corpus_labels",
    "unverified_corpora",
    "speakers",
    "utterances",
    "corpora",
    "labels",
    "left_out",
)
DECIDING = ("split_hash", ("dataset", "hash"), ("dataset", "synthetic"), ("task", "name"), ("task", "labels"))
CONFIGURED = ("protocol", "folds", "fold", "held_out", "published", "disjoint_sentences")


def changed(value):
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value[::-1] + "x"
    return value[:-1] if value and isinstance(value, list) else {**value, "x": 1} if isinstance(value, dict) else ["x"]


@settings(max_examples=30)
@given(data=st.data())
def test_a_certificate_that_was_changed_and_sealed_again_is_refused(data, pristine):
    place = Path(pristine.uri) / "certificate.json"
    original = place.read_bytes()
    certificate = copy.deepcopy(pristine.certificate)
    paths = [path for key in SAID for path in leaves(certificate[key], (key,))]
    paths += [path if isinstance(path, tuple) else (path,) for path in DECIDING]
    paths += [("config", key) for key in CONFIGURED]
    path = data.draw(st.sampled_from(paths))
    holder = certificate
    for key in path[:-1]:
        holder = holder[key]
    if isinstance(holder, dict) and path[0] != "config" and data.draw(st.booleans()):
        del holder[path[-1]]
    else:
        holder[path[-1]] = changed(holder[path[-1]])
    del certificate["seal"]
    certificate["seal"] = content_hash(certificate)
    try:
        place.write_text(json.dumps(certificate))
        with pytest.raises(SplitError) as caught:
            load_split(pristine.uri)
        assert len(str(caught.value).splitlines()) == 1
    finally:
        place.write_bytes(original)


@settings(max_examples=30)
@given(data=st.data())
def test_rows_that_were_changed_are_refused_whatever_was_changed(data, pristine):
    place = Path(pristine.uri) / "split.parquet"
    original = place.read_bytes()
    table = pq.read_table(place)
    rows = table.to_pylist()
    at = data.draw(st.integers(0, len(rows) - 1))
    kind = data.draw(st.sampled_from(["split", "label", "fold", "drop", "repeat", "swap", "speaker"]))
    row = rows[at]
    if kind == "split":
        row["split"] = SPLITS[(SPLITS.index(row["split"]) + 1) % 3]
    elif kind == "label":
        row["label"] = LABELS[(LABELS.index(row["label"]) + 1) % 3]
    elif kind == "fold":
        row["fold"] = 1 if row["fold"] is None else None
    elif kind == "drop":
        del rows[at]
    elif kind == "repeat":
        rows.append(dict(row))
    elif kind == "swap":
        other = rows[(at + 1) % len(rows)]
        row["utterance"], other["utterance"] = other["utterance"], row["utterance"]
    else:
        group = pristine.utterances[at].speaker or pristine.utterances[at].id
        target = SPLITS[(SPLITS.index(row["split"]) + 1) % 3]
        for one, u in zip(rows, pristine.utterances, strict=True):
            if (u.speaker or u.id) == group:
                one["split"] = target
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), place)
        with pytest.raises(SplitError):
            load_split(pristine.uri)
    finally:
        place.write_bytes(original)


def test_a_split_that_the_log_contradicts_is_refused(split):
    log = next(path for path in Path(split.uri).parents[1].glob("assignments/*/*.json"))
    entry = json.loads(log.read_text())
    name = next(iter(entry))
    entry[name] = {0: 1, 1: 2, 2: 3, 3: 0, "train": "validation", "validation": "test", "test": "train"}[entry[name]]
    log.write_text(json.dumps(entry))
    with pytest.raises(SplitError, match=r"these checks fail: assignment-log \(1 are elsewhere, such as"):
        load_split(split.uri)


def test_a_split_whose_log_forgot_somebody_still_holds(split):
    for log in Path(split.uri).parents[1].glob("assignments/*/*.json"):
        entry = json.loads(log.read_text())
        entry.popitem()
        log.write_text(json.dumps(entry))
    assert load_split(split.uri).rows == split.rows


def test_labels_that_the_map_does_not_give_are_refused(split):
    place = Path(split.uri) / "certificate.json"
    certificate = json.loads(place.read_text())
    certificate["task"]["map"] = {"a": {"angry": "happy"}}
    del certificate["seal"]
    place.write_text(json.dumps(certificate | {"seal": content_hash(certificate)}))
    with pytest.raises(SplitError, match="6 rows have labels that its task does not give them"):
        load_split(split.uri)


def test_protocols_do_not_share_a_split_even_where_their_rows_are_equal(tmp_path):
    layout = [u for i in range(6) for u in speaker_of(i, "a", f"s{i}", partition=SPLITS[i % 3])]
    kept = divided(layout, str(tmp_path), SplitConfig(published="keep"))
    published = divided(layout, str(tmp_path), PUBLISHED)
    assert kept.rows == published.rows
    assert kept.hash != published.hash
    assert published.certificate["config"]["protocol"] == "published"


def test_a_certificate_of_another_format_says_what_to_do(split):
    place = Path(split.uri) / "certificate.json"
    certificate = json.loads(place.read_text()) | {"format": 2}
    del certificate["seal"]
    place.write_text(json.dumps(certificate | {"seal": content_hash(certificate)}))
    with pytest.raises(SplitError, match="of format 2, not 4; delete the folder and run the split stage again"):
        load_split(split.uri)


def test_the_task_may_be_the_language_of_speakers_with_two(tmp_path):
    task = TaskConfig(name="tongue", label_column="raw_label", labels=["angry", "happy"], map={"*": {"sad": None}})
    layout = [
        u for i in range(9) for u in speaker_of(i, "a", f"s{i}", [["angry"], ["happy"], ["angry", "happy"]][i % 3])
    ]
    split = divided(layout, str(tmp_path), SplitConfig(), task)
    assert all(len(parts) == 1 for parts in by_group(split).values())
    assert all(split.certificate["labels"][name][label] for name in SPLITS for label in task.labels)
