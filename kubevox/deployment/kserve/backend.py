"""The back end of a rollout on KServe: one InferenceService, changed a write at a time, each waited for.

What is deployed is read from the object's spec every time, so that a rollout that was killed goes on, or takes back,
from wherever it was. Every write names the version of the object that it was made from: where somebody else wrote in
between, it is made anew from what is there now, if it still makes sense then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

from kubevox.config import KServeConfig
from kubevox.deployment.backend import ChallengerError, Deployed, Endpoints, ServedVersion
from kubevox.deployment.kserve import status
from kubevox.deployment.kserve.cluster import BusyClusterError, ConflictError, InferenceServices, connect
from kubevox.deployment.kserve.knative import KnativeMode
from kubevox.deployment.kserve.manifests import Manifest, inference_service, predictor
from kubevox.deployment.kserve.modes import ALONE, Mode, Step, changed_meanwhile, name_of, through_gateway
from kubevox.deployment.kserve.standard import StandardMode
from kubevox.errors import DeploymentError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

__all__ = ["KServeBackend"]

_PATIENCE_S = 5.0  # with an API that does not answer for a moment, and with others who write
_T = TypeVar("_T")
_NOTHING = Deployed(None, None, 0)


class KServeBackend:
    """Keeps a model's versions in an InferenceService.

    Args:
        config: which one, and how.
        model: the model's name in the URL.
        start_timeout_s: for whatever was written to be in force.
        request_timeout_s: for one request to the Kubernetes API.
        client: of the cluster; None: as the configuration and the environment say.

    Raises:
        DeploymentError: no cluster is known.
    """

    name = "kserve"

    def __init__(
        self,
        config: KServeConfig,
        model: str,
        start_timeout_s: float,
        request_timeout_s: float,
        client: ApiClient | None = None,
    ) -> None:
        self.config, self.model, self._timeout_s = config, model, start_timeout_s
        self._service = config.name or model
        self._where = f"InferenceService {config.namespace}/{self._service}"
        self._cluster = InferenceServices(client or connect(config.context), config.namespace, request_timeout_s)
        self._mode: Mode = (StandardMode if config.mode == "standard" else KnativeMode)(config, model)

    def observe(self) -> Deployed:
        """What the InferenceService's spec says is deployed; nothing, where there is none or it is being deleted.

        A first challenger has all of the route, whatever share it was given.

        Raises:
            DeploymentError: the cluster cannot be asked, or the InferenceService is not Kubevox's.
        """
        service = self._read()
        return _NOTHING if service is None else self._mode.observe(service)

    def start_canary(self, canary: ServedVersion) -> None:
        """Bring a challenger up beside the version in production, with no share of the route; return when it is ready.

        Where another challenger is there, it is replaced. Where nothing is in production, the challenger comes up
        alone, and has the route.

        Raises:
            ChallengerError: it was not ready in time; it is taken back.
            DeploymentError: it is in production already, or cannot be written.
        """
        service = self._read()
        if service is not None:
            found = self._mode.observe(service)
            if found.stable is None and found.canary != canary:
                self._delete(service)
                service = None
        if service is None:
            step = self._mode.first(self._create(canary))
        elif found.stable is None:
            step = self._mode.first(service)
        else:
            step = self._mode.start(service, canary)
        self._write(step)
        try:
            self._wait(step, f"version {canary.version} was not ready")
        except DeploymentError as error:
            self._undo(ChallengerError(str(error)), self.take_back, "it was taken back")

    def set_canary_percent(self, percent: int) -> None:
        """Give the challenger a share of the route, 0 to 100; return when that is in force.

        Raises:
            DeploymentError: there is no challenger; or the share was not in force in time, and then it is as before.
        """
        if isinstance(percent, bool) or not isinstance(percent, int) or not 0 <= percent <= 100:
            raise DeploymentError(f"{self._where}: a challenger's share is a whole number from 0 to 100, not {percent}")
        service = self._existing()
        before = self._mode.observe(service).canary_percent
        step = self._mode.share(service, percent)
        self._write(step)
        try:
            self._wait(step, f"a share of {percent} % was not in force")
        except DeploymentError as error:
            self._undo(
                error, lambda: self._write(self._mode.share(self._existing(), before)), f"it is {before} % again"
            )

    def endpoints(self) -> Endpoints:
        """The ways to what is deployed now.

        Raises:
            DeploymentError: there is none yet.
        """
        service = self._existing()
        url = status.url(service)
        if url is None:
            raise DeploymentError(f"{self._where} has no URL yet; {status.unmet(service, ('Ready',)) or 'wait for it'}")
        stable, canary = self._mode.direct(service)
        return Endpoints(through_gateway(self.config, url), stable, canary)

    def promote(self) -> None:
        """Make the challenger the version in production, with all of the route; the one before is drained and ended.

        Raises:
            DeploymentError: there is nothing to promote; or it was not in force in time. Where KServe has not begun
                with it, it is as before then.
        """
        service = self._existing()
        before = service["spec"]
        step = self._mode.promote(service)
        written = self._write(step)
        try:
            self._wait(step, "the promotion was not in force")
        except DeploymentError as error:
            if written["spec"] == before or self._begun():
                raise DeploymentError(f"{error}; it stands all the same, and may still come into force") from None
            self._undo(error, lambda: self._restore(written["spec"], before), "it was undone")

    def take_back(self) -> None:
        """Remove the challenger; the version in production has all of the route again.

        Raises:
            DeploymentError: it was not in force in time; what was written stands.
        """
        service = self._read()
        if service is None:
            return
        deployed = self._mode.observe(service)
        if deployed.stable is None:
            self._delete(service)
            return
        for step in self._mode.take_back(service):
            self._write(step)
            self._wait(step, f"version {deployed.stable.version} did not have all of the route again")

    def close(self) -> None:
        """Let go of connections."""
        self._cluster.close()

    def _read(self) -> Manifest | None:
        """The InferenceService; None also where it is on its way out."""
        service = self._patiently(lambda: self._cluster.read(self._service))
        if service is None or service["metadata"].get("deletionTimestamp"):
            return None
        status.check_mode(service, self.config)
        return service

    def _gone(self) -> bool:
        return self._patiently(lambda: self._cluster.read(self._service)) is None

    def _existing(self) -> Manifest:
        service = self._read()
        if service is None:
            raise DeploymentError(f"{self._where}: there is none")
        return service

    def _create(self, canary: ServedVersion) -> Manifest:
        body = predictor(self.config, self.model, canary) | {ALONE: 0}
        wanted = inference_service(self.config, self.model, body)
        self._until(lambda: self._gone() or self._read() is not None, "is being deleted")

        def attempt() -> Manifest:
            try:
                return self._cluster.create(wanted)
            except ConflictError:
                service = self._existing()
                found = self._mode.observe(service)
                if found.stable is None and found.canary == canary:
                    return service
                raise changed_meanwhile(service, _NOTHING, found) from None

        return self._patiently(attempt)

    def _delete(self, service: Manifest) -> None:
        """Delete a first challenger that is alone; return when it is gone."""
        expected = self._mode.observe(service)

        def attempt() -> None:
            fresh = self._read()
            if fresh is None:
                return
            found = self._mode.observe(fresh)
            if (found.stable, found.canary) != (expected.stable, expected.canary):
                raise changed_meanwhile(fresh, expected, found)
            self._cluster.delete(fresh)

        self._patiently(attempt)
        self._until(self._gone, "is being deleted")

    def _restore(self, written: Manifest, before: Manifest) -> None:
        """Put a spec back as it was, if it still is what was written."""

        def change(fresh: Manifest) -> Manifest:
            if fresh["spec"] != written:
                raise DeploymentError(f"{name_of(fresh)} was changed by somebody else meanwhile")
            return fresh | {"spec": before}

        self._write(Step(change, lambda _: None, ""))

    def _begun(self) -> bool:
        try:
            return self._mode.promoting(self._existing())
        except DeploymentError:
            return True  # nobody knows, so it is left alone

    def _write(self, step: Step) -> Manifest:
        def attempt() -> Manifest:
            fresh = self._existing()
            wanted = step.change(fresh)
            return fresh if wanted == fresh else self._cluster.replace(wanted)

        return self._patiently(attempt)

    def _wait(self, step: Step, what: str) -> None:
        deadline, pause, pending = time.monotonic() + self._timeout_s, 0.05, None
        while True:
            try:
                pending = step.pending(self._existing())
            except BusyClusterError as error:
                pending = str(error)
            if pending is None:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                words = self._cluster.last_words(step.selector)
                said = f"{pending}; {words}" if words else pending
                raise DeploymentError(f"{self._where}: {what} within {self._timeout_s:g} s: {said}")
            time.sleep(min(pause, left, self.config.poll_s))
            pause *= 1.6

    def _until(self, done: Callable[[], bool], what: str) -> None:
        deadline, pause = time.monotonic() + self._timeout_s, 0.05
        while not done():
            if time.monotonic() > deadline:
                raise DeploymentError(
                    f"{self._where} {what}, for more than {self._timeout_s:g} s: does KServe's controller run, which "
                    "has to let it go?"
                )
            time.sleep(min(pause, self.config.poll_s))
            pause *= 1.6

    def _patiently(self, attempt: Callable[[], _T]) -> _T:
        """Attempt something until nobody else wrote in between, as controllers often do, and the API answers."""
        until, pause = time.monotonic() + min(_PATIENCE_S, self._timeout_s), 0.02
        while True:
            try:
                return attempt()
            except (ConflictError, BusyClusterError):
                if time.monotonic() + pause > until:
                    raise
            time.sleep(pause)
            pause *= 2

    def _undo(self, error: DeploymentError, undo: Callable[[], object], done: str) -> NoReturn:
        try:
            undo()
        except DeploymentError as another:
            raise type(error)(f"{error}. It could not be undone: {another}") from None
        raise type(error)(f"{error}; {done}") from None
