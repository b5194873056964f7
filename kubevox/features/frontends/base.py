"""What all frontends share: cutting and resampling a waveform, and running batches."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import soxr
import torch
from torch import Tensor

from kubevox.config import FrontendConfig
from kubevox.data.audio import Waveform
from kubevox.errors import AudioError, ConfigError
from kubevox.features.frontends import feature_shape, frontend_version, minimum_duration_s

__all__ = ["Frontend", "features_of"]

Samples = npt.NDArray[np.float32]


class Frontend(ABC):
    """Turns waveforms into features: ``prepare`` each recording, then call batches of equal length.

    On a CPU the features of a recording are the same bits whatever batch it is in and however many threads torch has.
    That holds by construction: a CPU takes a batch clip by clip, on one thread (a clip's spectrogram stays in the
    cache, and its operations are too small to be worth sharing: with all cores busy, waiting for each other costs many
    times what they take), and the frontends add up in a fixed order, without matrix products of a library that may
    choose another. A GPU takes the batch whole, and agrees within the tolerance of float32.

    Attributes:
        config: the frontend's parameters.
        version: of its code; part of the key under which features are stored.
        shape: of one recording's features.
        device: where batches are computed.
    """

    kind: ClassVar[str]

    def __init__(self, config: FrontendConfig, device: str = "cpu") -> None:
        self.config = config
        self.version: int = frontend_version(config)
        self.shape: tuple[int, ...] = feature_shape(config)
        self.device = _resolve(device)

    @property
    @abstractmethod
    def feature_names(self) -> list[str]:
        """A name for each index of the features' first axis."""

    @abstractmethod
    def _features(self, samples: Tensor) -> Tensor:
        """Features [batch, *shape] of prepared samples [batch, n], on the samples' device."""

    def prepare(self, waveform: Waveform) -> Samples:
        """Cut a waveform to the analysed stretch and resample it: float32 [samples] at the frontend's rate.

        The stretch is cut at the source's own rate and resampled by soxr's HQ recipe, sample for sample as
        ``librosa.load(offset=, duration=)`` does (librosa 0.11, ``core/audio.py``).

        Raises:
            AudioError: ``too_short``: less than one frame is left after the offset.
        """
        start, stop = self._span(waveform)
        rate = self.config.sample_rate
        ratio = float(rate) / waveform.sample_rate
        length = int(np.ceil((stop - start) * ratio))
        if length < self.config.frame:
            raise AudioError(
                "too_short",
                f"too short: {waveform.duration_s:.2f} s, where the frontend {self.config.kind} needs at least "
                f"{minimum_duration_s(self.config):.2f} s",
            )
        samples = waveform.samples[start:stop]
        if rate != waveform.sample_rate:
            samples = soxr.resample(samples, waveform.sample_rate, rate, quality="HQ")
        return _fit(samples, length)

    def analysed_s(self, waveform: Waveform) -> float:
        """How many seconds of the recording the features rest on."""
        start, stop = self._span(waveform)
        return (stop - start) / waveform.sample_rate

    def __call__(self, samples: Tensor) -> Tensor:
        """Features of a batch of prepared samples.

        Args:
            samples: float32 [batch, n] on :attr:`device`, n at least one frame.

        Returns:
            float32 [batch, *shape], on the same device.
        """
        with torch.no_grad():
            if samples.device.type != "cpu":
                return self._features(samples)
            with _one_thread():
                return torch.cat([self._features(clip) for clip in samples.split(1)])

    def extract(self, waveforms: Sequence[Samples], batch_size: int = 32) -> npt.NDArray[np.float32]:
        """Features of any number of prepared recordings, in their order.

        Args:
            waveforms: float32 [samples] each, as :meth:`prepare` gives them; only those of one length share a batch.
            batch_size: the most that are computed at once.

        Returns:
            float32 [recordings, *shape].
        """
        features = np.empty((len(waveforms), *self.shape), np.float32)
        by_length: dict[int, list[int]] = {}
        for index, samples in enumerate(waveforms):
            by_length.setdefault(len(samples), []).append(index)
        for indices in by_length.values():
            for start in range(0, len(indices), batch_size):
                chosen = indices[start : start + batch_size]
                batch = torch.from_numpy(np.stack([waveforms[index] for index in chosen]))
                features[chosen] = self(batch.to(self.device)).cpu().numpy()
        return features

    def _span(self, waveform: Waveform) -> tuple[int, int]:
        """The analysed stretch, in samples at the source's rate."""
        total, rate = len(waveform.pcm), waveform.sample_rate
        start = min(int(self.config.offset_s * rate), total)
        return start, min(start + int(self.config.duration_s * rate), total)


def features_of(waveform: Waveform, frontend: Frontend) -> npt.NDArray[np.float32]:
    """The features of one recording, float32 [*shape]: on a CPU the very bits that its feature block holds.

    Raises:
        AudioError: ``too_short``.
    """
    return frontend.extract([frontend.prepare(waveform)], batch_size=1)[0]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(samples: Samples, length: int) -> Samples:
    """The samples cut, or followed by silence, to a length."""
    if len(samples) < length:
        return np.pad(samples, (0, length - len(samples)))
    return np.ascontiguousarray(samples[:length])


def _resolve(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: torch finds no GPU here; use 'auto' or 'cpu'")
    return torch.device(device)
