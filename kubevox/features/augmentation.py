"""Augmentation recipes: a recording changed at random, and always in the same way.

What chance decides is drawn from a generator seeded by (utterance id, recipe): a shard's features are the same in any
order, in any batch and on any machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from kubevox.config import NoiseRecipe, OriginalRecipe, RecipeConfig
from kubevox.provenance import content_hash

if TYPE_CHECKING:
    from torch import Tensor

    Audio = TypeVar("Audio", np.ndarray, Tensor)
else:
    Audio = TypeVar("Audio")

__all__ = ["augment"]


def augment(samples: Audio, utterance_id: str, recipe: RecipeConfig) -> Audio:
    """Apply a recipe to prepared samples.

    ``noise`` adds white Gaussian noise whose standard deviation is ``sigma`` times a uniform draw from [0, 1) times the
    recording's peak; ``shift`` rotates the recording by a whole number of samples, up to ``max_samples`` either way;
    ``original`` changes nothing.

    Args:
        samples: float32 [samples], a numpy array or a torch tensor; it is not changed.
        utterance_id: the utterance's id, half of the seed.
        recipe: the recipe, the other half: its kind, its parameters and its own seed.

    Returns:
        float32 [samples], an array or a tensor as given, on the same device.
    """
    if isinstance(recipe, OriginalRecipe):
        return samples
    if not isinstance(samples, np.ndarray):
        import torch

        changed = augment(samples.cpu().numpy(), utterance_id, recipe)
        return torch.from_numpy(changed).to(samples.device)
    chance = np.random.default_rng(int(content_hash(utterance_id, recipe.model_dump(mode="json")), 16))
    if isinstance(recipe, NoiseRecipe):
        amplitude = recipe.sigma * chance.uniform() * float(np.abs(samples).max(initial=0.0))
        noise = chance.standard_normal(len(samples), dtype=np.float32)
        return samples + np.float32(amplitude) * noise
    return np.roll(samples, int(chance.integers(-recipe.max_samples, recipe.max_samples, endpoint=True)))
