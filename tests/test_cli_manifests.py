"""``kubevox manifests``: what it prints is what the back end and the graph's function make."""

from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from kubevox.cli.manifests import app
from kubevox.config import KServeConfig
from kubevox.deployment.backend import ServedVersion
from kubevox.deployment.kserve import inference_graph, inference_service, predictor
from kubevox.errors import DeploymentError
from kubevox.models.cascade import CascadeFigures, CascadeSpec


def test_a_service_is_printed_as_a_rollout_leaves_it(repository: Path) -> None:
    emotion = str(repository / "configs" / "emotion.yaml")
    words = ["service", "7", "s3://models/bundles/abc", "--config", emotion, "--set", "deploy.kserve.min_replicas=3"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    config = KServeConfig(min_replicas=3)
    body = predictor(config, "emotion", ServedVersion("7", "s3://models/bundles/abc"))
    assert yaml.safe_load(done.stdout) == inference_service(config, "emotion", body)


def test_a_bundle_that_no_pod_can_read_is_refused(repository: Path) -> None:
    words = ["service", "7", "/store/bundles/abc", "--config", str(repository / "configs" / "emotion.yaml")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, DeploymentError)


def test_a_graph_has_its_threshold_from_the_cascade(repository: Path, tmp_path: Path) -> None:
    figures = dict.fromkeys(CascadeFigures.model_fields, 0.5) | {"recordings": 140, "speakers": 5}
    said: dict[str, Any] = {"task": "emotion", "labels": ["angry", "sad"], "mini": "a", "premium": "b"}
    said |= {"threshold": 0.7251, "split_hash": "c", "margin": 0.01, "confidence": 0.95, "figures": figures}
    spec = CascadeSpec(**said, remarks=[], synthetic=True)
    (tmp_path / "cascade.json").write_text(spec.to_json(), encoding="utf-8")
    words = ["graph", str(tmp_path), "emotion-mini", "emotion-premium"]
    done = CliRunner().invoke(app, [*words, "--config", str(repository / "configs" / "emotion.yaml")])
    assert done.exit_code == 0, done.output
    expected = inference_graph("emotion", "kubevox", "emotion-mini", "emotion-premium", 0.7251)
    assert yaml.safe_load(done.stdout) == expected
