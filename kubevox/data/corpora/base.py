"""What a corpus is to the rest of the library."""

from __future__ import annotations

import abc
import functools
import hashlib
import hmac
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kubevox.config import Section
from kubevox.errors import CorpusError

__all__ = ["AUDIO_SUFFIXES", "Corpus", "FileCorpus", "Recording", "audio_files", "pseudonym"]

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3"})


@dataclass(frozen=True)
class Recording:
    """One labelled recording as its corpus describes it, not yet decoded.

    Attributes:
        source_id: ``corpus:`` and the path inside the corpus, unique; stable when the corpus is moved.
        read: gives the file's bytes.
        origin: where a person finds it, for messages: a path on this machine, say.
        speaker: ``corpus:id``, pseudonymised, or None where the corpus does not say.
        sex: "female", "male" or None.
        raw_label: the corpus' own label.
        intensity: the corpus' own word, or None.
        language: ISO 639-1 code, or None.
        text: what is said, or None.
    """

    source_id: str
    read: Callable[[], bytes]
    origin: str
    speaker: str | None = None
    sex: str | None = None
    raw_label: str | None = None
    intensity: str | None = None
    language: str | None = None
    text: str | None = None


class Corpus(abc.ABC):
    """A published collection of utterances with its own layout, labels and licence."""

    class Options(Section):
        """What a run may choose about the corpus; subclasses add fields."""

    name: ClassVar[str]
    title: ClassVar[str]
    licence: ClassVar[str]
    citation: ClassVar[str]
    needs_path: ClassVar[bool] = True
    synthetic: ClassVar[bool] = False
    """Whether the voices are made by a machine: scores then say nothing about people."""

    def __init__(self, path: str | None, options: Any) -> None:
        self.path = Path(path).expanduser().absolute() if path else None
        self.options = options

    @property
    def root(self) -> Path:
        """The corpus' folder.

        Raises:
            CorpusError: it is not there, or is no folder.
        """
        if self.path is None or not self.path.is_dir():
            raise CorpusError(
                f"corpus {self.name}: {self.path} is not a folder; name the one that holds the recordings"
            )
        return self.path

    @abc.abstractmethod
    def recordings(self) -> Iterator[Recording]:
        """All recordings, ordered by source id.

        Raises:
            CorpusError: the folder is missing or empty, or a name is not as published.
        """

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many recordings there are."""

    @abc.abstractmethod
    def fingerprint(self) -> Any:
        """A JSON-able value that changes when the recordings do, and is much quicker than reading them."""


class FileCorpus(Corpus):
    """A corpus of one file a recording; a subclass says what a file's name means."""

    layout: ClassVar[str]
    """The published layout, in a few words, for messages."""

    @functools.cached_property
    def files(self) -> list[Path]:
        """The audio files, sorted by their path inside the corpus."""
        return audio_files(self.root, self.name, self.layout)

    @abc.abstractmethod
    def describe(self, file: Path) -> Recording:
        """What the file's place and name say about it.

        Raises:
            CorpusError: the name is not as published.
        """

    def recordings(self) -> Iterator[Recording]:  # noqa: D102
        return (self.describe(file) for file in self.files)

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> Any:
        """Path, size and modification time of each file, as ``make`` would look at them."""
        stats = [(file, file.stat()) for file in self.files]
        return [[self.inside(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]

    def inside(self, file: Path) -> str:
        """The file's path inside the corpus, with forward slashes."""
        return file.relative_to(self.root).as_posix()


def audio_files(root: Path, corpus: str, layout: str) -> list[Path]:
    """The audio files under a folder, sorted by their path inside it.

    Raises:
        CorpusError: there are none; ``layout`` tells what was expected.
    """
    found = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    if not found:
        raise CorpusError(f"corpus {corpus}: no recordings under {root}; expected {layout}")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def pseudonym(corpus: str, identity: str) -> str:
    """``corpus:`` and a name that does not give the speaker's away.

    A keyed hash (HMAC-SHA-256) of the identity. Without ``$KUBEVOX_PSEUDONYM_KEY`` the key is empty: names are then
    not readable in the data, but who can guess a name can confirm it; set the key for speakers who are not public.
    """
    key = os.environ.get("KUBEVOX_PSEUDONYM_KEY", "").encode()
    return f"{corpus}:{hmac.new(key, f'{corpus}:{identity}'.encode(), hashlib.sha256).hexdigest()[:12]}"
