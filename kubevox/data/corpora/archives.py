"""Corpora as archives: unpacked once, with suspicion, and read from there.

What an archive holds was written by others. Nothing in it may leave its folder, be anything but a plain file, or unpack
to far more than an archive of recordings would. What is unpacked appears whole or not at all.
"""

from __future__ import annotations

import bz2
import calendar
import contextlib
import errno
import fcntl
import functools
import gzip
import json
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from kubevox.errors import CorpusError
from kubevox.progress import ProgressBar, note
from kubevox.provenance import content_hash

__all__ = [
    "NO_SPACE",
    "DamagedArchiveError",
    "Limits",
    "alone",
    "cache_folder",
    "is_archive",
    "locate",
    "same_as_folder",
    "unpack",
]

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""The errors of a full disk."""

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_STAMP = ".kubevox-archive.json"
_BLOCK = 1 << 20
_LATEST = 1 << 32  # seconds since 1970; file systems know later times, and some do not
_DAMAGE = (
    EOFError,
    NotImplementedError,  # a compression that zipfile does not have
    UnicodeDecodeError,  # a name that says it is UTF-8
    struct.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


class DamagedArchiveError(CorpusError):
    """An archive that did not arrive whole, or is none."""


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to.

    Attributes:
        bytes: of all files together.
        files: how many. Common Voice's largest release has two million.
        ratio: unpacked to packed, where more than ``ratio_from`` bytes come out. Recordings shrink to a tenth at the
            very least, unless they are silence.
        ratio_from: bytes.
    """

    bytes: int = 1 << 40
    files: int = 5_000_000
    ratio: float = 100.0
    ratio_from: int = 1 << 30


@dataclass(frozen=True)
class _Member:
    """A plain file in an archive: where it goes, seconds since 1970, and how to read it."""

    path: PurePosixPath
    modified: int
    open: Callable[[], IO[bytes]]


def cache_folder() -> Path:
    """Where corpora are kept that were unpacked or downloaded without being told where.

    That is ``corpora`` in ``$KUBEVOX_CACHE``, or in ``~/.cache/kubevox``.
    """
    return Path(os.environ.get("KUBEVOX_CACHE") or Path.home() / ".cache" / "kubevox").expanduser() / "corpora"


def is_archive(name: str) -> bool:
    """Whether a file's name says that it is an archive which can be unpacked."""
    return name.lower().endswith(_SUFFIXES)


def locate(path: Path | None, corpus: str, layout: str | None = None) -> Path:
    """The folder that holds a corpus: a folder as it is, an archive unpacked.

    An archive is unpacked once, to ``<cache>/<corpus>-<fingerprint>``; its fingerprint is over its path, size and
    modification time.

    Args:
        path: a folder, or a zip or tar archive.
        corpus: the corpus' name.
        layout: as :func:`same_as_folder` takes it.

    Raises:
        CorpusError: there is neither, or the archive is damaged, or not to be trusted.
    """
    if path is not None and path.is_dir():
        return path
    remedy = f"name the folder that holds the recordings, or their archive ({', '.join(_SUFFIXES)})"
    if path is None or not path.is_file() or not is_archive(path.name):
        raise CorpusError(f"corpus {corpus}: {path} is not a folder; {remedy}")
    state = path.stat()
    fingerprint = content_hash([str(path.resolve()), state.st_size, state.st_mtime_ns])
    folder = cache_folder() / f"{corpus}-{fingerprint[:16]}"
    with alone(folder.parent / f".{folder.name}.lock"):
        if not _is_whole(folder):
            note(f"{corpus}: unpacking {path} to {folder}, once")
            unpack(path, folder, corpus)
    return same_as_folder(folder, path.name, layout)


def same_as_folder(folder: Path, archive: str, layout: str | None) -> Path:
    """The folder in an unpacked archive that a person would have named in the archive's place.

    Many archives hold one folder that holds everything. Where recordings are known by their paths, that folder must not
    stand in them. It is stepped into where it bears the archive's own name, where the recordings would otherwise lie
    deeper than their corpus publishes them, and where a table lies in it. So ``EMODB.zip`` is the same corpus whether
    it holds ``EMODB/wav/03a01Fa.wav`` or ``wav/03a01Fa.wav``: the published layout has ``wav/``.

    Args:
        folder: what was unpacked.
        archive: the archive's file name.
        layout: how the corpus' recordings are published, such as ``wav/SSTTTEV.wav``; None where they are known by
            other things than their paths, and ``folder`` is right.
    """
    if layout is None:
        return folder
    depth = layout.split()[0].count("/")
    while True:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        if len(entries) != 1 or not entries[0].is_dir():
            return folder
        (inner,) = entries
        named_alike = inner.name.casefold() == _stem(archive).casefold()
        if not named_alike and not _has_table(inner) and _audio_depth(folder, depth) <= depth:
            return folder
        folder = inner


def unpack(archive: Path, folder: Path, what: str = "", limits: Limits | None = None) -> int:
    """Unpack an archive to a folder that appears when it is complete.

    What an operating system leaves beside files (``__MACOSX``, names that begin with a dot) is passed over. Files get
    their modification time from the archive, so that unpacking it again gives the same fingerprint.

    Args:
        archive: zip, or tar, plain or compressed with gzip, bzip2 or xz; told by its content.
        folder: where to; replaced where there is one.
        what: the corpus' name, for the progress and errors.
        limits: what it may unpack to.

    Returns:
        How many files were unpacked.

    Raises:
        CorpusError: it is damaged; a member is no plain file or would lie outside the folder, or exceeds a limit; or
            the disk is full. Nothing is left behind.
    """
    limits = limits or Limits()
    place = f"corpus {what}: {archive}" if what else str(archive)
    temporary = folder.parent / f".{folder.name}.unpacking"
    try:
        packed = archive.stat().st_size
        # What a killed process left; two of the same name are kept apart by `alone`.
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = _unpack(archive, temporary, place, limits, what or archive.name)
        about = {"archive": str(archive), "bytes": packed, "files": files}
        (temporary / _STAMP).write_text(json.dumps(about) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except _DAMAGE as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise DamagedArchiveError(f"{place}: cannot be unpacked ({why}); fetch the archive again") from None
    except OSError as error:
        if error.errno is None:  # gzip's and bzip2's word for damage
            raise DamagedArchiveError(f"{place}: cannot be unpacked ({error}); fetch the archive again") from None
        if error.errno in NO_SPACE:
            raise CorpusError(f"{place}: no space left on the disk of {folder.parent}; make room, run again") from None
        raise CorpusError(f"{place}: cannot be unpacked to {folder} ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return files


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; the empty file stays.

    Raises:
        CorpusError: the lock's folder cannot be written to.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("ab")
    except OSError as error:
        raise CorpusError(f"{lock.parent}: cannot be written to ({error.strerror or error})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f"waiting for another process that works in {lock.parent}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unpack(archive: Path, folder: Path, place: str, limits: Limits, what: str) -> int:
    packed = archive.stat().st_size
    most = min(limits.bytes, max(limits.ratio_from, int(limits.ratio * packed)))
    files = written = 0
    with archive.open("rb") as source, contextlib.ExitStack() as stack:
        read = _opener(source, place)
        members = stack.enter_context(contextlib.closing(read(source, place, most, limits.files)))
        bar = stack.enter_context(ProgressBar(f"unpack {what}", -(-packed // 10**6), "MB"))
        for member in members:
            files += 1
            if files > limits.files:
                raise CorpusError(f"{place}: more than {limits.files} files; this is no archive of recordings")
            target = folder.joinpath(*member.path.parts)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                copy = target.open("xb")
            except (FileExistsError, NotADirectoryError):
                raise CorpusError(f"{place}: {str(member.path)!r} is in it twice; unpack it yourself") from None
            with copy, member.open() as content:
                while block := content.read(_BLOCK):
                    written += len(block)
                    if written > most:
                        raise _too_large(place, written, most)
                    copy.write(block)
            os.utime(target, (member.modified, member.modified))
            if (step := source.tell() // 10**6 - bar.done) > 0:
                bar.update(step)
    if not files:
        raise CorpusError(f"{place}: there is no file in it")
    return files


def _opener(source: IO[bytes], place: str) -> Callable[[IO[bytes], str, int, int], Any]:
    start = source.read(265)
    source.seek(0)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_members
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")) or start[257:262] == b"ustar":
        return _tar_members
    raise DamagedArchiveError(f"{place}: neither a zip nor a tar archive; fetch it again, or unpack it yourself")


def _zip_members(source: IO[bytes], place: str, most: int, most_files: int) -> Iterator[_Member]:
    with zipfile.ZipFile(source) as archive:
        entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]
        if len(entries) > most_files:
            raise CorpusError(f"{place}: more than {most_files} files; this is no archive of recordings")
        # The whole is known before a byte is written.
        if (total := sum(entry.file_size for entry in entries)) > most:
            raise _too_large(place, total, most)
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise _no_plain_file(place, entry.filename)
            if entry.flag_bits & 1:
                raise CorpusError(f"{place}: it is encrypted; unpack it yourself")
            # As stored: zipfile itself would cut a name at its first zero byte.
            if (path := _safe(entry.orig_filename, place)) is None:
                continue
            yield _Member(path, _utc(entry.date_time), functools.partial(archive.open, entry))


def _tar_members(source: IO[bytes], place: str, most: int, most_files: int) -> Iterator[_Member]:
    with _plain(source) as stream, tarfile.TarFile(fileobj=stream, mode="r", errorlevel=2) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header
            if member.isdir():
                continue
            if not member.isreg():
                raise _no_plain_file(place, member.name)
            if member.size > most:
                raise _too_large(place, member.size, most)
            if (path := _safe(member.name, place)) is None:
                continue
            modified = min(max(0, int(member.mtime)), _LATEST)
            yield _Member(path, modified, functools.partial(_content, archive, member))
        # tarfile takes the first header that it cannot read for the end. At the real one there are only zeros, and
        # reading them has a compressed stream compare its checksum.
        rest, blank = 0, True
        while block := stream.read(_BLOCK):
            rest += len(block)
            blank = blank and not any(block)
            if rest > most:
                raise _too_large(place, rest, most)
        if not blank or stream.tell() < archive.offset + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("a part of it is missing or damaged")


def _plain(source: IO[bytes]) -> IO[bytes]:
    start = source.read(6)
    source.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=source))
    if start.startswith(b"BZh"):
        return bz2.BZ2File(source)
    if start.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(source)
    return source


def _utc(date: tuple[int, int, int, int, int, int]) -> int:
    """A zip's times have no zone; read as UTC they are the same everywhere."""
    try:
        return max(0, calendar.timegm((*date, 0, 0, 0)))
    except ValueError:
        return 0  # the month 0, which some programs write


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    return content


def _safe(name: str, place: str) -> PurePosixPath | None:
    """Where a member goes, inside the folder; None for what is passed over."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise CorpusError(f"{place}: the member {name!r} would lie outside the folder; this archive is not unpacked")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise CorpusError(f"{place}: the member {name!r} has a name that is not UTF-8; unpack it yourself")
    if not parts or parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts):
        return None
    return PurePosixPath(*parts)


def _no_plain_file(place: str, name: str) -> CorpusError:
    return CorpusError(f"{place}: the member {name!r} is a link or a device; unpack it yourself if you trust it")


def _too_large(place: str, found: int, most: int) -> CorpusError:
    return CorpusError(
        f"{place}: unpacks to {found / 10**6:.0f} MB or more where {most / 10**6:.0f} are allowed; "
        "this is no archive of recordings, or unpack it yourself"
    )


def _is_whole(folder: Path) -> bool:
    """Whether an unpacked archive is there with as many files as it had: caches get cleaned by others."""
    try:
        expected = json.loads((folder / _STAMP).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return sum(len(files) for _, _, files in os.walk(folder)) - 1 == expected


def _has_table(folder: Path) -> bool:
    return any(entry.suffix.lower() in (".csv", ".tsv") for entry in folder.iterdir())


def _audio_depth(folder: Path, deepest: int) -> int:
    """How many folders down the nearest recording lies; ``deepest`` + 1 where none lies so near."""
    from kubevox.data.corpora.base import AUDIO_SUFFIXES

    level = [folder]
    for depth in range(deepest + 1):
        below: list[Path] = []
        for place in level:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir():
                        below.append(Path(entry.path))
                    elif Path(entry.name).suffix.lower() in AUDIO_SUFFIXES:
                        return depth
        level = below
    return deepest + 1


def _stem(name: str) -> str:
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
