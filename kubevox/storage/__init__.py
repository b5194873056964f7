"""One store behind one kind of URI: a folder (``/data/store``) or a bucket (``s3://bucket/prefix``).

What is stored is named by its content and never rewritten. A folder is published whole or not at all: locally by a
rename, in a bucket by uploading its *head* file (``dataset.json``, ``bundle.json``, ...) last; readers look for the
head. Credentials come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``), the
endpoint from ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``; nothing here knows which server answers. What a bucket
gives is copied to ``$KUBEVOX_CACHE`` (``~/.cache/kubevox``).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubevox.errors import StorageError
from kubevox.provenance import canonical_json
from kubevox.storage import buckets, folders
from kubevox.storage.folders import Stored

__all__ = [
    "Stored",
    "absolute",
    "create",
    "create_file",
    "delete",
    "exists",
    "fetch",
    "forget_cached",
    "join",
    "list_names",
    "publish",
    "read_bytes",
    "read_json",
    "read_start",
    "recall",
    "remember",
    "staging",
    "sweep",
    "walk",
    "write_bytes",
]


def join(uri: str, *parts: str) -> str:
    """``uri`` followed by the parts, with single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """The URI with a relative folder made absolute, so that it means the same in every working directory."""
    if uri.startswith("s3://"):
        return uri.rstrip("/")
    if "://" in uri:
        raise StorageError(f"store {uri!r}: only a folder or s3://bucket/prefix can hold a store")
    return str(Path(uri).expanduser().absolute())


def exists(uri: str) -> bool:
    """Whether an object (not a folder of a bucket) is there."""
    return _place(uri).exists(uri)


def read_bytes(uri: str) -> bytes:
    """The object's bytes.

    Raises:
        StorageError: it is not there or the store does not answer.
    """
    return _place(uri).read_bytes(uri)


def read_start(uri: str, size: int, patience_s: float | None = None) -> bytes:
    """The object's first bytes, and no more of it, however large it is.

    Args:
        uri: the object.
        size: how many bytes at the most; fewer come only where the object ends.
        patience_s: how long a bucket that stumbles is asked again, in seconds; None: as long as for everything else.

    Raises:
        StorageError: it is not there or the store does not answer.
    """
    return _place(uri).read_start(uri, size, patience_s)


def read_json(uri: str) -> Any:
    """The object, parsed as JSON.

    Raises:
        StorageError: it is not there or holds no JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StorageError(f"{uri}: not valid JSON ({error}); the object is damaged") from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object whole: under a temporary name, then renamed. The last writer wins."""
    _place(uri).write_bytes(uri, data)


def create(uri: str, data: bytes) -> bool:
    """Write an object only where there is none; the first writer wins, also against other processes.

    Returns:
        Whether this call wrote it.
    """
    return _place(uri).create(uri, data)


def create_file(uri: str, path: Path, replace: bool = False) -> bool:
    """Put a finished local file under ``uri`` without reading it into memory.

    In a bucket the first writer wins up to 256 MiB; of a larger file, which goes up in parts, two that finish at the
    same moment may both be told that they were first, where the server ignores conditions on such uploads.

    Args:
        uri: where to.
        path: the file, in a :func:`staging` folder of the same store.
        replace: whether something damaged is there that gives way.

    Returns:
        Whether this call put it there: False where another process was first.
    """
    return _place(uri).create_file(uri, path, replace)


def list_names(uri: str) -> list[str]:
    """The names directly under a folder, sorted; none where the folder is not there."""
    return _place(uri).list_names(uri)


def walk(uri: str, unfinished: bool = False) -> Iterator[Stored]:
    """All objects under a folder, however deep; none where the folder is not there.

    Args:
        uri: the folder.
        unfinished: whether to name also what is being written, or was left by a writer that was killed: in a folder,
            names that start with a dot and staging folders. An unfinished upload to a bucket has no name yet.

    Yields:
        Each object's URI, its size in bytes, and when it was last written, in seconds since 1970.

    Raises:
        StorageError: the store does not answer or cannot be read.
    """
    return _place(uri).walk(uri.rstrip("/"), unfinished)


def fetch(uri: str, sha256: str | None = None) -> Path:
    """A local path that holds the object or the folder: the thing itself, or a copy kept in the cache.

    Copies are never refreshed: what is stored under a content's name does not change.

    Args:
        uri: the object, or the folder.
        sha256: the SHA-256 of the object's bytes, in hex. The file is compared with it, once a process as long as its
            size and time stay; a copy that differs is fetched once more.

    Raises:
        StorageError: it is not there, or its bytes are not those that the hash names.
    """
    return _place(uri).fetch(uri, sha256)


def delete(uri: str, purge: bool = False) -> int:
    """Remove an object, or a folder with everything in it; also the copies of it in this machine's cache.

    A folder goes at once for its readers: locally it is renamed first, in a bucket its head goes first. Deleting what
    is not there is no error.

    Args:
        uri: what to remove. A name in a bucket can be both; with a trailing slash only what is under it goes.
        purge: whether to remove older versions too, where a bucket keeps them; otherwise they stay there.

    Returns:
        How many objects were removed.

    Raises:
        StorageError: something could not be removed.
    """
    removed = _place(uri).delete(uri, purge)
    forget_cached(uri)
    return removed


def forget_cached(uri: str) -> int:
    """Remove this machine's copies of a bucket's object or folder, of all under it, and of the folders that hold it.

    Returns:
        How many copies were removed; of a folder store there are none.
    """
    return _place(uri).forget_cached(uri)


def sweep(store: str, older_than_s: float = 86_400.0) -> list[str]:
    """Remove what writers that were killed left behind: staging folders, temporary files, unfinished uploads.

    Args:
        store: the store.
        older_than_s: how long nothing may have been written there, in seconds, before it counts as left behind; longer
            than the longest pause of a run that still works.

    Returns:
        What was removed.
    """
    return _place(store).sweep(store.rstrip("/"), older_than_s)


@contextlib.contextmanager
def staging(store: str) -> Iterator[Path]:
    """A temporary folder on the store's own file system, gone afterwards whatever happens.

    Raises:
        StorageError: the store cannot be written, or the work inside fills the disk.
    """
    folder: Path = _place(store).staging_folder(store)
    try:
        yield folder
    except OSError as error:
        if not folders.is_full(error):
            raise
        where = "; free some, or set TMPDIR to another disk" if store.startswith("s3://") else ""
        raise StorageError(f"store {store}: no space is left on the disk of {folder}{where}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, uri: str, head: str) -> bool:
    """Make a finished local folder visible under ``uri``, all at once; ``head`` is the file that readers look for.

    Returns:
        Whether this call published it: False where the same content was there already.
    """
    return False if exists(join(uri, head)) else _place(uri).publish(folder, uri, head)


def recall(store: str, stage: str, key: str) -> dict[str, Any] | None:
    """What ``stage`` answered the last time its inputs had this key, or None."""
    uri = join(store, "memo", stage, f"{key}.json")
    return read_json(uri) if exists(uri) else None


def remember(store: str, stage: str, key: str, answer: dict[str, Any]) -> None:
    """Keep a stage's answer under the key of its inputs."""
    write_bytes(join(store, "memo", stage, f"{key}.json"), canonical_json(answer).encode())


def _place(uri: str) -> Any:
    """The module that keeps what such a URI names; both have the same functions."""
    return buckets if uri.startswith("s3://") else folders
