"""A rehearsal: the champion beside challengers that are known to be good or bad, on a platform of their own.

Each challenger is rolled out under traffic by the very code that rolls out real ones. Nothing real is touched: the
platform, the store that bundles, journals and records go to, and the books of who is champion live in one temporary
folder, and end with the rehearsal. Of the real store only the champion's bundle and the split are read.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kubevox import storage
from kubevox.config import DeployConfig, ServingConfig
from kubevox.data.audio import decode
from kubevox.data.splits import load_split
from kubevox.deployment.backend import ServedVersion
from kubevox.deployment.conformity import Reference, draw_probe
from kubevox.deployment.journal import Journal
from kubevox.deployment.local import LocalBackend, server_command
from kubevox.deployment.record import RolloutRecord, Verdict
from kubevox.deployment.rollout import Challenger, RolloutEvent, roll_out
from kubevox.deployment.sabotage import Kind, sabotaged
from kubevox.deployment.traffic import Answer, Clients, Recording
from kubevox.models.bundle import Bundle, save_bundle
from kubevox.models.cascade import Cascade, load_model

__all__ = ["SCENARIOS", "Rehearsed", "Scenario", "permuted", "rehearse", "retempered"]

_TEMPERATURE = 1.05
_ERRORS, _SLOWER = 0.05, 3.0


@dataclass(frozen=True)
class Scenario:
    """A challenger whose end is known.

    Attributes:
        name: in a word.
        description: what is done to it.
        verdict: how its rollout must end.
        criteria: one of these must be named where it is taken back.
        sabotage: of its server; None: it is a sound one.
        change: of its bundle; None: it is the champion's.
    """

    name: str
    description: str
    verdict: Verdict
    criteria: tuple[str, ...] = ()
    sabotage: Kind | None = None
    change: Callable[[Bundle], Bundle] | None = None


@dataclass(frozen=True)
class Rehearsed:
    """How a rehearsal ended.

    Attributes:
        scenario: what was rehearsed.
        version: the challenger's.
        record: the rollout.
        page: its timeline, HTML.
        answers: what the clients were answered through the route meanwhile.
    """

    scenario: Scenario
    version: str
    record: RolloutRecord
    page: str
    answers: tuple[Answer, ...]

    @property
    def as_expected(self) -> bool:
        """Whether it ended as it had to, for the reason that it had to, and nobody paid for it but as he had to."""
        named = self.record.criterion.split(", ")
        right = not self.scenario.criteria or any(criterion in named for criterion in self.scenario.criteria)
        return self.record.outcome == self.scenario.verdict and right and not self.by_switching

    @property
    def by_challenger(self) -> list[Answer]:
        """What clients were answered badly by the challenger itself."""
        return [answer for answer in self.answers if answer.kind == "failed" and answer.version == self.version]

    @property
    def by_switching(self) -> list[Answer]:
        """What clients were answered badly otherwise."""
        return [answer for answer in self.answers if answer.kind == "failed" and answer.version != self.version]

    @property
    def shares(self) -> dict[int, float]:
        """The observed share of the route, by the one that was asked for; both in percent."""
        shares = {}
        for step in self.record.steps:
            for check in step.checks:
                if check.name == "share" and check.value is not None:
                    shares[step.percent] = 100 * check.value
        return shares


def rehearse(
    champion: ServedVersion,
    split_uri: str,
    scenarios: Sequence[Scenario],
    config: DeployConfig,
    serving: ServingConfig,
    folder: Path,
    *,
    requests_per_s: float = 20.0,
    on_begin: Callable[[Scenario, str, Clients], None] | None = None,
    on_event: Callable[[RolloutEvent], None] | None = None,
) -> Iterator[Rehearsed]:
    """Roll each challenger out against the champion, under traffic.

    Args:
        champion: what is in production, in the rehearsal too.
        split_uri: the split whose validation speakers are sent.
        scenarios: in the order in which they are rehearsed.
        config: the steps and checks, as in earnest; always with the local back end.
        serving: the servers' options; nothing of the rehearsal is logged.
        folder: an empty one, for all that is written; the caller removes it.
        requests_per_s: of the clients, beside what the rollout itself sends.
        on_begin: told of each challenger, its version, and the clients that it is rolled out under.
        on_event: told what happens in each rollout.

    Raises:
        DeploymentError: the champion does not start, or the platform fails.
    """
    model = load_model(storage.absolute(champion.bundle_uri))
    base = model.premium if isinstance(model, Cascade) else model
    task, limits = base.spec.task, base.spec.limits
    split = load_split(split_uri)
    probe = draw_probe(split, limits, config.rollout.probe_recordings, config.rollout.seed)
    store, command = str(folder / "store"), server_command(options=serving)
    books = _Books(champion)

    def backend(sabotage: Kind | None = None) -> LocalBackend:
        canary = sabotaged(command, sabotage, _ERRORS, _SLOWER) if sabotage is not None else None
        times = config.start_timeout_s, config.request_timeout_s
        return LocalBackend(task, folder, *times, command, canary, stable=champion)

    with contextlib.closing(backend()) as platform:
        route = platform.endpoints().route
        for scenario in scenarios:
            version, bundle_uri = f"{champion.version}-{scenario.name}", champion.bundle_uri
            if scenario.change is not None:
                changed = scenario.change(base)
                bundle_uri = save_bundle(changed.classifier, changed.spec, store)
            challenger = Challenger(
                served=ServedVersion(version, bundle_uri),
                name=task,
                labels=split.labels,
                probe=probe,
                reference=_reference(load_model(bundle_uri), probe[: config.check_clips], config.tolerance),
                synthetic=base.spec.synthetic,
            )
            with Clients(task, route, probe, requests_per_s, config.request_timeout_s) as clients:
                if on_begin is not None:
                    on_begin(scenario, version, clients)
                with Journal(store, task, config.rollout.lease_s) as journal:
                    record, uri = roll_out(
                        challenger, books.champion, backend(scenario.sabotage), journal, config, store, books, on_event
                    )
            page = storage.read_bytes(uri.removesuffix(".json") + ".html").decode()
            yield Rehearsed(scenario, version, record, page, tuple(clients.answers))


def retempered(bundle: Bundle) -> Bundle:
    """The same model, a little less sure of itself: another bundle that is as good."""
    temperature = round(_TEMPERATURE * bundle.spec.temperature, 4)
    return replace(bundle, spec=bundle.spec.model_copy(update={"temperature": temperature}))


def permuted(bundle: Bundle) -> Bundle:
    """The same model that calls every label by the name of the next one."""
    classifier = copy.deepcopy(bundle.classifier)
    labels = len(bundle.spec.labels)
    layers = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear) and layer.out_features == labels]
    with torch.no_grad():
        for parameter in layers[-1].parameters():
            parameter.copy_(torch.roll(parameter, 1, dims=0))
    return replace(bundle, classifier=classifier)


class _Books:
    """Who is champion, for as long as the rehearsal lasts."""

    def __init__(self, champion: ServedVersion) -> None:
        self.champion = champion

    def crown(self, version: ServedVersion) -> None:
        """Say that the version is champion."""
        self.champion = version

    def conclude(self, record: RolloutRecord, uri: str) -> None:
        """Nobody keeps tags of a rehearsal."""


def _reference(model: Bundle | Cascade, recordings: Sequence[Recording], tolerance: float) -> Reference:
    """What the model says here and now, without a server."""
    bundle = model.premium if isinstance(model, Cascade) else model
    waveforms = [decode(recording.audio, bundle.spec.limits)[0] for recording in recordings]
    probabilities = model.answer(waveforms).probabilities if isinstance(model, Cascade) else model.predict(waveforms)
    return Reference(
        labels=tuple(bundle.spec.labels),
        recordings=tuple(recording.audio for recording in recordings),
        probabilities=probabilities.astype(np.float64),
        tolerance=tolerance,
    )


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("crash", "its server crashes on start", "rolled_back", ("start",), "crash"),
        Scenario(
            "errors",
            f"its server answers {_ERRORS:.0%} of the requests with an error",
            "rolled_back",
            ("error_rate", "route_errors"),
            "errors",
        ),
        Scenario("slow", f"its server takes {_SLOWER:g} times as long", "rolled_back", ("latency_p95",), "slow"),
        Scenario(
            "worse", "its labels are permuted", "rolled_back", ("uar", "agreement", "prediction_mix"), None, permuted
        ),
        Scenario("good", "the same weights at another temperature", "promoted", (), None, retempered),
    )
}
"""By name, in the order in which they are best shown."""
