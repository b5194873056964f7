from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import CorpusSource, DataConfig
from kubevox.data.dataset import (
    DatasetVersion,
    ingest,
    load_dataset,
    read_audio,
    read_rejects,
    read_utterances,
    resolve,
)
from kubevox.data.dataset.forgetting import Suppressed, forget, identify, speakers_of
from kubevox.data.dataset.history import history
from kubevox.data.dataset.versions import dataset_hash
from kubevox.data.pseudonyms import Pseudonyms
from kubevox.errors import CorpusError, StorageError

WriteWav = Callable[..., Path]


def config(corpus: Path, **options: object) -> DataConfig:
    return DataConfig(corpora=[CorpusSource(name="folder", path=str(corpus))], max_rejected_share=0.5, **options)


def decoded(version: DatasetVersion) -> set[str]:
    return {waveform.id for shard in version.shard_uris for _, waveform in read_audio(shard)}


def heard(version: DatasetVersion, speaker: str) -> set[str]:
    return {row.id for row in read_utterances(version.shard_uris) if row.speaker == speaker}


@pytest.fixture(scope="module")
def corpus(make_corpus: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people; of s01 a file that is none, and a recording that is also there under s02's name."""
    folder = make_corpus(tmp_path_factory.mktemp("people"), 4, clips=1, seconds=0.8)
    (folder / "sad" / "s01_9.wav").write_bytes(b"no recording at all")
    shutil.copy(folder / "happy" / "s01_0.wav", folder / "happy" / "s02_7.wav")
    return folder


@pytest.fixture(scope="module")
def ingested(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("ingested") / "store"
    ingest(config(corpus), str(store))
    return store


@pytest.fixture
def store(ingested: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(ingested, tmp_path / "store"))


@pytest.fixture
def names(store: str) -> Pseudonyms:
    made = Pseudonyms.of_store(store)
    assert made is not None
    return made


def pseudonym(store: str, names: Pseudonyms, speaker: str = "folder:s01") -> str:
    found = identify(speaker, speakers_of(resolve(store, "default", "current")), names, Suppressed(store, names))
    assert found is not None
    return found


def test_no_recording_of_the_person_is_in_the_new_versions_shards(store: str, names: Pseudonyms) -> None:
    speaker = pseudonym(store, names)
    theirs = heard(resolve(store, "default", "current"), speaker)
    assert len(theirs) == 3
    made = forget(store, "default", {speaker}, names)
    assert made is not None
    now = resolve(store, "default", "current")
    assert now == made.after
    assert not decoded(now) & theirs
    assert speaker not in speakers_of(now)
    assert (made.utterances, made.copies, made.rejects) == (4, 1, 1)


def test_everybody_else_is_heard_as_before(store: str, names: Pseudonyms) -> None:
    speaker = pseudonym(store, names)
    before = resolve(store, "default", "current")
    theirs = heard(before, speaker)
    forget(store, "default", {speaker}, names)
    after = resolve(store, "default", "current")
    rows = [row for row in read_utterances(before.shard_uris) if row.id not in theirs]
    assert read_utterances(after.shard_uris) == rows
    assert decoded(after) == decoded(before) - theirs
    assert after.hash == dataset_hash(rows)
    assert after.hours == pytest.approx(sum(row.duration_s for row in rows) / 3600)


def test_the_older_version_stays_as_it_was(store: str, names: Pseudonyms) -> None:
    before = resolve(store, "default", "current")
    held = decoded(before)
    forget(store, "default", {pseudonym(store, names)}, names)
    assert load_dataset(before.uri) == before
    assert decoded(before) == held


def test_what_was_found_is_still_accounted_for(store: str, names: Pseudonyms) -> None:
    forget(store, "default", {pseudonym(store, names)}, names)
    [counts] = resolve(store, "default", "current").corpora
    assert counts["forgotten"] == 5
    assert counts["found"] == counts["left_out"] + counts["forgotten"] + counts["stored"] + counts["failed"]
    assert (counts["stored"], counts["failed"]) == (9, 0)


def test_history_says_forget_and_not_who(store: str, names: Pseudonyms) -> None:
    speaker = pseudonym(store, names)
    before = resolve(store, "default", "current")
    forget(store, "default", {speaker}, names)
    entry = history(store, "default")[-1]
    assert (entry.operation, entry.parent) == ("forget", before.hash)
    assert "s01" not in entry.detail
    assert speaker not in entry.detail


def test_a_later_ingest_of_the_same_corpus_does_not_bring_the_person_back(
    store: str, names: Pseudonyms, corpus: Path
) -> None:
    speaker = pseudonym(store, names)
    theirs = heard(resolve(store, "default", "current"), speaker)
    made = forget(store, "default", {speaker}, names)
    assert made is not None
    again, _ = ingest(config(corpus), store)
    assert again.hash == made.after.hash
    assert not decoded(again) & theirs
    assert again.corpora == made.after.corpora
    assert resolve(store, "default", "current").hash == again.hash


def test_new_recordings_of_the_person_stay_out_too(
    store: str, names: Pseudonyms, corpus: Path, tmp_path: Path, write_wav: WriteWav
) -> None:
    speaker = pseudonym(store, names)
    forget(store, "default", {speaker}, names)
    grown = Path(shutil.copytree(corpus, tmp_path / "grown"))
    write_wav(grown / "angry" / "s01_5.wav", frequency=300)
    write_wav(grown / "angry" / "s03_5.wav", frequency=400)
    version, _ = ingest(config(grown), store)
    assert speaker not in speakers_of(version)
    assert version.utterances == 10
    assert version.corpora[0]["forgotten"] == 6


def test_the_list_of_the_forgotten_tells_nobodys_name(store: str, names: Pseudonyms) -> None:
    speaker = pseudonym(store, names)
    forget(store, "default", {speaker}, names)
    marks = list(Path(store, "forgotten").iterdir())
    assert len(marks) == 2  # the person, and the copy under another name
    for mark in marks:
        text = f"{mark.name} {mark.read_text()}"
        assert not any(name in text for name in ("s01", "folder", speaker.partition(":")[2]))
    assert Suppressed(store, names).find(speaker)
    assert not Suppressed(store, Pseudonyms("quite another key")).find(speaker)


def test_a_version_tells_whom_it_would_bring_back(store: str, names: Pseudonyms) -> None:
    speaker = pseudonym(store, names)
    made = forget(store, "default", {speaker}, names)
    assert made is not None
    suppressed = Suppressed(store, names)
    rows = read_utterances(made.before.shard_uris)
    theirs = heard(made.before, speaker)
    held = {row.source_id for row in rows if row.id in theirs}  # also the copy under s02's name
    held |= {reject["source_id"] for reject in read_rejects(made.before)}
    assert suppressed.held_by(made.before) == held
    assert suppressed.held_by(made.after) == set()


def test_a_copy_stays_out_whether_names_are_published_or_not(
    corpus: Path, store: str, names: Pseudonyms, tmp_path: Path
) -> None:
    forget(store, "default", {pseudonym(store, names)}, names)
    published, _ = ingest(config(corpus, publish_names=True), store)
    assert published.utterances == 9
    other = str(tmp_path / "published")
    ingest(config(corpus, publish_names=True), other)
    forget(other, "default", {pseudonym(other, names)}, names)
    assert ingest(config(corpus), other)[0].utterances == 9


def test_what_bears_audio_that_another_version_says_is_theirs_goes(
    corpus: Path, store: str, names: Pseudonyms, write_wav: WriteWav, tmp_path: Path
) -> None:
    """The person is not named in the dataset, but heard."""
    theirs = heard(resolve(store, "default", "current"), pseudonym(store, names))
    copies = tmp_path / "copies"
    write_wav(copies / "sad" / "t01_0.wav", frequency=555)
    shutil.copy(corpus / "happy" / "s01_0.wav", copies / "sad" / "t02_0.wav")
    ingest(config(copies, name="other"), store)
    made = forget(store, "other", {pseudonym(store, names)}, names, theirs)
    assert made is not None
    assert (made.utterances, made.copies, made.after.utterances) == (1, 1, 1)
    assert not decoded(resolve(store, "other", "current")) & theirs


def test_a_person_of_whom_nothing_could_be_decoded_is_taken_off_the_rejects(
    tmp_path: Path, make_corpus: Callable[..., Path]
) -> None:
    folder = make_corpus(tmp_path / "corpus", 2, clips=1)
    (folder / "sad" / "s09_0.wav").write_bytes(b"no recording at all")
    store = str(tmp_path / "store")
    before, _ = ingest(config(folder), store)
    names = Pseudonyms.of_store(store)
    assert names is not None
    assert len(read_rejects(before)) == 1
    made = forget(store, "default", {pseudonym(store, names, "folder:s09")}, names)
    assert made is not None
    assert made.after.hash == before.hash
    assert read_rejects(resolve(store, "default", "current")) == []
    assert resolve(store, "default", "current").rejects == 0
    [counts] = made.after.corpora
    for count in (counts, made.after.batches[0]["counts"][0]):  # what is added later sums up the batches
        assert (count["found"], count["stored"], count["failed"], count["forgotten"]) == (7, 6, 0, 1)


def test_forgetting_twice_changes_nothing(store: str, names: Pseudonyms) -> None:
    speaker = pseudonym(store, names)
    assert forget(store, "default", {speaker}, names)
    assert forget(store, "default", {speaker}, names) is None
    assert len(history(store, "default")) == 2
    assert pseudonym(store, names) == speaker  # still recognised, by the list


def test_a_corpus_of_nobody_else_is_one_clear_line(tmp_path: Path, make_corpus: Callable[..., Path]) -> None:
    folder, store = make_corpus(tmp_path / "corpus", 1, clips=1), str(tmp_path / "store")
    ingest(config(folder), store)
    names = Pseudonyms.of_store(store)
    assert names is not None
    made = forget(store, "default", {pseudonym(store, names, "folder:s00")}, names)
    assert made is not None
    assert made.after.utterances == 0
    with pytest.raises(CorpusError, match="nothing is left to ingest"):
        ingest(config(folder), store)


def test_a_stranger_is_not_identified(store: str, names: Pseudonyms) -> None:
    known = speakers_of(resolve(store, "default", "current"))
    assert identify("folder:nobody", known, names, Suppressed(store, names)) is None
    with pytest.raises(StorageError, match=r"s01.*corpus:id"):
        identify("s01", known, names, Suppressed(store, names))


def test_another_version_that_became_current_meanwhile_is_built_upon(
    store: str, names: Pseudonyms, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubevox.data.dataset import forgetting

    first, second = pseudonym(store, names), pseudonym(store, names, "folder:s03")
    publish = forgetting.publish_version
    interrupted = []

    def publish_after_another(*args: object, **options: object) -> object:
        if not interrupted:
            interrupted.append(True)
            forget(store, "default", {second}, names)
        return publish(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(forgetting, "publish_version", publish_after_another)
    forget(store, "default", {first}, names)
    assert not speakers_of(resolve(store, "default", "current")) & {first, second}


@settings(max_examples=8)
@given(who=st.sets(st.integers(0, 3), min_size=1))
def test_any_people_can_be_forgotten_in_any_shards(
    who: set[int], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = str(tmp_path_factory.mktemp("store"))
    ingest(config(corpus), store)
    names = Pseudonyms.of_store(store)
    assert names is not None
    before = resolve(store, "default", "current")
    gone = {pseudonym(store, names, f"folder:s0{number}") for number in who}
    theirs = {row.id for row in read_utterances(before.shard_uris) if row.speaker in gone}
    made = forget(store, "default", gone, names)
    assert made is not None
    assert decoded(made.after) == decoded(before) - theirs
    assert made.after.utterances == len(read_utterances(made.after.shard_uris))
    assert sum(shard.rows for shard in made.after.shards) == made.after.utterances
    assert sum(batch["utterances"] for batch in made.after.batches) == made.after.utterances


def test_a_machines_voice_is_forgotten_without_a_key(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    source = CorpusSource(name="synthetic", options={"speakers": 3, "sentences": 1, "emotions": ["neutral", "anger"]})
    store = str(tmp_path / "store")
    version, _ = ingest(DataConfig(corpora=[source]), store)
    assert Pseudonyms.of_store(store) is None
    speaker = sorted(speakers_of(version))[0]
    made = forget(store, "default", {speaker}, None)
    assert made is not None
    again, _ = ingest(DataConfig(corpora=[source]), store)
    assert again.hash == made.after.hash
    assert json.loads(next(Path(store, "forgotten").iterdir()).read_text()).keys() == {"forgotten"}
