"""eSpeak NG through ctypes: text in, samples out, and nothing remembered in between.

The library comes with the package ``espeakng-loader`` (GPL-3; the extra ``kubevox[synthetic]``) and is loaded only when
something is to be said. It keeps state between utterances that its interface cannot reset, such as the position in its
table of pitch flutter and the count of glottal cycles, so that the same sentence sounds different the second time.
:func:`speak` therefore maps the library afresh for every utterance and unmaps it afterwards, which takes less than a
millisecond: what it returns depends on its arguments alone, in any order and in any process.
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import functools
import importlib.metadata
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kubevox.errors import CorpusError

__all__ = ["SAMPLE_RATE", "Setting", "engine_version", "speak"]

SAMPLE_RATE = 22_050
_PACKAGE = "espeakng-loader"

# Names and values of the C interface (speak_lib.h).
_SYNCHRONOUS, _DO_NOT_EXIT = 2, 0x8000
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7
_CHARACTERS, _UTF8 = 1, 1
_VOLUME_BELOW_LIMITER = 50
_LONGEST_DATA_PATH = 140  # the engine silently cuts longer ones off, at 160 bytes with its own additions

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_lock = threading.Lock()  # one mapped library serves the whole process


@dataclass(frozen=True)
class Setting:
    """The engine's own parameters for one utterance.

    Attributes:
        rate: words a minute, 80 to 450; 175 is the engine's normal.
        pitch: 0 to 99; 50 is the voice's own, 50 steps are an octave.
        range: 0 (monotone) to 99; 50 is the voice's own pitch range, and the scale is proportional.
        word_gap: pause between words, in units of 10 ms at the normal rate.
    """

    rate: int = 175
    pitch: int = 50
    range: int = 50
    word_gap: int = 0


def engine_version() -> str:
    """The version of the package that carries the engine and its voices; the library is not loaded for it.

    Raises:
        CorpusError: the package is not installed.
    """
    try:
        return importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise CorpusError(
            f"corpus synthetic: the speech engine is not installed (Python package {_PACKAGE}); "
            "install the extra `kubevox[synthetic]`"
        ) from None


def speak(text: str, voice: str, setting: Setting) -> npt.NDArray[np.int16]:
    """Speak a text.

    Args:
        text: one sentence; its last character (``.``, ``?`` or ``!``) chooses the intonation.
        voice: a language and one of the engine's voice variants, such as ``da+f3``.
        setting: rate, pitch and pauses.

    Returns:
        int16 [samples] at :data:`SAMPLE_RATE`.

    Raises:
        CorpusError: the engine is missing, damaged or in use, does not have the voice, or says nothing.
    """
    pieces: list[bytes] = []

    def receive(samples: int | None, count: int, _: int | None) -> int:
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = _Callback(receive)  # kept in a variable: C holds no reference to it
    with _lock, _fresh_library() as library:
        _start(library)
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise CorpusError(f"corpus synthetic: eSpeak NG has no voice {voice!r}")
        for parameter, value in (
            (_RATE, setting.rate),
            (_VOLUME, _VOLUME_BELOW_LIMITER),
            (_PITCH, setting.pitch),
            (_RANGE, setting.range),
            (_WORD_GAP, setting.word_gap),
        ):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        line = text.encode()
        size = ctypes.c_size_t(len(line) + 1)
        status = library.espeak_Synth(line, size, 0, _CHARACTERS, 0, _UTF8, None, None)
        library.espeak_Terminate()
    if status != 0 or not pieces:
        raise CorpusError(f"corpus synthetic: eSpeak NG could not say {text!r} with voice {voice!r} (status {status})")
    return np.frombuffer(b"".join(pieces), dtype="<i2")


@contextlib.contextmanager
def _fresh_library() -> Iterator[Any]:
    path = _library_path()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise CorpusError(f"corpus synthetic: the speech engine {path} cannot be loaded ({error})") from None
    try:
        # Before its initialisation a library that was really mapped afresh knows no sample rate.
        if library.espeak_ng_GetSampleRate() != 0:
            raise CorpusError(
                f"corpus synthetic: another part of this process holds the speech engine {path}, so that its output "
                "would not be reproducible; make the corpus in a process of its own"
            )
        yield library
    finally:
        _unmap(library)


def _unmap(library: Any) -> None:
    # ctypes itself never lets go of a library.
    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


def _start(library: Any) -> None:
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(_data_path()), _DO_NOT_EXIT)
    if rate != SAMPLE_RATE:
        raise CorpusError(
            f"corpus synthetic: the speech engine does not start with its data in {_data_path()} (it answers {rate}, "
            f"not {SAMPLE_RATE} Hz); reinstall {_PACKAGE}"
        )


@functools.cache
def _library_path() -> str:
    engine_version()
    import espeakng_loader

    return espeakng_loader.get_library_path()


@functools.cache
def _data_path() -> str:
    import espeakng_loader

    path = espeakng_loader.get_data_path()
    if len(os.fsencode(path)) <= _LONGEST_DATA_PATH:
        return path
    link = Path(_short_folder().name) / "espeak-ng-data"
    link.symlink_to(path, target_is_directory=True)
    return str(link)


@functools.cache
def _short_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kubevox-espeak-")
