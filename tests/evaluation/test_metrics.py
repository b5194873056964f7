"""Metrics against scikit-learn's, and where there is nothing to measure."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from kubevox.evaluation import metrics

CLASSES = 5
PAIRS = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=80)


def columns(pairs):
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


@given(PAIRS)
def test_the_figures_are_those_of_scikit_learn(pairs):
    truth, predicted = columns(pairs)
    confusion = metrics.confusion_matrix(truth, predicted, CLASSES)
    assert (confusion == reference.confusion_matrix(truth, predicted, labels=range(CLASSES))).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's remarks on absent classes
        assert metrics.accuracy(confusion) == pytest.approx(reference.accuracy_score(truth, predicted))
        assert metrics.uar(confusion) == pytest.approx(reference.balanced_accuracy_score(truth, predicted))
        assert metrics.macro_f1(confusion) == pytest.approx(reference.f1_score(truth, predicted, average="macro"))
        assert metrics.mcc(confusion) == pytest.approx(reference.matthews_corrcoef(truth, predicted), abs=1e-12)
        recall = reference.recall_score(truth, predicted, labels=range(CLASSES), average=None, zero_division=np.nan)
        precision = reference.precision_score(
            truth, predicted, labels=range(CLASSES), average=None, zero_division=np.nan
        )
    np.testing.assert_allclose(metrics.recalls(confusion), recall)
    np.testing.assert_allclose(metrics.precisions(confusion), precision)


@given(PAIRS, st.integers(0, CLASSES - 1), st.integers(2, 9))
def test_uar_does_not_change_when_a_class_grows(pairs, grown, times):
    truth, predicted = columns(pairs)
    repeats = np.where(truth == grown, times, 1)
    before = metrics.confusion_matrix(truth, predicted, CLASSES)
    after = metrics.confusion_matrix(truth.repeat(repeats), predicted.repeat(repeats), CLASSES)
    assert metrics.uar(after) == pytest.approx(metrics.uar(before))


@given(PAIRS)
def test_one_answer_to_everything_is_worth_chance(pairs):
    truth, _ = columns(pairs)
    confusion = metrics.confusion_matrix(truth, np.full_like(truth, truth[0]), CLASSES)
    assert metrics.uar(confusion) == pytest.approx(1 / len(set(truth.tolist())))
    assert metrics.mcc(confusion) == 0


@given(st.lists(PAIRS, min_size=1, max_size=4))
def test_many_matrices_at_once_give_what_each_gives_alone(tests):
    confusions = np.stack([metrics.confusion_matrix(*columns(pairs), CLASSES) for pairs in tests])
    for figure in (metrics.accuracy, metrics.uar, metrics.macro_f1, metrics.mcc, metrics.recalls, metrics.precisions):
        np.testing.assert_array_equal(figure(confusions), np.stack([figure(matrix) for matrix in confusions]))


def test_a_class_without_a_true_utterance_has_no_recall_and_no_part_in_uar():
    confusion = metrics.confusion_matrix([0, 0, 1, 1], [0, 0, 1, 2], 3)
    np.testing.assert_array_equal(metrics.recalls(confusion), [1, 0.5, np.nan])
    np.testing.assert_array_equal(metrics.precisions(confusion), [1, 1, 0])
    assert metrics.uar(confusion) == 0.75


def test_without_utterances_figures_are_not_numbers():
    nothing = np.zeros((3, 3), dtype=int)
    assert np.isnan(metrics.accuracy(nothing))
    assert np.isnan(metrics.uar(nothing))


@pytest.mark.parametrize(
    ("truth", "predicted", "problem"),
    [([0, 1], [0], "same length"), ([0, 3], [0, 0], "outside 0 to 2"), ([0, 0], [-1, 0], "outside 0 to 2")],
)
def test_indices_that_do_not_fit_are_refused(truth, predicted, problem):
    with pytest.raises(ValueError, match=problem):
        metrics.confusion_matrix(truth, predicted, 3)


def test_what_is_not_square_is_no_confusion_matrix():
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        metrics.uar(np.ones((2, 3)))


def test_calibration_error_of_a_worked_example():
    # Ten answers at 0.95, nine right: a gap of 0.05. Ten at 0.55, five right: also 0.05.
    probabilities = np.array([[0.95, 0.05]] * 10 + [[0.55, 0.45]] * 10)
    truth = np.array([0] * 9 + [1] + [0] * 5 + [1] * 5)
    table = metrics.reliability(probabilities, truth, bins=10)
    assert metrics.expected_calibration_error(table) == pytest.approx(0.05)
    assert [(entry.count, entry.accuracy) for entry in table if entry.count] == [(10, 0.5), (10, 0.9)]


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    table = metrics.reliability(np.array([[0.5, 0.5], [1.0, 0.0]]), [0, 0], bins=2)
    assert [entry.count for entry in table] == [1, 1]


@given(st.integers(0, 10_000), st.integers(2, 20))
@settings(max_examples=30)
def test_every_prediction_is_in_one_bin_and_the_error_is_a_share(seed, bins):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    probabilities = rng.dirichlet(np.ones(4), size=count)
    truth = rng.integers(0, 4, count)
    table = metrics.reliability(probabilities, truth, bins)
    assert sum(entry.count for entry in table) == count
    assert 0 <= metrics.expected_calibration_error(table) <= 1
    for entry in table:
        if entry.confidence is not None:
            assert entry.low < entry.confidence <= entry.high + 1e-12


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_with_one_bin_the_error_is_the_gap_between_mean_confidence_and_accuracy(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(3), size=40)
    truth = rng.integers(0, 3, 40)
    gap = abs(probabilities.max(axis=1).mean() - (probabilities.argmax(axis=1) == truth).mean())
    assume(gap > 1e-6)
    error = metrics.expected_calibration_error(metrics.reliability(probabilities, truth, 1))
    assert error == pytest.approx(gap)
