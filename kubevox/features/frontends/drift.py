"""What monitoring watches: one vector a recording, of features that a person can read."""

from __future__ import annotations

import functools
import itertools
import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kubevox.config import DriftConfig
from kubevox.features.frontends.base import Frontend
from kubevox.features.frontends.spectrum import dct_matrix, frame_power, framed, hann_window, mel_bank

__all__ = ["Drift"]

# Constants of librosa 0.11's defaults.
_POWER_FLOOR = 1e-10  # core.power_to_db, amin
_DYNAMIC_RANGE_DB = 80.0  # core.power_to_db, top_db
_ZERO = 1e-10  # core.zero_crossings, threshold
_CONTRAST_FMIN_HZ = 200.0  # feature.spectral_contrast
_CONTRAST_QUANTILE = 0.02  # feature.spectral_contrast

# Of a frame's energy: differences below it are rounding, and no sign of a period.
_ROUNDING = 1e-5


class Drift(Frontend):
    """Means and standard deviations over time, 49 values a recording by default: float32 [values].

    Of MFCC (in dB), spectral centroid (Hz), spectral contrast (dB; below 200 Hz, then octaves), zero-crossing rate
    (share of samples), RMS (of full scale) and pitch (Hz, over the voiced frames, 0 where there are none); at the end
    the share of frames that are voiced. Frames are centred: padded with the outermost sample for the zero-crossing
    rate, with zeros for everything else.

    Sources: librosa 0.11, ``feature.mfcc``, ``feature.spectral_centroid``, ``feature.spectral_contrast``,
    ``feature.zero_crossing_rate``, ``feature.rms``. Pitch: A. de Cheveigne and H. Kawahara, YIN, a fundamental
    frequency estimator for speech and music, JASA 111(4), 2002, steps 2 to 5, with an integration window that leaves
    room for the longest lag.
    """

    kind: ClassVar[str] = "drift"
    config: DriftConfig

    def __init__(self, config: DriftConfig, device: str = "cpu") -> None:
        super().__init__(config, device)
        rate, frame = config.sample_rate, config.frame
        # In float64, as librosa transforms: a valley next to a loud harmonic lies below the rounding of float32.
        self._window = torch.from_numpy(hann_window(frame)).to(self.device)
        bank = mel_bank(rate, frame, config.mels, 0.0, rate / 2, equal_area=True)
        self._mel = torch.from_numpy(np.ascontiguousarray(bank.T)).to(self.device)
        dct = dct_matrix(config.mfccs, config.mels)
        self._dct = torch.from_numpy(np.ascontiguousarray(dct.T)).to(self.device)
        hertz = np.fft.rfftfreq(frame, 1.0 / rate)
        # One product gives both sums that the centroid needs.
        both = np.stack([hertz, np.ones_like(hertz)], axis=1)
        self._hertz = torch.from_numpy(both.astype(np.float32)).to(self.device)
        self._octaves = _octaves(hertz, config.contrast_bands)
        self._shortest = math.floor(rate / config.pitch_fmax_hz)
        self._longest = math.ceil(rate / config.pitch_fmin_hz)

    @property
    def feature_names(self) -> list[str]:
        """``mfcc_0_mean``, ``mfcc_0_std``, ..., ``pitch_mean``, ``pitch_std``, ``voiced_share``."""
        return self.config.feature_names

    def _features(self, samples: Tensor) -> Tensor:
        frames = framed(samples, self.config.frame, self.config.hop)
        # One transform for everything but pitch.
        power = frame_power(frames, self._window).float()
        magnitude = power.sqrt()
        watched = torch.cat(
            [
                self._mfcc(power),
                self._centroid(magnitude),
                self._contrast(magnitude),
                self._zero_crossing_rate(samples)[..., None],
                self._rms(samples)[..., None],
            ],
            dim=-1,
        ).double()
        mean = watched.mean(1)
        moments = torch.stack([mean, (watched - mean[:, None]).square().mean(1).sqrt()], dim=-1)
        return torch.cat([moments.flatten(1), self._pitch_moments(frames)], dim=1).float()

    def _mfcc(self, power: Tensor) -> Tensor:
        """MFCC: [batch, frames, mfccs] of [batch, frames, bins]."""
        return _decibel(power @ self._mel) @ self._dct

    def _centroid(self, magnitude: Tensor) -> Tensor:
        """Spectral centroid in Hz, 0 in silence: [batch, frames, 1] of [batch, frames, bins]."""
        sums = magnitude @ self._hertz
        weighted, total = sums[..., :1], sums[..., 1:]
        return weighted / torch.where(total < torch.finfo(total.dtype).tiny, 1.0, total)

    def _contrast(self, magnitude: Tensor) -> Tensor:
        """Spectral contrast in dB: [batch, frames, bands + 1] of [batch, frames, bins].

        A band's strongest bins over its weakest, the mean of a fiftieth of them each. librosa takes magnitudes for
        powers here, and so does this.
        """
        extremes = []
        for bins, count in self._octaves:
            band = magnitude[..., bins]
            if count == 1:
                extremes += [band.amax(-1), band.amin(-1)]
            else:
                ordered = _sorted(band)
                extremes += [ordered[..., -count:].mean(-1), ordered[..., :count].mean(-1)]
        peaks, valleys = torch.stack(extremes[::2], dim=-1), torch.stack(extremes[1::2], dim=-1)
        return _decibel(peaks) - _decibel(valleys)

    def _zero_crossing_rate(self, samples: Tensor) -> Tensor:
        """Share of a frame's samples at which the sign changes: [batch, frames] of [batch, n].

        A frame's first sample never counts, and what is padded never crosses zero.
        """
        frame, hop = self.config.frame, self.config.hop
        negative = samples < -_ZERO
        crossings = functional.pad(negative[:, 1:] != negative[:, :-1], (1, 0)).to(torch.int32)
        # How many there are before each sample, and so in each frame.
        before = functional.pad(crossings.cumsum(1, dtype=torch.int32), (1, 0))
        first, stop = _frame_bounds(samples.shape[1], frame, hop, str(samples.device))
        return (before.index_select(1, stop) - before.index_select(1, first)).float() / frame

    def _rms(self, samples: Tensor) -> Tensor:
        """Root of a frame's mean square: [batch, frames] of [batch, n]."""
        frame, hop = self.config.frame, self.config.hop
        # Frames and hops are whole steps: each is squared and summed once, not once a frame.
        step = math.gcd(frame, hop) if frame % 2 == 0 else 1
        frames, half = 1 + (samples.shape[1] - frame % 2) // hop, frame // 2
        length = (frames - 1) * hop + frame
        padded = functional.pad(samples, (half, max(length - half - samples.shape[1], 0)))[:, :length]
        steps = padded.square().reshape(len(samples), -1, step).sum(-1)
        return (steps.unfold(-1, frame // step, hop // step).sum(-1) / frame).sqrt()

    def _pitch_moments(self, frames: Tensor) -> Tensor:
        """Mean and deviation in Hz over the voiced frames, and their share: float64 [batch, 3]."""
        pitch, voiced = self._pitch(frames)
        count = voiced.sum(1, keepdim=True)
        some = count.clamp(min=1)
        mean = torch.where(voiced, pitch, 0.0).sum(1, keepdim=True) / some
        deviation = (torch.where(voiced, pitch - mean, 0.0).square().sum(1, keepdim=True) / some).sqrt()
        return torch.cat([mean, deviation, count.double() / voiced.shape[1]], dim=1)

    def _pitch(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Fundamental frequency in Hz, float64, and whether there is one: [batch, frames] each."""
        difference, energy = self._difference(frames)
        # Equation 8 of the paper, over its lags 1, 2, ...
        floor = energy * _ROUNDING + torch.finfo(energy.dtype).tiny
        lags = torch.arange(1, difference.shape[-1] + 1, device=frames.device, dtype=difference.dtype)
        mean = difference.cumsum(-1) / lags
        normal = (difference + floor) / (mean + floor)
        # Lag t stands at t - 1.
        here = normal[..., self._shortest - 1 : self._longest]
        below, above = normal[..., self._shortest - 2 : self._longest - 1], normal[..., self._shortest :]
        trough = (here < self.config.pitch_aperiodicity) & (here < below) & (here <= above)
        # The shortest period of all that are good enough: argmax finds the first.
        place = trough.to(torch.uint8).argmax(-1, keepdim=True)
        voiced = trough.any(-1)
        at = place + self._shortest - 1
        left, centre, right = (difference.gather(-1, at + step)[..., 0].double() for step in (-1, 0, 1))
        curvature = left + right - 2.0 * centre
        shift = (0.5 * (left - right) / curvature).nan_to_num(0.0, 0.0, 0.0).clamp_(-0.5, 0.5)
        return self.config.sample_rate / (at[..., 0] + 1 + shift), voiced

    def _difference(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """How frames differ from themselves some samples later, and their energy.

        Args:
            frames: [batch, frames, frame].

        Returns:
            [batch, frames, longest + 1] for lags from 1, the sum of the squared differences (the paper's equation 6);
            [batch, frames, 1].
        """
        frame, lags = self.config.frame, self._longest + 1
        span = frame - lags
        # An offset changes no difference, but would drown small ones in rounding.
        frames = frames - frames.mean(-1, keepdim=True)
        # Longest lag and integration window fill the frame, so that nothing wraps around in a transform of its length.
        early, whole = torch.fft.rfft(frames[..., :span], n=frame), torch.fft.rfft(frames)
        products = torch.fft.irfft(early.conj().mul_(whole), n=frame)[..., 1 : lags + 1]
        squares = frames.square()
        energy = squares.sum(-1, keepdim=True)
        first = squares[..., :span].sum(-1, keepdim=True)
        later = first + (squares[..., span:] - squares[..., :lags]).cumsum(-1)
        return (first + later - 2.0 * products).clamp_(min=0.0), energy


def _decibel(power: Tensor) -> Tensor:
    """Decibel of [batch, frames, values], none more than 80 dB below the recording's highest."""
    decibel = 10.0 * torch.log10(power.clamp(min=_POWER_FLOOR))
    return torch.maximum(decibel, decibel.amax((1, 2), keepdim=True) - _DYNAMIC_RANGE_DB)


def _sorted(values: Tensor) -> Tensor:
    """The values in ascending order along the last axis."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))  # thirty times as fast as torch's sort or topk
    return values.sort(-1).values


def _octaves(hertz: np.ndarray, bands: int) -> list[tuple[slice, int]]:
    """Each contrast band's bins, and how many of them are its peak and its valley (``feature.spectral_contrast``)."""
    edges = [0.0, *(_CONTRAST_FMIN_HZ * 2.0**octave for octave in range(bands + 1))]
    octaves = []
    for band, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = np.flatnonzero((hertz >= low) & (hertz <= high))
        first, stop = int(inside[0]) - (band > 0), int(inside[-1]) + 1
        if band == bands:
            stop = len(hertz)
        count = max(int(np.rint(_CONTRAST_QUANTILE * (stop - first))), 1)
        octaves.append((slice(first, stop if band == bands else stop - 1), count))
    return octaves


@functools.lru_cache(maxsize=64)
def _frame_bounds(samples: int, frame: int, hop: int, device: str) -> tuple[Tensor, Tensor]:
    """The sample after each centred frame's first, and the first behind the frame, within the recording: int64."""
    starts = torch.arange(1 + (samples - frame % 2) // hop) * hop - frame // 2
    bounds = (starts + 1).clamp(0, samples), (starts + frame).clamp(0, samples)
    return bounds[0].to(device), bounds[1].to(device)
