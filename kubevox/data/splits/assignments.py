"""Where groups were placed: logs of immutable entries, so that a speaker once assigned stays.

``<store>/assignments/<log>/<number>.json`` holds what one run added; a later entry only adds groups that no earlier one
names. The hold-out has the task's name as its log. Each other protocol has logs of its own, one for every setting that
makes another division: folds of one number and seed, the corpora beside one that is held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from kubevox import storage
from kubevox.config import SplitConfig, TaskConfig
from kubevox.provenance import canonical_json

__all__ = ["assign", "log_name", "read_log"]

Part = TypeVar("Part")


def log_name(task: TaskConfig, config: SplitConfig) -> str:
    """The log that a protocol's assignments of a task are kept in."""
    match config.protocol:
        case "kfold":
            return f"{task.name}.kfold-{config.folds}-{config.seed}"
        case "leave_one_corpus_out":
            return f"{task.name}.without-{config.held_out}-{config.seed}"
        case "published":
            return f"{task.name}.published-{config.seed}"
        case _:
            return task.name


def read_log(store: str, log: str) -> dict[str, Any]:
    """Every group that a log names, and its part: a split's name, or a fold's number.

    Raises:
        StorageError: an entry is damaged, or the store does not answer.
    """
    return _read(store, log)[0]


def assign(store: str, log: str, decide: Callable[[Mapping[str, Part]], dict[str, Part]]) -> dict[str, Part]:
    """Place groups and log those that are new; where another run logged first, its word stands and it is done again.

    Args:
        store: a folder or ``s3://bucket/prefix``.
        log: as :func:`log_name` gives it.
        decide: from what the log says to the parts of all groups; it leaves logged groups where they are.

    Returns:
        What ``decide`` gave at last.
    """
    while True:
        previous, entries = _read(store, log)
        assigned = decide(previous)
        new = {name: part for name, part in assigned.items() if name not in previous}
        if not new:
            return assigned
        entry = storage.join(store, "assignments", log, f"{entries:06d}.json")
        if storage.create(entry, canonical_json(new).encode()):
            return assigned


def _read(store: str, log: str) -> tuple[dict[str, Any], int]:
    folder = storage.join(store, "assignments", log)
    names = storage.list_names(folder)
    logged: dict[str, Any] = {}
    for name in names:
        for group, part in storage.read_json(storage.join(folder, name)).items():
            logged.setdefault(group, part)
    return logged, len(names)
