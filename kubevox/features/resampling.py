"""Resampling of whole batches, on any device, through their spectra.

On a CPU, recordings are resampled by soxr itself (:meth:`~kubevox.features.frontends.base.Frontend.prepare`), so that
they are the very samples that ``librosa.load`` gives. Here is the same filter for a GPU, which takes all recordings of
one rate and length at once, and for ratios that are no ratio of sample rates.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import soxr
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["resample", "resample_by"]

# soxr's HQ recipe passes 91.3 % of the lower Nyquist frequency and stops everything above it (soxr, `soxr.c`).
_PASS_BAND = 0.913
# Silence between a recording's end and, the transform being periodic, its beginning: longer than the filter rings.
_GAP = 512
_RATIO_ERROR = 5e-5
_ROWS = 4
# In long transforms these factors are still fast; and short enough lists of lengths would meet hardly any ratio.
_FAST_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)


def resample(samples: Tensor, rate: int, to_rate: int) -> Tensor:
    """Resample by the ratio of two rates with soxr's HQ filter.

    The filter's frequency response is read off soxr once for each pair of rates; what is left of the difference is
    float32's rounding (below 1e-5 of full scale), but for the first three samples, where soxr starts up.

    Args:
        samples: float32 [batch, n].
        rate: their sample rate, in Hz.
        to_rate: the wanted one, in Hz.

    Returns:
        float32 [batch, ceil(n * to_rate / rate)].
    """
    if rate == to_rate:
        return samples
    divisor = math.gcd(rate, to_rate)
    down, up = rate // divisor, to_rate // divisor
    # The lengths of the two transforms have the ratio of the rates.
    length = _smooth_multiple(samples.shape[-1] + _GAP, down)
    response = _soxr_response(rate, to_rate, length, str(samples.device))
    return _through_spectrum(samples, length, length // down * up, response)[..., : _ceil(samples.shape[-1] * up, down)]


def resample_by(samples: Tensor, ratio: float, n: int) -> Tensor:
    """Resample to ``ratio`` times as many samples, of which the first ``n`` are kept.

    The ratio is that of two transforms' lengths, and met within 5e-5 of itself (0.1 cents).

    Args:
        samples: float32 [batch, m].
        ratio: new samples for each old one.
        n: how many samples to return, at most about ratio * m.

    Returns:
        float32 [batch, n].
    """
    length, to_length = _transform_lengths(samples.shape[-1] + _GAP, ratio)
    response = _tapered(min(length, to_length) // 2 + 1, str(samples.device))
    return _through_spectrum(samples, length, to_length, response)[..., :n]


def _through_spectrum(samples: Tensor, length: int, to_length: int, response: Tensor) -> Tensor:
    if samples.device.type != "cpu":
        return _transform(samples, length, to_length, response)
    # Always as many rows at once: a long transform of one row takes four times as long as each of several, and ends in
    # other last bits.
    blocks = []
    for rows in samples.split(_ROWS):
        block = rows if len(rows) == _ROWS else functional.pad(rows, (0, 0, 0, _ROWS - len(rows)))
        blocks.append(_transform(block, length, to_length, response)[: len(rows)])
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _transform(samples: Tensor, length: int, to_length: int, response: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(samples, length)[..., : len(response)] * (response * (to_length / length))
    return torch.fft.irfft(spectrum, to_length)


@functools.lru_cache(maxsize=64)
def _soxr_response(rate: int, to_rate: int, length: int, device: str) -> Tensor:
    """The frequency response of soxr's HQ recipe: float32 [bins that both spectra have].

    What soxr makes of an impulse is its filter's response sampled at the new rate; the filter has linear phase and no
    delay, and passes nothing that the lower of the two rates cannot hold, so its spectrum is real, and the same for
    whatever position of the impulse.
    """
    divisor = math.gcd(rate, to_rate)
    down, up = rate // divisor, to_rate // divisor
    to_length = length // down * up
    impulse = np.zeros(length, np.float64)
    centre = length // 2 // down * down
    impulse[centre] = 1.0
    filtered = soxr.resample(impulse, rate, to_rate, quality="HQ")
    filtered = np.pad(filtered, (0, max(0, to_length - len(filtered))))[:to_length]
    bins = min(length, to_length) // 2 + 1
    spectrum = np.fft.rfft(np.roll(filtered, -(centre // down * up)))[:bins].real * (rate / to_rate)
    return torch.from_numpy(spectrum.astype(np.float32)).to(device)


@functools.lru_cache(maxsize=64)
def _tapered(bins: int, device: str) -> Tensor:
    """A pass band like soxr's, with half a cosine down to nothing at the last bin: float32 [bins]."""
    place = (np.arange(bins) / max(bins - 1, 1) - _PASS_BAND) / (1.0 - _PASS_BAND)
    return torch.from_numpy((0.5 + 0.5 * np.cos(np.pi * place.clip(0.0, 1.0))).astype(np.float32)).to(device)


@functools.lru_cache(maxsize=256)
def _transform_lengths(least: int, ratio: float) -> tuple[int, int]:
    """Two fast lengths, the first at least ``least``, of which the second is as nearly ``ratio`` times it as can be."""
    best = (math.inf, 0, 0)
    for length in _fast_lengths(least, least + least // 8 + 64):
        to_length = round(length * ratio / 2) * 2
        error = abs(to_length / length / ratio - 1.0)
        if error < best[0] and _is_smooth(to_length, _FAST_PRIMES):
            best = (error, length, to_length)
    if best[0] < _RATIO_ERROR:
        return best[1:]
    # A slow transform is better than a wrong pitch: of these lengths any ratio is met by one.
    length = least + math.ceil(1.0 / (_RATIO_ERROR * ratio))
    return length, round(length * ratio)


def _smooth_multiple(least: int, divisor: int) -> int:
    """The least even number of at least ``least`` that is ``divisor`` times a product of 2, 3 and 5."""
    factor = _ceil(least, divisor)
    while not _is_smooth(factor, (2, 3, 5)) or factor * divisor % 2:
        factor += 1
    return factor * divisor


@functools.lru_cache(maxsize=256)
def _fast_lengths(least: int, most: int) -> list[int]:
    return [length for length in range(_ceil(least, 4) * 4, most, 4) if _is_smooth(length, _FAST_PRIMES)]


def _is_smooth(number: int, primes: tuple[int, ...]) -> bool:
    for prime in primes:
        while number % prime == 0:
            number //= prime
    return number == 1


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
