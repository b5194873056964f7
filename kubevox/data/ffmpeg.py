"""M4A through the program ``ffmpeg``, where that is installed; the library itself holds no decoder for it.

The program gets a file that no name inside it can lead out of, and limits of its own: it reads no terminal and no
network, writes to a pipe that is not read past a bound, and is ended with its children when its time is over.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from kubevox.errors import AudioError

__all__ = ["decode_isobmff"]

TIMEOUT_S = 30.0
_KEPT_ERRORS = 4_096
# What it needs of the environment: where libraries and temporary files are, and no secrets.
_ENVIRONMENT = ("HOME", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TMPDIR")


def decode_isobmff(data: bytes, name: str, most_s: float, most_bytes: int) -> bytes:
    """The first sound track of an MP4 file (AAC or ALAC in M4A) as a WAV file of 32-bit floats.

    Args:
        data: the file's bytes.
        name: what to call the recording in errors.
        most_s: where to stop, in seconds.
        most_bytes: the most that the decoded file may take.

    Raises:
        AudioError: ``no_decoder``, where there is no ``ffmpeg``; ``too_long``; ``truncated``, where it fails.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise AudioError(
            "no_decoder",
            f"{name}: M4A is decoded by ffmpeg, which is not on the PATH; install it, or convert to WAV or FLAC",
        )
    # Not through a pipe: what describes the samples may stand behind them.
    with tempfile.TemporaryDirectory(prefix="kubevox-m4a-") as folder:
        source = Path(folder) / "source.m4a"
        source.write_bytes(data)
        arguments = [program, "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror", "-threads", "1"]
        # The container is named, so that no playlist is taken for one; a file may be read, and nothing else.
        arguments += ["-protocol_whitelist", "file", "-f", "mov", "-err_detect", "explode", "-i", str(source)]
        arguments += ["-map", "0:a:0", "-vn", "-sn", "-dn", "-map_metadata", "-1", "-t", f"{most_s:.3f}"]
        arguments += ["-f", "wav", "-bitexact", "-c:a", "pcm_f32le", "pipe:1"]
        decoded, words = _run(arguments, folder, name, most_bytes)
    if words is not None:
        raise AudioError("truncated", f"{name}: damaged or incomplete ({words.replace(str(source), 'ffmpeg')})")
    return decoded


def _run(arguments: list[str], folder: str, name: str, most_bytes: int) -> tuple[bytes, str | None]:
    """What the program writes, and what it complains of where it fails."""
    environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
    deadline = time.monotonic() + TIMEOUT_S
    output, complaints = bytearray(), bytearray()
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise AudioError("no_decoder", f"{name}: {arguments[0]} cannot be run ({error.strerror})") from None
    with process, selectors.DefaultSelector() as selector:
        try:
            selector.register(process.stdout, selectors.EVENT_READ, output)  # type: ignore[arg-type]
            selector.register(process.stderr, selectors.EVENT_READ, complaints)  # type: ignore[arg-type]
            while selector.get_map():
                for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                    block = os.read(key.fd, 1 << 16)
                    if not block:
                        selector.unregister(key.fileobj)
                    elif key.data is output or len(complaints) < _KEPT_ERRORS:
                        key.data.extend(block)
                if len(output) > most_bytes:
                    raise AudioError("too_long", f"{name}: ffmpeg makes more of it than {most_bytes} bytes")
                if time.monotonic() >= deadline:
                    raise subprocess.TimeoutExpired(arguments, TIMEOUT_S)
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AudioError("truncated", f"{name}: ffmpeg did not decode it within {TIMEOUT_S:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if status == 0:
        return bytes(output), None
    lines = bytes(complaints[:_KEPT_ERRORS]).decode(errors="replace").strip().splitlines()
    return b"", " ".join(lines[-1].split()) if lines else f"ffmpeg ended with status {status}"
