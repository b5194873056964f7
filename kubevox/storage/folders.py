"""A store that is a folder. The functions are those of :mod:`kubevox.storage`, which says what they do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kubevox.errors import StorageError
from kubevox.provenance import file_sha256

STAGING = "staging-"
# What tempfile makes of the prefix `.NAME.`: being written, or being deleted.
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")


class Stored(NamedTuple):
    """One object of a store: its size in bytes, and when it was last written, in seconds since 1970."""

    uri: str
    size: int
    modified: float


def exists(uri: str) -> bool:
    with errors(uri):
        return Path(uri).exists()


def read_bytes(uri: str) -> bytes:
    with errors(uri):
        return Path(uri).read_bytes()


def read_start(uri: str, size: int, patience_s: float | None) -> bytes:
    with errors(uri), Path(uri).open("rb") as file:
        return file.read(size)


def write_bytes(uri: str, data: bytes) -> None:
    with errors(uri):
        os.replace(_write_beside(Path(uri), data), uri)


def create(uri: str, data: bytes) -> bool:
    with errors(uri):
        temporary = _write_beside(Path(uri), data)
        try:
            os.link(temporary, uri)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
    return True


def create_file(uri: str, path: Path, replace: bool) -> bool:
    with errors(uri):
        target = Path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(0o644)
        if replace:
            os.replace(path, target)
            return True
        try:
            os.link(path, target)
        except FileExistsError:
            return False
    return True


def list_names(uri: str) -> list[str]:
    folder = Path(uri)
    with errors(uri):
        # What starts with a dot is being written by someone.
        return sorted(e.name for e in folder.iterdir() if not e.name.startswith(".")) if folder.is_dir() else []


def walk(uri: str, unfinished: bool) -> Iterator[Stored]:
    with errors(uri):
        try:
            entries = sorted(os.scandir(uri), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if not unfinished and (entry.name.startswith(".") or entry.name.startswith(STAGING)):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from walk(f"{uri}/{entry.name}", unfinished)
                continue
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                stat = entry.stat()
                yield Stored(f"{uri}/{entry.name}", stat.st_size, stat.st_mtime)


def fetch(uri: str, sha256: str | None) -> Path:
    path = Path(uri)
    if not exists(uri):
        raise StorageError(f"{uri}: no such file or folder in the store")
    if sha256:
        with errors(uri):
            if not is_sound(path, sha256):
                raise damaged(uri, sha256)
    return path


def delete(uri: str, purge: bool) -> int:
    path = Path(uri)
    with errors(uri):
        if not path.is_dir() or path.is_symlink():
            if uri.endswith("/"):
                return 0
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return 0
            return 1
        removed = sum(1 for _ in walk(uri.rstrip("/"), unfinished=True))
        # One rename, and no reader sees it; beside it, where a sweep finds it if this process is killed.
        grave = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            os.rename(path, grave / path.name)
        finally:
            shutil.rmtree(grave)
        return removed


def forget_cached(uri: str) -> int:
    return 0


def sweep(store: str, older_than_s: float) -> list[str]:
    with errors(f"store {store}"):
        return left_behind(Path(store), time.time() - older_than_s)


def staging_folder(store: str) -> Path:
    parent = Path(store) / "tmp"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent, prefix=STAGING))
    except OSError as error:
        raise StorageError(f"store {store}: cannot be written ({error.strerror}); choose another `store`") from None


def publish(folder: Path, uri: str, head: str) -> bool:
    target = Path(uri)
    with errors(uri):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # a temporary folder is its maker's alone
        try:
            os.rename(folder, target)
        except OSError:
            if (target / head).exists():  # another process was first
                return False
            if target.exists():
                raise StorageError(f"{uri}: damaged: it has no {head}; delete the folder and run again") from None
            raise
    return True


def left_behind(root: Path, since: float) -> list[str]:
    """Remove what has a temporary's name, or is a staging folder, and was last written before ``since``."""
    removed = []
    for folder, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(folder, name)
            staged = name.startswith(STAGING) and Path(folder) == root / "tmp"
            if not (staged or _TEMPORARY.fullmatch(name)):
                continue
            if name in names:
                names.remove(name)  # whole or not at all
            if last_written(path) < since:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                removed.append(str(path))
    return removed


def is_full(error: OSError) -> bool:
    """Whether a disk, or somebody's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


# Files whose content was compared with a hash, with the size and the time they had: a shard is read many times over.
_sound: dict[tuple[str, str], tuple[int, int]] = {}


def is_sound(path: Path, sha256: str) -> bool:
    """Whether the file's bytes have this hash; computed once for a file that keeps its size and its time."""
    before = path.stat()
    stamp = before.st_size, before.st_mtime_ns
    if _sound.get((str(path), sha256)) == stamp:
        return True
    if file_sha256(path) != sha256:
        return False
    _sound[str(path), sha256] = stamp
    return True


def damaged(uri: str, sha256: str) -> StorageError:
    """What to say of an object whose bytes are not those that its hash names."""
    return StorageError(f"{uri}: damaged: its bytes do not have the SHA-256 {sha256[:12]}…; delete it and run again")


@contextlib.contextmanager
def errors(what: str) -> Iterator[None]:
    """The operating system's errors as one line about ``what``."""
    try:
        yield
    except OSError as error:
        reason = "no space is left on its disk" if is_full(error) else error.strerror or error
        raise StorageError(f"{what}: {reason}") from None


def _write_beside(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.chmod(0o644)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def last_written(path: Path) -> float:
    newest = 0.0
    for place in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, place.lstat().st_mtime)
    return newest
