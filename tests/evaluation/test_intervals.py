"""Bootstrap intervals over speakers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.evaluation import metrics
from kubevox.evaluation.intervals import estimate, estimates, resample, speaker_confusions

CLASSES = 4
ROWS = st.lists(
    st.tuples(
        st.integers(0, CLASSES - 1),
        st.integers(0, CLASSES - 1),
        st.one_of(st.none(), st.sampled_from("abcdef")),
    ),
    min_size=1,
    max_size=60,
)


def split_columns(rows):
    return [[row[i] for row in rows] for i in range(3)]


def interval(truth, predicted, speakers, statistic=metrics.uar, samples=500, seed=0):
    confusions = speaker_confusions(truth, predicted, speakers, CLASSES)
    return estimate(statistic, confusions.sum(axis=0), resample(confusions, samples, seed))


@given(ROWS)
@settings(max_examples=60)
def test_an_interval_holds_its_figure(rows):
    for statistic in (metrics.uar, metrics.accuracy, metrics.macro_f1, metrics.mcc):
        found = interval(*split_columns(rows), statistic=statistic, samples=100)
        assert found.low <= found.value <= found.high


@given(ROWS)
def test_speakers_matrices_add_up_to_the_whole(rows):
    truth, predicted, speakers = split_columns(rows)
    confusions = speaker_confusions(truth, predicted, speakers, CLASSES)
    assert (confusions.sum(axis=0) == metrics.confusion_matrix(truth, predicted, CLASSES)).all()
    assert len(confusions) == len(set(speakers) - {None}) + speakers.count(None)


@given(ROWS, st.randoms())
@settings(max_examples=40)
def test_the_order_of_the_utterances_does_not_matter(rows, random):
    before = interval(*split_columns(rows), samples=100)
    random.shuffle(rows)
    assert interval(*split_columns(rows), samples=100) == before


def test_the_seed_decides():
    rng = np.random.default_rng(0)
    data = rng.integers(0, CLASSES, 200), rng.integers(0, CLASSES, 200), [f"s{i % 9}" for i in range(200)]
    assert interval(*data, seed=1) == interval(*data, seed=1)
    assert interval(*data, seed=1) != interval(*data, seed=2)


def test_draws_are_whole_speakers_as_many_as_there_are():
    # Speaker i has 10^i utterances, all right: a draw's total tells who was drawn.
    sizes = [1, 10, 100]
    truth = np.zeros(111, dtype=int)
    speakers = [f"s{i}" for i, size in enumerate(sizes) for _ in range(size)]
    totals = resample(speaker_confusions(truth, truth, speakers, CLASSES), 400, 0).sum(axis=(1, 2))
    assert {sum(map(int, str(total))) for total in totals.tolist()} == {3}
    assert totals.mean() == pytest.approx(111, rel=0.15)


def test_merging_equal_speakers_draws_from_the_same_distribution():
    """The drawing by kinds of speakers against the plain one, index by index."""
    rng = np.random.default_rng(3)
    confusions = rng.integers(0, 2, size=(12, 2, 2))
    plain = np.stack([confusions[rng.integers(0, 12, 12)].sum(axis=0) for _ in range(4000)])
    quick = resample(confusions, 4000, 5)
    np.testing.assert_allclose(quick.mean(axis=0), plain.mean(axis=0), rtol=0.05)
    np.testing.assert_allclose(quick.std(axis=0), plain.std(axis=0), rtol=0.08)


def test_an_interval_over_speakers_is_wider_than_one_over_utterances():
    """Half of the speakers are always understood, the others never: utterances are no independent evidence."""
    speakers = [f"s{i // 50}" for i in range(400)]
    truth = np.arange(400) % 2
    predicted = np.where(np.arange(400) // 50 % 2, truth, 1 - truth)
    by_speaker = interval(truth, predicted, speakers)
    by_utterance = interval(truth, predicted, [None] * 400)
    assert by_speaker.high - by_speaker.low > 3 * (by_utterance.high - by_utterance.low)


def test_a_95_percent_interval_covers_the_truth_about_that_often():
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(150):
        skills = rng.beta(6, 4, size=25)  # their mean is 0.6
        right = (rng.random((25, 20)) < skills[:, None]).ravel()
        truth = np.tile(np.arange(20) % 2, 25)
        found = interval(
            truth, np.where(right, truth, 1 - truth), [f"s{i // 20}" for i in range(500)], samples=300, seed=trial
        )
        hits += found.low <= 0.6 <= found.high
    assert 0.88 <= hits / 150 <= 0.99


def test_thousands_of_utterances_without_a_speaker_are_quick():
    import time

    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 7, 20_000), rng.integers(0, 7, 20_000)
    started = time.perf_counter()
    confusions = speaker_confusions(truth, predicted, [None] * 20_000, 7)
    estimate(metrics.uar, confusions.sum(axis=0), resample(confusions, 2000, 0))
    assert time.perf_counter() - started < 3


def test_a_class_that_does_not_occur_has_no_estimate():
    confusions = speaker_confusions([0, 1, 1], [0, 1, 0], ["a", "a", "b"], 3)
    found = estimates(metrics.recalls, confusions.sum(axis=0), resample(confusions, 100, 0))
    assert found[2] is None
    assert found[1] is not None
    assert found[1].value == 0.5


def test_a_single_speaker_gives_an_interval_of_no_width():
    found = interval([0, 1], [0, 0], ["a", "a"])
    assert found.low == found.value == found.high


def test_speakers_and_utterances_must_be_as_many():
    with pytest.raises(ValueError, match="1 speakers for 2 utterances"):
        speaker_confusions([0, 1], [0, 1], ["a"], 2)
