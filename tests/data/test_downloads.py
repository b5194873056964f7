"""Downloads from a real server on loopback, which cuts, forgets, lies and comes back."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import ssl
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubevox.config import CorpusSource
from kubevox.data.corpora import corpus_class, corpus_names, downloads, open_corpus
from kubevox.data.corpora.base import Download
from kubevox.data.corpora.downloads import Patience, default_folder, download_corpus, fetch, provide
from kubevox.data.corpora.emodb import EmoDb
from kubevox.data.corpora.fleurs import Fleurs
from kubevox.data.corpora.savee import Savee
from kubevox.errors import ConfigError, CorpusError

CONTENT = bytes(range(256)) * 4000  # 1 MB


@dataclass
class File:
    """What the server has under a path, and what goes wrong with the next requests for it."""

    content: bytes = CONTENT
    etag: str | None = '"v1"'
    modified: str | None = None
    ranges: bool = True
    length: bool = True
    kind: str = "application/octet-stream"
    faults: list[Any] = field(default_factory=list)


class Source:
    """The server's files, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.asked: list[tuple[str, str | None, int]] = []  # path, Range, status
        self.url = ""

    def put(self, name: str, content: bytes = CONTENT, **about: Any) -> File:
        self.files[f"/{name}"] = File(content, **about)
        return self.files[f"/{name}"]

    def item(self, name: str, checksum: str | None = None, size: int | None = None, into: str = ".") -> Download:
        return Download(f"{self.url}/{name}", name, checksum, size, into)

    @property
    def ranges(self) -> list[str | None]:
        return [wanted for _, wanted, _ in self.asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    source: Source

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        file = self.source.files.get(self.path)
        wanted = self.headers.get("Range")
        fault = file.faults.pop(0) if file and file.faults else None
        if file is None or isinstance(fault, tuple):
            status, headers = (404, {}) if file is None else fault
            return self.answer(status, headers, b"", wanted)
        content, start = fault if isinstance(fault, bytes) else file.content, 0
        if (
            wanted
            and file.ranges
            and self.headers.get("If-Range", file.etag or file.modified)
            in (
                file.etag,
                file.modified,
            )
        ):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        about = {"Content-Type": file.kind, "ETag": file.etag, "Last-Modified": file.modified}
        if start >= len(content) and start:
            return self.answer(416, about | {"Content-Range": f"bytes */{len(content)}"}, b"", wanted)
        if start:
            about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if file.length:
            about["Content-Length"] = str(len(content) - start)
        sent = content[start:] if not isinstance(fault, int) else content[start : start + fault]
        return self.answer(206 if start else 200, about, sent, wanted)

    def answer(self, status: int, headers: dict[str, str | None], content: bytes, wanted: str | None) -> None:
        self.source.asked.append((self.path, wanted, status))
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        if status != 200 and "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def server() -> Iterator[Source]:
    source = Source()
    handler = type("Bound", (Handler,), {"source": source})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        source.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield source
        listening.shutdown()
        thread.join()


@pytest.fixture
def source(server: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Source:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("KUBEVOX_CACHE", str(tmp_path / "cache"))
    server.files.clear()
    server.asked.clear()
    return server


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def patience(waits: list[float]) -> Patience:
    return Patience(tries=4, timeout_s=5.0, sleep=waits.append)


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"


def visible(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


# --- one file


def test_a_file_is_fetched_and_verified(source, tmp_path, patience):
    source.put("a.zip")
    for checksum in (md5(CONTENT), f"sha256:{hashlib.sha256(CONTENT).hexdigest().upper()}"):
        folder = tmp_path / checksum[:4]
        file = fetch(source.item("a.zip", checksum, len(CONTENT)), folder, "emodb", patience)
        assert file == folder / "a.zip"
        assert file.read_bytes() == CONTENT
        assert visible(folder) == {"a.zip"}


def test_a_file_that_is_there_is_not_asked_for(source, tmp_path, patience):
    (tmp_path / "a.zip").write_bytes(CONTENT)
    fetch(source.item("a.zip", md5(CONTENT)), tmp_path, "emodb", patience)
    assert source.asked == []


def test_a_file_that_is_there_and_differs_is_left_alone(source, tmp_path, patience):
    (tmp_path / "a.zip").write_bytes(b"mine")
    with pytest.raises(CorpusError, match=r"a\.zip has the md5 .*, not .* as published; remove it"):
        fetch(source.item("a.zip", md5(CONTENT)), tmp_path, "emodb", patience)
    assert (tmp_path / "a.zip").read_bytes() == b"mine"
    assert source.asked == []


def test_a_cut_connection_goes_on_where_it_was_cut(source, tmp_path, patience, waits):
    source.put("a.zip", faults=[300_000, 200_000])
    assert fetch(source.item("a.zip", md5(CONTENT)), tmp_path, "emodb", patience).read_bytes() == CONTENT
    assert source.ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert waits == [1.0, 1.0]  # each brought something new


def test_a_process_that_was_killed_goes_on_where_it_was(source, tmp_path, patience):
    source.put("a.zip", faults=[400_000])
    with pytest.raises(CorpusError, match=r"ended after 400000 of 1024000 bytes, 1 times in a row; 0\.4 MB are kept"):
        fetch(source.item("a.zip"), tmp_path, "emodb", Patience(tries=1))
    assert visible(tmp_path) == {"a.zip.part", "a.zip.part.json"}
    assert fetch(source.item("a.zip"), tmp_path, "emodb", patience).read_bytes() == CONTENT
    assert source.ranges == [None, "bytes=400000-"]
    assert visible(tmp_path) == {"a.zip", "a.zip.sha256"}


def test_a_process_that_was_killed_before_the_verification_asks_for_nothing(source, tmp_path, patience, monkeypatch):
    source.put("a.zip")
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "_differs", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fetch(source.item("a.zip"), tmp_path, "emodb", patience)
    assert fetch(source.item("a.zip"), tmp_path, "emodb", patience).read_bytes() == CONTENT
    assert len(source.asked) == 1


def test_a_server_without_ranges_starts_again(source, tmp_path, patience):
    source.put("a.zip", ranges=False, faults=[300_000])
    assert fetch(source.item("a.zip", md5(CONTENT)), tmp_path, "emodb", patience).read_bytes() == CONTENT
    assert [status for _, _, status in source.asked] == [200, 200]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"etag": '"v1"'}, {"etag": '"v2"'}),
        ({"etag": 'W/"v1"'}, {"etag": 'W/"v2"'}),
        (
            {"etag": None, "modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
            {"etag": None, "modified": "Tue, 02 Jan 2024 00:00:00 GMT"},
        ),
        ({"etag": None}, {"etag": None, "content": CONTENT[::-1] + b"longer"}),
        ({"etag": None}, {"etag": None, "content": CONTENT[::-1][:100_000]}),
    ],
)
def test_a_file_that_changed_at_the_source_starts_again(source, tmp_path, patience, before, after):
    source.put("a.zip", **before, faults=[300_000])
    with pytest.raises(CorpusError, match="ended after 300000"):
        fetch(source.item("a.zip"), tmp_path, "emodb", Patience(tries=1))
    changed = source.put("a.zip", **({"content": CONTENT[::-1]} | after))
    assert fetch(source.item("a.zip"), tmp_path, "emodb", patience).read_bytes() == changed.content


def test_a_part_of_another_address_is_not_continued(source, tmp_path, patience):
    source.put("a.zip", faults=[300_000])
    with pytest.raises(CorpusError):
        fetch(source.item("a.zip"), tmp_path, "emodb", Patience(tries=1))
    source.put("b.zip", CONTENT[::-1])
    moved = Download(f"{source.url}/b.zip", "a.zip")
    assert fetch(moved, tmp_path, "emodb", patience).read_bytes() == CONTENT[::-1]


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(
    faults=st.lists(
        st.one_of(st.integers(0, len(CONTENT)), st.sampled_from([(503, {}), (500, {}), (429, {"Retry-After": "7"})])),
        max_size=5,
    ),
    ranges=st.booleans(),
    etag=st.sampled_from(['"v1"', 'W/"v1"', None]),
)
def test_whatever_is_cut_the_file_is_whole_in_the_end(source, tmp_path_factory, faults, ranges, etag):
    source.put("a.zip", ranges=ranges, etag=etag, faults=list(faults))
    patient = Patience(tries=7, timeout_s=5.0, sleep=lambda _: None)
    file = fetch(source.item("a.zip"), tmp_path_factory.mktemp("cut"), "emodb", patient)
    assert file.read_bytes() == CONTENT


def test_a_server_that_is_busy_is_asked_again_after_a_while(source, tmp_path, patience, waits):
    source.put("a.zip", faults=[(503, {}), (503, {"Retry-After": "9"}), (429, {"Retry-After": "3600"})])
    assert fetch(source.item("a.zip"), tmp_path, "emodb", patience).read_bytes() == CONTENT
    assert waits == [1.0, 9.0, 30.0]  # doubled, as asked, and never longer than 30 s


def test_a_server_that_stays_broken_is_given_up(source, tmp_path, patience, waits):
    source.put("a.zip", faults=[(503, {})] * 10)
    with pytest.raises(CorpusError, match=r"emodb: http://.*/a\.zip: the source answers 503 .*, 4 times in a row$"):
        fetch(source.item("a.zip"), tmp_path, "emodb", patience)
    assert waits == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_not_there_is_said_at_once(source, tmp_path, patience, waits, status):
    source.put("a.zip", faults=[(status, {})])
    with pytest.raises(CorpusError, match=rf"a\.zip: the source answers {status} .*homepage.*folder or archive"):
        fetch(source.item("a.zip"), tmp_path, "emodb", patience)
    assert len(source.asked) == 1
    assert waits == []
    assert visible(tmp_path) == set()


def test_wrong_bytes_are_removed_and_said(source, tmp_path, patience):
    source.put("a.zip", faults=[CONTENT[::-1]])
    with pytest.raises(CorpusError, match=r"gave has the md5 .*, not .* as published; it was removed") as error:
        fetch(source.item("a.zip", md5(CONTENT)), tmp_path, "emodb", patience)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a.zip").exists()
    assert not (tmp_path / "a.zip.part").exists()
    assert fetch(source.item("a.zip", md5(CONTENT)), tmp_path, "emodb", patience).read_bytes() == CONTENT


def test_another_size_than_published_is_said_before_it_comes(source, tmp_path, patience):
    source.put("a.zip")
    with pytest.raises(CorpusError, match="the source has 1024000 bytes, not the 1024001 that were published"):
        fetch(source.item("a.zip", md5(CONTENT), len(CONTENT) + 1), tmp_path, "emodb", patience)
    assert visible(tmp_path) == set()


def test_a_web_page_in_place_of_the_file_is_no_download(source, tmp_path, patience):
    source.put("a.zip", b"<html>please sign in</html>", kind="text/html; charset=utf-8")
    with pytest.raises(CorpusError, match="answers with a web page"):
        fetch(source.item("a.zip"), tmp_path, "emodb", patience)
    assert visible(tmp_path) == set()


def test_without_a_checksum_the_first_download_is_the_measure(source, tmp_path, patience):
    source.put("a.zip")
    fetch(source.item("a.zip"), tmp_path, "emodb", patience)
    assert (tmp_path / "a.zip.sha256").read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  a.zip\n"
    (tmp_path / "a.zip").unlink()
    source.put("a.zip", CONTENT[::-1])
    with pytest.raises(CorpusError, match=r"not that of the first download \(.*a\.zip\.sha256; remove that to accept"):
        fetch(source.item("a.zip"), tmp_path, "emodb", patience)
    (tmp_path / "a.zip.sha256").unlink()
    assert fetch(source.item("a.zip"), tmp_path, "emodb", patience).read_bytes() == CONTENT[::-1]


def test_a_source_that_does_not_tell_the_size_is_read_to_its_end(source, tmp_path, patience):
    source.put("a.zip", length=False, etag=None)
    assert fetch(source.item("a.zip", md5(CONTENT)), tmp_path, "emodb", patience).read_bytes() == CONTENT


def test_a_redirect_is_followed_with_its_range(source, tmp_path, patience):
    source.put("real.zip", faults=[300_000])
    source.put("a.zip", faults=[(302, {"Location": "/real.zip"})] * 2)
    assert fetch(source.item("a.zip"), tmp_path, "emodb", patience).read_bytes() == CONTENT
    assert source.asked[-1] == ("/real.zip", "bytes=300000-", 206)


@pytest.mark.parametrize("to", ["http://example.org/a.zip", "ftp://example.org/a.zip"])
def test_a_redirect_out_of_https_is_not_followed(to):
    request = urllib.request.Request("https://example.org/a.zip")
    with pytest.raises(CorpusError, match=f"leads to {to}, which is not https"):
        downloads._Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, to)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/a.zip", "a.zip"])
def test_only_http_is_spoken(tmp_path, url):
    with pytest.raises(CorpusError, match="only http and https"):
        fetch(Download(url, "a.zip"), tmp_path)


@pytest.mark.parametrize("name", ["", "..", "../a.zip", "/a.zip"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(CorpusError, match="is no name for a file"):
        fetch(Download("http://127.0.0.1/a.zip", name), tmp_path / "here")


def test_a_source_that_is_not_there_is_one_line(source, tmp_path, patience, waits):
    with pytest.raises(CorpusError, match=r"cannot be reached \(Connection refused\), 4 times in a row"):
        fetch(Download("http://127.0.0.1:9/a.zip", "a.zip"), tmp_path, "emodb", patience)
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (downloads.socket.gaierror(-3, "Temporary failure in name resolution"), r"no address of .* is there a network"),
        (ssl.SSLCertVerificationError("self-signed"), "certificate is not valid"),
    ],
)
def test_without_a_network_nothing_is_waited_for(tmp_path, patience, waits, monkeypatch, reason, said):
    class Opener:
        def open(self, *_: object, **__: object) -> None:
            raise urllib.error.URLError(reason)

    monkeypatch.setattr(downloads, "_opener", Opener)
    with pytest.raises(CorpusError, match=said):
        fetch(Download("https://example.org/a.zip", "a.zip"), tmp_path, "emodb", patience)
    assert waits == []


def test_what_does_not_fit_on_the_disk_is_not_begun(source, tmp_path, patience, monkeypatch):
    source.put("a.zip")
    usage = shutil.disk_usage(tmp_path)._replace(free=900_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CorpusError, match=r"emodb: 1 MB are to come and .* has 1 MB left; make room"):
        fetch(source.item("a.zip"), tmp_path, "emodb", patience)
    assert not (tmp_path / "a.zip.part").exists()


def test_a_disk_that_fills_up_keeps_what_came(source, tmp_path, patience, monkeypatch):
    source.put("a.zip")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(downloads.os, "fsync", full)
        with pytest.raises(CorpusError, match=r"no space left on the disk.*what came is kept, make room"):
            fetch(source.item("a.zip"), tmp_path, "emodb", patience)
    assert fetch(source.item("a.zip"), tmp_path, "emodb", patience).read_bytes() == CONTENT
    assert len(source.asked) == 1


def test_two_that_ask_at_once_download_once(source, tmp_path, patience):
    source.put("a.zip")
    item = source.item("a.zip")
    threads = [threading.Thread(target=fetch, args=(item, tmp_path, "emodb", patience)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(source.asked) == 1
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


# --- a corpus


FILES = {"wav/03a01Fa.wav": b"one", "wav/08a02Na.wav": b"two"}


@pytest.fixture
def emodb(source: Source, monkeypatch: pytest.MonkeyPatch) -> type[EmoDb]:
    """EMO-DB, whose source is here and packs everything into a folder."""
    source.put("emodb.zip", zipped({f"EMO-DB 1.0/{name}": content for name, content in FILES.items()}))
    monkeypatch.setattr(EmoDb, "downloads", (source.item("emodb.zip"),))
    return EmoDb


def test_a_corpus_is_downloaded_in_its_published_layout(source, tmp_path, emodb, patience, capsys):
    folder = download_corpus(emodb, tmp_path / "emodb", patience=patience)
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.glob("wav/*")} == FILES
    assert visible(folder) == {"wav"}
    assert visible(folder / ".downloads") == {"emodb.zip.sha256"}  # the archive itself is not kept
    told = capsys.readouterr().err
    for fact in (emodb.title, emodb.licence, emodb.citation, emodb.access, "neither https nor a checksum"):
        assert fact in told


def test_a_corpus_that_was_downloaded_is_not_asked_for_again(source, tmp_path, emodb, patience, capsys):
    download_corpus(emodb, tmp_path / "emodb", patience=patience)
    capsys.readouterr()
    download_corpus(emodb, tmp_path / "emodb", patience=patience)
    assert len(source.asked) == 1
    assert capsys.readouterr().err == ""


def test_archives_are_kept_where_that_is_wanted(tmp_path, emodb, patience):
    folder = download_corpus(emodb, tmp_path / "emodb", keep_archives=True, patience=patience)
    assert (folder / ".downloads" / "emodb.zip").exists()


def test_a_folder_with_other_files_is_not_written_to(source, tmp_path, emodb, patience):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CorpusError, match="holds other files; name a new or an empty folder"):
        download_corpus(emodb, tmp_path, patience=patience)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]
    assert source.asked == []


def test_an_archive_that_did_not_come_whole_can_be_fetched_again(source, tmp_path, emodb, patience):
    whole = source.files["/emodb.zip"].content
    source.files["/emodb.zip"].faults.append(whole[:-30])
    with pytest.raises(CorpusError, match="fetch the archive again"):
        download_corpus(emodb, tmp_path / "emodb", patience=patience)
    folder = download_corpus(emodb, tmp_path / "emodb", patience=patience)
    assert len(list(folder.rglob("*.wav"))) == 2


def test_several_files_come_to_their_places_and_only_the_missing_ones(source, tmp_path, monkeypatch, patience):
    source.put("train.tsv", b"table")
    source.put("audio.zip", zipped({"train/1.wav": b"one"}), faults=[(404, {})])
    items = (source.item("train.tsv", into="da_dk"), source.item("audio.zip", into="da_dk/audio"))
    monkeypatch.setattr(Fleurs, "downloads", items)
    with pytest.raises(CorpusError, match="answers 404"):
        download_corpus(Fleurs, tmp_path / "it", patience=patience)
    download_corpus(Fleurs, tmp_path / "it", patience=patience)
    assert [path for path, _, _ in source.asked] == ["/train.tsv", "/audio.zip", "/audio.zip"]
    assert (tmp_path / "it/da_dk/train.tsv").read_bytes() == b"table"
    assert (tmp_path / "it/da_dk/audio/train/1.wav").read_bytes() == b"one"


def test_folders_of_several_archives_are_put_together(source, tmp_path, monkeypatch, patience):
    source.put("1.zip", zipped({"da_dk/audio/train/1.wav": b"one"}))
    source.put("2.zip", zipped({"da_dk/audio/test/2.wav": b"two", "da_dk/test.tsv": b"table"}))
    monkeypatch.setattr(Fleurs, "downloads", (source.item("1.zip"), source.item("2.zip")))
    folder = download_corpus(Fleurs, tmp_path / "it", patience=patience)
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*") if p.suffix in (".wav", ".tsv")) == [
        "da_dk/audio/test/2.wav",
        "da_dk/audio/train/1.wav",
        "da_dk/test.tsv",
    ]


def test_another_variant_does_not_go_into_the_same_folder(source, tmp_path, patience):
    usual, restored = (
        open_corpus(CorpusSource(name="fleurs", download=True, options={"locales": ["da_dk"], "restored": restored}))
        for restored in (False, True)
    )
    assert default_folder(usual) != default_folder(restored)
    assert default_folder(usual) == default_folder(Fleurs)
    folder = tmp_path / "it"
    folder.mkdir()
    (folder / "da_dk").mkdir()
    (folder / ".kubevox-download.json").write_text(
        f'{{"corpus": "fleurs", "done": {{"./da_dk.tar.gz": "{usual.downloads[0].url}"}}}}'
    )
    with pytest.raises(CorpusError, match="holds another variant"):
        download_corpus(restored, folder, patience=patience)
    assert download_corpus(usual, folder, patience=patience) == folder


def test_a_corpus_that_cannot_be_downloaded_says_how_to_get_it(tmp_path):
    with pytest.raises(CorpusError, match=r"cannot be downloaded by itself .*registration.*http"):
        download_corpus(Savee, tmp_path / "savee")


# --- from a configuration


def ids(**source: Any) -> list[str]:
    return [recording.source_id for recording in open_corpus(CorpusSource(**source)).recordings()]


def test_a_configuration_downloads_where_there_is_nothing(source, tmp_path, emodb):
    opened = open_corpus(CorpusSource(name="emodb", path=str(tmp_path / "emodb"), download=True))
    assert source.asked == []  # opening looks at nothing: `kubevox config` does that
    assert [recording.source_id for recording in opened.recordings()] == [f"emodb:{name}" for name in FILES]
    assert ids(name="emodb", path=str(tmp_path / "emodb"), download=True) == [f"emodb:{name}" for name in FILES]
    assert len(source.asked) == 1


def test_without_a_path_the_cache_is_downloaded_to(source, tmp_path, emodb):
    opened = open_corpus(CorpusSource(name="emodb", download=True))
    assert opened.path == tmp_path / "cache" / "corpora" / "emodb" == default_folder(EmoDb)
    assert len(opened) == 2


def test_download_folder_and_archive_give_the_same_corpus(source, tmp_path, emodb):
    archive = tmp_path / "somewhere.zip"
    archive.write_bytes(source.files["/emodb.zip"].content)
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "by hand")
    expected = ids(name="emodb", path=str(tmp_path / "by hand" / "EMO-DB 1.0"))
    assert ids(name="emodb", path=str(archive)) == expected
    assert ids(name="emodb", download=True) == expected


def test_a_folder_or_archive_that_is_there_is_taken_as_it_is(source, tmp_path, emodb):
    (tmp_path / "mine" / "wav").mkdir(parents=True)
    (tmp_path / "mine" / "wav" / "09a01Fa.wav").write_bytes(b"x")
    assert ids(name="emodb", path=str(tmp_path / "mine"), download=True) == ["emodb:wav/09a01Fa.wav"]
    (tmp_path / "mine.zip").write_bytes(zipped({"wav/10a01Fa.wav": b"x"}))
    assert ids(name="emodb", path=str(tmp_path / "mine.zip"), download=True) == ["emodb:wav/10a01Fa.wav"]
    assert source.asked == []


def test_an_archive_that_is_not_there_is_no_place_to_download_to(tmp_path, emodb):
    with pytest.raises(CorpusError, match=r"there is no .*mine\.zip; to download the corpus, name a folder"):
        provide(emodb, tmp_path / "mine.zip")


def test_a_download_that_did_not_end_goes_on(source, tmp_path, emodb, monkeypatch):
    source.files["/emodb.zip"].faults.append((404, {}))
    for _ in range(2):
        opened = open_corpus(CorpusSource(name="emodb", path=str(tmp_path / "emodb"), download=True))
        if not source.asked:
            with pytest.raises(CorpusError, match="answers 404"):
                len(opened)
    assert len(opened) == 2


def test_what_a_configuration_needs_is_said_when_it_is_read(emodb):
    with pytest.raises(ConfigError, match=r"'emodb' needs a path: .*or their archive; or set its key download$"):
        open_corpus(CorpusSource(name="emodb"))
    with pytest.raises(ConfigError, match=r"'savee' needs a path: .*cannot be downloaded by itself .*registration"):
        open_corpus(CorpusSource(name="savee", download=True))
    with pytest.raises(ConfigError, match=r"'savee' needs a path: the folder .* or their archive$"):
        open_corpus(CorpusSource(name="savee"))


def test_every_download_has_a_safe_source_and_a_name_of_its_own():
    for name in corpus_names():
        items = corpus_class(name).downloads
        assert len({(item.into, item.name) for item in items}) == len(items)
        for item in items:
            assert item.url.startswith("https://") or name == "emodb", item.url
            assert re.fullmatch(r"(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})?", item.checksum or "")
