"""What long work tells the person who waits for it.

On a terminal that is a progress bar. Inside a pipeline step, whose output reaches the person through a pipe, it is one
line an event, which the pipeline's runner reads back and draws (``$KUBEVOX_EVENTS=1``). In a plain log it is a line
every few seconds. The same events carry each stage's closing result, so that a summary rests on what the stages said
and not on guesses about where they left files.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["EVENT_PREFIX", "ProgressBar", "note", "parse_event", "result", "track"]

EVENT_PREFIX = "::kubevox "
_T = TypeVar("_T")


def _events_wanted() -> bool:
    return os.environ.get("KUBEVOX_EVENTS") == "1"


def _emit(kind: str, **fields: Any) -> None:
    sys.stdout.write(f"{EVENT_PREFIX}{json.dumps({'kind': kind, **fields}, default=str)}\n")
    sys.stdout.flush()


def parse_event(line: str) -> dict[str, Any] | None:
    """The event in a line of a stage's output, or None where the line is ordinary text."""
    line = line.strip()
    if not line.startswith(EVENT_PREFIX.strip() + " "):
        return None
    try:
        event = json.loads(line[len(EVENT_PREFIX) :])
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None


def note(message: str) -> None:
    """Tell the person one fact, once."""
    if _events_wanted():
        _emit("note", message=message)
    else:
        sys.stderr.write(f"{message}\n")


def result(stage: str, **fields: Any) -> None:
    """State a stage's closing result (JSON-able fields) for the runner's summary and for log readers."""
    if _events_wanted():
        _emit("result", stage=stage, fields=fields)


class ProgressBar:
    """A counter of finished items; use as a context manager.

    Args:
        description: what is being done, in a word or two.
        total: how many items there are.
        unit: what an item is.
    """

    def __init__(self, description: str, total: int, unit: str = "it") -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self._started = self._last = time.monotonic()
        self._bar = None
        if not _events_wanted() and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=description, unit=unit, leave=False, dynamic_ncols=True)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int = 1, **figures: Any) -> None:
        """Count finished items; ``figures`` are shown beside the bar (for example, the loss)."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            if figures:
                self._bar.set_postfix(figures, refresh=False)
            return
        now = time.monotonic()
        # A pipe is read by the runner, which redraws one line; a log keeps every line, so it gets few.
        if self.done < self.total and now - self._last < (0.3 if _events_wanted() else 5.0):
            return
        self._last = now
        if _events_wanted():
            _emit("progress", task=self.description, done=self.done, total=self.total, unit=self.unit, figures=figures)
        elif now - self._started > 5.0:
            shown = "".join(f"  {key} {value}" for key, value in figures.items())
            sys.stderr.write(f"{self.description}: {self.done}/{self.total} {self.unit}{shown}\n")


def track(items: Iterable[_T], description: str, total: int, unit: str = "it") -> Iterator[_T]:
    """Yield the items, counting them on a progress bar."""
    with ProgressBar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.update()
