"""TESS: emotional speech by two actresses, aged 26 and 64, North American English, University of Toronto.

Each says "Say the word ..." with 200 words in seven emotions; ``OAF_back_angry.wav`` is the older one, "Say the word
back", angry. ``ps`` is pleasant surprise; whether that counts as surprise is for the task's map to say. The archive has
all files in one folder; a copy that goes round has a folder for each speaker and emotion (``OAF_Fear``,
``OAF_Pleasant_surprise``, ``YAF_pleasant_surprised``), and the whole of that a second time inside. The files' names
alone are read, so both will do.

One file is misnamed at the source, ``OA_bite_neutral.wav``; it is the older actress.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from kubevox.data.corpora.base import Download, FileCorpus, Published, Recording, audio_files
from kubevox.data.corpora.copies import without_copies
from kubevox.errors import CorpusError

__all__ = ["Tess"]

_EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")
_NAME = re.compile(rf"(OAF|YAF)_([a-z]+)_({'|'.join(_EMOTIONS)})", re.ASCII | re.IGNORECASE)
_MISNAMED = {"OA_bite_neutral": "OAF_bite_neutral"}


class Tess(FileCorpus):
    """The Toronto emotional speech set (2800 recordings when complete); a second copy of a file is passed over."""

    name = "tess"
    title = "Toronto emotional speech set (TESS)"
    licence = "CC BY-NC-ND 4.0"
    citation = "Pichora-Fuller & Dupuis (2020), Borealis, doi:10.5683/SP2/E8H2MF"
    homepage = "https://doi.org/10.5683/SP2/E8H2MF"
    access = "open; the source packs its 2800 files into one archive when asked"
    languages = ("en",)
    published = Published(
        recordings=2800,
        labels=dict.fromkeys(_EMOTIONS, 400),
        speakers={"OAF": 1400, "YAF": 1400},
        source="https://doi.org/10.5683/SP2/E8H2MF",
    )
    downloads = (
        Download(
            "https://borealisdata.ca/api/access/dataset/:persistentId/?persistentId=doi:10.5683/SP2/E8H2MF",
            "tess.zip",
        ),
    )
    layout = "SPEAKER_word_emotion.wav, such as OAF_back_angry.wav"

    @functools.cached_property
    def files(self) -> list[Path]:
        """The audio files, each once."""
        return without_copies(audio_files(self.root, self.name, self.layout))

    def describe(self, file: Path) -> Recording:
        """Read the name's three fields."""
        match = _NAME.fullmatch(_MISNAMED.get(file.stem, file.stem))
        if match is None:
            raise CorpusError(f"corpus tess: {file} is not named as published ({self.layout})")
        speaker, word, emotion = match.groups()
        return Recording(
            source_id=f"tess:{self.inside(file)}",
            read=file.read_bytes,
            origin=str(file),
            speaker=f"tess:{speaker.upper()}",
            sex="female",
            raw_label=emotion.lower(),
            language="en",
            text=f"Say the word {word.lower()}",
        )
