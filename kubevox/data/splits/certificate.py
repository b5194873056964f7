"""What is checked of a split, and what a reader of its figures should know.

The same function writes a certificate and checks it again: whatever it says is found anew in the rows, the dataset and
the assignment log, or the split is refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kubevox.config import SplitConfig, TaskConfig
from kubevox.data.splits.placement import group_of
from kubevox.data.splits.protocols import SHARED_SENTENCES, SPLITS, Row, SplitName, kept_partition

__all__ = ["FEWEST_SPEAKERS", "examine"]

FEWEST_SPEAKERS = 2
"""Of a label in a split: with fewer, the label and the voice cannot be told apart."""


def examine(
    rows: Sequence[Row],
    task: TaskConfig,
    config: SplitConfig,
    log: Mapping[str, str | int],
    left_out: Mapping[str, int],
) -> dict[str, Any]:
    """The findings of a certificate.

    A check's ``passed`` is None where it was looked at and reported but not asked for, or where nobody can know.

    Args:
        rows: of the split.
        task: whose labels the rows have.
        config: the protocol.
        log: where groups were placed, as the assignment log says.
        left_out: why labelled utterances are not in the split, to how many they are.

    Returns:
        ``checks`` (``name``, ``passed``, ``detail``), ``warnings`` (sentences), ``single_corpus_labels`` (label to
        corpus, where there are others), ``unverified_corpora`` (corpus to recordings that name no speaker), and by
        split the counts of ``speakers``, ``utterances``, ``corpora`` and ``labels``.
    """
    anonymous = Counter(row.utterance.corpus for row in rows if not row.utterance.speaker)
    wordless = Counter(row.utterance.corpus for row in rows if not row.utterance.text)
    labels = {split: Counter(row.label for row in rows if row.split == split) for split in SPLITS}
    corpora = {split: Counter(row.utterance.corpus for row in rows if row.split == split) for split in SPLITS}
    speakers = _by_split((row.utterance.speaker, row) for row in rows)
    single = _single_corpus_labels(rows, task)
    return {
        "checks": [
            _speaker_check(speakers),
            *([_unverified_check(rows, anonymous, config)] if anonymous else []),
            {
                "name": "audio-disjoint",
                "passed": not _overlap(_by_split((row.utterance.id, row) for row in rows)),
                "detail": "no recording, by its decoded audio, is in two splits",
            },
            _sentence_check(rows, config, left_out.get(SHARED_SENTENCES, 0)),
            *([_wordless_check(wordless)] if wordless and config.disjoint_sentences else []),
            _partition_check(rows, config),
            *([_corpus_check(rows, config)] if config.held_out else []),
            _log_check(rows, config, log),
            _label_check(labels, task),
            {
                "name": "seal",
                "passed": True,
                "detail": "the hash that names the split is over its rows, and the certificate has a hash of itself",
            },
        ],
        "warnings": _warnings(rows, task, labels, single),
        "single_corpus_labels": single,
        "unverified_corpora": dict(sorted(anonymous.items())),
        "speakers": {split: len(speakers[split]) for split in SPLITS},
        "utterances": {split: sum(labels[split].values()) for split in SPLITS},
        "corpora": {split: dict(sorted(corpora[split].items())) for split in SPLITS},
        "labels": {split: {label: labels[split][label] for label in task.labels} for split in SPLITS},
    }


def _speaker_check(speakers: Mapping[str, set[str]]) -> dict[str, Any]:
    shared, count = _overlap(speakers), len(set().union(*speakers.values()))
    detail = f"{count} speakers, {len(shared) or 'none'} in two splits" if count else "no corpus names its speakers"
    return {"name": "speaker-disjoint", "passed": not shared if count else None, "detail": detail}


def _unverified_check(rows: Sequence[Row], anonymous: Mapping[str, int], config: SplitConfig) -> dict[str, Any]:
    kept = Counter(
        row.utterance.corpus
        for row in rows
        if not row.utterance.speaker and kept_partition(row.utterance, config) == row.split
    )
    named = ", ".join(
        f"{corpus} ({count} recordings without a speaker"
        + (f", {kept[corpus]} in their published partition)" if kept[corpus] else ")")
        for corpus, count in sorted(anonymous.items())
    )
    return {"name": "speaker-disjoint: unverified", "passed": None, "detail": named}


def _sentence_check(rows: Sequence[Row], config: SplitConfig, dropped: int) -> dict[str, Any]:
    shared = len(_overlap(_by_split((row.utterance.text, row) for row in rows)))
    if config.disjoint_sentences:
        detail = f"{dropped} recordings left out so that no sentence is in two splits"
        known = any(row.utterance.text for row in rows)
        return {"name": "sentence-disjoint", "passed": not shared if known else None, "detail": detail}
    detail = f"not asked for: {shared} sentences occur in more than one split"
    return {"name": "sentence-disjoint", "passed": None, "detail": detail}


def _wordless_check(wordless: Mapping[str, int]) -> dict[str, Any]:
    named = ", ".join(f"{corpus} ({count} recordings without a text)" for corpus, count in sorted(wordless.items()))
    return {"name": "sentence-disjoint: unverified", "passed": None, "detail": named}


def _partition_check(rows: Sequence[Row], config: SplitConfig) -> dict[str, Any]:
    name = "published-partitions"
    published = Counter(row.utterance.corpus for row in rows if row.utterance.partition)
    if not published:
        return {"name": name, "passed": None, "detail": "no recording has a published partition"}
    # A corpus that is held out is test as a whole, whatever its own test set is.
    wanted = [(row, kept_partition(row.utterance, config)) for row in rows if row.utterance.corpus != config.held_out]
    kept = Counter(row.utterance.corpus for row, partition in wanted if partition)
    moved = sum(1 for row, partition in wanted if partition and partition != row.split)
    said = [f"{corpus}: {kept[corpus]} of {count} recordings" for corpus, count in sorted(published.items())]
    detail = "kept for " + ", ".join(said) + (f"; {moved} of them are elsewhere" if moved else "")
    return {"name": name, "passed": not moved if kept else None, "detail": detail}


def _corpus_check(rows: Sequence[Row], config: SplitConfig) -> dict[str, Any]:
    strayed = sum(1 for row in rows if (row.split == "test") != (row.utterance.corpus == config.held_out))
    detail = f"the test split is all of {config.held_out} and nothing else"
    return {
        "name": "corpus-held-out",
        "passed": not strayed,
        "detail": detail if not strayed else f"{strayed} recordings are on the wrong side of {config.held_out}",
    }


def _log_check(rows: Sequence[Row], config: SplitConfig, log: Mapping[str, str | int]) -> dict[str, Any]:
    moved = set()
    # Folds, and what lies beside a corpus that is held out, are logged for those only who are placed.
    kept = {group_of(row.utterance) for row in rows if kept_partition(row.utterance, config)}
    for row in rows:
        where = row.fold if config.protocol == "kfold" else row.split
        if where is None or (config.held_out and (row.split == "test" or group_of(row.utterance) in kept)):
            continue
        if log.get(group_of(row.utterance), where) != where:
            moved.add(group_of(row.utterance))
    detail = f"{len(moved)} are elsewhere, such as {min(moved)}" if moved else "everyone is where the log has them"
    return {"name": "assignment-log", "passed": not moved, "detail": detail}


def _label_check(labels: Mapping[SplitName, Mapping[str, int]], task: TaskConfig) -> dict[str, Any]:
    missing = [
        f"{split} has no {', '.join(absent)}"
        for split in SPLITS
        if (absent := [label for label in task.labels if not labels[split].get(label)])
    ]
    # A label that is not trained on is refused before there is a certificate; others are told.
    passed = False if any(not labels["train"].get(label) for label in task.labels) else None if missing else True
    return {
        "name": "label-coverage",
        "passed": passed,
        "detail": "; ".join(missing) or f"each of the {len(task.labels)} labels is in every split",
    }


def _single_corpus_labels(rows: Sequence[Row], task: TaskConfig) -> dict[str, str]:
    """Labels that one of several corpora has alone, with that corpus."""
    sources: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        sources[row.label].add(row.utterance.corpus)
    if len(set().union(*sources.values())) < 2:
        return {}
    return {label: min(sources[label]) for label in task.labels if len(sources[label]) == 1}


def _warnings(
    rows: Sequence[Row],
    task: TaskConfig,
    labels: Mapping[SplitName, Mapping[str, int]],
    single: Mapping[str, str],
) -> list[str]:
    said = []
    if single:
        named = ", ".join(f"{label} ({corpus})" for label, corpus in single.items())
        said.append(f"labels that a single corpus has: {named}; a model can learn the channel instead of the label")
    for split in SPLITS:
        if absent := [label for label in task.labels if not labels[split].get(label)]:
            said.append(f"{split} has no recording of {', '.join(absent)}")
        heard: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row.split == split:
                heard[row.label].add(group_of(row.utterance))
        few = [f"{label} ({len(heard[label])})" for label in task.labels if 0 < len(heard[label]) < FEWEST_SPEAKERS]
        if few:
            said.append(f"{split} has fewer than {FEWEST_SPEAKERS} speakers of {', '.join(few)}")
    return said


def _by_split(things: Iterable[tuple[str | None, Row]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {split: set() for split in SPLITS}
    for thing, row in things:
        if thing:
            found[row.split].add(thing)
    return found


def _overlap(sets: Mapping[str, set[str]]) -> set[str]:
    first, second, third = (sets[split] for split in SPLITS)
    return (first & second) | (first & third) | (second & third)
