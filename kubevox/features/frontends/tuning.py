"""How far a recording's pitches lie from A4 = 440 Hz, as librosa 0.11 estimates it, at the speed of float32.

librosa finds spectral peaks (``core.piptrack``), keeps those at least as strong as the median, and lets them vote for a
hundredth of a pitch class (``core.pitch_tuning``); chroma then uses filters tuned to the winner. The vote is often won
by one, so that rounding alone can move all of the chroma. librosa transforms in float64; that is ten times slower than
float32 on the usual CPU.

So the vote is held on a float32 transform, with a margin: a peak that rounding could make appear, vanish, cross the
median or change its hundredth counts for and against every outcome it could have. Where the winner wins all the same,
it is librosa's winner. Where it does not, the few frames with such peaks are transformed again in float64, and the vote
is held once more, with librosa's own roundings in all that is close.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["STEPS", "Candidates", "TuningEstimator"]

STEPS = 100  # core.estimate_tuning: a resolution of 0.01
_FMIN_HZ, _FMAX_HZ = 150.0, 4000.0  # core.piptrack
_THRESHOLD = 0.1  # core.piptrack, of the frame's maximum

# The most that a power from a float32 transform may be off, as a share of the geometric mean of itself and its frame's
# strongest; tests hold it against float64. The largest seen on real and generated recordings is 1.0e-6.
_POWER_ERROR = 2e-6
# What librosa's roundings of hertz and octaves to float32 can move a pitch, in octaves.
_OCTAVE_ERROR = 1e-6


@dataclass(frozen=True)
class Candidates:
    """Bins that may be peaks, one an entry, in the order of recordings, frames and bins.

    Attributes:
        row: the frame, counted over all recordings, int64 [n].
        bin: int64 [n].
        below: the power of the bin below, float32 [n].
        here: of the bin itself.
        above: of the bin above.
        strongest: the frame's greatest power, float32 [n].
    """

    row: Tensor
    bin: Tensor
    below: Tensor
    here: Tensor
    above: Tensor
    strongest: Tensor


@dataclass(frozen=True)
class _Peaks:
    """Spectral peaks of a batch, one an entry, in the order of recordings, frames and bins.

    Attributes:
        clip: the recording, int64 [n].
        row: the frame, counted over all recordings, int64 [n].
        bin: int64 [n].
        shift: of the parabola's top from the bin's centre, in bins, float32 [n].
        magnitude: of the top, float32 [n].
        curvature: of the parabola, negative, float64 [n].
        lopsided: by how much the parabola's slope falls short of what librosa does not interpolate, float64 [n].
        error: how far each power may be off, twice, float32 [n].
        sure: whether it is a peak beyond doubt, bool [n].
    """

    clip: Tensor
    row: Tensor
    bin: Tensor
    shift: Tensor
    magnitude: Tensor
    curvature: Tensor
    lopsided: Tensor
    error: Tensor
    sure: Tensor


class TuningEstimator:
    """Estimates the tuning of recordings from the power of their frames.

    Attributes:
        bins: those in which peaks are looked for, and their neighbours.

    Args:
        sample_rate: in Hz.
        frame: length of the FFT, in samples.
        chroma: pitch classes in an octave.
        device: of the powers.
    """

    def __init__(self, sample_rate: int, frame: int, chroma: int, device: torch.device) -> None:
        self._sample_rate, self._frame, self._chroma = sample_rate, frame, chroma
        bins = np.fft.rfftfreq(frame, 1.0 / sample_rate)
        pitched = np.nonzero((bins >= _FMIN_HZ) & (bins < min(_FMAX_HZ, sample_rate / 2)))[0]
        # The outermost bins have no two neighbours to be a peak between.
        self._first = max(int(pitched[0]), 1)
        self._stop = min(int(pitched[-1]), len(bins) - 2) + 1
        self.bins = slice(self._first - 1, self._stop + 1)
        self._edges = torch.from_numpy(np.linspace(-0.5, 0.5, STEPS + 1)).to(device)

    def candidates(self, power: Tensor, first_row: int = 0, power_error: float = _POWER_ERROR) -> Candidates:
        """What may be a peak among the powers of some recordings, each of which may be off by ``power_error``.

        Args:
            power: float32 [batch, frames, bins], contiguous.
            first_row: the number of the first frame.
            power_error: 0 for powers of librosa's arithmetic.
        """
        strongest = power.amax(-1).flatten()
        region = power[..., self.bins].contiguous()
        # The margin is no less than what a bin above the threshold and its rivals may be off by together.
        raised = region * (1.0 + 10.0 * power_error) if power_error else region
        at = _possible(region.flatten(0, 1), raised.flatten(0, 1), _THRESHOLD * strongest)
        # Few bins are left: everything after this line is small.
        width, flat = region.shape[-1], region.flatten()
        row = at.div(width, rounding_mode="floor")
        bin_ = at - row * width + self.bins.start
        below, middle, above = (flat.index_select(0, at + step) for step in (-1, 0, 1))
        return Candidates(row + first_row, bin_, below, middle, above, strongest.index_select(0, row))

    def __call__(
        self, found: list[Candidates], batch: int, frames: int, exact_power: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Each recording's tuning, as an index into ``numpy.linspace(-0.5, 0.5, 101)``: int64 [batch].

        Args:
            found: the candidates of all recordings, by a float32 transform.
            batch: how many recordings there are.
            frames: how many frames each has.
            exact_power: gives the power by librosa's arithmetic, float32 [n, bins], of some frames (int64 [n], counted
                over all recordings); None: the vote is held once, as the float32 transform has it.
        """
        if exact_power is None:
            return _winners(self._quick_votes(_joined(found), frames, batch))
        peaks = self._peaks(_joined(found), frames, _POWER_ERROR)
        least, most, doubtful = self._bounds(peaks, batch)
        winner = least.argmax(1)
        lead = least.gather(1, winner[:, None])
        # Of equals the first wins.
        later = torch.arange(STEPS, device=winner.device) > winner[:, None]
        beaten = (lead > most) | ((lead == most) & later)
        beaten.scatter_(1, winner[:, None], True)
        undecided = ~beaten.all(1) | (lead[:, 0] == 0)
        if undecided.any():
            again = undecided.index_select(0, peaks.clip)
            rows = peaks.row[doubtful & again].unique_consecutive()
            close = torch.zeros(batch * frames, dtype=torch.bool, device=rows.device).index_fill_(0, rows, True)
            sure = _where(again & ~close.index_select(0, peaks.row))
            chosen = (peaks.clip, peaks.magnitude, peaks.bin, peaks.shift)
            clip, magnitude, bin_, shift = (values.index_select(0, sure) for values in chosen)
            if len(rows):
                exact = self._peaks(self.candidates(exact_power(rows)[None], 0, 0.0), len(rows), 0.0)
                clip = torch.cat([clip, rows[exact.row].div(frames, rounding_mode="floor")])
                magnitude = torch.cat([magnitude, exact.magnitude])
                bin_, shift = torch.cat([bin_, exact.bin]), torch.cat([shift, exact.shift])
                order = clip.argsort(stable=True)
                clip, magnitude, bin_, shift = (values[order] for values in (clip, magnitude, bin_, shift))
            votes = self._exact_votes(clip, magnitude, bin_, shift, batch)
            winner = torch.where(undecided, _winners(votes), winner)
        return winner

    def _quick_votes(self, found: Candidates, frames: int, batch: int) -> Tensor:
        """The votes as float32 has them: int64 [batch, STEPS]. The same rules as below, without librosa's roundings."""
        slope = (found.above - found.below) * 0.5
        curvature = found.above + found.below - 2.0 * found.here
        shift = torch.where(slope.abs() >= curvature.abs(), 0.0, -slope / curvature)
        magnitude = found.here + 0.5 * slope * shift
        clip = found.row.div(frames, rounding_mode="floor")
        strong = _strong(magnitude, clip, batch)
        hertz = (found.bin.index_select(0, strong) + shift.index_select(0, strong)) * (self._sample_rate / self._frame)
        deviation = torch.log2(hertz / 27.5) * self._chroma
        step = ((deviation - deviation.round() + 0.5) * STEPS).long().clamp_(0, STEPS - 1)
        return _count(clip.index_select(0, strong), step, batch)

    def _exact_votes(self, clip: Tensor, magnitude: Tensor, bin_: Tensor, shift: Tensor, batch: int) -> Tensor:
        """The votes of peaks that have librosa's roundings wherever they matter: int64 [batch, STEPS]."""
        strong = _strong(magnitude, clip, batch)
        deviation = self._deviation(bin_.index_select(0, strong), shift.index_select(0, strong))
        step = torch.bucketize(deviation.double(), self._edges, right=True).sub_(1).clamp_(0, STEPS - 1)
        return _count(clip.index_select(0, strong), step, batch)

    def _deviation(self, bin_: Tensor, shift: Tensor) -> Tensor:
        """From the nearest pitch class, as a share of one, in [-0.5, 0.5), with librosa's roundings: float32 [n]."""
        hertz = (bin_.double() + shift.double()) * self._sample_rate / self._frame
        octaves = torch.log2((hertz.float() / 27.5).double()).float()
        deviation = torch.remainder(self._chroma * octaves, 1.0)
        return torch.where(deviation >= 0.5, deviation - 1.0, deviation)

    def _bounds(self, peaks: _Peaks, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """What each step gets at least and at most, int64 [batch, STEPS] each, and which peaks are in doubt."""
        strong, weak = self._against_median(peaks, batch)
        # What is surely too weak to vote need not be looked at.
        voters = _where(~weak)
        clip, bin_, shift, curvature, lopsided, error, sure = (
            values.index_select(0, voters)
            for values in (peaks.clip, peaks.bin, peaks.shift, peaks.curvature, peaks.lopsided, peaks.error, peaks.sure)
        )
        deviation = self._deviation(bin_, shift)
        # How far the parabola's top can move, in bins and so in octaves; where it is nearly flat, or so lopsided that
        # librosa may or may not interpolate, nothing is known.
        steep = curvature.abs() - 3.0 * error
        octave_slack = 2.5 * error / (steep * (bin_ - 1).clamp(min=1) * np.log(2.0)) + _OCTAVE_ERROR
        vague = (steep <= 0.0) | (lopsided <= 3.0 * error)
        slack = torch.where(vague, torch.inf, self._chroma * octave_slack).float()
        low = ((deviation - slack + 0.5) * STEPS).floor()
        high = ((deviation + slack + 0.5) * STEPS).floor()
        known = (high - low <= 1.0) & (low >= 0.0) & (high < STEPS)
        low, high = (torch.where(known, step, 0.0).long() for step in (low, high))
        settled = sure & strong.index_select(0, voters) & known & (low == high)
        narrow = ~settled & known
        least = _count(clip[settled], low[settled], batch)
        # What is open counts for both steps that it may fall into, and where it may fall anywhere, for all.
        most = least + _count(clip[narrow], low[narrow], batch)
        wide = narrow & (low != high)
        most += _count(clip[wide], high[wide], batch)
        most += torch.bincount(clip[~settled & ~known], minlength=batch)[:, None]
        doubtful = ~peaks.sure
        doubtful[voters[~settled]] = True
        return least, most, doubtful

    def _against_median(self, peaks: _Peaks, batch: int) -> tuple[Tensor, Tensor]:
        """Whether each peak is surely at least as strong as its recording's median, and whether it surely is not."""
        count = torch.bincount(peaks.clip, minlength=batch)
        # Each peak more or less moves the median by half a rank.
        doubts = torch.bincount(peaks.clip[~peaks.sure], minlength=batch)
        ranks = torch.stack([((count - 1).clamp(min=0) // 2 - doubts).clamp(min=0), count // 2 + doubts])
        floor, ceiling = _of_ranks(peaks.magnitude, count, ranks)
        # A magnitude errs by at most four times what a power does, and is no weaker than the threshold.
        error = 4.0 * _POWER_ERROR / _THRESHOLD**0.5
        strong = peaks.magnitude > (ceiling * (1.0 + 2.0 * error))[peaks.clip]
        return strong, peaks.magnitude < (floor * (1.0 - 2.0 * error))[peaks.clip]

    def _peaks(self, found: Candidates, frames: int, power_error: float) -> _Peaks:
        """All peaks that the candidates may be, where each power may be off by ``power_error``."""
        # A transform errs alike in all bins of a frame, so a power errs with the root of itself.
        error = (2.0 * power_error) * (found.strongest * found.here).sqrt()
        least = found.here + error
        kept = _where((least > torch.maximum(found.below, _THRESHOLD * found.strongest)) & (least >= found.above))
        row, bin_, below, here, above, strongest, error = (
            values.index_select(0, kept)
            for values in (found.row, found.bin, found.below, found.here, found.above, found.strongest, error)
        )
        sure = (here - error > torch.maximum(below, _THRESHOLD * strongest)) & (here - error >= above)
        # A parabola through the peak (J. O. Smith, Spectral Audio Signal Processing, "Quadratic Interpolation of
        # Spectral Peaks"); librosa interpolates in float64 and keeps float32.
        curvature = (above + below).double() - 2.0 * here.double()
        slope = (above - below).double() / 2.0
        lopsided = curvature.abs() - slope.abs()
        shift = torch.where(lopsided <= 0.0, 0.0, -slope / curvature).float()
        magnitude = here + 0.5 * ((above - below) / 2.0) * shift
        clip = row.div(frames, rounding_mode="floor")
        return _Peaks(clip, row, bin_, shift, magnitude, curvature, lopsided, error, sure)


def _joined(found: list[Candidates]) -> Candidates:
    if len(found) == 1:
        return found[0]
    names = [field.name for field in fields(Candidates)]
    return Candidates(**{name: torch.cat([getattr(part, name) for part in found]) for name in names})


def _possible(region: Tensor, raised: Tensor, threshold: Tensor) -> Tensor:
    """Where a row is above its threshold and no less than its neighbours: int64 [n], indices into all rows' bins.

    Args:
        region: float32 [rows, bins].
        raised: the same, raised by a margin.
        threshold: float32 [rows].
    """
    if region.device.type != "cpu":
        return _peak_mask(region, raised, threshold).flatten().nonzero()[:, 0]
    # The same lines on numpy's view of the same memory: its comparisons are seven times as fast.
    return torch.from_numpy(np.flatnonzero(_peak_mask(region.numpy(), raised.numpy(), threshold.numpy())))


def _peak_mask(region: Any, raised: Any, threshold: Any) -> Any:
    mask = raised > threshold[:, None]
    # Side by side in memory, all rows are compared in one go; what that makes of a row's ends is dropped.
    flat, high, inner = region.reshape(-1), raised.reshape(-1), mask.reshape(-1)[1:-1]
    inner &= high[1:-1] >= flat[:-2]
    inner &= high[1:-1] >= flat[2:]
    mask[:, 0] = mask[:, -1] = False
    return mask


def _where(mask: Tensor) -> Tensor:
    """The indices at which a flat mask is true: int64 [n]."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))  # three times as fast as torch's own
    return mask.nonzero()[:, 0]


def _winners(votes: Tensor) -> Tensor:
    """The fullest step of each recording, int64 [batch]; without any pitch the tuning is 0, not the first step."""
    return torch.where(votes.sum(1) > 0, votes.argmax(1), STEPS // 2)


def _count(clip: Tensor, step: Tensor, batch: int) -> Tensor:
    """How many peaks vote for each step: int64 [batch, STEPS]."""
    return torch.bincount(clip * STEPS + step, minlength=batch * STEPS).reshape(batch, STEPS)


def _strong(magnitude: Tensor, clip: Tensor, batch: int) -> Tensor:
    """Which peaks are at least as strong as the median of their recording: int64 [n], indices."""
    count = torch.bincount(clip, minlength=batch)
    middle = torch.stack([(count - 1).clamp(min=0) // 2, count // 2])
    median = _of_ranks(magnitude, count, middle).sum(0) / 2.0
    return _where(magnitude >= median.index_select(0, clip))


def _of_ranks(values: Tensor, count: Tensor, ranks: Tensor) -> Tensor:
    """Each recording's values of some ranks, the least value having rank 0: [2, batch].

    Args:
        values: [n], those of a recording together.
        count: how many each recording has, int64 [batch].
        ranks: int64 [2, batch], the lower first; what is beyond the last rank means the last.
    """
    ranks = torch.minimum(ranks, (count - 1).clamp(min=0))
    if values.device.type == "cpu":
        # Only two ranks matter: the rest need not be sorted.
        found = np.zeros(ranks.shape, np.float32)
        start = 0
        for clip, (size, low, high) in enumerate(zip(count.tolist(), *ranks.tolist(), strict=True)):
            if size:
                parted = np.partition(values[start : start + size].numpy(), (low, high))
                found[:, clip] = parted[low], parted[high]
            start += size
        return torch.from_numpy(found)
    owner = torch.repeat_interleave(count)
    place = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
    table = values.new_full((len(count), max(int(count.max()), 1)), torch.inf)
    table[owner, place] = values
    return table.sort(-1).values.gather(1, ranks.T).T
