"""The content of files that a frontend or a recipe rests on, as one hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from kubevox.progress import ProgressBar

__all__ = ["files_hash"]

_CHUNK = 1 << 20
_WORTH_A_BAR = 1 << 28  # bytes; about a second of hashing

# What was hashed in this process, by (name, size, mtime) of its files: a process asks for the same pin many times.
_hashed: dict[tuple[str, tuple[tuple[str, int, int], ...]], str] = {}


def files_hash(root: Path, files: Sequence[Path]) -> str:
    """SHA-256, in hex, over the files' names within ``root``, their sizes and their bytes, in the order given.

    Computed once a process for files of the same names, sizes and times of change.
    """
    names = [path.relative_to(root).as_posix() for path in files]
    states = [path.stat() for path in files]
    key = (
        str(root.resolve()),
        tuple((name, state.st_size, state.st_mtime_ns) for name, state in zip(names, states, strict=True)),
    )
    if key not in _hashed:
        total = sum(state.st_size for state in states)
        if total < _WORTH_A_BAR:
            _hashed[key] = _hash(names, files, None)
        else:
            with ProgressBar(f"hashing {root.name}", total // _CHUNK, "MiB") as bar:
                _hashed[key] = _hash(names, files, bar)
    return _hashed[key]


def _hash(names: Sequence[str], files: Sequence[Path], bar: ProgressBar | None) -> str:
    digest = hashlib.sha256()
    for name, path in zip(names, files, strict=True):
        # Each part is preceded by its length: no two lists of files share a hash by running together.
        digest.update(len(name.encode()).to_bytes(8, "big") + name.encode())
        with path.open("rb") as file:
            digest.update(path.stat().st_size.to_bytes(8, "big"))
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                if bar is not None:
                    bar.update()
    return digest.hexdigest()
