"""Caps: how many recordings are kept, and whose."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubevox.data.corpora.base import Recording
from kubevox.data.corpora.caps import cap, class_of

CAP = st.none() | st.integers(1, 40)


def clip(number: int, speaker: str | None, label: str | None, language: str | None = "fo") -> Recording:
    return Recording(f"c:{number:03d}.wav", bytes, f"{number}", speaker=speaker, raw_label=label, language=language)


@st.composite
def corpora(draw: st.DrawFn) -> list[Recording]:
    speakers = st.sampled_from([None, "c:1", "c:2", "c:3", "c:4"])
    labels = st.sampled_from(["angry", "happy", None])
    pairs = draw(st.lists(st.tuples(speakers, labels), max_size=40))
    return [clip(number, speaker, label) for number, (speaker, label) in enumerate(pairs)]


def ids(recordings: list[Recording]) -> list[str]:
    return [recording.source_id for recording in recordings]


@given(corpus=corpora(), total=CAP, each=CAP, seed=st.integers(0, 9))
def test_no_cap_is_exceeded_and_every_recording_is_kept_or_counted(corpus, total, each, seed):
    kept, left_out = cap(corpus, total, each, seed)
    held = Counter(map(class_of, kept))
    if total is not None:
        assert len(kept) <= total
    if each is not None:
        assert max(held.values(), default=0) <= each
    assert held + Counter(left_out) == Counter(map(class_of, corpus))
    assert all(left_out.values())


@given(corpus=corpora(), total=CAP, each=CAP, seed=st.integers(0, 9))
def test_a_cap_leaves_out_no_more_than_it_must(corpus, total, each, seed):
    kept, _ = cap(corpus, total, each, seed)
    sizes = Counter(map(class_of, corpus)).values()
    possible = sum(size if each is None else min(size, each) for size in sizes)
    assert len(kept) == (possible if total is None else min(possible, total))


@given(corpus=corpora(), total=CAP, each=CAP, order=st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_and_keeps_it(corpus, total, each, order: random.Random):
    shuffled = list(corpus)
    order.shuffle(shuffled)
    kept, left_out = cap(corpus, total, each)
    again, left_out_again = cap(shuffled, total, each)
    assert sorted(ids(kept)) == sorted(ids(again))
    assert left_out == left_out_again
    assert ids(kept) == [name for name in ids(corpus) if name in set(ids(kept))]
    assert ids(again) == [name for name in ids(shuffled) if name in set(ids(again))]


@given(corpus=corpora(), small=st.integers(1, 40), more=st.integers(0, 20), each=CAP)
def test_a_smaller_cap_keeps_a_part_of_what_a_larger_one_keeps(corpus, small, more, each):
    assert set(ids(cap(corpus, small, each)[0])) <= set(ids(cap(corpus, small + more, each)[0]))
    assert set(ids(cap(corpus, None, small)[0])) <= set(ids(cap(corpus, None, small + more)[0]))


@given(corpus=corpora(), total=st.integers(1, 40))
def test_as_many_speakers_as_possible_are_kept(corpus, total):
    kept, _ = cap(corpus, total)
    assert len({r.speaker for r in kept}) == min(total, len({r.speaker for r in corpus}))


@given(corpus=corpora(), each=st.integers(1, 40))
def test_as_many_speakers_as_possible_are_kept_in_each_class(corpus, each):
    kept, before = defaultdict(set), defaultdict(set)
    for recording in corpus:
        before[class_of(recording)].add(recording.speaker)
    for recording in cap(corpus, None, each)[0]:
        kept[class_of(recording)].add(recording.speaker)
    assert {name: len(found) for name, found in kept.items()} == {
        name: min(each, len(found)) for name, found in before.items()
    }


def test_a_speaker_with_many_clips_gives_no_more_than_the_others():
    corpus = [clip(number, "c:1", "angry") for number in range(90)]
    corpus += [clip(90 + number, f"c:{2 + number // 5}", "angry") for number in range(10)]
    kept, _ = cap(corpus, 9)
    assert Counter(r.speaker for r in kept) == {"c:1": 3, "c:2": 3, "c:3": 3}


def test_another_seed_makes_another_choice():
    corpus = [clip(number, f"c:{number % 5}", "angry") for number in range(60)]
    assert ids(cap(corpus, 20, seed=0)[0]) != ids(cap(corpus, 20, seed=1)[0])
    assert ids(cap(corpus, 20, seed=1)[0]) == ids(cap(corpus, 20, seed=1)[0])


def test_what_is_kept_of_a_corpus_stays_when_another_is_beside_it():
    corpus = [clip(number, f"c:{number % 5}", "angry") for number in range(60)]
    grown = [*corpus, *(clip(100 + number, "d:1", "happy") for number in range(30))]
    alone = set(ids(cap(corpus, None, 10)[0]))
    assert alone == {name for name in ids(cap(grown, None, 10)[0]) if name < "c:100"}


def test_a_recording_without_a_label_counts_as_its_language():
    corpus = [clip(0, None, None, "fo"), clip(1, None, None, "fo"), clip(2, None, None, "da"), clip(3, None, "sad")]
    kept, left_out = cap(corpus, None, 1)
    assert sorted(map(class_of, kept)) == ["da", "fo", "sad"]
    assert left_out == {"fo": 1}


@pytest.mark.parametrize("limit", [None, 3, 10])
def test_a_cap_that_is_not_reached_changes_nothing(limit):
    corpus = [clip(number, "c:1", "angry") for number in range(3)]
    assert cap(corpus, limit, limit) == (corpus, {})
