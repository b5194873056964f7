"""Recipes: at random, and always the same."""

import numpy as np
import pytest
import torch
from generated_speech import speech_like
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import NoiseRecipe, OriginalRecipe, RecipeConfig, ShiftRecipe
from kubevox.features import augment

CLIP = speech_like(1.0).astype(np.float32)
RECIPES = [OriginalRecipe(), NoiseRecipe(), NoiseRecipe(seed=1), ShiftRecipe(), ShiftRecipe(max_samples=10)]
IDS = st.lists(st.text("0123456789abcdef", min_size=1, max_size=8), min_size=1, max_size=6, unique=True)


@settings(max_examples=30, deadline=None)
@given(ids=IDS, recipe=st.sampled_from(RECIPES), data=st.data())
def test_an_utterance_is_augmented_alike_in_any_order(
    ids: list[str], recipe: RecipeConfig, data: st.DataObject
) -> None:
    first = {id: augment(CLIP, id, recipe) for id in ids}
    for id in data.draw(st.permutations(ids)):
        assert np.array_equal(augment(CLIP, id, recipe), first[id])


@pytest.mark.parametrize("recipe", [NoiseRecipe(), ShiftRecipe()])
def test_utterances_and_seeds_are_augmented_differently(recipe: RecipeConfig) -> None:
    reseeded = recipe.model_copy(update={"seed": 7})
    assert not np.array_equal(augment(CLIP, "a", recipe), augment(CLIP, "b", recipe))
    assert not np.array_equal(augment(CLIP, "a", recipe), augment(CLIP, "a", reseeded))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_tensor_is_augmented_as_an_array_and_neither_is_changed(recipe: RecipeConfig) -> None:
    before = CLIP.copy()
    array, tensor = augment(CLIP, "id", recipe), augment(torch.from_numpy(CLIP), "id", recipe)
    assert array.dtype == np.float32
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), array)
    assert np.array_equal(before, CLIP)


def test_noise_is_white_and_in_proportion_to_the_peak() -> None:
    recipe = NoiseRecipe(sigma=0.035)
    amplitudes = []
    for index in range(200):
        noise = augment(CLIP, str(index), recipe) - CLIP
        amplitudes.append(noise.std() / np.abs(CLIP).max())
        assert abs(noise.mean()) < 0.1 * recipe.sigma
    # sigma times a uniform draw: half of it on average, never above it (but for the sample's own spread).
    assert max(amplitudes) < 1.03 * recipe.sigma
    assert np.mean(amplitudes) == pytest.approx(recipe.sigma / 2, rel=0.15)
    louder = augment(2 * CLIP, "id", recipe) - 2 * CLIP
    assert np.allclose(louder, 2 * (augment(CLIP, "id", recipe) - CLIP), atol=1e-6)


def test_a_shift_is_circular_and_bounded_either_way() -> None:
    ramp = np.arange(1000, dtype=np.float32)
    shifts = []
    for index in range(300):
        shifted = augment(ramp, str(index), ShiftRecipe(max_samples=20))
        by = int(np.argmin(shifted))
        assert np.array_equal(shifted, np.roll(ramp, by))
        shifts.append(by if by < 500 else by - 1000)
    assert set(shifts) == set(range(-20, 21))


def test_the_original_is_left_alone() -> None:
    assert augment(CLIP, "id", OriginalRecipe()) is CLIP
