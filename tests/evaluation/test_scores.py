"""From predictions to scores."""

import dataclasses
import json

import numpy as np
import pytest

from kubevox.config import EvaluateConfig
from kubevox.evaluation import Cost, Predictions, Scores, score

LABELS = ["angry", "happy", "sad"]
CONFIG = EvaluateConfig(bootstrap_samples=200)


def predictions(truth, predicted, speakers=None, corpora=None, sexes=None, confidence=0.8):
    count = len(truth)
    probabilities = np.full((count, len(LABELS)), (1 - confidence) / (len(LABELS) - 1))
    probabilities[np.arange(count), [LABELS.index(label) for label in predicted]] = confidence
    return Predictions(
        ids=[f"{i:04d}" for i in range(count)],
        truth=truth,
        probabilities=probabilities.astype(np.float32),
        speakers=speakers or [f"c:{i % 4}" for i in range(count)],
        corpora=corpora or ["c"] * count,
        sexes=sexes or ["female"] * count,
    )


def test_the_figures_of_a_worked_example():
    scores = score(predictions(["angry", "angry", "happy", "sad"], ["angry", "sad", "happy", "sad"]), LABELS, CONFIG)
    assert scores.uar.value == pytest.approx(2.5 / 3)
    assert scores.accuracy.value == 0.75
    assert scores.worst == ("angry", 0.5)
    assert scores.confusion == ((1, 0, 1), (0, 1, 0), (0, 0, 1))
    assert scores.support == {"angry": 2, "happy": 1, "sad": 1}
    assert scores.precision == {"angry": 1.0, "happy": 1.0, "sad": 0.5}
    assert scores.calibration_error == pytest.approx(0.05, abs=1e-6)  # 0.8 sure, 0.75 right
    assert scores.chance_uar == pytest.approx(1 / 3)


def test_scores_survive_json_unchanged():
    scores = score(
        predictions(["angry", "angry", "happy"], ["angry", "happy", "happy"], speakers=["c:1", None, "c:2"]),
        LABELS,
        CONFIG,
    )
    assert Scores.from_dict(json.loads(json.dumps(scores.to_dict(), allow_nan=False))) == scores
    cost = Cost(1000, 1.5, 2.5)
    assert Cost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost


def test_an_absent_label_is_said_and_left_out_of_uar():
    scores = score(predictions(["angry", "happy"] * 4, ["angry", "angry"] * 4), LABELS, CONFIG)
    assert scores.uar.value == 0.5
    assert scores.chance_uar == 0.5
    assert scores.recall["sad"] is None
    assert scores.absent_labels == ["sad"]
    assert "No test recording is labelled sad" in scores.caveats[0]


def test_few_speakers_are_said():
    scores = score(predictions(LABELS, LABELS, speakers=["c:1"] * 3), LABELS, CONFIG)
    assert any("1 speaker: too few" in caveat for caveat in scores.caveats)


def test_enough_speakers_and_all_labels_need_no_caveat():
    assert not score(predictions(LABELS * 4, LABELS * 4), LABELS, CONFIG).caveats


def test_recordings_without_a_speaker_are_counted_and_said():
    scores = score(
        predictions(LABELS * 2, LABELS * 2, speakers=["c:1", None, "c:2", None, None, "c:1"]), LABELS, CONFIG
    )
    assert (scores.speakers, scores.anonymous) == (2, 3)
    assert any("3 of 6 test recordings name no speaker" in caveat for caveat in scores.caveats)


def test_slices_are_by_corpus_and_by_sex():
    scores = score(
        predictions(
            LABELS * 2,
            [*LABELS, "sad", "sad", "sad"],
            corpora=["a"] * 3 + ["b"] * 3,
            sexes=["male", None, None] * 2,
            speakers=["a:1"] * 3 + ["b:1"] * 3,
        ),
        LABELS,
        CONFIG,
    )
    found = {(part.name, part.value): part for part in scores.slices}
    assert set(found) == {("corpus", "a"), ("corpus", "b"), ("sex", "male"), ("sex", "unknown")}
    assert found["corpus", "a"].uar.value == 1
    assert found["corpus", "b"].uar.value == pytest.approx(1 / 3)
    assert found["sex", "male"].labels == 1
    assert found["sex", "male"].accuracy.value == 0.5
    assert found["sex", "unknown"].utterances == 4


def test_a_seed_gives_the_same_scores():
    rng = np.random.default_rng(0)
    truth, guess = ([LABELS[i] for i in rng.integers(0, 3, 60)] for _ in range(2))
    assert score(predictions(truth, guess), LABELS, CONFIG) == score(predictions(truth, guess), LABELS, CONFIG)
    other = CONFIG.model_copy(update={"seed": 1})
    assert score(predictions(truth, guess), LABELS, other).uar != score(predictions(truth, guess), LABELS, CONFIG).uar


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"truth": ["angry", "bored", "sad"]}, "bored"),
        ({"probabilities": np.ones((3, 3))}, "sum to 1"),
        ({"probabilities": np.full((3, 3), np.nan)}, "must not be negative"),
        ({"probabilities": np.full((3, 2), 0.5)}, "2 classes for 3 labels"),
    ],
)
def test_what_is_no_prediction_is_refused(change, problem):
    good = predictions(LABELS, LABELS)
    with pytest.raises(ValueError, match=problem):
        score(dataclasses.replace(good, **change), LABELS, CONFIG)


def test_columns_of_different_lengths_are_refused():
    good = predictions(LABELS, LABELS)
    with pytest.raises(ValueError, match="3 utterances but 2 speakers"):
        dataclasses.replace(good, speakers=["a", "b"])


def test_no_predictions_are_no_score():
    with pytest.raises(ValueError, match="no predictions"):
        score(predictions([], []), LABELS, CONFIG)


def test_predictions_without_some_corpora_are_those_of_the_others():
    whole = predictions(["angry", "happy", "sad"], ["angry", "sad", "sad"], corpora=["a", "crowd", "b"])
    rest = whole.without_corpora({"crowd": 1})
    assert (rest.ids, rest.truth, rest.corpora) == (["0000", "0002"], ["angry", "sad"], ["a", "b"])
    assert score(rest, LABELS, CONFIG).uar.value == 1.0
    assert len(whole.without_corpora(["a", "b", "crowd"])) == 0
