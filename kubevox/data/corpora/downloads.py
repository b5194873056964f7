"""Corpora from their official sources: fetched over HTTP, verified, unpacked.

The standard library's client does it: it knows proxies, redirects and TLS, and no role of Kubevox then has to carry
another one for a step that is taken once a corpus.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import kubevox
from kubevox.data.corpora.archives import (
    NO_SPACE,
    DamagedArchiveError,
    alone,
    cache_folder,
    is_archive,
    same_as_folder,
    unpack,
)
from kubevox.data.corpora.base import Corpus, Download, FileCorpus
from kubevox.errors import CorpusError
from kubevox.progress import ProgressBar, note

__all__ = ["Patience", "default_folder", "download_corpus", "fetch", "how_to_get", "provide"]

_BLOCK = 1 << 18
_MARKER = ".kubevox-download.json"
_SHELF = ".downloads"
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Patience:
    """How a source that fails is tried again.

    Attributes:
        tries: requests in a row that bring nothing new before it is given up.
        first_wait_s: seconds before the second request; each further wait is twice as long.
        longest_wait_s: seconds; also the most that a source may ask for (``Retry-After``).
        timeout_s: seconds without a byte.
        sleep: waits so many seconds.
    """

    tries: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    timeout_s: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, failures: int, asked: float) -> None:
        """Wait after so many failures in a row, or as long as the source asked for."""
        wait = self.first_wait_s * 2.0 ** (failures - 1)
        self.sleep(min(max(wait, asked), self.longest_wait_s))


def provide(corpus: Corpus | type[Corpus], path: Path, patience: Patience | None = None) -> None:
    """Download a corpus to a path, unless it is there.

    A folder or an archive that somebody else put there is taken as the corpus and not touched.

    Raises:
        CorpusError: the corpus has no official source that can be asked, or it cannot be had from there.
    """
    if path.is_file() or (_has_files(path) and not (path / _MARKER).exists()):
        return
    if is_archive(path.name) and not path.exists():
        raise CorpusError(f"corpus {corpus.name}: there is no {path}; to download the corpus, name a folder for it")
    download_corpus(corpus, path, patience=patience)


def default_folder(corpus: Corpus | type[Corpus]) -> Path:
    """Where a corpus is downloaded to when nobody says where: a folder of its name in the cache."""
    return cache_folder() / (corpus.name if _is_usual(corpus) else f"{corpus.name}-variant")


def how_to_get(corpus: Corpus | type[Corpus]) -> str:
    """What stands between a person and the corpus, in a line."""
    return "; ".join(part for part in (corpus.access.rstrip("."), corpus.homepage) if part) or "ask its authors"


def download_corpus(
    corpus: Corpus | type[Corpus], folder: Path, *, keep_archives: bool = False, patience: Patience | None = None
) -> Path:
    """Download a corpus from its official source, in the layout that its authors publish.

    What is there already is not asked for again, and what began is continued. The licence, the citation and the terms
    of access are said before anything is asked for.

    Args:
        corpus: the corpus; one that was opened with options may want a part of it.
        folder: where to: empty, new, or that of an earlier download.
        keep_archives: whether archives stay, in ``.downloads`` inside the folder, when they are unpacked.
        patience: how a source that fails is tried again.

    Returns:
        The folder.

    Raises:
        CorpusError: the corpus has no official source that can be asked, the folder holds other files, the source does
            not give what its authors published, or the disk is full.
    """
    name = corpus.name
    if not corpus.downloads:
        raise CorpusError(
            f"corpus {name}: cannot be downloaded by itself ({how_to_get(corpus)}); get it yourself and name its "
            "folder or archive as the corpus' path"
        )
    marker, shelf = folder / _MARKER, folder / _SHELF
    if folder.is_file() or (_has_files(folder) and not marker.exists()):
        raise CorpusError(f"corpus {name}: {folder} holds other files; name a new or an empty folder")
    with alone(shelf / ".lock"), _disk_errors(folder, name):
        done = _done(folder)
        usual = {item.url for item in _type_of(corpus).downloads}
        if any((url in usual) != _is_usual(corpus) for url in done.values()):
            raise CorpusError(f"corpus {name}: {folder} holds another variant of it; name another folder")
        missing = [item for item in corpus.downloads if done.get(_key(item)) != item.url]
        if missing:
            note(f"{name}: {corpus.title}. Licence: {corpus.licence}. Cite: {corpus.citation}. {corpus.access}".strip())
            for item in missing:
                if item.checksum is None and item.url.startswith("http:"):
                    note(f"{name}: {item.url} has neither https nor a checksum: what comes cannot be verified")
            _refuse_a_full_disk(folder, sum(_left(item, shelf) for item in missing), name)
        for item in missing:
            _write_json(marker, {"corpus": name, "done": done})
            file = fetch(item, shelf / item.into, name, patience)
            _put(file, folder, item, corpus)
            done[_key(item)] = item.url
            _write_json(marker, {"corpus": name, "done": done})
            if not keep_archives:
                file.unlink()
    return folder


def fetch(download: Download, folder: Path, what: str = "", patience: Patience | None = None) -> Path:
    """Fetch one file, verified, under its own name.

    A file that is there is verified and not fetched again. One that began (``<name>.part``) is continued where the
    source still has the same, told by its size and validators (``ETag``, ``Last-Modified``). Where the source states no
    checksum, the SHA-256 of the first download is kept in ``<name>.sha256`` and compared from then on. Only https is
    spoken, unless the official source itself is at http; redirects never lead from https to http.

    Args:
        download: what and where from.
        folder: where to.
        what: the corpus' name, for the progress and errors.
        patience: how a source that fails is tried again.

    Returns:
        The file.

    Raises:
        CorpusError: the source cannot be reached, does not have the file or gives another than was published (what
            came is removed; what lay there before is left alone), or the disk is full (what came is kept).
    """
    patience = patience or Patience()
    what = what or download.name
    if urlsplit(download.url).scheme not in ("http", "https"):
        raise CorpusError(f"{what}: {download.url}: only http and https can be downloaded")
    if download.name in ("", ".", "..") or "/" in download.name:
        raise CorpusError(f"{what}: {download.name!r} is no name for a file")
    target, part = folder / download.name, folder / f"{download.name}.part"
    with alone(folder / f".{download.name}.lock"), _disk_errors(folder, what):
        if target.exists():
            if problem := _differs(target, download):
                raise CorpusError(f"{what}: {target} {problem}; remove it to download it again")
            return target
        _transfer(download, part, what, patience)
        if problem := _differs(part, download):
            part.unlink()
            raise CorpusError(f"{what}: what {download.url} gave {problem}; it was removed, try again later")
        os.replace(part, target)
        _state_of(part).unlink(missing_ok=True)
    return target


class _TransferError(Exception):
    """A request that failed, and may not the next time; the seconds that the source asks for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never out of https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        to = urlsplit(newurl).scheme
        if to not in ("http", "https") or (urlsplit(req.full_url).scheme == "https" and to != "https"):
            raise CorpusError(f"{req.full_url}: leads to {newurl}, which is not https; it is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _transfer(download: Download, part: Path, what: str, patience: Patience) -> None:
    failures, most = 0, _size(part)
    while True:
        try:
            return _request(download, part, what, patience.timeout_s)
        except _TransferError as reason:
            # Only what goes further than ever before counts as progress, so that this ends.
            if _size(part) > most:
                failures, most = 0, _size(part)
            failures += 1
            if failures >= patience.tries:
                kept = f"; {_size(part) / 10**6:.1f} MB are kept, run again to go on" if _size(part) else ""
                raise CorpusError(f"{what}: {download.url}: {reason}, {failures} times in a row{kept}") from None
            patience.wait(failures, reason.wait_s)


def _request(download: Download, part: Path, what: str, timeout_s: float) -> None:
    """Ask for what is missing of the file, and add it."""
    state = _read_state(part, download.url)
    have = _size(part) if state else 0
    if have and have == state.get("size"):
        return  # ended between the last byte and the verification
    request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
        download.url, headers={"User-Agent": f"kubevox/{kubevox.__version__}", "Accept-Encoding": "identity"}
    )
    if have:
        request.add_header("Range", f"bytes={have}-")
        if validator := _strong(state):
            request.add_header("If-Range", validator)
    with _network_errors(download, part, what), _opener().open(request, timeout=timeout_s) as response:
        told = _told_by(response, download.url)
        if response.status == 206:
            start, size = _range(response)
            before = state.get("size")
            if start != have or (None not in (size, before) and size != before) or not _same_file(state, told):
                part.unlink(missing_ok=True)
                raise _TransferError("the file at the source has changed")
            told["size"] = size or before
        else:
            have = 0
        _refuse_another(response, told["size"], download, what)
        _write_json(_state_of(part), told)
        missing = told["size"] - have if told["size"] is not None else 0
        _refuse_a_full_disk(part.parent, missing, what)
        with part.open("ab" if have else "wb") as file:
            _copy(response, file, have, told["size"], f"download {what}")
            file.flush()
            os.fsync(file.fileno())
    if told["size"] is not None and _size(part) != told["size"]:
        raise _TransferError(f"the connection ended after {_size(part)} of {told['size']} bytes")


def _copy(response: http.client.HTTPResponse, file: IO[bytes], have: int, size: int | None, task: str) -> None:
    with contextlib.ExitStack() as stack:
        # A bar needs an end; a source that does not tell it is rare.
        bar = stack.enter_context(ProgressBar(task, -(-size // 10**6), "MB")) if size else None
        if bar and have >= 10**6:
            bar.update(have // 10**6)
        while True:
            try:
                block = response.read(_BLOCK)
            except http.client.IncompleteRead as error:
                block = error.partial
                file.write(block)
                raise _TransferError("the connection was cut") from None
            except OSError as error:
                raise _TransferError(f"the connection was cut ({error.strerror or error})") from None
            if not block:
                return
            file.write(block)
            have += len(block)
            if bar and (step := have // 10**6 - bar.done) > 0:
                bar.update(step)


@contextlib.contextmanager
def _network_errors(download: Download, part: Path, what: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                # Nothing lies behind what is here, and yet it is not whole: it is of another file.
                part.unlink(missing_ok=True)
                raise _TransferError("the file at the source has changed") from None
            if error.code in _TRANSIENT:
                raise _TransferError(f"the source answers {error.code} {error.reason}", _retry_after(error)) from None
        raise CorpusError(
            f"{what}: {download.url}: the source answers {error.code} {error.reason}; see the corpus' homepage for "
            "where it is now, or get it yourself and name its folder or archive as the corpus' path"
        ) from None
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise CorpusError(f"{what}: {download.url}: the source's certificate is not valid ({reason})") from None
        if isinstance(reason, socket.gaierror):
            host = urlsplit(download.url).hostname
            raise CorpusError(f"{what}: {download.url}: no address of {host} is found; is there a network?") from None
        raise _TransferError(f"cannot be reached ({getattr(reason, 'strerror', None) or reason})") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _TransferError(f"cannot be reached ({error or type(error).__name__})") from None


def _put(file: Path, folder: Path, item: Download, corpus: Corpus | type[Corpus]) -> None:
    """Bring a downloaded file to its place in the corpus; done again from the start where it did not end."""
    into = folder / item.into
    into.mkdir(parents=True, exist_ok=True)
    if not is_archive(item.name):
        shutil.copyfile(file, into / f".{item.name}")
        os.replace(into / f".{item.name}", into / item.name)
        return
    unpacked = folder / _SHELF / "unpacked"
    try:
        unpack(file, unpacked, corpus.name)
    except DamagedArchiveError:
        # So that it can be fetched again: without a checksum, nothing told that it did not come whole.
        file.unlink()
        if item.checksum is None:
            _pin_of(file).unlink(missing_ok=True)
        raise
    kind = _type_of(corpus)
    _merge(same_as_folder(unpacked, item.name, kind.layout if issubclass(kind, FileCorpus) else None), into)
    shutil.rmtree(unpacked)


def _merge(source: Path, target: Path) -> None:
    for entry in source.iterdir():
        if entry.name.startswith("."):
            continue
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _merge(entry, place)
        else:
            os.replace(entry, place)


def _differs(file: Path, download: Download) -> str:
    """What is wrong with a whole file; "" where it is what was published or, without a checksum, what came first."""
    size = file.stat().st_size
    if download.size is not None and size != download.size:
        return f"has {size} bytes, not the {download.size} that were published"
    algorithm, _, wanted = (download.checksum or "sha256:").partition(":")
    with file.open("rb") as content:
        found = hashlib.file_digest(content, algorithm).hexdigest()
    if wanted:
        return "" if found == wanted.lower() else f"has the {algorithm} {found}, not {wanted} as published"
    pin = _pin_of(file.parent / download.name)
    if not pin.exists():
        pin.write_text(f"{found}  {download.name}\n", encoding="utf-8")
        return ""
    first = pin.read_text(encoding="utf-8").split()[:1]
    if first == [found]:
        return ""
    return f"has the sha256 {found}, not that of the first download ({pin}; remove that to accept it)"


def _refuse_another(response: http.client.HTTPResponse, size: int | None, download: Download, what: str) -> None:
    """A source that moved often answers with a page, and one that changed with another size: say so before it comes."""
    kind = response.headers.get_content_type()
    if kind == "text/html" and not download.name.lower().endswith((".html", ".htm")):
        raise CorpusError(f"{what}: {download.url}: the source answers with a web page, not the file; see its homepage")
    if size is not None and download.size is not None and size != download.size:
        raise CorpusError(
            f"{what}: {download.url}: the source has {size} bytes, not the {download.size} that were published"
        )


def _refuse_a_full_disk(folder: Path, missing: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise CorpusError(
            f"{what}: {missing / 10**6:.0f} MB are to come and {folder} has {free / 10**6:.0f} MB left; make room, "
            "or name a folder on another disk"
        )


@contextlib.contextmanager
def _disk_errors(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise CorpusError(
                f"{what}: no space left on the disk of {folder}; what came is kept, make room and run again"
            ) from None
        raise CorpusError(f"{what}: {error.filename or folder}: {error.strerror or error}") from None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)


def _retry_after(error: urllib.error.HTTPError) -> float:
    """The seconds that the source asks for; 0 where it does not say, or nothing that can be read."""
    value = error.headers.get("Retry-After") or ""
    if value.strip().isdigit():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _told_by(response: http.client.HTTPResponse, url: str) -> dict[str, Any]:
    """What the source says of the file: enough to know it again."""
    length = response.headers.get("Content-Length")
    return {
        "url": url,
        "size": int(length) if length and length.isdigit() else None,
        "etag": response.headers.get("ETag"),
        "modified": response.headers.get("Last-Modified"),
    }


def _same_file(state: dict[str, Any], told: dict[str, Any]) -> bool:
    return all(state.get(key) == told[key] for key in ("etag", "modified") if told[key] is not None)


def _strong(state: dict[str, Any]) -> str | None:
    """A validator that ``If-Range`` may carry: a weak tag may not (RFC 9110, 13.1.5)."""
    tag = state.get("etag")
    return tag if tag and not tag.startswith("W/") else state.get("modified")


def _range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """The first byte of a partial answer, and the whole file's size; -1 where the answer does not say."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
    if match is None:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _read_state(part: Path, url: str) -> dict[str, Any]:
    """What the source said when the part was begun; {} where it cannot be continued."""
    try:
        state = json.loads(_state_of(part).read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and state.get("url") == url else {}


def _pin_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _state_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _done(folder: Path) -> dict[str, str]:
    """The downloads that are in their place already, with where they came from."""
    if not _has_files(folder):
        return {}
    try:
        done = json.loads((folder / _MARKER).read_bytes())["done"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return done if isinstance(done, dict) else {}


def _key(item: Download) -> str:
    return f"{item.into}/{item.name}"


def _type_of(corpus: Corpus | type[Corpus]) -> type[Corpus]:
    return corpus if isinstance(corpus, type) else type(corpus)


def _is_usual(corpus: Corpus | type[Corpus]) -> bool:
    """Whether it is all or a part of what its class downloads; its options may ask for another edition of it."""
    return set(corpus.downloads) <= set(_type_of(corpus).downloads)


def _left(item: Download, shelf: Path) -> int:
    """Bytes still to come, as far as that is published."""
    have = max(_size(shelf / item.into / item.name), _size(shelf / item.into / f"{item.name}.part"))
    return max(0, (item.size or 0) - have)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def _write_json(file: Path, value: Any) -> None:
    temporary = file.with_name(f"{file.name}.new")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, file)
