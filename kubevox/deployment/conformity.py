"""Whether a live server answers as the evaluator did, and the recordings that a rollout sends."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kubevox.config import AudioLimits
from kubevox.data.audio import Waveform, encode_flac
from kubevox.data.dataset import read_audio
from kubevox.data.splits import Split
from kubevox.deployment.backend import Endpoint
from kubevox.deployment.local import ModelClient
from kubevox.deployment.record import Conformity
from kubevox.deployment.traffic import Recording
from kubevox.errors import DeploymentError
from kubevox.evaluation.run import Evaluation

__all__ = ["ConformityError", "Reference", "compare", "draw_probe", "reference"]


class ConformityError(DeploymentError):
    """A server whose answers are not what was evaluated."""


@dataclass(frozen=True)
class Reference:
    """Test recordings, and what the evaluator made of them.

    Attributes:
        labels: the model's, in the order of the probabilities.
        recordings: files' bytes.
        probabilities: float [recordings, labels].
        tolerance: allowed between a served and an evaluated probability.
    """

    labels: tuple[str, ...]
    recordings: tuple[bytes, ...]
    probabilities: npt.NDArray[np.float64]
    tolerance: float


def reference(evaluation: Evaluation, split: Split, count: int, tolerance: float) -> Reference:
    """Some test recordings, spread over all of them.

    Raises:
        DeploymentError: the evaluation's predictions cannot be read, or are of recordings that the split does not have.
    """
    expected = _predictions(evaluation, len(split.labels))
    ids = _spread(sorted(expected), count)
    found = _waveforms(split, ids)
    if missing := [utterance for utterance in ids if utterance not in found]:
        raise DeploymentError(f"split {split.uri}: it has no recording {missing[0][:12]}, which was evaluated")
    return Reference(
        split.labels,
        tuple(encode_flac(found[utterance]) for utterance in ids),
        np.array([expected[utterance] for utterance in ids]),
        tolerance,
    )


def compare(endpoint: Endpoint, name: str, version: str, expected: Reference, timeout_s: float) -> Conformity:
    """Ask a live server about the recordings, over V1 and V2, and compare.

    Args:
        endpoint: the server.
        name: the model's, in the URL.
        version: that every answer must name.
        expected: what the evaluator made of them.
        timeout_s: for one request.

    Raises:
        ConformityError: the probabilities are others, the labels do not follow from them, or another version answered.
        DeploymentError: it did not answer.
    """
    client = ModelClient(endpoint.url, name, timeout_s, endpoint.headers)
    labels, count = expected.labels, len(expected.recordings)
    try:
        with contextlib.closing(client):
            v1, v2 = client.predict_v1(expected.recordings), client.predict_v2(expected.recordings)
        answers = {
            "V1": np.array([[float(row["probabilities"][label]) for label in labels] for row in v1]),
            "V2": np.array(v2["probabilities"], dtype=np.float64).reshape(count, len(labels)),
        }
        named = {"V1": [row["label"] for row in v1], "V2": v2["label"]}
        versions = {row["model_version"] for row in v1} | {v2["model_version"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ConformityError(
            f"the server's answers are not those of such a model ({type(error).__name__}: {error})"
        ) from None
    if versions != {version}:
        raise ConformityError(f"the server answers as version {', '.join(map(str, versions))}, not {version}")
    largest = 0.0
    for protocol, served in answers.items():
        if served.shape != expected.probabilities.shape:
            raise ConformityError(f"{len(served)} answers to {count} recordings over {protocol}")
        difference = float(np.abs(served - expected.probabilities).max())
        largest = max(largest, difference)
        if not difference <= expected.tolerance:
            raise ConformityError(
                f"served and evaluated probabilities differ by {difference:.2g} over {protocol} (tolerance "
                f"{expected.tolerance:g})"
            )
        if named[protocol] != [labels[index] for index in served.argmax(axis=1)]:
            raise ConformityError(f"labels over {protocol} do not follow from the probabilities")
    return Conformity(count, largest, expected.tolerance)


def draw_probe(split: Split, limits: AudioLimits, count: int, seed: int) -> list[Recording]:
    """Recordings of validation speakers, as many of each label as there are; never any of the test split.

    Args:
        split: the challenger's.
        limits: what a server takes.
        count: how many at most.
        seed: of the choice.

    Raises:
        DeploymentError: there is none that a server would take.
    """
    by_label: dict[str, list[str]] = defaultdict(list)
    truth: dict[str, str] = {}
    for utterance, label in split.of("validation"):
        if utterance.id not in truth and limits.min_duration_s <= utterance.duration_s <= limits.max_duration_s:
            truth[utterance.id] = label
            by_label[label].append(utterance.id)
    chance = np.random.default_rng(seed)
    shuffled = [[ids[place] for place in chance.permutation(len(ids))] for _, ids in sorted(by_label.items())]
    # In turns, one of each label, until there are enough or none is left.
    longest = max(map(len, shuffled), default=0)
    chosen = [ids[turn] for turn in range(longest) for ids in shuffled if turn < len(ids)][:count]
    if not chosen:
        raise DeploymentError(
            f"split {split.uri}: no recording of a validation speaker is {limits.min_duration_s:g} to "
            f"{limits.max_duration_s:g} s long; a rollout has nothing to send"
        )
    found = _waveforms(split, chosen)
    return [Recording(utterance, truth[utterance], encode_flac(found[utterance])) for utterance in chosen]


def _predictions(evaluation: Evaluation, labels: int) -> dict[str, list[float]]:
    try:
        expected = evaluation.probabilities()
    except (pa.ArrowException, OSError, KeyError) as error:
        why = " ".join(str(error).split())
        raise DeploymentError(
            f"{evaluation.uri}/predictions.parquet: cannot be read ({why}); delete the evaluation and run again"
        ) from None
    if not expected or any(len(row) != labels for row in expected.values()):
        raise DeploymentError(
            f"{evaluation.uri}/predictions.parquet: not {labels} probabilities for each test recording; delete the "
            "evaluation and run again"
        )
    return expected


def _spread(ids: Sequence[str], count: int) -> list[str]:
    """Some ids, spread evenly over the sorted list: hashes, so a fixed and arbitrary choice."""
    step = max(1, len(ids) // count)
    return list(ids[::step][:count])


def _waveforms(split: Split, ids: Iterable[str]) -> dict[str, Waveform]:
    found: dict[str, Waveform] = {}
    for shard in split.dataset.shard_uris:
        found |= dict(read_audio(shard, ids))
    return found
