"""Feature extraction against librosa with joblib, on all cores, in one run; and how time and memory grow.

    python benchmarks/feature_speed.py [--rounds 5] [--growth] [--data FOLDER]

The reference is what speech emotion recognition systems do: a process a core (joblib), file by file
``librosa.load(duration=2.5, offset=0.6)``, then zero-crossing rate, RMS, chroma_stft, melspectrogram and mfcc(128),
mean over time, once for the recording as it is (``plain``), or for the four recipes default, noise, pitch and
pitch + noise (``recipes``). Both sides start from the same WAV files, made of the RAVDESS sample; both keep their
processes from round to round and get a round beforehand, so that no start of a process is timed. The rounds alternate;
the ratio is that of the medians.

``--growth`` runs ours on 1, 4 and 16 times the sample, in a process of its own, and takes its peak memory with its
workers': the sum of their proportional set sizes, read twenty times a second.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before anything imports numpy or torch: a process a core is the parallelism of both sides.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import librosa
import numpy as np
import soundfile
from feature_parity import speech_data
from joblib import Parallel, delayed
from machine import describe
from memory import Peak

from kubevox.config import (
    AudioLimits,
    ChainRecipe,
    NoiseRecipe,
    OriginalRecipe,
    PitchRecipe,
    StatisticsConfig,
)
from kubevox.data.audio import Waveform, decode
from kubevox.features import Extractor, Source
from kubevox.provenance import git_commit

ROOT = Path(__file__).resolve().parent.parent
CONFIG = StatisticsConfig()
PLANS = {
    "plain": ((CONFIG, OriginalRecipe()),),
    "recipes": tuple(
        (CONFIG, recipe)
        for recipe in (
            OriginalRecipe(),
            NoiseRecipe(),
            PitchRecipe(),
            ChainRecipe(steps=(PitchRecipe(), NoiseRecipe())),
        )
    ),
}


def wav_files(sample: Path, folder: Path) -> list[str]:
    """The RAVDESS sample as 16-bit WAV files."""
    files = []
    for flac in sorted((sample / "RAVDESS").rglob("*.flac")):
        samples, rate = soundfile.read(flac, dtype="int16")
        files.append(str(folder / f"{flac.stem}.wav"))
        soundfile.write(files[-1], samples, rate, subtype="PCM_16")
    return files


def reference_features(samples: np.ndarray, rate: float) -> np.ndarray:
    """270 values by librosa."""
    features = [
        librosa.feature.zero_crossing_rate(samples),
        librosa.feature.rms(y=samples),
        librosa.feature.chroma_stft(y=samples, sr=rate),
        librosa.feature.melspectrogram(y=samples, sr=rate),
        librosa.feature.mfcc(y=samples, sr=rate, n_mfcc=128),
    ]
    return np.concatenate([feature.mean(axis=1) for feature in features])


def reference_clip(file: str, plan: str) -> np.ndarray:
    """One recording, file to features, the common way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples, rate = librosa.load(file, duration=2.5, offset=0.6)
        if plan == "plain":
            return reference_features(samples, rate)
        pitched = librosa.effects.pitch_shift(samples, sr=rate, n_steps=3)
        variants = [samples, _noisy(samples), pitched, _noisy(pitched)]
        return np.stack([reference_features(variant, rate) for variant in variants])


def _noisy(samples: np.ndarray) -> np.ndarray:
    amplitude = 0.035 * np.random.uniform() * np.amax(samples)
    return samples + amplitude * np.random.normal(size=samples.shape[0])


def reference(files: list[str], plan: str, parallel: Parallel) -> None:
    """All files by librosa, a process a core."""
    parallel(delayed(reference_clip)(file, plan) for file in files)


def read(file: str) -> Waveform:
    """A file's canonical waveform."""
    return decode(Path(file).read_bytes(), AudioLimits(), file)[0]


def ours(files: list[str], plan: str, extractor: Extractor) -> None:
    """All files by Kubevox, a process a core."""
    sources = (Source(file, file, functools.partial(read, file), PLANS[plan]) for file in files)
    rows = sum(len(ids) for done in extractor(sources) for ids, _ in done.values.values())
    assert rows == len(files) * len(PLANS[plan])


def compare(files: list[str], cores: int, rounds: int) -> dict[str, Any]:
    """Clips a second of both sides, rounds alternating."""
    figures: dict[str, Any] = {}
    with Parallel(n_jobs=cores) as parallel, Extractor([CONFIG], "cpu", workers=cores) as extractor:
        return _rounds(files, rounds, {"reference": (reference, parallel), "ours": (ours, extractor)}, figures)


def _rounds(
    files: list[str], rounds: int, sides: dict[str, tuple[Callable[..., None], Any]], figures: dict[str, Any]
) -> dict[str, Any]:
    for plan in PLANS:
        taken: dict[str, list[float]] = {"reference": [], "ours": []}
        for turn in range(rounds + 1):
            for name, (run, workers) in sides.items():
                start = time.perf_counter()
                run(files, plan, workers)
                if turn:
                    taken[name].append(time.perf_counter() - start)
        rates = {name: len(files) / statistics.median(times) for name, times in taken.items()}
        figures[plan] = {
            "clips_per_s": {name: round(rate, 1) for name, rate in rates.items()},
            "rows_per_s": {name: round(rate * len(PLANS[plan]), 1) for name, rate in rates.items()},
            "ms_a_clip": {name: round(1e3 / rate, 3) for name, rate in rates.items()},
            "seconds": {name: [round(value, 3) for value in times] for name, times in taken.items()},
            "ratio": round(rates["ours"] / rates["reference"], 2),
        }
        ratio, ms = figures[plan]["ratio"], figures[plan]["ms_a_clip"]
        print(f"{plan:8} {ratio:6.2f}x   {ms['ours']:.2f} ms a clip against {ms['reference']:.2f}", flush=True)
    return figures


def growth(files: list[str], cores: int) -> list[dict[str, Any]]:
    """Time and peak memory of ours for the four recipes, on 1, 4 and 16 times the sample."""
    figures = []
    for times in (1, 4, 16):
        program = (
            "import json, sys; sys.path.insert(0, sys.argv[1]); import feature_speed as f, time; "
            "work = json.load(sys.stdin); start = time.perf_counter(); "
            "extractor = f.Extractor([f.CONFIG], 'cpu', workers=work['cores']); "
            "f.ours(work['files'] * work['times'], 'recipes', extractor); print(time.perf_counter() - start)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        peak = Peak(process.pid)
        out, _ = process.communicate(json.dumps({"files": files, "times": times, "cores": cores}))
        figures.append(
            {"clips": len(files) * times, "seconds": round(float(out), 2), "peak_mb": round(peak.stop() / 1e6)}
        )
        one = figures[-1]
        print(f"{one['clips']:6} clips  {one['seconds']:7.2f} s  {one['peak_mb']} MB", flush=True)
    return figures


def main() -> int:
    """Measure, print, and write ``benchmarks/results/feature_speed.json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each side (default 5)")
    parser.add_argument("--growth", action="store_true", help="also 1, 4 and 16 times the sample")
    parser.add_argument("--data", type=Path, default=speech_data(), help="folder with one subfolder a corpus")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "feature_speed.json")
    arguments = parser.parse_args()
    if arguments.data is None:
        sys.exit("no recordings: put them in ../shared/data/speech beside the project, or set SPEECH_DATA")
    cores = len(os.sched_getaffinity(0))
    figures: dict[str, Any] = {
        "command": "python benchmarks/feature_speed.py" + (" --growth" if arguments.growth else ""),
        "cores": cores,
        "machine": describe("torch", "numpy", "librosa", "soxr", "joblib"),
        "commit": git_commit(),
    }
    with tempfile.TemporaryDirectory() as folder:
        files = wav_files(arguments.data, Path(folder))
        figures["clips"] = len(files)
        figures["against_librosa"] = compare(files, cores, arguments.rounds)
        if arguments.growth:
            figures["growth"] = growth(files, cores)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
