"""What an utterance must be, one named check at a time.

A check says every reason against an utterance; a reason is a short word that a program can count, with a detail that a
person can act on. What follows from a reason is the configuration's to say (:class:`~kubevox.config.Gates`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kubevox.config import ValidateConfig
from kubevox.data.dataset import Utterance

__all__ = ["CHECKS", "REASONS", "Check", "Finding", "divide", "duplicates", "in_order"]


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
        "The source file's size is a whole number within the limits.",
        ("size_missing", "size_not_integer", "source_too_small", "source_too_large"),
    ),
    Check("name", "The recording has a name of its own.", ("name_missing", "name_not_unique")),
    Check("row", "No row is there twice.", ("row_repeated",)),
    Check("label", "The label is one that the task knows.", ("label_missing", "label_unknown")),
    Check(
        "decodes",
        "The stored audio decodes to the very waveform that its id names.",
        ("undecodable", "content_changed"),
    ),
    Check("loudness", "The recording is not silent.", ("silent",)),
    Check("clipping", "The recording is not clipped.", ("clipped",)),
    Check("duplicate", "No other recording decodes to the same waveform.", ("duplicate",)),
    Check("noise", "What is said stands out from the noise (estimated).", ("low_snr",)),
    Check("pauses", "The recording is not mostly silence.", ("mostly_silent",)),
    Check("offset", "The waveform is centred on zero.", ("dc_offset",)),
    Check("bandwidth", "The sound reaches as high as speech does.", ("narrow_band",)),
    Check("speech", "Somebody speaks (silero-vad).", ("no_speech",)),
    Check("quality", "The speech is intelligible and undistorted (SQUIM).", ("low_stoi", "low_pesq", "low_si_sdr")),
)

REASONS: tuple[str, ...] = tuple(reason for check in CHECKS for reason in check.reasons)
"""All reasons, in the order in which an utterance lists its own."""

_PLACE = {reason: place for place, reason in enumerate(REASONS)}


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The findings in the order of :data:`REASONS`, one of each reason."""
    first: dict[str, Finding] = {}
    for finding in findings:
        first.setdefault(finding.reason, finding)
    return sorted(first.values(), key=lambda finding: _PLACE[finding.reason])


def divide(findings: Iterable[Finding], config: ValidateConfig) -> tuple[list[Finding], list[Finding]]:
    """What quarantines, and what only warns; what the gates ignore is in neither.

    Args:
        findings: against one utterance.
        config: the gates. A reason that they do not list quarantines.
    """
    verdicts = [(finding, getattr(config.gates, finding.reason, "quarantine")) for finding in findings]
    refused, warned = ([f for f, verdict in verdicts if verdict == kind] for kind in ("quarantine", "warn"))
    return refused, warned


def duplicates(utterances: Sequence[Utterance], sound: Sequence[bool]) -> dict[int, Finding]:
    """What is the same recording as another one.

    Of equal recordings the dataset's first stays; a first one that is refused for another reason gives way to the
    next, so that the recording is not lost with it.

    Args:
        utterances: all of the dataset's, in its order.
        sound: for each, whether nothing else speaks against it.

    Returns:
        Place in ``utterances`` to finding, for every one but the first of its kind.
    """
    copies: dict[str, list[int]] = defaultdict(list)
    for place, utterance in enumerate(utterances):
        copies[utterance.id].append(place)
    found: dict[int, Finding] = {}
    for same in copies.values():
        if len(same) == 1:
            continue
        ordered = sorted(same, key=lambda place: (not sound[place], place))
        kept = utterances[ordered[0]]
        for place in ordered[1:]:
            differs = [
                name.replace("_", " ")
                for name in ("raw_label", "language", "speaker")
                if getattr(utterances[place], name) != getattr(kept, name)
            ]
            but = f", with another {' and '.join(differs)}" if differs else ""
            found[place] = Finding("duplicate", f"same audio as {kept.source_id}{but}")
    return found
