"""A rollout's back end on KServe, over the Kubernetes API.

With ``KUBECONFIG`` set the API is that cluster's, which needs KServe's definitions and must not run its controller: the
tests write the status themselves. Otherwise it is a stand-in on loopback.
"""

import copy
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient, ApiException, Configuration, CoreV1Api, CustomObjectsApi
from kubernetes.watch import Watch

from kubevox.config import KServeConfig
from kubevox.deployment.backend import ChallengerError, Deployed, Endpoint, ServedVersion
from kubevox.deployment.kserve import KServeBackend
from kubevox.deployment.kserve.cluster import connect
from kubevox.errors import DeploymentError
from tests.deployment.kserve_controller import Controller, waited_for
from tests.deployment.kubernetes_api import KubernetesApi, Schemas, role, running, schemas

KIND = {"group": "serving.kserve.io", "version": "v1beta1", "plural": "inferenceservices"}
ONE, TWO, THREE = (ServedVersion(number, f"s3://models/bundles/{number * 8}") for number in "123")
NOTHING = Deployed(None, None, 0)


@dataclass
class Cluster:
    """A namespace, and two ways to it: a rollout's, and an administrator's."""

    mode: str
    namespace: str
    client: Callable[[], ApiClient]
    admin: ApiClient
    controller: Controller
    schemas: Schemas
    standin: KubernetesApi | None

    def backend(self, client: ApiClient | None = None, timeout_s: float = 10.0, **settings: Any) -> KServeBackend:
        """The back end under test."""
        config = KServeConfig(mode=self.mode, namespace=self.namespace, poll_s=0.01, **settings)
        return KServeBackend(config, "emotion", timeout_s, 5.0, client or self.client())

    def service(self) -> dict[str, Any]:
        """The InferenceService, as it lies in the cluster."""
        return CustomObjectsApi(self.admin).get_namespaced_custom_object(
            namespace=self.namespace, name="emotion", **KIND
        )

    def predictor(self) -> dict[str, Any]:
        """What is in production; or in Knative mode, the challenger."""
        return self.service()["spec"]["predictor"]

    def gone(self) -> bool:
        """Whether there is no InferenceService."""
        try:
            self.service()
        except ApiException as error:
            return error.status == 404
        return False

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """What somebody else writes."""
        while True:
            body = self.service()
            change(body)
            try:
                CustomObjectsApi(self.admin).replace_namespaced_custom_object(
                    namespace=self.namespace, name="emotion", body=body, **KIND
                )
                return
            except ApiException as error:
                if error.status != 409:
                    raise


def api_client(url: str, token: str) -> ApiClient:
    settings = Configuration(host=url)
    settings.api_key = {"authorization": f"Bearer {token}"}
    settings.retries = False
    return ApiClient(settings)


@pytest.fixture(scope="module")
def known_kinds() -> Schemas:
    return schemas()


@pytest.fixture(scope="module")
def standin(known_kinds: Schemas, repository: Path) -> Iterator[KubernetesApi | None]:
    if os.environ.get("KUBECONFIG"):
        yield None
        return
    with running(KubernetesApi(known_kinds, rules=role(repository / "kserve" / "access.yaml"))) as api:
        yield api


@pytest.fixture
def needs_standin(standin: KubernetesApi | None) -> KubernetesApi:
    if standin is None:
        pytest.skip("a real API server cannot be made to fail")
    return standin


@pytest.fixture(params=["standard", "knative"])
def cluster(request: pytest.FixtureRequest, standin: KubernetesApi | None, known_kinds: Schemas) -> Iterator[Cluster]:
    url = standin.url if standin else ""
    admin = api_client(url, "admin") if standin else connect(None)
    namespace = f"kubevox-test-{secrets.token_hex(4)}"
    if standin is not None:
        standin.kserve, standin.faults = True, []
        standin.requests.clear()
        standin.written.clear()
    else:
        try:
            CustomObjectsApi(admin).list_namespaced_custom_object(namespace="default", **KIND)
        except ApiException as error:
            pytest.skip(f"the cluster of KUBECONFIG has no InferenceServices ({error.status}); install KServe's CRDs")
    CoreV1Api(admin).create_namespace({"metadata": {"name": namespace}})
    try:
        with Controller(admin, namespace, request.param) as controller:
            client = (lambda: api_client(url, "rollout")) if standin else (lambda: connect(None))
            yield Cluster(request.param, namespace, client, admin, controller, known_kinds, standin)
    finally:
        CoreV1Api(admin).delete_namespace(namespace)
        admin.close()


@pytest.fixture
def served(cluster: Cluster) -> Cluster:
    """A cluster with version 1 in production."""
    backend = cluster.backend()
    backend.start_canary(ONE)
    backend.promote()
    return cluster


# The story


def test_the_first_challenger_comes_up_alone_and_is_promoted_without_touching_its_pods(cluster: Cluster) -> None:
    backend = cluster.backend()
    assert backend.observe() == NOTHING
    backend.start_canary(ONE)
    assert backend.observe() == Deployed(None, ONE, 0)
    pods = copy.deepcopy(cluster.controller.pods)
    backend.set_canary_percent(10)
    assert backend.observe() == Deployed(None, ONE, 10)
    assert cluster.controller.routes[-1] == {"1": 100}, "there is nobody else who could answer"
    backend.promote()
    assert backend.observe() == Deployed(ONE, None, 0)
    assert cluster.controller.pods == pods
    assert cluster.controller.restarts == []


def test_a_challenger_gets_its_shares_and_becomes_the_version_in_production(served: Cluster) -> None:
    backend = served.backend()
    backend.start_canary(TWO)
    assert backend.observe() == Deployed(ONE, TWO, 0)
    for percent in (10, 50, 100, 50):
        backend.set_canary_percent(percent)
        # With all of it, KServe on Knative would forget the version in production.
        percent = min(percent, 99 if served.mode == "knative" else 100)
        assert backend.observe() == Deployed(ONE, TWO, percent)
        assert backend.endpoints().stable is not None
        shares = {"1": 100 - percent, "2": percent}
        assert served.controller.routes[-1] == {version: share for version, share in shares.items() if share}
    pods = served.controller.pods[challengers_pods(served)]
    backend.promote()
    assert backend.observe() == Deployed(TWO, None, 0)
    assert served.controller.routes[-1] == {"2": 100}
    assert served.controller.pods[challengers_pods(served)] == pods, "nothing of it may start anew"
    assert served.controller.restarts == []
    assert "canary" not in served.service()["spec"]
    assert "canaryTrafficPercent" not in served.predictor()


def test_taking_back_leaves_exactly_the_former_spec_and_never_gives_the_challenger_more(served: Cluster) -> None:
    former = served.service()["spec"]
    backend = served.backend()
    backend.start_canary(TWO)
    backend.set_canary_percent(10)
    seen = len(served.controller.routes)
    served.controller.script.passes = 20  # what is put back takes its time to come up
    backend.take_back()
    assert served.service()["spec"] == former
    assert backend.observe() == Deployed(ONE, None, 0)
    assert served.controller.routes[-1] == {"1": 100}
    assert all(route.get("2", 0) <= 10 for route in served.controller.routes[seen - 1 :])
    assert served.controller.restarts == []


def test_rollouts_follow_one_another(served: Cluster) -> None:
    backend = served.backend()
    backend.start_canary(TWO)
    backend.take_back()
    backend.start_canary(THREE)
    backend.set_canary_percent(50)
    backend.promote()
    assert backend.observe() == Deployed(THREE, None, 0)
    backend.start_canary(TWO)
    assert backend.observe() == Deployed(THREE, TWO, 0)
    backend.take_back()
    assert backend.observe() == Deployed(THREE, None, 0)


def test_a_challenger_replaces_another_one(served: Cluster) -> None:
    backend = served.backend()
    backend.start_canary(TWO)
    backend.set_canary_percent(10)
    backend.start_canary(THREE)
    assert backend.observe() == Deployed(ONE, THREE, 0)
    assert served.controller.routes[-1] == {"1": 100}
    backend.take_back()
    assert backend.observe() == Deployed(ONE, None, 0)


def test_a_first_challenger_replaces_another_one_and_taken_back_leaves_nothing(cluster: Cluster) -> None:
    backend = cluster.backend()
    backend.start_canary(ONE)
    backend.start_canary(TWO)
    assert backend.observe() == Deployed(None, TWO, 0)
    backend.take_back()
    assert cluster.gone()
    assert backend.observe() == NOTHING


def test_every_call_may_be_repeated(cluster: Cluster) -> None:
    backend = cluster.backend()
    for version in (ONE, TWO):
        for _ in range(2):
            backend.start_canary(version)
        for _ in range(2):
            backend.set_canary_percent(10)
        for _ in range(2):
            backend.promote()
        assert backend.observe() == Deployed(version, None, 0)
    backend.start_canary(THREE)
    generation = served_generation(cluster)
    backend.start_canary(THREE)
    assert served_generation(cluster) == generation, "what is so already is not written"
    for _ in range(2):
        backend.take_back()
    assert backend.observe() == Deployed(TWO, None, 0)


def test_taking_back_where_nothing_is_deployed_does_nothing(cluster: Cluster) -> None:
    cluster.backend().take_back()
    assert cluster.gone()


# What is written


def test_every_written_object_is_valid_and_says_which_version_each_predictor_is(served: Cluster) -> None:
    settings = {
        "image": "registry.example.com/kubevox-serving:2",
        "service_account": "kubevox",
        "min_replicas": 4,
        "max_replicas": 8,
        "args": ["--device=auto"],
        "env": {"AWS_REGION": "eu-north-1"},
    }
    backend = served.backend(**settings)
    backend.start_canary(TWO)
    backend.set_canary_percent(50)
    backend.promote()
    backend.start_canary(THREE)
    backend.take_back()
    service = served.service()
    assert served.schemas.complaints(service) == []
    for body in served.standin.written if served.standin else []:
        assert served.schemas.complaints(body) == []
    predictor = service["spec"]["predictor"]
    assert predictor["annotations"] == {"kubevox/version": "2", "kubevox/bundle": TWO.bundle_uri}
    assert predictor["serviceAccountName"] == "kubevox"
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (4, 8)
    model = predictor["model"]
    assert model["storageUri"] == TWO.bundle_uri
    assert model["args"] == ["--model_name=emotion", "--model_version=2", "--device=auto"]
    assert model["env"] == [{"name": "AWS_REGION", "value": "eu-north-1"}]
    assert (model["image"], model["runtime"]) == (settings["image"], "kubevox")
    assert model["modelFormat"] == {"name": "kubevox"}


def test_a_challenger_has_as_many_servers_as_its_share_asks_for(cluster: Cluster) -> None:
    if cluster.mode == "knative":
        pytest.skip("Knative scales every revision by itself")
    backend = cluster.backend(min_replicas=4, max_replicas=6)
    backend.start_canary(ONE)
    backend.promote()
    assert cluster.predictor()["minReplicas"] == 4
    backend.start_canary(TWO)
    counts = []
    for percent in (0, 10, 50, 100):
        backend.set_canary_percent(percent)
        counts.append(cluster.service()["spec"]["canary"][0]["predictor"]["minReplicas"])
    assert counts == [1, 1, 2, 4]
    backend.set_canary_percent(10)
    backend.promote()
    assert (cluster.predictor()["minReplicas"], cluster.predictor()["maxReplicas"]) == (4, 6)


def test_what_others_wrote_in_the_service_stays(served: Cluster) -> None:
    def edit(body: dict[str, Any]) -> None:
        body["metadata"].setdefault("labels", {})["team"] = "speech"
        body["spec"]["predictor"]["tolerations"] = [{"key": "gpu", "operator": "Exists"}]
        body["spec"]["transformer"] = {"containers": [{"name": "kserve-container", "image": "transformer:1"}]}

    served.edit(edit)
    backend = served.backend()
    backend.start_canary(TWO)
    backend.promote()
    service = served.service()
    assert service["metadata"]["labels"]["team"] == "speech"
    assert service["spec"]["transformer"]["containers"][0]["image"] == "transformer:1"
    if served.mode == "standard":
        # The canary's pods had it from the stable predictor, and nothing may start anew.
        assert service["spec"]["predictor"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]


def test_the_rights_that_a_rollout_is_granted_are_those_it_uses(served: Cluster, needs_standin: KubernetesApi) -> None:
    backend = served.backend()
    backend.start_canary(TWO)
    backend.take_back()
    served.controller.script.broken = {"3"}
    with pytest.raises(DeploymentError, match="was not ready"):
        served.backend(timeout_s=0.3).start_canary(THREE)
    backend.close()


# Where requests go


def test_endpoints_lead_to_the_route_and_straight_to_each_version(served: Cluster) -> None:
    backend = served.backend()
    alone = backend.endpoints()
    assert alone.canary is None
    backend.start_canary(TWO)
    found = backend.endpoints()
    where = served.namespace
    if served.mode == "standard":
        assert found.route == Endpoint(f"http://emotion-{where}.example.com")
        assert found.stable == alone.stable == Endpoint(f"http://emotion-v1-predictor.{where}.svc.cluster.local")
        assert found.canary == Endpoint(f"http://emotion-v2-predictor.{where}.svc.cluster.local")
    else:
        assert found.route == Endpoint(f"http://emotion.{where}.example.com")
        assert found.stable == Endpoint(f"http://prev-emotion-predictor.{where}.example.com")
        assert found.canary == Endpoint(f"http://latest-emotion-predictor.{where}.example.com")
        assert alone.stable == found.canary, "the latest revision, whichever that is"


def test_endpoints_go_by_way_of_a_gateway_where_one_is_named(cluster: Cluster) -> None:
    settings = {"gateway_url": "http://127.0.0.1:8080/", "direct_url": "http://127.0.0.1:8001/{namespace}/{service}/"}
    backend = cluster.backend(**settings)
    backend.start_canary(ONE)
    found = backend.endpoints()
    dot = "-" if cluster.mode == "standard" else "."
    host = f"emotion{dot}{cluster.namespace}.example.com"
    assert found.route == Endpoint("http://127.0.0.1:8080", {"Host": host})
    assert found.stable is None
    if cluster.mode == "standard":
        assert found.canary == Endpoint(f"http://127.0.0.1:8001/{cluster.namespace}/emotion-v1-predictor")
    else:
        host = f"latest-emotion-predictor.{cluster.namespace}.example.com"
        assert found.canary == Endpoint("http://127.0.0.1:8080", {"Host": host})


def test_endpoints_of_nothing_are_an_error(cluster: Cluster) -> None:
    with pytest.raises(DeploymentError, match="there is none"):
        cluster.backend().endpoints()


# What does not come about


def test_a_challenger_that_never_becomes_ready_is_taken_back_and_what_is_stuck_is_named(served: Cluster) -> None:
    former = served.service()["spec"]
    served.controller.script.broken = {"2"}
    served.controller.script.why = ("RevisionFailed", "Container failed with: bundle.json is missing")
    with pytest.raises(ChallengerError) as caught:
        served.backend(timeout_s=0.8).start_canary(TWO)
    said = str(caught.value)
    assert f"InferenceService {served.namespace}/emotion: version 2 was not ready within 0.8 s" in said
    assert "; it was taken back" in said
    if served.mode == "standard":
        assert "condition CanaryPredictorReady is False (CanariesNotReady)" in said
    else:
        assert "revision emotion-predictor-00002 is not ready" in said
        assert "condition PredictorReady is False (RevisionFailed: Container failed with: bundle.json is miss" in said
    assert served.service()["spec"] == former
    assert served.backend().observe() == Deployed(ONE, None, 0)
    assert {"2"} & set().union(*served.controller.routes) == set(), "it never had a request"


def test_a_first_challenger_that_never_becomes_ready_leaves_nothing(cluster: Cluster) -> None:
    cluster.controller.script.broken = {"1"}
    with pytest.raises(DeploymentError, match=r"condition PredictorReady is False \(MinimumReplicasUnavailable: Depl"):
        cluster.backend(timeout_s=0.8).start_canary(ONE)
    assert cluster.gone()


def test_a_stuck_route_is_named(cluster: Cluster) -> None:
    cluster.controller.script.ingress = ("NotAllowedByListeners", "Predictor hostnames matched no listener")
    with pytest.raises(DeploymentError, match=r"IngressReady is False \(NotAllowedByListeners: Predictor hostnames ma"):
        cluster.backend(timeout_s=0.8).start_canary(ONE)
    assert cluster.gone()


def test_a_controller_that_does_not_run_is_named(cluster: Cluster) -> None:
    cluster.controller.script.acts = False
    with pytest.raises(DeploymentError, match="no controller has written a status: does KServe's run"):
        cluster.backend(timeout_s=0.3).start_canary(ONE)
    assert cluster.gone()


def test_a_share_that_does_not_come_into_force_is_put_back(served: Cluster) -> None:
    backend = served.backend()
    backend.start_canary(TWO)
    backend.set_canary_percent(10)
    served.controller.script.acts = False
    with pytest.raises(DeploymentError, match=r"a share of 50 % was not in force within 0\.3 s.*; it is 10 % again"):
        served.backend(timeout_s=0.3).set_canary_percent(50)
    assert backend.observe() == Deployed(ONE, TWO, 10)


def test_a_promotion_that_nobody_begins_is_undone(served: Cluster) -> None:
    backend = served.backend()
    backend.start_canary(TWO)
    backend.set_canary_percent(50)
    before = served.service()["spec"]
    served.controller.script.acts = False
    with pytest.raises(DeploymentError, match=r"the promotion was not in force within .*; it was undone"):
        served.backend(timeout_s=0.3).promote()
    assert served.service()["spec"] == before
    assert backend.observe() == Deployed(ONE, TWO, 50)


def test_a_promotion_that_has_begun_stands(served: Cluster) -> None:
    backend = served.backend()
    backend.start_canary(TWO)
    backend.set_canary_percent(50)
    served.controller.script.ingress = ("HttpRouteNotReady", "")
    with pytest.raises(DeploymentError, match=r"IngressReady is False .*; it stands all the same"):
        served.backend(timeout_s=0.8).promote()
    assert backend.observe() == Deployed(TWO, None, 0), "the former version's pods may be gone already"
    served.controller.script.ingress = None
    backend.promote()


def test_what_ails_a_pod_is_said(served: Cluster, needs_standin: KubernetesApi) -> None:
    labels = {"app": "isvc.emotion-v2-predictor", "serving.kserve.io/inferenceservice": "emotion"}
    ended = {"exitCode": 1, "reason": "Error", "message": "Traceback\nerror: bundle s3://models: damaged\n"}
    pod = {
        "metadata": {"name": "emotion-v2-predictor-x", "labels": labels},
        "status": {
            "containerStatuses": [
                {
                    **{"name": "kserve-container", "image": "i", "imageID": "i", "ready": False, "restartCount": 3},
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting"}},
                    "lastState": {"terminated": ended},
                }
            ]
        },
    }
    CoreV1Api(served.admin).create_namespaced_pod(served.namespace, pod)
    served.controller.script.broken = {"2"}
    with pytest.raises(DeploymentError) as caught:
        served.backend(timeout_s=0.3).start_canary(TWO)
    assert (
        "pod emotion-v2-predictor-x: kserve-container ended with 1 (Error: error: bundle s3://models: damaged) and "
        "waits (CrashLoopBackOff: back-off 10s restarting)" in str(caught.value)
    )


# Somebody else


def test_a_write_that_met_another_is_made_anew(served: Cluster, needs_standin: KubernetesApi) -> None:
    backend = served.backend()
    backend.start_canary(TWO)
    needs_standin.fail("PUT", 409, "the object has been modified", times=3, path="inferenceservices/emotion")
    backend.set_canary_percent(10)
    assert backend.observe() == Deployed(ONE, TWO, 10)
    assert all(fault.times == 0 for fault in needs_standin.faults)


def test_a_passing_failure_of_the_api_is_lived_through(served: Cluster, needs_standin: KubernetesApi) -> None:
    backend = served.backend()
    for verb, status in (("GET", 503), ("PUT", 500), ("GET", 429)):
        needs_standin.fail(verb, status, times=2, path="inferenceservices/emotion")
    backend.start_canary(TWO)
    assert backend.observe() == Deployed(ONE, TWO, 0)


class Meddling(ApiClient):
    """A client of whose reads the first is followed by something that somebody else does."""

    def __init__(self, client: ApiClient, meddle: Callable[[], None], after: int = 1) -> None:
        super().__init__(client.configuration)
        self._meddle, self._left = meddle, after

    def request(self, method: str, *args: Any, **options: Any) -> Any:
        try:
            return super().request(method, *args, **options)
        finally:
            if method == "GET":
                self._left -= 1
                if self._left == 0:
                    self._meddle()


def test_a_rollout_gives_up_where_another_one_came_in_between(served: Cluster) -> None:
    other = served.backend()
    other.start_canary(TWO)
    meddling = Meddling(served.client(), lambda: other.start_canary(THREE))
    with pytest.raises(
        DeploymentError, match="expected version 1 in production, challenger version 2; found version 1"
    ):
        served.backend(meddling).set_canary_percent(50)
    assert other.observe() == Deployed(ONE, THREE, 0)
    meddling = Meddling(served.client(), other.promote)
    with pytest.raises(DeploymentError, match="found version 3 in production, challenger none"):
        served.backend(meddling).take_back()
    assert other.observe() == Deployed(THREE, None, 0)


def test_two_first_challengers_do_not_overwrite_each_other(cluster: Cluster) -> None:
    other = cluster.backend()
    meddling = Meddling(cluster.client(), lambda: other.start_canary(TWO))
    with pytest.raises(DeploymentError, match="expected nothing in production, challenger none; found nothing in prod"):
        cluster.backend(meddling).start_canary(ONE)
    assert other.observe() == Deployed(None, TWO, 0)


def test_a_service_that_is_not_ours_is_left_alone(served: Cluster) -> None:
    def edit(body: dict[str, Any]) -> None:
        body["spec"]["predictor"]["model"]["args"] = ["--model_name=emotion"]

    served.edit(edit)
    backend = served.backend()
    for call in (backend.observe, lambda: backend.start_canary(TWO), backend.take_back):
        with pytest.raises(DeploymentError, match=r"so it is not Kubevox's; name another in deploy\.kserve\.name"):
            call()


def test_a_service_of_the_other_mode_is_refused(served: Cluster) -> None:
    other = "knative" if served.mode == "standard" else "standard"
    config = KServeConfig(mode=other, namespace=served.namespace)
    said = "Standard" if served.mode == "standard" else "Knative"
    with pytest.raises(DeploymentError, match=f"runs in mode {said}, and deploy.kserve.mode is {other}"):
        KServeBackend(config, "emotion", 1.0, 5.0, served.client()).observe()


# Killed


class KilledError(BaseException):
    """The process ends here."""


class Mortal(ApiClient):
    """A client whose process dies after so many writes."""

    def __init__(self, client: ApiClient, writes: int) -> None:
        super().__init__(client.configuration)
        self._left = writes

    def request(self, method: str, *args: Any, **options: Any) -> Any:
        if method != "GET" and self._left == 0:
            raise KilledError
        answer = super().request(method, *args, **options)
        if method != "GET":
            self._left -= 1
            if self._left == 0:
                raise KilledError
        return answer


OPERATIONS: dict[str, Callable[[KServeBackend], None]] = {
    "start": lambda backend: backend.start_canary(THREE),
    "share": lambda backend: backend.set_canary_percent(50),
    "promote": lambda backend: backend.promote(),
    "take back": lambda backend: backend.take_back(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("then", ["again", "take back"])
def test_killed_after_any_write_a_rerun_goes_on_or_takes_back(served: Cluster, operation: str, then: str) -> None:
    backend = served.backend()
    former = served.service()["spec"]
    wanted = {
        "start": Deployed(ONE, THREE, 0),
        "share": Deployed(ONE, TWO, 50),
        "promote": Deployed(TWO, None, 0),
        "take back": Deployed(ONE, None, 0),
    }[operation]
    for writes in range(1, 10):
        if backend.observe() != Deployed(ONE, TWO, 0):
            backend.start_canary(TWO)
        mortal = served.backend(Mortal(served.client(), writes))
        try:
            OPERATIONS[operation](mortal)
            killed = False
        except KilledError:
            killed = True
        found = backend.observe()
        assert found.stable in (ONE, TWO)
        promoted = found == Deployed(TWO, None, 0)
        if then == "again" or promoted:
            OPERATIONS[operation](backend)
            assert backend.observe() == wanted
        else:
            backend.take_back()
            assert backend.observe() == Deployed(ONE, None, 0)
            assert served.service()["spec"] == former
        if not killed:
            break
        if promoted or wanted.stable == TWO:
            return  # one write, and no way back
        if backend.observe() == Deployed(ONE, THREE, 0):
            backend.take_back()
    else:
        pytest.fail("no number of writes was enough")
    assert served.controller.restarts == []


@pytest.mark.parametrize("then", ["again", "take back"])
def test_killed_while_the_first_challenger_comes_up_a_rerun_goes_on_or_takes_back(cluster: Cluster, then: str) -> None:
    with pytest.raises(KilledError):
        cluster.backend(Mortal(cluster.client(), 1)).start_canary(ONE)
    backend = cluster.backend()
    assert backend.observe() == Deployed(None, ONE, 0)
    if then == "again":
        backend.start_canary(ONE)
        with pytest.raises(KilledError):
            cluster.backend(Mortal(cluster.client(), 1)).promote()
        backend.promote()
        assert backend.observe() == Deployed(ONE, None, 0)
    else:
        with pytest.raises(KilledError):
            cluster.backend(Mortal(cluster.client(), 1)).take_back()
        backend.take_back()
        assert cluster.gone()


# What a user can do wrong


@pytest.mark.parametrize("percent", [-1, 101, True, 10.0])
def test_a_share_is_a_whole_number_of_percent(served: Cluster, percent: Any) -> None:
    backend = served.backend()
    backend.start_canary(TWO)
    with pytest.raises(DeploymentError, match="a challenger's share is a whole number from 0 to 100"):
        backend.set_canary_percent(percent)
    assert backend.observe() == Deployed(ONE, TWO, 0)


def test_a_share_for_nobody_is_refused(served: Cluster) -> None:
    with pytest.raises(DeploymentError, match="there is no challenger that could have a share"):
        served.backend().set_canary_percent(10)


def test_what_is_in_production_is_no_challenger(served: Cluster) -> None:
    backend = served.backend()
    with pytest.raises(DeploymentError, match="version 1 is in production already"):
        backend.start_canary(ONE)
    with pytest.raises(DeploymentError, match="version 9 has the very bundle of version 1, which is in production"):
        backend.start_canary(ServedVersion("9", ONE.bundle_uri))


def test_a_bundle_in_a_folder_is_refused_before_anything_is_written(cluster: Cluster) -> None:
    refusal = "a pod reads a bucket, not a folder of this machine; set store: s3://"
    with pytest.raises(DeploymentError, match=refusal) as caught:
        cluster.backend().start_canary(ServedVersion("1", "/home/me/.kubevox/store/bundles/abc"))
    assert not isinstance(caught.value, ChallengerError)
    assert cluster.gone()


def test_nothing_to_promote_is_an_error(cluster: Cluster) -> None:
    with pytest.raises(DeploymentError, match="there is none"):
        cluster.backend().promote()


def test_an_api_that_does_not_answer_is_named(known_kinds: Schemas) -> None:
    backend = KServeBackend(KServeConfig(), "emotion", 0.2, 0.2, api_client("http://127.0.0.1:9", "rollout"))
    with pytest.raises(DeploymentError, match=r"the Kubernetes API at http://127\.0\.0\.1:9 does not answer"):
        backend.observe()


def test_an_api_that_hangs_is_given_up(known_kinds: Schemas) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeploymentError, match=r"does not answer .*timed out"):
            KServeBackend(KServeConfig(), "emotion", 0.2, 0.2, api_client(url, "rollout")).observe()


def test_no_known_cluster_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(DeploymentError, match=r"no Kubernetes cluster is known here .*; set KUBECONFIG"):
        KServeBackend(KServeConfig(), "emotion", 1.0, 1.0)


def test_credentials_that_are_not_taken_are_named(cluster: Cluster, needs_standin: KubernetesApi) -> None:
    with pytest.raises(DeploymentError, match="does not take these credentials; renew them"):
        cluster.backend(api_client(needs_standin.url, "expired")).observe()


def test_a_right_that_is_missing_is_named(cluster: Cluster, needs_standin: KubernetesApi) -> None:
    said = 'inferenceservices.serving.kserve.io is forbidden: User "me" cannot create resource "inferenceservices"'
    needs_standin.fail("POST", 403, said, path="inferenceservices")
    with pytest.raises(DeploymentError, match=r"not allowed to create it \(.*User \"me\".*kserve/access\.yaml"):
        cluster.backend().start_canary(ONE)


def test_a_cluster_without_kserve_is_named(cluster: Cluster, needs_standin: KubernetesApi) -> None:
    needs_standin.kserve = False
    try:
        with pytest.raises(
            DeploymentError, match=r"knows no inferenceservices\.serving\.kserve\.io/v1beta1: KServe is"
        ):
            cluster.backend().observe()
    finally:
        needs_standin.kserve = True


def test_a_namespace_that_is_missing_is_named(cluster: Cluster) -> None:
    config = KServeConfig(mode=cluster.mode, namespace="nowhere-at-all")
    backend = KServeBackend(config, "emotion", 1.0, 5.0, cluster.client())
    with pytest.raises(
        DeploymentError, match="there is no namespace nowhere-at-all; make it: kubectl create namespace"
    ):
        backend.start_canary(ONE)


def test_what_the_webhook_refuses_is_said_in_its_words(cluster: Cluster, needs_standin: KubernetesApi) -> None:
    settings = {"annotations": {"serving.kserve.io/deploymentMode": "Neither"}}
    backend = cluster.backend(**settings)
    said = 'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: no such mode'
    needs_standin.fail("POST", 403, said, path="inferenceservices")
    with pytest.raises(
        DeploymentError, match=r"the cluster refuses to create it \(403\): admission webhook .*no such m"
    ):
        backend.start_canary(ONE)


def test_a_service_that_is_not_let_go_is_named(cluster: Cluster) -> None:
    backend = cluster.backend()
    backend.start_canary(ONE)
    cluster.edit(lambda body: body["metadata"].__setitem__("finalizers", ["kubevox.test/held"]))
    try:
        with pytest.raises(
            DeploymentError, match=r"is being deleted, for more than 0\.2 s: does KServe's controller run"
        ):
            cluster.backend(timeout_s=0.2).take_back()
        assert backend.observe() == NOTHING
    finally:
        cluster.edit(lambda body: body["metadata"].pop("finalizers"))
    assert waited_for(cluster.gone)


# The API that all this rests on: a stand-in has to keep what Kubernetes promises


def refused(call: Callable[..., Any], **options: Any) -> int:
    with pytest.raises(ApiException) as caught:
        call(**options)
    return caught.value.status


def test_the_api_takes_no_write_that_was_made_from_something_older(served: Cluster) -> None:
    objects, where = CustomObjectsApi(served.admin), {"namespace": served.namespace, "name": "emotion", **KIND}
    served.controller.script.acts = False
    old = served.service()
    served.edit(lambda body: body["metadata"].setdefault("labels", {}).update(team="speech"))
    assert refused(objects.replace_namespaced_custom_object, body=old, **where) == 409
    assert refused(objects.replace_namespaced_custom_object_status, body=old, **where) == 409
    wanted = {"preconditions": {"resourceVersion": old["metadata"]["resourceVersion"]}}
    assert refused(objects.delete_namespaced_custom_object, body=wanted, **where) == 409
    fresh = served.service()
    del fresh["metadata"]["resourceVersion"]
    assert refused(objects.replace_namespaced_custom_object, body=fresh, **where) == 422
    where["name"] = "another"
    assert refused(objects.get_namespaced_custom_object, **where) == 404


def test_the_api_refuses_unknown_fields_and_wrong_values(served: Cluster) -> None:
    objects, where = CustomObjectsApi(served.admin), {"namespace": served.namespace, "name": "emotion", **KIND}
    served.controller.script.acts = False
    for change, status in (({"minReplica": 1}, 400), ({"minReplicas": "many"}, 422)):
        body = served.service()
        body["spec"]["predictor"] |= change
        options = {"body": body, "field_validation": "Strict", **where}
        assert refused(objects.replace_namespaced_custom_object, **options) == status


def test_the_api_keeps_spec_and_status_apart_and_counts_the_specs(served: Cluster) -> None:
    objects, where = CustomObjectsApi(served.admin), {"namespace": served.namespace, "name": "emotion", **KIND}
    served.controller.script.acts = False
    before = served.service()
    body = copy.deepcopy(before)
    body["spec"]["predictor"]["minReplicas"] = 7
    body["status"]["url"] = "http://status.example.com"
    after = objects.replace_namespaced_custom_object_status(body=copy.deepcopy(body), **where)
    assert after["spec"] == before["spec"]
    assert after["status"]["url"] == "http://status.example.com"
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    body["metadata"]["resourceVersion"] = after["metadata"]["resourceVersion"]
    body["status"]["url"] = "http://spec.example.com"
    after = objects.replace_namespaced_custom_object(body=body, **where)
    assert after["spec"]["predictor"]["minReplicas"] == 7
    assert after["status"]["url"] == "http://status.example.com"
    assert after["metadata"]["generation"] == before["metadata"]["generation"] + 1
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_the_api_merges_patches_and_tells_watchers(served: Cluster) -> None:
    served.controller.script.acts = False
    objects, where = CustomObjectsApi(served.admin), {"namespace": served.namespace, **KIND}
    found = objects.list_namespaced_custom_object(**where)
    (service,) = found["items"]
    path = f"/apis/serving.kserve.io/v1beta1/namespaces/{served.namespace}/inferenceservices/emotion"
    patch = {"metadata": {"labels": {"team": "speech"}}, "spec": {"predictor": {"annotations": None}}}
    headers = {"Content-Type": "application/merge-patch+json"}
    served.admin.call_api(path, "PATCH", header_params=headers, body=patch, auth_settings=["BearerToken"])
    after = served.service()
    assert after["metadata"]["labels"] == service["metadata"]["labels"] | {"team": "speech"}
    assert "annotations" not in after["spec"]["predictor"]
    since, watched = found["metadata"]["resourceVersion"], Watch()
    seen = watched.stream(objects.list_namespaced_custom_object, resource_version=since, timeout_seconds=5, **where)
    event = next(event for event in seen if event["object"]["metadata"]["name"] == "emotion")
    watched.stop()
    assert event["type"] == "MODIFIED"
    assert event["object"]["metadata"]["labels"]["team"] == "speech"


def challengers_pods(cluster: Cluster) -> str:
    return "emotion-v2-predictor" if cluster.mode == "standard" else "emotion-predictor-00002"


def served_generation(cluster: Cluster) -> int:
    return cluster.service()["metadata"]["generation"]
