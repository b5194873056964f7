"""What a corpus is to the rest of the library."""

from __future__ import annotations

import abc
import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from kubevox.config import Section
from kubevox.errors import AudioError, CorpusError

__all__ = ["AUDIO_SUFFIXES", "Corpus", "Download", "FileCorpus", "Partition", "Published", "Recording", "audio_files"]

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a"})

Partition = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Published:
    """What a corpus counts when it is complete, as its authors published it.

    Attributes:
        recordings: all of them.
        labels: raw label to recordings.
        speakers: the corpus' own speaker id to recordings; empty where the authors give no such table.
        source: where these counts are published.
    """

    recordings: int
    labels: Mapping[str, int]
    speakers: Mapping[str, int]
    source: str


@dataclass(frozen=True)
class Download:
    """One file of a corpus at its official source.

    Attributes:
        url: where it is.
        name: the file's name here.
        checksum: ``md5:...`` or ``sha256:...`` as the source states it; None where the source states none (what was
            first downloaded is then pinned beside the file).
        size: bytes, as the source states them; None where it does not.
        into: the folder inside the corpus that an archive is unpacked to, or a single file is put in.
    """

    url: str
    name: str
    checksum: str | None = None
    size: int | None = None
    into: str = "."


@dataclass(frozen=True)
class Recording:
    """One labelled recording as its corpus describes it, not yet decoded.

    Names stand here as the corpus has them; ingest pseudonymises them before anything is stored.

    Attributes:
        source_id: ``corpus:`` and the path inside the corpus, unique; stable when the corpus is moved.
        read: gives the file's bytes.
        origin: where a person finds it, for messages: a path on this machine, say.
        speaker: ``corpus:id``, the corpus' own id, or None where the corpus does not say.
        sex: "female", "male" or None.
        raw_label: the corpus' own label.
        intensity: the corpus' own word, or None.
        language: ISO 639-1 code, or None.
        text: what is said, or None.
        partition: which part the corpus' publication puts it in, or None where it has no parts.
        corpus: the corpus that it belongs to, where a list of recordings names another than its own; else None.
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
    partition: Partition | None = None
    corpus: str | None = None


class Corpus(abc.ABC):
    """A published collection of utterances with its own layout, labels and licence.

    Attributes:
        name: as ``data.corpora`` says it.
        title: in full.
        licence: as the authors state it.
        citation: authors, year, where, pages.
        homepage: where a person reads about it and gets it.
        access: in a sentence, what stands between a person and the download: nothing, a form, an agreement.
        languages: ISO 639-1 codes of what is spoken in it; empty where that is the user's matter.
        published: its counts when complete; None where they depend on a release or a choice.
        downloads: its files at the official source; empty where a person has to fetch it.
        needs_path: whether it lies on a disk.
        synthetic: whether the voices are made by a machine: scores then say nothing about people, and no name in it
            is a person's.
    """

    class Options(Section):
        """What a run may choose about the corpus; subclasses add fields."""

    name: ClassVar[str]
    title: ClassVar[str]
    licence: ClassVar[str]
    citation: ClassVar[str]
    homepage: ClassVar[str] = ""
    access: ClassVar[str] = ""
    languages: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[Published | None] = None
    downloads: ClassVar[tuple[Download, ...]] = ()
    needs_path: ClassVar[bool] = True
    synthetic: ClassVar[bool] = False

    def __init__(self, path: str | None, options: Any) -> None:
        self.path = Path(path).expanduser().absolute() if path else None
        self.may_download = False
        self.options = options

    @functools.cached_property
    def root(self) -> Path:
        """The corpus' folder; its archive is unpacked, and it is downloaded where that is wanted, on the first use.

        Raises:
            CorpusError: it is not there, or cannot be unpacked or downloaded.
        """
        from kubevox.data.corpora.archives import locate

        if self.path is not None and self.may_download:
            from kubevox.data.corpora.downloads import provide

            provide(self, self.path)
        return locate(self.path, self.name, self.layout if isinstance(self, FileCorpus) else None)

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

    def passed_over(self) -> dict[str, int]:
        """Files that lie in the corpus and are none of its recordings, by the ending of their names."""
        return {}


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

    def recordings(self) -> Iterator[Recording]:
        """All recordings, ordered by source id; one whose name is not as published cannot be read, and says why.

        Raises:
            CorpusError: the folder is missing or empty.
        """
        for file in self.files:
            try:
                yield self.describe(file)
            except CorpusError as error:
                source_id = f"{self.name}:{self.inside(file)}"
                yield Recording(source_id, functools.partial(_refuse, str(error)), str(file))

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> Any:
        """Path, size and modification time of each file, as ``make`` would look at them."""
        stats = [(file, file.stat()) for file in self.files]
        return [[self.inside(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]

    def passed_over(self) -> dict[str, int]:
        """Copies, songs, videos, texts: whatever else lies there, by the ending of the files' names."""
        return self._others(self.files)

    def _others(self, listed: Iterable[Path]) -> dict[str, int]:
        known = set(listed)
        others = (path for path in self.root.rglob("*") if path not in known and path.is_file())
        return dict(sorted(collections.Counter(path.suffix.lower() or path.name for path in others).items()))

    def inside(self, file: Path) -> str:
        """The file's path inside the corpus, with forward slashes."""
        return file.relative_to(self.root).as_posix()


def _refuse(why: str) -> bytes:
    raise AudioError("unknown_name", why)


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
