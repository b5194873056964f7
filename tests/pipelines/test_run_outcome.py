"""How a local run ends, by what its stages said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubevox.config import Config, load_config
from kubevox.progress import result
from pipelines import local
from pipelines.local import RunOutcome, run_locally, summary

DEPLOYED = {
    "summary": "…",
    "reason": "at 10 %: agreement: 2 of 140 are the same; uar: it is 0.1; 0.15 less is allowed",
    "criterion": "agreement, uar",
    "version": "2",
    "champion": "1",
    "timeline": "/store/rollouts/1.html",
}
FIGURES = {"test_uar": 0.7, "test_uar_low": 0.6, "test_uar_high": 0.8, "chance_uar": 0.1}


@pytest.fixture
def config(repository: Path, tmp_path: Path) -> Config:
    return load_config(repository / "configs" / "emotion.yaml", [f"store={tmp_path / 'store'}"])


@pytest.fixture
def run(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunOutcome]:
    """``run(deploy event's fields)``: a pipeline whose stages say so."""
    monkeypatch.setattr(local, "_write_example", lambda view, path: None)

    def run(verdict: str = "promote", **deployed: Any) -> RunOutcome:
        def pipeline(**_: str) -> None:
            assert os.environ["KUBEVOX_EVENTS"] == "1"
            result("ingest", corpora=["synthetic"], utterances=1, hours=1.0)
            result("validate", report="validation.html")
            result("split", speakers={"train": 1}, unverified=[])
            result("evaluate", verdict=verdict, figures=FIGURES, criteria=[], report="evaluation.html")
            if deployed:
                result("deploy", **deployed)

        return run_locally(config, tmp_path / "work", pipeline)

    return run


def test_a_promoted_challenger_ends_a_run_with_0(run: Callable[..., RunOutcome], config: Config) -> None:
    outcome = run(**DEPLOYED, outcome="promoted")
    assert (outcome.code, outcome.error) == (0, None)
    lines = summary(outcome, config, "configs/emotion.yaml")
    assert "Version    kubevox-emotion version 2, alias champion" in lines
    assert "           /store/rollouts/1.html" in lines
    assert any(line.startswith("Try it") for line in lines)


def test_a_challenger_that_was_taken_back_ends_a_run_with_3(run: Callable[..., RunOutcome], config: Config) -> None:
    outcome = run(**DEPLOYED, outcome="rolled_back")
    assert (outcome.code, outcome.error) == (3, None)
    assert json.loads(outcome.to_json())["outcome"] == "rolled_back"
    lines = summary(outcome, config, "configs/emotion.yaml")
    start = lines.index("Rollout    version 2 TAKEN BACK; version 1 stays champion")
    assert lines[start + 1 : start + 4] == [
        "  at 10 %: agreement: 2 of 140 are the same",
        "  uar: it is 0.1",
        "  0.15 less is allowed",
    ]
    assert not any(line.startswith(("Try it", "Version")) for line in lines)
    alone = summary(run(**DEPLOYED | {"champion": None}, outcome="rolled_back"), config, "configs/emotion.yaml")
    assert "Rollout    version 2 TAKEN BACK; there is no champion" in alone


def test_a_gate_that_rejects_ends_a_run_with_3_and_a_skipped_deployment_is_a_failure(
    run: Callable[..., RunOutcome],
) -> None:
    rejected = run("reject")
    assert (rejected.code, json.loads(rejected.to_json())["outcome"]) == (3, "rejected")
    skipped = run("promote")
    assert skipped.code == 1
    assert "skipped its deployment" in str(skipped.error)
