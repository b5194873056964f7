"""The corpus probe: what it hears, what it cannot hear, and that it costs little."""

import dataclasses
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import EvaluateConfig
from kubevox.evaluation.probe import CorpusProbe, Sample, choose, pooled, probe_corpora

CONFIG = EvaluateConfig(bootstrap_samples=200)


def sample(number, corpus, label="happy", speakers=20):
    return Sample(f"{number:06d}", corpus, label, f"{corpus}:{number % speakers}")


def heard(offsets, spread=1.0, shape=(8, 20)):
    """Features whose mean depends on the corpus; the others are noise."""

    def features(ids):
        rng = [np.random.default_rng(int(id)) for id in ids]
        values = np.stack([spread * one.standard_normal(shape) for one in rng]).astype(np.float32)
        values[:, 0] += np.array([offsets[id] for id in ids]).reshape(-1, *[1] * (len(shape) - 1))
        return values

    return features


def mixture(corpora, labels=("angry", "happy"), count=60, start=0):
    """As many utterances of each label in each corpus."""
    kinds = [(corpus, label) for corpus in corpora for label in labels]
    return [sample(start + i, *kinds[i % len(kinds)]) for i in range(count * len(kinds))]


def offsets(samples, of):
    return {one.id: of[one.corpus] for one in samples}


def test_a_channel_that_differs_is_recognised_also_within_a_label():
    fit, test = mixture("ab"), mixture("ab", start=10_000)
    probe = probe_corpora(fit, test, heard(offsets(fit + test, {"a": 0.0, "b": 3.0})), CONFIG)
    assert probe.uar.value == 1.0
    assert probe.chance == 0.5
    assert (probe.fitted_on, probe.scored_on) == (240, 240)
    assert [(one.label, one.uar.value) for one in probe.within_label] == [("angry", 1.0), ("happy", 1.0)]
    assert probe.label_uar_from_corpus == probe.chance_of_label == 0.5


def test_a_channel_that_does_not_differ_is_not():
    fit, test = mixture("abc", count=150), mixture("abc", count=150, start=10_000)
    probe = probe_corpora(fit, test, heard(dict.fromkeys([one.id for one in fit + test], 0.0)), CONFIG)
    assert probe.chance == pytest.approx(1 / 3)
    assert probe.uar.low < probe.chance < probe.uar.high


def test_a_large_corpus_does_not_outvote_a_small_one():
    fit = [sample(i, "a" if i % 20 else "b") for i in range(800)]
    test = [sample(10_000 + i, "ab"[i % 2]) for i in range(200)]
    probe = probe_corpora(fit, test, heard(offsets(fit + test, {"a": 0.0, "b": 1.0}), shape=(4, 10)), CONFIG)
    assert probe.uar.value > 0.85


def test_labels_that_go_with_the_corpus_can_be_named_without_listening():
    def of(start):
        return [sample(start + i, "ab"[i % 2], ("danish", "swedish")[i % 2]) for i in range(100)]

    fit, test = of(0), of(10_000)
    probe = probe_corpora(fit, test, heard(dict.fromkeys([one.id for one in fit + test], 0.0)), CONFIG)
    assert probe.label_uar_from_corpus == 1.0
    assert probe.within_label == ()  # no label has two corpora


def test_the_answer_to_a_corpus_name_is_by_shares_and_not_by_numbers():
    # Both corpora have more happy than sad recordings, but nearly all of the sad ones are of b.
    fit = mixture("a", ["happy"], 300) + mixture("b", ["happy"], 100, 1000) + mixture("b", ["sad"], 50, 2000)
    test = mixture("a", ["happy"], 50, 3000) + mixture("b", ["sad"], 50, 4000)
    probe = probe_corpora(fit, test, heard(dict.fromkeys([one.id for one in fit + test], 0.0)), CONFIG)
    assert probe.label_uar_from_corpus == 1.0


@pytest.mark.parametrize(
    ("fit", "test"),
    [
        (mixture("a"), mixture("a", start=10_000)),
        (mixture("ab"), mixture("c", start=10_000)),  # a corpus was held out
        (mixture("ab"), mixture("a", start=10_000)),
        ([*mixture("a"), sample(999, "b")], mixture("ab", start=10_000)),
        ([], []),
    ],
)
def test_without_two_corpora_on_both_sides_there_is_nothing_to_tell_apart(fit, test):
    def never(ids):
        raise AssertionError("features are not asked for in vain")

    assert probe_corpora(fit, test, never, CONFIG) is None


def test_corpora_that_are_on_one_side_only_are_left_out():
    fit, test = mixture("abd"), mixture("abc", start=10_000)
    probe = probe_corpora(fit, test, heard(offsets(fit + test, {"a": 0, "b": 3, "c": 6, "d": 9})), CONFIG)
    assert probe.corpora == ("a", "b")
    assert probe.scored_on == 240


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y"])), max_size=80), st.integers(1, 60))
def test_a_choice_is_as_even_as_the_corpora_and_labels_allow(kinds, most):
    samples = [sample(i, corpus, label) for i, (corpus, label) in enumerate(kinds)]
    chosen = choose(samples, 0, most)
    assert len(chosen) == min(most, len(samples))
    assert len({one.id for one in chosen}) == len(chosen)
    assert choose(samples, 0, most) == chosen
    kept = {kind: [one for one in chosen if (one.corpus, one.label) == kind] for kind in set(kinds)}
    full = {kind for kind in kept if len(kept[kind]) == kinds.count(kind)}
    partial = [len(kept[kind]) for kind in set(kinds) - full]
    if partial:
        assert max(len(members) for members in kept.values()) <= min(partial) + 1


def test_features_over_time_are_pooled_and_vectors_are_left_as_they_are():
    values = np.random.default_rng(0).normal(size=(3, 4, 50)).astype(np.float32)
    result = pooled(values)
    assert result.shape == (3, 8)
    np.testing.assert_allclose(result[:, :4], values.mean(axis=2), rtol=1e-5)
    np.testing.assert_allclose(result[:, 4:], values.std(axis=2), rtol=1e-5)
    np.testing.assert_array_equal(pooled(values[..., 0]), values[..., 0])


def test_constant_features_and_few_rows_do_not_break_it():
    fit, test = mixture("ab", count=4), mixture("ab", count=4, start=10_000)
    varied = heard(offsets(fit + test, {"a": 0.0, "b": 5.0}), shape=(5,))

    def features(ids):
        return np.hstack([varied(ids), np.full((len(ids), 300), -120.1, np.float32)])

    assert probe_corpora(fit, test, features, CONFIG).uar.value > 0.9


def test_both_ways_to_solve_it_agree():
    # 240 rows: 200 features are fewer than them, 300 are more, of which the last hundred are always the same.
    fit, test = mixture("ab"), mixture("ab", start=10_000)
    wide = heard(offsets(fit + test, {"a": 0.0, "b": 0.7}), shape=(300,))

    def flat(ids):
        values = wide(ids)
        values[:, 200:] = 1.0
        return values

    results = [probe_corpora(fit, test, some, CONFIG) for some in (flat, lambda ids: flat(ids)[:, :200])]
    assert results[0] == results[1]
    assert 0.5 < results[0].uar.value < 1.0


def test_it_survives_json_and_is_the_same_again():
    fit, test = mixture("ab"), mixture("ab", start=10_000)
    features = heard(offsets(fit + test, {"a": 0.0, "b": 0.3}))
    probe = probe_corpora(fit, test, features, CONFIG)
    assert CorpusProbe.from_dict(json.loads(json.dumps(probe.to_dict(), allow_nan=False))) == probe
    assert probe_corpora(fit, test, features, CONFIG) == probe
    assert dataclasses.replace(probe, fitted_on=1) != probe


def test_thousands_of_recordings_cost_a_fraction_of_a_second():
    fit = mixture("abc", ["u", "v", "w", "x", "y"], 400)
    test = mixture("abc", ["u", "v", "w", "x", "y"], 150, 50_000)
    values = np.random.default_rng(0).standard_normal((2000, 512)).astype(np.float32)
    started = time.process_time()
    probe = probe_corpora(fit, test, lambda ids: values[: len(ids)], CONFIG)
    assert time.process_time() - started < 3.0  # about 0.3 s; machines differ
    assert probe.fitted_on + probe.scored_on == 2000
