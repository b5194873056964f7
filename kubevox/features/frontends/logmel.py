"""Log mel-band power over time, of a fixed length, by one of several definitions."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kubevox.config import LogMelConfig
from kubevox.features.frontends.base import Frontend
from kubevox.features.frontends.fbank import (
    htk_mel_bank,
    kaldi_frames,
    kaldi_mel_bank,
    next_power_of_two,
    povey_window,
)
from kubevox.features.frontends.spectrum import BandSums, frame_power, framed, hann_window, mel_bank

__all__ = ["LogMel"]

_KALDI_FLOOR = float(np.finfo(np.float32).eps)
_WHISPER_FLOOR = 1e-10


class LogMel(Frontend):
    """Logarithm of the power in mel bands: float32 [mels, frames]; ``convention`` says which.

    - ``decibel``: in dB relative to full scale. Hann frames, centred, zero-padded at both ends; triangles of peak 1 on
      Slaney's mel scale; 0 dB is the power of a sine of full scale at a band's centre, and nothing lies below
      ``floor_db``.
    - ``torchaudio``: the natural logarithm of ``torchaudio.transforms.MelSpectrogram`` (2.11): Hann frames, centred,
      reflected at both ends; triangles of peak 1 on HTK's mel scale; power not normalised, and no less than
      ``floor_db`` dB of 1.
    - ``kaldi``: ``compute-fbank-feats --dither=0 --snip-edges=true``, which is ``torchaudio.compliance.kaldi.fbank`` of
      samples times 32768: what Speech2Text and SeamlessM4T take, before their normalisation.
    - ``whisper``: the base-10 logarithm, clamped at 8 below the recording's highest, plus 4, over 4, of Hann frames,
      centred, reflected, without the last one; triangles of equal area on Slaney's scale. Source: transformers,
      ``WhisperFeatureExtractor``.

    A recording shorter than ``duration_s`` is followed by silence.
    """

    kind: ClassVar[str] = "logmel"
    config: LogMelConfig

    def __init__(self, config: LogMelConfig, device: str = "cpu") -> None:
        super().__init__(config, device)
        self.fixed_samples = round(config.duration_s * config.sample_rate)
        self._fft = next_power_of_two(config.frame) if config.convention == "kaldi" else config.frame
        window, bank = _window_and_bank(config, self._fft)
        self._window = torch.from_numpy(window.astype(np.float32)).to(self.device)
        self._bands = BandSums(bank, self.device)
        self._floor = 10.0 ** (config.floor_db / 10.0)

    @property
    def feature_names(self) -> list[str]:
        """``band_0`` (the lowest) and so on."""
        return [f"band_{index}" for index in range(self.config.mels)]

    def _features(self, samples: Tensor) -> Tensor:
        power = self._bands(frame_power(self._frames(samples), self._window))
        match self.config.convention:
            case "decibel":
                return 10.0 * torch.log10(power.clamp_(min=self._floor))
            case "torchaudio":
                return power.clamp_(min=self._floor).log_()
            case "kaldi":
                return power.clamp_(min=_KALDI_FLOOR).log_()
            case "whisper":
                bels = power.clamp_(min=_WHISPER_FLOOR).log10_()
                return (torch.maximum(bels, bels.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0

    def _frames(self, samples: Tensor) -> Tensor:
        """What is windowed and transformed: [batch, frames, FFT length] of [batch, n]."""
        config = self.config
        match config.convention:
            case "decibel":
                return framed(samples, config.frame, config.hop)
            case "torchaudio":
                return framed(samples, config.frame, config.hop, "reflect")
            case "kaldi":
                frames = kaldi_frames(samples, config.frame, config.hop)
                return functional.pad(frames, (0, self._fft - config.frame))
            case "whisper":
                return framed(samples, config.frame, config.hop, "reflect")[:, :-1]


def _window_and_bank(config: LogMelConfig, fft: int) -> tuple[np.ndarray, np.ndarray]:
    """The window, float64 [fft], and the filter bank, float32 [mels, 1 + fft / 2]."""
    shape = (config.sample_rate, fft, config.mels, config.fmin_hz, config.fmax_hz)
    match config.convention:
        case "decibel":
            window = hann_window(fft)
            # Scaled so that a sine of amplitude 1 has power 1 in its bin.
            return window * (2.0 / window.sum()), mel_bank(*shape, equal_area=False)
        case "torchaudio":
            return hann_window(fft), htk_mel_bank(*shape)
        case "kaldi":
            return np.pad(povey_window(config.frame), (0, fft - config.frame)), kaldi_mel_bank(*shape)
        case "whisper":
            return hann_window(fft), mel_bank(*shape, equal_area=True)
