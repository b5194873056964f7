"""How a challenger gets its traffic, and what it is watched for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kubevox.config.base import Positive, PositiveInt, Section, Seed, Share, refusal
from kubevox.config.kserve import KServeConfig

__all__ = ["DeployConfig", "ErrorTest", "RolloutConfig"]

_Percent = Annotated[int, Field(ge=1, le=99)]
_Chance = Annotated[float, Field(gt=0.0, lt=0.5)]
_Confidence = Annotated[float, Field(gt=0.5, lt=1.0)]


class ErrorTest(Section):
    """Wald's sequential test of an error rate.

    Attributes:
        acceptable: a rate that must not cost a challenger its place,
        unacceptable: and one with which it must not get it.
        false_alarm: the chance that the acceptable rate is refused.
        miss: the chance that the unacceptable one is passed.
    """

    acceptable: float = Field(default=0.005, gt=0.0, lt=1.0)
    unacceptable: float = Field(default=0.04, gt=0.0, lt=1.0)
    false_alarm: _Chance = 0.01
    miss: _Chance = 0.01

    @model_validator(mode="after")
    def _rates_differ(self) -> ErrorTest:
        if self.acceptable >= self.unacceptable:
            raise refusal("acceptable", self.acceptable, f"must be below unacceptable = {self.unacceptable:g}")
        return self


class RolloutConfig(Section):
    """The steps from challenger to champion, and the checks of each.

    Attributes:
        steps: the challenger's share of the route in percent, one after another; the last, 100, goes without saying.
        dwell_s: how long each step lasts at least.
        max_s: and at most; a check that is undecided then has failed, unless `undecided` says otherwise.
        max_requests: that the rollout itself sends in a step, likewise.
        undecided: what becomes of such a check.
        requests_per_s: sent at most.
        concurrency: requests of the rollout on their way at once.
        confidence: of every interval, two-sided.
        share_margin: between the asked share and the observed one.
        errors: the test of the challenger's errors, and of the route's.
        max_latency_factor: between the challenger's 95th percentile and that of the version in production.
        latency_answers: of each version before the first look at that; the next is at twice as many, and so on.
        max_mix_divergence: Jensen-Shannon divergence, in bits, between the two versions' labels; 0 to 1.
        min_agreement: of the probe's recordings that both versions give the same label.
        uar_margin: the challenger's UAR on the probe may be so much below that of the version in production.
        probe_recordings: of validation speakers, balanced by label, sent to each version.
        bootstrap_samples: draws of recordings for an interval.
        seed: of the probe's choice, the order of requests and the draws.
        lease_s: after so long without a sign of life another process may take a rollout over.
        resume_s: a rollout that was interrupted longer ago is begun anew.
    """

    steps: list[_Percent] = Field(default=[10, 50], min_length=1)
    dwell_s: float = Field(default=3.0, ge=0.0)
    max_s: Positive = 120.0
    max_requests: PositiveInt = 6_000
    undecided: Literal["fail", "pass"] = "fail"
    requests_per_s: Positive = 200.0
    concurrency: PositiveInt = 4
    confidence: _Confidence = 0.95
    share_margin: float = Field(default=0.03, gt=0.0, lt=0.5)
    errors: ErrorTest = ErrorTest()
    max_latency_factor: float = Field(default=1.75, ge=1.0)
    latency_answers: PositiveInt = 128
    max_mix_divergence: Share = 0.25
    min_agreement: Share = 0.2
    uar_margin: Share = 0.15
    probe_recordings: PositiveInt = 140
    bootstrap_samples: PositiveInt = 2_000
    seed: Seed = 0
    lease_s: Positive = 60.0
    resume_s: Positive = 3_600.0

    @model_validator(mode="after")
    def _steps_rise(self) -> RolloutConfig:
        if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
            raise refusal("steps", self.steps, "each step must be above the one before")
        if self.dwell_s > self.max_s:
            raise refusal("dwell_s", self.dwell_s, f"must not exceed max_s = {self.max_s:g}")
        return self


class DeployConfig(Section):
    """How a bundle reaches production.

    Attributes:
        backend: where the servers run: processes of this machine, or a KServe InferenceService.
        check_clips: test recordings whose answers are compared with the evaluator's.
        tolerance: between a served and an evaluated probability.
    """

    backend: Literal["local", "kserve"] = "local"
    check_clips: PositiveInt = 8
    tolerance: Positive = 1e-5
    start_timeout_s: Positive = 90.0
    request_timeout_s: Positive = 30.0
    rollout: RolloutConfig = RolloutConfig()
    kserve: KServeConfig = KServeConfig()
