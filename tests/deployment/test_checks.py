"""The decisions of a rollout: what they say of plain cases, and how often chance fools them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubevox.config.rollout import ErrorTest
from kubevox.deployment.checks import (
    ErrorRate,
    Labels,
    agreement,
    clopper_pearson,
    foreign_versions,
    jensen_shannon,
    latency_p95,
    observed_share,
    prediction_mix,
    quantile_interval,
    requests_for_share,
    uar_difference,
    uar_of,
    wilson,
)

TEST = ErrorTest()


def counted(outcomes: list[bool] | np.ndarray) -> ErrorRate:
    rate = ErrorRate(TEST, 0.95)
    for failed in outcomes:
        rate.add(bool(failed))
    return rate


def first_decision(chance: np.random.Generator, p: float, most: int = 5000) -> str:
    rate = ErrorRate(TEST, 0.95)
    while rate.outcome == "undecided" and rate.n < most:
        rate.add(bool(chance.random() < p))
    return rate.outcome


# --- errors -----------------------------------------------------------------------------------------------------------


def test_wald_s_test_errs_no_more_often_than_it_was_told_to() -> None:
    chance = np.random.default_rng(0)
    runs = 1500
    refused = sum(first_decision(chance, TEST.acceptable) == "fail" for _ in range(runs))
    passed = sum(first_decision(chance, TEST.unacceptable) == "pass" for _ in range(runs))
    # Wald's bounds are on the sum of both, and are kept with room for the simulation's own error.
    assert refused / runs <= TEST.false_alarm / (1 - TEST.miss) + 0.008
    assert passed / runs <= TEST.miss / (1 - TEST.false_alarm) + 0.008


def test_five_percent_of_errors_are_seen_within_some_hundred_requests() -> None:
    chance = np.random.default_rng(1)
    needed = []
    for _ in range(300):
        rate = ErrorRate(TEST, 0.95)
        while rate.outcome == "undecided":
            rate.add(bool(chance.random() < 0.05))
        needed.append(rate.n if rate.outcome == "fail" else math.inf)
    assert np.mean(np.isfinite(needed)) > 0.98
    assert np.median(needed) < 150


def test_a_server_without_errors_passes_after_some_hundred_requests_and_one_error_costs_nobody_his_place() -> None:
    assert counted([False] * 120).outcome == "undecided"
    assert counted([False] * 129).outcome == "pass"
    assert counted([True]).outcome == "undecided"
    assert counted([True] + [False] * 200).outcome == "pass"


def test_errors_that_begin_after_the_test_had_passed_are_seen_and_a_failure_is_final() -> None:
    late = counted([False] * 300 + [True] * 4)
    assert late.outcome == "fail"
    assert counted([True] * 4 + [False] * 10_000).outcome == "fail"
    check = late.check("error_rate", "the challenger", busy=2)
    assert (check.n, check.value, check.limit) == (304, 4 / 304, TEST.unacceptable)
    assert check.explanation == (
        "the challenger failed 4 of 304 requests (1.3%); 4.0% are too many (deploy.rollout.errors); 2 more were "
        "answered with busy"
    )


# --- shares -----------------------------------------------------------------------------------------------------------


def test_about_1100_requests_tell_one_half_within_three_points() -> None:
    assert requests_for_share(0.5, 0.03, 0.95) == 1068
    assert requests_for_share(0.1, 0.03, 0.95) == 385
    assert requests_for_share(1.0, 0.03, 0.95) == 100
    # So many that a route which does send 1 % sends nothing once in a thousand times at most.
    assert 0.99 ** requests_for_share(0.01, 0.03, 0.95) <= 0.001


@given(st.integers(1, 99), st.floats(0.005, 0.2), st.integers(0, 5000))
def test_an_exact_share_never_fails_and_passes_when_enough_was_sent(percent: int, margin: float, total: int) -> None:
    check = observed_share(percent / 100, round(percent / 100 * total), total, margin, 0.95)
    enough = total >= requests_for_share(percent / 100, margin, 0.95)
    rounding = abs(round(percent / 100 * total) - percent / 100 * total) > margin * total
    assert check.outcome == ("pass" if enough and not rounding and round(percent / 100 * total) else check.outcome)
    if round(percent / 100 * total):
        assert check.outcome != "fail"


@given(st.integers(1, 100), st.floats(0.005, 0.4))
def test_a_route_that_sends_nothing_fails_whatever_the_margin(percent: int, margin: float) -> None:
    planned = requests_for_share(percent / 100, margin, 0.95)
    check = observed_share(percent / 100, 0, planned, margin, 0.95)
    assert check.outcome == "fail"
    assert check.explanation.startswith(
        f"the route sent the challenger none of {planned} requests; asked are {percent}%"
    )


@pytest.mark.parametrize("percent", [10, 50])
def test_a_route_that_draws_lots_passes_and_one_that_is_off_by_three_margins_fails(percent: int) -> None:
    chance = np.random.default_rng(percent)

    def ended(p: float) -> str:
        """As a step goes: round after round, until it is decided or three times the planned requests were sent."""
        planned = requests_for_share(percent / 100, 0.03, 0.95)
        sent = canary = 0
        while sent < 3 * planned:
            sent += planned // 9
            canary += chance.binomial(planned // 9, p)
            if (check := observed_share(percent / 100, int(canary), sent, 0.03, 0.95)).outcome != "undecided":
                return check.outcome
        return "undecided"

    assert sum(ended(percent / 100) != "pass" for _ in range(400)) / 400 <= 0.02
    assert sum(ended(percent / 100 + 0.09) != "fail" for _ in range(400)) / 400 <= 0.02
    assert sum(ended(percent / 100 - 0.09) != "fail" for _ in range(400)) / 400 <= 0.02


def test_a_version_that_nobody_put_there_is_named() -> None:
    check = foreign_versions({"1": 90, "2": 9, "7": 1}, ["1", "2"])
    assert (check.outcome, check.value, check.n) == ("fail", 0.01, 100)
    assert check.explanation == "1 of 100 answers of the route came from version '7', not from 1 or 2"
    assert foreign_versions({"1": 90, "2": 9}, ["1", "2"]).outcome == "pass"
    assert foreign_versions({}, ["1", "2"]).outcome == "undecided"


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.55, 0.999))
def test_an_interval_of_a_share_holds_the_share_and_lies_between_0_and_1(count: int, n: int, confidence: float) -> None:
    count = min(count, n)
    for low, high in (wilson(count, n, confidence), clopper_pearson(count, n, confidence)):
        assert 0.0 <= low <= count / n <= high <= 1.0
        assert high > low


def test_intervals_are_the_published_ones() -> None:
    # Newcombe 1998, table I: 81 of 263; Clopper & Pearson's of the same.
    assert wilson(81, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert clopper_pearson(81, 263, 0.95) == pytest.approx((0.2527, 0.3676), abs=5e-5)
    assert wilson(0, 0, 0.95) == clopper_pearson(0, 0, 0.95) == (0.0, 1.0)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_the_exact_interval_covers_the_truth_as_often_as_it_says(p: float) -> None:
    drawn = np.random.default_rng(3).binomial(80, p, size=1500)
    covered = [low <= p <= high for low, high in (clopper_pearson(int(count), 80, 0.95) for count in drawn)]
    assert np.mean(covered) >= 0.95


# --- latency ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [128, 500])
def test_the_percentile_lies_between_the_order_statistics_as_often_as_they_say(n: int) -> None:
    chance = np.random.default_rng(n)
    truth = math.exp(1.6448536)
    missed = [0, 0]
    for _ in range(1500):
        low, high = quantile_interval(chance.lognormal(size=n), 0.95, 0.95)
        missed[0] += low > truth
        missed[1] += high < truth
    assert max(missed) / 1500 <= 0.025 + 0.008


@given(st.lists(st.floats(0.001, 10.0), min_size=1, max_size=300), st.floats(0.6, 0.99))
def test_bounds_of_a_percentile_are_of_the_sample_or_unknown(values: list[float], confidence: float) -> None:
    low, high = quantile_interval(values, 0.95, confidence)
    assert low in [*values, -math.inf]
    assert high in [*values, math.inf]
    assert low <= high
    if len(values) < math.log((1 - confidence) / 2) / math.log(0.95):
        assert high == math.inf


@pytest.mark.parametrize(("factor", "expected"), [(1.0, "pass"), (1.1, "pass"), (3.0, "fail")])
@pytest.mark.parametrize("spread", [0.05, 0.3, 0.6])
def test_three_times_slower_is_caught_and_a_tenth_slower_is_not(factor: float, expected: str, spread: float) -> None:
    chance = np.random.default_rng(int(100 * factor + 10 * spread))

    def ended() -> str:
        stable = np.exp(spread * chance.standard_normal(2048))
        canary = factor * np.exp(spread * chance.standard_normal(2048))
        for n in (128, 256, 512, 1024, 2048):
            check = latency_p95(stable[:n].tolist(), canary[:n].tolist(), 1.75, 0.95, 128)
            if check.outcome != "undecided":
                return check.outcome
        return "undecided"

    outcomes = [ended() for _ in range(120)]
    assert outcomes.count(expected) >= 118
    assert "fail" not in outcomes or expected == "fail"


def test_few_latencies_tell_nothing_and_no_more_are_looked_at_until_twice_as_many_are_there() -> None:
    assert latency_p95([0.1] * 127, [0.9] * 500, 2.0, 0.95, 128).outcome == "undecided"
    assert latency_p95([0.1] * 255, [0.1] * 255, 2.0, 0.95, 128).n == 128
    assert latency_p95([0.1] * 256, [0.1] * 300, 2.0, 0.95, 128).n == 256


# --- labels -----------------------------------------------------------------------------------------------------------


def answers(chance: np.random.Generator, n: int, stable: float, canary: float, classes: int = 7) -> Labels:
    """Two versions that are right with these chances, and often about the same recordings."""
    truth = np.arange(n) % classes
    luck = chance.random(n)
    other = np.where(chance.random(n) < 0.5, luck, chance.random(n))

    def said(right: np.ndarray) -> np.ndarray:
        return np.where(right, truth, (truth + chance.integers(1, classes, n)) % classes)

    return Labels(truth, said(luck < stable), said(other < canary), classes)


def outcomes(n: int, stable: float, canary: float, runs: int = 150) -> list[str]:
    chance = np.random.default_rng(5)
    return [uar_difference(answers(chance, n, stable, canary), 0.15, 0.95, 300, 0).outcome for _ in range(runs)]


def test_an_equal_or_better_challenger_passes_and_a_much_worse_one_fails() -> None:
    assert outcomes(140, 0.76, 0.76).count("pass") >= 145
    assert outcomes(140, 0.76, 0.85).count("pass") == 150
    assert outcomes(140, 0.80, 0.40).count("fail") >= 147


def test_a_challenger_that_is_worse_by_the_margin_passes_as_rarely_as_the_interval_says() -> None:
    assert outcomes(140, 0.80, 0.65, 300).count("pass") / 300 <= 0.025 + 0.025


def test_few_recordings_that_agree_are_no_certainty() -> None:
    truth = np.arange(6) % 3
    same = Labels(truth, truth, truth, 3)
    check = uar_difference(same, 0.05, 0.95, 2000, 0)
    assert (check.outcome, check.value) == ("undecided", 0.0)
    assert check.low is not None
    assert check.low < -0.05
    assert agreement(same, 0.6, 0.95).outcome == "undecided"


def test_permuted_labels_cost_agreement_and_recall() -> None:
    truth = np.arange(140) % 7
    permuted = Labels(truth, truth, (truth + 1) % 7, 7)
    check = uar_difference(permuted, 0.15, 0.95, 500, 0)
    assert (check.outcome, check.value, check.limit) == ("fail", -1.0, -0.15)
    assert agreement(permuted, 0.2, 0.95).outcome == "fail"
    # The proportions of balanced labels are the same in another order: this check alone would see nothing.
    assert prediction_mix(permuted, 0.25, 0.95, 500, 0).outcome == "pass"
    alone = uar_of(permuted, 0.95, 500, 0)
    assert (alone.outcome, alone.value) == ("fail", 0.0)
    assert uar_of(Labels(truth, truth, truth, 7), 0.95, 500, 0).outcome == "pass"


def test_a_challenger_that_says_one_thing_only_is_seen_in_the_mix() -> None:
    truth = np.arange(140) % 7
    check = prediction_mix(Labels(truth, truth, np.zeros(140, int), 7), 0.25, 0.95, 500, 0)
    assert check.outcome == "fail"
    assert check.value is not None
    assert check.value > 0.5


def test_two_versions_with_the_same_proportions_pass_though_samples_always_differ() -> None:
    chance = np.random.default_rng(7)
    passed = 0
    for _ in range(150):
        check = prediction_mix(answers(chance, 140, 0.3, 0.3), 0.1, 0.95, 300, 0)
        assert check.low is not None
        assert check.value is not None
        assert check.high is not None
        assert 0.0 <= check.low <= check.value <= check.high <= 1.0
        passed += check.outcome == "pass"
    assert passed >= 147


distributions = st.lists(st.integers(0, 50), min_size=2, max_size=8).filter(any)


@given(distributions, distributions)
def test_the_divergence_is_symmetric_between_0_and_1_and_0_of_equals(first: list[int], second: list[int]) -> None:
    first, second = (side + [0] * (8 - len(side)) for side in (first, second))
    divergence = float(jensen_shannon(first, second))
    assert 0.0 <= divergence <= 1.0 + 1e-12
    assert divergence == pytest.approx(float(jensen_shannon(second, first)))
    assert float(jensen_shannon(first, [3 * count for count in first])) == pytest.approx(0.0, abs=1e-12)
    assert float(jensen_shannon([1, 0], [0, 1])) == pytest.approx(1.0)


def test_draws_follow_the_seed() -> None:
    labels = answers(np.random.default_rng(0), 70, 0.8, 0.7)
    assert uar_difference(labels, 0.1, 0.95, 500, 3) == uar_difference(labels, 0.1, 0.95, 500, 3)
    assert prediction_mix(labels, 0.1, 0.95, 500, 3) == prediction_mix(labels, 0.1, 0.95, 500, 3)
