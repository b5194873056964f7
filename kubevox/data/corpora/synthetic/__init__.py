"""Synthetic speech: eSpeak NG's voices, seven emotions rendered by prosody, seven languages.

The corpus needs no download and no recordings of people, and is the same on every machine for the same options. What a
model scores on it is no evidence about people: the emotions are rules (:mod:`.prosody`), not feelings.
"""

from __future__ import annotations

import functools
import io
import wave
from collections.abc import Iterator
from typing import Any

from pydantic import Field, field_validator

from kubevox.config import Section
from kubevox.data.corpora.base import Corpus, Recording
from kubevox.data.corpora.synthetic.engine import SAMPLE_RATE, engine_version, speak
from kubevox.data.corpora.synthetic.prosody import EMOTIONS, Emotion, choose, deliver, make_speaker, record
from kubevox.data.corpora.synthetic.texts import LANGUAGES, SENTENCES, SENTENCES_PER_LANGUAGE
from kubevox.errors import CorpusError

__all__ = ["VOICES", "Synthetic"]

VERSION = 2
"""Raised whenever the same options give other recordings, so that stored dataset versions are not taken for them."""

VOICES = {
    "f1": "female",
    "m1": "male",
    "f2": "female",
    "m2": "male",
    "f3": "female",
    "m3": "male",
    "f4": "female",
    "m4": "male",
    "f5": "female",
    "m5": "male",
    "Alicia": "female",
    "m6": "male",
    "Annie": "female",
    "m7": "male",
    "aunty": "female",
    "m8": "male",
    "belinda": "female",
    "Andy": "male",
    "grandma": "female",
    "Denis": "male",
    "linda": "female",
    "Diogo": "male",
    "steph": "female",
    "travis": "male",
}
"""The engine's voice variants that speak clearly and sound different, by the sex their files state; in the order in
which a smaller number of speakers takes them. Whispering, croaking and robot variants are left out."""


class Synthetic(Corpus):
    """Speech made by eSpeak NG: every speaker says the same sentences in every emotion and every language."""

    class Options(Section):
        """Who says what, and how.

        ``sentences`` of the twelve are said by each speaker in each emotion and language; which ones differs from
        speaker to speaker. ``variability`` is the size of the chance variation between speakers and between
        utterances: 0 renders the table of cues exactly, 1 lets classes overlap. ``seed`` draws another corpus.
        """

        speakers: int = Field(default=24, ge=2, le=len(VOICES))
        sentences: int = Field(default=6, ge=1, le=SENTENCES_PER_LANGUAGE)
        languages: list[str] = Field(default=["en"], min_length=1)
        emotions: list[Emotion] = Field(default=list(EMOTIONS), min_length=1)
        variability: float = Field(default=1.0, ge=0.0, le=2.0)
        seed: int = Field(default=0, ge=0, lt=2**31)

        @field_validator("languages", "emotions")
        @classmethod
        def _each_once(cls, values: list[str]) -> list[str]:
            if len(set(values)) != len(values):
                raise ValueError("one is listed twice")
            return values

    name = "synthetic"
    title = "Synthetic speech by eSpeak NG"
    licence = "made on this machine by eSpeak NG (GPL-3.0-or-later); its output is not covered by that licence"
    citation = "eSpeak NG, https://github.com/espeak-ng/espeak-ng"
    needs_path = False
    synthetic = True

    def __init__(self, path: str | None, options: Any) -> None:
        super().__init__(path, options)
        for language in options.languages:
            if language not in SENTENCES:
                raise CorpusError(
                    f"corpus synthetic: no speech in language '{language}'; available are {', '.join(LANGUAGES)} "
                    "(the engine or the list of sentences does not have it; take it out of the option `languages`)"
                )

    def recordings(self) -> Iterator[Recording]:
        """All recordings, ordered by source id; each is made when it is read, and is the same in any order.

        Raises:
            CorpusError: the engine is not installed.
        """
        engine_version()
        for language in sorted(self.options.languages):
            for emotion in sorted(self.options.emotions):
                for voice in sorted(self._speakers):
                    for sentence in self._sentences(voice):
                        yield self._recording(language, emotion, voice, sentence)

    def __len__(self) -> int:
        options = self.options
        return options.speakers * options.sentences * len(options.languages) * len(options.emotions)

    def fingerprint(self) -> Any:
        """The options, the version of these rules and of the engine: equal ones give equal recordings.

        Raises:
            CorpusError: the engine is not installed.
        """
        return {"options": self.options.model_dump(mode="json"), "rules": VERSION, "engine": engine_version()}

    @property
    def _speakers(self) -> list[str]:
        return list(VOICES)[: self.options.speakers]

    def _sentences(self, voice: str) -> list[int]:
        """Which of the twelve (from 0) a speaker says, in every emotion and language the same."""
        return choose(SENTENCES_PER_LANGUAGE, self.options.sentences, self.options.seed, "sentences", voice)

    def _recording(self, language: str, emotion: Emotion, voice: str, sentence: int) -> Recording:
        text = SENTENCES[language][sentence]
        return Recording(
            source_id=f"synthetic:{language}/{emotion}/{voice}/{sentence + 1:02d}.wav",
            read=functools.partial(self._make, language, emotion, voice, sentence),
            origin=f"synthetic speech ({voice}, {language}, {emotion}: {text})",
            speaker=f"synthetic:{voice}",
            sex=VOICES[voice],
            raw_label=emotion,
            language=language,
            text=text,
        )

    def _make(self, language: str, emotion: Emotion, voice: str, sentence: int) -> bytes:
        """WAV, 16-bit mono at 22 050 Hz."""
        seed, variability = self.options.seed, self.options.variability
        utterance = f"{language}/{sentence}"
        speaker = make_speaker(voice, seed, variability)
        delivery = deliver(speaker, emotion, utterance, seed, variability)
        text = SENTENCES[language][sentence].removesuffix(".") + delivery.ending
        speech = speak(text, f"{language}+{voice}", delivery.setting)
        samples = record(speech, delivery, (seed, "room", voice, emotion, utterance))
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(samples.astype("<i2").tobytes())
        return buffer.getvalue()
