"""How a process that computes features treats its threads and its memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

__all__ = ["die_with", "keep_freed_memory", "one_thread"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, up to 256 MB, instead of giving it back to the system at once.

    Every batch takes and frees the same few arrays of some megabytes. By default glibc returns them to the system each
    time, and touching their pages anew takes as long as all of the arithmetic: 540 page faults a recording, and twice
    the time. For processes that do nothing but compute features; where there is no glibc, nothing happens.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, 256 << 20)
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes


def die_with(parent: int) -> None:
    """Have the system end this process when its parent is gone, however that ended.

    A worker that waits for work would not notice: its siblings hold the other end of the pipe open.

    Args:
        parent: the parent's process id.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before that was said
        os._exit(1)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute on one thread, of the calling thread's; others have their own number.

    With more, MKL's transforms end in other last bits.
    """
    import torch

    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
