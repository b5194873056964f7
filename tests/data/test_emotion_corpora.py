"""The emotion corpora: every published name parses, to the published counts."""

from __future__ import annotations

import csv
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubevox.config import CorpusSource
from kubevox.config.files import load_config
from kubevox.data.corpora import corpus_names, open_corpus
from kubevox.data.corpora.base import FileCorpus, Recording
from kubevox.errors import AudioError, CorpusError

# --- the published names, by the published rules

# Northwestern University Auditory Test No. 6, lists 1 to 4: the words of TESS.
NU_6 = """
laud boat pool nag limb shout sub vine dime goose whip tough puff keen death sell take fall raise third gap fat met jar
door love sure knock choice hash lot raid hurl moon page yes reach king home rag which week size mode bean tip chalk
jail burn kite pick room nice said fail south white keep dead loaf dab numb juice chief merge wag rain witch soap young
ton keg calm tool pike mill hush shack read rot hate live book voice gaze pad thought bought turn chair lore bite haze
match learn shawl deep gin goal far bar base beg cab cause chat cheek cool date ditch dodge five germ good gun half hire
hit jug late lid life luck mess mop mouse name note pain pearl phone pole rat ring road rush search seize shall sheep
soup talk team tell thin void walk when wire youth pass doll back red wash sour bone get wheat thumb sail yearn wife
such neat peg mob gas check join lease long chain kill hole lean tape tire dip rose came fit make vote judge food ripe
have rough kick lose near perch shirt bath time hall mood dog should
"""
# The folders as they are spelt in the copy of TESS that goes round.
TESS_FOLDERS = {
    "OAF": ["OAF_angry", "OAF_disgust", "OAF_Fear", "OAF_happy", "OAF_neutral", "OAF_Pleasant_surprise", "OAF_Sad"],
    "YAF": ["YAF_angry", "YAF_disgust", "YAF_fear", "YAF_happy", "YAF_neutral", "YAF_pleasant_surprised", "YAF_sad"],
}
TESS_LETTERS = ["angry", "disgust", "fear", "happy", "neutral", "ps", "sad"]

# EMO-DB has what listeners recognised, so its names follow no rule: speaker, then texts, each with emotion and version.
EMODB = """
03 a01FaNcWa a02FcNcTaWbWc a04AdFdLcNcTaWc a05AaFcNdTcWaWb a07FaFbLaNcWc b01FaLbNbTdWaWc b02AaLaNaTbWb b03NbTcWc
03 b09LaNcTcWa b10AbEcNaNcWbWc
08 a01AbFdLcNaWaWc a02AbAcFeLaNaTbWc a04FfLaNcTbWc a05FeLcNbTaWa a07FdLaNaTaTbWc b01AaFdFeLbNaWa b02FfLaNbTcWd
08 b03FeLcNbTcWd b09AbFdLcNbTbWaWc b10AaFdLaNcTcWa
09 a01EaFaNbWb a02EaEbLaWb a04FdLaNbWa a05EdLcNbTbWbWc a07EbNaTaWbWd b01EaNaWb b02NaTbWcWd b03EdFaFdLbNbTaWb b09EaNdWa
09 b10AaNdWa
10 a01AcNbWa a02AbFaLbNaWa a04FdNbWaWb a05AaLdTbWb a07AaAdLaTaWb b01AaEaFaLb b02AaLaNaWb b03LaTbWb b09AdLbWb b10FcLcWa
11 a01AaAbLdNdWc a02EcFbLdNcTcWc a04AcFdNdWc a05AdFbFcLcNaTdWd a07AcLdTaWc b01AbEbFcLbNcWd b02AbFdNaTdWb
11 b03FcLcNbTdWaWb b09AdFdLdNaTdWa b10AdAeLdNcTdWa
12 a01FbLbNbWc a02AcEcNbWaWc a04Wc a05AbLbNdTaWb a07AcLaWa b01TaWa b02AdEaFbNaWaWbWd b03LaTa b09AcTdWc b10AcLdWa
13 a01AcEaEcFdLbNbWb a02AdEcFaLcNcTaWa a04AcFcLbTaWc a05AaEaLcNbTcWaWc a07FdLbNaTcWb b01AbEcFcLdNcWa b02FbLcNbWa
13 b03AcEdFdLbNaTdWc b09AbEcFbFcLaNaWa b10EcFaLaNcWaWc
14 a01AaAcEaNaWaWc a02AbEaFdLaNcTbWaWc a04AaEdLbTbTcWbWc a05AaAcFaFbLbNaTaTcWaWb a07AaEbFdLcLdNaTcWc b01AcEbFaFcNaWc
14 b02AaFbNaTcWbWd b03AdEdLbTaWb b09AcEaFcLbTdWaWc b10AdEbLbNbTcWc
15 a01EaFbLaNbWa a02AcEaLaNaTaWbWd a04AbAcFdNcWaWb a05EbFbLbNaWa a07AcEbFaFbLdNc b01EcLbNaWc b02AaLbNdTcWaWc
15 b03AaLcNbTcWaWb b09AcFaLaNbTaWb b10AcLcNbNcWa
16 a01EcFcLbNcTbWb a02EaEcLbNbTcWb a04AbEaFaLaLcNcTcWbWc a05AbEaFcLaTbWbWc a07EaFaFbLaLbNbTdWa b01AaEbFaLaLcTbWaWb
16 b02AaEbFdLbWb b03AdEaFaFdLaNbTaWb b09AbEbFbLaLbWb b10AaEbFbLbTbTdWaWb
"""

CREMAD_SENTENCES = ["IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI"]
CREMAD_EMOTIONS = ["NEU", "HAP", "SAD", "ANG", "FEA", "DIS"]
CREMAD_NEVER_PUBLISHED = {("1002", "TIE", "NEU"), ("1076", "ITS", "NEU")} | {
    (actor, sentence, emotion)
    for actor, sentence in (("1008", "WSI"), ("1009", "MTI"), ("1019", "ITH"))
    for emotion in CREMAD_EMOTIONS
}
CREMAD_WOMEN, CREMAD_MEN = 43, 48

NEMO_SPEAKERS = ["EB0", "IC0", "KD0", "KS0", "MK0", "MP0", "SM0", "TP0", "WR0"]
NEMO_COUNTS = {"anger": 749, "fear": 736, "happiness": 749, "neutral": 809, "sadness": 769, "surprised": 669}


def ravdess() -> Iterator[str]:
    for actor, emotion, intensity, statement, repetition in itertools.product(
        range(1, 25), range(1, 9), (1, 2), (1, 2), (1, 2)
    ):
        if (emotion, intensity) != (1, 2):  # there is no strong neutral
            fields = (3, 1, emotion, intensity, statement, repetition, actor)
            yield f"Actor_{actor:02d}/{'-'.join(f'{field:02d}' for field in fields)}.wav"


def tess() -> Iterator[str]:
    for speaker, folders in TESS_FOLDERS.items():
        for (folder, letters), word in itertools.product(zip(folders, TESS_LETTERS, strict=True), NU_6.split()):
            name = f"{speaker}_{word}_{letters}.wav"
            yield f"{folder}/{'OA_bite_neutral.wav' if name == 'OAF_bite_neutral.wav' else name}"


def tess_in_one_folder() -> Iterator[str]:
    return (Path(name).name for name in tess())


def savee() -> Iterator[str]:
    for speaker, letters in itertools.product(("DC", "JE", "JK", "KL"), ("a", "d", "f", "h", "n", "sa", "su")):
        for sentence in range(1, 31 if letters == "n" else 16):
            yield f"AudioData/{speaker}/{letters}{sentence:02d}.wav"


def savee_in_one_folder() -> Iterator[str]:
    return (f"ALL/{Path(name).parent.name}_{Path(name).name}" for name in savee())


def cremad() -> Iterator[str]:
    for actor, sentence, emotion in itertools.product(range(1001, 1092), CREMAD_SENTENCES, CREMAD_EMOTIONS):
        if (str(actor), sentence, emotion) in CREMAD_NEVER_PUBLISHED:
            continue
        for level in ("LO", "MD", "HI") if sentence == "IEO" and emotion != "NEU" else ("XX",):
            name = f"{actor}_{sentence}_{emotion}_{level}"
            yield f"AudioWAV/{'1040_ITH_SAD_X' if name == '1040_ITH_SAD_XX' else name}.wav"


def emodb() -> Iterator[str]:
    for line in EMODB.strip().splitlines():
        speaker, *texts = line.split()
        for text in texts:
            yield from (f"wav/{speaker}{text[:3]}{version}.wav" for version in re.findall("..", text[3:]))


def nemo() -> Iterator[str]:
    # Which sentences an actor lacks is not published, only how many of each emotion there are.
    for emotion, count in NEMO_COUNTS.items():
        names = [f"{speaker}_{emotion}_{sentence}" for sentence in range(1, 91) for speaker in NEMO_SPEAKERS]
        yield from (f"samples/{name}.wav" for name in names[:count])


# --- counts

ONE_EACH = {
    "ravdess": "Actor_12/03-01-06-02-02-01-12.wav",
    "tess": "OAF_back_angry.wav",
    "savee": "DC_sa03.wav",
    "cremad": "1001_IEO_ANG_HI.wav",
    "emodb": "03a01Fa.wav",
    "nemo": "EB0_fear_29.wav",
}


def corpus(name: str, path: Path) -> FileCorpus:
    opened = open_corpus(CorpusSource(name=name, path=str(path)))
    assert isinstance(opened, FileCorpus)
    return opened


def tree(folder: Path, names: Iterable[str], content: bytes = b"") -> Path:
    """Files of these names; what is in them does not matter to a corpus until they are read."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], Iterator[str]]], FileCorpus]:
    """``whole(name, names)``: the corpus with all of its published names, made once."""
    made: dict[str, Path] = {}

    def open_whole(name: str, names: Callable[[], Iterator[str]]) -> FileCorpus:
        if names.__name__ not in made:
            made[names.__name__] = tree(tmp_path_factory.mktemp(names.__name__), names())
        return corpus(name, made[names.__name__])

    return open_whole


def described(name: str, folder: Path, *files: str) -> list[Recording]:
    opened = corpus(name, tree(folder, files))
    return [opened.describe(file) for file in opened.files]


def speakers(recordings: Iterable[Recording]) -> Counter[str]:
    return Counter(recording.speaker.partition(":")[2] for recording in recordings if recording.speaker)


@pytest.mark.parametrize(
    ("name", "names", "count", "labels", "people"),
    [
        ("ravdess", ravdess, 1440, {"neutral": 96, "calm": 192, "fearful": 192, "surprised": 192}, 24),
        ("tess", tess, 2800, dict.fromkeys(TESS_LETTERS, 400), 2),
        ("tess", tess_in_one_folder, 2800, dict.fromkeys(TESS_LETTERS, 400), 2),
        ("savee", savee, 480, {"neutral": 120, "anger": 60, "sadness": 60, "surprise": 60}, 4),
        ("savee", savee_in_one_folder, 480, {"neutral": 120, "anger": 60, "sadness": 60, "surprise": 60}, 4),
        ("cremad", cremad, 7442, {"neutral": 1087, "anger": 1271, "happy": 1271, "sad": 1271}, 91),
        ("emodb", emodb, 535, {"anger": 127, "boredom": 81, "disgust": 46, "fear": 69, "sadness": 62}, 10),
        ("nemo", nemo, 4481, NEMO_COUNTS, 9),
    ],
    ids=["ravdess", "tess", "tess-flat", "savee", "savee-flat", "cremad", "emodb", "nemo"],
)
def test_all_published_names_parse_to_the_published_counts(whole, name, names, count, labels, people):
    opened = whole(name, names)
    published = opened.published
    assert published is not None
    found = [opened.describe(file) for file in opened.files]
    assert len(found) == len(opened) == count == published.recordings == sum(published.labels.values())
    by_label = Counter(recording.raw_label for recording in found)
    assert by_label == published.labels
    assert labels.items() <= by_label.items()
    by_speaker = speakers(found)
    assert len(by_speaker) == people
    assert by_speaker == (published.speakers or by_speaker)
    assert len({recording.source_id for recording in found}) == count
    assert {recording.language for recording in found} == set(opened.languages)
    assert all(recording.sex in ("female", "male") for recording in found)
    assert published.source.startswith("http")


def test_cremad_has_its_men_women_levels_and_sentences(whole):
    opened = whole("cremad", cremad)
    found = [opened.describe(file) for file in opened.files]
    people = {recording.speaker: recording.sex for recording in found}
    assert Counter(people.values()) == {"female": CREMAD_WOMEN, "male": CREMAD_MEN}
    assert Counter(recording.intensity for recording in found) == {"LO": 455, "MD": 455, "HI": 455, "XX": 6077}
    assert len({recording.text for recording in found}) == 12
    short = {actor: count for actor, count in speakers(found).items() if count != 82}
    assert short == {"1002": 81, "1008": 76, "1009": 76, "1019": 76, "1076": 81}


def test_ravdess_has_sixty_of_each_actor_and_half_of_them_are_women(whole):
    opened = whole("ravdess", ravdess)
    found = [opened.describe(file) for file in opened.files]
    assert set(speakers(found).values()) == {60}
    assert Counter(recording.sex for recording in found) == {"female": 720, "male": 720}
    assert Counter(recording.intensity for recording in found) == {"normal": 768, "strong": 672}


# --- names


def test_tess_takes_speaker_word_and_emotion_from_the_file_whatever_its_folder(tmp_path):
    found = described("tess", tmp_path, "YAF_pleasant_surprised/YAF_hush_ps.wav", "OAF_Sad/OAF_back_angry.wav")
    assert [(r.speaker, r.raw_label, r.text) for r in found] == [
        ("tess:OAF", "angry", "Say the word back"),
        ("tess:YAF", "ps", "Say the word hush"),
    ]
    assert {r.sex for r in found} == {"female"}


@pytest.mark.parametrize("file", ["OAF_Fear/OAF_Back_Fear.wav", "oaf_fear/oaf_back_fear.WAV"])
def test_tess_names_may_be_in_either_case(tmp_path, file):
    [recording] = described("tess", tmp_path, file)
    assert (recording.speaker, recording.raw_label, recording.text) == ("tess:OAF", "fear", "Say the word back")


def test_the_misnamed_file_of_tess_is_the_older_actress_and_no_other_is_let_through(tmp_path):
    [recording] = described("tess", tmp_path, "OAF_neutral/OA_bite_neutral.wav")
    assert (recording.speaker, recording.raw_label, recording.text) == ("tess:OAF", "neutral", "Say the word bite")
    with pytest.raises(CorpusError, match=r"OA_bite_angry\.wav is not named as published"):
        described("tess", tmp_path, "OAF_angry/OA_bite_angry.wav")


def test_savee_takes_the_speaker_from_the_name_or_from_the_folder(tmp_path):
    found = described("savee", tmp_path, "AudioData/KL/su15.wav", "ALL/DC_a01.wav", "JE/JK_n30.wav")
    assert [(r.speaker, r.raw_label, r.sex) for r in found] == [
        ("savee:DC", "anger", "male"),
        ("savee:KL", "surprise", "male"),
        ("savee:JK", "neutral", "male"),
    ]
    assert {r.text for r in found} == {None}


def test_cremad_reads_the_four_fields(tmp_path):
    [recording] = described("cremad", tmp_path, "AudioWAV/1002_IEO_DIS_LO.wav")
    assert recording.source_id == "cremad:AudioWAV/1002_IEO_DIS_LO.wav"
    assert (recording.speaker, recording.sex, recording.raw_label) == ("cremad:1002", "female", "disgust")
    assert (recording.intensity, recording.language, recording.text) == ("LO", "en", "It's eleven o'clock")


def test_cremad_takes_the_wave_where_the_mp3_lies_beside_it(tmp_path):
    stems = ["1001_DFA_ANG_XX", "1040_ITH_SAD_XX", "1090_WSI_NEU_XX"]
    tree(tmp_path, [f"AudioMP3/{stem}.mp3" for stem in stems])
    found = described("cremad", tmp_path, "AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1040_ITH_SAD_X.wav")
    assert [r.source_id.removeprefix("cremad:") for r in found] == [
        "AudioMP3/1090_WSI_NEU_XX.mp3",
        "AudioWAV/1001_DFA_ANG_XX.wav",
        "AudioWAV/1040_ITH_SAD_X.wav",
    ]
    assert {r.intensity for r in found} == {"XX"}


def test_nemo_finds_the_text_in_the_published_table(tmp_path):
    rows = [
        "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage",
        "EB0_fear_29.wav\tfear\t„Ród smoka” to serial.\tród smoka to serial\t        EB0\tfemale\t27",
    ]
    (tmp_path / "data.tsv").write_text("\n".join(rows), encoding="utf-8")
    with_text, without = described("nemo", tmp_path, "samples/EB0_fear_29.wav", "samples/WR0_surprised_1.wav")
    assert (with_text.text, without.text) == ("„Ród smoka” to serial.", None)
    assert [(r.speaker, r.sex, r.raw_label, r.language) for r in (with_text, without)] == [
        ("nemo:EB0", "female", "fear", "pl"),
        ("nemo:WR0", "male", "surprised", "pl"),
    ]


def test_nemo_changes_its_fingerprint_with_its_table(tmp_path):
    tree(tmp_path, ["samples/EB0_fear_29.wav"])
    before = corpus("nemo", tmp_path).fingerprint()
    assert corpus("nemo", tmp_path).fingerprint() == before
    (tmp_path / "data.tsv").write_text("file_id\traw_text\n", encoding="utf-8")
    assert corpus("nemo", tmp_path).fingerprint() != before


def test_a_table_of_nemo_without_texts_is_named(tmp_path):
    (tmp_path / "data.tsv").write_text("file_id\temotion\n", encoding="utf-8")
    opened = corpus("nemo", tree(tmp_path, ["samples/EB0_fear_29.wav"]))
    with pytest.raises(CorpusError, match=r"corpus nemo: .*data\.tsv has no column 'raw_text'"):
        list(opened.recordings())


# --- the same tree twice


@pytest.mark.parametrize(
    ("name", "names", "inside"),
    [
        ("tess", tess, "TESS Toronto emotional speech set data"),
        ("ravdess", ravdess, "audio_speech_actors_01-24"),
    ],
)
def test_a_second_copy_of_the_whole_tree_is_passed_over(tmp_path, name, names, inside):
    some = random.Random(0).sample(sorted(names()), 100)
    tree(tmp_path, some)
    tree(tmp_path / inside, some)
    opened = corpus(name, tmp_path)
    assert [opened.inside(file) for file in opened.files] == sorted(some)


@pytest.mark.parametrize("name", ["tess", "ravdess"])
def test_a_file_of_the_same_name_and_another_size_is_no_copy(tmp_path, name):
    tree(tmp_path / "one", [ONE_EACH[name]], b"some bytes")
    tree(tmp_path / "other", [ONE_EACH[name]], b"some more bytes")
    assert len(corpus(name, tmp_path)) == 2


# --- what is not named as published


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ravdess", "03-01-01-02-01-01-01.wav"),  # neutral, strong
        ("ravdess", "03-01-05-01-01-01-25.wav"),  # no such actor
        ("ravdess", "cover.mp3"),
        ("tess", "OAF_back_surprised.wav"),
        ("tess", "MAF_back_angry.wav"),
        ("savee", "DC_a16.wav"),  # 15 angry sentences
        ("savee", "DC_n31.wav"),  # 30 neutral ones
        ("savee", "a01.wav"),  # whose?
        ("cremad", "1092_DFA_ANG_XX.wav"),
        ("cremad", "1000_DFA_ANG_XX.wav"),
        ("cremad", "1001_DFA_SUR_XX.wav"),
        ("cremad", "1001_DFA_ANG_X.wav"),
        ("emodb", "03c01Fa.wav"),
        ("emodb", "03a03Fa.wav"),  # no such text
        ("nemo", "HB0_anger_1.wav"),
        ("nemo", "EB0_anger_91.wav"),
        ("nemo", "EB0_anger_0.wav"),
        ("nemo", "EB0_disgust_1.wav"),
    ],
)
def test_a_name_that_was_not_published_is_listed_and_refused_and_stops_nothing(tmp_path, name, file):
    opened = corpus(name, tree(tmp_path, [file, ONE_EACH[name]]))
    found = list(opened.recordings())
    assert len(found) == len(opened) == 2
    [refused] = [recording for recording in found if recording.speaker is None]
    with pytest.raises(AudioError, match=rf"corpus {name}: .*{re.escape(file)} is not named as published") as error:
        refused.read()
    assert error.value.reason == "unknown_name"


def test_songs_and_videos_of_ravdess_are_passed_over_and_stray_names_are_not(tmp_path):
    names = ["03-02-05-01-01-01-01.wav", "01-01-05-01-01-01-01.m4a", "03-01-05-01-01-01-01.wav", "take 2.wav"]
    opened = corpus("ravdess", tree(tmp_path, names))
    assert [file.name for file in opened.files] == ["03-01-05-01-01-01-01.wav", "take 2.wav"]


MANGLINGS = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 40), st.just("")),
    st.tuples(st.just("put"), st.integers(0, 40), st.text(min_size=1, max_size=3)),
    st.tuples(st.just("change"), st.integers(0, 40), st.text(min_size=1, max_size=1)),
)


def mangled(name: str, manglings: list[tuple[str, int, str]]) -> str:
    for how, where, text in manglings:
        where %= len(name) + 1
        name = name[:where] + text + name[where + (how != "put") :]
    return name


@pytest.mark.parametrize("name", ONE_EACH)
@given(manglings=st.lists(MANGLINGS, min_size=1, max_size=3))
def test_a_mangled_name_is_refused_or_still_means_somebody_and_something_published(name, manglings):
    root = Path(__file__).parent
    opened = corpus(name, root)
    try:
        recording = opened.describe(root / mangled(ONE_EACH[name], manglings).lstrip("/"))
    except CorpusError:
        return
    assert opened.published is not None
    assert recording.raw_label in opened.published.labels
    assert set(speakers([recording])) <= set(opened.published.speakers or NEMO_SPEAKERS)
    assert recording.sex


# --- what is said about them


@pytest.mark.parametrize("name", ONE_EACH)
def test_each_says_where_it_is_from_and_how_to_get_it(name):
    opened = corpus(name, Path("anywhere"))
    assert name in corpus_names()
    assert opened.homepage.startswith("http")
    assert opened.access
    assert opened.licence
    assert re.search(r"\((19|20)\d\d\)", opened.citation)
    for download in opened.downloads:
        assert download.url.startswith("http")
        assert re.fullmatch(r"[\w.-]+\.zip", download.name)
        assert download.checksum is None or re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", download.checksum)
    assert opened.downloads or "path" in opened.access


def test_the_emotion_task_knows_each_label_of_each_corpus(repository):
    task = load_config(repository / "configs" / "emotion.yaml").task
    mapped: dict[tuple[str, str], Any] = {}
    for name in ONE_EACH:
        published = corpus(name, Path("anywhere")).published
        assert published is not None
        for label in published.labels:
            known, mapped[name, label] = task.label_of(name, label)
            assert known, (name, label)
    assert mapped["ravdess", "calm"] == "neutral"
    assert mapped["tess", "ps"] == mapped["nemo", "surprised"] == mapped["savee", "surprise"] == "surprise"
    assert [key for key, label in mapped.items() if label is None] == [("emodb", "boredom")]
    of_each = {name: {label for (of, _), label in mapped.items() if of == name and label} for name in ONE_EACH}
    assert set(task.labels) - of_each["cremad"] == {"surprise"}
    assert set(task.labels) - of_each["nemo"] == {"disgust"}
    assert of_each["ravdess"] == of_each["tess"] == of_each["savee"] == set(task.labels)


# --- real recordings


@pytest.mark.parametrize(
    ("name", "folder", "speaker_of"),
    [
        ("ravdess", "RAVDESS", lambda speaker: speaker.removeprefix("rav")),
        ("emodb", "EMODB", lambda speaker: speaker.removeprefix("emo")),
        ("nemo", "nEMO", lambda speaker: speaker.removeprefix("nemo")),
    ],
)
def test_real_names_mean_what_the_list_beside_them_says(speech_data, repository, name, folder, speaker_of):
    task = load_config(repository / "configs" / "emotion.yaml").task
    with (speech_data / "speech" / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        listed = {row["path"]: row for row in csv.DictReader(lines) if row["dataset"] == folder}
    opened = corpus(name, speech_data / "speech" / folder)
    found = {f"{folder}/{opened.inside(file)}": opened.describe(file) for file in opened.files}
    assert set(found) == set(listed)
    for path, recording in found.items():
        row = listed[path]
        assert recording.speaker == f"{name}:{speaker_of(row['speaker'])}"
        assert recording.sex == {"m": "male", "f": "female"}[row["gender"]]
        assert recording.language == row["lang"]
        if row["emotion"] in task.labels:
            assert task.label_of(name, recording.raw_label) == (True, row["emotion"]), path
