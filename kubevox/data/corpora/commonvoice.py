"""Common Voice: sentences read aloud by volunteers, many languages; any release.

A release has a folder a locale, ``cv-corpus-17.0-2024-03-15/da``, with ``clips/*.mp3`` and a table for each state of
review: ``validated.tsv`` (two listeners agreed), of which ``train.tsv``, ``dev.tsv`` and ``test.tsv`` are a selection
in which no speaker is in two of the three, ``other.tsv`` and ``invalidated.tsv``. Releases differ in their columns
(``accent`` became ``accents``; ``sentence_id``, ``sentence_domain`` and ``variant`` came) and in their words for the
sexes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from kubevox.config import Section
from kubevox.data.corpora.base import Partition, Recording
from kubevox.data.corpora.tables import TableCorpus, chosen_locales, file_name, read_table, reader_of
from kubevox.errors import CorpusError

__all__ = ["CommonVoice"]

_PARTITIONS: dict[str, Partition] = {"train.tsv": "train", "dev.tsv": "validation", "test.tsv": "test"}
_TABLES = ("validated.tsv", *_PARTITIONS)
_SEXES = {"male": "male", "male_masculine": "male", "female": "female", "female_feminine": "female"}


class CommonVoice(TableCorpus):
    """The clips of a release that listeners approved."""

    class Options(Section):
        """Which clips.

        ``locales`` as the release names its folders (``da``, ``is``, ``nn-NO``, ``sv-SE``); null: those that are there.
        ``subset`` is ``validated``, all approved clips, or ``splits``, those of the published train, dev and test
        tables. Either way a clip that one of the three names carries its partition.
        """

        locales: list[str] | None = Field(default=None, min_length=1)
        subset: Literal["validated", "splits"] = "validated"

    name = "commonvoice"
    title = "Mozilla Common Voice"
    licence = "CC0 1.0; whoever downloads it agrees not to try to identify a speaker"
    citation = "Ardila et al. (2020), LREC, 4218-4222"
    homepage = "https://commonvoice.mozilla.org/datasets"
    access = (
        "Mozilla Data Collective gives the archives to whoever has an account and accepts the terms; unpack them into "
        "one folder"
    )
    languages = ("da", "is", "nn", "sv")
    layout = "LOCALE/validated.tsv and LOCALE/clips/*.mp3"

    def listed(self) -> Iterator[Recording]:  # noqa: D102
        for locale, folder in self._chosen.items():
            clips = folder / "clips"
            if not clips.is_dir():
                raise CorpusError(f"corpus commonvoice: {clips} is not there; unpack the whole archive of '{locale}'")
            partitions = self._partitions(folder)
            if self.options.subset == "splits":
                tables = [folder / name for name in _PARTITIONS if (folder / name).is_file()]
            else:
                tables = [folder / "validated.tsv"]
            for table in tables:
                for number, row in read_table(table, self.name, ("client_id", "path")):
                    clip = file_name(row["path"], self.name, table, number)
                    if "." not in clip:
                        clip += ".mp3"  # the first releases name no suffix
                    path = f"{clips}/{clip}"
                    yield Recording(
                        source_id=f"commonvoice:{locale}/clips/{clip}",
                        read=reader_of(path),
                        origin=path,
                        speaker=f"commonvoice:{row['client_id']}",
                        sex=_SEXES.get(row.get("gender", "").lower()),
                        language=locale.partition("-")[0],
                        text=row.get("sentence") or None,
                        partition=partitions.get(row["path"]),
                    )

    def parts(self) -> tuple[list[Path], list[Path]]:  # noqa: D102
        folders = list(self._chosen.values())
        tables = [folder / name for folder in folders for name in _TABLES if (folder / name).is_file()]
        return tables, [folder / "clips" for folder in folders if (folder / "clips").is_dir()]

    @functools.cached_property
    def _chosen(self) -> dict[str, Path]:
        """The wanted locales' folders: the root is one, or a release of several, or holds releases."""
        there: dict[str, Path] = {}
        folders = (folder for depth in ("*/", "*/*/") for folder in sorted(self.root.glob(depth)))
        for folder in [self.root] if _has_tables(self.root) else filter(_has_tables, folders):
            locale = _locale_of(folder)
            if locale in there:
                raise CorpusError(
                    f"corpus commonvoice: locale '{locale}' is in {there[locale]} and in {folder}; name one release"
                )
            there[locale] = folder
        if not there:
            raise CorpusError(f"corpus commonvoice: no tables under {self.root}; expected {self.layout}")
        return {locale: there[locale] for locale in chosen_locales(self.name, self.root, self.options.locales, there)}

    def _partitions(self, folder: Path) -> dict[str, Partition]:
        """Where the published tables put a clip, by its name in the tables."""
        found: dict[str, Partition] = {}
        there = [name for name in _PARTITIONS if (folder / name).is_file()]
        if not there and self.options.subset == "splits":
            raise CorpusError(
                f"corpus commonvoice: {folder} has none of {', '.join(_PARTITIONS)}; set `subset` to validated"
            )
        for name in there:
            for number, row in read_table(folder / name, self.name, ("path",)):
                if row["path"] in found:
                    raise CorpusError(
                        f"corpus commonvoice: {folder / name}, line {number}: {row['path']} is in {found[row['path']]} "
                        "already; fetch the archive again"
                    )
                found[row["path"]] = _PARTITIONS[name]
        return found


def _has_tables(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TABLES)


def _locale_of(folder: Path) -> str:
    """As the rows say it, since a folder may have been renamed; as the folder is called where there is no row."""
    for name in _TABLES:
        if (folder / name).is_file():
            for _, row in read_table(folder / name, "commonvoice", ("path",)):
                return row.get("locale") or folder.name
    return folder.name
