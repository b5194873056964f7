"""Means over time of classic features: one vector a recording, with the numbers that librosa 0.11 gives."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kubevox.config import StatisticsConfig
from kubevox.features.frontends.base import Frontend
from kubevox.features.frontends.spectrum import (
    GroupedBank,
    chroma_bank,
    dct_matrix,
    frame_power,
    framed,
    hann_window,
    mel_bank,
)
from kubevox.features.frontends.tuning import STEPS, Candidates, TuningEstimator
from kubevox.features.runtime import one_thread

__all__ = ["Statistics"]

# Constants of librosa 0.11's defaults.
_POWER_FLOOR = 1e-10  # core.power_to_db, amin
_DYNAMIC_RANGE_DB = 80.0  # core.power_to_db, top_db
_ZERO = 1e-10  # core.zero_crossings, threshold
# Recordings whose frames, spectra and powers (2.2 MB each) are in a CPU's caches; with all cores at work more were
# slower.
_CACHED_CLIPS = 2
_COLUMNS = 16  # of a matrix that fill a CPU's vector


class Statistics(Frontend):
    """270 values a recording by default, each the mean over all frames: float32 [values].

    In this order: zero-crossing rate (1), RMS (1), chroma (12), mel power (128), MFCC (128). Frames are centred: padded
    with the outermost sample for the zero-crossing rate, with zeros for everything else.

    Sources, all librosa 0.11: ``feature.zero_crossing_rate``, ``feature.rms``, ``feature.chroma_stft`` (with
    ``core.estimate_tuning``: pitches found by ``core.piptrack``), ``feature.melspectrogram``, ``feature.mfcc``.
    """

    kind: ClassVar[str] = "statistics"
    batched_on_cpu: ClassVar[bool] = True
    config: StatisticsConfig

    def __init__(self, config: StatisticsConfig, device: str = "cpu") -> None:
        super().__init__(config, device)
        rate, frame = config.sample_rate, config.frame
        window = torch.from_numpy(hann_window(frame)).to(self.device)
        self._window, self._exact_window = window.float(), window
        self._mel = GroupedBank(mel_bank(rate, frame, config.mels, 0.0, rate / 2, equal_area=True), self.device)
        self._dct = torch.from_numpy(dct_matrix(config.mfccs, config.mels)).to(self.device)
        self._tuning = TuningEstimator(rate, frame, config.chroma, self.device)
        self._tunings = np.linspace(-0.5, 0.5, STEPS + 1)

    @property
    def feature_names(self) -> list[str]:
        """``zero_crossing_rate``, ``rms``, ``chroma_0`` (C), ..., ``mel_0``, ..., ``mfcc_0``, ..."""
        families = {"chroma": self.config.chroma, "mel": self.config.mels, "mfcc": self.config.mfccs}
        return ["zero_crossing_rate", "rms", *(f"{name}_{i}" for name, size in families.items() for i in range(size))]

    def warm_up(self) -> None:
        """Make the chroma banks of all tunings: 0.1 s, 5 MB."""
        config, device = self.config, str(self.device)
        for tuning in self._tunings[:STEPS].tolist():
            _chroma_weights(config.sample_rate, config.frame, config.chroma, tuning, device)

    def _features(self, samples: Tensor, powers: list[Tensor] | None = None, exact: bool = True) -> Tensor:
        size = _CACHED_CLIPS if samples.device.type == "cpu" else len(samples)
        if powers is None:
            blocks = samples.split(size)
            powers = []
        else:
            blocks = samples.split([len(power) for power in powers])
        waves, mel_means, mfccs, pitched = [], [], [], []
        for number, block in enumerate(blocks):
            if number == len(powers):
                # One transform for everything below, in float32.
                frames = framed(block, self.config.frame, self.config.hop)
                powers.append(frame_power(frames, self._window))
            mel = self._mel(powers[number])
            waves += [self._zero_crossing_rate(block), self._rms(block)]
            mel_means.append(mel.mean(1))
            mfccs.append(self._mfcc(mel))
            pitched.append(self._tuning.candidates(powers[number], sum(map(len, blocks[:number])) * mel.shape[1]))
        return torch.cat(
            [
                torch.cat(waves[::2]),
                torch.cat(waves[1::2]),
                self._chroma(powers, pitched, samples if exact else None),
                torch.cat(mel_means),
                torch.cat(mfccs),
            ],
            dim=1,
        )

    def _augmented_features(self, samples: Tensor) -> Tensor:
        return self._features(samples, exact=False)

    def takes_powers(self, frame: int, hop: int) -> bool:
        """Frames of this kind are its own: windowed by Hann's, centred, zero-padded."""
        return (frame, hop) == (self.config.frame, self.config.hop)

    def of_powers(self, samples: Tensor, powers: list[Tensor]) -> Tensor:
        """The features of samples whose frames' powers are there already: the same bits."""
        with torch.no_grad(), one_thread():
            return self._rounded(self._features(samples, powers))

    def _zero_crossing_rate(self, samples: Tensor) -> Tensor:
        """Mean share of samples at which the sign changes: [batch, 1] of [batch, n].

        The mean over frames is a weighted sum over samples, a sample's weight being the number of frames that it lies
        in. All of it is whole numbers below 2^24, so that no order of adding them matters. What is padded never
        crosses zero; a frame's first sample never counts.
        """
        weights = _coverage(samples.shape[1], self.config.frame, self.config.hop, str(samples.device))
        if samples.device.type == "cpu":
            # The same on numpy's view of the same memory: its comparisons are seven times as fast.
            crossings = torch.from_numpy(_crossings(samples.numpy()).view(np.uint8))
        else:
            crossings = _crossings(samples)
        frames = 1 + samples.shape[1] // self.config.hop
        return (crossings.float() @ weights)[:, None] / (frames * self.config.frame)

    def _rms(self, samples: Tensor) -> Tensor:
        """Mean over frames of the root of the mean square: [batch, 1] of [batch, n]."""
        frame, hop = self.config.frame, self.config.hop
        if frame % (2 * hop):
            return framed(samples, frame, hop).square().mean(-1).sqrt().mean(-1, keepdim=True)
        # Frames are whole hops, and so is the silence before the first: each hop is summed once, not once a frame.
        whole, half = samples.shape[1] // hop, frame // 2 // hop
        energies = samples.new_zeros(len(samples), whole + 2 * half)
        energies[:, half : half + whole] = samples[:, : whole * hop].square().unflatten(1, (-1, hop)).sum(-1)
        energies[:, half + whole] = samples[:, whole * hop :].square().sum(-1)
        return (energies.unfold(-1, frame // hop, 1).sum(-1) / frame).sqrt().mean(-1, keepdim=True)

    def _chroma(self, powers: list[Tensor], pitched: list[Candidates], samples: Tensor | None) -> Tensor:
        """Mean chroma, each frame's strongest pitch class being 1: [batch, chroma].

        Args:
            powers: of all recordings in turn, float32 [some, frames, bins] each.
            pitched: what the tuning is estimated from.
            samples: of which the powers are, float32 [batch, n]; None: where rounding decides which pitch class
                prevails, that of float32 will do.
        """
        config, count = self.config, powers[0].shape[1]
        clips = [clip for power in powers for clip in power]

        def exact_power(rows: Tensor) -> Tensor:
            assert samples is not None  # noqa: S101 - only called where they are there
            return self._exact_power(framed(samples, config.frame, config.hop)[rows // count, rows % count])

        steps = self._tuning(pitched, len(clips), count, None if samples is None else exact_power)
        raw = self._pitch_classes(clips, steps) if steps.device.type == "cpu" else self._at_once(powers, steps)
        raw = raw[..., : config.chroma]
        strongest = raw.amax(-1, keepdim=True)
        strongest = torch.where(strongest < torch.finfo(raw.dtype).tiny, 1.0, strongest)
        return (raw / strongest).mean(1)

    def _pitch_classes(self, clips: list[Tensor], steps: Tensor) -> Tensor:
        """Power in each pitch class, recording by recording: float32 [recordings, frames, columns]."""
        config = self.config
        raw = clips[0].new_empty(len(clips), len(clips[0]), -(-config.chroma // _COLUMNS) * _COLUMNS)
        for clip, out, step in zip(clips, raw, steps.tolist(), strict=True):
            tuning = float(self._tunings[step])
            weights = _chroma_weights(config.sample_rate, config.frame, config.chroma, tuning, str(clip.device))
            torch.mm(clip, weights, out=out)
        return raw

    def _at_once(self, powers: list[Tensor], steps: Tensor) -> Tensor:
        """The same in one product, which a GPU takes no longer for than for one recording."""
        config, device = self.config, str(steps.device)
        banks = _chroma_banks(config.sample_rate, config.frame, config.chroma, device)
        return torch.bmm(torch.cat(powers), banks.index_select(0, steps))

    def _exact_power(self, frames: Tensor) -> Tensor:
        """Power by librosa's arithmetic: float32 [n, bins] of frames [n, frame].

        Outside of the bins in which pitches are looked for, only the greatest counts, and its last bit does not.
        """
        # librosa transforms in float64 and keeps complex64.
        parts = torch.view_as_real(torch.fft.rfft(frames * self._exact_window)).float()
        power = parts[..., 0].square() + parts[..., 1].square()
        near = parts[..., self._tuning.bins, :]
        # Squares of less are denormal, which takes a hundred times as long; no audible peak is that low.
        power[..., self._tuning.bins] = _magnitude(near[..., 0].abs(), near[..., 1].abs()).clamp_(min=1e-18).square_()
        return power

    def _mfcc(self, mel: Tensor) -> Tensor:
        """Mean MFCC [batch, mfccs] of mel powers [batch, frames, mels]."""
        # The floors come before the logarithm, which is as well and saves two passes.
        least = mel.amax((1, 2), keepdim=True).mul_(10.0 ** (-_DYNAMIC_RANGE_DB / 10.0)).clamp_(min=_POWER_FLOOR)
        decibel = torch.maximum(mel, least).log10_().mean(1) * 10.0
        # The DCT is linear: that of the mean is the mean of the frames'.
        return (decibel[:, None, :] * self._dct).sum(-1)


def _crossings(samples: Any) -> Any:
    """Where the sign changes from one sample to the next, bool [batch, n - 1]; what is hardly anything is positive."""
    negative = samples < -_ZERO
    return negative[:, 1:] != negative[:, :-1]


@functools.lru_cache(maxsize=64)
def _coverage(samples: int, frame: int, hop: int, device: str) -> Tensor:
    """In how many frames each sample but the first lies, the frames' own first samples aside: float32 [samples - 1]."""
    starts = np.arange(1 + samples // hop) * hop - frame // 2
    counts = np.zeros(samples + 1, np.int64)
    np.add.at(counts, np.clip(starts + 1, 0, samples), 1)
    np.add.at(counts, np.clip(starts + frame, 0, samples), -1)
    return torch.from_numpy(counts.cumsum()[1:samples].astype(np.float32)).to(device)


@functools.lru_cache(maxsize=2 * STEPS)
def _chroma_weights(sample_rate: int, frame: int, chroma: int, tuning: float, device: str) -> Tensor:
    """The chroma bank on a device, with columns of zeros to a whole vector's: float32 [1 + frame / 2, columns].

    Twelve columns take half as long again as sixteen.
    """
    bank = chroma_bank(sample_rate, frame, chroma, tuning).T
    columns = np.zeros((len(bank), -(-chroma // _COLUMNS) * _COLUMNS), np.float32)
    columns[:, :chroma] = bank
    return torch.from_numpy(columns).to(device)


@functools.lru_cache(maxsize=4)
def _chroma_banks(sample_rate: int, frame: int, chroma: int, device: str) -> Tensor:
    """The banks of all tunings: float32 [STEPS, 1 + frame / 2, columns]."""
    tunings = np.linspace(-0.5, 0.5, STEPS + 1)[:STEPS].tolist()
    return torch.stack([_chroma_weights(sample_rate, frame, chroma, tuning, device) for tuning in tunings])


def _magnitude(real: Tensor, imaginary: Tensor) -> Tensor:
    """The magnitudes of a complex64 spectrum, rounded where numpy's are: float32.

    The tuning estimate is a vote that often ends with a lead of one, so that a single pitch rounded to the other side
    of a border moves all of the chroma. Hence the magnitude is the greater part times the root of one plus the parts'
    ratio squared, with one rounding for the sum, as numpy computes it (``loops_unary_complex.dispatch.c.src``). With
    the plain root of the squares' sum, 4 clips in 1000 had another tuning than librosa's.

    Args:
        real: absolute values, float32.
        imaginary: absolute values, float32, of the same shape.
    """
    greater, less = torch.maximum(real, imaginary), torch.minimum(real, imaginary)
    ratio = torch.where(greater > 0.0, less / greater, 0.0)
    # Roots of float32 come from a vector library on some machines, which rounds the last bit either way.
    return (ratio.double().square() + 1.0).float().double().sqrt().float() * greater
