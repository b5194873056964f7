"""The tuning's certificate: a vote on a float32 transform never has another winner than librosa's arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import torch
from generated_speech import speech_like
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kubevox.config import AudioLimits, StatisticsConfig
from kubevox.data.audio import decode
from kubevox.features.frontends import tuning
from kubevox.features.frontends.spectrum import framed, power_of
from kubevox.features.frontends.statistics import Statistics
from kubevox.features.frontends.tuning import STEPS

FRONTEND = Statistics(StatisticsConfig())
FRAME, HOP, RATE = FRONTEND.config.frame, FRONTEND.config.hop, FRONTEND.config.sample_rate
LSB = 2.0**-15
LENGTH = 12_000  # 24 frames


def speech(seed: int, length: int) -> np.ndarray:
    return speech_like(length / RATE, RATE, seed)[:length]


def tones(seed: int, length: int) -> np.ndarray:
    """A few harmonics, all of one tuning or nearly: the vote is close where that lies between two hundredths."""
    chance = np.random.default_rng(seed)
    time = np.arange(length) / RATE
    border = chance.integers(-50, 50) / 100 + chance.choice([0.0, 0.005, 1e-4, -1e-4, 1e-6])
    notes = 440.0 * 2.0 ** ((chance.integers(-14, 14, chance.integers(1, 6)) + border) / 12)
    return 0.1 * sum(chance.uniform(0.1, 1) * np.sin(2 * np.pi * f * time + chance.uniform(0, 6)) for f in notes)


def noise(seed: int, length: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(length)


def impulses(seed: int, length: int) -> np.ndarray:
    """Single steps of 16-bit PCM in silence: flat spectra, all of whose bins are equal but for rounding."""
    chance = np.random.default_rng(seed)
    samples = np.zeros(length)
    samples[chance.integers(0, length, chance.integers(1, 12))] = chance.choice([-LSB, LSB])
    return samples


def dither(seed: int, length: int) -> np.ndarray:
    return LSB * np.random.default_rng(seed).integers(-1, 2, length)


def periodic(seed: int, length: int) -> np.ndarray:
    """The same frame over and over: peaks of equal strength, so that the median is one of many."""
    chance = np.random.default_rng(seed)
    return np.resize(0.2 * chance.standard_normal(int(chance.choice([64, 128, 512]))), length)


KINDS = [speech, tones, noise, impulses, dither, periodic]


@st.composite
def clips(draw: st.DrawFn) -> Tensor:
    """Some recordings of one length, each a signal or the sum of two, on the 16-bit grid or not: float32 [batch, n]."""
    length = draw(st.sampled_from([FRAME, 3_000, LENGTH]))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        seeds, kinds = st.integers(0, 1 << 20), st.sampled_from(KINDS)
        row = draw(kinds)(draw(seeds), length)
        if draw(st.booleans()):
            row = row + draw(st.sampled_from([1.0, 0.01, 0.0])) * draw(kinds)(draw(seeds), length)
        if draw(st.booleans()):
            row[: draw(st.integers(0, length))] = 0.0  # a beginning of silence
        rows.append(np.round(row / LSB) * LSB if draw(st.booleans()) else row)
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def powers(samples: Tensor) -> tuple[Tensor, Tensor]:
    """By the float32 transform, and by librosa's arithmetic: float32 [batch, frames, bins] each."""
    frames = framed(samples, FRAME, HOP)
    fast = power_of(torch.fft.rfft(frames * FRONTEND._window))
    return fast, FRONTEND._exact_power(frames.flatten(0, 1)).unflatten(0, fast.shape[:2])


def winner_of_all(exact: Tensor) -> Tensor:
    """The winner of a vote without any float32 transform: int64 [batch]."""
    estimator, (batch, frames) = FRONTEND._tuning, exact.shape[:2]
    peaks = estimator._peaks(estimator.candidates(exact, 0, 0.0), frames, 0.0)
    return tuning._winners(estimator._exact_votes(peaks.clip, peaks.magnitude, peaks.bin, peaks.shift, batch))


def certified_winner(fast: Tensor, exact: Tensor) -> tuple[Tensor, int]:
    """The estimator's winner, and how many frames it asked the exact power of."""
    asked = 0

    def exact_power(rows: Tensor) -> Tensor:
        nonlocal asked
        asked += len(rows)
        assert torch.equal(rows, rows.unique())  # each once, in order
        return exact.flatten(0, 1)[rows]

    batch, frames = fast.shape[:2]
    # As the frontend does: in pieces, each of which counts its frames from where the last one ended.
    found = [FRONTEND._tuning.candidates(piece, 2 * number * frames) for number, piece in enumerate(fast.split(2))]
    return FRONTEND._tuning(found, batch, frames, exact_power), asked


def misses(samples: Tensor) -> list[int]:
    """Recordings of which the estimator's winner is another than that of the vote in float64."""
    fast, exact = powers(samples)
    found, _ = certified_winner(fast, exact)
    return (found != winner_of_all(exact)).nonzero()[:, 0].tolist()


def excess(samples: Tensor) -> float:
    """The largest error of a power that counts, as a share of what the certificate assumes."""
    fast, exact = powers(samples)
    exact = exact.double()
    strongest = exact.amax(-1, keepdim=True)
    counts = (exact > tuning._THRESHOLD * strongest) & (strongest > 1e-15)
    allowed = tuning._POWER_ERROR * (exact * strongest).sqrt()
    return float(((fast.double() - exact).abs() / allowed)[counts].max()) if counts.any() else 0.0


@settings(max_examples=120)
@given(clips())
def test_the_winner_is_that_of_librosas_arithmetic(samples: Tensor) -> None:
    assert misses(samples) == []


@settings(max_examples=60)
@given(clips())
def test_a_power_errs_by_no_more_than_the_certificate_assumes(samples: Tensor) -> None:
    assert excess(samples) <= 1.0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_winner_is_right_for_many_signals_of_a_kind(kind) -> None:
    samples = torch.from_numpy(np.stack([kind(seed, LENGTH) for seed in range(40)]).astype(np.float32))
    assert misses(samples) == []
    assert excess(samples) <= 1.0


def test_perturbed_powers_within_the_margin_change_no_winner() -> None:
    """What another machine's float32 transform may give: errors of the size that is allowed, of either sign."""
    samples = torch.from_numpy(np.stack([KINDS[seed % 3](seed, LENGTH) for seed in range(30)]).astype(np.float32))
    _, exact = powers(samples)
    expected = winner_of_all(exact)
    allowed = tuning._POWER_ERROR * (exact * exact.amax(-1, keepdim=True)).sqrt()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        sign = torch.randint(0, 2, exact.shape, generator=generator) * 2.0 - 1.0
        perturbed = (exact + 0.9 * sign * allowed).clamp_(min=0.0)
        assert torch.equal(certified_winner(perturbed, exact)[0], expected)


def test_silence_has_no_tuning_and_shares_a_batch_with_what_has() -> None:
    samples = torch.from_numpy(np.stack([np.zeros(LENGTH), tones(1, LENGTH), np.zeros(LENGTH)]).astype(np.float32))
    fast, exact = powers(samples)
    found, _ = certified_winner(fast, exact)
    assert found[[0, 2]].tolist() == [STEPS // 2] * 2
    assert found[1] == certified_winner(fast[1:2], exact[1:2])[0][0] == winner_of_all(exact)[1]


@settings(max_examples=30)
@given(clips(), st.data())
def test_the_winner_does_not_depend_on_the_batch(samples: Tensor, data: st.DataObject) -> None:
    fast, exact = powers(samples)
    order = data.draw(st.permutations(range(len(samples))))
    together = certified_winner(fast[list(order)], exact[list(order)])[0]
    quick = FRONTEND._tuning([FRONTEND._tuning.candidates(fast)], len(fast), fast.shape[1], None)
    for row, place in enumerate(order):
        one, true = fast[place : place + 1], exact[place : place + 1]
        assert together[row] == certified_winner(one, true)[0][0]
        assert quick[place] == FRONTEND._tuning([FRONTEND._tuning.candidates(one)], 1, fast.shape[1], None)[0]


def test_real_recordings_have_the_winner_and_the_errors_that_are_assumed(speech_data: Path) -> None:
    files = sorted((speech_data / "speech").rglob("*.flac"))
    files = [files[int(index)] for index in np.linspace(0, len(files) - 1, 60)]
    frames = asked = 0
    for file in files:
        waveform, _ = decode(file.read_bytes(), AudioLimits(), file.name)
        if waveform.duration_s < 0.75:
            continue
        samples = torch.from_numpy(FRONTEND.prepare(waveform))[None]
        assert misses(samples) == [], file
        assert excess(samples) <= 1.0, file
        fast, exact = powers(samples)
        frames, asked = frames + fast.shape[1], asked + certified_winner(fast, exact)[1]
    # Else it would be as well to transform everything in float64.
    assert asked < 0.1 * frames
