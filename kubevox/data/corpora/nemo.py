"""nEMO: acted emotional speech by nine actors, Polish, Adam Mickiewicz University.

``EB0_fear_29.wav`` is speaker EB0, fear, sentence 29 of 90. What is said stands in ``data.tsv`` beside the folder of
the recordings; without it, the texts are not known. No emotion is disgust, and not every actor has every sentence in
every emotion.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kubevox.data.corpora.base import Download, FileCorpus, Published, Recording
from kubevox.data.corpora.tables import read_table
from kubevox.errors import CorpusError

__all__ = ["Nemo"]

_LABELS = {"anger": 749, "fear": 736, "happiness": 749, "neutral": 809, "sadness": 769, "surprised": 669}
_SEXES = {
    "EB0": "female",
    "IC0": "female",
    "KD0": "female",
    "KS0": "male",
    "MK0": "female",
    "MP0": "male",
    "SM0": "male",
    "TP0": "male",
    "WR0": "male",
}
_NAME = re.compile(rf"({'|'.join(_SEXES)})_({'|'.join(_LABELS)})_([1-9]|[1-8][0-9]|90)")
_TABLE = "data.tsv"
# The repository as it was when its recordings and their table were published.
_COMMIT = "06f1f83dde8f1a780443a57d53b2af3971af34ab"


class Nemo(FileCorpus):
    """nEMO (4481 recordings when complete)."""

    name = "nemo"
    title = "nEMO: Dataset of Emotional Speech in Polish"
    licence = "CC BY-NC-SA 4.0"
    citation = "Christop (2024), LREC-COLING; arXiv:2404.06292"
    homepage = "https://github.com/amu-cai/nEMO"
    access = "open; one archive"
    languages = ("pl",)
    published = Published(recordings=4481, labels=_LABELS, speakers={}, source="https://arxiv.org/abs/2404.06292")
    downloads = (Download(f"https://github.com/amu-cai/nEMO/archive/{_COMMIT}.zip", "nEMO.zip"),)
    layout = "samples/SPEAKER_emotion_sentence.wav, such as samples/EB0_fear_29.wav"

    def describe(self, file: Path) -> Recording:
        """Read the name's three fields, and look the text up."""
        match = _NAME.fullmatch(file.stem)
        if match is None:
            raise CorpusError(f"corpus nemo: {file} is not named as published ({self.layout})")
        speaker, emotion, _ = match.groups()
        return Recording(
            source_id=f"nemo:{self.inside(file)}",
            read=file.read_bytes,
            origin=str(file),
            speaker=f"nemo:{speaker}",
            sex=_SEXES[speaker],
            raw_label=emotion,
            language="pl",
            text=self._texts.get(file.stem),
        )

    def recordings(self) -> Iterator[Recording]:
        """As of any files; a table that cannot be read is the corpus' error and not one of each recording."""
        _ = self._texts
        return super().recordings()

    def fingerprint(self) -> Any:
        """As of any files, and the table's size and time, since the texts come from it."""
        stats = [(table, table.stat()) for table in self._tables]
        return [
            *super().fingerprint(),
            *([self.inside(table), stat.st_size, stat.st_mtime_ns] for table, stat in stats),
        ]

    @property
    def _tables(self) -> list[Path]:
        return sorted(self.root.rglob(_TABLE))

    @functools.cached_property
    def _texts(self) -> Mapping[str, str]:
        """The stem of a file's name to what is said in it."""
        return {
            Path(row["file_id"]).stem: row["raw_text"]
            for table in self._tables
            for _, row in read_table(table, self.name, ("file_id", "raw_text"))
        }
