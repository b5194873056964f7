"""Folders of recordings that come one after the other, all with the same file names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path


def make_arriving(folder: Path, write_wav: Callable[..., Path], names: Iterable[str]) -> Path:
    """A folder a name, each with two speakers and two labels; ann is in all of them, and b1 has a file that is none."""
    for number, name in enumerate(names):
        for label in ("angry", "sad"):
            for speaker in ("ann", f"p{number}"):
                frequency = 200 + 40 * number + (label == "sad") * 7 + (speaker == "ann") * 13
                write_wav(folder / name / label / f"{speaker}_0.wav", 0.1, frequency=frequency)
    (folder / "b1" / "sad" / "p2_9.wav").write_bytes(b"no recording")
    return folder
