"""Splits: speakers never in two, never moved, and every edit noticed."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import CorpusSource, DataConfig, SplitConfig, TaskConfig
from kubevox.data.dataset import ingest, read_utterances
from kubevox.data.splits import SPLITS, assign_speakers, load_split, make_split
from kubevox.errors import SplitError, StorageError
from kubevox.provenance import content_hash
from tests.data.split_layouts import LABELS, TASK, layouts, stored, utterance

configs = st.builds(
    SplitConfig,
    validation_share=st.floats(0.05, 0.45),
    test_share=st.floats(0.05, 0.45),
    seed=st.integers(0, 3),
)


@settings(max_examples=50)
@given(layouts(), configs)
def test_every_speaker_is_in_one_split_and_no_split_is_empty(layout, config):
    assigned = assign_speakers(layout, config, {})
    assert set(assigned) == {u.speaker for u, _ in layout}
    assert set(assigned.values()) == set(SPLITS)


@settings(max_examples=50)
@given(layouts(most=12), layouts(least=0, most=12), configs, st.randoms(use_true_random=False))
def test_a_speaker_never_moves_when_the_dataset_changes(layout, more, config, chance):
    before = assign_speakers(layout, config, {})
    newcomers = [(utterance(1000 + i, f"{u.speaker}+", u.corpus, u.sex), label) for i, (u, label) in enumerate(more)]
    gone = set(chance.sample(sorted(before), len(before) - 3))  # some speakers are not there any more
    grown = [(u, label) for u, label in layout if u.speaker not in gone] + newcomers
    after = assign_speakers(grown, config, before)
    assert {name: split for name, split in after.items() if name in before} == {
        name: split for name, split in before.items() if name not in gone
    }
    assert set(after) == {u.speaker for u, _ in grown}


@settings(max_examples=50)
@given(layouts(), configs, st.randoms(use_true_random=False))
def test_the_same_speakers_are_placed_alike_in_any_order(layout, config, chance):
    shuffled = list(layout)
    chance.shuffle(shuffled)
    assert assign_speakers(shuffled, config, {}) == assign_speakers(layout, config, {})


@settings(max_examples=50)
@given(layouts(least=6, corpora="a"), st.integers(0, 3))
def test_every_label_is_trained_on(layout, seed):
    assigned = assign_speakers(layout, SplitConfig(seed=seed), {})
    trained = {label for u, label in layout if assigned[u.speaker] == "train"}
    assert trained == {label for _, label in layout}


def test_the_numbers_of_speakers_follow_the_shares_corpus_by_corpus():
    layout = [(utterance(i, f"s{i}", "a" if i < 20 else "b"), LABELS[i % 3]) for i in range(30)]
    assigned = assign_speakers(layout, SplitConfig(validation_share=0.2, test_share=0.1), {})
    for corpus, counts in (("a", (14, 4, 2)), ("b", (7, 2, 1))):
        mine = Counter(split for name, split in assigned.items() if name.startswith(corpus))
        assert tuple(mine[split] for split in SPLITS) == counts


def test_labels_and_sexes_are_even_across_splits():
    layout = [
        (utterance(3 * i + j, f"s{i:02d}", sex="female" if i % 2 else "male"), LABELS[j])
        for i in range(20)
        for j in range(3)
        if not (j == 2 and i >= 10)  # half of the speakers have no third label
    ]
    assigned = assign_speakers(layout, SplitConfig(), {})
    for split, speakers in (("train", 12), ("validation", 4), ("test", 4)):
        placed = [(u, label) for u, label in layout if assigned[u.speaker] == split]
        assert len({u.speaker for u, _ in placed}) == speakers
        assert len({u.speaker for u, _ in placed if u.sex == "female"}) == speakers / 2
        assert sum(1 for _, label in placed if label == LABELS[2]) == pytest.approx(speakers / 2, abs=1)


def test_speakers_who_were_placed_before_count_towards_the_shares():
    layout = [(utterance(i, f"s{i // 3}"), LABELS[i % 3]) for i in range(30)]
    previous = {f"c:s{i}": "train" for i in range(6)}
    assigned = assign_speakers(layout, SplitConfig(validation_share=0.2, test_share=0.2), previous)
    assert Counter(assigned.values()) == {"train": 6, "validation": 2, "test": 2}


@pytest.mark.parametrize("speakers", [0, 1, 2])
def test_fewer_than_three_speakers_are_refused_with_their_number(speakers):
    layout = [(utterance(i, f"s{i % speakers}"), "sad") for i in range(4)] if speakers else []
    with pytest.raises(SplitError, match=rf"at least 3 speakers.*have {speakers}: ") as caught:
        assign_speakers(layout, SplitConfig(), {})
    assert len(str(caught.value).splitlines()) == 1


# The rest goes through a store.


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "store")


def made(folder, store, task=TASK, config=None, **options):
    """The split of a folder's recordings, all of them accepted."""
    source = CorpusSource(name="folder", path=str(folder), options=options)
    dataset, _ = ingest(DataConfig(corpora=[source]), store)
    accepted = [u.source_id for u in read_utterances(dataset.shard_uris)]
    return make_split(dataset, accepted, task, config or SplitConfig(folds=3), store)


@pytest.fixture(scope="module")
def pristine(make_corpus, tmp_path_factory):
    """A store with a split of eight speakers, for copies."""
    store = tmp_path_factory.mktemp("pristine") / "store"
    return made(make_corpus(tmp_path_factory.mktemp("corpus"), speakers=8), str(store))[0]


@pytest.fixture
def split(pristine, store):
    """A split that may be tampered with."""
    shutil.copytree(Path(pristine.uri).parents[1], store)
    return load_split(f"{store}/splits/{pristine.hash}")


def checks(split) -> dict[str, bool | None]:
    return {check["name"]: check["passed"] for check in split.certificate["checks"]}


def refusal(uri: str) -> str:
    with pytest.raises(SplitError) as caught:
        load_split(uri)
    text = str(caught.value)
    assert uri in text
    assert len(text.splitlines()) == 1
    return text


def test_a_split_holds_every_accepted_utterance_once_and_says_who_is_where(split):
    assert len(split.rows) == len({row[0] for row in split.rows}) == 48
    assert [u.id for u in split.utterances] == [row[0] for row in split.rows]
    assert all(u.raw_label == row[1] for u, row in zip(split.utterances, split.rows, strict=True))
    speakers = {name: set(split.speakers(name)) for name in SPLITS}
    assert {name: len(members) for name, members in speakers.items()} == split.certificate["speakers"]
    assert split.certificate["speakers"] == {"train": 4, "validation": 2, "test": 2}
    assert len(set.union(*speakers.values())) == 8
    assert sum(len(split.of(name)) for name in SPLITS) == len(split.of(*SPLITS)) == 48
    assert split.certificate["labels"]["test"] == {"angry": 4, "happy": 4, "sad": 4}
    assert checks(split) == {
        "speaker-disjoint": True,
        "audio-disjoint": True,
        "sentence-disjoint": None,
        "published-partitions": None,
        "assignment-log": True,
        "label-coverage": True,
        "seal": True,
    }


def test_folds_divide_what_is_not_test_by_speaker(split):
    folds = defaultdict(set)
    for u, row in zip(split.utterances, split.rows, strict=True):
        if row[2] == "test":
            assert row[3] is None
        else:
            folds[row[3]].add(u.speaker)
    assert set(folds) == {0, 1, 2}
    assert sum(map(len, folds.values())) == len(set.union(*folds.values())) == 6


def test_only_accepted_utterances_are_in_a_split(folder_corpus, store):
    dataset, _ = ingest(DataConfig(corpora=[CorpusSource(name="folder", path=str(folder_corpus()))]), store)
    accepted = [u.source_id for u in read_utterances(dataset.shard_uris)]
    split, _ = make_split(dataset, accepted[1:-3], TASK, SplitConfig(), store)
    assert {u.source_id for u in split.utterances} == set(accepted[1:-3])


def test_the_same_split_is_made_again_and_reused(folder_corpus, store, tmp_path):
    folder = folder_corpus()
    first, reused = made(folder, store)
    assert not reused
    again, reused = made(folder, store)
    assert reused
    assert again == first
    elsewhere, reused = made(folder, str(tmp_path / "another"))
    assert not reused
    assert (elsewhere.hash, elsewhere.rows) == (first.hash, first.rows)


def test_speakers_stay_where_they_are_when_the_corpus_grows_and_shrinks(folder_corpus, store):
    where = {}
    for speakers in (4, 9, 6, 14):
        folder = folder_corpus(speakers=speakers)
        if speakers == 6:
            shutil.rmtree(folder)
            folder_corpus(speakers=speakers)
        split, _ = made(folder, store)
        now = {u.speaker: row[2] for u, row in zip(split.utterances, split.rows, strict=True)}
        assert len(now) == speakers
        assert {name: where[name] for name in now if name in where} == {
            name: now[name] for name in now if name in where
        }
        where |= now
    assert len(where) == 14


def test_a_store_can_be_moved(split, tmp_path):
    moved = shutil.move(tmp_path / "store", tmp_path / "moved")
    again = load_split(f"{moved}/splits/{split.hash}")
    assert again.rows == split.rows
    assert again.dataset.uri == f"{moved}/datasets/{again.dataset.hash}"


def test_a_label_that_nobody_has_is_named_with_the_remedy(folder_corpus, store):
    task = TaskConfig(name="mood", labels=["angry", "bored", "happy", "sad"])
    with pytest.raises(SplitError) as caught:
        made(folder_corpus(), store, task)
    text = str(caught.value)
    assert "has the label 'bored' (corpora: folder)" in text
    assert "data.labels=[angry, happy, sad]" in text
    assert len(text.splitlines()) == 1
    assert not (Path(store) / "splits").exists()
    assert not (Path(store) / "assignments").exists()


def test_labels_that_the_task_leaves_out_are_not_in_a_split(folder_corpus, store):
    task = TaskConfig(name="mood", labels=["up", "down"], map={"folder": {"happy": "up", "sad": "down", "angry": None}})
    split, _ = made(folder_corpus(), store, task)
    assert {(u.raw_label, row[1]) for u, row in zip(split.utterances, split.rows, strict=True)} == {
        ("happy", "up"),
        ("sad", "down"),
    }


def test_the_label_can_be_the_language(folder_corpus, store):
    task = TaskConfig(name="tongue", label_column="language", labels=["danish", "swedish"])
    folder = folder_corpus(labels=("danish", "swedish"))
    split, _ = made(folder, store, task, label_is="language")
    assert all(u.language == row[1] for u, row in zip(split.utterances, split.rows, strict=True))


def test_too_few_speakers_are_refused_and_nothing_is_stored(folder_corpus, store):
    with pytest.raises(SplitError, match=r"at least 3 speakers.*have 2: folder:\w+, folder:\w+$"):
        made(folder_corpus(speakers=2), store)
    assert not (Path(store) / "splits").exists()
    assert not (Path(store) / "assignments").exists()


def test_a_split_that_old_assignments_leave_empty_is_refused_with_the_counts(store):
    layout = everyone(8)
    trained = set(split_of(layout, store).speakers("train"))
    left = [(u, label) for u, label in layout if u.speaker in trained]
    with pytest.raises(SplitError, match="the validation split is empty: speakers are train 4, validation 0, test 0; "):
        split_of(left, store)


def test_speakers_who_are_not_known_are_reported_as_unverified(folder_corpus, store):
    split, _ = made(folder_corpus(), store, speaker=None)
    assert split.certificate["unverified_corpora"] == {"folder": 36}
    assert split.certificate["speakers"] == {"train": 0, "validation": 0, "test": 0}
    assert checks(split)["speaker-disjoint"] is None
    assert checks(split)["speaker-disjoint: unverified"] is None
    details = {check["name"]: check["detail"] for check in split.certificate["checks"]}
    assert details["speaker-disjoint: unverified"] == "folder (36 recordings without a speaker)"
    assert {row[2] for row in split.rows} == set(SPLITS)


def saying(layout, say):
    """A layout whose recordings have texts."""
    return [(dataclasses.replace(u, text=say(u)), label) for u, label in layout]


def everyone(speakers: int = 6, clips: int = 4):
    """Speakers who have every label."""
    return [
        (utterance(100 * i + 10 * j + k, f"s{i}", label=label), label)
        for i in range(speakers)
        for j, label in enumerate(LABELS)
        for k in range(clips)
    ]


def split_of(layout, store, config=None, task=TASK):
    dataset = stored([u for u, _ in layout], store)
    return make_split(dataset, [u.source_id for u, _ in layout], task, config or SplitConfig(), store)[0]


def test_sentences_are_kept_apart_when_asked_for(store):
    chance = random.Random(1)
    layout = saying(everyone(), lambda u: f"sentence {chance.randrange(30)}" if chance.random() < 0.9 else None)
    split = split_of(layout, store, SplitConfig(disjoint_sentences=True))
    heard = {name: {u.text for u, _ in split.of(name)} - {None} for name in SPLITS}
    assert sum(map(len, heard.values())) == len(set.union(*heard.values()))
    plain = split_of(layout, store)
    assert split.of("test") == plain.of("test")  # test keeps all of its recordings
    left_out = len(plain.rows) - len(split.rows)
    assert left_out > 0
    assert split.certificate["left_out"] == {"sentences of another split": left_out}
    assert checks(split)["sentence-disjoint"] is True
    assert checks(plain)["sentence-disjoint"] is None
    (detail,) = (c["detail"] for c in split.certificate["checks"] if c["name"] == "sentence-disjoint")
    assert detail.startswith(f"{left_out} recordings left out")


def test_what_nobody_knows_the_text_of_is_not_certified_as_disjoint_in_sentences(tmp_path):
    config = SplitConfig(disjoint_sentences=True)
    silent = saying(everyone(), lambda u: None)
    first = silent[0][0]
    split = split_of(silent, str(tmp_path / "none"), config)
    assert checks(split)["sentence-disjoint"] is checks(split)["sentence-disjoint: unverified"] is None
    some = saying(everyone(), lambda u: None if u.id == first.id else u.id)
    split = split_of(some, str(tmp_path / "some"), config)
    assert checks(split)["sentence-disjoint"] is True
    (detail,) = (c["detail"] for c in split.certificate["checks"] if c["name"] == "sentence-disjoint: unverified")
    assert detail == f"{first.corpus} (1 recordings without a text)"
    split = split_of(saying(everyone(), lambda u: u.id), str(tmp_path / "all"), config)
    assert "sentence-disjoint: unverified" not in checks(split)


def test_sentences_that_everyone_says_cannot_be_kept_apart(store):
    layout = saying(everyone(), lambda u: "Dogs are sitting by the door")
    with pytest.raises(SplitError, match=r"split is empty: split\.disjoint_sentences left out 60 recordings"):
        split_of(layout, store, SplitConfig(disjoint_sentences=True))


def rewrite(uri: str, change) -> None:
    path = Path(uri) / "split.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def move_speaker(split):
    moved = set(split.speakers("test")[:1])
    ids = {u.id for u in split.utterances if u.speaker in moved}

    def change(rows):
        for row in rows:
            if row["utterance"] in ids:
                row.update(split="train", fold=0)

    return change


def move_row(split):
    (first, *_), _ = split.of("test")[0], None

    def change(rows):
        next(row for row in rows if row["utterance"] == first.id)["split"] = "train"

    return change


def swap_label(split):
    def change(rows):
        rows[0]["label"] = next(label for label in LABELS if label != rows[0]["label"])

    return change


def drop_row(split):
    return lambda rows: rows.pop()


def repeat_row(split):
    return lambda rows: rows.append(rows[0])


def change_fold(split):
    def change(rows):
        row = next(row for row in rows if row["fold"] is not None)
        row["fold"] = (row["fold"] + 1) % 3

    return change


def invent_row(split):
    return lambda rows: rows.append(rows[0] | {"utterance": "0" * 64})


def blank(column):
    return lambda split: lambda rows: rows[0].update({column: None})


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (move_speaker, "no valid certificate: its rows were changed"),
        (move_row, "in test and train"),
        (swap_label, "no valid certificate: its rows were changed"),
        (drop_row, "no valid certificate: its rows were changed"),
        (repeat_row, "no valid certificate: its rows were changed"),
        (change_fold, "no valid certificate: its rows were changed"),
        (invent_row, "1 utterances are not in its dataset"),
        (blank("utterance"), "damaged (a row of split.parquet is not whole)"),
        (blank("label"), "damaged (a row of split.parquet is not whole)"),
        (blank("split"), "damaged (a row of split.parquet is not whole)"),
        (blank("source_id"), "damaged (a row of split.parquet is not whole)"),
    ],
)
def test_changed_rows_are_refused(tamper, words, split):
    rewrite(split.uri, tamper(split))
    assert words in refusal(split.uri)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(split_hash="0" * 64),
        lambda c: c["checks"][0].update(passed=True, detail="trust me"),
        lambda c: c["checks"].clear(),
        lambda c: c.pop("checks"),
        lambda c: c["task"]["labels"].reverse(),
        lambda c: c["task"].pop("name"),
        lambda c: c["dataset"].update(hash="0" * 64),
        lambda c: c.pop("seal"),
        lambda c: c["speakers"].update(test=40),
        lambda c: c.update(unverified_corpora={"x": 1}),
    ],
)
def test_a_changed_certificate_is_refused(change, split):
    path = Path(split.uri) / "certificate.json"
    certificate = json.loads(path.read_text())
    change(certificate)
    path.write_text(json.dumps(certificate))
    assert "no valid certificate: it was changed" in refusal(split.uri)


def test_a_certificate_sealed_again_does_not_cover_changed_rows(split):
    path = Path(split.uri) / "certificate.json"
    certificate = json.loads(path.read_text())
    certificate["task"]["labels"].reverse()
    del certificate["seal"]
    path.write_text(json.dumps(certificate | {"seal": content_hash(certificate)}))
    assert "no valid certificate: its rows were changed" in refusal(split.uri)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"x"'])
def test_what_is_no_certificate_is_refused(content, split):
    (Path(split.uri) / "certificate.json").write_text(content)
    assert "certificate" in refusal(split.uri)


def test_a_split_without_its_files_is_refused(split):
    rows = Path(split.uri) / "split.parquet"
    rows.write_bytes(rows.read_bytes()[:-20])
    assert "damaged" in refusal(split.uri)
    (Path(split.uri) / "certificate.json").unlink()
    assert "no certificate" in refusal(split.uri)
    assert "no certificate" in refusal(f"{split.uri}x")


def test_a_split_under_another_name_is_refused(split):
    copy = shutil.copytree(split.uri, Path(split.uri).with_name("0" * 64))
    assert "no valid certificate" in refusal(str(copy))


def test_a_split_without_its_dataset_is_refused(folder_corpus, store):
    split, _ = made(folder_corpus(), store)
    shutil.rmtree(split.dataset.uri)
    with pytest.raises(StorageError, match="no dataset version here"):
        load_split(split.uri)


def test_two_runs_at_once_on_one_fresh_store_agree(folder_corpus, store):
    config = DataConfig(corpora=[CorpusSource(name="folder", path=str(folder_corpus(speakers=10)))])
    dataset, _ = ingest(config, store)
    code = (
        "import sys; from kubevox.config import SplitConfig, TaskConfig\n"
        "from kubevox.data.dataset import load_dataset, read_utterances; from kubevox.data.splits import make_split\n"
        "uri, store, seed = sys.argv[1:]; dataset = load_dataset(uri)\n"
        "accepted = [u.source_id for u in read_utterances(dataset.shard_uris)]\n"
        f"task = TaskConfig.from_json('''{TASK.to_json()}''')\n"
        "print('ready', flush=True); input()\n"
        "split, _ = make_split(dataset, accepted, task, SplitConfig(seed=int(seed)), store)\n"
        "print(split.hash)"
    )
    # Two seeds: by itself each would divide the speakers in its own way.
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, dataset.uri, store, seed],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "1")
    ]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("\n")
        run.stdin.flush()
    hashes = {run.communicate(timeout=60)[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert len(hashes) == 1
    assert load_split(f"{store}/splits/{hashes.pop()}").certificate["speakers"]["train"] == 6
    assert len(list((Path(store) / "assignments" / "mood").iterdir())) == 1


def test_real_speech_is_divided_by_actor(speech_data, store, tmp_path):
    for actor in range(1, 6):  # a fifth of each actor's recordings will do
        for file in sorted((speech_data / "speech" / "RAVDESS").rglob(f"*-{actor:02d}.flac"))[::5]:
            target = tmp_path / "ravdess" / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    source = CorpusSource(name="ravdess", path=str(tmp_path / "ravdess"))
    dataset, _ = ingest(DataConfig(corpora=[source], publish_names=True), store)
    left_out = dict.fromkeys(["neutral", "calm", "happy", "fearful", "disgust", "surprised"])
    task = TaskConfig(name="emotion", labels=["angry", "sad"], map={"ravdess": left_out})
    accepted = [u.source_id for u in read_utterances(dataset.shard_uris)]
    split, _ = make_split(dataset, accepted, task, SplitConfig(), store)
    assert split.certificate["speakers"] == {"train": 3, "validation": 1, "test": 1}
    # The speaker is a pseudonym, the file's name was left as it is, and ends in the actor's number.
    actors = {name: {u.source_id.rpartition("-")[2] for u, _ in split.of(name)} for name in SPLITS}
    assert sum(map(len, actors.values())) == len(set.union(*actors.values())) == 5


def test_the_copy_that_was_accepted_is_the_one_that_is_split(tmp_path):
    layout = [utterance(10 * i + n, f"s{i}", label=LABELS[n]) for i in range(6) for n in range(3)]
    # The dataset's first of two equal recordings is somebody else's, and was quarantined.
    refused = dataclasses.replace(utterance(50, "s0", label="sad"), source_id="c:first")
    dataset = stored([refused, *layout], str(tmp_path))
    accepted = [one.source_id for one in layout]
    split, _ = make_split(dataset, accepted, TASK, SplitConfig(), str(tmp_path))
    [kept] = [one for one, _ in split.of("train", "validation", "test") if one.id == refused.id]
    assert (kept.source_id, kept.speaker) == ("c:50", "c:s5")
    again = load_split(split.uri)
    assert again.utterances == split.utterances


def test_a_recording_under_two_speakers_is_refused_before_anybody_is_placed(tmp_path):
    layout = everyone()
    first, label = layout[0]
    again = dataclasses.replace(first, speaker="c:s5", source_id="c:again"), label
    store = str(tmp_path)
    with pytest.raises(SplitError, match="1 accepted recordings are there under more than one speaker, such as c:s0"):
        split_of([*layout, again], store)
    assert not (tmp_path / "assignments").exists()
    # The same person's copy can be in no two splits.
    own = dataclasses.replace(first, source_id="c:own"), label
    assert len(split_of([*layout, own], store).rows) == len(layout) + 1


def test_the_same_recordings_are_divided_alike_under_any_key(tmp_path):
    plain = [utterance(10 * i + n, f"s{i}", label=LABELS[n]) for i in range(12) for n in range(3)]
    placed = []
    for key in ("one", "other"):
        renamed = [
            dataclasses.replace(
                one,
                speaker=f"c:{content_hash(key, one.speaker)[:12]}",
                source_id=f"c:{content_hash(key, one.source_id)[:20]}",
            )
            for one in plain
        ]
        store = str(tmp_path / key)
        split, _ = make_split(stored(renamed, store), [u.source_id for u in renamed], TASK, SplitConfig(), store)
        placed.append(split.rows)
    assert placed[0] == placed[1]
