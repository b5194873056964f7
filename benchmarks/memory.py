"""The peak memory of a process and its workers."""

from __future__ import annotations

import threading
from pathlib import Path

__all__ = ["Peak"]


class Peak:
    """The greatest sum of proportional set sizes of a process and its children, in bytes.

    Args:
        pid: the process.
        every_s: how often it is read; that costs some milliseconds, and holds the process up meanwhile.
    """

    def __init__(self, pid: int, every_s: float = 0.05) -> None:
        self._pid, self._every_s, self._peak, self._over = pid, every_s, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """End the watch; the greatest sum that was seen."""
        self._over.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._peak = max(self._peak, sum(map(_pss, [self._pid, *_children(self._pid)])))


def _children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [child for first in map(int, found) for child in (first, *_children(first))]


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
