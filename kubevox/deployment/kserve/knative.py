"""Knative mode: revisions behind Knative's routes, and a challenger's share in ``canaryTrafficPercent``.

An InferenceService has one predictor here. Writing another makes a new revision; ``canaryTrafficPercent`` is the share
of the latest, and KServe leaves the rest to the revision that had all of the route before (tag ``prev``). What was in
production is kept in the annotation ``kubevox/previous-predictor``, so that it can be put back as it was.

KServe hands annotations down to the revision, and a revision with other annotations is a new one. Ours are therefore
only changed by a write that makes a new revision anyway; the share alone can change without one.

To put the former predictor back makes a revision too, and until that is ready Knative takes the challenger's for the
latest. So taking back is two writes: the former predictor comes up with a share of 0, and only when it is ready has the
latest revision all of the route again.

A revision that had all of the route counts for KServe as rolled out, and the one before it is no longer reached. So a
challenger gets 99 % where 100 % is asked for, and the last of it when it is promoted.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from kubevox.config import KServeConfig
from kubevox.deployment.backend import Deployed, Endpoint, ServedVersion
from kubevox.deployment.kserve.manifests import Manifest, predictor, served
from kubevox.deployment.kserve.modes import (
    ALONE,
    Step,
    alone,
    changed_meanwhile,
    name_of,
    ready,
    refuse_in_production,
    through_gateway,
)
from kubevox.errors import DeploymentError

__all__ = ["PREVIOUS", "REVISION_BEFORE", "KnativeMode"]

PREVIOUS = "kubevox/previous-predictor"
REVISION_BEFORE = "kubevox/revision-before"
_PERCENT = ALONE
_MOST = 99


class KnativeMode:
    """Keeps a challenger as the latest revision.

    Args:
        config: of the InferenceService.
        model: its name in the URL.
    """

    def __init__(self, config: KServeConfig, model: str) -> None:
        self.config, self.model = config, model

    def observe(self, service: Manifest) -> Deployed:
        """What its spec says is deployed.

        Raises:
            DeploymentError: it is not Kubevox's.
        """
        body, previous = service["spec"]["predictor"], _previous(service)
        first = alone(service, beside=previous is not None)
        if first is not None:
            return first
        latest = served(body, name_of(service))
        if _PERCENT not in body or previous is None:
            return Deployed(latest, None, 0)
        stable = served(previous, f"{name_of(service)}, annotation {PREVIOUS}")
        if stable == latest:  # taken back, and not all of it in force
            return Deployed(latest, None, 0)
        return Deployed(stable, latest, int(body[_PERCENT]))

    def first(self, service: Manifest) -> Step:
        """Wait until the first challenger, alone, is ready."""
        expected = self.observe(service)

        def change(fresh: Manifest) -> Manifest:
            found = self.observe(fresh)
            if found.stable is not None or found.canary != expected.canary:
                raise changed_meanwhile(fresh, expected, found)
            return _with_percent(fresh, 0)

        return Step(change, _revision_pending, self._selector(service))

    def start(self, service: Manifest, canary: ServedVersion) -> Step:
        """Bring a challenger up beside the version in production, with no share.

        Raises:
            DeploymentError: it is in production already, or cannot be served.
        """
        expected = self.observe(service)
        if expected.stable is not None:
            refuse_in_production(service, canary, expected.stable)
        body = predictor(self.config, self.model, canary)

        def change(fresh: Manifest) -> Manifest:
            found = self.observe(fresh)
            if found.stable != expected.stable or found.canary not in (expected.canary, canary):
                raise changed_meanwhile(fresh, expected, found)
            if found.canary == canary:
                return _with_percent(fresh, 0)
            wanted = copy.deepcopy(fresh)
            if found.canary is None:
                stable = {key: value for key, value in fresh["spec"]["predictor"].items() if key != _PERCENT}
                _annotate(wanted, PREVIOUS, json.dumps(stable, sort_keys=True))
            _annotate(wanted, REVISION_BEFORE, _component(fresh).get("latestCreatedRevision", ""))
            wanted["spec"]["predictor"] = copy.deepcopy(body)
            return _with_percent(wanted, 0)

        return Step(change, lambda fresh: _share_pending(fresh, 0), self._selector(service))

    def share(self, service: Manifest, percent: int) -> Step:
        """Give the challenger a share.

        Raises:
            DeploymentError: there is no challenger.
        """
        expected = self.observe(service)
        if expected.canary is None:
            raise DeploymentError(f"{name_of(service)}: there is no challenger that could have a share")
        share = percent if expected.stable is None else min(percent, _MOST)

        def change(fresh: Manifest) -> Manifest:
            found = self.observe(fresh)
            if (found.stable, found.canary) != (expected.stable, expected.canary):
                raise changed_meanwhile(fresh, expected, found)
            return _with_percent(fresh, share)

        def pending(fresh: Manifest) -> str | None:
            return _revision_pending(fresh) if expected.stable is None else _share_pending(fresh, share)

        return Step(change, pending, self._selector(service))

    def promote(self, service: Manifest) -> Step:
        """Make the challenger the version in production."""
        expected = self.observe(service)
        promoted = Deployed(expected.canary or expected.stable, None, 0)

        def change(fresh: Manifest) -> Manifest:
            found = self.observe(fresh)
            if found != promoted and (found.stable, found.canary) != (expected.stable, expected.canary):
                raise changed_meanwhile(fresh, expected, found)
            return fresh if found == promoted else _without_percent(fresh)

        return Step(change, _settled_pending, self._selector(service))

    def promoting(self, service: Manifest) -> bool:
        """Whether the controller has begun to promote what the spec says is promoted."""
        return _share_of_latest(service) == 100

    def take_back(self, service: Manifest) -> list[Step]:
        """Remove the challenger."""
        expected = self.observe(service)

        def checked(fresh: Manifest) -> Deployed:
            found = self.observe(fresh)
            if found.stable != expected.stable or found.canary not in (expected.canary, None):
                raise changed_meanwhile(fresh, expected, found)
            return found

        def restore(fresh: Manifest) -> Manifest:
            if checked(fresh).canary is None:
                return fresh
            wanted = copy.deepcopy(fresh)
            _annotate(wanted, REVISION_BEFORE, _component(fresh).get("latestCreatedRevision", ""))
            wanted["spec"]["predictor"] = _previous(fresh)
            return _with_percent(wanted, 0)

        def release(fresh: Manifest) -> Manifest:
            checked(fresh)
            return _without_percent(fresh)

        selector = self._selector(service)
        if expected.canary is None and _PERCENT not in service["spec"]["predictor"]:
            return [Step(lambda fresh: fresh, _settled_pending, selector)]
        return [Step(restore, _revision_pending, selector), Step(release, _settled_pending, selector)]

    def direct(self, service: Manifest) -> tuple[Endpoint | None, Endpoint | None]:
        """Straight to the version in production, and to the challenger."""
        deployed = self.observe(service)
        tagged = {target.get("tag"): target.get("url") for target in _component(service).get("traffic") or ()}
        latest, before = tagged.get("latest"), tagged.get("prev")
        if deployed.stable is None:
            return None, self._endpoint(latest)
        if deployed.canary is None:
            # While it is taken back, the former revision still answers.
            return self._endpoint(before or latest), None
        return self._endpoint(before), self._endpoint(latest)

    def _endpoint(self, url: Any) -> Endpoint | None:
        return through_gateway(self.config, url) if url else None

    def _selector(self, service: Manifest) -> str:
        return f"serving.kserve.io/inferenceservice={service['metadata']['name']}"


def _previous(service: Manifest) -> Manifest | None:
    text = (service["metadata"].get("annotations") or {}).get(PREVIOUS)
    if text is None:
        return None
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise DeploymentError(
            f"{name_of(service)}: annotation {PREVIOUS} is damaged; while no rollout is under way it may be deleted"
        )
    return body


def _annotate(service: Manifest, key: str, value: str) -> None:
    service["metadata"].setdefault("annotations", {})[key] = value


def _with_percent(service: Manifest, percent: int) -> Manifest:
    wanted = copy.deepcopy(service)
    wanted["spec"]["predictor"][_PERCENT] = percent
    return wanted


def _without_percent(service: Manifest) -> Manifest:
    wanted = copy.deepcopy(service)
    wanted["spec"]["predictor"].pop(_PERCENT, None)
    return wanted


def _component(service: Manifest) -> Manifest:
    return ((service.get("status") or {}).get("components") or {}).get("predictor") or {}


def _share_of_latest(service: Manifest) -> int:
    return sum(
        target.get("percent") or 0
        for target in _component(service).get("traffic") or ()
        if target.get("latestRevision")
    )


def _revision_pending(service: Manifest) -> str | None:
    """The revision of what the spec says is there and ready."""
    found, component = ready(service), _component(service)
    created, latest = component.get("latestCreatedRevision"), component.get("latestReadyRevision")
    before = (service["metadata"].get("annotations") or {}).get(REVISION_BEFORE)
    if not created or created == before:
        return found or f"no revision was made yet after {before or 'the first write'}"
    if latest != created:
        return f"revision {created} is not ready" + (f"; {found}" if found else "")
    return found


def _share_pending(service: Manifest, percent: int) -> str | None:
    if (found := _revision_pending(service)) is not None:
        return found
    share = _share_of_latest(service)
    if share != percent:
        return f"the latest revision has {share} % of the route, not {percent} %"
    targets = _component(service).get("traffic") or ()
    before = next((target for target in targets if target.get("tag") == "prev"), None)
    if before is None or before.get("revisionName") == _component(service)["latestReadyRevision"]:
        return "no other revision has the rest of the route"
    return None


def _settled_pending(service: Manifest) -> str | None:
    if (found := ready(service)) is not None:
        return found
    share = _share_of_latest(service)
    return f"the latest revision has {share} % of the route, not all of it" if share != 100 else None
