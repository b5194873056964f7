"""Rehearsals: challengers that are made to be good or bad, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kubevox.config import DeployConfig, ServingConfig
from kubevox.data.audio import Waveform
from kubevox.data.dataset import read_audio
from kubevox.deployment.backend import ServedVersion
from kubevox.deployment.record import RolloutRecord
from kubevox.deployment.rehearsal import SCENARIOS, Rehearsed, permuted, rehearse, retempered
from kubevox.deployment.traffic import Answer, Kind
from kubevox.models.bundle import load_bundle, save_bundle
from tests.tiny import CNN1D, Tiny, prepare, untrained_bundle


@pytest.fixture(scope="module")
def waveforms(tiny: Tiny) -> list[Waveform]:
    dataset = tiny.split.dataset
    ids = [utterance.id for utterance, _ in tiny.split.of("train")][:4]
    return [waveform for shard in dataset.shard_uris for _, waveform in read_audio(shard, ids)]


@pytest.mark.parametrize("architecture", ["rescnn", "cnn1d"])
def test_a_permuted_model_calls_every_label_by_the_next_ones_name(
    architecture: str, tiny: Tiny, waveforms: list[Waveform], tmp_path: Path
) -> None:
    uri = untrained_bundle(tiny, tmp_path, CNN1D) if architecture == "cnn1d" else untrained_bundle(tiny, tmp_path)
    bundle = load_bundle(uri)
    worse = permuted(bundle)
    np.testing.assert_allclose(worse.predict(waveforms), np.roll(bundle.predict(waveforms), 1, axis=1), atol=1e-6)
    assert save_bundle(worse.classifier, worse.spec, str(tmp_path)) != uri
    assert save_bundle(bundle.classifier, bundle.spec, str(tmp_path)) == uri, "the model itself is as it was"


def test_a_retempered_model_is_another_bundle_with_the_same_labels(
    tiny: Tiny, waveforms: list[Waveform], tmp_path: Path
) -> None:
    uri = untrained_bundle(tiny, tmp_path)
    bundle = load_bundle(uri)
    good = retempered(bundle)
    other = save_bundle(good.classifier, good.spec, str(tmp_path))
    before, after = bundle.predict(waveforms), load_bundle(other).predict(waveforms)
    assert other != uri
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    assert not np.array_equal(before, after)


def record(outcome: str, criterion: str) -> RolloutRecord:
    """A record of which only the end matters."""
    return RolloutRecord(
        "mood",
        "1-x",
        "",
        "",
        "1",
        "local",
        False,
        outcome,
        criterion,
        "",
        0.0,
        1.0,
        (),
        None,
        (),  # type: ignore[arg-type]
    )


def answer(kind: Kind, version: str | None) -> Answer:
    return Answer("", 0.0, 0.0, kind, 500, version)


@pytest.mark.parametrize(
    ("scenario", "outcome", "criterion", "answers", "expected"),
    [
        ("good", "promoted", "", [], True),
        ("good", "rolled_back", "latency_p95", [], False),
        ("slow", "rolled_back", "latency_p95", [], True),
        ("slow", "rolled_back", "latency_p95, agreement", [], True),
        ("slow", "rolled_back", "agreement", [], False),
        ("slow", "promoted", "", [], False),
        ("errors", "rolled_back", "error_rate", [("failed", "1-x")], True),
        ("errors", "rolled_back", "error_rate", [("failed", "1")], False),
        ("errors", "rolled_back", "error_rate", [("failed", None)], False),
        ("errors", "rolled_back", "error_rate", [("busy", None), ("answered", "1")], True),
    ],
)
def test_a_rehearsal_is_as_expected_by_its_end_its_reason_and_who_paid(
    scenario: str, outcome: str, criterion: str, answers: Sequence[tuple[Kind, str | None]], expected: bool
) -> None:
    given = tuple(answer(*one) for one in answers)
    rehearsed = Rehearsed(SCENARIOS[scenario], "1-x", record(outcome, criterion), "", given)
    assert rehearsed.as_expected is expected


@pytest.mark.acceptance
def test_every_challenger_ends_as_it_has_to_under_traffic_with_real_servers(
    make_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    """A good one is promoted with the observed share within 3 points; each bad one is taken back for its own fault."""
    # Enough validation speakers for a difference of UAR to be told.
    tiny = prepare(tmp_path, make_corpus(tmp_path / "corpus", speakers=40, clips=3))
    champion = ServedVersion("7", tiny.train().bundle_uri)
    before = set(Path(tiny.store).rglob("*"))
    ended = list(
        rehearse(
            champion,
            tiny.split.uri,
            list(SCENARIOS.values()),
            DeployConfig(),
            ServingConfig(),
            tmp_path / "rehearsal",
        )
    )
    for rehearsed in ended:
        named = (rehearsed.scenario.name, rehearsed.record.outcome, rehearsed.record.criterion, rehearsed.record.reason)
        assert rehearsed.as_expected, named
        assert all(abs(seen - asked) <= 3 for asked, seen in rehearsed.shares.items()), rehearsed.shares
        answered = {one.version for one in rehearsed.answers if one.kind == "answered"}
        assert answered <= {"7", rehearsed.version}
    good = next(one for one in ended if one.scenario.name == "good")
    assert set(good.shares) == {10, 50, 100}
    assert set(Path(tiny.store).rglob("*")) == before, "nothing real is touched"


def test_scenarios_are_those_that_the_command_names() -> None:
    assert list(SCENARIOS) == ["crash", "errors", "slow", "worse", "good"]
    assert all(replace(scenario).criteria for scenario in SCENARIOS.values() if scenario.verdict == "rolled_back")
