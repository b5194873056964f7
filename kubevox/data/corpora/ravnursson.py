"""Ravnursson: read Faroese, 109 hours by 433 people, an extract of the BLARK 1.0 of the Ravnur project.

The release of CLARIN-IS has one ``metadata.tsv`` and ``speech/**/*.flac``; the one that Hugging Face had before it went
over to Parquet has ``corpus/files/metadata_{train,dev,test}.tsv`` and ``corpus/speech/**/*.flac``. A recording's name,
``MSY03_160519_set1_0008``, is person, day, set where there was more than one, and number. What the metadata call
``speaker_id`` is all but the number, and there are 704 of them for 433 people. The person here is therefore the first
field alone: that may take two people for one, while ``speaker_id`` takes one for two and would let a voice into two
splits.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from kubevox.data.corpora.base import Download, Partition, Published, Recording
from kubevox.data.corpora.tables import TableCorpus, columns_of, file_name, read_table, reader_of
from kubevox.errors import CorpusError

__all__ = ["Ravnursson"]

_PARTITIONS: dict[str, Partition] = {"train": "train", "dev": "validation", "validation": "validation", "test": "test"}
_SEXES = {"female": "female", "male": "male"}
_SEX_OF_LETTER = {"K": "female", "M": "male"}  # kona, maður: the first letter of a person's code
_TABLE = "metadata.tsv"
_TABLES = {f"metadata_{part}.tsv": part for part in ("train", "dev", "test")}


class Ravnursson(TableCorpus):
    """Ravnursson Faroese Speech and Transcripts (71 949 recordings when complete), with its published partitions."""

    name = "ravnursson"
    title = "Ravnursson Faroese Speech and Transcripts"
    licence = "CC BY 4.0"
    citation = (
        "Hernández Mena & Simonsen (2022), CLARIN-IS, hdl:20.500.12537/276; Simonsen et al. (2022), LREC, 4637-4643"
    )
    homepage = "http://hdl.handle.net/20.500.12537/276"
    access = "open; one archive"
    languages = ("fo",)
    published = Published(
        recordings=71_949,
        labels={},
        speakers={},
        source="https://huggingface.co/datasets/carlosdanielhernandezmena/ravnursson_asr",
    )
    downloads = (
        Download(
            "https://repository.clarin.is/repository/xmlui/bitstream/handle/20.500.12537/276/RAVNURSSON.zip",
            "RAVNURSSON.zip",
        ),
    )
    layout = "metadata.tsv and speech/**/*.flac"

    def listed(self) -> Iterator[Recording]:  # noqa: D102
        speech = self._speech
        files = dict(_flac_files(speech))
        if not files:
            raise CorpusError(f"corpus ravnursson: no recordings under {speech}; unpack the archives there")
        for table, part in self._tables:
            columns = columns_of(table, self.name)
            name = "audio_id" if "audio_id" in columns else "id"
            text = "normalized_text" if "normalized_text" in columns else "sentence_norm"
            for number, row in read_table(table, self.name, (name, *(("status",) if part is None else ()))):
                status = row["status"] if part is None else part
                if status not in _PARTITIONS:
                    raise CorpusError(
                        f"corpus ravnursson: {table}, line {number}: unknown status {status!r}; expected train, dev or "
                        "test"
                    )
                recording = file_name(row[name], self.name, table, number)
                path = files.get(recording, f"{speech}/{status}/{recording}.flac")
                person = recording.partition("_")[0]
                yield Recording(
                    source_id=f"ravnursson:{recording}.flac",
                    read=reader_of(path),
                    origin=path,
                    speaker=f"ravnursson:{person}",
                    sex=_SEXES.get(row.get("gender", "").lower()) or _SEX_OF_LETTER.get(person[:1]),
                    language="fo",
                    text=row.get(text) or None,
                    partition=_PARTITIONS[status],
                )

    def parts(self) -> tuple[list[Path], list[Path]]:  # noqa: D102
        return [table for table, _ in self._tables], [self._speech]

    @functools.cached_property
    def _tables(self) -> list[tuple[Path, str | None]]:
        """The tables, each with its part of the corpus, or None where the rows say it."""
        for folder in (self.root, *sorted(self.root.glob("*/"))):
            if (folder / _TABLE).is_file():
                return [(folder / _TABLE, None)]
            for files in (folder, folder / "files"):
                found: list[tuple[Path, str | None]] = [
                    (files / table, part) for table, part in _TABLES.items() if (files / table).is_file()
                ]
                if found:
                    return found
        if next(self.root.glob("**/*.parquet"), None):
            raise CorpusError(
                f"corpus ravnursson: {self.root} holds Hugging Face's Parquet files, which are not read; fetch "
                f"{self.downloads[0].url}"
            )
        raise CorpusError(f"corpus ravnursson: no metadata under {self.root}; expected {self.layout}")

    @functools.cached_property
    def _speech(self) -> Path:
        folder = self._tables[0][0].parent
        speech = (folder.parent if folder.name == "files" else folder) / "speech"
        if not speech.is_dir():
            raise CorpusError(f"corpus ravnursson: {speech} is not there; unpack the whole archive")
        return speech


def _flac_files(speech: Path) -> Iterator[tuple[str, str]]:
    """Each recording's id and path; how deep they lie differs between releases."""
    for folder, _, files in os.walk(speech):
        for file in files:
            if file.endswith((".flac", ".wav")):
                yield file.rpartition(".")[0], f"{folder}/{file}"
