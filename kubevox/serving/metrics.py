"""What Prometheus is told, beside what KServe tells it; everything at ``/metrics``.

KServe has no counters of errors. Labels are few and known: nothing that a client sends becomes one.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "ABSTAINED",
    "AUDIO_SECONDS",
    "BATCH_SIZE",
    "CONFIDENCE",
    "IN_FLIGHT",
    "LATENCY",
    "LOG_ROWS",
    "PREDICTIONS",
    "QUEUED",
    "REQUESTS",
    "RESTARTS",
    "STAGE",
]

_MILLISECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

REQUESTS = Counter("kubevox_requests_total", "Requests by route and status.", ["model", "version", "route", "status"])
LATENCY = Histogram(
    "kubevox_request_seconds",
    "From a request's first byte to its answer's last.",
    ["model", "version", "route"],
    buckets=_MILLISECONDS,
)
STAGE = Histogram(
    "kubevox_stage_seconds",
    "A recording's time in each stage: queue, decode, features, model.",
    ["model", "version", "stage"],
    buckets=_MILLISECONDS,
)
PREDICTIONS = Counter(
    "kubevox_predictions_total",
    "Recordings answered, by label and by the bundle of a cascade that answered.",
    ["model", "version", "label", "answered_by"],
)
CONFIDENCE = Histogram(
    "kubevox_confidence",
    "The calibrated probability of the answered label.",
    ["model", "version"],
    buckets=[i / 10 for i in range(1, 11)],
)
ABSTAINED = Counter("kubevox_abstained_total", "Answers below the least confidence.", ["model", "version"])
AUDIO_SECONDS = Counter("kubevox_audio_seconds_total", "Seconds of audio received and answered.", ["model", "version"])
BATCH_SIZE = Histogram(
    "kubevox_batch_size", "Recordings computed at once.", ["model", "version"], buckets=[1, 2, 4, 8, 16, 32, 64]
)
QUEUED = Gauge("kubevox_queued", "Recordings that wait for a worker.", ["model", "version"])
IN_FLIGHT = Gauge("kubevox_requests_in_flight", "Requests being read or answered.", ["model", "version"])
RESTARTS = Gauge("kubevox_worker_restarts", "Workers that ended and were replaced.", ["model", "version"])
LOG_ROWS = Gauge(
    "kubevox_inference_log_rows", "Rows of the inference log: written, dropped, failed.", ["model", "version", "fate"]
)
