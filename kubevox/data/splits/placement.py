"""Which speaker goes where: shares that hold over all speakers, with labels, corpora and sexes as even as can be.

What is placed is a group: a speaker with all utterances, or a single utterance whose speaker nobody names. How many
groups each part gets is apportioned over all of them first, then over the corpora and then over the labels of a corpus,
each time by the largest remainder, so that many small corpora together still give each part its share. Which groups
they are is the best of a few hundred seeded draws.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kubevox.data.dataset import Utterance

__all__ = ["Labelled", "group_of", "in_order_of_content", "place"]

Labelled = tuple[Utterance, str]
Part = TypeVar("Part")
_Floats = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.int64]

_QUOTAS = 30  # ways to round the shares that are tried
_DRAWS = 10  # draws of groups for each of them
_PLACINGS = 400_000  # of groups by all draws together: with very many groups a few draws are even already
_FEWEST_QUOTAS = 3
_JITTER = 0.25  # remainders closer than this are tried in either order
_EXACT = 1e-9  # what rounding may leave of a remainder that is none


def group_of(utterance: Utterance) -> str:
    """What must stay in one part: the speaker, or the recording itself where the speaker is not known."""
    return utterance.speaker or f"utterance:{utterance.id}"


def in_order_of_content(labelled: Sequence[Labelled]) -> list[str]:
    """The groups, by the least id of their recordings.

    Speakers' names are pseudonyms, which differ from key to key. The ids are hashes of the audio: the same recordings
    are divided alike wherever they are, under whatever key.
    """
    first: dict[str, str] = {}
    for utterance, _ in labelled:
        name = group_of(utterance)
        first[name] = min(utterance.id, first.get(name, utterance.id))
    return sorted(first, key=lambda name: (first[name], name))


def place(
    labelled: Sequence[Labelled],
    shares: Mapping[Part, float],
    previous: Mapping[str, Part],
    seed: int,
    covered: Collection[Part] = (),
) -> dict[str, Part]:
    """Place groups: those in ``previous`` stay, new ones fill the shares.

    As far as there are groups enough, every part gets one, and one of every label whose speakers have no other label (a
    language, say); where there are not, the last part comes first.

    Args:
        labelled: utterances with their labels.
        shares: of the groups, for each part; they sum to 1. The last part takes what rounding leaves.
        previous: where groups (of any dataset) were placed before.
        seed: of the draws.
        covered: parts that are not empty even without these groups.

    Returns:
        Every group of ``labelled`` and its part. The order of ``labelled`` does not matter.
    """
    groups = _Groups.of(labelled)
    parts = list(shares)
    placed = np.array([parts.index(previous[n]) if n in previous else -1 for n in groups.names], dtype=np.int64)
    if (placed < 0).any():
        wanted = np.array([shares[part] for part in parts])
        filled = np.array([part in covered for part in parts])
        placed = _search(groups, placed, wanted, filled, random.Random(f"{seed}"))
    return {name: parts[part] for name, part in zip(groups.names, placed.tolist(), strict=True)}


@dataclass(frozen=True, eq=False)
class _Groups:
    """What is to be placed.

    Attributes:
        names: of the groups, in the order of their content.
        strata: (corpus, label) of the groups with one label, (corpus, "") of those with several.
        stratum: int [G], each group's place in ``strata``.
        alone: labels whose groups all have no other, with their places in ``strata``.
        profile: float [G, K], how many utterances of each label, corpus and sex a group has.
        weights: float [K], how much it matters that they are even.
        labels: bool [K], which of them are labels.
    """

    names: list[str]
    strata: list[tuple[str, str]]
    stratum: _Counts
    alone: dict[str, list[int]]
    profile: _Floats
    weights: _Floats
    labels: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, labelled: Sequence[Labelled]) -> _Groups:
        names = in_order_of_content(labelled)
        row = {name: i for i, name in enumerate(names)}
        keys = sorted({key for utterance, label in labelled for key in _keys(utterance, label)})
        column = {key: i for i, key in enumerate(keys)}
        profile = np.zeros((len(names), len(keys)))
        heard: dict[str, set[str]] = defaultdict(set)
        corpora: dict[str, str] = {}
        for utterance, label in labelled:
            name = group_of(utterance)
            for key in _keys(utterance, label):
                profile[row[name], column[key]] += 1
            heard[name].add(label)
            corpora[name] = min(utterance.corpus, corpora.get(name, utterance.corpus))
        of_group = [(corpora[name], min(heard[name]) if len(heard[name]) == 1 else "") for name in names]
        strata = sorted(set(of_group))
        place_of = {stratum: i for i, stratum in enumerate(strata)}
        mixed: set[str] = set().union(*(labels for labels in heard.values() if len(labels) > 1))
        alone: dict[str, list[int]] = defaultdict(list)
        for i, (_, label) in enumerate(strata):
            if label and label not in mixed:
                alone[label].append(i)
        return cls(
            names,
            strata,
            np.array([place_of[stratum] for stratum in of_group], dtype=np.int64),
            dict(sorted(alone.items())),
            profile,
            np.array([1.0 if kind == "label" else 0.5 for kind, _ in keys]),
            np.array([kind == "label" for kind, _ in keys]),
        )


def _keys(utterance: Utterance, label: str) -> tuple[tuple[str, str], ...]:
    return ("label", label), ("corpus", utterance.corpus), ("sex", str(utterance.sex))


def _search(
    groups: _Groups, placed: _Counts, wanted: _Floats, filled: npt.NDArray[np.bool_], rng: random.Random
) -> _Counts:
    """The most even of many placements; int [G], as ``placed`` with -1 (not yet) replaced."""
    strata = range(len(groups.strata))
    free = [np.flatnonzero((groups.stratum == i) & (placed < 0)).tolist() for i in strata]
    have = np.array([np.bincount(placed[(groups.stratum == i) & (placed >= 0)], minlength=len(wanted)) for i in strata])
    best, least = placed, np.inf
    for _ in range(max(_FEWEST_QUOTAS, min(_QUOTAS, _PLACINGS // (_DRAWS * len(groups.names))))):
        quotas = _quotas(groups, [len(members) for members in free], have, wanted, filled, rng)
        for _ in range(_DRAWS):
            candidate = placed.copy()
            for members, quota in zip(free, quotas, strict=True):
                rng.shuffle(members)
                candidate[members] = np.repeat(np.arange(len(wanted)), quota)
            cost = _unevenness(groups, candidate, wanted)
            if cost < least:
                best, least = candidate, cost
    return best


def _quotas(
    groups: _Groups,
    free: Sequence[int],
    have: _Counts,
    wanted: _Floats,
    filled: npt.NDArray[np.bool_],
    rng: random.Random,
) -> _Counts:
    """How many of the free groups of each stratum go to each part; int [S, P], rows sum to ``free``."""
    left = np.array(free)
    # What each part still lacks of its share, in each stratum and over all.
    lacking = np.maximum(0.0, np.outer(left + have.sum(axis=1), wanted) - have)
    lacking_over_all = np.maximum(0.0, (left.sum() + have.sum()) * wanted - have.sum(axis=0))
    empty = ~filled & (have.sum(axis=0) == 0)
    quotas = np.zeros_like(have)
    last = len(wanted) - 1
    for part in range(last):
        total = int(left.sum())
        exact = left * np.array([_share(row, part) for row in lacking])
        uncovered = _uncovered(groups, part, left, have + quotas)
        # What a rare label gets beyond its share is not taken from the others.
        beyond = sum(max(0.0, 1.0 - float(exact[places].sum())) for places in uncovered)
        need = max(round(total * _share(lacking_over_all, part) + beyond), len(uncovered), int(empty[part]))
        reserved = int(empty[part + 1 :].sum())
        if empty[part] and total <= reserved:  # too few for all: the last part comes first
            reserved = int(empty[last])
        need = max(0, min(need, total - reserved))
        quotas[:, part] = _apportion_strata(groups, exact, left, need, uncovered, rng)
        left = left - quotas[:, part]
    quotas[:, last] = left
    return quotas


def _share(lacking: _Floats, part: int) -> float:
    """A part's share among itself and the parts that come after it."""
    rest = float(lacking[part:].sum())
    return float(lacking[part]) / rest if rest else 0.0


def _uncovered(groups: _Groups, part: int, left: _Counts, have: _Counts) -> list[list[int]]:
    """The strata of each label that the part has nobody of, as far as the last part is left one."""
    return [
        places
        for places in groups.alone.values()
        if not have[places, part].any() and left[places].sum() > (0 if have[places, -1].any() else 1)
    ]


def _apportion_strata(
    groups: _Groups, exact: _Floats, most: _Counts, total: int, uncovered: Sequence[list[int]], rng: random.Random
) -> _Counts:
    """Whole numbers near ``exact`` that sum to ``total``: right for each corpus, then for each label; int [S]."""
    corpora = sorted({corpus for corpus, _ in groups.strata})
    corpus_of = np.array([corpora.index(corpus) for corpus, _ in groups.strata])
    of_corpora: _Floats = np.bincount(corpus_of, exact, len(corpora)).astype(np.float64)
    most_of_corpora = np.bincount(corpus_of, most, len(corpora)).astype(np.int64)
    numbers = _apportion(of_corpora, np.zeros_like(most_of_corpora), most_of_corpora, total, rng)
    least = np.zeros_like(most)
    slots = numbers.copy()
    # The label with the fewest corpora that may still give somebody chooses first.
    for places in sorted(uncovered, key=lambda places: int((slots[corpus_of[places]] > 0).sum())):
        able = [i for i in places if most[i] > 0]
        giving = [i for i in able if slots[corpus_of[i]] > 0]
        chosen = max(giving or able, key=lambda i: (exact[i], rng.random()))
        if not giving:  # its corpus gives one more, and another one less
            if not slots.any():
                break
            numbers[corpus_of[chosen]] += 1
            slots[corpus_of[chosen]] += 1
            other = max(np.flatnonzero(slots * (np.arange(len(slots)) != corpus_of[chosen])), key=lambda c: slots[c])
            numbers[other] -= 1
            slots[other] -= 1
        least[chosen] = 1
        slots[corpus_of[chosen]] -= 1
    result = np.zeros_like(most)
    for corpus, number in enumerate(numbers):
        some = np.flatnonzero(corpus_of == corpus)
        result[some] = _apportion(exact[some], least[some], most[some], int(number), rng)
    return result


def _apportion(exact: _Floats, least: _Counts, most: _Counts, total: int, rng: random.Random) -> _Counts:
    """Whole numbers near ``exact``, between ``least`` and ``most``, that sum to ``total`` where that can be."""
    numbers = np.clip(np.floor(exact + _EXACT).astype(np.int64), least, most)
    while numbers.sum() != total:
        step = 1 if numbers.sum() < total else -1
        movable = np.flatnonzero(numbers < most if step > 0 else numbers > 0)
        if not len(movable):
            break
        # Below what the labels need only where nothing else is left.
        soft = [i for i in movable if step > 0 or numbers[i] > least[i]] or movable
        jitter = {i: rng.random() * _JITTER for i in soft}
        numbers[max(soft, key=lambda i: step * (exact[i] - numbers[i]) + jitter[i])] += step
    return numbers


def _unevenness(groups: _Groups, candidate: _Counts, wanted: _Floats) -> float:
    """How far labels, corpora and sexes are from the shares; a label that a part does not see costs most."""
    parts = np.arange(len(wanted))
    filled = (candidate == parts[:, None]).astype(np.float64) @ groups.profile
    deviation = np.abs(filled / groups.profile.sum(axis=0) - wanted[:, None])
    # A label that a part never sees cannot be scored there; one that training never sees cannot be learnt.
    unseen = ((filled == 0) & groups.labels).sum(axis=1)
    cost = (deviation * groups.weights).sum() + 10.0 * unseen.sum() + 90.0 * unseen[-1]
    return round(float(cost), 9)  # so that the order of a sum does not decide
