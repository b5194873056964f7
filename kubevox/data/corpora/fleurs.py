"""FLEURS: Wikipedia sentences read aloud, 102 languages, about twelve hours each; and FLEURS-R, the same restored.

A language is a folder, ``da_dk``, with ``train.tsv``, ``dev.tsv`` and ``test.tsv`` (no header: id, file_name,
raw_transcription, transcription, characters, num_samples, gender) and ``audio/train/*.wav`` and so on. FLEURS-R
(24 kHz; noise and reverberation removed by a model) has the same layout. Neither says who speaks: several people read
each sentence, and the authors state only that those of train are not those of dev and test.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from kubevox.config import Section
from kubevox.data.corpora.base import Download, Partition, Recording
from kubevox.data.corpora.tables import TableCorpus, chosen_locales, file_name, read_table, reader_of
from kubevox.errors import CorpusError

__all__ = ["Fleurs"]

_COLUMNS = ("id", "file_name", "raw_transcription", "transcription", "characters", "num_samples", "gender")
_PARTITIONS: dict[str, Partition] = {"train": "train", "dev": "validation", "test": "test"}
_SEXES = {"MALE": "male", "FEMALE": "female"}
_LOCALE = re.compile(r"[a-z]{2,3}(_[a-z0-9]+)+")
_LOCALES = ("da_dk", "is_is", "nb_no", "sv_se")
_SOURCE = "https://storage.googleapis.com/xtreme_translations/FLEURS102"
_SOURCE_RESTORED = "https://huggingface.co/datasets/google/fleurs-r/resolve/main/data"


def _downloads(locales: list[str] | None, restored: bool) -> tuple[Download, ...]:
    wanted = sorted(locales or _LOCALES)
    if not restored:
        return tuple(Download(f"{_SOURCE}/{locale}.tar.gz", f"{locale}.tar.gz") for locale in wanted)
    files = []
    for locale in wanted:
        for split in _PARTITIONS:
            files.append(Download(f"{_SOURCE_RESTORED}/{locale}/{split}.tsv", f"{split}.tsv", into=locale))
            audio = f"{_SOURCE_RESTORED}/{locale}/audio/{split}.tar.gz"
            files.append(Download(audio, f"{locale}-{split}.tar.gz", into=f"{locale}/audio"))
    return tuple(files)


class Fleurs(TableCorpus):
    """FLEURS or FLEURS-R with its published partitions; speakers are not known."""

    class Options(Section):
        """Which recordings.

        ``locales`` as the corpus names its folders (``da_dk``, ``is_is``, ``nb_no``, ``sv_se``); null: those that are
        there, or these four where the corpus is downloaded. ``restored`` says that it is FLEURS-R.
        """

        locales: list[str] | None = Field(default=None, min_length=1)
        restored: bool = False

    name = "fleurs"
    title = "FLEURS, or its restored version FLEURS-R"
    licence = "CC BY 4.0"
    citation = "Conneau et al. (2022), IEEE SLT, 798-805; FLEURS-R: Ma et al. (2024), Interspeech"
    homepage = "https://huggingface.co/datasets/google/fleurs"
    access = "open; the audio of a language is one archive of one to three gigabytes"
    languages = ("da", "is", "nb", "sv")
    downloads = _downloads(None, restored=False)
    layout = "LOCALE/train.tsv and LOCALE/audio/train/*.wav"

    def __init__(self, path: str | None, options: Any) -> None:
        super().__init__(path, options)
        self.downloads = _downloads(options.locales, options.restored)  # type: ignore[misc]

    def listed(self) -> Iterator[Recording]:  # noqa: D102
        for locale, folder in self._chosen.items():
            for split, partition in _PARTITIONS.items():
                table, audio = folder / f"{split}.tsv", folder / "audio" / split
                if not table.is_file():
                    continue
                if not audio.is_dir():
                    remedy = "unpack the archive there" if Path(f"{audio}.tar.gz").is_file() else "fetch it again"
                    raise CorpusError(f"corpus fleurs: {audio} is not there, which {table.name} is about; {remedy}")
                for number, row in read_table(table, self.name, ("id", "file_name", "gender"), _COLUMNS):
                    file = file_name(row["file_name"], self.name, table, number)
                    path = f"{audio}/{file}"
                    yield Recording(
                        source_id=f"fleurs:{locale}/audio/{split}/{file}",
                        read=reader_of(path),
                        origin=path,
                        sex=_SEXES.get(row["gender"].upper()),
                        language=locale.partition("_")[0],
                        text=row["raw_transcription"] or None,
                        partition=partition,
                    )

    def parts(self) -> tuple[list[Path], list[Path]]:  # noqa: D102
        tables = [folder / f"{split}.tsv" for folder in self._chosen.values() for split in _PARTITIONS]
        audio = [folder / "audio" / split for folder in self._chosen.values() for split in _PARTITIONS]
        return [table for table in tables if table.is_file()], [folder for folder in audio if folder.is_dir()]

    @functools.cached_property
    def _chosen(self) -> dict[str, Path]:
        """The wanted languages' folders: the root, in it, or in its ``data`` folder as Hugging Face has it."""
        there = {
            folder.name: folder
            for folder in (self.root, *self.root.glob("*/"), *self.root.glob("data/*/"))
            if _LOCALE.fullmatch(folder.name) and any((folder / f"{split}.tsv").is_file() for split in _PARTITIONS)
        }
        if not there:
            raise CorpusError(f"corpus fleurs: no tables under {self.root}; expected {self.layout}")
        return {locale: there[locale] for locale in chosen_locales(self.name, self.root, self.options.locales, there)}
