"""The protocols: which utterances are test, validation and train.

``holdout`` places speakers by shares. ``kfold`` places them in folds, of which one is test and the next one
validation. ``leave_one_corpus_out`` tests on a whole corpus. ``published`` keeps every partition that a corpus'
publication has, and places the others as the hold-out does.

A published partition is also kept, by every protocol, where nobody knows who speaks: to divide such recordings anew
would put unknown speakers on both sides, while the corpus' authors knew them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from kubevox.config import SplitConfig, TaskConfig
from kubevox.data.dataset import Utterance
from kubevox.data.splits.assignments import assign, log_name
from kubevox.data.splits.placement import Labelled, group_of, in_order_of_content, place
from kubevox.errors import SplitError

__all__ = ["SHARED_SENTENCES", "SPLITS", "Division", "Row", "SplitName", "assign_speakers", "divide", "kept_partition"]

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
SHARED_SENTENCES = "sentences of another split"
"""Why a recording is left out where sentences must be disjoint."""


@dataclass(frozen=True)
class Row:
    """An utterance of a split, its label, and where it is; the fold is None where it is in none."""

    utterance: Utterance
    label: str
    split: SplitName
    fold: int | None = None


@dataclass(frozen=True)
class Division:
    """What a protocol made of the labelled utterances.

    Attributes:
        rows: those that are in the split.
        left_out: why others are not, in a few words, to how many they are.
    """

    rows: list[Row]
    left_out: dict[str, int] = field(default_factory=dict)


def kept_partition(utterance: Utterance, config: SplitConfig) -> SplitName | None:
    """The published partition that an utterance is to be in, or None where it is to be placed.

    Partitions are kept where the speaker is not known, unless ``split.published`` says otherwise, and all of them with
    the protocol ``published`` or where ``split.published`` is ``keep``.
    """
    wanted = config.published == "keep" or config.protocol == "published"
    if utterance.partition is None or config.published == "ignore" or (utterance.speaker and not wanted):
        return None
    return cast(SplitName, utterance.partition)


def divide(labelled: Sequence[Labelled], task: TaskConfig, config: SplitConfig, store: str) -> Division:
    """Divide labelled utterances by the protocol that is configured, and log who was placed where.

    Raises:
        SplitError: too few speakers, a corpus that is not there, or a published partition that shares speakers with
            another.
    """
    protocols = {
        "holdout": _holdout,
        "published": _holdout,
        "kfold": _kfold,
        "leave_one_corpus_out": _leave_one_corpus_out,
    }
    if config.protocol == "published" and not any(utterance.partition for utterance, _ in labelled):
        raise SplitError(
            f"split.protocol published: no accepted recording has a published partition (corpora: {_corpora(labelled)})"
            "; set it to holdout"
        )
    division = protocols[config.protocol](labelled, task, config, store)
    return _without_shared_sentences(division) if config.disjoint_sentences else division


def assign_speakers(
    labelled: Sequence[Labelled],
    config: SplitConfig,
    previous: Mapping[str, SplitName],
    covered: Sequence[SplitName] = (),
) -> dict[str, SplitName]:
    """Place speakers for the hold-out: those in ``previous`` stay, new ones fill the shares.

    Args:
        labelled: utterances with their labels.
        config: shares and seed.
        previous: where speakers (of any dataset) were placed before.
        covered: splits that are not empty even without these speakers.

    Returns:
        Every speaker (or lone utterance) of ``labelled`` and its split.

    Raises:
        SplitError: fewer than three speakers.
    """
    if not covered:
        _refuse_few(labelled, 3, f"a split needs at least 3 speakers, one for each of {', '.join(SPLITS)}")
    shares: dict[SplitName, float] = {
        "test": config.test_share,
        "validation": config.validation_share,
        "train": 1 - config.test_share - config.validation_share,
    }
    return place(labelled, shares, previous, config.seed, covered)


def _holdout(labelled: Sequence[Labelled], task: TaskConfig, config: SplitConfig, store: str) -> Division:
    kept = _kept_groups(labelled, config)
    others = [pair for pair in labelled if group_of(pair[0]) not in kept]

    def decide(previous: Mapping[str, SplitName]) -> dict[str, SplitName]:
        _refuse_moved(kept, previous)
        return kept | assign_speakers(others, config, previous, sorted(set(kept.values())))

    assigned = assign(store, log_name(task, config), decide)
    return Division(_with_folds([Row(u, label, assigned[group_of(u)]) for u, label in labelled], config))


def _kfold(labelled: Sequence[Labelled], task: TaskConfig, config: SplitConfig, store: str) -> Division:
    kept = _kept_groups(labelled, config)
    others = [pair for pair in labelled if group_of(pair[0]) not in kept]
    _refuse_few(others, config.folds, f"{config.folds} folds need at least {config.folds} speakers")
    shares = dict.fromkeys(range(config.folds), 1 / config.folds)
    folds = assign(store, log_name(task, config), lambda previous: place(others, shares, previous, config.seed))
    of_fold: dict[int, SplitName] = dict.fromkeys(range(config.folds), "train")
    of_fold |= {config.fold: "test", (config.fold + 1) % config.folds: "validation"}
    rows = []
    for utterance, label in labelled:
        if (group := group_of(utterance)) in kept:
            rows.append(Row(utterance, label, kept[group]))
        else:
            rows.append(Row(utterance, label, of_fold[folds[group]], folds[group]))
    return Division(rows)


def _leave_one_corpus_out(labelled: Sequence[Labelled], task: TaskConfig, config: SplitConfig, store: str) -> Division:
    held_out = [pair for pair in labelled if pair[0].corpus == config.held_out]
    rest = [pair for pair in labelled if pair[0].corpus != config.held_out]
    if not held_out or not rest:
        why = "all accepted recordings are of it" if held_out else "no accepted recording is of it"
        raise SplitError(
            f"split.held_out = {config.held_out!r}: {why} (corpora: {_corpora(labelled)}); "
            + ("add a corpus to train on" if held_out else "name one of these corpora")
        )
    tested = {utterance.speaker for utterance, _ in held_out} - {None}
    strangers = [pair for pair in rest if pair[0].speaker not in tested]
    kept = _kept_groups(strangers, config)
    # What is published as a test set is never trained on, and here the test is another corpus.
    usable = [pair for pair in strangers if kept.get(group_of(pair[0])) != "test"]
    others = [pair for pair in usable if group_of(pair[0]) not in kept]
    covered = sorted({kept[group_of(u)] for u, _ in usable if group_of(u) in kept})
    if not covered:
        _refuse_few(others, 2, "beside the corpus held out, a split needs at least 2 speakers, to train and validate")
    shares: dict[SplitName, float] = {"validation": config.validation_share, "train": 1 - config.validation_share}

    def decide(previous: Mapping[str, SplitName]) -> dict[str, SplitName]:
        return place(others, shares, previous, config.seed, covered)

    assigned = kept | assign(store, log_name(task, config), decide)
    left_out = {
        "published test partitions of other corpora": len(strangers) - len(usable),
        "speakers of the held-out corpus in other corpora": len(rest) - len(strangers),
    }
    rows = [Row(u, label, assigned[group_of(u)]) for u, label in usable]
    rows += [Row(u, label, "test") for u, label in held_out]
    return Division(_with_folds(rows, config), {why: count for why, count in left_out.items() if count})


def _kept_groups(labelled: Sequence[Labelled], config: SplitConfig) -> dict[str, SplitName]:
    """The groups whose published partition is kept; a speaker's other recordings go with it."""
    found: dict[str, set[SplitName]] = defaultdict(set)
    for utterance, _ in labelled:
        if partition := kept_partition(utterance, config):
            found[group_of(utterance)].add(partition)
    if torn := sorted(group for group, partitions in found.items() if len(partitions) > 1):
        partitions = " and ".join(split for split in SPLITS if split in found[torn[0]])
        remedy = "set split.published to ignore" if config.protocol != "published" else "use another split.protocol"
        raise SplitError(
            f"the published partitions share {len(torn)} of {len(found)} speakers, such as {torn[0]} ({partitions}); "
            f"{remedy}"
        )
    return {group: partitions.pop() for group, partitions in found.items()}


def _refuse_moved(kept: Mapping[str, SplitName], previous: Mapping[str, SplitName]) -> None:
    if moved := sorted(group for group, split in kept.items() if previous.get(group, split) != split):
        raise SplitError(
            f"{len(moved)} speakers or recordings whose published partition is to be kept are in another split since "
            f"an earlier run, such as {moved[0]} (published {kept[moved[0]]}, placed {previous[moved[0]]}); use a "
            "fresh store, or set split.published to ignore"
        )


def _refuse_few(labelled: Sequence[Labelled], least: int, why: str) -> None:
    groups = sorted({group_of(utterance) for utterance, _ in labelled})
    if len(groups) < least:
        raise SplitError(f"{why}; the accepted recordings have {len(groups)}: {', '.join(groups) or 'none'}")


def _corpora(labelled: Sequence[Labelled]) -> str:
    return ", ".join(sorted({utterance.corpus for utterance, _ in labelled})) or "none"


def _with_folds(rows: Sequence[Row], config: SplitConfig) -> list[Row]:
    """Speaker-disjoint folds over what is not test: the next largest speaker goes to the emptiest fold."""
    sizes = Counter(group_of(row.utterance) for row in rows if row.split != "test")
    filled = [0] * config.folds
    folds: dict[str, int] = {}
    ordered = in_order_of_content([(row.utterance, row.label) for row in rows if row.split != "test"])
    for name in sorted(ordered, key=lambda name: -sizes[name]):  # stable: equal sizes stay in that order
        folds[name] = filled.index(min(filled))
        filled[folds[name]] += sizes[name]
    return [Row(row.utterance, row.label, row.split, folds.get(group_of(row.utterance))) for row in rows]


def _without_shared_sentences(division: Division) -> Division:
    """Leave out of training and validation what is said in a later split; test sentences stay."""
    heard = {split: {row.utterance.text for row in division.rows if row.split == split} for split in SPLITS}
    heard["validation"] -= heard["test"]
    forbidden: dict[SplitName, set[str | None]] = {
        "train": (heard["validation"] | heard["test"]) - {None},
        "validation": heard["test"] - {None},
        "test": set(),
    }
    rows = [row for row in division.rows if row.utterance.text not in forbidden[row.split]]
    dropped = len(division.rows) - len(rows)
    return Division(rows, division.left_out | ({SHARED_SENTENCES: dropped} if dropped else {}))
