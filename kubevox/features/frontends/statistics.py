"""Means over time of classic features: one vector a recording, with the numbers that librosa 0.11 gives."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kubevox.config import StatisticsConfig
from kubevox.features.frontends.base import Frontend
from kubevox.features.frontends.spectrum import BandSums, chroma_bank, dct_matrix, framed, hann_window, mel_bank

__all__ = ["Statistics"]

# Constants of librosa 0.11's defaults.
_PITCH_FMIN_HZ, _PITCH_FMAX_HZ = 150.0, 4000.0  # core.piptrack
_PITCH_THRESHOLD = 0.1  # core.piptrack, of the frame's maximum
_TUNING_STEPS = 100  # core.estimate_tuning: a resolution of 0.01
_POWER_FLOOR = 1e-10  # core.power_to_db, amin
_DYNAMIC_RANGE_DB = 80.0  # core.power_to_db, top_db
_ZERO = 1e-10  # core.zero_crossings, threshold


class Statistics(Frontend):
    """270 values a recording by default, each the mean over all frames: float32 [values].

    In this order: zero-crossing rate (1), RMS (1), chroma (12), mel power (128), MFCC (128). Frames are centred: padded
    with the outermost sample for the zero-crossing rate, with zeros for everything else.

    Sources, all librosa 0.11: ``feature.zero_crossing_rate``, ``feature.rms``, ``feature.chroma_stft`` (with
    ``core.estimate_tuning``: pitches found by ``core.piptrack``), ``feature.melspectrogram``, ``feature.mfcc``.
    """

    kind: ClassVar[str] = "statistics"
    config: StatisticsConfig

    def __init__(self, config: StatisticsConfig, device: str = "cpu") -> None:
        super().__init__(config, device)
        rate, frame = config.sample_rate, config.frame
        # librosa transforms in float64 and keeps the spectrum in float32; see _magnitude for why this does the same.
        self._window = torch.from_numpy(hann_window(frame)).to(self.device)
        self._mel = BandSums(mel_bank(rate, frame, config.mels, 0.0, rate / 2, equal_area=True), self.device)
        self._dct = torch.from_numpy(dct_matrix(config.mfccs, config.mels)).to(self.device)
        bins = np.fft.rfftfreq(frame, 1.0 / rate)
        pitched = np.nonzero((bins >= _PITCH_FMIN_HZ) & (bins < min(_PITCH_FMAX_HZ, rate / 2)))[0]
        # The outermost bins have no two neighbours to be a peak between.
        self._pitched = range(max(int(pitched[0]), 1), min(int(pitched[-1]), len(bins) - 2) + 1)
        self._tunings = np.linspace(-0.5, 0.5, _TUNING_STEPS + 1)
        self._edges = torch.from_numpy(self._tunings).to(self.device)

    @property
    def feature_names(self) -> list[str]:
        """``zero_crossing_rate``, ``rms``, ``chroma_0`` (C), ..., ``mel_0``, ..., ``mfcc_0``, ..."""
        families = {"chroma": self.config.chroma, "mel": self.config.mels, "mfcc": self.config.mfccs}
        return ["zero_crossing_rate", "rms", *(f"{name}_{i}" for name, size in families.items() for i in range(size))]

    def _features(self, samples: Tensor) -> Tensor:
        frames = framed(samples, self.config.frame, self.config.hop)
        power = _magnitude(torch.fft.rfft(frames * self._window)).square()
        mel = self._mel(power)
        return torch.cat(
            [
                self._zero_crossing_rate(samples),
                frames.square().mean(-1).sqrt().mean(-1, keepdim=True),
                self._chroma(power),
                mel.mean(-1),
                self._mfcc(mel),
            ],
            dim=1,
        )

    def _zero_crossing_rate(self, samples: Tensor) -> Tensor:
        """Mean share of samples at which the sign changes: [batch, 1] of [batch, n]."""
        half = self.config.frame // 2
        negative = samples < -_ZERO
        padded = torch.cat([negative[:, :1].expand(-1, half), negative, negative[:, -1:].expand(-1, half)], dim=1)
        crossings = padded[:, 1:] != padded[:, :-1]
        # A frame's first sample never counts, so a frame is one crossing shorter.
        counts = crossings.float().unfold(-1, self.config.frame - 1, self.config.hop).sum(-1)
        return counts.mean(-1, keepdim=True) / self.config.frame

    def _chroma(self, power: Tensor) -> Tensor:
        """Mean chroma, each frame's strongest pitch class being 1: [batch, chroma] of [batch, frames, bins]."""
        config = self.config
        tunings = (float(self._tunings[step]) for step in self._tuning_steps(power).tolist())
        banks = np.stack([chroma_bank(config.sample_rate, config.frame, config.chroma, tuning) for tuning in tunings])
        weights = torch.from_numpy(banks).to(power.device)
        raw = torch.stack([(power * weights[:, None, pitch]).sum(-1) for pitch in range(config.chroma)], dim=1)
        strongest = raw.amax(1, keepdim=True)
        strongest = torch.where(strongest < torch.finfo(raw.dtype).tiny, 1.0, strongest)
        return (raw / strongest).mean(-1)

    def _tuning_steps(self, power: Tensor) -> Tensor:
        """How far each clip's pitches lie from A4 = 440 Hz: int64 [batch], indices into the possible tunings.

        Spectral peaks are interpolated by a parabola (J. O. Smith, Spectral Audio Signal Processing, "Quadratic
        Interpolation of Spectral Peaks"); of those at least as strong as the median, the deviations from the nearest
        pitch class are counted in hundredths, and the fullest hundredth wins.
        """
        first, stop = self._pitched.start, self._pitched.stop
        below, here, above = power[..., first - 1 : stop - 1], power[..., first:stop], power[..., first + 1 : stop + 1]
        threshold = _PITCH_THRESHOLD * power.amax(-1, keepdim=True)

        def audible(part: Tensor) -> Tensor:
            return torch.where(part > threshold, part, 0.0)

        peaks = (audible(here) > audible(below)) & (audible(here) >= audible(above))
        clip, frame, index = peaks.nonzero(as_tuple=True)
        below, here, above = below[clip, frame, index], here[clip, frame, index], above[clip, frame, index]
        # librosa interpolates in float64 and keeps float32.
        curvature = (above + below).double() - 2.0 * here.double()
        slope = (above - below).double() / 2.0
        shift = torch.where(slope.abs() >= curvature.abs(), 0.0, -slope / curvature).float()
        magnitude = here + 0.5 * ((above - below) / 2.0) * shift
        hertz = ((index + first).double() + shift.double()) * self.config.sample_rate / self.config.frame
        strong = magnitude >= _medians(magnitude, clip, len(power))[clip]
        octaves = torch.log2((hertz.float() / 27.5).double()).float()
        deviation = torch.remainder(self.config.chroma * octaves, 1.0)
        deviation = torch.where(deviation >= 0.5, deviation - 1.0, deviation)
        step = torch.bucketize(deviation.double(), self._edges, right=True).sub_(1).clamp_(0, _TUNING_STEPS - 1)
        votes = torch.bincount((clip * _TUNING_STEPS + step)[strong], minlength=len(power) * _TUNING_STEPS)
        votes = votes.reshape(len(power), _TUNING_STEPS)
        # Without any pitch the tuning is 0, not the first of the steps.
        return torch.where(votes.sum(1) > 0, votes.argmax(1), _TUNING_STEPS // 2)

    def _mfcc(self, mel: Tensor) -> Tensor:
        """Mean MFCC [batch, mfccs] of mel powers [batch, mels, frames]."""
        decibel = 10.0 * torch.log10(mel.clamp(min=_POWER_FLOOR))
        decibel = torch.maximum(decibel, decibel.amax((1, 2), keepdim=True) - _DYNAMIC_RANGE_DB)
        # The DCT is linear: that of the mean is the mean of the frames'.
        return (decibel.mean(-1)[:, None, :] * self._dct).sum(-1)


def _magnitude(spectrum: Tensor) -> Tensor:
    """The absolute values of a complex128 spectrum, rounded where numpy's are: float32, of the same shape.

    The tuning estimate is a vote that often ends with a lead of one, so that a single pitch rounded to the other side
    of a border moves all of the chroma. Hence the spectrum is first rounded to complex64, as librosa keeps it, and its
    magnitude is the greater part times the root of one plus the parts' ratio squared, with one rounding for the sum,
    as numpy computes it (``loops_unary_complex.dispatch.c.src``). With the plain root of the squares' sum, 4 clips in
    1000 had another tuning than librosa's.
    """
    parts = torch.view_as_real(spectrum).float().abs()
    greater, less = parts.amax(-1), parts.amin(-1)
    ratio = torch.where(greater > 0.0, less / greater, 0.0)
    # Roots of float32 come from a vector library on some machines, which rounds the last bit either way.
    return (ratio.double().square() + 1.0).float().double().sqrt().float() * greater


def _medians(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The median of each group's values (of an even number, the mean of the middle two): float32 [groups].

    Args:
        values: [n].
        group: int64 [n], ascending.
        groups: how many there are; the median of an empty one is 0.
    """
    count = torch.bincount(group, minlength=groups)
    if not len(values):
        return values.new_zeros(groups)
    first = count.cumsum(0) - count
    order = values.argsort()
    ordered = values[order][group[order].argsort(stable=True)]
    middle = (first + (count - 1).clamp(min=0) // 2).clamp(max=len(values) - 1)
    upper = (first + count // 2).clamp(max=len(values) - 1)
    return torch.where(count > 0, (ordered[middle] + ordered[upper]) / 2.0, 0.0)
