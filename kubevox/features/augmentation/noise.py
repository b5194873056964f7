"""Noise added, and a recording rolled round."""

from __future__ import annotations

import torch
from torch import Tensor

from kubevox.config import NoiseRecipe, ShiftRecipe
from kubevox.features.augmentation.chance import Chance

__all__ = ["roll", "white_noise"]


def white_noise(samples: Tensor, recipe: NoiseRecipe, chance: Chance, sample_rate: int) -> Tensor:
    """Add white noise, of standard deviation ``sigma`` times a uniform draw from [0, 1) times the recording's peak.

    The customary noise of speech emotion recognition on RAVDESS, here with a seed. Shapes as in
    :func:`~kubevox.features.augmentation.augment`.
    """
    share = torch.tensor(chance.uniform(0), dtype=torch.float32, device=samples.device)
    amplitude = recipe.sigma * share * samples.abs().amax(-1)
    return chance.normal(samples.shape[-1], samples.device).mul_(amplitude[:, None]).add_(samples)


def roll(samples: Tensor, recipe: ShiftRecipe, chance: Chance, sample_rate: int) -> Tensor:
    """Rotate each recording by a whole number of samples, up to ``max_samples`` either way, as ``numpy.roll`` does."""
    shifts = [drawn - recipe.max_samples for drawn in chance.integer(0, 2 * recipe.max_samples + 1)]
    if samples.device.type == "cpu":
        return torch.stack([row.roll(shift) for row, shift in zip(samples, shifts, strict=True)])
    places = (
        torch.arange(samples.shape[-1], device=samples.device) - torch.tensor(shifts, device=samples.device)[:, None]
    )
    return samples.gather(1, places.remainder_(samples.shape[-1]))
