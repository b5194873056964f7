"""Common Voice, FLEURS and Ravnursson, in their published layouts."""

from __future__ import annotations

import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kubevox.data.corpora.archives import unpack
from kubevox.data.corpora.base import Corpus, Recording
from kubevox.data.corpora.commonvoice import CommonVoice
from kubevox.data.corpora.fleurs import Fleurs
from kubevox.data.corpora.ravnursson import Ravnursson
from kubevox.errors import CorpusError

_FIRST = ["client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender"]
_LAST = ["client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes", "age", "gender"]
RELEASES = {
    "4.0": [*_FIRST, "accent"],
    "7.0": [*_FIRST, "accent", "locale", "segment"],
    "11.0": [*_FIRST, "accents", "locale", "segment"],
    "17.0": [*_LAST, "accents", "variant", "locale", "segment"],
}


def opened(kind: type[Corpus], folder: Path, **options: Any) -> Corpus:
    return kind(str(folder), kind.Options(**options))


def listed(kind: type[Corpus], folder: Path, **options: Any) -> dict[str, Recording]:
    corpus = opened(kind, folder, **options)
    found = list(corpus.recordings())
    assert len(corpus) == len(found)
    assert [r.source_id for r in found] == sorted({r.source_id for r in found})
    return {recording.source_id: recording for recording in found}


def write_table(path: Path, columns: list[str], rows: list[dict[str, str]], header: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(columns)] if header else []
    lines += ["\t".join(row.get(column, "") for column in columns) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# --- Common Voice


def clip(locale: str, number: int, speaker: str = "ab12", **fields: str) -> dict[str, str]:
    path = f"common_voice_{locale}_{number}.mp3"
    return {"client_id": speaker, "path": path, "sentence": f"Sætning {number}", "locale": locale, **fields}


def write_release(folder: Path, tables: dict[str, list[dict[str, str]]], columns: list[str] = RELEASES["17.0"]) -> Path:
    for name, rows in tables.items():
        write_table(folder / f"{name}.tsv", columns, rows)
        for row in rows:
            file = folder / "clips" / row["path"]
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(row["path"].encode())
    return folder


@pytest.mark.parametrize("columns", RELEASES.values(), ids=RELEASES)
def test_commonvoice_reads_any_release_whatever_its_columns(tmp_path, columns):
    rows = [clip("nn-NO", 1, "ab12", gender="female_feminine"), clip("nn-NO", 2, "cd34", gender="male")]
    write_release(tmp_path / "cv-corpus-17.0-2024-03-15" / "nn-NO", {"validated": rows}, columns)
    first, second = listed(CommonVoice, tmp_path / "cv-corpus-17.0-2024-03-15").values()
    assert first.source_id == "commonvoice:nn-NO/clips/common_voice_nn-NO_1.mp3"
    assert (first.speaker, second.speaker) == ("commonvoice:ab12", "commonvoice:cd34")
    assert (first.language, first.text, first.raw_label) == ("nn", "Sætning 1", None)
    assert (first.sex, second.sex) == ("female", "male")
    assert first.read() == b"common_voice_nn-NO_1.mp3"


@pytest.mark.parametrize(
    ("gender", "sex"),
    [
        ("male", "male"),
        ("female", "female"),
        ("male_masculine", "male"),
        ("female_feminine", "female"),
        ("other", None),
        ("non-binary", None),
        ("do_not_wish_to_say", None),
        ("", None),
    ],
)
def test_commonvoice_sexes_are_known_under_the_words_of_all_releases(tmp_path, gender, sex):
    write_release(tmp_path / "da", {"validated": [clip("da", 1, gender=gender)]})
    [recording] = listed(CommonVoice, tmp_path).values()
    assert recording.sex == sex


def test_commonvoice_is_the_same_seen_from_a_locale_a_release_or_a_folder_of_releases(tmp_path):
    release = tmp_path / "cv" / "cv-corpus-17.0-2024-03-15"
    write_release(release / "da", {"validated": [clip("da", 1), clip("da", 2)]})
    from_locale = listed(CommonVoice, release / "da")
    assert list(from_locale) == list(listed(CommonVoice, release)) == list(listed(CommonVoice, tmp_path / "cv"))
    renamed = Path(shutil.copytree(release / "da", tmp_path / "danish"))
    assert list(listed(CommonVoice, renamed)) == list(from_locale)


def test_commonvoice_takes_the_wanted_locales_of_a_release(tmp_path):
    for locale in ("da", "is", "nn-NO", "sv-SE"):
        write_release(tmp_path / locale, {"validated": [clip(locale, 1)]})
    assert {r.language for r in listed(CommonVoice, tmp_path).values()} == {"da", "is", "nn", "sv"}
    assert {r.language for r in listed(CommonVoice, tmp_path, locales=["sv-SE", "is"]).values()} == {"is", "sv"}
    with pytest.raises(CorpusError, match=r"no locale 'fo' under .*; there are da, is, nn-NO, sv-SE"):
        listed(CommonVoice, tmp_path, locales=["da", "fo"])


def test_commonvoice_takes_one_release_of_a_locale_at_a_time(tmp_path):
    for release in ("cv-corpus-16.1-2023-12-06", "cv-corpus-17.0-2024-03-15"):
        write_release(tmp_path / release / "da", {"validated": [clip("da", 1)]})
    with pytest.raises(CorpusError, match=r"locale 'da' is in .*16\.1.* and in .*17\.0.*; name one release"):
        listed(CommonVoice, tmp_path)


def test_commonvoice_clips_carry_the_published_partitions(tmp_path):
    clips = [clip("da", number, f"s{number}") for number in range(5)]
    tables = {"validated": clips, "train": clips[:2], "dev": clips[2:3], "test": clips[3:4], "other": [clip("da", 9)]}
    write_release(tmp_path / "da", tables)
    parts = [recording.partition for recording in listed(CommonVoice, tmp_path).values()]
    assert parts == ["train", "train", "validation", "test", None]
    split = listed(CommonVoice, tmp_path, subset="splits")
    assert [recording.partition for recording in split.values()] == ["train", "train", "validation", "test"]


def test_commonvoice_without_published_partitions_names_the_other_subset(tmp_path):
    write_release(tmp_path / "da", {"validated": [clip("da", 1)]})
    with pytest.raises(CorpusError, match=r"da has none of train\.tsv.*set `subset` to validated"):
        listed(CommonVoice, tmp_path, subset="splits")


def test_commonvoice_quotes_and_odd_line_ends_are_part_of_the_sentence(tmp_path):
    sentences = ['"Hvad nu?" spurgte han', 'et " alene', "før\u2028efter\x85slut"]
    rows = [clip("da", number, sentence=sentence) for number, sentence in enumerate(sentences)]
    write_release(tmp_path / "da", {"validated": rows})
    assert [r.text for r in listed(CommonVoice, tmp_path).values()] == sentences


def test_commonvoice_lists_a_clip_that_is_missing_and_fails_to_read_it(tmp_path):
    write_release(tmp_path / "da", {"validated": [clip("da", 1), clip("da", 2)]})
    (tmp_path / "da" / "clips" / "common_voice_da_1.mp3").unlink()
    missing, there = listed(CommonVoice, tmp_path).values()
    assert there.read()
    with pytest.raises(OSError, match="No such file"):
        missing.read()


def test_commonvoice_first_releases_name_no_suffix(tmp_path):
    write_table(tmp_path / "da" / "validated.tsv", RELEASES["4.0"], [{"client_id": "a", "path": "0f1e2d"}])
    (tmp_path / "da" / "clips").mkdir()
    assert list(listed(CommonVoice, tmp_path)) == ["commonvoice:da/clips/0f1e2d.mp3"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["ab12\t\tSætning"], r"validated\.tsv, line 2: nothing under 'path'"),
        (["ab12\ta.mp3\tEt", "\ta.mp3\tTo"], r"validated\.tsv, line 3: nothing under 'client_id'"),
        (["ab12\t../../secret.mp3\tEt"], r"validated\.tsv, line 2: '\.\./\.\./secret\.mp3' is not the name of a file"),
        (["ab12\ta\0.mp3\tEt"], r"validated\.tsv, line 2: a zero byte"),
        (["ab12\ta.mp3\tEt", "ab12\ta.mp3\tTo"], r"a\.mp3 is listed twice"),
        ([], r"list no recordings"),
    ],
)
def test_commonvoice_rows_not_as_published_are_named(tmp_path, rows, message):
    (tmp_path / "da" / "clips").mkdir(parents=True)
    (tmp_path / "da" / "validated.tsv").write_text("\n".join(["client_id\tpath\tsentence", *rows]), encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        listed(CommonVoice, tmp_path)


def test_commonvoice_a_clip_in_two_partitions_is_named(tmp_path):
    write_release(tmp_path / "da", {"validated": [clip("da", 1)], "train": [clip("da", 1)], "test": [clip("da", 1)]})
    with pytest.raises(CorpusError, match=r"test\.tsv, line 2: common_voice_da_1\.mp3 is in train already"):
        listed(CommonVoice, tmp_path)


def test_commonvoice_half_unpacked_or_elsewhere_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"no tables under .*expected LOCALE/validated\.tsv"):
        listed(CommonVoice, tmp_path)
    write_table(tmp_path / "da" / "validated.tsv", RELEASES["17.0"], [clip("da", 1)])
    with pytest.raises(CorpusError, match=r"clips is not there; unpack the whole archive of 'da'"):
        listed(CommonVoice, tmp_path)
    (tmp_path / "da" / "clips").mkdir()
    (tmp_path / "da" / "validated.tsv").write_bytes("client_id\tpath\nå\tb.mp3\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"validated\.tsv is not UTF-8"):
        listed(CommonVoice, tmp_path)
    (tmp_path / "da" / "validated.tsv").write_text("client_id\tfile\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"validated\.tsv has no column 'path'; it has client_id, file"):
        listed(CommonVoice, tmp_path)


# --- FLEURS

FLEURS_COLUMNS = ["id", "file_name", "raw_transcription", "transcription", "characters", "num_samples", "gender"]


def write_fleurs(folder: Path, **splits: list[tuple[str, str]]) -> Path:
    """``write_fleurs(folder, train=[(file, gender), …])``."""
    for split, files in splits.items():
        rows = [
            {"id": "17", "file_name": name, "raw_transcription": 'Han sa: "Nei."', "gender": gender}
            for name, gender in files
        ]
        write_table(folder / f"{split}.tsv", FLEURS_COLUMNS, rows, header=False)
        for name, _ in files:
            file = folder / "audio" / split / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(name.encode())
    return folder


def test_fleurs_keeps_partitions_and_knows_no_speakers(tmp_path):
    write_fleurs(
        tmp_path / "nb_no",
        train=[("1.wav", "FEMALE"), ("2.wav", "OTHER")],
        dev=[("1.wav", "MALE")],
        test=[("3.wav", "MALE")],
    )
    found = listed(Fleurs, tmp_path)
    assert [(name, r.partition, r.sex) for name, r in found.items()] == [
        ("fleurs:nb_no/audio/dev/1.wav", "validation", "male"),
        ("fleurs:nb_no/audio/test/3.wav", "test", "male"),
        ("fleurs:nb_no/audio/train/1.wav", "train", "female"),
        ("fleurs:nb_no/audio/train/2.wav", "train", None),
    ]
    for recording in found.values():
        assert recording.speaker is None
        assert (recording.language, recording.text) == ("nb", 'Han sa: "Nei."')
        assert recording.read() == recording.source_id.rpartition("/")[2].encode()


def test_fleurs_is_the_same_as_its_archive_or_as_hugging_face_lays_it_out(tmp_path):
    for locale in ("da_dk", "is_is"):
        write_fleurs(tmp_path / "data" / locale, train=[("1.wav", "MALE")], test=[("2.wav", "MALE")])
    everything = listed(Fleurs, tmp_path)
    assert list(everything) == list(listed(Fleurs, tmp_path / "data"))
    danish = [name for name, recording in everything.items() if recording.language == "da"]
    assert list(listed(Fleurs, tmp_path / "data" / "da_dk")) == danish
    assert list(listed(Fleurs, tmp_path, locales=["da_dk"])) == danish
    with pytest.raises(CorpusError, match=r"no locale 'sv_se' under .*; there are da_dk, is_is"):
        listed(Fleurs, tmp_path, locales=["sv_se"])


def test_fleurs_downloads_what_the_options_want():
    plain = opened(Fleurs, Path("anywhere"), locales=["is_is"])
    assert [(file.url, file.into) for file in plain.downloads] == [
        ("https://storage.googleapis.com/xtreme_translations/FLEURS102/is_is.tar.gz", ".")
    ]
    restored = opened(Fleurs, Path("anywhere"), locales=["is_is"], restored=True)
    assert {(file.url.partition("/data/")[2], file.into) for file in restored.downloads} == {
        *((f"is_is/{split}.tsv", "is_is") for split in ("train", "dev", "test")),
        *((f"is_is/audio/{split}.tar.gz", "is_is/audio") for split in ("train", "dev", "test")),
    }
    assert len({file.name for file in opened(Fleurs, Path("anywhere")).downloads}) == 4


@pytest.mark.parametrize("restored", [False, True])
def test_fleurs_archives_unpack_to_where_they_are_read(tmp_path, restored):
    source = write_fleurs(tmp_path / "source" / "is_is", train=[("1.wav", "MALE")], test=[("2.wav", "FEMALE")])
    wanted = opened(Fleurs, tmp_path / "corpus", locales=["is_is"], restored=restored)
    for item in wanted.downloads:
        into = tmp_path / "corpus" / item.into
        into.mkdir(parents=True, exist_ok=True)
        split = item.url.rpartition("/")[2].partition(".")[0]
        if item.name.endswith(".tsv"):
            if (source / item.name).is_file():
                shutil.copy(source / item.name, into)
        elif not restored or (source / "audio" / split).is_dir():
            # As published: a language's folder, or a folder of one split's audio.
            packed, name = (source / "audio", split) if restored else (source.parent, "is_is")
            archive = tmp_path / item.name
            with tarfile.open(archive, "w:gz") as file:
                file.add(packed / name, name)
            unpacked = tmp_path / f"{item.name}.unpacked"
            unpack(archive, unpacked)
            shutil.copytree(unpacked, into, dirs_exist_ok=True)
    assert [r.read() for r in listed(Fleurs, tmp_path / "corpus").values()] == [b"2.wav", b"1.wav"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("17\t1.wav\tEn linje som er kuttet", r"train\.tsv, line 1: nothing under 'gender'"),
        ("17\t../1.wav\ta\ta\ta\t1\tMALE", r"train\.tsv, line 1: '\.\./1\.wav' is not the name of a file"),
        ("17\t1.wav\ta\ta\ta\t1\tMALE\n18\t1.wav\ta\ta\ta\t1\tMALE", r"audio/train/1\.wav is listed twice"),
    ],
)
def test_fleurs_rows_not_as_published_are_named(tmp_path, line, message):
    (tmp_path / "nb_no" / "audio" / "train").mkdir(parents=True)
    (tmp_path / "nb_no" / "train.tsv").write_text(line, encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        listed(Fleurs, tmp_path)


def test_fleurs_audio_still_packed_is_named(tmp_path):
    write_fleurs(tmp_path / "da_dk", train=[("1.wav", "MALE")])
    shutil.rmtree(tmp_path / "da_dk" / "audio" / "train")
    (tmp_path / "da_dk" / "audio" / "train.tar.gz").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"audio/train is not there.*unpack the archive there"):
        listed(Fleurs, tmp_path)


def test_fleurs_does_not_take_another_corpus_for_itself(tmp_path):
    write_release(tmp_path / "da", {"train": [clip("da", 1)]})
    with pytest.raises(CorpusError, match=r"no tables under .*expected LOCALE/train\.tsv"):
        listed(Fleurs, tmp_path)


# --- Ravnursson

RAVNURSSON_ROWS = [
    ("KAM06_151121_0101", "KAM06_151121", "female", "hon segði tað", "test"),
    ("MEY01_100221_rok02_0022", "MEY01_100221_rok02", "male", "hann kom aftur", "dev"),
    ("MSY03_160519_set1_0008", "MSY03_160519_set1", "male", "tað hendi meir enn so", "train"),
    ("MSY03_160519_set2_0001", "MSY03_160519_set2", "", "tarvurin er ikki villur", "train"),
]


def write_ravnursson(folder: Path) -> Path:
    """As CLARIN-IS publishes it."""
    columns = ["id", "speaker_id", "gender", "sentence_norm", "status"]
    write_table(folder / "metadata.tsv", columns, [dict(zip(columns, row, strict=True)) for row in RAVNURSSON_ROWS])
    for name, speaker, _, _, status in RAVNURSSON_ROWS:
        file = folder / "speech" / status / speaker / f"{name}.flac"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return folder


def write_ravnursson_of_hugging_face(folder: Path) -> Path:
    columns = ["audio_id", "speaker_id", "gender", "age", "duration", "normalized_text", "dialect"]
    for status in ("train", "dev", "test"):
        rows = [
            {"audio_id": name, "speaker_id": speaker, "gender": gender, "normalized_text": text}
            for name, speaker, gender, text, part in RAVNURSSON_ROWS
            if part == status
        ]
        write_table(folder / "corpus" / "files" / f"metadata_{status}.tsv", columns, rows)
        for row in rows:
            file = folder / "corpus" / "speech" / status / f"{row['audio_id']}.flac"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(row["audio_id"].encode())
    return folder


@pytest.mark.parametrize("write", [write_ravnursson, write_ravnursson_of_hugging_face])
@pytest.mark.parametrize("below", ["", "RAVNURSSON"])
def test_ravnursson_is_the_same_from_either_publisher(tmp_path, write, below):
    write(tmp_path / below if write is write_ravnursson else tmp_path)
    found = listed(Ravnursson, tmp_path)
    assert [(r.source_id, r.speaker, r.sex, r.partition) for r in found.values()] == [
        ("ravnursson:KAM06_151121_0101.flac", "ravnursson:KAM06", "female", "test"),
        ("ravnursson:MEY01_100221_rok02_0022.flac", "ravnursson:MEY01", "male", "validation"),
        ("ravnursson:MSY03_160519_set1_0008.flac", "ravnursson:MSY03", "male", "train"),
        ("ravnursson:MSY03_160519_set2_0001.flac", "ravnursson:MSY03", "male", "train"),
    ]
    for recording, row in zip(found.values(), RAVNURSSON_ROWS, strict=True):
        assert (recording.language, recording.text, recording.raw_label) == ("fo", row[3], None)
        assert recording.read() == row[0].encode()


def test_ravnursson_lists_a_recording_that_is_missing_and_fails_to_read_it(tmp_path):
    write_ravnursson(tmp_path)
    next(tmp_path.rglob("KAM06*.flac")).unlink()
    missing = listed(Ravnursson, tmp_path)["ravnursson:KAM06_151121_0101.flac"]
    with pytest.raises(OSError, match="No such file"):
        missing.read()


def test_ravnursson_knows_how_many_recordings_are_published():
    assert Ravnursson.published is not None
    assert Ravnursson.published.recordings == 65_616 + 3_331 + 3_002


def test_ravnursson_not_as_published_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"no metadata under .*expected metadata\.tsv"):
        listed(Ravnursson, tmp_path)
    (tmp_path / "train-00000-of-00023.parquet").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"Parquet files, which are not read; fetch https://.*RAVNURSSON\.zip"):
        listed(Ravnursson, tmp_path)
    write_ravnursson(tmp_path)
    table = tmp_path / "metadata.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("\tdev", "\tdevelopment"), encoding="utf-8")
    with pytest.raises(CorpusError, match=r"metadata\.tsv, line 3: unknown status 'development'"):
        listed(Ravnursson, tmp_path)
    table.write_text("id\tspeaker_id\tgender\tsentence_norm\tstatus\n../a_1\ta\tmale\tx\ttrain\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"line 2: '\.\./a_1' is not the name of a file"):
        listed(Ravnursson, tmp_path)
    shutil.rmtree(tmp_path / "speech")
    with pytest.raises(CorpusError, match=r"speech is not there; unpack the whole archive"):
        listed(Ravnursson, tmp_path)
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "dev.tar.gz").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"no recordings under .*speech; unpack the archives there"):
        listed(Ravnursson, tmp_path)


# --- all three


WRITERS = {
    CommonVoice: lambda folder: write_release(folder / "da", {"validated": [clip("da", 1)], "train": [clip("da", 1)]}),
    Fleurs: lambda folder: write_fleurs(folder / "da_dk", train=[("1.wav", "MALE")]),
    Ravnursson: write_ravnursson,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_fingerprint_changes_with_a_table_or_a_recording_and_with_nothing_else(tmp_path, kind):
    here = tmp_path / "here"
    WRITERS[kind](here)
    seen = [opened(kind, here).fingerprint()]
    moved = Path(shutil.copytree(here, tmp_path / "moved"))
    assert opened(kind, moved).fingerprint() == seen[0]
    recording = next(file for file in here.rglob("*") if file.suffix in (".mp3", ".wav", ".flac"))
    recording.write_bytes(b"another recording altogether")
    seen.append(opened(kind, here).fingerprint())
    recording.unlink()
    seen.append(opened(kind, here).fingerprint())
    table = next(here.rglob("*.tsv"))
    table.write_text(table.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    seen.append(opened(kind, here).fingerprint())
    assert max(Counter(map(str, seen)).values()) == 1


@pytest.mark.parametrize("kind", WRITERS)
def test_a_missing_folder_is_named(tmp_path, kind):
    with pytest.raises(CorpusError, match=r"nowhere is not a folder"):
        len(opened(kind, tmp_path / "nowhere"))


@pytest.mark.parametrize("kind", WRITERS)
def test_the_corpus_describes_itself(kind):
    assert kind.name
    assert kind.licence.startswith(("CC0", "CC BY"))
    assert kind.homepage.startswith("http")
    assert kind.access
    assert kind.languages
    assert bool(kind.downloads) is (kind is not CommonVoice)
