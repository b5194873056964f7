"""Recordings to send to a server, made on the spot."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile

from kubevox.config import AudioLimits

LIMITS = AudioLimits(min_duration_s=0.5, max_duration_s=2.0, max_bytes=100_000, max_channels=2)


def recording(
    seconds: float = 1.0, rate: int = 16_000, channels: int = 1, container: str = "WAV", subtype: str = "PCM_16"
) -> bytes:
    """A tone in noise."""
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * 220 * (1 + time) * time)
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(time))
    buffer = io.BytesIO()
    samples = np.stack([(tone + noise) / (1 + channel) for channel in range(channels)], axis=1)
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def silence(seconds: float) -> bytes:
    """FLAC, which hardly needs bytes for it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(round(seconds * 8_000)), 8_000, format="FLAC")
    return buffer.getvalue()


def text(data: bytes) -> str:
    """Base64, as JSON carries bytes."""
    return base64.b64encode(data).decode()
