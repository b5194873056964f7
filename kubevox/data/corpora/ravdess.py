"""RAVDESS: acted emotional speech by 24 professional actors, North American English.

The published names have seven two-digit fields, ``modality-channel-emotion-intensity-statement-repetition-actor``:
``03-01-06-01-02-01-12.wav`` is audio only, speech, fearful, normal, "Dogs are sitting by the door", first repetition,
actor 12 (even: female).
"""

from __future__ import annotations

import re
from pathlib import Path

from kubevox.data.corpora.base import FileCorpus, Recording
from kubevox.errors import CorpusError

__all__ = ["Ravdess"]

_NAME = re.compile(r"(0[123])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)")
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


class Ravdess(FileCorpus):
    """The speech part of RAVDESS (1440 recordings when complete); sung recordings are passed over."""

    name = "ravdess"
    title = "Ryerson Audio-Visual Database of Emotional Speech and Song"
    licence = "CC BY-NC-SA 4.0"
    citation = "Livingstone & Russo (2018), PLoS ONE 13(5): e0196391"
    layout = "Actor_NN/03-01-EE-II-SS-RR-NN.wav"

    @property
    def files(self) -> list[Path]:
        """The spoken audio-only recordings."""
        spoken = [file for file in super().files if self._fields(file)[:2] == (_AUDIO_ONLY, _SPEECH)]
        if not spoken:
            raise CorpusError(f"corpus ravdess: no spoken recordings under {self.root}; expected {self.layout}")
        return spoken

    def describe(self, file: Path) -> Recording:
        """Read the seven fields of the name."""
        _, _, emotion, intensity, statement, _, actor = self._fields(file)
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

    def _fields(self, file: Path) -> tuple[str, ...]:
        match = _NAME.fullmatch(file.stem)
        if match is None:
            raise CorpusError(f"corpus ravdess: {file} is not named as published ({self.layout})")
        return match.groups()
