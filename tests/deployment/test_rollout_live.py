"""Rollouts at full size: live model servers with clients' traffic, MLflow, the steps and checks as they are shipped."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kubevox.config import DeployConfig, TrainConfig
from kubevox.deployment.backend import Deployed, ServedVersion
from kubevox.deployment.conformity import draw_probe
from kubevox.deployment.local import LocalBackend, server_command
from kubevox.deployment.rollout import Rollout, deploy
from kubevox.deployment.traffic import Clients, counts
from kubevox.evaluation.run import evaluate
from kubevox.models.bundle import load_bundle, save_bundle
from kubevox.registry import Registry
from tests.tiny import EVALUATE, FEATURES, LENIENT, RESCNN, TRAIN, Tiny, prepare

pytestmark = [pytest.mark.e2e, pytest.mark.acceptance]

NAME = "kubevox-mood"
CONFIG = DeployConfig(check_clips=4)
FAULTY = [sys.executable, "-m", "tests.deployment.faulty_server"]
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Prepared:
    """A store with two models that know their task, and one that answers in other words."""

    tiny: Tiny
    run_id: str
    champion: str
    good: str
    permuted: str

    def evaluation(self, bundle: str) -> str:
        return evaluate(bundle, self.tiny.blocks, self.tiny.split.uri, FEATURES, EVALUATE, LENIENT, self.tiny.store).uri


@pytest.fixture(scope="module")
def prepared(make_corpus: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("live")
    tiny = prepare(root, make_corpus(root / "corpus", speakers=48))
    settings = TRAIN.model_dump() | {"epochs": 25, "mixup": 0.0, "spec_augment": None}
    model = RESCNN.model_copy(update={"channels": [8, 16]})
    champion, good = (tiny.train(model, TrainConfig(**(settings | {"seed": seed}))) for seed in (0, 1))
    bundle = load_bundle(champion.bundle_uri)
    state = bundle.classifier.state_dict()
    last = [name for name, value in state.items() if value.shape[:1] == (3,)]
    with torch.no_grad():
        for name in last:
            state[name].copy_(state[name][[1, 2, 0]].clone())
    permuted = save_bundle(bundle.classifier, bundle.spec, tiny.store)
    return Prepared(tiny, champion.run_id, champion.bundle_uri, good.bundle_uri, permuted)


@dataclass
class Production:
    """A platform with a champion, and clients."""

    prepared: Prepared
    folder: Path

    @property
    def tracking(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def store(self) -> str:
        return str(self.folder / "store")

    def backend(self, canary: list[str] | None = None) -> LocalBackend:
        champion = Registry(self.tracking).champion(NAME)
        assert champion is not None
        stable = ServedVersion(champion.version, champion.bundle_uri)
        return LocalBackend("mood", self.folder, 90.0, 30.0, canary_command=canary, stable=stable)

    def roll_out(self, bundle: str, canary: list[str] | None = None) -> tuple[Rollout, Deployed, dict[str, int]]:
        """Deploy a bundle while clients ask; what came of it, what is in force, and what the clients saw."""
        prepared = self.prepared
        probe = draw_probe(prepared.tiny.split, load_bundle(bundle).spec.limits, 40, 1)
        watching = self.backend(canary)  # keeps the platform, as `kubevox serve` does
        try:
            with Clients("mood", watching.endpoints().route, probe, requests_per_s=20) as clients:
                outcome = deploy(
                    bundle,
                    prepared.evaluation(bundle),
                    prepared.run_id,
                    NAME,
                    CONFIG,
                    self.store,
                    self.tracking,
                    backend=self.backend(canary),
                )
            return outcome, watching.observe(), counts(clients.answers)
        finally:
            watching.close()

    @property
    def champion(self) -> str:
        champion = Registry(self.tracking).champion(NAME)
        assert champion is not None
        return champion.version


@pytest.fixture
def production(prepared: Prepared, tmp_path: Path) -> Production:
    shutil.copy(prepared.tiny.tracking.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    made = Production(prepared, tmp_path)
    registry = Registry(made.tracking)
    registry.promote(registry.register(NAME, prepared.champion, prepared.run_id, {}))
    return made


def test_a_good_challenger_gets_its_shares_and_nobody_notices(production: Production) -> None:
    outcome, deployed, seen = production.roll_out(production.prepared.good)
    assert (outcome.outcome, outcome.champion, outcome.previous) == ("promoted", "2", "1"), outcome.reason
    assert deployed == Deployed(ServedVersion("2", production.prepared.good), None, 0)
    steps = json.loads(Path(outcome.uri).read_text())["steps"]
    shares = {step["percent"]: check for step in steps for check in step["checks"] if check["name"] == "share"}
    assert shares.keys() == {10, 50, 100}
    for percent, share in shares.items():
        assert abs(share["value"] - percent / 100) <= 0.03
    assert shares[50]["n"] >= 1068
    assert set(seen) == {"answered 1", "answered 2"}, "no client saw a failure"


@pytest.mark.parametrize(
    ("canary", "criterion"),
    [
        ([sys.executable, "-c", "raise SystemExit('error: no such layer')"], "start"),
        ([*FAULTY, "--errors", "0.05", *server_command()[3:]], "error_rate"),
        ([*FAULTY, "--slow", "3", *server_command()[3:]], "latency_p95"),
        (None, "uar"),
    ],
    ids=["crashes on start", "5 % errors", "3 times slower", "labels permuted"],
)
def test_a_bad_challenger_is_taken_back_and_clients_saw_its_own_failures_only(
    production: Production, canary: list[str] | None, criterion: str
) -> None:
    bundle = production.prepared.good if canary else production.prepared.permuted
    outcome, deployed, seen = production.roll_out(bundle, canary)
    assert outcome.outcome == "rolled_back"
    assert criterion in outcome.criterion.split(", ")
    assert (outcome.champion, production.champion) == ("1", "1")
    assert deployed == Deployed(ServedVersion("1", production.prepared.champion), None, 0)
    others = {"failed 500"} if criterion == "error_rate" else set()
    assert set(seen) <= {"answered 1", "answered 2"} | others


@pytest.mark.parametrize(
    ("number", "when"), [(3, "after"), (7, "after"), (10, "before"), (15, "after"), (16, "before"), (17, "before")]
)
def test_killed_and_run_again_the_challenger_is_champion(production: Production, number: int, when: str) -> None:
    """Entries: 3 candidate, 7 watching at 10 %, 10 watching at 50 %, 15 promoting, 16 promoted, 17 champion."""
    prepared = production.prepared
    told = {
        "bundle_uri": prepared.good,
        "evaluation_uri": prepared.evaluation(prepared.good),
        "run_id": prepared.run_id,
        "name": NAME,
        "store": production.store,
        "tracking_uri": production.tracking,
    }
    more = {"config": CONFIG.to_json(), "number": number, "when": when}
    command = [sys.executable, "-m", "tests.deployment.deadly_journal", json.dumps(told | more)]
    assert subprocess.run(command, cwd=ROOT, timeout=200, check=False).returncode == -signal.SIGKILL
    outcome = deploy(**told, config=CONFIG)
    assert (outcome.outcome, outcome.champion, outcome.previous) == ("promoted", "2", "1"), outcome.reason
    backend = production.backend()
    try:
        assert backend.observe() == Deployed(ServedVersion("2", prepared.good), None, 0)
    finally:
        backend.close()
