"""The file corpora: what their published names mean, and what is said where they are not as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubevox.config import CorpusSource
from kubevox.data.corpora import corpus_names, open_corpus
from kubevox.data.corpora.base import Corpus, Recording
from kubevox.errors import AudioError, ConfigError, CorpusError

CORPORA = [
    "commonvoice",
    "cremad",
    "emodb",
    "fleurs",
    "folder",
    "nemo",
    "ravdess",
    "ravnursson",
    "savee",
    "synthetic",
    "tess",
]
RAVDESS_EMOTIONS = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]


def corpus(name: str, path: Path | str | None, **options: Any) -> Corpus:
    return open_corpus(CorpusSource(name=name, path=None if path is None else str(path), options=options))


def recordings(name: str, folder: Path, *files: str, **options: Any) -> list[Recording]:
    """What a corpus says about files of these names; their content does not matter to it."""
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode())
    opened = corpus(name, folder, **options)
    found = list(opened.recordings())
    assert len(found) == len(opened)
    return found


# --- RAVDESS


def test_ravdess_reads_the_seven_fields(tmp_path):
    [recording] = recordings("ravdess", tmp_path, "Actor_12/03-01-06-02-02-01-12.wav")
    assert recording.source_id == "ravdess:Actor_12/03-01-06-02-02-01-12.wav"
    assert recording.speaker == "ravdess:12"
    assert recording.sex == "female"
    assert recording.raw_label == "fearful"
    assert recording.intensity == "strong"
    assert recording.language == "en"
    assert recording.text == "Dogs are sitting by the door"
    assert recording.read() == b"Actor_12/03-01-06-02-02-01-12.wav"


@pytest.mark.parametrize(("code", "label"), enumerate(RAVDESS_EMOTIONS, start=1))
def test_ravdess_emotions(tmp_path, code, label):
    [recording] = recordings("ravdess", tmp_path, f"03-01-{code:02d}-01-01-01-01.wav")
    assert (recording.raw_label, recording.intensity) == (label, "normal")


@given(actor=st.integers(1, 24))
def test_ravdess_actors_with_odd_numbers_are_men(actor, tmp_path_factory):
    [recording] = recordings("ravdess", tmp_path_factory.mktemp("ravdess"), f"03-01-01-01-01-01-{actor:02d}.flac")
    assert recording.sex == ("male" if actor % 2 else "female")
    assert recording.speaker == f"ravdess:{actor:02d}"


def test_ravdess_leaves_out_song_and_video(tmp_path):
    files = ["03-01-05-01-01-01-01.wav", "03-02-05-01-01-01-01.wav", "01-01-05-01-01-01-01.wav"]
    assert [r.source_id for r in recordings("ravdess", tmp_path, *files)] == [f"ravdess:{files[0]}"]


def test_ravdess_without_any_speech_says_so(tmp_path):
    with pytest.raises(CorpusError, match="no spoken recordings"):
        recordings("ravdess", tmp_path, "03-02-05-01-01-01-01.wav")


@pytest.mark.parametrize(
    "name",
    [
        "happy_01.wav",
        "03-01-05-01-01-01.wav",  # six fields
        "03-01-05-01-01-01-01-01.wav",  # eight
        "03-01-09-01-01-01-01.wav",  # no such emotion
        "03-01-05-03-01-01-01.wav",  # no such intensity
        "03-01-05-01-01-01-1.wav",  # the actor has one digit
    ],
)
def test_ravdess_names_not_as_published_are_named(tmp_path, name):
    found = recordings("ravdess", tmp_path, "03-01-05-01-01-01-01.wav", name)
    [stray] = [recording for recording in found if recording.raw_label is None]
    with pytest.raises(AudioError, match=rf"ravdess.*{name}.*not named as published"):
        stray.read()


def test_ravdess_sample_is_read(speech_data):
    found = list(corpus("ravdess", speech_data / "speech" / "RAVDESS").recordings())
    assert {r.raw_label for r in found} <= set(RAVDESS_EMOTIONS)
    assert all(r.intensity == "normal" for r in found if r.raw_label == "neutral")


# --- EMO-DB


def test_emodb_reads_speaker_text_and_emotion(tmp_path):
    [recording] = recordings("emodb", tmp_path, "wav/03a01Fa.wav")
    assert recording.source_id == "emodb:wav/03a01Fa.wav"
    assert recording.speaker == "emodb:03"
    assert recording.sex == "male"
    assert recording.raw_label == "happiness"
    assert recording.language == "de"
    assert recording.text == "Der Lappen liegt auf dem Eisschrank."


@pytest.mark.parametrize(
    ("letter", "label"),
    list(
        zip("WLEAFTN", ["anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral"], strict=True),
    ),
)
def test_emodb_emotions_by_their_german_letter(tmp_path, letter, label):
    [recording] = recordings("emodb", tmp_path, f"16b10{letter}b.wav")
    assert recording.raw_label == label


def test_emodb_has_five_men_and_five_women(tmp_path):
    speakers = ["03", "08", "09", "10", "11", "12", "13", "14", "15", "16"]
    found = recordings("emodb", tmp_path, *(f"{speaker}a01Na.wav" for speaker in speakers))
    assert {r.speaker.removeprefix("emodb:") for r in found if r.sex == "male"} == {"03", "10", "11", "12", "15"}
    assert sum(r.sex == "female" for r in found) == 5


@pytest.mark.parametrize("name", ["03a01Xa.wav", "99a01Fa.wav", "3a01Fa.wav", "03a01F.wav", "happy.wav"])
def test_emodb_names_not_as_published_are_named(tmp_path, name):
    [stray] = recordings("emodb", tmp_path, name)
    with pytest.raises(AudioError, match=rf"emodb.*{name}.*not named as published"):
        stray.read()


def test_emodb_sample_is_read(speech_data):
    found = list(corpus("emodb", speech_data / "speech" / "EMODB").recordings())
    assert all(r.text and r.text[0].isupper() for r in found)


# --- a folder of one's own


def test_folder_takes_label_and_speaker_from_the_path(tmp_path):
    found = recordings("folder", tmp_path, "angry/anna_1.wav", "angry/ben_1.wav", "sad/anna_2.wav", language="fo")
    assert [(r.source_id, r.raw_label, r.language) for r in found] == [
        ("folder:angry/anna_1.wav", "angry", "fo"),
        ("folder:angry/ben_1.wav", "angry", "fo"),
        ("folder:sad/anna_2.wav", "sad", "fo"),
    ]
    assert found[0].speaker == found[2].speaker != found[1].speaker


@given(names=st.lists(st.text("abcxyz0189", min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
def test_folder_speakers_differ_where_names_differ(names, tmp_path_factory):
    files = [f"label/{name}_{take}.wav" for name in names for take in (1, 2)]
    found = recordings("folder", tmp_path_factory.mktemp("folder"), *files)
    assert len({r.speaker for r in found}) == len(names)


def test_folder_speaker_pattern_reaches_into_subfolders(tmp_path):
    files = ["angry/session1/take-anna-1.wav", "sad/session2/take-anna-2.wav", "sad/session2/take-ben-2.wav"]
    found = recordings("folder", tmp_path, *files, speaker=r"take-(?P<speaker>\w+)-")
    assert found[0].speaker == found[1].speaker != found[2].speaker


@pytest.mark.parametrize("pattern", [r"(?P<speaker>\d+)?x", r"(\d*)x"])
def test_folder_takes_no_speaker_for_somebody_where_the_group_is_absent_or_empty(tmp_path, pattern):
    known, unknown = recordings("folder", tmp_path, "a/12x.wav", "a/x.wav", speaker=pattern)
    assert known.speaker == "folder:12"
    assert unknown.speaker is None
    with pytest.raises(AudioError, match=r"no speaker in the name of .*x\.wav"):
        unknown.read()


def test_folder_speaker_is_the_first_group_where_none_is_named(tmp_path):
    found = recordings("folder", tmp_path, "a/x1y.wav", "a/x2y.wav", speaker=r"x(\d)y")
    assert len({r.speaker for r in found}) == 2


def test_folder_without_known_speakers_has_none(tmp_path):
    [recording] = recordings("folder", tmp_path, "angry/0001.wav", speaker=None)
    assert recording.speaker is None


def test_folder_name_without_a_speaker_tells_the_remedy(tmp_path):
    [stray] = recordings("folder", tmp_path, "angry/0001.wav")
    with pytest.raises(AudioError, match=r"no speaker in the name of .*0001\.wav.*option `speaker`"):
        stray.read()


def test_folder_labels_may_be_languages(tmp_path):
    [recording] = recordings("folder", tmp_path, "fo/anna_1.wav", label_is="language")
    assert (recording.raw_label, recording.language) == (None, "fo")


def test_folder_file_outside_any_label_is_named(tmp_path):
    [stray] = recordings("folder", tmp_path, "anna_1.wav")
    with pytest.raises(AudioError, match=r"anna_1\.wav lies in no label's subfolder"):
        stray.read()


def test_folder_passes_over_other_files_and_hidden_ones(tmp_path):
    found = recordings(
        "folder", tmp_path, "angry/anna_1.wav", "angry/notes.txt", "angry/.anna_2.wav", ".trash/sad/anna_3.wav"
    )
    assert [r.source_id for r in found] == ["folder:angry/anna_1.wav"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speaker": "("}, "not a regular expression"),
        ({"speaker": "anna"}, "needs a group"),
        ({"label_is": "sex"}, "raw_label or language"),
        ({"pattern": "x"}, "unknown key 'pattern'"),
    ],
)
def test_folder_options_that_cannot_work_are_named(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        corpus("folder", tmp_path, **options)


# --- all of them


@pytest.mark.parametrize("name", ["cremad", "emodb", "folder", "nemo", "ravdess", "savee", "tess"])
def test_an_empty_folder_is_an_error_that_tells_what_was_expected(tmp_path, name):
    with pytest.raises(CorpusError, match=rf"corpus {name}: no recordings under .*expected "):
        list(corpus(name, tmp_path).recordings())


@pytest.mark.parametrize("name", ["cremad", "emodb", "folder", "nemo", "ravdess", "savee", "tess"])
def test_a_missing_folder_is_named(tmp_path, name):
    with pytest.raises(CorpusError, match=rf"corpus {name}: .*nowhere is not a folder"):
        len(corpus(name, tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["cremad", "emodb", "folder", "nemo", "ravdess", "savee", "tess"])
def test_a_corpus_of_files_needs_a_path(name):
    with pytest.raises(ConfigError, match=f"'{name}' needs a path"):
        corpus(name, None)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("ravdess", ["Actor_02/03-01-01-01-01-01-02.wav", "Actor_01/03-01-01-01-01-01-01.wav"]),
        ("emodb", ["wav/08a01Na.wav", "wav/03a01Na.wav"]),
        ("folder", ["sad/a_1.wav", "angry/b_1.wav"]),
    ],
)
def test_recordings_come_ordered_by_source_id_wherever_the_corpus_lies(tmp_path, name, files):
    found = [r.source_id for r in recordings(name, tmp_path / "here", *files)]
    assert found == sorted(found)
    assert found == [r.source_id for r in recordings(name, tmp_path / "there" / "deeper", *reversed(files))]


def test_the_fingerprint_changes_when_a_file_does(tmp_path):
    recordings("folder", tmp_path, "angry/anna_1.wav")
    before = corpus("folder", tmp_path).fingerprint()
    assert corpus("folder", tmp_path).fingerprint() == before
    (tmp_path / "angry" / "anna_1.wav").write_bytes(b"another recording altogether")
    assert corpus("folder", tmp_path).fingerprint() != before


def test_an_unknown_corpus_is_named_with_the_nearest():
    known = ", ".join(CORPORA)
    with pytest.raises(ConfigError, match=rf"unknown corpus 'ravdes'.*{known}.*'ravdess'"):
        corpus("ravdes", None)


@pytest.mark.parametrize("name", ["cremad", "emodb", "nemo", "ravdess", "savee", "tess"])
def test_an_option_a_corpus_does_not_have_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match=f"options of corpus '{name}': unknown key 'speaker'"):
        corpus(name, tmp_path, speaker="x")


def test_every_known_corpus_describes_itself():
    assert corpus_names() == CORPORA
    for name in corpus_names():
        opened = corpus(name, "anywhere")
        assert opened.name == name
        assert opened.title
        assert opened.licence
        assert opened.citation
    assert [n for n in corpus_names() if corpus(n, "anywhere").synthetic] == ["synthetic"]
