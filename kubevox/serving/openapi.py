"""The server's REST interface as an OpenAPI 3.1 document, served at ``/openapi.json``."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

import kubevox
from kubevox.data.audio import Waveform, encode_flac

if TYPE_CHECKING:
    from kubevox.serving.model import SpeechModel

__all__ = ["document"]


def document(model: SpeechModel) -> dict[str, Any]:
    """The document of a server with this model, its labels and limits in it."""
    name, limits = model.name, model.greeting.limits
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Kubevox: {model.greeting.task}",
            "version": kubevox.__version__,
            "description": (
                f"Recordings of {limits.min_duration_s:g} to {limits.max_duration_s:g} s, at most {limits.max_bytes} "
                f"bytes, {limits.min_sample_rate} to {limits.max_sample_rate} Hz, at most {limits.max_channels} "
                "channels: WAV, FLAC, Ogg Vorbis or Opus, MP3. Every answer carries the header X-Request-Id: the one "
                "of the request, or a new one."
            ),
        },
        "paths": {
            f"/v1/models/{name}:predict": {"post": _v1("Classify recordings (V1).", "predict", "Predictions")},
            f"/v1/models/{name}:explain": {
                "post": _v1("Which seconds and bands spoke for the label.", "explain", "Explanations")
            },
            f"/v2/models/{name}/infer": {"post": _infer()},
            "/v1/models": {"get": _get("The models served.", {"models": {"type": "array", "items": _TEXT}})},
            f"/v1/models/{name}": {"get": _ready()},
            f"/v2/models/{name}/ready": {"get": _ready()},
            f"/v2/models/{name}": {
                "get": _get(
                    "The model's inputs and outputs.",
                    {"name": _TEXT, "inputs": {"type": "array"}, "outputs": {"type": "array"}},
                )
            },
            "/v2": {"get": _get("The server.", {"name": _TEXT, "version": _TEXT, "extensions": {"type": "array"}})},
            "/v2/health/live": {"get": _get("Whether it lives.", {"live": {"type": "boolean"}})},
            "/v2/health/ready": {
                "get": _get("Whether it is ready.", {"ready": {"type": "boolean"}}) | {"operationId": "server_ready"}
            },
            "/v2/models": {"get": _get("The models served.", {"models": {"type": "array", "items": _TEXT}})},
            "/": {"get": _get("Whether it lives.", {"status": _TEXT})},
            "/metrics": {
                "get": {
                    "summary": "Metrics, for Prometheus.",
                    "responses": {"200": {"description": "metrics", "content": {"text/plain": {"schema": _TEXT}}}},
                }
            },
        },
        "components": {"schemas": _schemas(model)},
    }


_TEXT: dict[str, Any] = {"type": "string"}
_SHARE: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
_SECONDS: dict[str, Any] = {"type": "number", "minimum": 0}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _reference(name)}}}


def _busy() -> dict[str, Any]:
    return _json("Error", "no room now, or the server ends: try again after the seconds of Retry-After") | {
        "headers": {"Retry-After": {"schema": {"type": "string", "pattern": "^[0-9]+$"}, "required": True}}
    }


def _refusals() -> dict[str, Any]:
    return {
        "400": _json("Error", "what is wrong with the request, in one line"),
        "404": _json("Error", "no such model"),
        "408": _json("Error", "the body did not arrive in time"),
        "413": _json("Error", "the body is too large"),
        "503": _busy(),
    }


def _v1(summary: str, verb: str, answer: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "operationId": verb,
        "parameters": [
            {
                "name": "timeline",
                "in": "query",
                "description": "with a recording as the body: whether a timeline is wanted",
                "schema": {"type": "string", "enum": ["true", "false"]},
            }
        ]
        if verb == "predict"
        else [
            {
                "name": "label",
                "in": "query",
                "description": "with a recording as the body: the label to explain; the predicted one where not given",
                "schema": _reference("Label"),
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _reference("Instances")},
                "audio/wav": {"schema": {"type": "string", "format": "binary"}},
                "audio/flac": {"schema": {"type": "string", "format": "binary"}},
                "audio/ogg": {"schema": {"type": "string", "format": "binary"}},
                "audio/mpeg": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {"200": _json(answer, "an answer for each recording, in their order"), **_refusals()},
    }


def _infer() -> dict[str, Any]:
    return {
        "summary": "Classify recordings (V2, the Open Inference Protocol).",
        "operationId": "infer",
        "requestBody": {"required": True, "content": {"application/json": {"schema": _reference("InferRequest")}}},
        "responses": {"200": _json("InferResponse", "outputs of N elements each"), **_refusals()},
    }


def _get(summary: str, properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {"application/json": {"schema": schema}}},
            "503": _busy(),
        },
    }


def _ready() -> dict[str, Any]:
    return _get("Whether the model is ready.", {"name": _TEXT, "ready": {"type": "boolean"}})


def _audio(model: SpeechModel) -> dict[str, Any]:
    """Base64 text; the example is silence, of the shortest length that is taken."""
    rate = 16_000
    silence = encode_flac(Waveform(np.zeros(round(1.1 * model.shortest_s * rate), np.int32), rate))
    return {"type": "string", "contentEncoding": "base64", "examples": [base64.b64encode(silence).decode()]}


def _schemas(model: SpeechModel) -> dict[str, Any]:
    labels, options = list(model.greeting.labels), model.options
    probabilities = {
        "type": "object",
        "description": "calibrated; they sum to 1",
        "properties": dict.fromkeys(labels, _SHARE),
        "required": labels,
        "additionalProperties": False,
    }
    judged = {
        "label": _reference("Label"),
        "confidence": _SHARE | {"description": "the label's probability"},
        "probabilities": _reference("Probabilities"),
    }
    abstained = {"type": "boolean", "description": "whether the confidence is below what the server was told to ask"}
    prediction = judged | {
        "abstained": abstained,
        "model_version": _TEXT | {"description": "the registered version"},
        "bundle": _TEXT | {"description": "hash of the bundle that answered"},
        "dataset": _TEXT | {"description": "hash of the dataset that the model was trained on"},
        "duration_s": _SECONDS,
        "duration_analysed_s": _SECONDS | {"description": "how much of the recording the answer rests on"},
    }
    optional = {
        "timeline": _reference("Timeline"),
        "cascade": _TEXT | {"description": "hash of the cascade"},
        "answered_by": {"enum": ["mini", "premium"]},
    }
    window = {"start_s": _SECONDS, "end_s": _SECONDS} | judged | {"abstained": abstained}
    of_request = {"id": _TEXT | {"description": "the request's id"}, "timing_ms": _reference("Timing")}

    def closed(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": required or list(properties)}

    tensor = {"name": _TEXT, "shape": {"type": "array", "items": {"type": "integer"}}, "datatype": _TEXT}
    return {
        "Label": {"type": "string", "enum": labels},
        "Probabilities": probabilities,
        "Instances": closed(
            {
                "instances": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": options.max_instances,
                    "items": _reference("Instance"),
                }
            }
        ),
        "Instance": {
            "type": "object",
            "properties": {
                "audio": _audio(model) | {"description": "a recording's bytes"},
                "uri": _TEXT | {"description": "s3:// or https://, where the server is configured to fetch it"},
                "timeline": {"type": "boolean", "description": "windows of the recording with a label each"},
                "label": _reference("Label"),
            },
            "oneOf": [{"required": ["audio"]}, {"required": ["uri"]}],
        },
        "Prediction": closed(prediction | optional, list(prediction)),
        "Predictions": closed({"predictions": {"type": "array", "items": _reference("Prediction")}} | of_request),
        "Explanation": closed(
            prediction | optional | {"explanation": {"type": "object"}}, [*prediction, "explanation"]
        ),
        "Explanations": closed({"explanations": {"type": "array", "items": _reference("Explanation")}} | of_request),
        "Window": closed(window),
        "Timeline": closed({"windows": {"type": "array", "items": _reference("Window")}} | judged),
        "Timing": closed(dict.fromkeys(("queue", "decode", "features", "model", "total"), _SECONDS)),
        "Error": closed({"error": _TEXT}),
        "InferRequest": closed(
            {
                "id": _TEXT,
                "inputs": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 1,
                    "items": closed(
                        {
                            "name": {"const": "audio"},
                            "datatype": {"const": "BYTES"},
                            "shape": {
                                "type": "array",
                                "items": {"type": "integer"},
                                "minItems": 1,
                                "maxItems": 2,
                                "examples": [[1]],
                            },
                            "data": {"type": "array", "items": _audio(model)},
                        }
                    ),
                },
            },
            ["inputs"],
        ),
        "InferResponse": closed(
            {
                "id": _TEXT,
                "model_name": _TEXT,
                "model_version": _TEXT,
                "parameters": {"type": "object"},
                "outputs": {"type": "array", "items": closed(tensor | {"data": {"type": "array"}})},
            }
        ),
    }
