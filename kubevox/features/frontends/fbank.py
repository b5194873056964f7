"""Filter banks, windows and frames of the toolkits whose log-mel spectra encoders were trained on."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from torch import Tensor

from kubevox.features.frontends.spectrum import triangles

__all__ = ["htk_mel_bank", "kaldi_frames", "kaldi_mel_bank", "next_power_of_two", "povey_window"]

Bank = npt.NDArray[np.float32]
_PREEMPHASIS = 0.97


@functools.cache
def htk_mel_bank(sample_rate: int, frame: int, mels: int, fmin_hz: float, fmax_hz: float) -> Bank:
    """Triangles of peak 1, straight in Hz, evenly spaced on HTK's mel scale: float32 [mels, 1 + frame / 2].

    Args:
        sample_rate: in Hz.
        frame: length of the FFT, in samples.
        mels: number of bands.
        fmin_hz: lower edge of the first band.
        fmax_hz: upper edge of the last band.

    Source: torchaudio 2.11, ``functional.melscale_fbanks(norm=None, mel_scale="htk")``, in float64.
    """
    lowest, highest = (2595.0 * np.log10(1.0 + hertz / 700.0) for hertz in (fmin_hz, fmax_hz))
    edges = 700.0 * (10.0 ** (np.linspace(lowest, highest, mels + 2) / 2595.0) - 1.0)
    return triangles(np.linspace(0.0, sample_rate // 2, 1 + frame // 2), edges)


@functools.cache
def kaldi_mel_bank(sample_rate: int, fft: int, mels: int, fmin_hz: float, fmax_hz: float) -> Bank:
    """Triangles of peak 1, straight in mel, evenly spaced: float32 [mels, 1 + fft / 2], nothing of the last bin.

    Args:
        sample_rate: in Hz.
        fft: length of the FFT, in samples.
        mels: number of bands.
        fmin_hz: lower edge of the first band.
        fmax_hz: upper edge of the last band.

    Source: Kaldi, ``feat/mel-computations.cc``; torchaudio 2.11, ``compliance.kaldi.get_mel_banks``, in float64.
    """
    bins, lowest, highest = (
        1127.0 * np.log(1.0 + hertz / 700.0) for hertz in (np.fft.rfftfreq(fft, 1.0 / sample_rate), fmin_hz, fmax_hz)
    )
    bank = triangles(bins, np.linspace(lowest, highest, mels + 2))
    bank[:, -1] = 0.0
    return bank


def kaldi_frames(samples: Tensor, frame: int, hop: int) -> Tensor:
    """Frames as Kaldi prepares them for its window: [batch, 1 + (n - frame) // hop, frame] of [batch, n].

    Only frames that lie within the recording (``snip_edges``), scaled to the range of 16-bit integers, each without its
    mean (``remove_dc_offset``) and with its high frequencies raised (``preemphasis_coefficient`` 0.97).

    Source: Kaldi, ``feat/feature-window.cc``; torchaudio 2.11, ``compliance.kaldi._get_window``.
    """
    frames = (samples * 32_768.0).unfold(-1, frame, hop)
    frames = frames - frames.mean(-1, keepdim=True)
    raised = frames.clone()
    # What is before the first sample is taken to equal it.
    raised[..., :1] -= _PREEMPHASIS * frames[..., :1]
    raised[..., 1:] -= _PREEMPHASIS * frames[..., :-1]
    return raised


def next_power_of_two(number: int) -> int:
    """The least power of two that is no less than a number above 0."""
    return 1 << (number - 1).bit_length()


@functools.cache
def povey_window(frame: int) -> npt.NDArray[np.float64]:
    """The symmetric Hann window to the power of 0.85, float64 [frame] (Kaldi, ``feat/feature-window.cc``)."""
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(frame) / (frame - 1))
    return hann**0.85
