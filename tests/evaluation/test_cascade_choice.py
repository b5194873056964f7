"""The choice of a cascade's threshold: by the stated rule, on validation rows only, with remarks where it is odd."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import EvaluateConfig
from kubevox.data.dataset import read_audio
from kubevox.errors import BundleError, SplitError, StorageError
from kubevox.evaluation import cascade as module
from kubevox.evaluation import metrics
from kubevox.evaluation.cascade import (
    BuiltCascade,
    Curve,
    Figures,
    Point,
    build_cascade,
    choose,
    curve_of,
    remarks_on,
    render_cascade_report,
)
from kubevox.models.bundle import load_bundle
from kubevox.models.cascade import Cascade, load_model, read_cascade, unsure
from tests.tiny import CNN1D, EVALUATE, RESCNN, TASK, Tiny, untrained_bundle


def predictions(seed: int, rows: int, classes: int, skill: float, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and calibrated-looking probabilities float32 [rows, classes] of a model with some skill."""
    chance = np.random.default_rng(seed)
    truth = np.random.default_rng(0).integers(0, classes, rows)
    logits = sharpness * (chance.standard_normal((rows, classes)) + skill * np.eye(classes)[truth])
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return truth, (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)


CASES = st.tuples(
    st.integers(0, 2**16), st.integers(1, 60), st.integers(2, 6), st.floats(0, 3), st.floats(0, 3), st.floats(0.1, 30)
)


def of_case(case: tuple[int, int, int, float, float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seed, rows, classes, mini_skill, premium_skill, sharpness = case
    truth, mini = predictions(seed, rows, classes, mini_skill, sharpness)
    _, premium = predictions(seed + 1, rows, classes, premium_skill, 1.0)
    return truth, mini, premium


@given(CASES)
@settings(max_examples=40)
def test_every_point_is_what_serving_at_its_threshold_would_give(case: tuple) -> None:
    truth, mini, premium = of_case(case)
    curve = curve_of(truth, mini, premium, mini_ms=1.5, added_ms=4.0, premium_ms=5.0)
    for point in curve.points:
        asked = unsure(mini, point.threshold)
        answers = np.where(asked[:, None], premium, mini).argmax(axis=1)
        confusion = metrics.confusion_matrix(truth, answers, mini.shape[1])
        assert point.premium_share == asked.mean()
        assert point.uar == pytest.approx(float(metrics.uar(confusion)))
        assert point.accuracy == pytest.approx(float(metrics.accuracy(confusion)))
        assert point.mean_ms == pytest.approx(1.5 + 4.0 * asked.mean())


@given(CASES)
@settings(max_examples=40)
def test_the_curve_leads_from_one_model_to_the_other_by_one_recording_at_a_time(case: tuple) -> None:
    truth, mini, premium = of_case(case)
    curve = curve_of(truth, mini, premium, 1.0, 2.0, 3.0)
    first, *_, last = curve.points
    assert (first.threshold, first.premium_share, first.uar) == (0.0, 0.0, curve.mini.uar)
    assert last.threshold == 1.0
    sure = mini.max(axis=1) == 1.0
    assert last.premium_share == (~sure).mean()
    if not sure.any():
        assert (last.uar, last.accuracy) == (curve.premium.uar, curve.premium.accuracy)
    thresholds, shares = [p.threshold for p in curve.points], [p.premium_share for p in curve.points]
    assert thresholds == sorted(thresholds)
    assert shares == sorted(shares)
    steps = np.diff(shares) * len(truth)
    _, counts = np.unique(mini.max(axis=1), return_counts=True)
    assert steps[steps > 1e-9].max(initial=0) <= counts.max() + 1e-9


def test_a_long_curve_is_thinned_out_evenly() -> None:
    truth, mini = predictions(1, 5000, 4, 1.0, 1.0)
    _, premium = predictions(2, 5000, 4, 2.0, 1.0)
    curve = curve_of(truth, mini, premium, 1.0, 2.0, 3.0)
    assert 150 <= len(curve.points) <= 200
    assert np.diff([point.premium_share for point in curve.points]).max() < 0.01


@given(CASES, st.floats(0.0, 0.2))
@settings(max_examples=60)
def test_the_cheapest_threshold_within_the_margin_is_chosen(case: tuple, margin: float) -> None:
    truth, mini, premium = of_case(case)
    curve = curve_of(truth, mini, premium, 1.0, 2.0, 3.0)
    chosen = choose(curve, margin)
    least = curve.premium.uar - margin
    good = [point for point in curve.points if point.uar >= least - 1e-9]
    if good:
        assert chosen in good
        assert chosen.mean_ms == min(point.mean_ms for point in good)
    else:
        assert chosen.uar == max(point.uar for point in curve.points)
    assert choose(curve, 1.0).threshold == 0.0


def test_a_uar_that_equals_the_limit_is_within_it() -> None:
    model = Figures(0.9, 0.9, 3.0)
    points = (Point(0.0, 0.0, 0.7, 0.7, 1.0), Point(0.5, 0.4, 0.9 - 0.1, 0.8, 1.8), Point(1.0, 1.0, 0.9, 0.9, 3.0))
    assert choose(Curve(points, model, model, 2.0), 0.1).threshold == 0.5


@pytest.mark.parametrize(
    ("labels", "shapes"), [([], [(0, 3), (0, 3)]), ([0, 1], [(2, 3), (2, 4)]), ([0], [(2, 3), (2, 3)])]
)
def test_what_does_not_go_together_has_no_curve(labels: list[int], shapes: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="labels for probabilities"):
        curve_of(labels, np.ones(shapes[0]), np.ones(shapes[1]), 1.0, 2.0, 3.0)


# What a mini model knows, how sure it is, what the premium model knows: of ten recordings, five of either class.
TRUTH = np.array([0, 1] * 5)


def answers(right: int, confidence: float) -> np.ndarray:
    """Two classes: the first ``right`` recordings are answered rightly, all with the same confidence."""
    said = np.where(np.arange(10) < right, TRUTH, 1 - TRUTH)
    return np.where(np.eye(2)[said] > 0, confidence, 1 - confidence).astype(np.float32)


@pytest.mark.parametrize(
    ("mini", "premium", "costs", "voices", "words"),
    [
        (answers(8, 0.9), answers(8, 0.9), (1.0, 2.0, 3.0), 5, ["no better than the mini", "mini model alone"]),
        (answers(9, 0.9), answers(6, 0.9), (1.0, 2.0, 3.0), 5, ["no better than the mini", "mini model alone"]),
        (answers(9, 0.9), answers(10, 0.9), (1.0, 2.0, 3.0), 5, ["within the margin of 0.15", "never asks"]),
        (answers(2, 0.6), answers(10, 0.9), (1.0, 2.0, 2.5), 5, ["never sure enough", "Serve it alone"]),
        (answers(2, 1.0), answers(10, 0.9), (1.0, 2.0, 3.0), 5, ["No threshold comes within 0.15", "wholly sure"]),
        (answers(8, 0.9), answers(8, 0.9), (1.0, 2.0, 3.0), 1, ["one speaker: too few"]),
        (answers(8, 0.9), answers(8, 0.9), (1.0, 2.0, 3.0), 2, ["2 speakers: too few"]),
    ],
)
def test_what_is_out_of_the_ordinary_is_said_plainly(
    mini: np.ndarray, premium: np.ndarray, costs: tuple[float, float, float], voices: int, words: list[str]
) -> None:
    curve = curve_of(TRUTH, mini, premium, *costs)
    said = " ".join(remarks_on(curve, choose(curve, 0.15), 0.15, voices))
    for word in words:
        assert word in said


def half_sure() -> tuple[np.ndarray, np.ndarray]:
    """A mini model that is right where it is sure, of half of the recordings; a premium model that is always right."""
    mini = np.where(np.arange(10)[:, None] < 5, answers(5, 0.95), answers(5, 0.6)).astype(np.float32)
    return mini, answers(10, 0.9)


def test_an_ordinary_choice_goes_without_remarks_and_a_dear_one_does_not() -> None:
    cheap, dear = (curve_of(TRUTH, *half_sure(), 1.0, 4.0, premium_ms) for premium_ms in (4.5, 2.9))
    chosen = choose(cheap, 0.01)
    assert (chosen.premium_share, chosen.uar, chosen.mean_ms) == (0.5, 1.0, 3.0)
    assert remarks_on(cheap, chosen, 0.01, 5) == []
    assert "no cheaper than the premium model alone: 3.00 ms and 2.90 ms" in remarks_on(dear, chosen, 0.01, 5)[0]


def test_the_interval_is_of_the_difference_on_the_same_draws_of_speakers() -> None:
    """Speakers differ much in how well they are understood; the two models hardly differ at any of them."""
    chance = np.random.default_rng(0)
    speakers = [f"s{i // 20}" for i in range(200)]
    truth = np.tile([0, 1], 100)
    wrong = chance.random(200) < np.repeat(np.linspace(0.0, 0.9, 10), 20)
    premium = np.where(wrong, 1 - truth, truth)
    config = EvaluateConfig(bootstrap_samples=500)
    same = module._difference(truth, premium, premium, speakers, 2, config)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    cascade = premium.copy()
    cascade[::20] = 1 - truth[::20]  # one recording of each speaker
    found = module._difference(truth, cascade, premium, speakers, 2, config)
    assert found.low <= found.value <= found.high <= 0.0
    assert found.high - found.low < 0.06
    nameless = module._difference(truth, cascade, premium, [None] * 200, 2, config)
    assert nameless.value == pytest.approx(found.value)
    assert nameless.high <= 0.0, "a recording without a speaker is drawn together with itself"


@pytest.fixture(scope="module")
def pair(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A mini and a premium bundle, and the store that they are in."""
    store = str(tmp_path_factory.mktemp("cascades"))
    mini = untrained_bundle(tiny, store, RESCNN, seed=0, temperature=0.03)
    return mini, untrained_bundle(tiny, store, CNN1D, seed=1, temperature=0.1), store


@pytest.fixture(scope="module")
def built(tiny: Tiny, pair: tuple[str, str, str]) -> BuiltCascade:
    mini, premium, store = pair
    return build_cascade(mini, premium, tiny.blocks, tiny.split.uri, EVALUATE, 0.01, store)


def test_the_figures_are_those_of_the_validation_rows_served(
    tiny: Tiny, built: BuiltCascade, pair: tuple[str, str, str]
) -> None:
    rows = tiny.split.of("validation")
    sounds = {id: sound for shard in tiny.split.dataset.shard_uris for id, sound in read_audio(shard)}
    waveforms = [sounds[utterance.id] for utterance, _ in rows]
    truth = [TASK.labels.index(label) for _, label in rows]

    def uar(probabilities: np.ndarray) -> float:
        return float(metrics.uar(metrics.confusion_matrix(truth, probabilities.argmax(axis=1), len(TASK.labels))))

    cascade, found = load_model(built.uri), built.spec.figures
    assert isinstance(cascade, Cascade)
    assert cascade.threshold == built.spec.threshold
    answer = cascade.answer(waveforms)
    assert found.recordings == len(rows)
    assert found.speakers == len({utterance.speaker for utterance, _ in rows})
    assert found.premium_share == answer.by_premium.mean()
    assert found.uar == pytest.approx(uar(answer.probabilities))
    assert found.mini_uar == pytest.approx(uar(load_bundle(pair[0]).predict(waveforms)))
    assert found.premium_uar == pytest.approx(uar(load_bundle(pair[1]).predict(waveforms)))
    assert found.difference == pytest.approx(found.uar - found.premium_uar)
    assert found.difference_low <= found.difference <= found.difference_high
    assert found.mean_ms == pytest.approx(found.mini_ms + found.premium_share * found.added_ms)
    assert found.mini_ms > 0
    assert found.premium_ms > 0
    assert found.uar >= found.premium_uar - 0.01 - 1e-9


def test_only_validation_rows_are_looked_at(
    tiny: Tiny, pair: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    load = module._from_blocks
    monkeypatch.setattr(
        module, "_from_blocks", lambda bundle, blocks, ids: asked.update(ids) or load(bundle, blocks, ids)
    )
    monkeypatch.setattr(module, "read_audio", lambda shard, ids: asked.update(ids) or read_audio(shard, ids))
    build_cascade(*pair[:2], tiny.blocks, tiny.split.uri, EVALUATE, 0.07, pair[2])
    assert asked == {utterance.id for utterance, _ in tiny.split.of("validation")}


def test_the_evidence_lies_beside_the_description(built: BuiltCascade, pair: tuple[str, str, str]) -> None:
    folder = Path(built.uri)
    assert folder.parent == Path(pair[2], "cascades")
    assert sorted(path.name for path in folder.iterdir()) == ["cascade.json", "curve.json", "report.html"]
    assert read_cascade(built.uri)[0] == built.spec
    curve = json.loads((folder / "curve.json").read_text())
    assert [point["threshold"] for point in curve["points"]] == [point.threshold for point in built.curve.points]
    page = (folder / "report.html").read_text()
    assert f"{built.spec.figures.uar:.3f}" in page
    assert page.count("<svg") == 2
    assert "synthetic" not in page[page.index("<body") : page.index("<h1")].lower()


def test_a_report_on_synthetic_speech_begins_by_saying_so_and_remarks_stand_in_it(built: BuiltCascade) -> None:
    spec = built.spec.model_copy(update={"synthetic": True, "remarks": ["Cheap <b>and</b> good."]})
    page = render_cascade_report(spec, built.curve)
    assert "no evidence about people" in page[page.index("<body") : page.index("<h1")]
    assert "Cheap &lt;b&gt;and&lt;/b&gt; good." in page


def test_what_was_built_once_is_not_built_again(tiny: Tiny, built: BuiltCascade, pair: tuple[str, str, str]) -> None:
    def again(margin: float = 0.01, config: EvaluateConfig = EVALUATE) -> BuiltCascade:
        return build_cascade(*pair[:2], tiny.blocks, tiny.split.uri, config, margin, pair[2])

    assert (built.reused, again()) == (False, replace(built, reused=True))
    assert not again(margin=0.5).reused
    assert not again(config=EVALUATE.model_copy(update={"bootstrap_samples": 101})).reused


@pytest.mark.parametrize("role", ["mini", "premium"])
@pytest.mark.parametrize("strange", [{"split_hash": "0" * 64}, {"labels": ["angry", "sad", "happy"]}])
def test_a_bundle_of_another_split_is_refused(
    role: str, strange: dict[str, object], tiny: Tiny, pair: tuple[str, str, str]
) -> None:
    other = untrained_bundle(tiny, pair[2], CNN1D, seed=7, **strange)
    uris = {"mini": (other, pair[1]), "premium": (pair[0], other)}[role]
    with pytest.raises(BundleError, match="was not trained on split"):
        build_cascade(*uris, tiny.blocks, tiny.split.uri, EVALUATE, 0.01, pair[2])


def test_a_split_without_a_certificate_is_refused(pair: tuple[str, str, str], tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="no certificate"):
        build_cascade(*pair[:2], [], str(tmp_path / "split"), EVALUATE, 0.01, pair[2])


def test_features_that_are_missing_are_named(tiny: Tiny, pair: tuple[str, str, str]) -> None:
    with pytest.raises(StorageError, match="no such features"):
        build_cascade(*pair[:2], [], tiny.split.uri, EVALUATE, 0.3, pair[2])


def test_bundles_of_another_store_are_named_before_anything_is_written(
    tiny: Tiny, pair: tuple[str, str, str], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="its mini is not in the store"):
        build_cascade(*pair[:2], tiny.blocks, tiny.split.uri, EVALUATE, 0.01, str(tmp_path / "other"))
    assert not (tmp_path / "other" / "cascades").exists()
