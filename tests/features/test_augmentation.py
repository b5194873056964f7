"""Recipes: at random, and always the same."""

import librosa
import numpy as np
import pytest
import torch
from generated_speech import speech_like
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kubevox.config import (
    ChainRecipe,
    NoiseRecipe,
    OriginalRecipe,
    PitchRecipe,
    RecipeConfig,
    ShiftRecipe,
    StretchRecipe,
)
from kubevox.features import augment
from kubevox.features.augmentation import augment_all
from kubevox.features.augmentation.chance import Chance

RATE = 16_000
CLIP = torch.from_numpy(speech_like(1.0).astype(np.float32))[None]
PITCH_AND_NOISE = ChainRecipe(steps=(PitchRecipe(), NoiseRecipe()))
RECIPES = [
    OriginalRecipe(),
    NoiseRecipe(),
    NoiseRecipe(seed=1),
    ShiftRecipe(),
    ShiftRecipe(max_samples=10),
    PitchRecipe(),
    StretchRecipe(),
    PITCH_AND_NOISE,
]
IDS = st.lists(st.text("0123456789abcdef", min_size=1, max_size=8), min_size=1, max_size=6, unique=True)


def clips(count: int, seconds: float = 1.0) -> Tensor:
    return torch.from_numpy(np.stack([speech_like(seconds, seed=seed) for seed in range(count)]).astype(np.float32))


@settings(max_examples=40)
@given(ids=IDS, recipe=st.sampled_from(RECIPES), data=st.data())
def test_an_utterance_is_augmented_alike_in_any_order_and_batch(
    ids: list[str], recipe: RecipeConfig, data: st.DataObject
) -> None:
    samples = clips(len(ids), 0.5)
    alone = {id: augment(samples[row : row + 1], [id], recipe, RATE)[0] for row, id in enumerate(ids)}
    order = data.draw(st.permutations(range(len(ids))))
    together = augment(samples[list(order)], [ids[row] for row in order], recipe, RATE)
    for row, place in enumerate(order):
        assert torch.equal(together[row], alone[ids[place]])


@pytest.mark.parametrize("recipe", [NoiseRecipe(), ShiftRecipe()])
def test_utterances_and_seeds_are_augmented_differently(recipe: RecipeConfig) -> None:
    reseeded = recipe.model_copy(update={"seed": 7})
    first = augment(CLIP, ["a"], recipe, RATE)
    assert not torch.equal(first, augment(CLIP, ["b"], recipe, RATE))
    assert not torch.equal(first, augment(CLIP, ["a"], reseeded, RATE))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.kind)
def test_samples_are_float32_and_not_changed_in_place(recipe: RecipeConfig) -> None:
    before = CLIP.clone()
    assert augment(CLIP, ["id"], recipe, RATE).dtype == torch.float32
    assert torch.equal(before, CLIP)


def test_noise_is_white_and_in_proportion_to_the_peak() -> None:
    recipe = NoiseRecipe(sigma=0.035)
    ids = [str(index) for index in range(200)]
    noise = augment(CLIP.expand(200, -1), ids, recipe, RATE) - CLIP
    assert (noise.mean(1).abs() < 0.1 * recipe.sigma).all()
    amplitudes = noise.std(1) / CLIP.abs().max()
    # sigma times a uniform draw: half of it on average, never above it (but for the sample's own spread).
    assert amplitudes.max() < 1.03 * recipe.sigma
    assert amplitudes.mean() == pytest.approx(recipe.sigma / 2, rel=0.15)
    louder = augment(2 * CLIP, ["id"], recipe, RATE) - 2 * CLIP
    assert torch.allclose(louder, 2 * (augment(CLIP, ["id"], recipe, RATE) - CLIP), atol=1e-6)


def test_normal_deviates_are_normal_and_independent() -> None:
    drawn = Chance(["a", "b"], {"recipe": 1}).normal(200_001, torch.device("cpu")).double()
    other = Chance(["a"], {"recipe": 1}).normal(200_001, torch.device("cpu"), stream=1)[0].double()
    assert drawn.mean().abs() < 0.01
    assert drawn.std() == pytest.approx(1.0, abs=0.01)
    assert (drawn**4).mean() == pytest.approx(3.0, abs=0.1)
    assert drawn.abs().max() < 4.9
    half = 100_001  # the first and the second half come from the same hashes
    for first, second in [
        (drawn[0], drawn[1]),
        (drawn[0], other),
        (drawn[0, 1:], drawn[0, :-1]),
        (drawn[0, : half - 1], drawn[0, half:]),
        (drawn[0, : half - 1] ** 2, drawn[0, half:] ** 2 - 1),
    ]:
        assert (first * second).mean().abs() < 0.015
    spectrum = torch.fft.rfft(drawn[0]).abs().square().reshape(-1)[1:100_001].reshape(10, -1).mean(1)
    assert (spectrum / spectrum.mean()).sub(1).abs().max() < 0.05


def test_a_shift_is_circular_and_bounded_either_way() -> None:
    ramp = torch.arange(1000, dtype=torch.float32)[None]
    ids = [str(index) for index in range(300)]
    shifts = []
    for row in augment(ramp.expand(300, -1), ids, ShiftRecipe(max_samples=20), RATE):
        by = int(row.argmin())
        assert torch.equal(row, ramp[0].roll(by))
        shifts.append(by if by < 500 else by - 1000)
    assert set(shifts) == set(range(-20, 21))


def test_the_original_is_left_alone() -> None:
    assert augment(CLIP, ["id"], OriginalRecipe(), RATE) is CLIP


def test_a_chain_draws_anew_for_each_step_and_shares_what_it_begins_with() -> None:
    changed = dict(augment_all(CLIP, ["id"], [PITCH_AND_NOISE, PitchRecipe(), NoiseRecipe()], RATE))
    noise_alone = changed[NoiseRecipe()] - CLIP
    noise_after = changed[PITCH_AND_NOISE] - changed[PitchRecipe()]
    assert torch.equal(changed[PITCH_AND_NOISE], augment(CLIP, ["id"], PITCH_AND_NOISE, RATE))
    correlation = torch.corrcoef(torch.stack([noise_alone[0], noise_after[0]]))[0, 1]
    assert abs(correlation) < 0.05


def signal_to_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """In dB."""
    return float(10 * np.log10(np.sum(theirs.astype(float) ** 2) / np.sum((ours.astype(float) - theirs) ** 2)))


@pytest.mark.parametrize("rate", [0.5, 0.8, 1.0, 1.25, 2.6])
def test_time_is_stretched_as_librosa_does(rate: float) -> None:
    """To 50 dB: librosa adds up phases of thousands of turns in float32."""
    for clip in clips(2, 1.3):
        theirs = librosa.effects.time_stretch(clip.numpy(), rate=rate)
        ours = augment(clip[None], ["id"], StretchRecipe(rate=rate), RATE)[0].numpy()
        assert ours.shape == theirs.shape
        assert signal_to_error(ours, theirs) > 50.0


@pytest.mark.parametrize("semitones", [-7.0, -3.0, 0.5, 3.0, 5.0])
def test_pitch_is_shifted_as_librosa_does(semitones: float) -> None:
    """To 20 dB: where a second ends, 2e-6 of difference in the ratio is a twentieth of a sample."""
    for clip in clips(2, 1.3):
        theirs = librosa.effects.pitch_shift(clip.numpy(), sr=RATE, n_steps=semitones)
        ours = augment(clip[None], ["id"], PitchRecipe(semitones=semitones), RATE)[0].numpy()
        assert ours.shape == theirs.shape
        assert signal_to_error(ours, theirs) > 20.0


@pytest.mark.parametrize("semitones", [-5.0, -1.0, 3.0, 7.0])
def test_a_tone_moves_by_the_interval_asked_for(semitones: float) -> None:
    time = torch.arange(4 * RATE) / RATE
    shifted = augment(torch.sin(2 * torch.pi * 440.0 * time)[None], ["id"], PitchRecipe(semitones=semitones), RATE)[0]
    middle = shifted[RATE // 2 : -RATE // 2] * torch.hann_window(3 * RATE)
    spectrum = torch.fft.rfft(middle, 16 * len(middle)).abs()
    found = int(spectrum.argmax()) * RATE / (16 * len(middle))
    assert 1200 * np.log2(found / (440.0 * 2 ** (semitones / 12))) == pytest.approx(0.0, abs=0.5)


def test_silence_stays_silence() -> None:
    silent = torch.zeros(2, 20_000)
    for recipe in RECIPES:
        assert not augment(silent, ["a", "b"], recipe, RATE).any()
