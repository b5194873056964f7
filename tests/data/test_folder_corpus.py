"""A folder of one's own with a CSV: what its rows mean, and what is said of those that mean nothing."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubevox.data.corpora.base import Recording
from kubevox.data.corpora.folder import Folder
from kubevox.errors import CorpusError


def opened(folder: Path, **options: Any) -> Folder:
    return Folder(str(folder), Folder.Options(**{"csv": "recordings.csv", **options}))


def write(folder: Path, text: str, *files: str, encoding: str = "utf-8") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "recordings.csv").write_text(text, encoding=encoding)
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(file.encode())
    return folder


def listed(folder: Path, text: str, *files: str, **options: Any) -> list[Recording]:
    corpus = opened(write(folder, text, *files), **options)
    found = list(corpus.recordings())
    assert len(corpus) == len(found)
    return found


def test_a_row_says_all_that_is_known_of_a_recording(tmp_path):
    text = (
        "path,label,speaker,sex,intensity,language,text,partition\n"
        'a/1.wav,angry,anna,female,strong,da,"Nej, tak",test\n'
        "2.flac,sad,,,,,,\n"
    )
    plain, full = listed(tmp_path, text, "a/1.wav", "2.flac")
    assert full.source_id == "folder:a/1.wav"
    assert (full.speaker, full.sex, full.partition) == ("folder:anna", "female", "test")
    assert (full.raw_label, full.intensity, full.language, full.text) == ("angry", "strong", "da", "Nej, tak")
    assert (plain.source_id, plain.raw_label) == ("folder:2.flac", "sad")
    unknown = (plain.speaker, plain.sex, plain.intensity, plain.language, plain.text, plain.partition, plain.corpus)
    assert unknown == (None,) * 7
    assert full.read() == b"a/1.wav"


def test_recordings_of_several_corpora_keep_their_speakers(tmp_path):
    text = (
        "path,raw_label,speaker,corpus\n"
        "1.wav,calm,12,ravdess\n2.wav,anger,12,emodb\n3.wav,sad,12,\n4.wav,sad,ravdess:12,ravdess\n"
    )
    found = {r.source_id: (r.speaker, r.corpus) for r in listed(tmp_path, text)}
    assert found == {
        "ravdess:1.wav": ("ravdess:12", "ravdess"),
        "emodb:2.wav": ("emodb:12", "emodb"),
        "folder:3.wav": ("folder:12", None),
        "ravdess:4.wav": ("ravdess:12", "ravdess"),
    }


@pytest.mark.parametrize("text", ["path,label\n1.wav,fo\n", "path,language\n1.wav,fo\n"])
def test_a_list_of_languages_names_them_by_either_column(tmp_path, text):
    [recording] = listed(tmp_path, text, label_is="language")
    assert (recording.raw_label, recording.language) == (None, "fo")


def test_a_list_of_languages_may_hold_labels_too(tmp_path):
    [recording] = listed(tmp_path, "path,language,raw_label\n1.wav,fo,calm\n", label_is="language")
    assert (recording.raw_label, recording.language) == ("calm", "fo")


def test_rows_without_a_language_have_that_of_the_options(tmp_path):
    found = listed(tmp_path, "path,label,language\n1.wav,sad,\n2.wav,sad,is\n", language="da")
    assert [r.language for r in found] == ["da", "is"]


def test_names_without_a_speaker_column_are_not_searched_for_speakers(tmp_path):
    [recording] = listed(tmp_path, "path,label\nsad/anna_1.wav,sad\n")
    assert recording.speaker is None


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lists_from_spreadsheets_are_read(tmp_path, delimiter, ending, encoding):
    rows = ["Path , Label,notes", "ø.wav,vred,x", ",,", "", "2.wav,sad,"]
    write(tmp_path, ending.join(rows).replace(",", delimiter), encoding=encoding)
    assert [(r.source_id, r.raw_label) for r in opened(tmp_path).recordings()] == [
        ("folder:2.wav", "sad"),
        ("folder:ø.wav", "vred"),
    ]


def test_the_list_may_lie_elsewhere(tmp_path):
    folder, elsewhere = tmp_path / "clips", tmp_path / "lists"
    write(folder, "", "1.wav")
    write(elsewhere, "path,label\n1.wav,sad\n")
    [recording] = opened(folder, csv=str(elsewhere / "recordings.csv")).recordings()
    assert recording.read() == b"1.wav"


def test_a_listed_file_that_is_missing_is_listed_and_fails_when_read(tmp_path):
    here, gone, nowhere = listed(tmp_path, "path,label\nb.wav,sad\na.wav,sad\nx/c.wav,sad\n", "a.wav")
    assert here.read() == b"a.wav"
    for missing in (gone, nowhere):
        with pytest.raises(OSError, match="No such file"):
            missing.read()


def test_audio_that_the_list_does_not_name_is_told(tmp_path):
    write(
        tmp_path, "path,label\na/1.wav,sad\nb/9.wav,sad\n", "a/1.wav", "a/2.wav", "3.mp3", "notes.txt", ".trash/4.wav"
    )
    assert opened(tmp_path).passed_over() == {".mp3": 1, ".txt": 1, ".wav": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is empty; expected a header with path and label"),
        ("path,label\n", r"has no rows"),
        ("file,label\n1.wav,sad\n", r"line 1: no column 'path'; found are file, label"),
        ("path,speaker\n1.wav,anna\n", r"line 1: no column 'label' or 'raw_label'; found are path, speaker"),
        ("path,label,speeker\n1.wav,sad,anna\n", r"line 1: unknown column 'speeker'; did you mean 'speaker'\?"),
        ("path,label,label\n1.wav,sad,sad\n", r"line 1: two columns are called 'label'"),
        ("path,label,raw_label\n1.wav,sad,sad\n", r"line 1: 'label' and 'raw_label' are the same here"),
        ("path,label\n1.wav,sad\n2.wav\n", r"line 3: 1 fields, where the header has 2"),
        ("path,label\n1.wav,sad,anna\n", r"line 2: 3 fields, where the header has 2"),
        ("path,label\n1.wav,sad\n2.wav,\n", r"line 3: no label"),
        ("path,label\n,sad\n", r"line 2: '' is no path"),
        ("path,label,sex\n1.wav,sad,woman\n", r"line 2: unknown sex 'woman'; expected female, male or nothing"),
        ("path,label,partition\n1.wav,sad,dev\n", r"line 2: unknown partition 'dev'; expected train, validation, test"),
        ("path,label,corpus\n1.wav,sad,RAV DESS\n", r"line 2: corpus 'RAV DESS' is no corpus' name"),
        ("path,label\n1.wav,sad\n2.wav,sad\n./1.wav,sad\n", r"line 4: 1\.wav is in line 2 already"),
        ('path,label,text\n1.wav,sad,"two\nlines"\n2.wav,,x\n', r"line 4: no label"),
        ('path,label\n1.wav,sad\n2.wav,"sad"x\n', r"line 3: not a row of a CSV"),
        ('path,label\n1.wav,sad\n2.wav,"sad\n', r"line 3: not a row of a CSV"),
    ],
)
def test_a_list_that_cannot_be_used_is_named_with_the_line(tmp_path, text, message):
    with pytest.raises(CorpusError, match=rf"recordings\.csv.*{message}"):
        listed(tmp_path, text)


def test_a_list_of_languages_needs_a_language_in_each_row(tmp_path):
    with pytest.raises(CorpusError, match=r"line 3: no language"):
        listed(tmp_path, "path,language\n1.wav,fo\n2.wav,\n", label_is="language")
    with pytest.raises(CorpusError, match=r"line 1: no column 'label' or 'language'"):
        listed(tmp_path, "path,raw_label\n1.wav,sad\n", label_is="language")


def test_a_list_in_another_encoding_is_named_with_the_line(tmp_path):
    write(tmp_path, "path,label\n1.wav,sad\n2.wav,trött\n", encoding="latin-1")
    with pytest.raises(CorpusError, match=r"recordings\.csv, line 3: not UTF-8"):
        list(opened(tmp_path).recordings())


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"the list .*recordings\.csv cannot be read .*option `csv`"):
        list(opened(tmp_path).recordings())


@pytest.mark.parametrize(
    "path", ["../1.wav", "a/../../1.wav", "/etc/passwd", "a/..", "C:\\clips\\1.wav", "\\\\host\\1.wav", "a\0.wav"]
)
def test_a_path_outside_the_folder_is_refused_with_the_line(tmp_path, path):
    with pytest.raises(CorpusError, match=r"line 3: .* (leads outside the folder|is no path)"):
        listed(tmp_path / "clips", f"path,label\n1.wav,sad\n{path},sad\n")


def test_a_link_out_of_the_folder_is_refused_and_one_inside_it_is_not(tmp_path):
    folder = write(tmp_path / "clips", "", "a/1.wav", "2.wav")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "1.wav").write_bytes(b"secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "a" / "out.wav").symlink_to(tmp_path / "secret" / "1.wav")
    (folder / "a" / "in.wav").symlink_to(folder / "2.wav")
    (folder / "in").symlink_to(folder / "a")
    for path in ("out/1.wav", "a/out.wav", "in/out.wav"):
        with pytest.raises(CorpusError, match=rf"line 2: '{path}' leads outside the folder over a link"):
            listed(folder, f"path,label\n{path},sad\n")
    assert [r.read() for r in listed(folder, "path,label\na/in.wav,sad\nin/1.wav,sad\n")] == [b"2.wav", b"a/1.wav"]


def test_a_link_to_itself_is_listed_and_fails_when_read(tmp_path):
    (tmp_path / "1.wav").symlink_to(tmp_path / "1.wav")
    [recording] = listed(tmp_path, "path,label\n1.wav,sad\n")
    with pytest.raises(OSError, match="symbolic links"):
        recording.read()


def test_a_folder_that_is_itself_a_link_holds_its_recordings(tmp_path):
    write(tmp_path / "clips", "path,label\n1.wav,sad\n", "1.wav")
    (tmp_path / "link").symlink_to(tmp_path / "clips")
    [recording] = opened(tmp_path / "link").recordings()
    assert recording.read() == b"1.wav"


def test_the_fingerprint_changes_with_the_list_and_with_a_listed_file(tmp_path):
    write(tmp_path, "path,label\n1.wav,sad\n2.wav,sad\n", "1.wav")
    seen = [opened(tmp_path).fingerprint()]
    assert opened(tmp_path).fingerprint() == seen[0]
    (tmp_path / "2.wav").write_bytes(b"now it is there")
    seen.append(opened(tmp_path).fingerprint())
    (tmp_path / "1.wav").write_bytes(b"another recording altogether")
    seen.append(opened(tmp_path).fingerprint())
    write(tmp_path, "path,label\n1.wav,sad\n2.wav,angry\n")
    seen.append(opened(tmp_path).fingerprint())
    assert len(set(map(str, seen))) == 4


_NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\:"), min_size=1, max_size=8
).filter(lambda name: name == name.strip() and name.strip("."))


_TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


@given(rows=st.dictionaries(_NAMES, st.tuples(_NAMES, _NAMES, _TEXTS), min_size=1, max_size=6))
def test_whatever_a_csv_writer_writes_comes_back(rows, tmp_path_factory):
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["path", "label", "speaker", "text"])
    writer.writerows([path, *row] for path, row in rows.items())
    folder = tmp_path_factory.mktemp("list")
    (folder / "recordings.csv").write_bytes(buffer.getvalue().encode())
    found = {r.source_id.removeprefix("folder:"): (r.raw_label, r.speaker, r.text) for r in opened(folder).recordings()}
    assert found == {
        path: (label, f"folder:{speaker}", text.strip() or None) for path, (label, speaker, text) in rows.items()
    }
