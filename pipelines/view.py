"""What a person sees of a local run: a line a stage, a moving one where a stage takes long, the rest in a log.

KFP's local runner prints its own log and everything that the steps print to one stream. :class:`RunView` stands in for
that stream: it keeps all of it in a file, and shows the events that the library emits (see ``kubevox.progress``).
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from kubevox.progress import parse_event

__all__ = ["RunView", "StageResult", "last_result"]

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Executing task '([^']+)'")
_ENDED = re.compile(r"Task '([^']+)' finished with status (\w+)")
_USER_ERROR = re.compile(r"^kubevox\.errors\.\w+: (.*)$")
_ANY_ERROR = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?:: .*)?$")
_BAR = "━"
StageResult = dict[str, Any]


def last_result(results: list[StageResult], stage: str) -> StageResult | None:
    """The last result of a stage, or None where it did not run to its end."""
    return next((result for result in reversed(results) if result["stage"] == stage), None)


class RunView(io.TextIOBase):
    """A text stream for the local runner to print to.

    Args:
        log: the file that keeps every line.
        out: where the person looks.

    Attributes:
        results: what the stages said at their end, in order: the event's fields with ``stage`` and ``seconds``.
        failed: the name of the first task that failed, or None. Tasks that do not need it may still run after it.
        error: that task's user error in one line, or None where the failure was none of the user's.
        unexpected: the last line of its last other traceback, or None.
    """

    def __init__(self, log: Path, out: TextIO = sys.stdout) -> None:
        self.results: list[StageResult] = []
        self.failed: str | None = None
        self.error: str | None = None
        self.unexpected: str | None = None
        self._log = log.open("w", encoding="utf-8")
        self._out = out
        self._live = out.isatty()
        self._partial = ""
        self._since: dict[str, float] = {}
        self._moving = False
        self._announced = 0.0

    def writable(self) -> bool:  # noqa: D102
        return True

    def write(self, text: str) -> int:
        """Take text as it comes; whole lines are read."""
        self._partial += text
        *lines, self._partial = self._partial.split("\n")
        for line in lines:
            self._read(_ANSI.sub("", line))
        return len(text)

    def close(self) -> None:
        """End the log."""
        if not self._log.closed:
            if self._partial:
                self.write("\n")
            self._log.close()

    def result(self, stage: str) -> StageResult | None:
        """The last result of a stage, or None where it did not run to its end."""
        return last_result(self.results, stage)

    def _read(self, line: str) -> None:
        self._log.write(line + "\n")
        self._log.flush()
        event = parse_event(line)
        if event is not None:
            self._show(event)
        elif started := _STARTED.search(line):
            # KFP numbers the second use of a component: train-2.
            stage = re.sub(r"-\d+$", "", started[1]).replace("-", "_")
            self._since[stage] = time.monotonic()
            self._move(f"{self._title(stage)}…")
        elif ended := _ENDED.search(line):
            if self.failed is None and ended[2] != "SUCCESS":
                self.failed = ended[1]
            elif self.failed is None:  # whatever it said, it went on
                self.error = self.unexpected = None
        elif self.failed is None:
            stripped = line.strip()
            if error := _USER_ERROR.match(stripped):
                self.error = error[1]
            elif unexpected := _ANY_ERROR.match(stripped):
                self.unexpected = unexpected[0]

    def _show(self, event: dict[str, Any]) -> None:
        if event["kind"] == "progress":
            done, total = event["done"], max(1, event["total"])
            figures = "".join(f"  {key} {value}" for key, value in event["figures"].items())
            filled = round(20 * done / total)
            bar = _BAR * filled + " " * (20 - filled)
            self._move(f"{self._title(event['task'])}{bar} {done}/{total} {event['unit']}{figures}", event["task"])
        elif event["kind"] == "note":
            self._print(f"  {'':18}{event['message']}")
        elif event["kind"] == "result":
            stage, fields = event["stage"], event["fields"]
            seconds = time.monotonic() - self._since.get(stage, time.monotonic())
            self.results.append({"stage": stage, "seconds": round(seconds, 2), **fields})
            reused = "reused: " if fields.get("reused") else ""
            self._print(f"{self._title(stage)}{reused}{fields.get('summary', '')}  ({seconds:.1f} s)")

    def _title(self, stage: str) -> str:
        return f"  {stage.replace('_', ' '):18}"

    def _move(self, line: str, stage: str | None = None) -> None:
        """Redraw the moving line; in a plain log, say it every ten seconds."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._out.write(f"\r\x1b[2K{line[:width]}")
            self._out.flush()
            self._moving = True
        elif stage and time.monotonic() - max(self._announced, self._since.get(stage, 0.0)) > 10:
            self._announced = time.monotonic()
            self._print(line)

    def _print(self, line: str) -> None:
        if self._moving:
            self._out.write("\r\x1b[2K")
            self._moving = False
        self._out.write(line + "\n")
        self._out.flush()
