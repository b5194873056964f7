"""What the commands share: options, reading what they name, and how they end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from kubevox.errors import AudioError, KubevoxError

if TYPE_CHECKING:
    from kubevox.config import AudioLimits, Config

__all__ = ["DEFAULT_CONFIG", "SetOption", "fail", "load", "read_recording"]

DEFAULT_CONFIG = Path("configs/emotion.yaml")

SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one value, such as train.epochs=5; can be repeated.")
]


def load(file: Path, overrides: list[str] | None) -> Config:
    """The configuration; ends the process with 2 where there is something wrong with it."""
    from kubevox.config import load_config

    try:
        return load_config(file, overrides or [])
    except KubevoxError as error:
        fail(error, 2)


def read_recording(file: Path, limits: AudioLimits) -> bytes:
    """A recording's bytes, of which there are at most as many as the limits allow.

    Raises:
        AudioError: ``unreadable`` or ``too_large``.
    """
    try:
        size = file.stat().st_size
        if size > limits.max_bytes:
            raise AudioError("too_large", f"{file}: {size} bytes, more than the limit of {limits.max_bytes}")
        return file.read_bytes()
    except OSError as error:
        raise AudioError("unreadable", f"{file}: {error.strerror or error}") from None


def fail(error: KubevoxError, code: int = 1) -> NoReturn:
    """Say what is wrong in one line on standard error, and end the process."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)
