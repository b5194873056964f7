"""Archives: the same corpus as the folder they were made of, and nothing that an archive should not do."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import stat
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import CorpusSource, DataConfig
from kubevox.data.corpora import open_corpus
from kubevox.data.corpora.archives import Limits, locate, same_as_folder, unpack
from kubevox.data.dataset import ingest
from kubevox.errors import CorpusError

RAVDESS = [f"Actor_{actor:02d}/03-01-{emotion:02d}-01-01-01-{actor:02d}.wav" for actor in (1, 2) for emotion in (1, 5)]
EMODB = ["wav/03a01Fa.wav", "wav/08a02Na.wav"]
MINE = ["angry/anna_1.wav", "sad/ben_1.wav"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBEVOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "corpora"


def make_folder(folder: Path, files: list[str]) -> Path:
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode() * 20)
    return folder


def make_zip(archive: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        for name, data in files.items():
            content.writestr(name, data)
    return archive


def make_tar(archive: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(archive, mode) as content:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1_600_000_000
            content.addfile(member, io.BytesIO(data))
    return archive


def make_archive(archive: Path, files: dict[str, bytes]) -> Path:
    if archive.suffix == ".zip":
        return make_zip(archive, files)
    mode = {".tar": "w", ".tgz": "w:gz", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[archive.suffix]
    return make_tar(archive, files, mode)


def content(folder: Path, prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{p.relative_to(folder).as_posix()}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def recordings(name: str, path: Path) -> list[tuple]:
    found = open_corpus(CorpusSource(name=name, path=str(path))).recordings()
    return [(r.source_id, r.speaker, r.raw_label, r.read()) for r in found]


# --- the same corpus


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"])
@pytest.mark.parametrize("prefix", ["", "archive/", "Some Name 1.0/", "a/b/"])
@pytest.mark.parametrize(("name", "files"), [("ravdess", RAVDESS), ("emodb", EMODB), ("folder", MINE)])
def test_a_corpus_is_the_same_as_a_folder_and_as_any_archive_of_it(tmp_path, name, files, prefix, suffix):
    folder = make_folder(tmp_path / "it", files)
    archive = make_archive(tmp_path / f"archive{suffix}", content(folder, prefix))
    expected = recordings(name, folder)
    assert len(expected) == len(files)
    assert recordings(name, archive) == expected


def test_a_dataset_is_the_same_from_a_folder_and_from_its_archives(tmp_path, write_wav):
    for number, file in enumerate(RAVDESS):
        write_wav(tmp_path / "it" / file, 1.0, frequency=200.0 + 50 * number)
    places = [tmp_path / "it"]
    for name, prefix in (("flat.zip", ""), ("deep.tar.gz", "RAVDESS speech/")):
        places.append(make_archive(tmp_path / name, content(tmp_path / "it", prefix)))
    versions = [
        ingest(DataConfig(corpora=[CorpusSource(name="ravdess", path=str(place))]), str(tmp_path / f"store{number}"))[0]
        for number, place in enumerate(places)
    ]
    assert len({version.hash for version in versions}) == 1
    assert len({version.shards for version in versions}) == 1


def test_a_folder_that_bears_the_archives_name_is_that_folder(tmp_path):
    flat = make_folder(tmp_path / "wav", [Path(file).name for file in EMODB])
    archive = make_zip(tmp_path / "wav.zip", content(flat, "wav/"))
    assert recordings("emodb", archive) == recordings("emodb", flat)


def test_a_folder_with_a_table_in_it_is_the_corpus_own(tmp_path):
    make_zip(tmp_path / "v1.zip", {"mine/list.csv": b"path,label", "mine/a_1.wav": b"x"})
    inner = locate(tmp_path / "v1.zip", "folder", "LABEL/SPEAKER_anything.wav")
    assert sorted(entry.name for entry in inner.iterdir()) == ["a_1.wav", "list.csv"]


def test_where_paths_are_not_names_nothing_is_stepped_into(tmp_path):
    make_folder(tmp_path / "da_dk" / "da_dk", ["train.tsv"])
    assert same_as_folder(tmp_path / "da_dk", "da_dk.tar.gz", None) == tmp_path / "da_dk"


def test_an_archive_is_unpacked_once(tmp_path, cache, capsys):
    archive = make_zip(tmp_path / "it.zip", dict.fromkeys(EMODB, b"x"))
    first = locate(archive, "emodb")
    times = {file: file.stat().st_ctime_ns for file in first.rglob("*")}
    assert "unpacking" in capsys.readouterr().err
    assert locate(archive, "emodb") == first
    assert {file: file.stat().st_ctime_ns for file in first.rglob("*")} == times
    assert capsys.readouterr().err == ""


def test_a_changed_archive_is_unpacked_again(tmp_path):
    archive = make_zip(tmp_path / "it.zip", dict.fromkeys(EMODB, b"x"))
    first = locate(archive, "emodb")
    make_zip(archive, dict.fromkeys([*EMODB, "wav/09a01Fa.wav"], b"x"))
    assert len(content(locate(archive, "emodb"))) == len(content(first)) + 1


def test_a_cache_that_somebody_cleaned_is_filled_again(tmp_path):
    archive = make_zip(tmp_path / "it.zip", dict.fromkeys(EMODB, b"x"))
    (locate(archive, "emodb") / EMODB[0]).unlink()
    assert (locate(archive, "emodb") / EMODB[0]).read_bytes() == b"x"


def test_unpacking_again_gives_the_same_fingerprint(tmp_path, cache):
    for suffix in (".zip", ".tar.gz"):
        archive = make_archive(tmp_path / f"it{suffix}", dict.fromkeys(EMODB, b"x"))
        prints = []
        for place in ("one", "two"):
            unpack(archive, tmp_path / place / suffix)
            prints.append(open_corpus(CorpusSource(name="emodb", path=str(tmp_path / place / suffix))).fingerprint())
        assert prints[0] == prints[1]


def test_two_that_ask_at_once_get_one_copy(tmp_path, cache):
    archive = make_zip(tmp_path / "it.zip", {f"wav/{n}.wav": b"x" * 1000 for n in range(300)})
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(locate(archive, "emodb"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(list(found[0].rglob("*.wav"))) == 300
    assert [p.name for p in cache.iterdir() if not p.name.startswith(".")] == [found[0].name]


def test_what_systems_leave_beside_files_is_passed_over(tmp_path):
    files = {"wav/a.wav": b"x", "__MACOSX/wav/._a.wav": b"x", "wav/.DS_Store": b"x", ".git/config": b"x"}
    assert unpack(make_zip(tmp_path / "it.zip", files), tmp_path / "out") == 1
    assert [p for p in content(tmp_path / "out") if not p.startswith(".")] == ["wav/a.wav"]


def test_neither_a_folder_nor_an_archive_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path / "nowhere", tmp_path / "nowhere.zip", tmp_path / "notes.txt", None):
        with pytest.raises(CorpusError, match=r"corpus emodb: .* is not a folder; name the folder .*archive \(\.zip"):
            locate(path, "emodb")


# --- what is not to be trusted


HOSTILE = [
    "/etc/evil.wav",
    "../evil.wav",
    "wav/../../evil.wav",
    "wav/..",
    "C:/evil.wav",
    "wav\\..\\evil.wav",
    "\\x.wav",
]


def refused(archive: Path, folder: Path, match: str, limits: Limits | None = None) -> None:
    before = set(folder.parent.rglob("*"))
    with pytest.raises(CorpusError, match=match) as error:
        unpack(archive, folder, "emodb", limits)
    assert str(archive) in str(error.value)
    assert "\n" not in str(error.value)
    assert set(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_member_that_would_lie_outside_the_folder_is_refused(tmp_path, name, suffix):
    archive = make_archive(tmp_path / f"it{suffix}", {"wav/a.wav": b"x", name: b"x"})
    refused(archive, tmp_path / "out" / "here", "outside the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "it.tar", "w") as archive:
        member = tarfile.TarInfo("wav/a.wav")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    refused(tmp_path / "it.tar", tmp_path / "out", "link or a device")


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        entry = zipfile.ZipInfo("wav/a.wav")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    refused(tmp_path / "it.zip", tmp_path / "out", "link or a device")


def test_a_member_that_is_in_it_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        archive.writestr("wav/a.wav", "x")
        archive.filelist.append(archive.filelist[0])
    refused(tmp_path / "it.zip", tmp_path / "out", "in it twice")
    make_tar(tmp_path / "it.tar", {"a": b"x", "a/b.wav": b"x"}, "w")
    refused(tmp_path / "it.tar", tmp_path / "out", "in it twice")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.xz", ".tar.bz2"])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, suffix):
    archive = make_archive(tmp_path / f"it{suffix}", {"wav/a.wav": b"\0" * 3_000_000})
    refused(archive, tmp_path / "out", "MB or more where", Limits(ratio=50.0, ratio_from=1_000_000))
    refused(archive, tmp_path / "out", "MB or more where", Limits(bytes=2_000_000))
    assert unpack(archive, tmp_path / "out") == 1


def test_a_gzip_bomb_behind_the_last_member_is_refused(tmp_path):
    plain = make_tar(tmp_path / "it.tar", {"wav/a.wav": b"x"}, "w").read_bytes()
    (tmp_path / "it.tar.gz").write_bytes(gzip.compress(plain + b"\0" * 5_000_000))
    refused(tmp_path / "it.tar.gz", tmp_path / "out", "MB or more where", Limits(bytes=2_000_000))


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_too_many_members_are_refused(tmp_path, suffix):
    archive = make_archive(tmp_path / f"it{suffix}", {f"{n}.wav": b"" for n in range(11)})
    refused(archive, tmp_path / "out", "more than 10 files", Limits(files=10))
    assert unpack(archive, tmp_path / "out", limits=Limits(files=11)) == 11


def test_an_encrypted_zip_says_so(tmp_path):
    data = bytearray(make_zip(tmp_path / "it.zip", {"a.wav": b"x"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the general-purpose flag of the central directory's entry
    (tmp_path / "it.zip").write_bytes(data)
    refused(tmp_path / "it.zip", tmp_path / "out", "encrypted")


def test_an_empty_archive_and_no_archive_say_so(tmp_path):
    refused(make_zip(tmp_path / "it.zip", {}), tmp_path / "out", "no file in it")
    (tmp_path / "page.zip").write_text("<html>not found</html>")
    refused(tmp_path / "page.zip", tmp_path / "out", "neither a zip nor a tar")


def test_a_disk_that_is_full_is_one_line(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "it.zip", {"a.wav": b"x" * 100})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "utime", full)
    refused(archive, tmp_path / "out", "no space left on the disk")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One corpus in every kind of archive, each with its files' bytes."""
    folder = tmp_path_factory.mktemp("whole")
    files = {f"wav/{n}é.wav": bytes(range(256)) * (n + 1) for n in range(4)} | {"wav/empty.wav": b""}
    return files, {
        suffix: make_archive(folder / f"it{suffix}", files).read_bytes()
        for suffix in (".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz")
    }


@settings(max_examples=150)
@given(suffix=st.sampled_from([".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"]), share=st.floats(0.0, 0.999))
def test_an_archive_that_was_cut_is_never_taken_for_whole(whole, tmp_path_factory, suffix, share):
    files, archives = whole
    folder = tmp_path_factory.mktemp("cut")
    (folder / f"it{suffix}").write_bytes(archives[suffix][: int(share * len(archives[suffix]))])
    try:
        unpack(folder / f"it{suffix}", folder / "out")
    except CorpusError:
        assert not (folder / "out").exists()
    else:  # nothing but padding was cut
        assert {k: v for k, v in content(folder / "out").items() if not k.startswith(".")} == files


@settings(max_examples=150)
@given(suffix=st.sampled_from([".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"]), data=st.data())
def test_a_damaged_archive_never_crashes_and_leaves_nothing(whole, tmp_path_factory, suffix, data):
    folder = tmp_path_factory.mktemp("damaged")
    damaged = bytearray(whole[1][suffix])
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=8)):
        damaged[place] = data.draw(st.integers(0, 255))
    (folder / f"it{suffix}").write_bytes(damaged)
    try:
        unpack(folder / f"it{suffix}", folder / "deep" / "out")
    except CorpusError:
        assert content(folder / "deep") == {}
    # Wherever a name was changed to, nothing lies outside.
    assert {entry.name for entry in folder.iterdir()} <= {f"it{suffix}", "deep"}


def test_bytes_that_bzip2_cannot_read_are_damage(tmp_path):
    packed = bytearray(bz2.compress(make_tar(tmp_path / "it.tar", {"a.wav": b"x" * 5000}, "w").read_bytes()))
    packed[10:14] = b"\xff" * 4
    (tmp_path / "it.tar.bz2").write_bytes(packed)
    refused(tmp_path / "it.tar.bz2", tmp_path / "out", "fetch the archive again")
