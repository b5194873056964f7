"""Randomness that belongs to an utterance and a recipe, and to nothing else.

A counter-based generator: the i-th number is a hash of i and of a key made from (utterance id, recipe). So there is no
state to carry, any batch in any order on any device draws the same integers, and a GPU draws them in parallel. (Normal
deviates take a logarithm and a sine, so there devices may differ in the last bit of float32.)
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kubevox.provenance import canonical_json

__all__ = ["Chance"]


class Chance:
    """Draws for a batch of utterances under one recipe.

    Args:
        ids: the utterances, one a row.
        recipe: what else the draws depend on: a recipe's values, as JSON would have them.
    """

    def __init__(self, ids: Sequence[str], recipe: object) -> None:
        text = canonical_json(recipe).encode()
        self._digests = [hashlib.sha256(id.encode() + b"\0" + text).digest() for id in ids]

    def uniform(self, draw: int, low: float = 0.0, high: float = 1.0) -> list[float]:
        """One number from [low, high) for each utterance: [batch].

        Args:
            draw: which of the utterance's numbers; those of different draws are independent. Below 1000.
            low: the least.
            high: the bound that is not reached.
        """
        words = (hashlib.sha256(digest + draw.to_bytes(2, "big")).digest()[:8] for digest in self._digests)
        return [low + (high - low) * (int.from_bytes(word, "big") >> 11) / 2**53 for word in words]

    def integer(self, draw: int, count: int) -> list[int]:
        """One whole number from 0 to ``count`` - 1 for each utterance: [batch]."""
        return [min(int(share * count), count - 1) for share in self.uniform(draw)]

    def normal(self, samples: int, device: torch.device, stream: int = 0) -> Tensor:
        """Standard normal deviates, float32 [batch, samples].

        Box and Muller's transform (1958) of uniform 16-bit numbers, two of which come from one hash: 4 billion pairs of
        values, none beyond 4.9.

        Args:
            samples: how many for each utterance.
            device: where.
            stream: those of different streams are independent.
        """
        half = (samples + 1) // 2
        keys = [hashlib.sha256(digest + b"normal" + stream.to_bytes(2, "big")).digest() for digest in self._digests]
        words = np.array([struct.unpack(">II", key[:8]) for key in keys], np.uint32)
        counter = np.arange(half, dtype=np.uint32)
        rows = torch.empty(len(words), 2 * half, device=device)
        if device.type != "cpu":
            on_device = torch.from_numpy(counter.view(np.int32)).to(device)
            first, second = torch.from_numpy(words.view(np.int32)).to(device).split(1, dim=1)
            _normal_pairs(_hash(on_device, first, second), rows[:, :half], rows[:, half:])
            return rows[:, :samples]
        # A row at a time: on a CPU the last bits of vectorised functions may depend on where in memory a row begins.
        for (first, second), row in zip(words, rows, strict=True):
            bits = torch.from_numpy(_hash(counter, first, second).view(np.int32))
            _normal_pairs(bits, row[:half], row[half:])
        return rows[:, :samples]


def _normal_pairs(bits: Tensor, cosines: Tensor, sines: Tensor) -> None:
    """Fill two tensors with normal deviates out of as many times 32 bits, int32."""
    # Neither 0 nor 1, but all 65536 numbers between that are as far apart.
    radius = (bits & 0xFFFF).to(torch.float32).add_(0.5).mul_(2.0**-16).log_().mul_(-2.0).sqrt_()
    angle = (bits >> 16).to(torch.float32).mul_(2.0 * math.pi * 2.0**-16)
    torch.mul(angle.cos(), radius, out=cosines)
    torch.mul(angle.sin_(), radius, out=sines)


def _hash(counter: Any, first: Any, second: Any) -> Any:
    """32 bits for each counter: a keyed bijection that changes half of the bits when one changes.

    The rounds and constants are C. Wellons' ``lowbias32`` ("Prospecting for hash functions", 2018); the key's first
    word goes in before and its second between the two multiplications.

    Args:
        counter: uint32 [n], an array; or int32 [n], a tensor on whose device the same bits come out.
        first: the key's first word, of the same type; as a tensor one for each row, [batch, 1].
        second: its second.
    """
    x = counter + first
    x ^= _shifted(x, 16)
    x *= _word(x, 0x7FEB352D)
    x ^= _shifted(x, 15)
    x += second
    x *= _word(x, 0x846CA68B)
    x ^= _shifted(x, 16)
    return x


def _shifted(x: Any, by: int) -> Any:
    # Torch's integers are signed: what is shifted in is taken out again.
    return x >> np.uint32(by) if isinstance(x, np.ndarray) else (x >> by) & (0xFFFFFFFF >> by)


def _word(x: Any, word: int) -> Any:
    """The word as the numbers in ``x`` are: torch's are signed, and wrap around alike."""
    return np.uint32(word) if isinstance(x, np.ndarray) else word - (1 << 32) if word >= 1 << 31 else word
