"""What all frontends share: cutting and resampling a waveform, and running batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import soxr
import torch
from torch import Tensor
from torch.nn import functional

from kubevox.config import FrontendConfig
from kubevox.data.audio import Waveform
from kubevox.errors import AudioError, ConfigError
from kubevox.features.frontends import feature_shape, frontend_version, minimum_duration_s
from kubevox.features.runtime import one_thread

if TYPE_CHECKING:
    from kubevox.data.vad import VoiceActivity

__all__ = ["Frontend", "features_of"]

Samples = npt.NDArray[np.float32]


class Frontend(ABC):
    """Turns waveforms into features: ``prepare`` each recording, then call batches of equal length.

    On a CPU the features of a recording are the same bits whatever batch it is in and however many threads torch has:
    everything runs on one thread (a clip's operations are too small to be worth sharing: with all cores busy, waiting
    for each other costs many times what they take; whoever wants all cores runs a worker on each), and where a
    library might add up in another order for another batch, recordings are taken one by one. A GPU takes the batch
    whole, and agrees within the tolerance of float32.

    Attributes:
        config: the frontend's parameters.
        version: of its code; part of the key under which features are stored.
        shape: of one recording's features.
        device: where batches are computed.
        fixed_samples: the length that recordings are brought to after resampling and augmentation; None: their own.
    """

    kind: ClassVar[str]
    # Whether the bits are the same in any batch on a CPU too; else a CPU computes recordings one by one.
    batched_on_cpu: ClassVar[bool] = False

    def __init__(self, config: FrontendConfig, device: str = "cpu") -> None:
        self.config = config
        self.version: int = frontend_version(config)
        self.shape: tuple[int, ...] = feature_shape(config)
        self.device = _resolve(device)
        self.fixed_samples: int | None = None
        self._voice: VoiceActivity | None = None
        if config.vad is not None:
            from kubevox.data.vad import VoiceActivity

            self._voice = VoiceActivity(config.vad)

    @property
    @abstractmethod
    def feature_names(self) -> list[str]:
        """A name for each index of the features' first axis."""

    @abstractmethod
    def _features(self, samples: Tensor) -> Tensor:
        """Features [batch, *shape] of prepared samples [batch, n], on the samples' device."""

    def _augmented_features(self, samples: Tensor) -> Tensor:
        """The same of augmented samples, which no other program has: what parity takes can be left out."""
        return self._features(samples)

    def takes_powers(self, frame: int, hop: int) -> bool:
        """Whether :meth:`of_powers` can begin with the power of frames of so many samples, every so many."""
        return False

    def of_powers(self, samples: Tensor, powers: list[Tensor]) -> Tensor:
        """The features of samples whose frames' powers are there already: the same bits.

        Args:
            samples: float32 [batch, n].
            powers: of all recordings in turn, float32 [some, frames, bins] each.
        """
        raise NotImplementedError(f"the frontend {self.kind} takes no powers")

    def warm_up(self) -> None:  # noqa: B027 - most have nothing to make
        """Make what is made once and kept (banks, windows) now, before a process is forked or a first caller waits."""

    def listen(self, waveform: Waveform) -> tuple[Waveform, float | None]:
        """The waveform, or what voice activity detection leaves of it, and the share of speech in it.

        Returns:
            The same waveform and None where the frontend has no voice activity detection.
        """
        return (waveform, None) if self._voice is None else self._voice.apply(waveform)

    def cut(self, waveform: Waveform) -> Samples:
        """The stretch that the features look at, at the waveform's own rate: float32 [n].

        Args:
            waveform: as :meth:`listen` gives it.

        Raises:
            AudioError: ``too_short``: less than one frame is left after the offset.
        """
        start, stop = self._span(waveform)
        if self._length(stop - start, waveform.sample_rate) < self.config.minimum_samples:
            raise AudioError(
                "too_short",
                f"too short: {waveform.duration_s:.2f} s, where the frontend {self.config.kind} needs at least "
                f"{minimum_duration_s(self.config):.2f} s",
            )
        return waveform.stretch(start, stop)

    def resample(self, cuts: Sequence[Samples], sample_rate: int) -> npt.NDArray[np.float32]:
        """Bring stretches of one length and rate to the frontend's: float32 [batch, samples].

        soxr's HQ recipe, sample for sample as ``librosa.load`` resamples (librosa 0.11, ``core/audio.py``). Recordings
        are the channels of one call, which designs the filter once: for a clip of 2.5 s that is a third of the work.
        """
        rate = self.config.sample_rate
        length = self._length(len(cuts[0]), sample_rate)
        if rate == sample_rate:
            stacked = np.stack(cuts)
        else:
            # Channels that lie one after the other, not interleaved, are taken as they are.
            stacked = soxr.resample(np.stack(cuts).T, sample_rate, rate, quality="HQ").T
        return _fit(stacked, self.fixed_samples or length)

    def prepare(self, waveform: Waveform) -> Samples:
        """Cut a waveform to the analysed stretch and resample it: float32 [samples] at the frontend's rate.

        The stretch is cut at the source's own rate, as ``librosa.load(offset=, duration=)`` does.

        Raises:
            AudioError: ``too_short``: less than one frame is left after the offset.
        """
        return self.resample([self.cut(self.listen(waveform)[0])], waveform.sample_rate)[0]

    def analysed_s(self, waveform: Waveform) -> float:
        """How many seconds of the recording the features rest on."""
        start, stop = self._span(self.listen(waveform)[0])
        return (stop - start) / waveform.sample_rate

    def fit(self, samples: Tensor) -> Tensor:
        """Samples [batch, n] brought to the length that the features need: cut, or followed by silence."""
        if self.fixed_samples is None or samples.shape[-1] == self.fixed_samples:
            return samples
        return functional.pad(samples[..., : self.fixed_samples], (0, max(0, self.fixed_samples - samples.shape[-1])))

    def __call__(self, samples: Tensor, augmented: bool = False) -> Tensor:
        """Features of a batch of prepared samples.

        Args:
            samples: float32 [batch, n] on :attr:`device`, n at least one frame.
            augmented: whether they went through a recipe.

        Returns:
            float32 [batch, *shape], on the same device; rounded to float16 where that is how they are stored.
        """
        compute = self._augmented_features if augmented else self._features
        with torch.no_grad():
            if samples.device.type != "cpu":
                values = compute(samples)
            else:
                with one_thread():
                    batches = [samples] if self.batched_on_cpu else samples.split(1)
                    values = torch.cat([compute(batch) for batch in batches])
            return self._rounded(values)

    def _rounded(self, values: Tensor) -> Tensor:
        return values.half().float() if self.config.stored == "float16" else values

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

    def _length(self, samples: int, sample_rate: int) -> int:
        """How many samples at the frontend's rate librosa makes of so many at another."""
        return int(np.ceil(samples * (float(self.config.sample_rate) / sample_rate)))


def features_of(waveform: Waveform, frontend: Frontend) -> npt.NDArray[np.float32]:
    """The features of one recording, float32 [*shape]: on a CPU the very bits that its feature block holds.

    Raises:
        AudioError: ``too_short``.
    """
    return frontend.extract([frontend.prepare(waveform)], batch_size=1)[0]


def _fit(samples: npt.NDArray[np.float32], length: int) -> npt.NDArray[np.float32]:
    """The samples [..., n] cut, or followed by silence, to a length: contiguous."""
    missing = length - samples.shape[-1]
    if missing > 0:
        return np.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(0, missing)])
    return np.ascontiguousarray(samples[..., :length])


def _resolve(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: torch finds no GPU here; use 'auto' or 'cpu'")
    return torch.device(device)
