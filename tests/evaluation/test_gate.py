"""The gate names every criterion that fails, and refuses what cannot be compared."""

import dataclasses

import pytest

from kubevox.config import GateConfig
from kubevox.evaluation import Figures, Verdict, comparison_problem, judge

GATE = GateConfig(
    min_uar=0.5,
    min_worst_recall=0.2,
    max_calibration_error=0.1,
    max_latency_p95_ms=50,
    max_parameters=1000,
    champion_margin=0.01,
)
GOOD = Figures(0.6, 0.3, "fear", 0.05, 20.0, 900)
ABSOLUTE = ["uar", "worst_recall", "calibration_error", "latency_p95_ms", "parameters"]


def changed(**figures):
    return dataclasses.replace(GOOD, **figures)


def failed(verdict):
    return [criterion.name for criterion in verdict.failed]


def test_a_good_first_model_is_judged_by_the_absolute_criteria_only():
    verdict = judge(GOOD, GATE)
    assert verdict.promote
    assert [criterion.name for criterion in verdict.criteria] == ABSOLUTE
    assert verdict.summary() == ["promoted: all 5 criteria hold"]


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("uar", 0.49, "gate.min_uar"),
        ("worst_recall", 0.19, "gate.min_worst_recall"),
        ("calibration_error", 0.11, "gate.max_calibration_error"),
        ("latency_p95_ms", 51.0, "gate.max_latency_p95_ms"),
        ("parameters", 1001, "gate.max_parameters"),
    ],
)
def test_each_criterion_alone_can_reject(name, value, key):
    verdict = judge(changed(**{name: value}), GATE)
    assert not verdict.promote
    assert failed(verdict) == [name]
    assert key in verdict.summary()[1]


def test_every_failed_criterion_is_named():
    verdict = judge(Figures(0.1, 0.0, "fear", 0.9, 900.0, 10_000_000), GATE, changed(uar=0.7))
    assert failed(verdict) == [*ABSOLUTE, "uar_vs_champion"]
    lines = verdict.summary()
    assert lines[0] == "rejected: 6 of 7 criteria do not hold"
    assert [line.partition(":")[0] for line in lines[1:]] == failed(verdict)
    assert "10,000,000" in "\n".join(lines)


def test_a_figure_at_its_threshold_passes():
    assert judge(Figures(0.5, 0.2, "fear", 0.1, 50.0, 1000), GATE).promote


def test_a_figure_that_is_no_number_fails():
    assert failed(judge(changed(uar=float("nan"), calibration_error=float("nan")), GATE)) == [
        "uar",
        "calibration_error",
    ]


def test_a_challenger_may_be_worse_than_the_champion_by_the_margin_and_no_more():
    champion = changed(uar=0.61)
    assert judge(changed(uar=0.6), GATE, champion).promote
    verdict = judge(changed(uar=0.599), GATE, champion)
    assert failed(verdict) == ["uar_vs_champion"]
    assert "0.599" in verdict.summary()[1]
    assert "0.610" in verdict.summary()[1]


def test_a_comparison_is_refused_where_the_champion_heard_test_speakers():
    heard = [f"ravdess:{i:02d}" for i in range(1, 9)]
    problem = comparison_problem(["a", "b"], [*heard, "emodb:03"], ["a", "b"], [*heard, "emodb:08"])
    verdict = judge(changed(uar=0.99), GATE, None, problem)
    assert failed(verdict) == ["champion_comparable"]
    line = verdict.summary()[1]
    assert "8 of the 9 test speakers" in line
    assert "ravdess:01, ravdess:02, ravdess:03, ravdess:04, ravdess:05 and 3 more" in line
    assert "ravdess:06" not in line


def test_a_refused_comparison_is_not_made_even_with_the_champions_figures_at_hand():
    verdict = judge(GOOD, GATE, changed(uar=0.1), "the champion has heard speaker x:1")
    assert "uar_vs_champion" not in [criterion.name for criterion in verdict.criteria]


def test_names_under_another_key_cannot_be_compared():
    problem = comparison_problem(["a", "b"], ["x:1"], ["a", "b"], ["x:2"], same_key=False)
    verdict = judge(changed(uar=0.99), GATE, None, problem)
    assert failed(verdict) == ["champion_comparable"]
    assert "under another key" in verdict.summary()[1]


def test_a_champion_with_other_labels_cannot_be_compared():
    problem = comparison_problem(["da", "sv"], [], ["da", "fo"], ["x:1"])
    assert problem is not None
    assert "other labels" in problem


def test_strangers_with_the_same_labels_can_be_compared():
    assert comparison_problem(["b", "a"], ["x:1"], ["a", "b"], ["x:2"]) is None


def test_figures_that_look_alike_are_told_apart():
    line = judge(changed(uar=0.49996), GATE).summary()[1]
    assert "0.49996" in line
    assert "0.50000" in line


def test_an_absent_label_is_said_beside_the_worst_recall():
    verdict = judge(changed(worst_recall=0.1, absent_labels=("surprise",)), GATE)
    assert "no test recording of surprise" in verdict.summary()[1]


def test_a_label_with_braces_is_only_a_label():
    assert "{uar}" in judge(changed(worst_recall=0.1, worst_label="{uar}"), GATE).summary()[1]


def test_a_verdict_survives_json_unchanged():
    verdict = judge(changed(uar=0.1), GATE, None, "the champion has heard speaker x:1")
    assert Verdict.from_dict(verdict.to_dict()) == verdict
