"""Files that lie in a corpus' folder twice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ["without_copies"]


def without_copies(files: Iterable[Path]) -> list[Path]:
    """The files in their order, without those that have the name and the size of another.

    Copies of RAVDESS and TESS go round that hold the whole tree a second time, in a folder of its own. Of such a pair
    the file that lies less deep stays. A file of the same name and another size is no copy, and stays as well. Only for
    corpora in which a name says all about a recording.
    """
    files = list(files)
    kept: dict[tuple[str, int], Path] = {}
    for file in sorted(files, key=lambda file: (len(file.parts), file.as_posix())):
        kept.setdefault((file.name.lower(), file.stat().st_size), file)
    staying = set(kept.values())
    return [file for file in files if file in staying]
