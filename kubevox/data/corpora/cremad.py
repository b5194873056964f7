"""CREMA-D: acted emotional speech by 91 actors, American English, from their audio-visual recordings.

``1001_IEO_ANG_HI.wav`` is actor 1001, sentence IEO, anger, high. One sentence is acted at three levels of intensity,
the others at one that is not specified (``XX``). No emotion is surprise. Each actor has 82 recordings, but for 20 that
were not published: 1002 TIE neutral, 1008 WSI, 1009 MTI and 1019 ITH in all six emotions, 1076 ITS neutral.

The repository has each recording twice, in ``AudioWAV`` and, as it was played to the raters, in ``AudioMP3``; the MP3
is passed over where the WAV is there. One name lacks a letter in ``AudioWAV``: ``1040_ITH_SAD_X.wav``. Some recordings
are known to be no good, and are not taken out here: 1076_MTI_NEU and 1076_MTI_SAD (nearly nothing in them),
1064_TIE_SAD (no length), 1064_IEO_DIS_MD (all emotions in one), and three pairs that are one recording under two
emotions (1006_TIE_HAP and NEU, 1013_WSI_DIS and SAD, 1017_IWW_ANG and FEA).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from kubevox.data.corpora.base import FileCorpus, Published, Recording, audio_files
from kubevox.errors import CorpusError

__all__ = ["CremaD"]

_SENTENCES = {
    "DFA": "Don't forget a jacket",
    "IEO": "It's eleven o'clock",
    "IOM": "I'm on my way to the meeting",
    "ITH": "I think I have a doctor's appointment",
    "ITS": "I think I've seen this before",
    "IWL": "I would like a new alarm clock",
    "IWW": "I wonder what this is about",
    "MTI": "Maybe tomorrow it will be cold",
    "TAI": "The airplane is almost full",
    "TIE": "That is exactly what happened",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}
_EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
_NAME = re.compile(rf"(10[0-9][0-9])_({'|'.join(_SENTENCES)})_({'|'.join(_EMOTIONS)})_(LO|MD|HI|XX)")
_MISNAMED = {"1040_ITH_SAD_X": "1040_ITH_SAD_XX"}
_ACTORS = frozenset(str(actor) for actor in range(1001, 1092))
# VideoDemographics.csv of the repository; the others are men.
_WOMEN = (
    "1002 1003 1004 1006 1007 1008 1009 1010 1012 1013 1018 1020 1021 1024 1025 1028 1029 1030 1037 1043 1046 1047 "
    "1049 1052 1053 1054 1055 1056 1058 1060 1061 1063 1072 1073 1074 1075 1076 1078 1079 1082 1084 1089 1091"
)


class CremaD(FileCorpus):
    """The Crowd-sourced Emotional Multimodal Actors Dataset (7442 recordings when complete)."""

    name = "cremad"
    title = "Crowd-sourced Emotional Multimodal Actors Dataset (CREMA-D)"
    licence = "ODbL 1.0 (the database), DbCL 1.0 (its contents)"
    citation = "Cao et al. (2014), IEEE Transactions on Affective Computing 5(4): 377-390"
    homepage = "https://github.com/CheyneyComputerScience/CREMA-D"
    access = (
        "open, in Git LFS: `git lfs clone --include AudioWAV` the homepage, and give `path` its folder AudioWAV; "
        "GitHub's zip holds pointers in place of the recordings"
    )
    languages = ("en",)
    published = Published(
        recordings=7442,
        labels={emotion: 1087 if emotion == "neutral" else 1271 for emotion in _EMOTIONS.values()},
        speakers=dict.fromkeys(sorted(_ACTORS), 82) | {"1002": 81, "1008": 76, "1009": 76, "1019": 76, "1076": 81},
        source="https://github.com/CheyneyComputerScience/CREMA-D/blob/master/SentenceFilenames.csv",
    )
    layout = "AudioWAV/ACTOR_SENTENCE_EMOTION_LEVEL.wav, such as AudioWAV/1001_IEO_ANG_HI.wav"

    @functools.cached_property
    def files(self) -> list[Path]:
        """The audio files, without the MP3 of a recording whose WAV is there."""
        found = audio_files(self.root, self.name, self.layout)
        waves = {_published_name(file) for file in found if file.suffix.lower() == ".wav"}
        return [file for file in found if file.suffix.lower() != ".mp3" or _published_name(file) not in waves]

    def describe(self, file: Path) -> Recording:
        """Read the name's four fields."""
        match = _NAME.fullmatch(_published_name(file))
        if match is None or match[1] not in _ACTORS:
            raise CorpusError(f"corpus cremad: {file} is not named as published ({self.layout})")
        actor, sentence, emotion, level = match.groups()
        return Recording(
            source_id=f"cremad:{self.inside(file)}",
            read=file.read_bytes,
            origin=str(file),
            speaker=f"cremad:{actor}",
            sex="female" if actor in _WOMEN else "male",
            raw_label=_EMOTIONS[emotion],
            intensity=level,
            language="en",
            text=_SENTENCES[sentence],
        )


def _published_name(file: Path) -> str:
    return _MISNAMED.get(file.stem, file.stem)
