"""Ingest and validation: clips a second, memory, and how both grow; against librosa with joblib in the same run.

    python benchmarks/data_layer.py [--sizes 1000 4000 10000 16000] [--vad 1000]

The clips are synthetic speech (eSpeak NG, 1.5 to 4 s at 22 050 Hz), written as WAV files once, LABEL/SPEAKER_n.wav. For
each size a process of its own ingests them into an empty store (decode, hash, FLAC, Parquet) and validates the version
(decode again, compare, measure, tables, report). The time is from the process' first statement to its last, without its
imports; its memory is the sum of the proportional set sizes of it and its workers.

The reference is a script that does the same work with the field's usual parts, a process a core (joblib), its processes
started and warm. Ingest: ``librosa.load`` at the file's rate, a hash, FLAC by soundfile, Parquet by pandas. Validation:
the FLAC decoded by soundfile, then level (``librosa.feature.rms``), silence (``librosa.effects.split``), noise
(percentiles of the frames' level), bandwidth (``librosa.feature.spectral_rolloff``), clipping, offset, copies, and the
table through pandera. It compares no decoded audio with its hash and draws no report, which ours does. It runs before
and after ours on the same clips; the better time counts.

``--vad N`` also validates N clips with voice activity detection.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ.setdefault("KUBEVOX_PSEUDONYM_KEY", "of this benchmark alone")

from machine import describe
from memory import Peak

from kubevox.config import CorpusSource, DataConfig, TaskConfig, ValidateConfig
from kubevox.data.corpora.synthetic import Synthetic
from kubevox.processes import Workers
from kubevox.provenance import git_commit

ROOT = Path(__file__).resolve().parent.parent
EMOTIONS = ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]


def make(folder: Path, clips: int) -> list[str]:
    """Write so many clips; corpora of other seeds follow until there are enough."""
    recordings = []
    seed = 0
    while len(recordings) < clips:
        options = Synthetic.Options(speakers=24, sentences=12, languages=["da", "en", "is", "sv"], seed=seed)
        recordings += [(seed, recording) for recording in Synthetic(None, options).recordings()]
        seed += 1

    def write(index: int) -> str:
        number, recording = recordings[index]
        voice = (recording.speaker or "").partition(":")[2]
        path = folder / str(recording.raw_label) / f"{voice}x{number}_{index:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(recording.read())
        return str(path)

    # Every size holds all labels, voices and languages.
    step = len(recordings) / clips
    return list(Workers(write).map(int(place * step) for place in range(clips)))


def ours(folder: str, store: str, vad: bool) -> dict[str, Any]:
    """Ingest and validate a folder; seconds each."""
    from kubevox.data.dataset import ingest
    from kubevox.data.validation import validate

    corpus = CorpusSource(name="folder", path=folder)
    labels = sorted(path.name for path in Path(folder).iterdir())
    start = time.perf_counter()
    version, _ = ingest(DataConfig(corpora=[corpus], shard_mb=32), store)
    middle = time.perf_counter()
    config = ValidateConfig(max_quarantined_share=1.0, vad=vad)
    validation = validate(version, TaskConfig(name="emotion", labels=labels), config, store)
    end = time.perf_counter()
    return {
        "clips": version.utterances,
        "accepted": validation.accepted,
        "ingest_s": round(middle - start, 2),
        "validate_s": round(end - middle, 2),
        "clips_per_s": round(version.utterances / (end - start), 1),
    }


def reference_ingest(file: str) -> dict[str, Any]:
    """One file as a script takes it in."""
    import librosa
    import soundfile

    samples, rate = librosa.load(file, sr=None)
    flac = io.BytesIO()
    soundfile.write(flac, samples, rate, format="FLAC", subtype="PCM_16")
    return {
        "file": file,
        "label": Path(file).parent.name,
        "speaker": Path(file).name.partition("_")[0],
        "duration_s": librosa.get_duration(y=samples, sr=rate),
        "size": os.path.getsize(file),
        "id": hashlib.sha256(samples.tobytes()).hexdigest(),
        "audio": flac.getvalue(),
    }


def reference_measure(flac: bytes) -> dict[str, Any]:
    """What a script measures of one stored recording."""
    import librosa
    import numpy as np
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(flac), dtype="float32")
    frame = round(0.02 * rate)
    level = librosa.feature.rms(y=samples, frame_length=frame, hop_length=frame)[0]
    loud = librosa.effects.split(samples, top_db=40)
    noise, speech = np.percentile(level, [10, 95])
    rolloff = librosa.feature.spectral_rolloff(y=samples, sr=rate, roll_percent=0.999)
    return {
        "rms": float(level.mean()),
        "silence": 1 - float((loud[:, 1] - loud[:, 0]).sum() / len(samples)),
        "snr_db": float(20 * np.log10(speech / max(noise, 1e-7))),
        "bandwidth_hz": float(np.percentile(rolloff, 95)),
        "clipped": float(np.mean(np.abs(samples) > 0.999)),
        "offset": float(abs(samples.mean())),
    }


def reference(files: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of both stages for all files."""
    import pandas
    import pandera.pandas as pandera
    from joblib import Parallel, delayed

    schema = pandera.DataFrameSchema(
        {
            "file": pandera.Column(str, unique=True),
            "duration_s": pandera.Column(float, pandera.Check.in_range(1, 60)),
            "size": pandera.Column(int, pandera.Check.in_range(2000, 22_000_000)),
            "rms": pandera.Column(float, pandera.Check.gt(1e-4)),
            "clipped": pandera.Column(float, pandera.Check.le(0.01)),
        }
    )
    with Parallel(n_jobs=len(os.sched_getaffinity(0)), batch_size=16) as pool:
        warm = pool(delayed(reference_ingest)(file) for file in files[:64])
        pool(delayed(reference_measure)(row["audio"]) for row in warm)
        start = time.perf_counter()
        table = pandas.DataFrame(pool(delayed(reference_ingest)(file) for file in files))
        table.to_parquet(folder / "reference.parquet")
        middle = time.perf_counter()
        table = pandas.read_parquet(folder / "reference.parquet")
        measures = pandas.DataFrame(pool(delayed(reference_measure)(flac) for flac in table.pop("audio")))
        table = schema.validate(pandas.concat([table, measures], axis=1), lazy=True)
        table["copy"] = table["id"].duplicated()
        return middle - start, time.perf_counter() - middle


def measured(folder: Path, store: Path, vad: bool = False) -> dict[str, Any]:
    """:func:`ours` in a process of its own, with its peak memory."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--one", str(folder), str(store), *(["--with-vad"] if vad else [])],
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = Peak(process.pid)
    out, _ = process.communicate()
    if process.returncode:
        sys.exit("the run failed")
    return {**json.loads(out), "peak_mb": round(peak.stop() / 1e6)}


def main() -> int:
    """Measure, print, and write ``benchmarks/results/data_layer.json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 10000, 16000])
    parser.add_argument("--vad", type=int, default=1000, help="clips validated with voice activity detection; 0: none")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "data_layer.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--with-vad", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(ours(*arguments.one, arguments.with_vad)))
        return 0
    warnings.filterwarnings("ignore")
    runs, with_vad, references = [], None, []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folders = {size: root / f"clips-{size}" for size in {*arguments.sizes, *filter(None, [arguments.vad])}}
        for size, folder in folders.items():
            make(folder, size)
        compared = arguments.sizes[min(1, len(arguments.sizes) - 1)]
        files = sorted(str(path) for path in folders[compared].rglob("*.wav"))
        references.append(reference(files, root))
        for size in arguments.sizes:
            runs.append(measured(folders[size], root / f"store-{size}"))
            print(runs[-1], flush=True)
        references.append(reference(files, root))
        if arguments.vad:
            with_vad = measured(folders[arguments.vad], root / "store-vad", vad=True)
            print("with voice activity detection", with_vad, flush=True)
    one = next(run for run in runs if run["clips"] == compared)
    theirs = {"ingest_s": min(first for first, _ in references), "validate_s": min(second for _, second in references)}
    ratios = {stage: round(seconds / one[stage], 2) for stage, seconds in theirs.items()}
    print(f"librosa, pandas and pandera with joblib, {compared} clips: {theirs}; ours is faster by {ratios}")
    figures = {
        "command": "python benchmarks/data_layer.py",
        "runs": runs,
        "with_vad": with_vad,
        "reference": {"clips": compared, **{stage: round(seconds, 2) for stage, seconds in theirs.items()}},
        "ratios": ratios,
        "cores": len(os.sched_getaffinity(0)),
        "machine": describe("numpy", "pyarrow", "soundfile", "librosa", "joblib", "pandas", "pandera"),
        "commit": git_commit(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
