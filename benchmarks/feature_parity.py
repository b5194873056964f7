"""How far the ``statistics`` frontend is from librosa 0.11 on real recordings, and what either takes.

    python benchmarks/feature_parity.py [--clips 20 | --all] [--data FOLDER]

The measure is |ours - librosa's| / max(|librosa's|, 1 % of the RMS of the value's family in that recording); all 270
values must stay within 1e-3. The recordings are found in ``../shared/data`` beside the project or in ``$SPEECH_DATA``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
from machine import describe

from kubevox.config import AudioLimits, LogMelConfig, StatisticsConfig
from kubevox.data.audio import decode
from kubevox.features import build_frontend, features_of, minimum_duration_s
from kubevox.provenance import git_commit

ROOT = Path(__file__).resolve().parent.parent
CORPORA = ("RAVDESS", "EMODB", "nEMO", "GCompris", "ESC10", "FSDD")
TOLERANCE = 1e-3


def speech_data() -> Path | None:
    """The folder of real recordings, or None where there is none."""
    folder = Path(os.environ.get("SPEECH_DATA") or ROOT.parent / "shared" / "data") / "speech"
    return folder if folder.is_dir() else None


def real_clips(folder: Path, count: int | None) -> list[Path]:
    """Recordings of all corpora in turn, evenly spread over each, long enough for the frontend; all where None."""
    least = minimum_duration_s(StatisticsConfig())
    by_corpus = []
    for corpus in CORPORA:
        files = sorted((folder / corpus).rglob("*.flac"))
        files = [file for file in files if librosa.get_duration(path=file) >= least]
        if count is not None:
            files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, min(count, len(files)), dtype=int))]
        by_corpus.append(files)
    turns = [files[turn] for turn in range(max(map(len, by_corpus))) for files in by_corpus if turn < len(files)]
    return turns[:count]


def librosa_statistics(samples: np.ndarray, config: StatisticsConfig) -> np.ndarray:
    """The values as librosa computes them: float64 [270] of float32 [samples]."""
    frames = {"hop_length": config.hop}
    spectral = {"y": samples, "sr": config.sample_rate, "n_fft": config.frame, **frames}
    mel = {**spectral, "n_mels": config.mels}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recordings shorter than a frame, or without any pitch
        features = [
            librosa.feature.zero_crossing_rate(samples, frame_length=config.frame, **frames),
            librosa.feature.rms(y=samples, frame_length=config.frame, **frames),
            librosa.feature.chroma_stft(**spectral, n_chroma=config.chroma),
            librosa.feature.melspectrogram(**mel),
            librosa.feature.mfcc(**mel, n_mfcc=config.mfccs),
        ]
    return np.concatenate([feature.mean(axis=1, dtype=np.float64) for feature in features])


def deviations(ours: np.ndarray, theirs: np.ndarray, config: StatisticsConfig) -> dict[str, float]:
    """The largest deviation in each family of values, relative as the module's head says."""
    sizes = {"zcr": 1, "rms": 1, "chroma": config.chroma, "mel": config.mels, "mfcc": config.mfccs}
    largest, start = {}, 0
    for family, size in sizes.items():
        here, there = ours[start : start + size].astype(np.float64), theirs[start : start + size]
        floor = 0.01 * np.sqrt(np.mean(there**2))
        scale = np.maximum(np.maximum(np.abs(there), floor), np.finfo(np.float32).tiny)
        largest[family] = float((np.abs(here - there) / scale).max())
        start += size
    return largest


def _milliseconds(call: Any, repeats: int = 9) -> float:
    """The best of some repeats: the one least disturbed by whatever else runs."""
    call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1e3 * min(taken)


def main() -> int:
    """Measure, print, and write ``benchmarks/results/feature_parity.json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=20, help="how many recordings (default 20)")
    parser.add_argument("--all", action="store_true", help="every recording there is")
    parser.add_argument("--data", type=Path, default=speech_data(), help="folder with one subfolder a corpus")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "feature_parity.json")
    arguments = parser.parse_args()
    if arguments.data is None:
        sys.exit("no recordings: put them in ../shared/data/speech beside the project, or set SPEECH_DATA")
    config = StatisticsConfig()
    frontend = build_frontend(config)
    clips = real_clips(arguments.data, None if arguments.all else arguments.clips)
    largest: dict[str, float] = {}
    same_samples, above = 0, []
    waveforms = []
    for clip in clips:
        samples, _ = librosa.load(clip, sr=config.sample_rate, offset=config.offset_s, duration=config.duration_s)
        waveform, _ = decode(clip.read_bytes(), AudioLimits(), clip.name)
        waveforms.append(waveform)
        same_samples += np.array_equal(samples, frontend.prepare(waveform))
        found = deviations(features_of(waveform, frontend), librosa_statistics(samples, config), config)
        largest = {family: max(value, largest.get(family, 0.0)) for family, value in found.items()}
        if max(found.values()) > TOLERANCE:
            above.append(str(clip.relative_to(arguments.data)))
    timed = [waveforms[index % len(waveforms)] for index in range(32)]
    figures: dict[str, Any] = {
        "command": "python benchmarks/feature_parity.py" + (" --all" if arguments.all else f" --clips {len(clips)}"),
        "clips": len(clips),
        "clips_with_the_samples_of_librosa_load": same_samples,
        "tolerance": TOLERANCE,
        "largest_deviation": largest,
        "clips_above_tolerance": above,
        "milliseconds_a_clip": {},
        "machine": describe("torch", "numpy", "librosa", "soxr"),
        "commit": git_commit(),
    }
    prepared = [frontend.prepare(waveform) for waveform in timed]
    milliseconds = figures["milliseconds_a_clip"]
    milliseconds["statistics, librosa"] = _milliseconds(
        lambda: [librosa_statistics(samples, config) for samples in prepared]
    ) / len(timed)
    for kind in (config, LogMelConfig()):
        made = build_frontend(kind)
        inputs = [made.prepare(waveform) for waveform in timed]
        for threads in (1, 2):
            torch.set_num_threads(threads)
            taken = _milliseconds(lambda made=made, inputs=inputs: made.extract(inputs, 32)) / len(timed)
            milliseconds[f"{made.kind}, batch of 32, torch threads {threads}"] = taken
        milliseconds[f"{made.kind}, cut and resample"] = _milliseconds(
            lambda made=made: [made.prepare(waveform) for waveform in timed]
        ) / len(timed)
    for family, value in largest.items():
        print(f"{family:>7}  largest deviation {value:.2e}  ({value / TOLERANCE:.1%} of the tolerance)")
    print(f"{same_samples} of {len(clips)} clips: cut and resampled to the very samples of librosa.load")
    for name, taken in milliseconds.items():
        print(f"{taken:8.2f} ms a clip  {name}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if above:
        print(f"above the tolerance: {', '.join(above)}")
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
