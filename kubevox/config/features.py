"""Frontends and augmentation recipes, as data."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kubevox.config.base import Device, Positive, PositiveInt, Section, Seed, Share, refusal

__all__ = [
    "BackgroundRecipe",
    "ChainRecipe",
    "DriftConfig",
    "FeaturesConfig",
    "FrontendConfig",
    "LogMelConfig",
    "NoiseRecipe",
    "OriginalRecipe",
    "PitchRecipe",
    "RecipeConfig",
    "ReverbRecipe",
    "ShiftRecipe",
    "SpeedRecipe",
    "SslConfig",
    "StatisticsConfig",
    "StretchRecipe",
    "TelephoneRecipe",
    "VadConfig",
]

Range = tuple[float, float]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _refuse_descending(key: str, values: tuple[float, float]) -> None:
    if values[0] > values[1]:
        raise refusal(key, values, "the lower bound comes first")


class VadConfig(Section):
    """Voice activity detection before the frontend (silero-vad).

    ``trim`` cuts what lies before the first and after the last speech; ``measure`` leaves the recording as it is.
    Either way the share of speech is kept beside the features.
    """

    kind: Literal["silero"] = "silero"
    mode: Literal["trim", "measure"] = "trim"
    threshold: Share = 0.5
    padding_s: float = Field(default=0.1, ge=0.0)
    min_speech_s: float = Field(default=0.1, ge=0.0)
    min_silence_s: float = Field(default=0.1, ge=0.0)


class _Frontend(Section):
    """What all frontends share: the stretch of a recording that they look at, and at which rate.

    ``stored`` is the precision of the values, computed, served and stored: float16 halves a block.
    """

    sample_rate: PositiveInt = 16_000
    offset_s: float = Field(default=0.0, ge=0.0)
    duration_s: Positive = 3.0
    vad: VadConfig | None = None
    stored: Literal["float32", "float16"] = "float32"

    @property
    def minimum_samples(self) -> int:
        """How many samples, at :attr:`sample_rate`, must be left after the offset."""
        return int(getattr(self, "frame", 400))


class StatisticsConfig(_Frontend):
    """270 values a clip: means over time of librosa's zero-crossing rate, RMS, chroma, mel power and MFCC."""

    kind: Literal["statistics"] = "statistics"
    sample_rate: PositiveInt = 22_050
    offset_s: float = Field(default=0.6, ge=0.0)
    duration_s: Positive = 2.5
    frame: int = Field(default=2048, ge=64)
    hop: PositiveInt = 512
    mels: PositiveInt = 128
    mfccs: PositiveInt = 128
    chroma: PositiveInt = 12

    @property
    def minimum_samples(self) -> int:
        """A frame, and at least a tenth of a second: a mean over less says nothing of a recording."""
        return max(self.frame, -(-self.sample_rate // 10))

    @model_validator(mode="after")
    def _no_more_mfccs_than_mels(self) -> StatisticsConfig:
        if self.mfccs > self.mels:
            raise refusal("mfccs", self.mfccs, f"must not exceed mels = {self.mels}")
        return self


class DriftConfig(_Frontend):
    """What monitoring watches of a recording: means and deviations over time of a few interpretable features.

    ``contrast_bands`` octaves above 200 Hz, and what lies below, have a spectral contrast each. A frame is voiced where
    YIN finds a period between those of ``pitch_fmax_hz`` and ``pitch_fmin_hz`` with an aperiodicity below
    ``pitch_aperiodicity``.
    """

    kind: Literal["drift"] = "drift"
    duration_s: Positive = 10.0
    frame: int = Field(default=1024, ge=64)
    hop: PositiveInt = 320
    mels: PositiveInt = 64
    mfccs: int = Field(default=13, ge=1, le=40)
    contrast_bands: int = Field(default=6, ge=1, le=8)
    pitch_fmin_hz: Positive = 65.0
    pitch_fmax_hz: Positive = 500.0
    pitch_aperiodicity: float = Field(default=0.15, gt=0.0, lt=1.0)

    @property
    def feature_names(self) -> list[str]:
        """A name for each value, in their order: ``mfcc_0_mean``, ``mfcc_0_std``, ..., ``voiced_share``."""
        watched = [
            *(f"mfcc_{index}" for index in range(self.mfccs)),
            "spectral_centroid",
            *(f"spectral_contrast_{index}" for index in range(self.contrast_bands + 1)),
            "zero_crossing_rate",
            "rms",
            "pitch",
        ]
        return [*(f"{name}_{moment}" for name in watched for moment in ("mean", "std")), "voiced_share"]

    @model_validator(mode="after")
    def _no_more_mfccs_than_mels(self) -> DriftConfig:
        if self.mfccs > self.mels:
            raise refusal("mfccs", self.mfccs, f"must not exceed mels = {self.mels}")
        return self

    @model_validator(mode="after")
    def _contrast_bands_fit(self) -> DriftConfig:
        lowest, highest = 200.0, (self.frame // 2) * self.sample_rate / self.frame
        if lowest * 2.0 ** (self.contrast_bands - 1) >= highest:
            raise refusal(
                "contrast_bands",
                self.contrast_bands,
                f"the highest band would begin at {lowest * 2.0 ** (self.contrast_bands - 1):g} Hz, not below half of "
                f"sample_rate = {self.sample_rate}",
            )
        if self.frame * lowest < self.sample_rate:
            least = math.ceil(self.sample_rate / lowest)
            raise refusal("frame", self.frame, f"must be at least {least}, or the lowest contrast band is empty")
        return self

    @model_validator(mode="after")
    def _pitch_range_fits(self) -> DriftConfig:
        if not self.pitch_fmin_hz < self.pitch_fmax_hz <= self.sample_rate / 4:
            raise refusal(
                "pitch_fmax_hz",
                self.pitch_fmax_hz,
                f"must be above pitch_fmin_hz = {self.pitch_fmin_hz:g} and at most a quarter of sample_rate",
            )
        longest = math.ceil(self.sample_rate / self.pitch_fmin_hz)
        if self.frame < 2 * (longest + 1):
            raise refusal(
                "frame",
                self.frame,
                f"must be at least {2 * (longest + 1)}, to hold two periods of pitch_fmin_hz = {self.pitch_fmin_hz:g}",
            )
        return self


class LogMelConfig(_Frontend):
    """Log mel-band power over time, of a fixed length: shorter clips are followed by silence, longer ones cut.

    ``convention`` is whose definition of it is meant:

    - ``decibel``: dB of full scale, Slaney's mel scale, nothing below ``floor_db``.
    - ``torchaudio``: natural logarithm of ``torchaudio.transforms.MelSpectrogram``, floored at ``floor_db``.
    - ``kaldi``: ``compute-fbank-feats`` without dither, of samples in the range of 16-bit integers.
    - ``whisper``: as ``WhisperFeatureExtractor`` gives it to Whisper.

    A key of the spectrum that is not given has the convention's own default.
    """

    kind: Literal["logmel"] = "logmel"
    convention: Literal["decibel", "torchaudio", "kaldi", "whisper"] = "decibel"
    frame: int = Field(default=512, ge=64)
    hop: PositiveInt = 320
    mels: PositiveInt = 64
    fmin_hz: float = Field(default=50.0, ge=0.0)
    fmax_hz: Positive = 8_000.0
    floor_db: float = Field(default=-120.0, lt=0.0)

    @property
    def frames(self) -> int:
        """How many frames the features of any recording have."""
        samples = round(self.duration_s * self.sample_rate)
        if self.convention == "kaldi":  # only frames that lie within the recording
            return 1 + (samples - self.frame) // self.hop
        centred = 1 + (samples - self.frame % 2) // self.hop
        return centred - 1 if self.convention == "whisper" else centred

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_convention(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        rate = values.get("sample_rate", 16_000)
        if not isinstance(rate, int) or rate <= 0:
            return values  # refused in a moment
        defaults: dict[str, Any] = {}
        match values.get("convention"):
            case "torchaudio":  # transforms.MelSpectrogram, but for its 128 bands: some of them would hold no FFT bin
                defaults = {"frame": 400, "hop": 200, "mels": 64, "fmin_hz": 0.0, "fmax_hz": rate / 2}
                defaults["floor_db"] = -100.0  # of transforms.AmplitudeToDB
            case "kaldi":  # compliance.kaldi.fbank, and the number of bands that most encoders want
                defaults = {"frame": rate * 25 // 1000, "hop": max(1, rate // 100), "mels": 80}
                defaults |= {"fmin_hz": 20.0, "fmax_hz": rate / 2}
            case "whisper":
                defaults = {"frame": 400, "hop": 160, "mels": 80, "fmin_hz": 0.0, "fmax_hz": 8_000.0}
        return {**defaults, **values}

    @model_validator(mode="after")
    def _band_fits(self) -> LogMelConfig:
        if not self.fmin_hz < self.fmax_hz <= self.sample_rate / 2:
            raise refusal(
                "fmax_hz",
                self.fmax_hz,
                f"must be above fmin_hz = {self.fmin_hz:g} and at most sample_rate / 2 = {self.sample_rate / 2:g}",
            )
        return self

    @model_validator(mode="after")
    def _convention_honours_every_key(self) -> LogMelConfig:
        if self.convention in ("kaldi", "whisper") and self.floor_db != type(self).model_fields["floor_db"].default:
            why = f"the convention {self.convention} has a floor of its own: leave this key out"
            raise refusal("floor_db", self.floor_db, why)
        if self.convention != "whisper":
            return self
        for key, needed in {"sample_rate": 16_000, "fmin_hz": 0.0, "fmax_hz": 8_000.0}.items():
            if getattr(self, key) != needed:
                raise refusal(key, getattr(self, key), f"must be {needed:g} in the convention whisper")
        if self.frames < 1:
            raise refusal("hop", self.hop, f"leaves no frame in duration_s = {self.duration_s:g}")
        return self


class SslConfig(_Frontend):
    """Mean over time of a pretrained encoder's hidden states (wav2vec 2.0, HuBERT, WavLM, XLS-R, MMS, Whisper).

    ``model`` is a folder, ``s3://bucket/prefix``, or a hub's id; ``sha256`` pins its content and is filled in when the
    features are first computed; ``layer`` is a hidden layer (0: before the first, -1: the last) or ``mean`` of all.
    """

    kind: Literal["ssl"] = "ssl"
    model: str = Field(min_length=1)
    revision: str | None = None
    sha256: Sha256 | None = None
    duration_s: Positive = 10.0
    layer: int | Literal["mean"] = -1
    pooling: Literal["mean", "mean_std"] = "mean"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def _revision_is_a_hubs(self) -> SslConfig:
        if self.revision is not None and self.model.startswith(("s3://", "/", ".", "~")):
            raise refusal("revision", self.revision, "only a hub's model has revisions; a folder is pinned by sha256")
        return self


FrontendConfig = Annotated[StatisticsConfig | LogMelConfig | SslConfig | DriftConfig, Field(discriminator="kind")]


class OriginalRecipe(Section):
    """The recording as it is."""

    kind: Literal["original"] = "original"


class NoiseRecipe(Section):
    """White noise of standard deviation ``sigma`` times a uniform draw times the clip's peak."""

    kind: Literal["noise"] = "noise"
    sigma: Positive = 0.035
    seed: Seed = 0


class BackgroundRecipe(Section):
    """Noise at a signal-to-noise ratio drawn uniformly from ``snr_db`` (-50 to 100 dB): white, or out of recordings.

    The ratio is of the mean squares over the whole clip, pauses included. ``corpus`` is ``white`` or a folder of
    recordings; ``sha256`` pins the folder's content and is filled in when the features are first computed.
    """

    kind: Literal["background"] = "background"
    corpus: str = Field(default="white", min_length=1)
    sha256: Sha256 | None = None
    snr_db: Range = (5.0, 20.0)
    seed: Seed = 0

    @model_validator(mode="after")
    def _range_ascends(self) -> BackgroundRecipe:
        _refuse_descending("snr_db", self.snr_db)
        if not -50.0 <= self.snr_db[0] <= self.snr_db[1] <= 100.0:
            raise refusal("snr_db", self.snr_db, "must be between -50 and 100 dB")
        return self


class ShiftRecipe(Section):
    """A circular shift (roll) by up to ``max_samples`` either way."""

    kind: Literal["shift"] = "shift"
    max_samples: PositiveInt = 5_000
    seed: Seed = 0


class PitchRecipe(Section):
    """Another pitch at the same tempo, by a phase vocoder and resampling (``librosa.effects.pitch_shift``)."""

    kind: Literal["pitch"] = "pitch"
    semitones: float = Field(default=3.0, ge=-24.0, le=24.0)


class StretchRecipe(Section):
    """Another tempo at the same pitch, by a phase vocoder; above 1 is faster (``librosa.effects.time_stretch``)."""

    kind: Literal["stretch"] = "stretch"
    rate: float = Field(default=0.8, ge=0.25, le=4.0)


class SpeedRecipe(Section):
    """Another tempo and pitch at once, by resampling; above 1 is faster and higher (Ko et al. 2015)."""

    kind: Literal["speed"] = "speed"
    factor: float = Field(default=1.1, ge=0.25, le=4.0)


class TelephoneRecipe(Section):
    """As over a telephone: a band, 8 kHz, and the companding of ITU-T G.711; the clip's full scale is the codec's."""

    kind: Literal["telephone"] = "telephone"
    low_hz: float = Field(default=300.0, ge=0.0)
    high_hz: Positive = 3_400.0
    codec: Literal["mu-law", "a-law", "none"] = "mu-law"

    @model_validator(mode="after")
    def _band_fits(self) -> TelephoneRecipe:
        if not self.low_hz < self.high_hz <= 4_000.0:
            raise refusal("high_hz", self.high_hz, f"must be above low_hz = {self.low_hz:g} and at most 4000")
        return self


class ReverbRecipe(Section):
    """A room: an impulse response drawn at random, or one out of recorded ones.

    ``responses`` is a folder of impulse responses, or null for exponentially decaying noise whose reverberation time is
    drawn uniformly from ``rt60_s`` (0.01 to 10 s) and whose direct-to-reverberant ratio from ``drr_db`` (-50 to 100
    dB); recorded ones have their own. The clip keeps its level.
    """

    kind: Literal["reverb"] = "reverb"
    responses: str | None = None
    sha256: Sha256 | None = None
    rt60_s: Range = (0.2, 0.8)
    drr_db: Range = (0.0, 10.0)
    seed: Seed = 0

    @model_validator(mode="after")
    def _ranges_ascend(self) -> ReverbRecipe:
        _refuse_descending("rt60_s", self.rt60_s)
        _refuse_descending("drr_db", self.drr_db)
        if not 0.01 <= self.rt60_s[0] <= self.rt60_s[1] <= 10.0:
            raise refusal("rt60_s", self.rt60_s, "must be between 0.01 and 10 s")
        if not -50.0 <= self.drr_db[0] <= self.drr_db[1] <= 100.0:
            raise refusal("drr_db", self.drr_db, "must be between -50 and 100 dB")
        return self


_Step = Annotated[
    NoiseRecipe
    | BackgroundRecipe
    | ShiftRecipe
    | PitchRecipe
    | StretchRecipe
    | SpeedRecipe
    | TelephoneRecipe
    | ReverbRecipe,
    Field(discriminator="kind"),
]


class ChainRecipe(Section):
    """Several changes, one after the other."""

    kind: Literal["chain"] = "chain"
    steps: tuple[_Step, ...] = Field(min_length=2)


RecipeConfig = Annotated[
    OriginalRecipe
    | NoiseRecipe
    | BackgroundRecipe
    | ShiftRecipe
    | PitchRecipe
    | StretchRecipe
    | SpeedRecipe
    | TelephoneRecipe
    | ReverbRecipe
    | ChainRecipe,
    Field(discriminator="kind"),
]


class FeaturesConfig(Section):
    """The frontends and recipes that models may name, and how they are computed.

    ``batch_size`` and ``workers`` change how fast, never what: null is what was measured to be best, and all cores.
    """

    frontends: dict[str, FrontendConfig] = {"logmel": LogMelConfig(), "statistics": StatisticsConfig()}
    recipes: dict[str, RecipeConfig] = {"default": OriginalRecipe()}
    device: Device = "auto"
    batch_size: PositiveInt | None = None
    workers: PositiveInt | None = None

    @field_validator("recipes")
    @classmethod
    def _default_is_the_original(cls, recipes: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(recipes.get("default"), OriginalRecipe):
            raise ValueError("recipes must hold `default: {kind: original}`: validation and test rows get no other")
        return recipes
