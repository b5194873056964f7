"""SAVEE: acted emotional speech by four men of the University of Surrey, British English.

A name is an emotion's letters and a sentence's number: ``sa03.wav`` is the third sad sentence. The archive has a folder
a speaker, ``AudioData/DC/sa03.wav``; a copy that goes round has one folder and the speaker in the name,
``DC_sa03.wav``. Each speaker has 15 sentences of each emotion, and 30 neutral ones. The sentences are TIMIT's; the
names do not tell which, so a recording's text is not known.
"""

from __future__ import annotations

import re
from pathlib import Path

from kubevox.data.corpora.base import FileCorpus, Published, Recording
from kubevox.errors import CorpusError

__all__ = ["Savee"]

_SPEAKERS = ("DC", "JE", "JK", "KL")
_EMOTIONS = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}
_SENTENCES = {emotion: 30 if emotion == "neutral" else 15 for emotion in _EMOTIONS.values()}
_NAME = re.compile(rf"({'|'.join(_SPEAKERS)})_(sa|su|[adfhn])([0-9][0-9])")


class Savee(FileCorpus):
    """The Surrey Audio-Visual Expressed Emotion database (480 recordings when complete)."""

    name = "savee"
    title = "Surrey Audio-Visual Expressed Emotion (SAVEE)"
    licence = "free of charge for research, after registration"
    citation = "Haq & Jackson (2010), in: Machine Audition, IGI Global, 398-423"
    homepage = "http://kahlan.eps.surrey.ac.uk/savee/"
    access = "registration, for the password of the download page; then give `path` the archive or its folder"
    languages = ("en",)
    published = Published(
        recordings=480,
        labels={emotion: len(_SPEAKERS) * count for emotion, count in _SENTENCES.items()},
        speakers=dict.fromkeys(_SPEAKERS, sum(_SENTENCES.values())),
        source="http://kahlan.eps.surrey.ac.uk/savee/",
    )
    layout = "SPEAKER_ENN.wav, such as DC_sa03.wav, or SPEAKER/ENN.wav"

    def describe(self, file: Path) -> Recording:
        """Read emotion and number, and the speaker from the name or from the folder."""
        match = _NAME.fullmatch(file.stem) or _NAME.fullmatch(f"{file.parent.name}_{file.stem}")
        if match is None or not 1 <= int(match[3]) <= _SENTENCES[_EMOTIONS[match[2]]]:
            raise CorpusError(f"corpus savee: {file} is not named as published ({self.layout})")
        speaker, emotion, _ = match.groups()
        return Recording(
            source_id=f"savee:{self.inside(file)}",
            read=file.read_bytes,
            origin=str(file),
            speaker=f"savee:{speaker}",
            sex="male",
            raw_label=_EMOTIONS[emotion],
            language="en",
        )
