"""Batches: what came into a dataset when, and which of them a window keeps.

A version's rows come in batches: the corpora that it began with, and what was added since. ``dataset.json`` has each
batch with counts of its own, so that it can be dropped again without a recording being read.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubevox.errors import ConfigError, StorageError, ValidationError

__all__ = ["BASE", "Window", "check_name", "date_of", "describe", "merge"]

BASE = "ingest"
"""The batch that ingest makes."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SUMMED = ("found", "left_out", "forgotten", "stored", "failed")
_COUNTED = ("name", *_SUMMED, "speakers", "labels", "passed_over", "options", "synthetic")


@dataclass(frozen=True)
class Window:
    """What a dataset keeps of its batches, for training that goes on; whole batches are dropped, oldest first.

    Attributes:
        max_age_days: batches that are older go.
        max_utterances: the oldest go until there are no more recordings than that; the newest stays in any case.
        keep_first: whether the batch that the dataset began with stays, however old it is.
    """

    max_age_days: int | None = None
    max_utterances: int | None = None
    keep_first: bool = False

    def kept(self, batches: Sequence[Mapping[str, Any]], today: datetime.date | None = None) -> list[Mapping[str, Any]]:
        """The batches that stay, in their order.

        Args:
            batches: as ``dataset.json`` has them, in the order in which they were added.
            today: from when ages are counted; None: the day it is, in UTC.

        Raises:
            ConfigError: neither an age nor a number is given.
            ValidationError: none of them would stay.
        """
        if self.max_age_days is None and self.max_utterances is None:
            raise ConfigError("a window needs a limit: max_age_days, max_utterances, or both")
        today = today or datetime.datetime.now(datetime.UTC).date()
        dropped: set[str] = set()
        by_age = sorted(batches, key=date_of)
        droppable = [batch for batch in by_age if not (self.keep_first and batch is batches[0])]
        if self.max_age_days is not None:
            oldest = (today - datetime.date.min).days
            first_day = today - datetime.timedelta(days=min(self.max_age_days, oldest))
            dropped |= {batch["name"] for batch in droppable if date_of(batch) < first_day}
        if self.max_utterances is not None:
            total = sum(batch["utterances"] for batch in batches if batch["name"] not in dropped)
            for batch in droppable:
                if total > self.max_utterances and batch["name"] not in dropped and batch is not by_age[-1]:
                    dropped.add(batch["name"])
                    total -= batch["utterances"]
        kept = [batch for batch in batches if batch["name"] not in dropped]
        if not kept:
            newest = by_age[-1]
            raise ValidationError(
                f"a window of {self.max_age_days} days leaves nothing: the newest batch, {newest['name']!r}, is of "
                f"{date_of(newest)}; allow more days, or keep the first batch"
            )
        return kept


def check_name(batch: str) -> None:
    """Refuse a name that could not stand in a source id.

    Raises:
        ConfigError: it has other characters than small letters, digits, dots, dashes and underscores.
    """
    if not _NAME.fullmatch(batch):
        raise ConfigError(
            f"batch {batch!r}: a batch's name is made of small letters, digits, '.', '-' and '_', such as batch-02"
        )


def date_of(batch: Mapping[str, Any]) -> datetime.date:
    """The day that a batch was recorded on, or added where nobody said when it was recorded."""
    return datetime.date.fromisoformat((batch.get("recorded") or batch["added"])[:10])


def describe(
    name: str,
    counts: Sequence[Mapping[str, Any]],
    added: str,
    key: str,
    recorded: datetime.date | None = None,
) -> dict[str, Any]:
    """A batch as ``dataset.json`` has it.

    Args:
        name: the batch's.
        counts: of its corpora, with what became of the recordings.
        added: when, ISO 8601 in UTC.
        key: of the survey that it was made of; the same sources have the same.
        recorded: the day of the recordings, where it is known.

    Returns:
        ``name``, ``added``, ``recorded``, ``utterances`` (stored rows), ``corpora`` (their names), ``counts``, ``key``.
    """
    return {
        "name": name,
        "added": added,
        "recorded": recorded.isoformat() if recorded else None,
        "utterances": sum(count["stored"] for count in counts),
        "corpora": [count["name"] for count in counts],
        "counts": [{column: count[column] for column in _COUNTED} for count in counts],
        "key": key,
    }


def merge(
    batches: Sequence[Mapping[str, Any]],
    described: Sequence[Mapping[str, Any]],
    speakers: Mapping[str, int],
) -> list[dict[str, Any]]:
    """The corpora's counts over some batches: sums of what each batch has.

    Args:
        batches: the batches.
        described: corpora with title, licence and so on, among which each that a batch names is found.
        speakers: how many people are heard in what several batches have of a corpus; the same people may be in each.

    Raises:
        StorageError: a batch does not tell its counts.
    """
    about = {corpus["name"]: corpus for corpus in described}
    merged: dict[str, dict[str, Any]] = {}
    for batch in batches:
        if "counts" not in batch:
            raise StorageError(f"batch {batch['name']!r}: made by an older version, without counts; ingest again")
        for count in batch["counts"]:
            name = count["name"]
            if name not in merged:
                merged[name] = {**about[name], **count}
                continue
            so_far = merged[name]
            sums = {column: so_far[column] + count[column] for column in _SUMMED}
            counters = {
                column: dict(sorted((Counter(so_far[column]) + Counter(count[column])).items()))
                for column in ("labels", "passed_over")
            }
            either = {"synthetic": so_far["synthetic"] or count["synthetic"], "options": count["options"]}
            merged[name] = {**so_far, **sums, **counters, **either, "speakers": speakers.get(name, 0)}
    return list(merged.values())
