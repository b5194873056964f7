"""What clients are answered: one schema for every protocol. ``openapi.py`` documents it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kubevox.serving.engine import Outcome
from kubevox.serving.library import InferOutput, InferRequest, InferResponse
from kubevox.serving.work import Answer, Greeting

__all__ = ["Answered", "explanations", "label_of", "timing_ms", "v1", "v2"]


@dataclass(frozen=True)
class Answered:
    """A request whose every recording has an answer.

    Attributes:
        request_id: by which it is found again in logs.
        model: what the workers say of it.
        version: the registered version.
        min_confidence: below it an answer abstains.
        outcomes: with an :class:`Answer` each.
        total_ms: from the request to here.
    """

    request_id: str
    model: Greeting
    version: str
    min_confidence: float
    outcomes: Sequence[Outcome]
    total_ms: float

    @property
    def answers(self) -> list[Answer]:
        """Of each recording."""
        return [outcome.answer for outcome in self.outcomes if isinstance(outcome.answer, Answer)]


def label_of(answer: Answer, labels: Sequence[str]) -> tuple[str, float]:
    """The most probable label and its probability."""
    best = max(range(len(labels)), key=answer.probabilities.__getitem__)
    return labels[best], answer.probabilities[best]


def v1(answered: Answered) -> dict[str, Any]:
    """The body of ``:predict``."""
    return {
        "predictions": [_prediction(answered, answer) for answer in answered.answers],
        "id": answered.request_id,
        "timing_ms": timing_ms(answered),
    }


def explanations(answered: Answered) -> dict[str, Any]:
    """The body of ``:explain``."""
    return {
        "explanations": [
            _prediction(answered, answer) | {"explanation": answer.explanation} for answer in answered.answers
        ],
        "id": answered.request_id,
        "timing_ms": timing_ms(answered),
    }


def v2(answered: Answered, request: InferRequest, name: str) -> InferResponse:
    """The response of ``infer``, over REST and gRPC."""
    answers, labels = answered.answers, answered.model.labels
    best = [label_of(answer, labels) for answer in answers]
    count = len(answers)
    outputs = [
        InferOutput("label", [count], "BYTES", data=[label for label, _ in best]),
        InferOutput("confidence", [count], "FP32", data=[confidence for _, confidence in best]),
        InferOutput("abstained", [count], "BOOL", data=[value < answered.min_confidence for _, value in best]),
        InferOutput(
            "probabilities", [count, len(labels)], "FP32", data=[p for answer in answers for p in answer.probabilities]
        ),
        InferOutput("duration_analysed_s", [count], "FP32", data=[round(answer.analysed_s, 4) for answer in answers]),
    ]
    return InferResponse(
        response_id=request.id or answered.request_id,
        model_name=name,
        model_version=answered.version,
        infer_outputs=outputs,
        parameters={
            "labels": ",".join(labels),
            "bundle": answered.model.hash,
            "dataset": answered.model.dataset_hash,
        },
    )


def timing_ms(answered: Answered) -> dict[str, float]:
    """Milliseconds of a request by stage: the longest of its recordings each, and in total."""
    answers = answered.answers

    def longest(values: Sequence[float]) -> float:
        return round(max(values, default=0.0), 3)

    return {
        "queue": longest([outcome.queue_ms for outcome in answered.outcomes]),
        "decode": longest([answer.decode_ms for answer in answers]),
        "features": longest([answer.features_ms or 0.0 for answer in answers]),
        "model": longest([answer.model_ms for answer in answers]),
        "total": round(answered.total_ms, 3),
    }


def _prediction(answered: Answered, answer: Answer) -> dict[str, Any]:
    model = answered.model
    label, confidence = label_of(answer, model.labels)
    said: dict[str, Any] = {
        "label": label,
        "confidence": confidence,
        "abstained": confidence < answered.min_confidence,
        "probabilities": dict(zip(model.labels, answer.probabilities, strict=True)),
        "model_version": answered.version,
        "bundle": model.parts.get(answer.answered_by, model.hash),
        "dataset": model.dataset_hash,
        "duration_s": round(answer.duration_s, 4),
        "duration_analysed_s": round(answer.analysed_s, 4),
    }
    if model.parts:
        said |= {"cascade": model.hash, "answered_by": answer.answered_by}
    if answer.windows:
        said["timeline"] = _timeline(answered, answer)
    return said


def _timeline(answered: Answered, answer: Answer) -> dict[str, Any]:
    """The windows' labels with their times, and what they come to: the mean of their probabilities."""
    labels = answered.model.labels
    rows = np.array([window.probabilities for window in answer.windows])
    mean = rows.mean(axis=0)
    return {
        "windows": [
            {
                "start_s": round(window.start_s, 3),
                "end_s": round(window.end_s, 3),
                "label": labels[int(row.argmax())],
                "confidence": float(row.max()),
                "abstained": bool(row.max() < answered.min_confidence),
                "probabilities": dict(zip(labels, window.probabilities, strict=True)),
            }
            for window, row in zip(answer.windows, rows, strict=True)
        ],
        "label": labels[int(mean.argmax())],
        "confidence": float(mean.max()),
        "probabilities": dict(zip(labels, mean.tolist(), strict=True)),
    }
