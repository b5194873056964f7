"""What an utterance must be: limits, and what follows where one is not kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from kubevox.config.base import Positive, PositiveInt, Section, Share, refuse_empty_range

__all__ = ["Gates", "ValidateConfig", "Verdict"]

Verdict = Literal["quarantine", "warn", "ignore"]


class Gates(Section):
    """What follows from each reason: ``quarantine`` leaves the utterance out, ``warn`` reports it, ``ignore`` does not.

    A reason that is not listed here always quarantines: without a label, a number for its duration, a name of its own
    or audio that decodes to what the id says, an utterance is of no use.
    """

    duration_too_short: Verdict = "quarantine"
    duration_too_long: Verdict = "quarantine"
    sample_rate_unknown: Verdict = "quarantine"
    source_too_small: Verdict = "quarantine"
    source_too_large: Verdict = "quarantine"
    silent: Verdict = "quarantine"
    clipped: Verdict = "quarantine"
    duplicate: Verdict = "quarantine"
    low_snr: Verdict = "warn"
    mostly_silent: Verdict = "warn"
    dc_offset: Verdict = "warn"
    narrow_band: Verdict = "warn"
    no_speech: Verdict = "warn"
    low_stoi: Verdict = "warn"
    low_pesq: Verdict = "warn"
    low_si_sdr: Verdict = "warn"


class ValidateConfig(Section):
    """What an utterance must be to be accepted, and what a dataset should look like.

    ``vad`` measures the share of speech with silero-vad, ``squim`` estimates STOI, PESQ and SI-SDR with the weights of
    torchaudio's SQUIM: a file, or ``download``. ``embed_audio`` is how many recordings can be heard in the report.
    """

    min_duration_s: Positive = 1.0
    max_duration_s: Positive = 60.0
    sample_rates: list[PositiveInt] = [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000]
    min_bytes: PositiveInt = 2_000
    max_bytes: PositiveInt = 22_000_000
    silence_dbfs: float = Field(default=-70.0, lt=0.0)
    clipped_share: Share = 0.01
    min_snr_db: float = 10.0
    max_silence_ratio: Share = 0.8
    max_dc_offset: Share = 0.01
    min_bandwidth_hz: Positive = 4_500.0
    min_speech_ratio: Share = 0.1
    min_stoi: Share = 0.6
    min_pesq: float = Field(default=1.2, ge=1.0, le=4.65)
    min_si_sdr_db: float = 0.0
    max_label_ratio: float = Field(default=3.0, ge=1.0)
    max_sex_share: float = Field(default=0.75, ge=0.5, le=1.0)
    max_language_ratio: float = Field(default=3.0, ge=1.0)
    gates: Gates = Gates()
    max_quarantined_share: Share = 0.05
    vad: bool = False
    squim: str | None = None
    embed_audio: int = Field(default=0, ge=0, le=500)

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> ValidateConfig:
        refuse_empty_range(self, "min_duration_s", "max_duration_s")
        refuse_empty_range(self, "min_bytes", "max_bytes")
        return self
