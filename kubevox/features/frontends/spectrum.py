"""Windows, filter banks and spectra, with the numbers that librosa 0.11 gives, and without librosa.

The banks are small, computed once in float64 and kept.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "BandSums",
    "GroupedBank",
    "chroma_bank",
    "dct_matrix",
    "frame_power",
    "framed",
    "hann_window",
    "mel_bank",
    "power_of",
    "triangles",
]

Bank = npt.NDArray[np.float32]


@functools.cache
def hann_window(frame: int) -> npt.NDArray[np.float64]:
    """The periodic Hann window, float64 [frame] (``scipy.signal.get_window("hann", frame)``)."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(frame) / frame)


@functools.cache
def mel_bank(
    sample_rate: int, frame: int, mels: int, fmin_hz: float, fmax_hz: float, equal_area: bool
) -> npt.NDArray[np.float32]:
    """Triangular filters, evenly spaced on Slaney's mel scale: float32 [mels, 1 + frame / 2].

    Args:
        sample_rate: in Hz.
        frame: length of the FFT, in samples.
        mels: number of bands.
        fmin_hz: lower edge of the first band.
        fmax_hz: upper edge of the last band.
        equal_area: divide each triangle by its half width in Hz (librosa's ``norm="slaney"``); else its peak is 1.

    Source: M. Slaney, Auditory Toolbox (1998); librosa 0.11, ``filters.mel``.
    """
    edges = _mel_to_hz(np.linspace(_hz_to_mel(fmin_hz), _hz_to_mel(fmax_hz), mels + 2))
    bank = triangles(np.fft.rfftfreq(frame, 1.0 / sample_rate), edges)
    if equal_area:
        bank *= (2.0 / (edges[2:] - edges[:-2]))[:, None].astype(np.float64)
    return bank


def triangles(bins: npt.NDArray[np.floating[Any]], edges: npt.NDArray[np.float64]) -> Bank:
    """Triangles that rise from each edge to the next and fall to the one after: float32 [edges - 2, bins]."""
    widths = np.diff(edges)[:, None]
    rising = (bins - edges[:-2, None]) / widths[:-1]
    falling = (edges[2:, None] - bins) / widths[1:]
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


@functools.lru_cache(maxsize=256)
def chroma_bank(sample_rate: int, frame: int, chroma: int, tuning: float) -> npt.NDArray[np.float32]:
    """How much each FFT bin belongs to each pitch class, C first: float32 [chroma, 1 + frame / 2].

    Gaussian bumps around the pitch classes, each bin's column of unit L2 norm, weighted by a Gaussian over octaves
    (centred 5 octaves above A0, half width 2).

    Args:
        sample_rate: in Hz.
        frame: length of the FFT, in samples.
        chroma: number of pitch classes in an octave.
        tuning: deviation from A4 = 440 Hz, in fractions of a pitch class.

    Source: D. Ellis, Chroma Feature Analysis and Synthesis (2007); librosa 0.11, ``filters.chroma``.
    """
    a440 = 440.0 * 2.0 ** (tuning / chroma)
    frequencies = np.linspace(0, sample_rate, frame, endpoint=False)[1:]
    position = chroma * np.log2(frequencies / (a440 / 16))
    # Bin 0 has no pitch: 1.5 octaves below bin 1, it is half a turn away and broad.
    position = np.concatenate(([position[0] - 1.5 * chroma], position))
    width = np.concatenate((np.maximum(np.diff(position), 1.0), [1.0]))
    half = np.round(chroma / 2)
    distance = position[None, :] - np.arange(chroma, dtype=np.float64)[:, None]
    distance = np.remainder(distance + half + 10 * chroma, chroma) - half
    bank = np.exp(-0.5 * (2.0 * distance / width) ** 2)
    bank /= np.sqrt((bank**2).sum(axis=0))
    bank *= np.exp(-0.5 * ((position / chroma - 5.0) / 2.0) ** 2)
    bank = np.roll(bank, -3 * (chroma // 12), axis=0)
    return np.ascontiguousarray(bank[:, : 1 + frame // 2], dtype=np.float32)


@functools.cache
def dct_matrix(coefficients: int, inputs: int) -> npt.NDArray[np.float32]:
    """The orthonormal DCT-II, float32 [coefficients, inputs] (``scipy.fft.dct(type=2, norm="ortho")``)."""
    angles = np.pi / inputs * np.outer(np.arange(coefficients), np.arange(inputs) + 0.5)
    matrix = np.cos(angles) * np.sqrt(2.0 / inputs)
    matrix[0] /= np.sqrt(2.0)
    return matrix.astype(np.float32)


def framed(samples: Tensor, frame: int, hop: int, mode: str = "constant") -> Tensor:
    """Overlapping frames, the first centred on the first sample: a view [batch, 1 + n // hop, frame] of [batch, n].

    The samples are padded by half a frame on either side, with zeros (``constant``) or the outermost value
    (``replicate``).
    """
    half = frame // 2
    # Pad modes other than constant want a channel axis.
    padded = functional.pad(samples[:, None], (half, half), mode=mode)[:, 0]
    return padded.unfold(-1, frame, hop)


def frame_power(frames: Tensor, window: Tensor) -> Tensor:
    """Power of the windowed frames' spectra: [batch, frames, 1 + frame / 2], in the window's precision, contiguous."""
    return power_of(torch.fft.rfft(frames * window), spent=True)


def power_of(spectrum: Tensor, spent: bool = False) -> Tensor:
    """The squared magnitudes of a complex spectrum, of its shape, contiguous.

    Args:
        spectrum: complex64 or complex128.
        spent: whether nobody needs the spectrum any more: it is overwritten, which saves as much memory again.
    """
    parts = torch.view_as_real(spectrum)
    squares = parts.square_() if spent else parts.square()
    # Adding two strided views takes an eighth of the time of a sum over a last axis of two.
    return squares[..., 0] + squares[..., 1]


class GroupedBank:
    """A filter bank of neighbouring FFT bins as a few small matrix products.

    Most weights of a mel bank are zero: cut into groups of neighbouring bands, each multiplies only the bins that its
    bands touch.

    Args:
        bank: float32 [bands, bins].
        device: where it is applied.
        groups: how many; more waste fewer products on zeros, and take more calls.
    """

    def __init__(self, bank: Bank, device: torch.device, groups: int = 8) -> None:
        self._bands = len(bank)
        self._groups: list[tuple[slice, slice, Tensor]] = []
        for chosen in np.array_split(np.arange(len(bank)), min(groups, len(bank))):
            rows = slice(int(chosen[0]), int(chosen[-1]) + 1)
            touched = np.nonzero(bank[rows].any(axis=0))[0]
            bins = slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0, 1)
            weights = torch.from_numpy(np.ascontiguousarray(bank[rows, bins].T)).to(device)
            self._groups.append((rows, bins, weights))

    def __call__(self, power: Tensor) -> Tensor:
        """Band powers [batch, frames, bands] of bin powers [batch, frames, bins], contiguous."""
        flat = power.flatten(0, 1)
        banded = power.new_empty(len(flat), self._bands)
        for rows, bins, weights in self._groups:
            torch.mm(flat[:, bins], weights, out=banded[:, rows])
        return banded.unflatten(0, power.shape[:2])


class BandSums:
    """A sparse filter bank: weighted sums of neighbouring FFT bins, bin by bin from the lowest.

    Where most weights are zero this is faster than a matrix product as well as independent of batch and threads.

    Args:
        bank: float32 [bands, bins].
        device: where it is applied.
    """

    def __init__(self, bank: Bank, device: torch.device) -> None:
        band, source = np.nonzero(bank)
        self._bands = len(bank)
        self._band = torch.from_numpy(band).to(device)
        self._source = torch.from_numpy(source).to(device)
        self._weight = torch.from_numpy(bank[band, source][:, None]).to(device)

    def __call__(self, power: Tensor) -> Tensor:
        """Band powers [batch, bands, frames] of bin powers [batch, frames, bins]."""
        batch, frames, bins = power.shape
        # One row a bin, so that each weight multiplies, and each addition adds, whole rows.
        rows = power.permute(2, 0, 1).reshape(bins, batch * frames)
        sums = rows.new_zeros(self._bands, batch * frames)
        sums.index_add_(0, self._band, rows.index_select(0, self._source).mul_(self._weight))
        return sums.reshape(self._bands, batch, frames).permute(1, 0, 2).contiguous()


def _hz_to_mel(hz: float) -> float:
    """Slaney's scale: linear to 1 kHz (15 mel), logarithmic above, 27 mel a factor of 6.4."""
    return 3.0 * hz / 200.0 if hz < 1000.0 else 15.0 + 27.0 * float(np.log(hz / 1000.0) / np.log(6.4))


def _mel_to_hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mel < 15.0, mel * (200.0 / 3.0), 1000.0 * np.exp((mel - 15.0) * (np.log(6.4) / 27.0)))
