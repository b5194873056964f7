"""Corpora whose tables say what their files are."""

from __future__ import annotations

import abc
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from kubevox.data.corpora.base import Corpus, Recording
from kubevox.errors import CorpusError
from kubevox.provenance import file_sha256

__all__ = ["TableCorpus", "chosen_locales", "columns_of", "file_name", "read_table", "reader_of"]


class TableCorpus(Corpus):
    """A corpus that is read from its tables: no recording is opened, or asked for its size, to list 70 000 of them.

    A recording that a table names is listed whether or not its file is there; without one, reading it fails.
    """

    layout: ClassVar[str]
    """The published layout, in a few words, for messages."""

    @abc.abstractmethod
    def listed(self) -> Iterator[Recording]:
        """What the tables name, in any order.

        Raises:
            CorpusError: a table or the folder of its recordings is missing, or a row is not as published.
        """

    @abc.abstractmethod
    def parts(self) -> tuple[list[Path], list[Path]]:
        """The tables, and the folders of the recordings."""

    @functools.cached_property
    def _recordings(self) -> list[Recording]:
        found = sorted(self.listed(), key=lambda recording: recording.source_id)
        for one, other in itertools.pairwise(found):
            if one.source_id == other.source_id:
                raise CorpusError(f"corpus {self.name}: {other.origin} is listed twice; take one of its rows out")
        if not found:
            raise CorpusError(f"corpus {self.name}: the tables under {self.root} list no recordings")
        return found

    def recordings(self) -> Iterator[Recording]:  # noqa: D102
        return iter(self._recordings)

    def __len__(self) -> int:
        return len(self._recordings)

    def fingerprint(self) -> Any:
        """The tables' hashes, and one over the names, sizes and modification times of the recordings' files."""
        tables, folders = self.parts()
        return {
            "tables": {table.relative_to(self.root).as_posix(): file_sha256(table) for table in tables},
            "files": {folder.relative_to(self.root).as_posix(): _digest_of_files(folder) for folder in folders},
        }


def read_table(
    table: Path, corpus: str, needed: Iterable[str], columns: Iterable[str] | None = None
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The rows of a tab-separated table with their line numbers; quotes mean nothing in it, and fields are stripped.

    Args:
        table: the file, UTF-8.
        corpus: for messages.
        needed: columns that the table must have and that every row must fill.
        columns: their names, where the file's first line does not hold them.

    Raises:
        CorpusError: the table is missing or not UTF-8, lacks a column, or a row does not fill one.
    """
    needed, names = tuple(needed), list(columns or columns_of(table, corpus))
    if missing := [name for name in needed if name not in names]:
        raise CorpusError(f"corpus {corpus}: {table} has no column {missing[0]!r}; it has {', '.join(names)}")
    for number, line in _lines(table, corpus):
        if (number == 1 and columns is None) or not line.strip():
            continue
        row = dict(zip(names, (field.strip() for field in line.split("\t")), strict=False))
        if "\0" in line:
            raise CorpusError(f"corpus {corpus}: {table}, line {number}: a zero byte; the row is not as published")
        for name in needed:
            if not row.get(name):
                raise CorpusError(
                    f"corpus {corpus}: {table}, line {number}: nothing under {name!r}; the row is not as published"
                )
        yield number, row


def columns_of(table: Path, corpus: str) -> list[str]:
    """The names in a table's first line.

    Raises:
        CorpusError: the table is missing or not UTF-8.
    """
    return [name.strip() for _, line in itertools.islice(_lines(table, corpus), 1) for name in line.split("\t")]


def file_name(name: str, corpus: str, table: Path, number: int) -> str:
    """A file's name as a row gives it.

    Raises:
        CorpusError: it leads to another folder.
    """
    if "/" in name or "\\" in name:
        raise CorpusError(f"corpus {corpus}: {table}, line {number}: {name!r} is not the name of a file")
    return name


def _lines(table: Path, corpus: str) -> Iterator[tuple[int, str]]:
    try:
        with table.open(encoding="utf-8-sig") as lines:
            yield from enumerate(lines, 1)
    except UnicodeDecodeError as error:
        raise CorpusError(f"corpus {corpus}: {table} is not UTF-8 ({error}); fetch it again") from None
    except OSError as error:
        raise CorpusError(f"corpus {corpus}: {table} cannot be read ({error.strerror})") from None


def chosen_locales(corpus: str, root: Path, wanted: list[str] | None, there: Iterable[str]) -> list[str]:
    """The wanted locales, all that are there where None is named; sorted.

    Raises:
        CorpusError: a wanted one is not there.
    """
    found = sorted(there)
    for locale in wanted or []:
        if locale not in found:
            raise CorpusError(f"corpus {corpus}: no locale '{locale}' under {root}; there are {', '.join(found)}")
    return sorted(wanted) if wanted else found


def reader_of(file: str) -> functools.partial[bytes]:
    """What reads a file when it is called; smaller than a path, which counts for 70 000 of them."""
    return functools.partial(_read, file)


def _read(file: str) -> bytes:
    with open(file, "rb") as content:
        return content.read()


def _digest_of_files(folder: Path) -> str:
    """SHA-256 over the path, size and modification time of each file under a folder, as ``make`` would look at them."""
    entries = sorted((path, stat.st_size, stat.st_mtime_ns) for path, stat in _walk(str(folder), ""))
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _walk(folder: str, inside: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{inside}{entry.name}/")
            else:
                yield f"{inside}{entry.name}", entry.stat(follow_symlinks=False)
