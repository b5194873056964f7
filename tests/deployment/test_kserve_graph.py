"""A cascade as an InferenceGraph."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kubevox.deployment.kserve import inference_graph
from kubevox.errors import DeploymentError
from tests.deployment.kubernetes_api import Schemas, schemas


@pytest.fixture(scope="module")
def known_kinds() -> Schemas:
    return schemas()


def test_the_example_is_what_the_function_renders(repository: Path) -> None:
    text = (repository / "kserve" / "inferencegraph-cascade.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == inference_graph("emotion", "kubevox", "emotion-mini", "emotion-premium", 0.8)


@given(threshold=st.floats(0.0, 1.0))
def test_a_graph_is_valid_and_holds_the_threshold_exactly(known_kinds: Schemas, threshold: float) -> None:
    graph = inference_graph("emotion", "kubevox", "mini", "premium", threshold)
    assert known_kinds.complaints(graph) == []
    condition = graph["spec"]["nodes"]["root"]["steps"][1]["condition"]
    assert float(condition.removeprefix("predictions.#(confidence<").removesuffix(")")) == threshold


def test_premium_is_asked_what_the_client_asked_and_either_may_refuse() -> None:
    (node,) = inference_graph("emotion", "kubevox", "mini", "premium", 0.5)["spec"]["nodes"].values()
    mini, premium = node["steps"]
    assert node["routerType"] == "Sequence"
    assert (mini["serviceName"], premium["serviceName"]) == ("mini", "premium")
    assert "condition" not in mini
    assert premium["data"] == "$request"
    assert [step["dependency"] for step in (mini, premium)] == ["Hard", "Hard"]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_threshold_is_a_confidence(threshold: float) -> None:
    with pytest.raises(DeploymentError, match="a threshold is a confidence from 0 to 1"):
        inference_graph("emotion", "kubevox", "mini", "premium", threshold)


def test_a_step_may_be_a_url(known_kinds: Schemas) -> None:
    url = "http://mini.kubevox.svc.cluster.local/v1/models/emotion:predict"
    graph = inference_graph("emotion", "kubevox", url, "premium", 0.5)
    mini, premium = graph["spec"]["nodes"]["root"]["steps"]
    assert (mini["serviceUrl"], premium["serviceName"]) == (url, "premium")
    assert known_kinds.complaints(graph) == []


def test_a_cascade_is_of_two_services() -> None:
    with pytest.raises(DeploymentError, match="mini and premium are one service, emotion"):
        inference_graph("emotion", "kubevox", "emotion", "emotion", 0.5)
