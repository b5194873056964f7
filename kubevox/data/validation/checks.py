"""What an utterance must be, one named check at a time.

A check looks at one utterance and says every reason against it; a reason is a short word that a program can count, with
a detail that a person can act on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kubevox.config import TaskConfig, ValidateConfig
from kubevox.data.audio import Waveform
from kubevox.data.dataset import Utterance

__all__ = ["CHECKS", "Check", "Finding", "Measured", "duplicates", "examine", "measure"]

SILENCE_FLOOR_DBFS = -140.0
"""The level of digital silence; the least step of 24 bits is at -138 dBFS."""

# 16-bit full scale: the highest value of 16-bit PCM falls one such step short of 1.
_RAIL = np.float32(32767 / 32768)
# A normalised recording touches full scale for a sample or two at its peak; clipping holds it there.
_SHORTEST_CLIP = 3


@dataclass(frozen=True)
class Check:
    """A named expectation and the reasons that it can give."""

    name: str
    expectation: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """A reason against an utterance, and its particulars."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Measured:
    """What the stored audio says.

    Attributes:
        id: SHA-256 of the waveform as it decodes now.
        duration_s: its length in seconds.
        rms_dbfs: root mean square about the mean, in dB relative to full scale (a full-scale sine is at -3.0).
        clipped_share: share of the samples that are held at full scale, three or more in a row.
    """

    id: str
    duration_s: float
    rms_dbfs: float
    clipped_share: float


CHECKS: tuple[Check, ...] = (
    Check(
        "duration",
        "The duration is a number within the limits, and the audio's own.",
        ("duration_missing", "duration_not_numeric", "duration_too_short", "duration_too_long", "duration_wrong"),
    ),
    Check(
        "sample_rate",
        "The sample rate is one of those expected.",
        ("sample_rate_missing", "sample_rate_unknown"),
    ),
    Check(
        "size",
        "The source file's size is within the limits.",
        ("size_missing", "source_too_small", "source_too_large"),
    ),
    Check("label", "The label is one that the task knows.", ("label_missing", "label_unknown")),
    Check(
        "decodes",
        "The stored audio decodes to the very waveform that its id names.",
        ("undecodable", "content_changed"),
    ),
    Check("loudness", "The recording is not silent.", ("silent",)),
    Check("clipping", "The recording is not clipped.", ("clipped",)),
    Check("duplicate", "No other recording decodes to the same waveform.", ("duplicate",)),
)


def measure(waveform: Waveform) -> Measured:
    """Measure a stored waveform."""
    samples = waveform.samples
    # About the mean: a constant offset is not sound.
    rms = float(np.std(samples, dtype=np.float64)) if len(samples) else 0.0
    return Measured(
        id=waveform.id,
        duration_s=waveform.duration_s,
        rms_dbfs=max(SILENCE_FLOOR_DBFS, 20 * math.log10(rms)) if rms > 0 else SILENCE_FLOOR_DBFS,
        clipped_share=_clipped_share(samples),
    )


def examine(
    utterance: Utterance, measured: Measured | None, task: TaskConfig, config: ValidateConfig
) -> tuple[list[Finding], str | None]:
    """Everything that speaks against an utterance on its own, and its label.

    Args:
        utterance: its metadata.
        measured: of its stored audio; None where that does not decode.
        task: the label set, and how raw labels map onto it.
        config: the limits.

    Returns:
        The findings, none for a good utterance; and the task's label, None where the task leaves the raw label out.
    """
    label_findings, label = _label(utterance, task)
    findings = [
        *_duration(utterance, measured, config),
        *_sample_rate(utterance, config),
        *_size(utterance, config),
        *label_findings,
        *_audio(utterance, measured, config),
    ]
    return findings, label


def duplicates(utterances: Sequence[Utterance], sound: Sequence[bool]) -> dict[str, Finding]:
    """What is the same recording as another one.

    Of equal recordings the first by source id stays; a first one that is refused for another reason gives way to the
    next, so that the recording is not lost with it.

    Args:
        utterances: all of the dataset's.
        sound: for each, whether nothing else speaks against it.

    Returns:
        Source id to finding, for every one but the first of its kind.
    """
    copies: dict[str, list[tuple[Utterance, bool]]] = defaultdict(list)
    for utterance, fine in zip(utterances, sound, strict=True):
        copies[utterance.id].append((utterance, fine))
    found: dict[str, Finding] = {}
    for same in copies.values():
        if len(same) == 1:
            continue
        ordered = sorted(same, key=lambda item: (not item[1], item[0].source_id))
        kept = ordered[0][0]
        for utterance, _ in ordered[1:]:
            differs = [
                name.replace("_", " ")
                for name in ("raw_label", "language", "speaker")
                if getattr(utterance, name) != getattr(kept, name)
            ]
            but = f", with another {' and '.join(differs)}" if differs else ""
            found[utterance.source_id] = Finding("duplicate", f"same audio as {kept.source_id}{but}")
    return found


def _duration(utterance: Utterance, measured: Measured | None, config: ValidateConfig) -> list[Finding]:
    duration = utterance.duration_s
    if duration is None:
        return [Finding("duration_missing", "no duration")]
    if not _is_number(duration):
        return [Finding("duration_not_numeric", f"duration {duration!r} is not a number")]
    findings = []
    if duration < config.min_duration_s:
        findings.append(Finding("duration_too_short", f"{duration:.2f} s, at least {config.min_duration_s:g} s"))
    if duration > config.max_duration_s:
        findings.append(Finding("duration_too_long", f"{duration:.2f} s, at most {config.max_duration_s:g} s"))
    # Half a millisecond is more than rounding and less than a pitch period.
    if measured is not None and abs(duration - measured.duration_s) > 5e-4:
        findings.append(
            Finding("duration_wrong", f"listed as {duration:.3f} s, the audio has {measured.duration_s:.3f} s")
        )
    return findings


def _sample_rate(utterance: Utterance, config: ValidateConfig) -> list[Finding]:
    rates = {"": utterance.sample_rate, "source ": utterance.source_sample_rate}
    if any(rate is None for rate in rates.values()):
        return [Finding("sample_rate_missing", "no sample rate")]
    # Usually both are the same, and said once.
    for kind, rate in rates.items():
        if rate not in config.sample_rates:
            return [Finding("sample_rate_unknown", f"{kind}sample rate {rate} Hz is not among validation.sample_rates")]
    return []


def _size(utterance: Utterance, config: ValidateConfig) -> list[Finding]:
    size = utterance.source_bytes
    if size is None:
        return [Finding("size_missing", "no source size")]
    if size < config.min_bytes:
        return [Finding("source_too_small", f"{size:,} bytes, at least {config.min_bytes:,}")]
    if size > config.max_bytes:
        return [Finding("source_too_large", f"{size:,} bytes, at most {config.max_bytes:,}")]
    return []


def _label(utterance: Utterance, task: TaskConfig) -> tuple[list[Finding], str | None]:
    raw = getattr(utterance, task.label_column)
    if raw is None:
        return [Finding("label_missing", f"no {task.label_column}")], None
    known, label = task.label_of(utterance.corpus, raw)
    if not known:
        where = f"neither in task.map.{utterance.corpus} nor among the task's labels"
        return [Finding("label_unknown", f"{task.label_column} {raw!r} is {where}")], None
    return [], label


def _audio(utterance: Utterance, measured: Measured | None, config: ValidateConfig) -> list[Finding]:
    if measured is None:
        return [Finding("undecodable", "the stored audio does not decode")]
    findings = []
    if measured.id != utterance.id:
        findings.append(Finding("content_changed", f"the stored audio is {measured.id[:12]}, not {utterance.id[:12]}"))
    if measured.rms_dbfs < config.silence_dbfs:
        level = "digital silence" if measured.rms_dbfs <= SILENCE_FLOOR_DBFS else f"{measured.rms_dbfs:.1f} dBFS"
        findings.append(Finding("silent", f"{level}, at least {config.silence_dbfs:g} dBFS"))
    if measured.clipped_share > config.clipped_share:
        findings.append(
            Finding("clipped", f"{measured.clipped_share:.1%} of the samples, at most {config.clipped_share:.1%}")
        )
    return findings


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _clipped_share(samples: npt.NDArray[np.float32]) -> float:
    """Share of the samples in runs of at least three at full scale, either side."""
    at_rail = np.abs(samples) >= _RAIL
    if not at_rail.any():
        return 0.0
    edges = np.flatnonzero(np.diff(np.concatenate(([False], at_rail, [False])).astype(np.int8)))
    lengths = edges[1::2] - edges[::2]
    return float(lengths[lengths >= _SHORTEST_CLIP].sum() / len(samples))
