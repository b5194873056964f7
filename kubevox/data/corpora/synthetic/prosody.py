"""Seven emotions as prosody: what is changed, by how much, and after whom.

Every cue is relative to the speaker's own neutral speech (:data:`CUES` holds the sizes). The directions are the
literature's; the sizes, and the chance variation around them, are chosen so that classes overlap, as they do between
people, and stay learnable from a few speakers.

========= ======================================================================== =====================
emotion   pitch level, pitch range; rate; loudness; brightness; other              after
========= ======================================================================== =====================
anger     higher, wider; faster; much louder; much brighter; emphatic accents      [JL] [MA] [BS] [BuSe]
disgust   lower, slightly wider; much slower; softer; --; pauses                   [MA] [BS]
fear      much higher, narrower; much faster; softer; darker; tremor               [JL] [MA] [BS] [BuSe]
happiness higher, much wider; hardly faster; louder; brighter; --                  [JL] [MA] [S] [BuSe]
neutral   the speaker's own                                                        --
sadness   lower, much narrower; slower; much softer; much darker; pauses, tremor   [JL] [MA] [BS] [S]
surprise  much higher, much wider; faster; slightly louder; --; final rise         [C] [Sch]
========= ======================================================================== =====================

Where the studies disagree: the range of fear is narrow in [JL], wide in [MA]; the rate of happiness is fast in [JL],
faster or slower in [MA], and the pitch of disgust is low in [MA] but varies in [BS]. Few have studied surprise: its
rule is that of synthesisers whose listeners recognised it.

* [JL] Juslin & Laukka (2003), Psychological Bulletin 129(5), 770-814: a review of 104 studies, its summary of cues
* [MA] Murray & Arnott (1993), JASA 93(2), 1097-1108: the table of vocal effects of the primary emotions
* [BS] Banse & Scherer (1996), J. Personality and Social Psychology 70(3), 614-636: profiles of 14 emotions
* [S] Scherer (2003), Speech Communication 40(1-2), 227-256: the table of effects on acoustic parameters
* [BuSe] Burkhardt & Sendlmeier (2000), ISCA Workshop on Speech and Emotion, 151-156: rules tested by synthesis
* [C] Cahn (1990), J. American Voice I/O Society 8, 1-19: the Affect Editor's settings
* [Sch] Schröder (2001), Eurospeech, 561-564: prosody rules of emotional synthesisers, compared
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from kubevox.data.corpora.synthetic.engine import SAMPLE_RATE, Setting

__all__ = ["CUES", "EMOTIONS", "Cues", "Delivery", "Emotion", "Speaker", "choose", "deliver", "make_speaker", "record"]

Emotion = Literal["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]
EMOTIONS: tuple[Emotion, ...] = get_args(Emotion)


@dataclass(frozen=True)
class Cues:
    """What an emotion changes in a speaker's neutral speech.

    Attributes:
        pitch_st: pitch level, semitones; a wider range lifts the mean further, since accents rise and seldom fall.
        range: pitch range, a factor.
        rate: speaking rate, a factor.
        level_db: loudness, dB.
        tilt_db: brightness, dB an octave around 1 kHz.
        gap_ms: pauses between words, ms.
        tremor: depth of a tremor in loudness, a share; that of pitch follows it.
        ending: the sentence's last character as the engine reads it: ``.`` falls, ``!`` is emphatic, ``?`` rises.
    """

    pitch_st: float = 0.0
    range: float = 1.0
    rate: float = 1.0
    level_db: float = 0.0
    tilt_db: float = 0.0
    gap_ms: float = 0.0
    tremor: float = 0.0
    ending: str = "."


CUES: dict[Emotion, Cues] = {
    "anger": Cues(pitch_st=2.5, range=1.4, rate=1.25, level_db=9.5, tilt_db=4.5, ending="!"),
    "disgust": Cues(pitch_st=-2.5, range=1.15, rate=0.7, level_db=-2.0, gap_ms=20.0),
    "fear": Cues(pitch_st=5.0, range=0.55, rate=1.4, level_db=-2.5, tilt_db=-2.0, tremor=0.35),
    "happiness": Cues(pitch_st=4.0, range=1.8, rate=1.03, level_db=4.5, tilt_db=1.5),
    "neutral": Cues(),
    "sadness": Cues(pitch_st=-1.5, range=0.5, rate=0.85, level_db=-7.0, tilt_db=-3.5, gap_ms=35.0, tremor=0.1),
    "surprise": Cues(pitch_st=6.0, range=1.8, rate=1.2, level_db=2.0, ending="?"),
}

# Standard deviations at variability 1, in the cues' own units (range and rate: octaves). People differ from one
# another in how they show an emotion, and a person from one utterance to the next.
_BETWEEN_SPEAKERS = {"pitch_st": 0.5, "range": 0.1, "rate": 0.03, "level_db": 0.7, "tilt_db": 0.25, "gap_ms": 5.0}
_WITHIN_SPEAKER = {"pitch_st": 0.5, "range": 0.1, "rate": 0.03, "level_db": 0.7, "tilt_db": 0.25, "gap_ms": 5.0}
_STRENGTH_BETWEEN, _STRENGTH_WITHIN = 0.1, 0.15
_WEAKEST, _STRONGEST = 0.3, 1.4
_FINAL_CONTOUR_KEPT = 0.85  # how often the emotion's intonation is used; else the sentence falls as in neutral speech

_NEUTRAL_RATE = 165  # words a minute: a calm reader
_LEVEL_DBFS = -28.0  # RMS of neutral speech; leaves room for loud speech's peaks
_HIGHEST_PEAK = 0.95
_NOISE_BELOW_SPEECH_DB = 38.0
_MARGIN_S = (0.12, 0.3)
_TREMOR_HZ = (5.0, 8.0)
_PITCH_TREMOR = 0.12  # its depth as a share of the loudness tremor's


@dataclass(frozen=True)
class Speaker:
    """A voice and its habits.

    Attributes:
        name: of the engine's voice variant.
        pitch_st, rate: neutral pitch level (semitones) and rate (a factor) relative to the variant's own.
        level_db, tilt_db: of the recording's channel.
        noise_db: noise floor of the recording's channel relative to neutral speech.
        strength: how strongly emotions show, 1 on average.
        tremor_hz: the rate at which the voice trembles.
    """

    name: str
    pitch_st: float
    rate: float
    level_db: float
    tilt_db: float
    noise_db: float
    strength: float
    tremor_hz: float


@dataclass(frozen=True)
class Delivery:
    """How one utterance is said and recorded: what the engine does, and what is done to its output."""

    setting: Setting
    ending: str
    level_db: float
    tilt_db: float
    tremor: float
    tremor_hz: float
    noise_dbfs: float


def make_speaker(name: str, seed: int, variability: float) -> Speaker:
    """The habits of a voice: equal arguments give an equal speaker."""
    draw = _random(seed, "speaker", name)
    return Speaker(
        name=name,
        pitch_st=variability * 1.0 * draw.standard_normal(),
        rate=2.0 ** (variability * 0.06 * draw.standard_normal()),
        level_db=variability * 1.0 * draw.standard_normal(),
        tilt_db=variability * 0.3 * draw.standard_normal(),
        noise_db=-_NOISE_BELOW_SPEECH_DB + variability * 4.0 * draw.standard_normal(),
        strength=1.0 + variability * _STRENGTH_BETWEEN * draw.standard_normal(),
        tremor_hz=draw.uniform(*_TREMOR_HZ),
    )


def deliver(speaker: Speaker, emotion: Emotion, utterance: str, seed: int, variability: float) -> Delivery:
    """How a speaker says an utterance in an emotion.

    Args:
        speaker: who.
        emotion: which.
        utterance: a name that tells this utterance from the speaker's others; chance is drawn from it.
        seed: of the corpus.
        variability: size of the chance variation; 0 gives the table's values.
    """
    cues = CUES[emotion]
    habit = _random(seed, "habit", speaker.name, emotion)
    moment = _random(seed, "moment", speaker.name, emotion, utterance)
    strength = float(
        np.clip(speaker.strength + variability * _STRENGTH_WITHIN * moment.standard_normal(), _WEAKEST, _STRONGEST)
    )

    def vary(cue: str, size: float) -> float:
        # Drawn in a fixed order, and always, so that one cue's size does not change another's chance.
        chance = _BETWEEN_SPEAKERS[cue] * habit.standard_normal() + _WITHIN_SPEAKER[cue] * moment.standard_normal()
        return strength * size + variability * chance

    pitch_st = vary("pitch_st", cues.pitch_st) + speaker.pitch_st
    pitch_range = 2.0 ** vary("range", math.log2(cues.range))
    rate = 2.0 ** vary("rate", math.log2(cues.rate)) * speaker.rate
    level_db = vary("level_db", cues.level_db) + speaker.level_db
    tilt_db = vary("tilt_db", cues.tilt_db) + speaker.tilt_db
    gap_ms = vary("gap_ms", cues.gap_ms)
    keeps_contour = moment.uniform() < _FINAL_CONTOUR_KEPT or variability == 0.0
    return Delivery(
        setting=Setting(
            rate=_within(_NEUTRAL_RATE * rate, 90, 300),
            pitch=_within(50 + pitch_st * 50 / 12, 0, 99),
            range=_within(50 * pitch_range, 5, 99),
            word_gap=_within(gap_ms / 10, 0, 10),
        ),
        ending=cues.ending if keeps_contour else ".",
        level_db=level_db,
        tilt_db=tilt_db,
        tremor=strength * cues.tremor,
        tremor_hz=speaker.tremor_hz,
        noise_dbfs=_LEVEL_DBFS + speaker.level_db + speaker.noise_db,
    )


def record(speech: npt.NDArray[np.int16], delivery: Delivery, chance: tuple[str | int, ...]) -> npt.NDArray[np.int16]:
    """Turn the engine's output into a recording: voice quality, loudness, a room's silence and noise.

    Args:
        speech: int16 [samples] at :data:`~kubevox.data.corpora.synthetic.engine.SAMPLE_RATE`.
        delivery: how it is said.
        chance: names the stream of chance for the margins and the noise.

    Returns:
        int16 [samples], a little longer; its peak stays below full scale.
    """
    draw = _random(*chance)
    voiced = speech.astype(np.float64) / 32768.0
    if delivery.tremor > 0.0:
        voiced = _tremble(voiced, delivery.tremor, delivery.tremor_hz, draw.uniform(0.0, 2.0 * math.pi))
    before, after = (int(SAMPLE_RATE * draw.uniform(*_MARGIN_S)) for _ in range(2))
    voiced = _tilt(np.pad(voiced, (before, after)), delivery.tilt_db)
    active = voiced[before : before + len(speech)]
    voiced *= 10.0 ** ((_LEVEL_DBFS + delivery.level_db) / 20.0) / max(math.sqrt(float(np.mean(active**2))), 1e-9)
    voiced += 10.0 ** (delivery.noise_dbfs / 20.0) * math.sqrt(3.0) * draw.uniform(-1.0, 1.0, len(voiced))
    voiced *= min(1.0, _HIGHEST_PEAK / float(np.abs(voiced).max()))
    return np.rint(voiced * 32767.0).astype(np.int16)


def _tremble(samples: npt.NDArray[np.float64], depth: float, rate_hz: float, phase: float) -> npt.NDArray[np.float64]:
    """Tremor in loudness and, by reading at an uneven pace, in pitch."""
    position = np.arange(len(samples), dtype=np.float64)
    radians = 2.0 * math.pi * rate_hz / SAMPLE_RATE
    swing = np.sin(radians * position + phase)
    read = np.interp(position + _PITCH_TREMOR * depth / radians * swing, position, samples)
    return read * (1.0 + depth * swing)


def _tilt(samples: npt.NDArray[np.float64], db_per_octave: float) -> npt.NDArray[np.float64]:
    """Brighten or darken around 1 kHz, from 125 Hz to 8 kHz; phase is kept."""
    size = -(-len(samples) // 4096) * 4096  # the transform of a length with large prime factors is slow
    octaves = np.log2(np.clip(np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE), 125.0, 8_000.0) / 1_000.0)
    shaped = np.fft.rfft(samples, size) * 10.0 ** (db_per_octave * octaves / 20.0)
    return np.fft.irfft(shaped, size)[: len(samples)]


def choose(of: int, count: int, *chance: str | int) -> list[int]:
    """``count`` different numbers below ``of``, in ascending order; ``chance`` names the stream they are drawn from."""
    return sorted(int(number) for number in _random(*chance).permutation(of)[:count])


def _within(value: float, low: int, high: int) -> int:
    return int(min(max(round(value), low), high))


def _random(*names: str | int) -> np.random.RandomState:
    """A stream of chance of its own for these names. RandomState, because its streams are frozen for good (NEP 19)."""
    digest = hashlib.sha256("\x1f".join(str(name) for name in names).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))
