"""What the stored audio says of itself: level, clipping, offset, pauses, noise and bandwidth.

All of it is arithmetic on one recording, without a reference and without a model; voice activity and SQUIM, which are
models, are asked where they are given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kubevox.data.audio import Waveform

if TYPE_CHECKING:
    from kubevox.data.vad import VoiceActivity
    from kubevox.data.validation.squim import Squim

__all__ = ["QUALITY_VERSION", "SILENCE_FLOOR_DBFS", "Measured", "measure"]

# Belongs in the key of whatever rests on the measures: raise it whenever one of them is computed otherwise.
QUALITY_VERSION = 1

SILENCE_FLOOR_DBFS = -140.0
"""The level of digital silence; the least step of 24 bits is at -138 dBFS."""

# 16-bit full scale: the highest value of 16-bit PCM falls one such step short of 1.
_RAIL = np.float32(32767 / 32768)
# A normalised recording touches full scale for a sample or two at its peak; clipping holds it there.
_SHORTEST_CLIP = 3
_FRAME_S = 0.02
_LEAST_FRAMES = 10  # for anything that is said of pauses
_SILENCE_DB = 40.0  # below the loud parts
_NOISE_PERCENTILE, _LOUD_PERCENTILE = 10, 95
_POWER_FLOOR = 1e-14  # the rounding noise of 24 bits
_SNR_DB = (-20.0, 100.0)
_BAND_DROP_DB = 60.0
_LOWEST_HZ = 80.0  # below it, rumble may be the loudest of all


@dataclass(frozen=True)
class Measured:
    """What the stored audio says.

    Attributes:
        id: SHA-256 of the waveform as it decodes now.
        duration_s: its length in seconds.
        rms_dbfs: root mean square about the mean, in dB relative to full scale (a full-scale sine is at -3.0).
        peak_dbfs: the largest sample's distance from zero, likewise.
        clipped_share: share of the samples that are held at full scale, three or more in a row.
        dc_offset: the mean's distance from zero; full scale is 1.
        silence_ratio: share of the frames of 20 ms that are 40 dB or more below the loud ones (95th percentile).
        snr_db: signal-to-noise ratio, estimated, from -20 to 100; None in silence and below 0.2 s.
        bandwidth_hz: the highest frequency less than 60 dB below the spectrum's peak; None in silence.
        speech_ratio: share of the recording that is speech; None where nobody asked for it, as the following.
        stoi: estimated short-time objective intelligibility, 0 to 1.
        pesq: estimated perceptual evaluation of speech quality, 1 to 4.64.
        si_sdr_db: estimated scale-invariant signal-to-distortion ratio.
    """

    id: str
    duration_s: float
    rms_dbfs: float
    peak_dbfs: float
    clipped_share: float
    dc_offset: float
    silence_ratio: float
    snr_db: float | None
    bandwidth_hz: float | None
    speech_ratio: float | None = None
    stoi: float | None = None
    pesq: float | None = None
    si_sdr_db: float | None = None


def measure(waveform: Waveform, vad: VoiceActivity | None = None, squim: Squim | None = None) -> Measured:
    """Measure a stored waveform.

    Args:
        waveform: the recording.
        vad: finds speech; None: :attr:`Measured.speech_ratio` is left open.
        squim: estimates what a listener would miss; None: its three figures are left open.
    """
    samples = waveform.samples
    mean = float(samples.mean(dtype=np.float64)) if len(samples) else 0.0
    # About the mean: a constant offset is not sound.
    sound = samples - np.float32(mean)
    power = float(np.square(sound).mean(dtype=np.float64)) if len(samples) else 0.0
    frames = _frame_powers(sound, waveform.sample_rate)
    estimates = squim.estimate(waveform) if squim is not None and power > _POWER_FLOOR else (None, None, None)
    return Measured(
        id=waveform.id,
        duration_s=waveform.duration_s,
        rms_dbfs=_decibel(power),
        peak_dbfs=_decibel(float(np.abs(samples).max()) ** 2) if len(samples) else SILENCE_FLOOR_DBFS,
        clipped_share=_clipped_share(samples),
        dc_offset=abs(mean),
        silence_ratio=_silence_ratio(frames),
        snr_db=_snr_db(frames, power),
        bandwidth_hz=_bandwidth_hz(sound, waveform.sample_rate) if power > _POWER_FLOOR else None,
        speech_ratio=vad.speech_ratio(waveform) if vad is not None else None,
        stoi=estimates[0],
        pesq=estimates[1],
        si_sdr_db=estimates[2],
    )


def _decibel(power: float) -> float:
    return max(SILENCE_FLOOR_DBFS, 10 * math.log10(power)) if power > 0 else SILENCE_FLOOR_DBFS


def _clipped_share(samples: npt.NDArray[np.float32]) -> float:
    """Share of the samples in runs of at least three at full scale, either side."""
    at_rail = np.abs(samples) >= _RAIL
    if not at_rail.any():
        return 0.0
    edges = np.flatnonzero(np.diff(np.concatenate(([False], at_rail, [False])).astype(np.int8)))
    lengths = edges[1::2] - edges[::2]
    return float(lengths[lengths >= _SHORTEST_CLIP].sum() / len(samples))


def _frame_powers(sound: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float64]:
    """Mean squares of the frames of 20 ms, float64 [frames]; what is left at the end belongs to none."""
    length = max(1, round(_FRAME_S * rate))
    count = len(sound) // length
    return np.square(sound[: count * length].reshape(count, length)).mean(axis=1, dtype=np.float64)


def _silence_ratio(frames: npt.NDArray[np.float64]) -> float:
    if not len(frames):
        return 0.0
    loud = float(np.percentile(frames, _LOUD_PERCENTILE))
    return float(np.mean(frames <= max(loud * 10 ** (-_SILENCE_DB / 10), _POWER_FLOOR)))


def _snr_db(frames: npt.NDArray[np.float64], power: float) -> float | None:
    """The ratio between what the recording has above its noise, and its noise.

    The noise is the power that a tenth of the frames do not exceed: people pause. That is how NIST's STNR and
    quantile-based noise estimation go about it (Stahl, Fischer & Bippus 2000, ICASSP). WADA-SNR (Kim & Stern 2008,
    Interspeech), which needs no pauses but takes the amplitudes of speech to be gamma-distributed, was worse on acted
    speech with known noise: trimmed studio recordings and long pauses both break its assumption. Where nobody pauses
    the estimate is too low.
    """
    if len(frames) < _LEAST_FRAMES or power <= _POWER_FLOOR:
        return None
    noise = max(float(np.percentile(frames, _NOISE_PERCENTILE)), _POWER_FLOOR)
    signal = max(power - noise, _POWER_FLOOR * 1e-6)
    return min(max(10 * math.log10(signal / noise), _SNR_DB[0]), _SNR_DB[1])


def _bandwidth_hz(sound: npt.NDArray[np.float32], rate: int) -> float:
    """Up to where there is sound: the long-term average spectrum, smoothed over five bins of at most 24 Hz.

    A recording that was made at 8 kHz and resampled, or came through a telephone or a lossy codec, ends below what its
    rate promises.
    """
    size = 1 << math.ceil(math.log2(rate / 24))
    count = max(1, len(sound) // size)
    whole = sound[: count * size] if len(sound) >= size else np.pad(sound, (0, size - len(sound)))
    spectra = np.fft.rfft(whole.reshape(count, size) * np.hanning(size).astype(np.float32), axis=1)
    spectrum = np.convolve(np.square(np.abs(spectra)).mean(axis=0), np.ones(5) / 5, mode="same")
    lowest = math.ceil(_LOWEST_HZ * size / rate)
    heard = np.flatnonzero(spectrum[lowest:] > spectrum[lowest:].max() * 10 ** (-_BAND_DROP_DB / 10))
    return float(heard[-1] + lowest) * rate / size if len(heard) else 0.0
