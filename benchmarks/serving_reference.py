"""The common way to serve a speech model, as the reference of ``serving.py``: FastAPI, librosa, torch.

    BUNDLE=.kubevox/store/bundles/HASH uvicorn serving_reference:app --app-dir benchmarks

One endpoint takes an uploaded file, ``librosa.load`` decodes and resamples it, ``librosa.feature.melspectrogram`` makes
the input, and the same network with the same weights as in the bundle answers, with torch as it comes.
"""

from __future__ import annotations

import os

import librosa
import numpy as np
import torch
from fastapi import FastAPI, UploadFile

from kubevox.models.bundle import load_bundle

bundle = load_bundle(os.environ["BUNDLE"])
config = bundle.spec.frontend
samples = round(config.duration_s * config.sample_rate)
app = FastAPI()


@app.post("/predict")
async def predict(file: UploadFile) -> dict[str, object]:
    """The label and its probabilities."""
    audio, _ = librosa.load(file.file, sr=config.sample_rate, duration=config.duration_s)
    audio = librosa.util.fix_length(audio, size=samples)
    # The power of a sine of full scale is 1: the same numbers as the bundle's frontend, in decibels.
    power = librosa.feature.melspectrogram(
        y=audio * (2.0 / (config.frame / 2)),
        sr=config.sample_rate,
        n_fft=config.frame,
        hop_length=config.hop,
        n_mels=config.mels,
        fmin=config.fmin_hz,
        fmax=config.fmax_hz,
        norm=None,
    )
    features = librosa.power_to_db(power, amin=10 ** (config.floor_db / 10), top_db=None)
    with torch.no_grad():
        logits = bundle.classifier(torch.from_numpy(np.ascontiguousarray(features, np.float32))[None])
        probabilities = torch.softmax(logits[0].double() / bundle.spec.temperature, dim=-1)
    return {
        "label": bundle.spec.labels[int(probabilities.argmax())],
        "probabilities": dict(zip(bundle.spec.labels, probabilities.tolist(), strict=True)),
    }
