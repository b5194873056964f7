"""Recordings made on the spot that look like speech to a frontend."""

import numpy as np

from kubevox.data.audio import Waveform, canonical

__all__ = ["recording", "speech_like"]


def speech_like(seconds: float, sample_rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """A gliding voice with formants and vibrato, syllables with pauses, and a noise floor: float64 [samples]."""
    chance = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    pitch = chance.uniform(90, 260) * 2 ** (0.3 * np.sin(2 * np.pi * chance.uniform(0.2, 0.6) * time))
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.01 * np.sin(2 * np.pi * 5 * time))) / sample_rate
    formants = chance.uniform([300, 900, 2200], [800, 2000, 3200])
    harmonics = np.arange(1, int(min(4000, sample_rate / 2) / pitch.max()) + 1)
    gains = [sum(1 / (1 + ((k * pitch.mean() - f) / 120) ** 2) for f in formants) + 0.02 for k in harmonics]
    voice = sum(gain * np.sin(k * phase) / k**0.5 for k, gain in zip(harmonics, gains, strict=True))
    syllables = np.clip(np.sin(2 * np.pi * chance.uniform(2, 4) * time + chance.uniform(0, 6)), 0, 1)
    quiet = 1e-4 * chance.standard_normal(len(time))
    return chance.uniform(0.05, 0.6) * voice * syllables / np.abs(voice).max() + quiet


def recording(seconds: float, sample_rate: int = 16_000, seed: int = 0) -> Waveform:
    return canonical(speech_like(seconds, sample_rate, seed), sample_rate)
