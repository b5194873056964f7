"""Which seconds, bands and features of a recording spoke for a label.

Two questions are asked of the model that answered, each in its own way:

- *How much less likely is the label without this stretch?* Stretches of the waveform are blanked one after another and
  the model is asked again (occlusion; Zeiler & Fergus 2014, section 4.2). It works with every frontend.
- *How much of the label's logit comes from this part of the features?* Gradients are integrated along the straight line
  from a baseline to the features (integrated gradients; Sundararajan, Taly & Yan 2017, "Axiomatic attribution for deep
  networks", ICML, equation 1). The attributions add up to what the logit gained over the baseline's (their completeness
  axiom), and how far the finite sum is from that is told with them. Not asked of the frontend ``ssl``, whose features
  have no names.

The baseline is a recording of the same length in which every band, or every named value, is what it is on average in
training: zero after normalisation. The silence that fills up a short recording is the same in both, and so explains
nothing.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kubevox.config import LogMelConfig, SslConfig
from kubevox.data.audio import Waveform
from kubevox.errors import BundleError
from kubevox.models.bundle import Bundle

__all__ = ["BASELINE", "Band", "Explanation", "FeatureShare", "Gradients", "Stretch", "explain"]

BASELINE = "training mean"
"""What integrated gradients begin from."""

_TOLERANCE = 0.05
_STRETCH_S = 0.15
_MOST_STRETCHES = 20
_MOST_STRETCHES_SSL = 8  # each takes a pass through the encoder
_RAMP_S = 0.005  # a sudden end of the sound would itself be heard, as a click
_TOP_FEATURES = 10
_POINTS_AT_ONCE = 32

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stretch:
    """A stretch of the recording.

    Attributes:
        start_s: in the recording's own time.
        end_s: likewise.
        drop: the label's probability, less what it is with this stretch blanked: positive where it spoke for the label.
        attribution: its part of the label's logit by integrated gradients; None where features have no time axis.
    """

    start_s: float
    end_s: float
    drop: float
    attribution: float | None = None


@dataclass(frozen=True)
class Band:
    """A mel band: its edges, its centre, and its part of the label's logit by integrated gradients."""

    low_hz: float
    centre_hz: float
    high_hz: float
    attribution: float


@dataclass(frozen=True)
class FeatureShare:
    """A named feature.

    Attributes:
        name: as ``kubevox features names`` has it.
        value: this recording's.
        usual: the training rows' mean.
        attribution: its part of the label's logit by integrated gradients.
    """

    name: str
    value: float
    usual: float
    attribution: float


@dataclass(frozen=True)
class Gradients:
    """What integrated gradients found, in units of the label's logit (before the temperature).

    Attributes:
        steps: at how many points of the line gradients were taken.
        logit: of the label, for this recording.
        baseline_logit: of the label, for the baseline.
        total: the sum of all attributions.
        magnitude: the sum of their absolute values: how much spoke for or against the label.
        bands: from the lowest; none where the features are no bands.
        features: those with the largest parts, the largest first; none where the features have no names.
        groups: the sum of each family of named features, in the features' order.
    """

    steps: int
    logit: float
    baseline_logit: float
    total: float
    magnitude: float
    bands: tuple[Band, ...] = ()
    features: tuple[FeatureShare, ...] = ()
    groups: tuple[tuple[str, float], ...] = ()

    @property
    def gap(self) -> float:
        """By how much the attributions' sum misses what the logit gained; more steps make it smaller."""
        return self.total - (self.logit - self.baseline_logit)

    @property
    def complete(self) -> bool:
        """Whether the gap is small, at most a twentieth, beside all that spoke for or against the label."""
        return abs(self.gap) <= _TOLERANCE * self.magnitude + 1e-4


@dataclass(frozen=True)
class Explanation:
    """What spoke for a label.

    Attributes:
        label: that is explained.
        predicted: the label with the highest probability.
        probability: of the explained label, calibrated.
        start_s: from where the model heard the recording, in its own time,
        end_s: and to where; nothing beyond was heard.
        stretches: of equal length, from ``start_s`` to ``end_s``.
        gradients: None with the frontend ``ssl``.
    """

    label: str
    predicted: str
    probability: float
    start_s: float
    end_s: float
    stretches: tuple[Stretch, ...]
    gradients: Gradients | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, rounded; a few kilobytes."""
        found: dict[str, Any] = {
            "label": self.label,
            "predicted": self.predicted,
            "probability": _rounded(self.probability),
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "stretches": [
                {"start_s": round(one.start_s, 3), "end_s": round(one.end_s, 3), "drop": _rounded(one.drop)}
                | ({} if one.attribution is None else {"attribution": _rounded(one.attribution)})
                for one in self.stretches
            ],
        }
        if self.gradients is None:
            return found
        told = self.gradients
        found["gradients"] = {
            "baseline": BASELINE,
            "steps": told.steps,
            "logit": _rounded(told.logit),
            "baseline_logit": _rounded(told.baseline_logit),
            "sum": _rounded(told.total),
            "gap": _rounded(told.gap),
            "complete": told.complete,
        }
        if told.bands:
            found["bands"] = [
                {
                    "low_hz": round(band.low_hz, 1),
                    "centre_hz": round(band.centre_hz, 1),
                    "high_hz": round(band.high_hz, 1),
                    "attribution": _rounded(band.attribution),
                }
                for band in told.bands
            ]
        if told.features:
            found["features"] = [
                {
                    "name": one.name,
                    "value": _significant(one.value),
                    "usual": _significant(one.usual),
                    "attribution": _rounded(one.attribution),
                }
                for one in told.features
            ]
            found["groups"] = {name: _rounded(value) for name, value in told.groups}
        return found


def explain(
    bundle: Bundle, waveform: Waveform, label: str | None = None, steps: int = 24, stretches: int | None = None
) -> Explanation:
    """Tell what spoke for a label in a recording.

    The bundle is left as it is: no gradient stays in it, so that any number of threads may ask at once. With ``rescnn``
    it takes the time of some thirty predictions.

    Args:
        bundle: the model that answered.
        waveform: the canonical waveform.
        label: to explain; None: the predicted one.
        steps: at how many points gradients are taken; midpoints of equal parts of the line.
        stretches: into how many stretches of equal length the time is cut; None: one every 0.15 s, at most 20, with the
            frontend ``ssl`` at most 8.

    Raises:
        AudioError: the recording is too short for the frontend.
        BundleError: the bundle does not know the label.
    """
    labels = bundle.spec.labels
    if label is not None and label not in labels:
        raise BundleError(f"bundle {bundle.uri}: no label {label!r}; it knows {', '.join(labels)}")
    frontend, rate = bundle.frontend, waveform.sample_rate
    heard, _ = frontend.listen(waveform)
    cut = frontend.cut(heard)
    start_s = (_trimmed_samples(bundle, waveform, heard) + int(frontend.config.offset_s * rate)) / rate
    duration_s = len(cut) / rate
    edges = np.linspace(0.0, duration_s, (stretches or _stretches(bundle, duration_s)) + 1)

    prepared = frontend.resample([cut, *_blanked(cut, edges, rate)], rate)
    features = frontend.extract(list(prepared))
    probabilities = bundle.probabilities(features)
    predicted = int(probabilities[0].argmax())
    index = predicted if label is None else labels.index(label)
    drops = probabilities[0, index] - probabilities[1:, index]

    attributed: Sequence[float | None] = [None] * len(drops)
    gradients = None
    if isinstance(frontend.config, LogMelConfig):
        gradients, attributed = _of_bands(bundle, frontend.config, features[0], index, steps, edges)
    elif not isinstance(frontend.config, SslConfig):
        gradients = _of_names(bundle, features[0], index, steps)
    return Explanation(
        label=labels[index],
        predicted=labels[predicted],
        probability=float(probabilities[0, index]),
        start_s=start_s,
        end_s=start_s + duration_s,
        stretches=tuple(
            Stretch(start_s + start, start_s + end, float(drop), attribution)
            for start, end, drop, attribution in zip(
                edges[:-1].tolist(), edges[1:].tolist(), drops, attributed, strict=True
            )
        ),
        gradients=gradients,
    )


def _trimmed_samples(bundle: Bundle, waveform: Waveform, heard: Waveform) -> int:
    """How many samples voice activity detection took from the recording's beginning."""
    vad = bundle.frontend.config.vad
    if vad is None or heard is waveform:
        return 0
    from kubevox.data.vad import VoiceActivity

    return int(VoiceActivity(vad).segments(waveform)[0][0] * waveform.sample_rate)


def _stretches(bundle: Bundle, duration_s: float) -> int:
    config = bundle.frontend.config
    most = _MOST_STRETCHES_SSL if isinstance(config, SslConfig) else _MOST_STRETCHES
    if isinstance(config, LogMelConfig):  # a stretch without a frame would have no attribution
        most = max(1, min(most, int(duration_s * config.sample_rate / config.hop)))
    return min(most, max(1, round(duration_s / _STRETCH_S)))


def _blanked(cut: npt.NDArray[np.float32], edges: Floats, rate: int) -> list[npt.NDArray[np.float32]]:
    """Copies of what the model hears, each with one stretch silent."""
    borders = np.rint(edges * rate).astype(int)
    copies = []
    for start, stop in itertools.pairwise(borders):
        copy = cut.copy()
        length = min(int(_RAMP_S * rate), (stop - start) // 2)
        ramp = np.linspace(1.0, 0.0, length, endpoint=False, dtype=np.float32)
        # At either end of what is heard there is nothing to fade to.
        first, last = length * (start > 0), length * (stop < len(cut))
        copy[start + first : stop - last] = 0.0
        copy[start : start + first] *= ramp[:first]
        copy[stop - last : stop] *= ramp[:last][::-1]
        copies.append(copy)
    return copies


def _of_bands(
    bundle: Bundle, config: LogMelConfig, features: npt.NDArray[np.float32], index: int, steps: int, edges: Floats
) -> tuple[Gradients, list[float | None]]:
    """Integrated gradients over log-mel features [bands, frames]: by band, and by stretch between ``edges`` (s)."""
    half_frame = config.frame / 2
    centres = np.arange(config.frames) * config.hop + (half_frame if config.convention == "kaldi" else 0)
    inside = centres - half_frame < edges[-1] * config.sample_rate
    attributions, gradients = _integrated(bundle, features, index, steps, inside)
    # The last frames that still hear the recording are centred behind its end.
    place = np.clip(np.searchsorted(edges * config.sample_rate, centres, side="right") - 1, 0, len(edges) - 2)
    by_time = np.bincount(place, weights=attributions.sum(axis=0), minlength=len(edges) - 1)
    corners = _band_edges_hz(config).tolist()
    by_band = zip(corners, corners[1:], corners[2:], attributions.sum(axis=1).tolist(), strict=False)
    bands = tuple(Band(low, centre, high, value) for low, centre, high, value in by_band)
    return replace(gradients, bands=bands), by_time.tolist()


def _of_names(bundle: Bundle, features: npt.NDArray[np.float32], index: int, steps: int) -> Gradients:
    """Integrated gradients over named features [values]."""
    attributions, gradients = _integrated(bundle, features, index, steps, np.ones(len(features), bool))
    names = bundle.frontend.feature_names
    usual = bundle.classifier.mean.cpu().numpy()
    groups: dict[str, float] = {}
    for name, value in zip(names, attributions.tolist(), strict=True):
        family = re.sub(r"_\d+.*$", "", name)
        groups[family] = groups.get(family, 0.0) + value
    top = np.argsort(-np.abs(attributions), kind="stable")[:_TOP_FEATURES].tolist()
    return replace(
        gradients,
        features=tuple(
            FeatureShare(names[i], float(features[i]), float(usual[i]), float(attributions[i])) for i in top
        ),
        groups=tuple(groups.items()),
    )


def _integrated(
    bundle: Bundle, features: npt.NDArray[np.float32], index: int, steps: int, inside: npt.NDArray[np.bool_]
) -> tuple[Floats, Gradients]:
    """Integrated gradients of a label's logit.

    Args:
        bundle: the model.
        features: [*shape] of one recording, as the frontend gives them.
        index: the label's.
        steps: midpoints of equal parts of the line.
        inside: bool over the last axis: where the baseline is the training mean; elsewhere it is the recording itself.

    Returns:
        Attributions, float64 [*shape], and the figures of their sum.
    """
    classifier, device = bundle.classifier, bundle.frontend.device
    # Also where the caller asks in inference mode. Only the features ask for a gradient, and none is left in the model.
    with torch.inference_mode(False), torch.enable_grad():
        target = torch.tensor(features, device=device)
        baseline = torch.where(torch.tensor(inside, device=device), classifier.mean, target)
        shares = (torch.arange(steps, device=device, dtype=torch.float32) + 0.5) / steps
        way = target - baseline
        slopes = torch.zeros_like(target, dtype=torch.float64)
        for some in shares.split(_POINTS_AT_ONCE):
            points = (baseline + some.view(-1, *[1] * target.ndim) * way).requires_grad_()
            (found,) = torch.autograd.grad(classifier(points)[:, index].sum(), points)
            slopes += found.double().sum(dim=0)
        attributions = (slopes / steps * way).cpu().numpy()
        with torch.no_grad():
            logit, baseline_logit = classifier(torch.stack([target, baseline]))[:, index].double().tolist()
    return attributions, Gradients(
        steps, logit, baseline_logit, float(attributions.sum()), float(np.abs(attributions).sum())
    )


def _band_edges_hz(config: LogMelConfig) -> Floats:
    """The corners of the mel triangles, in Hz: band b rises from the b-th to the next and falls to the one after.

    Returns:
        float64 [mels + 2].
    """
    if config.convention in ("torchaudio", "kaldi"):  # HTK's scale; Kaldi's is the same in other units

        def mel(hz: float) -> float:
            return 2595.0 * math.log10(1.0 + hz / 700.0)

        corners = np.linspace(mel(config.fmin_hz), mel(config.fmax_hz), config.mels + 2)
        return 700.0 * (10.0 ** (corners / 2595.0) - 1.0)

    # Slaney's: linear to 1 kHz (15 mel), logarithmic above, 27 mel a factor of 6.4.
    def slaney(hz: float) -> float:
        return 3.0 * hz / 200.0 if hz < 1000.0 else 15.0 + 27.0 * math.log(hz / 1000.0) / math.log(6.4)

    corners = np.linspace(slaney(config.fmin_hz), slaney(config.fmax_hz), config.mels + 2)
    return np.where(corners < 15.0, corners * (200.0 / 3.0), 1000.0 * 6.4 ** ((corners - 15.0) / 27.0))


def _rounded(value: float) -> float:
    return round(value, 4)


def _significant(value: float) -> float:
    return float(f"{value:.4g}")
