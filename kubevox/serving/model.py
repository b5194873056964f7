"""The KServe model: recordings in, calibrated probabilities out, over the bundle that was evaluated.

V1: ``{"instances": [{"audio": "<base64>"}]}``; V2: an input ``audio`` of BYTES [N], each element base64 text. Whatever
is wrong with a request is an ``InvalidInput`` (400) that says what; nothing that a client sends may be a 500.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kubevox.data.audio import Waveform, decode
from kubevox.errors import AudioError
from kubevox.features.frontends import minimum_duration_s
from kubevox.models.bundle import Bundle
from kubevox.serving.library import InferOutput, InferRequest, InferResponse, InvalidInput, Model

__all__ = ["SpeechModel"]


@dataclass(frozen=True)
class _Recordings:
    """A request, decoded."""

    waveforms: list[Waveform]
    request: InferRequest | None


@dataclass(frozen=True)
class _Answers:
    """A request's answers: probabilities float32 [N, labels] and the seconds analysed of each recording."""

    probabilities: npt.NDArray[np.float32]
    analysed_s: list[float]
    request: InferRequest | None


class SpeechModel(Model):
    """A bundle as a KServe model.

    Args:
        name: the model's name in the URL.
        bundle: the loaded bundle.
        version: the registered version, told in every answer.
        max_instances: how many recordings a request may hold.
    """

    def __init__(self, name: str, bundle: Bundle, version: str, max_instances: int = 64) -> None:
        super().__init__(name)
        self.bundle, self.version, self.max_instances = bundle, version, max_instances

    def load(self) -> bool:
        """Answer a stretch of silence, so that the first caller does not wait for caches and kernels."""
        frontend = self.bundle.spec.frontend
        seconds = max(1.0, minimum_duration_s(frontend))
        silence = np.zeros(round(seconds * frontend.sample_rate), np.int32)
        self.bundle.predict([Waveform(silence, frontend.sample_rate)])
        self.ready = True
        return self.ready

    def validate(self, payload: Any) -> Any:
        """Nothing is left to check after :meth:`preprocess`."""
        return payload

    async def preprocess(self, payload: Any, headers: dict[str, str] | None = None) -> _Recordings:
        """Decode every recording of the request, off the event loop."""
        request = payload if isinstance(payload, InferRequest) else None
        texts = self._v2_texts(request) if request is not None else self._v1_texts(payload)
        if not texts:
            raise InvalidInput("the request holds no recording")
        if len(texts) > self.max_instances:
            raise InvalidInput(f"{len(texts)} recordings in one request, more than the limit of {self.max_instances}")
        return _Recordings(await asyncio.to_thread(self._decode, texts), request)

    async def predict(self, payload: _Recordings, headers: dict[str, str] | None = None) -> _Answers:
        """Features and model, off the event loop."""
        try:
            probabilities = await asyncio.to_thread(self.bundle.predict, payload.waveforms)
        except AudioError as error:
            raise InvalidInput(str(error)) from None
        analysed = [self.bundle.frontend.analysed_s(waveform) for waveform in payload.waveforms]
        return _Answers(probabilities, analysed, payload.request)

    async def postprocess(
        self, result: _Answers, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> dict[str, Any] | InferResponse:
        """The answer in the request's own protocol."""
        labels = self.bundle.spec.labels
        best = [labels[index] for index in result.probabilities.argmax(axis=1)]
        if result.request is not None:
            return self._v2_response(result, best)
        return {
            "predictions": [
                {
                    "label": label,
                    "probabilities": dict(zip(labels, map(float, row), strict=True)),
                    "model_version": self.version,
                    "bundle": self.bundle.hash,
                    "duration_analysed_s": round(seconds, 4),
                }
                for label, row, seconds in zip(best, result.probabilities, result.analysed_s, strict=True)
            ]
        }

    def get_input_types(self) -> list[dict[str, Any]]:
        """The V2 metadata of the input."""
        return [{"name": "audio", "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """The V2 metadata of the outputs."""
        return [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(self.bundle.spec.labels)]},
            {"name": "duration_analysed_s", "datatype": "FP32", "shape": [-1]},
        ]

    def _v1_texts(self, payload: Any) -> list[Any]:
        if not isinstance(payload, dict):
            raise InvalidInput('expected a JSON object: {"instances": [{"audio": "<base64 of a WAV or FLAC file>"}]}')
        if "instances" not in payload:
            raise InvalidInput("key 'instances' is missing")
        instances = payload["instances"]
        if not isinstance(instances, list):
            raise InvalidInput("'instances' must be a list")
        texts = []
        for index, instance in enumerate(instances):
            if not isinstance(instance, dict) or "audio" not in instance:
                raise InvalidInput(f"instances[{index}]: key 'audio' is missing")
            texts.append(instance["audio"])
        return texts

    def _v2_texts(self, request: InferRequest) -> list[Any]:
        inputs = {item.name: item for item in request.inputs}
        if "audio" not in inputs:
            raise InvalidInput(f"input 'audio' is missing (inputs given: {', '.join(sorted(inputs)) or 'none'})")
        audio = inputs["audio"]
        if audio.datatype != "BYTES":
            raise InvalidInput(f"input 'audio' must be of datatype BYTES, not {audio.datatype}")
        data = audio.data if isinstance(audio.data, list) else []
        shape = list(audio.shape)
        if shape not in ([len(data)], [len(data), 1]):
            raise InvalidInput(f"input 'audio' has shape {shape} but {len(data)} elements; expected [{len(data)}]")
        return data

    def _decode(self, texts: list[Any]) -> list[Waveform]:
        limits = self.bundle.spec.limits
        waveforms = []
        for index, text in enumerate(texts):
            name = f"recording {index}"
            if not isinstance(text, (str, bytes)):
                raise InvalidInput(f"{name}: expected base64 text, got {type(text).__name__}")
            if len(text) * 3 // 4 > limits.max_bytes + 3:
                raise InvalidInput(f"{name}: more than the limit of {limits.max_bytes} bytes")
            try:
                data = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise InvalidInput(f"{name}: not valid base64") from None
            try:
                waveform, _ = decode(data, limits, name)
            except AudioError as error:
                raise InvalidInput(str(error)) from None
            if waveform.duration_s < limits.min_duration_s:
                raise InvalidInput(
                    f"{name}: {waveform.duration_s:.2f} s is too short; at least {limits.min_duration_s:g} s are needed"
                )
            waveforms.append(waveform)
        return waveforms

    def _v2_response(self, result: _Answers, best: list[str]) -> InferResponse:
        assert result.request is not None  # noqa: S101 - only called for V2
        count, labels = result.probabilities.shape
        outputs = [
            InferOutput("label", [count], "BYTES", data=best),
            InferOutput("probabilities", [count, labels], "FP32", data=result.probabilities.ravel().tolist()),
            InferOutput("duration_analysed_s", [count], "FP32", data=[round(s, 4) for s in result.analysed_s]),
        ]
        return InferResponse(
            response_id=result.request.id or "",
            model_name=self.name,
            model_version=self.version,
            infer_outputs=outputs,
            parameters={"labels": ",".join(self.bundle.spec.labels), "bundle": self.bundle.hash},
        )
