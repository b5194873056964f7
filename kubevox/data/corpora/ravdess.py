"""RAVDESS: acted emotional speech by 24 professional actors, North American English.

The published names have seven two-digit fields, ``modality-channel-emotion-intensity-statement-repetition-actor``:
``03-01-06-01-02-01-12.wav`` is audio only, speech, fearful, normal, "Dogs are sitting by the door", first repetition,
actor 12 (even: female). There is no strong neutral: 96 recordings are neutral, 192 of each other emotion.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from kubevox.data.corpora.base import Download, FileCorpus, Published, Recording, audio_files
from kubevox.data.corpora.copies import without_copies
from kubevox.errors import CorpusError

__all__ = ["Ravdess"]

_NAME = re.compile(r"(0[123])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1[0-9]|2[0-4])")
_EMOTIONS = dict(
    zip(
        ("01", "02", "03", "04", "05", "06", "07", "08"),
        ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"),
        strict=True,
    )
)
_INTENSITIES = {"01": "normal", "02": "strong"}
_STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
_AUDIO_ONLY, _SPEECH = "03", "01"
_NEUTRAL, _STRONG = "01", "02"


class Ravdess(FileCorpus):
    """The speech part of RAVDESS (1440 recordings when complete); songs and videos are passed over."""

    name = "ravdess"
    title = "Ryerson Audio-Visual Database of Emotional Speech and Song"
    licence = "CC BY-NC-SA 4.0"
    citation = "Livingstone & Russo (2018), PLoS ONE 13(5): e0196391"
    homepage = "https://zenodo.org/records/1188976"
    access = "open; one archive"
    languages = ("en",)
    published = Published(
        recordings=1440,
        labels={emotion: 96 if emotion == "neutral" else 192 for emotion in _EMOTIONS.values()},
        speakers={f"{actor:02d}": 60 for actor in range(1, 25)},
        source="https://zenodo.org/records/1188976",
    )
    downloads = (
        Download(
            "https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip?download=1",
            "Audio_Speech_Actors_01-24.zip",
            "md5:bc696df654c87fed845eb13823edef8a",
            208_468_073,
        ),
    )
    layout = "Actor_NN/03-01-EE-II-SS-RR-NN.wav"

    @functools.cached_property
    def files(self) -> list[Path]:
        """The spoken audio-only recordings, and what is not named as published, for ``describe`` to refuse."""
        named = [(file, _NAME.fullmatch(file.stem)) for file in audio_files(self.root, self.name, self.layout)]
        spoken = [file for file, match in named if not match or match.group(1, 2) == (_AUDIO_ONLY, _SPEECH)]
        if not spoken:
            raise CorpusError(f"corpus ravdess: no spoken recordings under {self.root}; expected {self.layout}")
        return without_copies(spoken)

    def describe(self, file: Path) -> Recording:
        """Read the seven fields of the name."""
        match = _NAME.fullmatch(file.stem)
        if match is None or match.group(3, 4) == (_NEUTRAL, _STRONG):
            raise CorpusError(f"corpus ravdess: {file} is not named as published ({self.layout})")
        _, _, emotion, intensity, statement, _, actor = match.groups()
        return Recording(
            source_id=f"ravdess:{self.inside(file)}",
            read=file.read_bytes,
            origin=str(file),
            speaker=f"ravdess:{actor}",
            sex="male" if int(actor) % 2 else "female",
            raw_label=_EMOTIONS[emotion],
            intensity=_INTENSITIES[intensity],
            language="en",
            text=_STATEMENTS[statement],
        )
