"""Any recordings of your own: one subfolder a label, or a list of them as CSV."""

from __future__ import annotations

import csv
import difflib
import functools
import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast, get_args

from pydantic import field_validator

from kubevox.config import Section
from kubevox.data.corpora.base import FileCorpus, Partition, Recording
from kubevox.data.corpora.tables import reader_of
from kubevox.errors import CorpusError

__all__ = ["Folder"]

_COLUMNS = (
    "path",
    "label",
    "raw_label",
    "speaker",
    "sex",
    "intensity",
    "language",
    "text",
    "partition",
    "corpus",
)


class Folder(FileCorpus):
    """One subfolder a label and the speaker in the file's name; or what a CSV says of the files in the folder.

    The CSV (UTF-8; comma, semicolon or tab) has a header row and a row for each recording. ``path`` is inside the
    folder. ``label`` is what ``label_is`` says; ``raw_label`` and ``language`` can be given by their own names. The
    others may be missing or empty: ``speaker``, ``sex`` (female, male), ``intensity``, ``text``, ``partition`` (train,
    validation, test), and ``corpus``: the corpus that a recording was taken from, whose speaker ``speaker`` then is. A
    list may hold recordings of several corpora, and their speakers stay the same people. Further columns are passed
    over.
    """

    class Options(Section):
        """How to read the folder.

        ``csv`` is the list's name in the folder, or its full path; null: labels are subfolders. With a list, speakers
        are those of its column, and ``language`` is that of rows that name none.
        ``speaker`` is a regular expression searched in the file's path inside its label's folder; its group named
        ``speaker`` (or its first group) is the speaker. By default that is what stands before the first ``_`` or ``-``
        of the file's name. None: the speakers are not known, and no split can be certified as speaker-disjoint.
        ``label_is`` tells whether the subfolders name raw labels or languages.
        """

        csv: str | None = None
        speaker: str | None = r"(?:^|/)(?P<speaker>[^_\-/]+)[_\-][^/]*$"
        language: str | None = None
        label_is: str = "raw_label"

        @field_validator("speaker")
        @classmethod
        def _pattern_has_a_group(cls, pattern: str | None) -> str | None:
            if pattern is None:
                return None
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
            if not compiled.groups:
                raise ValueError("the pattern needs a group, such as (?P<speaker>[^_]+)")
            return pattern

        @field_validator("label_is")
        @classmethod
        def _label_is_a_column(cls, column: str) -> str:
            if column not in ("raw_label", "language"):
                raise ValueError("expected raw_label or language")
            return column

    name = "folder"
    title = "A folder of recordings"
    licence = "as its owner says"
    citation = "none"
    access = "its owner's matter"
    layout = "LABEL/SPEAKER_anything.wav"

    def __init__(self, path: str | None, options: Any) -> None:
        super().__init__(path, options)
        self._speaker = re.compile(options.speaker) if options.speaker else None

    def recordings(self) -> Iterator[Recording]:
        """All recordings, ordered by source id; of a list also those whose files are missing, which cannot be read.

        Raises:
            CorpusError: the folder is missing or empty, or the list is missing or has a row that cannot be used.
        """
        return super().recordings() if self.options.csv is None else iter(self._listed)

    def __len__(self) -> int:
        return super().__len__() if self.options.csv is None else len(self._listed)

    def fingerprint(self) -> Any:
        """Path, size and modification time of each file, and the hash of the list."""
        if self.options.csv is None:
            return super().fingerprint()
        # In the order of their source ids; the list has the names.
        files = [_stat(recording.origin) for recording in self._listed]
        return {"csv": hashlib.sha256(self._list[1]).hexdigest(), "files": files}

    def passed_over(self) -> dict[str, int]:
        """Whatever else lies there, but for the list itself; of audio, what the list does not name."""
        if self.options.csv is None:
            return super().passed_over()
        return self._others([self._list[0], *(Path(recording.origin) for recording in self._listed)])

    def describe(self, file: Path) -> Recording:
        """The first folder is the label, the rest of the path holds the speaker."""
        inside = self.inside(file)
        label, slash, rest = inside.partition("/")
        if not slash:
            raise CorpusError(f"corpus folder: {file} lies in no label's subfolder; expected {self.layout}")
        by_language = self.options.label_is == "language"
        return Recording(
            source_id=f"folder:{inside}",
            read=file.read_bytes,
            origin=str(file),
            speaker=self._speaker_of(file, rest),
            raw_label=None if by_language else label,
            language=label if by_language else self.options.language,
        )

    def _speaker_of(self, file: Path, rest: str) -> str | None:
        if self._speaker is None:
            return None
        match = self._speaker.search(str(Path(rest).with_suffix("")))
        speaker = match and (match["speaker"] if "speaker" in match.groupdict() else match[1])
        if not speaker:  # also where a group that may be absent is
            raise CorpusError(
                f"corpus folder: no speaker in the name of {file} (pattern {self.options.speaker}); set the option "
                "`speaker` to a pattern that finds it, or to null where speakers are not known"
            )
        return f"folder:{speaker}"

    @functools.cached_property
    def _list(self) -> tuple[Path, bytes]:
        """The list's place and content."""
        place = self.root / Path(self.options.csv).expanduser()
        try:
            return place, place.read_bytes()
        except OSError as error:
            raise CorpusError(
                f"corpus folder: the list {place} cannot be read ({error.strerror}); name it in the option `csv`"
            ) from None

    @functools.cached_property
    def _listed(self) -> list[Recording]:
        place, content = self._list
        recordings: dict[str, tuple[int, Recording]] = {}
        root = self.root
        guard = _Inside(root)
        for number, row in _rows(place, content, self.options.label_is):
            where = f"{place}, line {number}"
            try:
                path = guard.normal(row["path"])
                recording = self._recording(f"{root}/{path}", path, row)
            except ValueError as error:
                raise CorpusError(f"corpus folder: {where}: {error}") from None
            if path in recordings:
                raise CorpusError(
                    f"corpus folder: {where}: {path} is in line {recordings[path][0]} already; take one of them out"
                )
            recordings[path] = (number, recording)
        if not recordings:
            raise CorpusError(f"corpus folder: the list {place} has no rows")
        return sorted((recording for _, recording in recordings.values()), key=lambda recording: recording.source_id)

    def _recording(self, file: str, path: str, row: Mapping[str, str]) -> Recording:
        """What a row says.

        Raises:
            ValueError: one of its values is not allowed; the text tells which.
        """
        corpus = row.get("corpus") or None
        if corpus is not None and not re.fullmatch(r"[a-z][a-z0-9_-]*", corpus):
            raise ValueError(f"corpus {corpus!r} is no corpus' name; expected lower-case letters, such as ravdess")
        prefix = corpus or self.name
        speaker = row.get("speaker", "").removeprefix(f"{prefix}:")
        sex, partition = row.get("sex", "").lower(), row.get("partition", "").lower()
        if sex not in ("", "female", "male"):
            raise ValueError(f"unknown sex {sex!r}; expected female, male or nothing")
        if partition not in ("", *get_args(Partition)):
            raise ValueError(f"unknown partition {partition!r}; expected train, validation, test or nothing")
        by_language = self.options.label_is == "language"
        raw_label = row.get("raw_label") or (None if by_language else row.get("label"))
        language = row.get("language") or (row.get("label") if by_language else self.options.language)
        if by_language and not language:
            raise ValueError("no language")
        if not by_language and not raw_label:
            raise ValueError("no label (a list of languages needs the option `label_is: language`)")
        return Recording(
            source_id=f"{prefix}:{path}",
            read=reader_of(file),
            origin=file,
            speaker=f"{prefix}:{speaker}" if speaker else None,
            sex=sex or None,
            raw_label=raw_label or None,
            intensity=row.get("intensity") or None,
            language=language or None,
            text=row.get("text") or None,
            partition=cast("Partition | None", partition or None),
            corpus=corpus,
        )


class _Inside:
    """Paths that may not leave a folder, neither by their words nor over a link."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real = os.path.realpath(root)
        self._links: dict[str, set[str]] = {}

    def normal(self, path: str) -> str:
        """The path in its shortest form.

        Raises:
            ValueError: it leads outside.
        """
        parts = PurePosixPath(path).parts
        if not parts or "\0" in path:
            raise ValueError(f"{path!r} is no path")
        if parts[0] == "/" or ".." in parts or re.match(r"[A-Za-z]:|\\\\", path):
            raise ValueError(f"{path!r} leads outside the folder; give the path inside it")
        *folders, name = parts
        folder = "/".join(folders)
        # A folder is looked at once, not every file of it.
        if folder not in self._links:
            self._check(folder, path)
            self._links[folder] = _links_in(self._root / folder)
        if name in self._links[folder]:
            self._check("/".join(parts), path)
        return "/".join(parts)

    def _check(self, inside: str, path: str) -> None:
        # Not Path.resolve, which gives up where a link leads to itself.
        if not Path(os.path.realpath(self._root / inside)).is_relative_to(self._real):
            raise ValueError(f"{path!r} leads outside the folder over a link; copy the file into the folder")


def _links_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:  # the folder is missing; so are its files, which reading them will tell
        return set()


def _rows(place: Path, content: bytes, label_is: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a list, each with the line that it begins in.

    Raises:
        CorpusError: it is not UTF-8, lacks a column, or has a row of another length than its header.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"corpus folder: {place}, line {line}: not UTF-8; save the list as UTF-8") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 0
    header: list[str] = []
    try:
        for fields in reader:
            began, line = line + 1, reader.line_num
            if not any(field.strip() for field in fields):
                continue
            if not header:
                header = [field.strip().lower() for field in fields]
                _check_header(place, header, label_is)
                continue
            if len(fields) != len(header):
                raise CorpusError(
                    f"corpus folder: {place}, line {began}: {len(fields)} fields, where the header has {len(header)}; "
                    "put fields that hold a comma into double quotes"
                )
            yield began, dict(zip(header, (field.strip() for field in fields), strict=True))
    except csv.Error as error:
        raise CorpusError(f"corpus folder: {place}, line {line + 1}: not a row of a CSV ({error})") from None
    if not header:
        raise CorpusError(f"corpus folder: the list {place} is empty; expected a header with path and label")


def _check_header(place: Path, header: list[str], label_is: str) -> None:
    where = f"corpus folder: {place}, line 1"
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise CorpusError(f"{where}: two columns are called {twice[0]!r}")
    for name in set(header) - set(_COLUMNS):
        # A misspelled column would be lost without a word.
        if near := difflib.get_close_matches(name, [known for known in _COLUMNS if known not in header], 1, 0.8):
            raise CorpusError(f"{where}: unknown column {name!r}; did you mean {near[0]!r}?")
    if "path" not in header:
        raise CorpusError(f"{where}: no column 'path'; found are {', '.join(header)}")
    labels = {"label", label_is} & set(header)
    if not labels:
        raise CorpusError(f"{where}: no column 'label' or '{label_is}'; found are {', '.join(header)}")
    if len(labels) == 2:
        raise CorpusError(f"{where}: 'label' and '{label_is}' are the same here; take one of them out")


def _stat(file: str) -> list[int] | list[None]:
    try:
        stat = os.stat(file)
    except OSError:
        return [None, None]
    return [stat.st_size, stat.st_mtime_ns]
