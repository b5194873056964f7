"""What happens to speech on its way: another speed, a telephone line, a room."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kubevox.config import ReverbRecipe, SpeedRecipe, TelephoneRecipe
from kubevox.errors import ConfigError
from kubevox.features.augmentation.background import mean_square, read_recording, recordings_of
from kubevox.features.augmentation.chance import Chance
from kubevox.features.resampling import resample_by

__all__ = ["change_speed", "companded", "reverberate", "telephone"]

_LINE_RATE = 8_000
# Silence between a clip's end and, the transform being periodic, its beginning: the line's filter rings for less.
_LINE_GAP_S = 0.05
# What counts as direct sound when a direct-to-reverberant ratio is measured.
_DIRECT_S = 2.5e-3
_TINY = 1e-30

# Of the draws for an utterance: which number decides what.
_RT60, _DRR, _WHICH = range(3)


def change_speed(samples: Tensor, recipe: SpeedRecipe, chance: Chance, sample_rate: int) -> Tensor:
    """Play ``factor`` times as fast, tempo and pitch alike: float32 [batch, round(n / factor)].

    T. Ko, V. Peddinti, D. Povey & S. Khudanpur, "Audio augmentation for speech recognition", Interspeech 2015 (there
    0.9, 1.0 and 1.1). Band-limited resampling by :func:`~kubevox.features.resampling.resample_by`, with its filter:
    what lies above 91.3 % of the lower Nyquist frequency fades out.
    """
    m = max(round(samples.shape[-1] / recipe.factor), 1)
    if recipe.factor == 1.0:
        return samples
    return _by_clip(lambda clip: resample_by(clip, 1.0 / recipe.factor, m), samples)


def telephone(samples: Tensor, recipe: TelephoneRecipe, chance: Chance, sample_rate: int) -> Tensor:
    """Pass the clips through a telephone line: a band, 8 kHz, companding to 8 bits, and back: float32 [batch, n].

    The band from ``low_hz`` to ``high_hz`` is left as it is. It falls, along half a cosine, to nothing at half of
    ``low_hz`` and at 1.15 times ``high_hz`` (at most 4 kHz), both before the companding and after it, as filters at
    both ends of a line do. All of it has zero phase: nothing moves in time. Full scale is the codec's full scale.

    A sample on the edge between two codes may get either, so a GPU's result may differ from a CPU's there, by one
    step of the codec.

    Source: ITU-T G.711 (1988) for the codecs; the default band is that of ITU-T G.712.
    """
    n = samples.shape[-1]
    divisor = math.gcd(sample_rate, _LINE_RATE)
    down, up = sample_rate // divisor, _LINE_RATE // divisor
    # Both transforms have an even length, and their lengths the ratio of the rates.
    factor = _fast_length(math.ceil((n + _LINE_GAP_S * sample_rate) / down))
    length, line_length = factor * down, factor * up
    response = _band(recipe.low_hz, recipe.high_hz, min(length, line_length) // 2 + 1, line_length, str(samples.device))
    bins = len(response)

    def through_line(clip: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(clip, length)[..., :bins] * (response * (line_length / length))
        line = companded(torch.fft.irfft(spectrum, line_length), recipe.codec)
        spectrum = torch.fft.rfft(line)[..., :bins] * (response * (length / line_length))
        return torch.fft.irfft(spectrum, length)[..., :n]

    return _by_clip(through_line, samples)


def companded(samples: Tensor, codec: str) -> Tensor:
    """What is left of samples after 8 bits of ITU-T G.711: each becomes the value of its code.

    ±1 is the codec's full scale: 8192 of table 2 (mu-law; what is beyond its last value, 8031, becomes that), 4096 of
    table 1 (A-law). A decision value belongs to the code above it, and zero counts as positive; so A-law, which
    has no code for zero, makes 1/4096 of silence.

    Args:
        samples: float32, any shape.
        codec: ``mu-law``, ``a-law`` or ``none``, which returns the samples.

    Returns:
        float32, of the same shape.
    """
    if codec == "none":
        return samples
    decisions, values = _codes(codec, str(samples.device))
    code = torch.bucketize(samples.abs(), decisions, right=True)
    magnitude = values.index_select(0, code.flatten()).reshape(samples.shape)
    return torch.where(samples < 0, -magnitude, magnitude)


def reverberate(samples: Tensor, recipe: ReverbRecipe, chance: Chance, sample_rate: int) -> Tensor:
    """Put the clips into a room: convolve each with an impulse response, cut to its length: float32 [batch, n].

    Without ``responses`` the response is drawn: a direct sound of 1 at once, so that nothing moves in time, and from
    2.5 ms on normal deviates that decay exponentially, by 60 dB in a time drawn uniformly from ``rt60_s``. Their energy
    is the direct sound's less a direct-to-reverberant ratio drawn uniformly from ``drr_db`` (J.-D. Polack's model of
    late reverberation, 1988; 2.5 ms is what P. Zahorik counts as direct sound, JASA 112, 2002).

    With ``responses`` chance picks one of the folder's recordings. Its greatest sample is taken for the direct sound
    and put at 0; of what comes before, 2.5 ms are kept.

    The clip keeps its level: its mean square is afterwards what it was (as Kaldi's ``wav-reverberate
    --normalize-output`` has it). Silence stays silence.

    Raises:
        ConfigError: the folder is missing, or holds a file that cannot be decoded or is silent.
    """
    if recipe.responses is None:
        early, responses = 0, _drawn_responses(recipe, chance, sample_rate, samples.device)
    else:
        early = round(_DIRECT_S * sample_rate)
        files = recordings_of(recipe.responses, recipe.sha256, "responses")
        responses = [
            torch.from_numpy(_recorded_response(files[which], sample_rate, early)).to(samples.device)
            for which in chance.integer(_WHICH, len(files))
        ]
    if samples.device.type == "cpu":
        # Each at its own length: a neighbour's must not change the transform, and so the last bits.
        clips = zip(samples.split(1), responses, strict=True)
        return torch.cat([_convolved(clip, response[None], early) for clip, response in clips])
    return _convolved(samples, torch.nn.utils.rnn.pad_sequence(responses, batch_first=True), early)


def _convolved(samples: Tensor, responses: Tensor, early: int) -> Tensor:
    """Each clip [batch, n] with its response [batch, r], whose sample ``early`` is at 0, at the clip's level."""
    n = samples.shape[-1]
    # What comes later than the clip is long is not heard in it.
    responses = responses[..., : n + early]
    length = _fast_length(n + responses.shape[-1])
    spectrum = torch.fft.rfft(samples, length) * torch.fft.rfft(responses, length)
    wet = torch.fft.irfft(spectrum, length)[..., early : early + n]
    gain = (mean_square(samples) / mean_square(wet).clamp_(min=_TINY)).sqrt().to(torch.float32)
    return wet * gain[:, None]


def _drawn_responses(recipe: ReverbRecipe, chance: Chance, sample_rate: int, device: torch.device) -> list[Tensor]:
    """An impulse response for each utterance, float32 [r]."""
    first = max(round(_DIRECT_S * sample_rate), 1)
    tail = max(math.ceil(recipe.rt60_s[1] * sample_rate), 1)
    deviates = chance.normal(tail, device)  # as many for every utterance: what is drawn depends on their number
    time = torch.arange(first, first + tail, dtype=torch.float64, device=device) / sample_rate
    rows = []
    drawn = zip(chance.uniform(_RT60, *recipe.rt60_s), chance.uniform(_DRR, *recipe.drr_db), strict=True)
    for row, (rt60, drr) in zip(deviates, drawn, strict=True):
        # Computed in float64 and rounded: no last bit of the exponential is left to see.
        decayed = row * torch.exp(time * (-3.0 * math.log(10.0) / rt60)).to(torch.float32)
        energy = mean_square(decayed[None])[0] * tail
        gain = (10.0 ** (-drr / 10.0) / energy.clamp(min=_TINY)).sqrt().to(torch.float32)
        rows.append(torch.cat([row.new_ones(1), row.new_zeros(first - 1), decayed * gain]))
    return rows


def _recorded_response(file: Path, sample_rate: int, early: int) -> npt.NDArray[np.float32]:
    """The recording from ``early`` samples before its greatest on, preceded by silence where it has fewer."""
    recorded = read_recording(file, sample_rate, "responses")
    peak = int(np.abs(recorded).argmax())
    if recorded[peak] == 0.0:
        raise ConfigError(f"responses: {file} is silent, and so no impulse response; remove it from the folder")
    return np.pad(recorded[max(peak - early, 0) :], (max(early - peak, 0), 0))


@functools.lru_cache(maxsize=64)
def _band(low_hz: float, high_hz: float, bins: int, line_length: int, device: str) -> Tensor:
    """The frequency response of one end of the line: float32 [bins], those of a transform at the line's rate."""
    hertz = np.arange(bins) * (_LINE_RATE / line_length)
    top = min(1.15 * high_hz, _LINE_RATE / 2)
    below = (low_hz - hertz) / max(low_hz / 2, _TINY)
    above = (hertz - high_hz) / max(top - high_hz, _TINY)
    response = 0.5 + 0.5 * np.cos(np.pi * np.maximum(below, above).clip(0.0, 1.0))
    response[-1] = 0.0  # half of a rate is no frequency of its own
    return torch.from_numpy(response.astype(np.float32)).to(device)


@functools.cache
def _codes(codec: str, device: str) -> tuple[Tensor, Tensor]:
    """Where each code but the first begins, float32 [127], and the value of each, [128]; full scale is 1.

    Eight segments of 16 equal steps (G.711, tables 1 and 2). Of mu-law each segment's steps are twice as wide as the
    one's before, and of A-law from the third on.
    """
    segment, step = np.divmod(np.arange(128), 16)
    if codec == "mu-law":
        decisions, values, full_scale = (2 * step + 32) * 2.0**segment - 33, (2 * step + 33) * 2.0**segment - 33, 8192
    else:
        width = 2.0 ** np.maximum(segment, 1)
        decisions = np.where(segment > 0, step + 16, step) * width
        values, full_scale = decisions + width / 2, 4096
    tables = (decisions[1:] / full_scale, values / full_scale)
    first, second = (torch.from_numpy(table.astype(np.float32)).to(device) for table in tables)
    return first, second


def _by_clip(function: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
    return torch.cat([function(clip) for clip in samples.split(_clips_at_once(samples))])


def _clips_at_once(samples: Tensor) -> int:
    # On a CPU a clip at a time: a transform's last bits depend on the batch it is in (and on the number of threads,
    # which is the caller's to fix). A GPU takes all at once.
    return 1 if samples.device.type == "cpu" else len(samples)


@functools.lru_cache(maxsize=256)
def _fast_length(least: int) -> int:
    """The least even number of at least ``least`` without a prime factor above 7."""
    length = least + least % 2
    while not _is_fast(length):
        length += 2
    return length


def _is_fast(length: int) -> bool:
    for prime in (2, 3, 5, 7):
        while length % prime == 0:
            length //= prime
    return length == 1
