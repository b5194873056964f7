"""Any recordings of your own: one subfolder a label."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import field_validator

from kubevox.config import Section
from kubevox.data.corpora.base import FileCorpus, Recording, pseudonym
from kubevox.errors import CorpusError

__all__ = ["Folder"]


class Folder(FileCorpus):
    """One subfolder a label; the speaker is found by a pattern in the file's name."""

    class Options(Section):
        """How to read the folder.

        ``speaker`` is a regular expression searched in the file's path inside its label's folder; its group named
        ``speaker`` (or its first group) is the speaker. By default that is what stands before the first ``_`` or ``-``
        of the file's name. None: the speakers are not known, and no split can be certified as speaker-disjoint.
        ``label_is`` tells whether the subfolders name raw labels or languages.
        """

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
    layout = "LABEL/SPEAKER_anything.wav"

    def __init__(self, path: str | None, options: Any) -> None:
        super().__init__(path, options)
        self._speaker = re.compile(options.speaker) if options.speaker else None

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
        if match is None:
            raise CorpusError(
                f"corpus folder: no speaker in the name of {file} (pattern {self.options.speaker}); set the option "
                "`speaker` to a pattern that finds it, or to null where speakers are not known"
            )
        return pseudonym("folder", match["speaker"] if "speaker" in match.groupdict() else match[1])
