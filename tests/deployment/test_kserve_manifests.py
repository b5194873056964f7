"""The manifests in `kserve/`: valid, and what the code writes. And the configuration that they come from."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kubevox.config import KServeConfig, load_config
from kubevox.deployment.backend import Deployed, ServedVersion
from kubevox.deployment.kserve import inference_service, predictor
from kubevox.deployment.kserve.knative import PREVIOUS, KnativeMode
from kubevox.deployment.kserve.manifests import overlay
from kubevox.deployment.kserve.modes import ALONE
from kubevox.deployment.kserve.standard import StandardMode
from kubevox.errors import ConfigError, DeploymentError
from kubevox.serving.__main__ import main as serving_main
from tests.deployment.kubernetes_api import Schemas, schemas, webhook

ONE, TWO = (ServedVersion(number, f"s3://models/store/bundles/{number * 8}") for number in "12")
EXAMPLE = {"service_account": "kubevox", "min_replicas": 2, "max_replicas": 6}


@pytest.fixture(scope="module")
def known_kinds() -> Schemas:
    return schemas()


@pytest.fixture(scope="module")
def manifests(repository: Path) -> dict[str, list[dict[str, Any]]]:
    """Every object of `kserve/`, by file."""
    found = sorted((repository / "kserve").glob("*.yaml"))
    return {path.name: list(yaml.safe_load_all(path.read_text(encoding="utf-8"))) for path in found}


def test_every_manifest_of_a_custom_kind_is_valid(
    manifests: dict[str, list[dict[str, Any]]], known_kinds: Schemas
) -> None:
    checked = set()
    for name, bodies in manifests.items():
        for body in bodies:
            if body["kind"] in ("Role", "RoleBinding"):
                continue
            assert known_kinds.complaints(body) == [], name
            if body["kind"] == "InferenceService":
                assert webhook(None, body) is None, name
            checked.add(body["kind"])
    assert checked == {"InferenceService", "InferenceGraph", "ServingRuntime"}


def test_the_folder_of_manifests_holds_no_python(repository: Path) -> None:
    assert not list((repository / "kserve").rglob("*.py"))


def in_the_middle(mode: Any, before: dict[str, Any]) -> dict[str, Any]:
    """What lies in the cluster after a challenger got 10 %."""
    service = mode.start(before, TWO).change(before)
    return mode.share(service, 10).change(service)


@pytest.mark.parametrize(("mode", "keeper"), [("standard", StandardMode), ("knative", KnativeMode)])
def test_the_examples_are_what_a_rollout_writes(
    manifests: dict[str, list[dict[str, Any]]], mode: str, keeper: Any
) -> None:
    config = KServeConfig(mode=mode, **EXAMPLE)
    before = inference_service(config, "emotion", predictor(config, "emotion", ONE))
    before["status"] = {"components": {"predictor": {"latestCreatedRevision": "emotion-predictor-00001"}}}
    written = in_the_middle(keeper(config, "emotion"), before)
    del written["status"]
    (example,) = manifests[f"inferenceservice-{mode}.yaml"]
    for body in (written, example):
        if kept := body["metadata"]["annotations"].pop(PREVIOUS, None):
            assert json.loads(kept) == before["spec"]["predictor"]
    assert example == written


def test_the_runtime_serves_what_the_back_end_writes(manifests: dict[str, list[dict[str, Any]]]) -> None:
    (runtime,) = manifests["runtime.yaml"]
    body = predictor(KServeConfig(), "emotion", ONE)
    assert body["model"]["runtime"] == runtime["metadata"]["name"]
    assert body["model"]["modelFormat"]["name"] in [one["name"] for one in runtime["spec"]["supportedModelFormats"]]
    assert body["model"]["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert runtime["metadata"]["namespace"] == KServeConfig().namespace


def test_the_model_server_takes_the_flags_that_it_is_given(
    manifests: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """KServe puts the InferenceService's flags after the runtime's."""
    import kubevox.serving.server

    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(kubevox.serving.server, "serve", lambda *given, **_: asked.append(given))
    container = manifests["runtime.yaml"][0]["spec"]["containers"][0]
    assert container["command"] == ["python", "-m", "kubevox.serving"]
    config = KServeConfig(args=["--log_store=s3://models/log", '--options={"max_batch":4}'])
    own = predictor(config, "emotion", TWO)["model"]["args"]
    monkeypatch.setattr("sys.argv", ["kubevox.serving", *container["args"], *own])
    serving_main()
    (given,) = asked
    assert given[:3] == ("/mnt/models", "emotion", "2")


@pytest.mark.parametrize("version", ["x", "", "1.5", "-1", "²"])
def test_only_a_number_can_name_a_predictor(version: str) -> None:
    with pytest.raises(DeploymentError, match="only a registered version's number can name a predictor"):
        predictor(KServeConfig(), "emotion", ServedVersion(version, ONE.bundle_uri))


def test_a_service_with_several_canaries_is_refused() -> None:
    config = KServeConfig()
    service = inference_service(config, "emotion", predictor(config, "emotion", ONE))
    entry = {"trafficPercent": 0, "predictor": predictor(config, "emotion", TWO)}
    service["spec"]["canary"] = [entry, entry]
    with pytest.raises(DeploymentError, match="it has 2 canaries, and Kubevox keeps one; remove the others"):
        StandardMode(config, "emotion").observe(service)


def test_a_damaged_memory_of_what_was_in_production_is_named() -> None:
    config = KServeConfig(mode="knative")
    service = inference_service(config, "emotion", predictor(config, "emotion", TWO) | {ALONE: 10})
    service["metadata"]["annotations"][PREVIOUS] = '{"model": '
    with pytest.raises(DeploymentError, match=f"annotation {PREVIOUS} is damaged; while no rollout is under way"):
        KnativeMode(config, "emotion").observe(service)


percents = st.lists(st.integers(0, 100), max_size=4)


@given(mode=st.sampled_from(["standard", "knative"]), shares=percents, end=st.sampled_from(["promote", "take back"]))
def test_whatever_the_shares_the_end_of_a_rollout_is_the_same(
    known_kinds: Schemas, mode: str, shares: list[int], end: str
) -> None:
    config = KServeConfig(mode=mode, **EXAMPLE)
    keeper: Any = StandardMode(config, "emotion") if mode == "standard" else KnativeMode(config, "emotion")
    before = inference_service(config, "emotion", predictor(config, "emotion", ONE))
    service = keeper.start(before, TWO).change(before)
    for percent in shares:
        service = keeper.share(service, percent).change(service)
        assert webhook(before, service) is None
        assert known_kinds.complaints(service) == []
    steps = [keeper.promote(service)] if end == "promote" else keeper.take_back(service)
    for step in steps:
        service = step.change(service)
        assert known_kinds.complaints(service) == []
        assert step.change(service) == service, "made twice it is made once"
    if end == "take back":
        assert service["spec"] == before["spec"]
    else:
        assert service["spec"] == {"predictor": predictor(config, "emotion", TWO)}
    assert webhook(before, service) is None
    assert keeper.observe(service) == Deployed(TWO if end == "promote" else ONE, None, 0)


trees = st.recursive(
    st.one_of(st.text(max_size=3), st.integers(-2, 2), st.lists(st.integers(0, 2), max_size=2)),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
predictors = st.dictionaries(st.sampled_from("abcd"), trees, max_size=4)


@given(stable=predictors, canary=predictors)
def test_what_a_canary_says_holds_and_the_rest_is_the_stable_predictors(
    stable: dict[str, Any], canary: dict[str, Any]
) -> None:
    merged = overlay(stable, canary)
    assert overlay(merged, canary) == merged
    assert overlay(stable, {}) == stable
    assert merged.keys() == stable.keys() | canary.keys()
    for key in merged:
        if key not in canary:
            assert merged[key] == stable[key]
        elif not isinstance(canary[key], dict) and canary[key]:
            assert merged[key] == canary[key]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("min_replicas=0", "only mode knative scales to zero"),
        ("max_replicas=0", "greater than 0"),
        ("direct_url=http://emotion", "must hold {service} and {namespace}, and no other braces"),
        ("direct_url='http://{service}.{namespace}.{cluster}'", "must hold {service} and {namespace}"),
        ("direct_url='http://{service}.{namespace}.{'", "must hold {service} and {namespace}"),
        ("args=[--log_store, s3://log]", "should match pattern"),
        ("resources.limits={memory: a lot}", "should match pattern"),
        ("name=Emotion", "should match pattern"),
        ("name=7emotion", "should match pattern"),
        ("gateway_url=localhost:8080", "should match pattern"),
        ("mode=raw", "'standard' or 'knative'"),
    ],
)
def test_a_configuration_that_kserve_would_not_take_is_refused(repository: Path, setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"deploy\.kserve\.") as caught:
        load_config(repository / "configs" / "emotion.yaml", [f"deploy.kserve.{setting}"])
    assert said in str(caught.value)


def test_more_servers_at_least_than_at_most_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be below min_replicas = 3"):
        KServeConfig(min_replicas=3, max_replicas=2)
