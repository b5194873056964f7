"""Noise from elsewhere: at a signal-to-noise ratio, white or out of a folder of recordings."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr
import torch
from torch import Tensor

from kubevox.config import AudioLimits, BackgroundRecipe
from kubevox.data.audio import decode
from kubevox.errors import AudioError, ConfigError
from kubevox.features.augmentation.chance import Chance
from kubevox.features.pins import recordings_in

__all__ = ["background", "mean_square", "read_recording", "recordings_of"]

Samples = npt.NDArray[np.float32]

# Of the draws for an utterance: which number decides what.
_RATIO, _WHICH, _WHERE = range(3)
# Noise below this power (-120 dB of full scale) is silence: raising it would raise what rounding left.
_SILENCE = 1e-12
# A sum is made in blocks of this many, in a fixed order, whatever the number of threads.
_SUMMED = 1024
# What a user gives as noise or as a room is not untrusted, and often longer than an utterance.
_LIMITS = AudioLimits(
    max_bytes=1 << 31, max_duration_s=7200.0, min_sample_rate=1000, max_sample_rate=384_000, max_channels=64
)
_CACHE_BYTES = 256 << 20


def background(samples: Tensor, recipe: BackgroundRecipe, chance: Chance, sample_rate: int) -> Tensor:
    """Add noise at a signal-to-noise ratio drawn uniformly from ``snr_db`` for each utterance.

    The ratio is that of the mean squares over the whole clip, pauses included, in dB: 10 log10 (P_signal / P_noise),
    where P_noise is of the very stretch of noise that is added. A silent clip stays as it is.

    ``corpus: white`` draws normal deviates. Otherwise chance picks a recording of the folder and a stretch of it, at
    the clip's rate (soxr, HQ); a recording shorter than the clip is repeated. Where the stretch is silent, the one that
    begins at the recording's loudest sample is taken, and where all of it is, the next recording by name.

    Shapes as in :func:`~kubevox.features.augmentation.augment`.

    Raises:
        ConfigError: the folder is missing, holds a file that cannot be decoded, or nothing but silence.
    """
    n = samples.shape[-1]
    if recipe.corpus == "white":
        noise = chance.normal(n, samples.device)
    else:
        files = recordings_of(recipe.corpus, recipe.sha256, "corpus")
        drawn = zip(chance.integer(_WHICH, len(files)), chance.uniform(_WHERE), strict=True)
        stretches = [_stretch(files, which, where, n, sample_rate) for which, where in drawn]
        noise = torch.from_numpy(np.stack(stretches)).to(samples.device)
    ratios = [10.0 ** (decibels / 10.0) for decibels in chance.uniform(_RATIO, *recipe.snr_db)]
    ratio = torch.tensor(ratios, dtype=torch.float64, device=samples.device)
    gain = (mean_square(samples) / (mean_square(noise) * ratio)).sqrt().to(torch.float32)
    return noise.mul_(gain[:, None]).add_(samples)


def mean_square(samples: Tensor) -> Tensor:
    """The mean of the squares of each row: float64 [batch] of [batch, n], n at least 1.

    The order of the sum is fixed: on a CPU a row's result is the same bits in any batch, with any number of threads.
    """
    n = samples.shape[-1]
    blocks = torch.nn.functional.pad(samples.double().square_(), (0, -n % _SUMMED))
    # A row at a time at the end, where there are few numbers left.
    sums = blocks.reshape(len(samples), -1, _SUMMED).sum(-1)
    return torch.stack([row.sum() for row in sums]) / n if samples.device.type == "cpu" else sums.sum(-1) / n


def recordings_of(folder: str, sha256: str | None, key: str) -> tuple[Path, ...]:
    """The recordings in a folder or bucket, sorted by name; looked up once a process where their content is pinned.

    Args:
        folder: a folder or ``s3://bucket/prefix``.
        sha256: of its content, where it is known.
        key: the configuration's key that named it, for the error.

    Raises:
        ConfigError: there is no such folder, or no recording in it.
    """
    return tuple(recordings_in(folder, key)) if sha256 is None else _pinned_recordings(folder, sha256, key)


@functools.lru_cache(maxsize=32)
def _pinned_recordings(folder: str, sha256: str, key: str) -> tuple[Path, ...]:
    return tuple(recordings_in(folder, key))


class _Recordings:
    """Decoded recordings, of which the ones used last are kept, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held = 0
        self._kept: OrderedDict[tuple[str, int, int, int], Samples] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: Path, sample_rate: int) -> Samples:
        """The recording's samples, read-only, float32 [samples] at a rate."""
        state = file.stat()
        key = str(file), state.st_size, state.st_mtime_ns, sample_rate
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        samples = _read(file, sample_rate)
        samples.flags.writeable = False
        with self._lock:
            if key not in self._kept and samples.nbytes <= self._most:
                self._kept[key] = samples
                self._held += samples.nbytes
                while self._held > self._most:
                    _, dropped = self._kept.popitem(last=False)
                    self._held -= dropped.nbytes
        return samples


_recordings = _Recordings(_CACHE_BYTES)


def read_recording(file: Path, sample_rate: int, key: str) -> Samples:
    """A recording's samples, the mean of its channels, resampled (soxr, HQ): read-only float32 [samples].

    The recordings used last are kept in memory, up to 256 MiB a process.

    Args:
        file: WAV, FLAC, Ogg or MP3.
        sample_rate: the wanted rate, in Hz.
        key: the configuration's key that named its folder, for the error.

    Raises:
        ConfigError: it cannot be read or decoded.
    """
    try:
        return _recordings.get(file, sample_rate)
    except (AudioError, OSError) as error:
        # Not an AudioError: it is not the utterance that is at fault.
        raise ConfigError(f"{key}: {error}; repair the file or remove it from the folder") from None


def _read(file: Path, sample_rate: int) -> Samples:
    waveform, _ = decode(file.read_bytes(), _LIMITS, str(file))
    if waveform.sample_rate == sample_rate:
        return waveform.samples
    resampled = soxr.resample(waveform.samples, waveform.sample_rate, sample_rate, quality="HQ")
    # Less than one sample at the new rate is still a recording.
    return resampled if len(resampled) else np.zeros(1, np.float32)


def _stretch(files: tuple[Path, ...], which: int, where: float, n: int, sample_rate: int) -> Samples:
    """``n`` samples of the recording number ``which``, from the share ``where`` of the possible beginnings on."""
    for offset in range(len(files)):
        recording = read_recording(files[(which + offset) % len(files)], sample_rate, "corpus")
        # A recording that is repeated may begin anywhere.
        beginnings = len(recording) if len(recording) < n else len(recording) - n + 1
        drawn = min(int(where * beginnings), beginnings - 1)
        for start in (drawn, int(np.abs(recording).argmax())):
            stretch = _cut(recording, start, n)
            if float(np.square(stretch, dtype=np.float64).mean()) >= _SILENCE:
                return stretch
    raise ConfigError(f"corpus {str(files[0].parent)!r}: all recordings are silent; noise is to be heard")


def _cut(recording: Samples, start: int, n: int) -> Samples:
    if start + n <= len(recording):
        return recording[start : start + n]
    return np.take(recording, np.arange(start, start + n), mode="wrap")
