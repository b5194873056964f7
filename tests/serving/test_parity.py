"""Served and evaluated probabilities are the same, batched or not."""

from __future__ import annotations

import pytest

from kubevox.config import ServingConfig
from kubevox.evaluation.run import evaluate
from kubevox.training.loop import TrainResult
from tests.serving.parity import largest_difference
from tests.tiny import EVALUATE, FEATURES, LENIENT, Tiny

pytestmark = pytest.mark.e2e


def test_every_test_recording_is_answered_as_it_was_evaluated(tiny: Tiny, trained: TrainResult) -> None:
    evaluation = evaluate(trained.bundle_uri, tiny.blocks, tiny.split.uri, FEATURES, EVALUATE, LENIENT, tiny.store)
    options = ServingConfig.model_validate({"workers": 1, "log": {"enabled": False}})
    count, differences = largest_difference(evaluation.uri, "--options", options.to_json())
    assert count == len(tiny.split.of("test"))
    assert max(differences.values()) <= 1e-5, differences
