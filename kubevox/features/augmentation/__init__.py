"""Augmentation recipes: a recording changed at random, and always in the same way.

A recipe is data (:mod:`kubevox.config`); a change here is a function of a batch of prepared samples. What chance
decides is drawn by :class:`~kubevox.features.augmentation.chance.Chance` from (utterance id, recipe): a shard's
features are the same in any order, in any batch and on any machine.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kubevox.config import ChainRecipe, OriginalRecipe, RecipeConfig
from kubevox.features.pins import identity
from kubevox.features.runtime import one_thread
from kubevox.provenance import canonical_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["augment", "augment_all", "recipe_version", "transforms"]

# Part of every feature block's key: raise a kind's number whenever what it does changes.
_VERSIONS = {
    "background": 1,
    "noise": 2,
    "pitch": 1,
    "reverb": 1,
    "shift": 2,
    "speed": 1,
    "stretch": 1,
    "telephone": 1,
}


# Where each is at home: a function (samples, step, chance, sample_rate) -> samples, imported only when it is used.
_HOMES = {
    "background": "background:background",
    "noise": "noise:white_noise",
    "pitch": "vocoder:shift_pitch",
    "reverb": "channel:reverberate",
    "shift": "noise:roll",
    "speed": "channel:change_speed",
    "stretch": "vocoder:stretch_time",
    "telephone": "channel:telephone",
}


def augment(samples: Tensor, ids: Sequence[str], recipe: RecipeConfig, sample_rate: int) -> Tensor:
    """Apply a recipe to prepared samples of equal length.

    Args:
        samples: float32 [batch, n], on any device; it is not changed.
        ids: the utterances' ids, one a row: half of each row's seed.
        recipe: the recipe, the other half: its kind, its parameters and its own seed.
        sample_rate: of the samples, in Hz.

    Returns:
        float32 [batch, m], on the same device; m differs from n where the recipe changes the tempo.
    """
    return next(changed for _, changed in augment_all(samples, ids, [recipe], sample_rate))


def augment_all(
    samples: Tensor,
    ids: Sequence[str],
    recipes: Sequence[RecipeConfig],
    sample_rate: int,
    powers: list[Tensor] | None = None,
) -> Iterator[tuple[RecipeConfig, Tensor]]:
    """As :func:`augment`, for several recipes: steps that several chains begin with are taken once.

    Args:
        samples: float32 [batch, n].
        ids: the utterances' ids.
        recipes: what is wanted.
        sample_rate: of the samples, in Hz.
        powers: where a recipe transforms the samples themselves, it leaves the power of their frames here (see
            :func:`transforms`), in pieces of [some, frames, bins].

    Yields:
        Each recipe with its samples.
    """
    from kubevox.features.augmentation.chance import Chance

    on_cpu = samples.device.type == "cpu"
    taken: dict[str, Tensor] = {}
    for recipe in recipes:
        changed = samples
        past: list[Any] = []
        for step in _steps(recipe):
            past.append(identity(step))
            key = canonical_json(past)
            if key not in taken:
                # The steps before count: noise on its own and noise after another pitch are drawn independently.
                shared = {"powers": powers} if powers == [] and len(past) == 1 and transforms(step) else {}
                with one_thread() if on_cpu else contextlib.nullcontext():
                    taken[key] = _function(step.kind)(changed, step, Chance(ids, past), sample_rate, **shared)
            changed = taken[key]
        yield recipe, changed


def transforms(recipe: RecipeConfig) -> bool:
    """Whether the recipe begins with a Fourier transform of the samples' frames, of 2048 samples every 512."""
    return _steps(recipe)[:1] != [] and _HOMES[_steps(recipe)[0].kind].startswith("vocoder:")


def recipe_version(recipe: RecipeConfig) -> list[int]:
    """The versions of the code of the recipe's steps: equal recipes and versions give equal samples."""
    return [_VERSIONS[step.kind] for step in _steps(recipe)]


def _steps(recipe: RecipeConfig) -> list:
    if isinstance(recipe, OriginalRecipe):
        return []
    return list(recipe.steps) if isinstance(recipe, ChainRecipe) else [recipe]


def _function(kind: str) -> Callable[..., Tensor]:
    module, _, name = _HOMES[kind].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
