"""EMO-DB: acted emotional speech by ten actors, German, recorded at TU Berlin.

The published names have seven characters, ``speaker(2) text(3) emotion(1) version(1)``: ``03a01Fa.wav`` is speaker 03,
text a01, Freude (happiness), version a.
"""

from __future__ import annotations

import re
from pathlib import Path

from kubevox.data.corpora.base import Download, FileCorpus, Published, Recording
from kubevox.errors import CorpusError

__all__ = ["EmoDb"]

_NAME = re.compile(r"([0-9]{2})([ab][0-9]{2})([WLEAFTN])([a-z])")
_EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
_MALE_SPEAKERS = frozenset({"03", "10", "11", "12", "15"})
_SPEAKERS = frozenset({"03", "08", "09", "10", "11", "12", "13", "14", "15", "16"})
_TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


class EmoDb(FileCorpus):
    """The Berlin Database of Emotional Speech (535 recordings when complete)."""

    name = "emodb"
    title = "Berlin Database of Emotional Speech (EMO-DB)"
    licence = "free for research; no licence is stated at the source"
    citation = "Burkhardt et al. (2005), Interspeech, 1517-1520"
    homepage = "http://emodb.bilderbar.info/"
    access = "open; one archive"
    languages = ("de",)
    published = Published(
        recordings=535,
        labels={
            "anger": 127,
            "boredom": 81,
            "disgust": 46,
            "fear": 69,
            "happiness": 71,
            "sadness": 62,
            "neutral": 79,
        },
        speakers={
            "03": 49,
            "08": 58,
            "09": 43,
            "10": 38,
            "11": 55,
            "12": 35,
            "13": 61,
            "14": 69,
            "15": 56,
            "16": 71,
        },
        source="http://emodb.bilderbar.info/download/download.zip",
    )
    downloads = (Download("http://emodb.bilderbar.info/download/download.zip", "emodb.zip"),)
    layout = "wav/SSTTTEV.wav, such as 03a01Fa.wav"

    def describe(self, file: Path) -> Recording:
        """Read the name's four fields."""
        match = _NAME.fullmatch(file.stem)
        if match is None or match[1] not in _SPEAKERS or match[2] not in _TEXTS:
            raise CorpusError(f"corpus emodb: {file} is not named as published ({self.layout})")
        speaker, text, emotion, _ = match.groups()
        return Recording(
            source_id=f"emodb:{self.inside(file)}",
            read=file.read_bytes,
            origin=str(file),
            speaker=f"emodb:{speaker}",
            sex="male" if speaker in _MALE_SPEAKERS else "female",
            raw_label=_EMOTIONS[emotion],
            language="de",
            text=_TEXTS[text],
        )
