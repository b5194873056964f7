"""Log mel-band power over time, of a fixed length."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kubevox.config import LogMelConfig
from kubevox.data.audio import Waveform
from kubevox.features.frontends.base import Frontend, Samples, _fit
from kubevox.features.frontends.spectrum import BandSums, frame_power, framed, hann_window, mel_bank

__all__ = ["LogMel"]


class LogMel(Frontend):
    """Power in mel bands, in dB relative to full scale: float32 [mels, frames].

    Hann frames, centred, zero-padded at both ends; triangles of peak 1 on Slaney's mel scale; 0 dB is the power of a
    sine of full scale at a band's centre, and nothing lies below ``floor_db``. A recording shorter than ``duration_s``
    is followed by silence.
    """

    kind: ClassVar[str] = "logmel"
    config: LogMelConfig

    def __init__(self, config: LogMelConfig, device: str = "cpu") -> None:
        super().__init__(config, device)
        self._samples = round(config.duration_s * config.sample_rate)
        window = hann_window(config.frame)
        # Scaled so that a sine of amplitude 1 has power 1 in its bin.
        self._window = torch.from_numpy((window * (2.0 / window.sum())).astype(np.float32)).to(self.device)
        bank = mel_bank(config.sample_rate, config.frame, config.mels, config.fmin_hz, config.fmax_hz, equal_area=False)
        self._bands = BandSums(bank, self.device)
        self._floor = 10.0 ** (config.floor_db / 10.0)

    @property
    def feature_names(self) -> list[str]:
        """``band_0`` (the lowest) and so on."""
        return [f"band_{index}" for index in range(self.config.mels)]

    def prepare(self, waveform: Waveform) -> Samples:
        """As :meth:`Frontend.prepare`, followed by silence up to ``duration_s``: float32 [duration_s * sample_rate]."""
        return _fit(super().prepare(waveform), self._samples)

    def _features(self, samples: Tensor) -> Tensor:
        frames = framed(samples, self.config.frame, self.config.hop)
        power = self._bands(frame_power(frames, self._window))
        return 10.0 * torch.log10(power.clamp_(min=self._floor))
