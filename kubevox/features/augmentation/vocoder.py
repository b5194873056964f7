"""Another tempo, or another pitch, by a phase vocoder.

J. L. Flanagan & R. M. Golden (1966); M. Dolson, "The phase vocoder: a tutorial" (1986). The same frames and the same
rule for the phases as librosa 0.11 (``core.phase_vocoder``, ``effects.time_stretch``, ``effects.pitch_shift``), put
differently: since frames are as far apart when they are put together as when they were taken, the phase of a new frame
is that of the old frame at its place, turned by the phase advances that were repeated, or turned back by those that
were skipped, up to there. So no angle is ever computed, and no sum of large phases loses its last digits.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kubevox.config import PitchRecipe, StretchRecipe
from kubevox.features.augmentation.chance import Chance
from kubevox.features.frontends.spectrum import framed, hann_window, power_of
from kubevox.features.resampling import resample_by

__all__ = ["FRAME", "HOP", "shift_pitch", "stretch_time"]

FRAME, HOP = 2048, 512
_CACHED_CLIPS = 2  # whose frames and spectra a CPU's cache holds together


def shift_pitch(
    samples: Tensor, recipe: PitchRecipe, chance: Chance, sample_rate: int, powers: list[Tensor] | None = None
) -> Tensor:
    """Move the pitch by a number of semitones, keeping length and tempo: float32 [batch, n].

    Stretched in time, and resampled back to the old length. The interval is met within 0.1 cents.

    Args:
        samples: float32 [batch, n].
        recipe: by how many semitones.
        chance: not asked.
        sample_rate: does not matter.
        powers: is given the power of the samples' frames, of all recordings in turn: float32 [some, frames, bins]
            each, for whoever needs the same transform.
    """
    rate = 2.0 ** (-recipe.semitones / 12.0)
    n = samples.shape[-1]
    # What the shift lifts above the highest frequency is left out from the start.
    bins = min(FRAME // 2 + 1, math.ceil((FRAME // 2 + 1) * rate))
    shifted = []
    for clips in samples.split(_clips_at_once(samples)):
        stretched = torch.cat([_stretch(pair, rate, powers, bins) for pair in clips.split(_CACHED_CLIPS)])
        shifted.append(resample_by(stretched, rate, n))
    return _fit(torch.cat(shifted), n)


def stretch_time(
    samples: Tensor, recipe: StretchRecipe, chance: Chance, sample_rate: int, powers: list[Tensor] | None = None
) -> Tensor:
    """Play ``rate`` times as fast at the same pitch: float32 [batch, round(n / rate)]; see :func:`shift_pitch`."""
    return torch.cat([_stretch(clips, recipe.rate, powers) for clips in samples.split(_clips_at_once(samples))])


def _clips_at_once(samples: Tensor) -> int:
    # A GPU takes them all; a CPU as many as are resampled at once.
    return 2 * _CACHED_CLIPS if samples.device.type == "cpu" else len(samples)


def _stretch(samples: Tensor, rate: float, powers: list[Tensor] | None, bins: int = FRAME // 2 + 1) -> Tensor:
    """Samples [batch, n] played ``rate`` times as fast, of the lowest ``bins`` of their spectrum."""
    n = samples.shape[-1]
    window = _window(str(samples.device))
    spectrum = torch.fft.rfft(framed(samples, FRAME, HOP) * window)
    if powers is None:
        spectrum = spectrum[..., :bins].contiguous()
        power = power_of(spectrum).clamp_(min=1e-30)
    else:
        powers.append(power_of(spectrum))
        spectrum = spectrum[..., :bins]
        power = powers[-1][..., :bins].clamp(min=1e-30)
    place, share, turns, turned = _schedule(spectrum.shape[1], rate, str(samples.device))
    # A frame between two has their magnitudes' weighted mean: the first's, times one plus what the second's ratio to
    # it adds.
    more = torch.empty_like(power)
    torch.div(power[:, 1:], power[:, :-1], out=more[:, :-1])
    more[:, -1] = 0.0  # silence follows
    more.sqrt_().sub_(1.0)
    gain = more.index_select(1, place).mul_(share[:, None]).add_(1.0)
    if len(turned):
        gain = _turns(spectrum, power, turned, rate > 1.0).index_select(1, turns).mul_(gain)
    stretched = torch.empty(len(samples), len(place), FRAME // 2 + 1, dtype=spectrum.dtype, device=samples.device)
    stretched[..., bins:] = 0.0  # above the bins that are looked at there is nothing
    # With all bins, on a CPU, clip by clip: complex numbers that do not fill a product's last vector end in other last
    # bits, and which ones those are must not depend on the clips beside. With fewer bins each frame stands alone.
    size = 1 if samples.device.type == "cpu" and bins == FRAME // 2 + 1 else len(samples)
    pieces = (tensor.split(size) for tensor in (spectrum.index_select(1, place), gain, stretched))
    for old, factor, new in zip(*pieces, strict=True):
        torch.mul(old, factor, out=new[..., :bins])
    return _overlap_add(torch.fft.irfft(stretched, FRAME), window, round(n / rate))


def _turns(spectrum: Tensor, power: Tensor, turned: Tensor, skipped: bool) -> Tensor:
    """By how much all phases have been turned, after none, one, ... of the turns: complex64 [batch, 1 + turns, bins].

    Args:
        spectrum: complex64 [batch, frames, bins].
        power: its squared magnitudes, not below 1e-30.
        turned: the frames whose advance to the next is repeated or skipped, int64 [turns].
        skipped: whether they are skipped.
    """
    frames = spectrum.shape[1]
    here, there = (
        spectrum.index_select(1, chosen).mul_(power.index_select(1, chosen).rsqrt_())
        for chosen in (turned, (turned + 1).clamp_(max=frames - 1))
    )
    if turned[-1] == frames - 1:
        there[:, -1] = 1.0  # what follows the last frame is silence, of phase 0
    turns = torch.empty(len(here), len(turned) + 1, here.shape[2], dtype=here.dtype, device=here.device)
    turns[:, 0] = 1.0
    torch.mul(*((here, there.conj()) if skipped else (there, here.conj())), out=turns[:, 1:])
    return turns.cumprod(1)


@functools.lru_cache(maxsize=256)
def _schedule(frames: int, rate: float, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each new frame its place among the old ones, the share of the next, and how many turns came before.

    Returns:
        int64 [new], float32 [new], int64 [new]; and the frames that are turned (see :func:`_turns`), int64 [turns].
    """
    steps = np.arange(0, frames, rate, dtype=np.float64)
    place = steps.astype(np.int64)
    turned: list[int] = []
    count = [0]
    for here, there in zip(place[:-1].tolist(), place[1:].tolist(), strict=True):
        # The phase advances once for each new frame, from its place to the next. Below a rate of 1 some places are
        # taken twice: their advance is repeated. Above, some are passed over: what they add is turned back.
        turned.extend([here] if here == there else range(here + 1, there))
        count.append(len(turned))
    share = (steps - place).astype(np.float32)
    tensors = (torch.from_numpy(place), torch.from_numpy(share), torch.tensor(count), torch.tensor(turned).long())
    place_t, share_t, count_t, turned_t = (tensor.to(device) for tensor in tensors)
    return place_t, share_t, count_t, turned_t


@functools.cache
def _window(device: str) -> Tensor:
    return torch.from_numpy(hann_window(FRAME)).float().to(device)


def _overlap_add(frames: Tensor, window: Tensor, n: int) -> Tensor:
    """Put centred frames together: float32 [batch, n] of [batch, frames, frame], changed (``librosa.istft``)."""
    batch, count, frame = frames.shape
    overlap = frame // HOP
    parts = frames.mul_(window).reshape(batch, count, overlap, HOP)
    summed = parts.new_zeros(batch, count + overlap - 1, HOP)
    for part in range(overlap):
        summed[:, part : part + count] += parts[:, :, part]
    summed = summed.reshape(batch, -1)[:, frame // 2 :]
    level = _window_level(count, str(frames.device))
    n_there = min(n, summed.shape[1])
    return _fit(summed[:, :n_there] / level[:n_there], n)


def _fit(samples: Tensor, n: int) -> Tensor:
    """Samples [batch, m] followed by silence up to n."""
    missing = n - samples.shape[-1]
    return functional.pad(samples, (0, missing)) if missing else samples  # padding by nothing copies


@functools.lru_cache(maxsize=256)
def _window_level(count: int, device: str) -> Tensor:
    """The sum of the squared windows under the frames: float32 [samples], 1 where it is nothing."""
    squared = hann_window(FRAME) ** 2
    level = np.zeros(FRAME + HOP * (count - 1))
    for number in range(count):
        level[number * HOP : number * HOP + FRAME] += squared
    level = level[FRAME // 2 :]
    return torch.from_numpy(np.where(level > np.finfo(np.float32).tiny, level, 1.0).astype(np.float32)).to(device)
