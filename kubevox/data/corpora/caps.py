"""At most so many recordings of a corpus, or of each of its classes.

One corpus may hold ten times the speech of another: Faroese comes from 71 949 clips of one corpus, where some languages
have a tenth of that. A cap keeps as many speakers as it can, since the tenth clip of a speaker teaches less than the
first clip of another.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable

from kubevox.data.corpora.base import Recording

__all__ = ["cap", "class_of"]

UNLABELLED = "unlabelled"


def class_of(recording: Recording) -> str:
    """What a recording counts as under ``max_per_class``: its raw label, or its language where it has no label."""
    return recording.raw_label or recording.language or UNLABELLED


def cap(
    recordings: Iterable[Recording],
    max_recordings: int | None = None,
    max_per_class: int | None = None,
    seed: int = 0,
) -> tuple[list[Recording], dict[str, int]]:
    """Choose recordings of one corpus, speaker by speaker.

    Every speaker gives one recording before any gives a second; which ones, a hash of seed and source id decides. The
    choice therefore depends neither on the order of the recordings nor on other corpora, and what a smaller cap keeps,
    a larger one keeps as well. (With both caps that holds for ``max_recordings``, which chooses among what
    ``max_per_class`` has kept.) Recordings without a speaker count as one speaker's.

    Args:
        recordings: all recordings of a corpus; source ids are unique.
        max_recordings: at most so many in total; None: no limit.
        max_per_class: at most so many of each class (:func:`class_of`); None: no limit.
        seed: another seed, another choice.

    Returns:
        The recordings kept, in the order in which they came, and how many of each class were left out; classes that
        lost none are not named.
    """
    everything = list(recordings)
    kept = everything
    if max_per_class is not None:
        classes: dict[str, list[Recording]] = defaultdict(list)
        for recording in kept:
            classes[class_of(recording)].append(recording)
        kept = [recording for members in classes.values() for recording in _first(members, max_per_class, seed)]
    if max_recordings is not None:
        kept = _first(kept, max_recordings, seed)
    chosen = {recording.source_id for recording in kept}
    left_out = Counter(class_of(recording) for recording in everything if recording.source_id not in chosen)
    return [recording for recording in everything if recording.source_id in chosen], dict(sorted(left_out.items()))


def _first(recordings: list[Recording], count: int, seed: int) -> list[Recording]:
    """So many recordings of as many speakers as possible."""
    if len(recordings) <= count:
        return recordings
    taken: Counter[str | None] = Counter()
    order = []
    for digest, recording in sorted(
        ((_digest(recording, seed), recording) for recording in recordings), key=lambda pair: pair[0]
    ):
        order.append((taken[recording.speaker], digest, recording))
        taken[recording.speaker] += 1
    order.sort(key=lambda entry: entry[:2])
    return [recording for _, _, recording in order[:count]]


def _digest(recording: Recording, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{recording.source_id}".encode()).digest()
