"""Resampling of batches through their spectra: soxr's filter, any ratio, and the same bits in any batch."""

import numpy as np
import pytest
import soxr
import torch
from generated_speech import speech_like
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.features.resampling import resample, resample_by

RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000)


def clips(count: int, samples: int, rate: int = 16_000) -> torch.Tensor:
    seconds = samples / rate + 0.01
    rows = [speech_like(seconds, rate, seed)[:samples] for seed in range(count)]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def tone(frequency: float, samples: int, rate: int = 16_000) -> torch.Tensor:
    return torch.sin(2 * torch.pi * frequency / rate * torch.arange(samples, dtype=torch.float64)).float()[None]


def frequency_of(samples: np.ndarray, rate: int = 16_000) -> float:
    """Of the strongest partial, in Hz: a parabola through the logarithms of a windowed spectrum's peak."""
    spectrum = np.log(np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8 * len(samples))) + 1e-12)
    peak = int(spectrum.argmax())
    below, here, above = spectrum[peak - 1 : peak + 2]
    return (peak + 0.5 * (below - above) / (below - 2 * here + above)) * rate / (8 * len(samples))


@settings(max_examples=60)
@given(
    rate=st.sampled_from(RATES),
    to_rate=st.sampled_from((16_000, 22_050)),
    samples=st.integers(700, 20_000),
    noisy=st.booleans(),
)
def test_a_recording_is_resampled_as_soxr_does(rate: int, to_rate: int, samples: int, noisy: bool) -> None:
    clip = clips(1, samples, rate)
    if noisy:  # all frequencies, so also those that the filter cuts; peaks near full scale
        clip = torch.from_numpy(np.random.default_rng(samples).uniform(-0.5, 0.5, (1, samples)).astype(np.float32))
    ours = resample(clip, rate, to_rate)[0].numpy()
    theirs = soxr.resample(clip[0].numpy(), rate, to_rate, quality="HQ")
    assert len(ours) == -(-samples * to_rate // rate)
    # soxr may leave out the last sample; and by a ratio of no small numbers it starts otherwise: for three samples.
    assert 0 <= len(ours) - len(theirs) <= 1
    start = 2 + -(-3 * to_rate // rate)
    assert np.abs(ours[: len(theirs)] - theirs)[start:].max() < 1e-5


def test_equal_rates_change_nothing() -> None:
    clip = clips(2, 1_000)
    assert resample(clip, 16_000, 16_000) is clip


def test_nothing_above_the_lower_half_rate_is_left() -> None:
    high = resample(tone(9_500, 48_000, 48_000), 48_000, 16_000)[0, 100:-100]
    assert high.abs().max() < 1e-4
    low = resample(tone(6_500, 48_000, 48_000), 48_000, 16_000)[0, 100:-100]
    assert low.abs().max() == pytest.approx(1.0, abs=1e-3)


def test_a_recordings_end_does_not_ring_into_its_beginning() -> None:
    clip = torch.zeros(1, 8_000)
    clip[:, -2_000:] = 0.9
    assert resample(clip, 22_050, 16_000)[:, :3_000].abs().max() < 1e-5
    assert resample_by(clip, 0.8, 6_400)[:, :3_000].abs().max() < 1e-3


@settings(max_examples=40)
@given(
    ratio=st.floats(0.25, 4.0),
    samples=st.integers(6_000, 20_000),
    cycles=st.floats(0.02, 0.1),
)
def test_another_ratio_keeps_level_and_waves_and_meets_the_pitch(ratio: float, samples: int, cycles: float) -> None:
    n = int(ratio * samples)
    frequency = cycles * 16_000
    found = resample_by(tone(frequency, samples), ratio, n)
    assert found.shape == (1, n)
    assert found.dtype == torch.float32
    middle = found[0, n // 8 : -n // 8].numpy()
    assert np.sqrt(2 * np.mean(middle.astype(float) ** 2)) == pytest.approx(1.0, abs=0.02)
    if cycles / ratio < 0.4:
        cents = 1200 * np.log2(frequency_of(middle) / (frequency / ratio))
        assert abs(cents) < 0.2


@settings(max_examples=30)
@given(
    batch=st.integers(1, 9),
    samples=st.integers(600, 9_000),
    rates=st.tuples(st.sampled_from(RATES), st.sampled_from((16_000, 22_050))),
    ratio=st.floats(0.3, 3.0),
    data=st.data(),
)
def test_bits_do_not_depend_on_the_batch(
    batch: int, samples: int, rates: tuple[int, int], ratio: float, data: st.DataObject
) -> None:
    rows = clips(batch, samples)
    order = list(data.draw(st.permutations(range(batch))))
    n = int(ratio * samples)
    resampled, changed = resample(rows[order], *rates), resample_by(rows[order], ratio, n)
    for row, place in enumerate(order):
        # A copy at an odd address.
        alone = torch.cat([torch.zeros(1, 1), rows[place : place + 1]], 1)[:, 1:]
        assert torch.equal(resampled[row], resample(alone, *rates)[0])
        assert torch.equal(changed[row], resample_by(alone, ratio, n)[0])
