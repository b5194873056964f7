"""Feature extraction on a GPU: the kernels alone, and end to end from WAV files.

    python benchmarks/feature_gpu.py [--device cuda] [--times 20] [--data FOLDER]

``kernels`` are rows of 2.5 s at 22 050 Hz that lie on the device already: the ``statistics`` of recordings as they are
(``plain``), and of the four recipes default, noise, pitch and pitch + noise with the recipes themselves (``recipes``).
``end_to_end`` starts from WAV files (the RAVDESS sample, as many times as asked), decoded on all cores, and ends with
features in the host's memory. The memory traffic that is counted is the least that the work needs: samples read and
features written; its share of what a copy on the same device reaches says how far the kernels are from that bound.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from feature_parity import ROOT, speech_data
from feature_speed import CONFIG, PLANS, read, wav_files
from machine import describe

from kubevox.features import Extractor, Source, build_frontend
from kubevox.features.augmentation import augment_all
from kubevox.provenance import git_commit

SAMPLES = 55_125


def seconds(work: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """The median time of a call, with the device's queue empty before and after."""
    taken = []
    for turn in range(repeats + 2):
        _finish(device)
        start = time.perf_counter()
        work()
        _finish(device)
        if turn >= 2:
            taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def kernels(device: torch.device, batch: int) -> dict[str, Any]:
    """Rows a second of samples that lie on the device."""
    frontend = build_frontend(CONFIG, str(device))
    time_axis = torch.arange(SAMPLES, device=device) / CONFIG.sample_rate
    pitch = torch.linspace(90.0, 260.0, batch, device=device)[:, None]
    samples = sum(torch.sin(2 * torch.pi * k * pitch * time_axis) / k for k in range(1, 20)) * 0.1
    samples = samples + 0.01 * torch.randn(batch, SAMPLES, device=device)
    ids = [str(row) for row in range(batch)]
    recipes = [recipe for _, recipe in PLANS["recipes"]]

    def four() -> None:
        for recipe, changed in augment_all(samples, ids, recipes, CONFIG.sample_rate):
            frontend(changed, recipe.kind != "original")

    with torch.inference_mode():
        plain = batch / seconds(lambda: frontend(samples), device)
        copied = torch.empty_like(samples)
        bandwidth = 2 * samples.nbytes / seconds(lambda: copied.copy_(samples), device)
        all_four = batch * len(recipes) / seconds(four, device)
    needed = samples[0].nbytes + 4 * frontend.shape[0]
    return {
        "batch": batch,
        "plain_rows_per_s": round(plain),
        "recipes_rows_per_s": round(all_four),
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "least_traffic_share_of_copy": {"plain": round(plain * needed / bandwidth, 4)},
    }


def end_to_end(device: torch.device, files: list[str]) -> dict[str, Any]:
    """Rows a second from files to features in memory."""
    figures = {}
    with Extractor([CONFIG], str(device)) as extractor:
        for plan, targets in PLANS.items():

            def run(chosen: list[str], targets: Any = targets) -> int:
                sources = (Source(file, file, functools.partial(read, file), targets) for file in chosen)
                return sum(len(ids) for done in extractor(sources) for ids, _ in done.values.values())

            run(files[:256])
            start = time.perf_counter()
            rows = run(files)
            figures[plan] = {"rows_per_s": round(rows / (time.perf_counter() - start)), "rows": rows}
    return figures


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    """Measure, print, and write ``benchmarks/results/feature_gpu.json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script itself")
    parser.add_argument("--times", type=int, default=20, help="how often the sample is taken (default 20)")
    parser.add_argument("--batch", type=int, default=1024, help="rows at once in `kernels` (default 1024)")
    parser.add_argument("--data", type=Path, default=speech_data(), help="folder with one subfolder a corpus")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "feature_gpu.json")
    arguments = parser.parse_args()
    if arguments.data is None:
        sys.exit("no recordings: put them in ../shared/data/speech beside the project, or set SPEECH_DATA")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no GPU here")
    device = torch.device(arguments.device)
    figures: dict[str, Any] = {
        "command": f"python benchmarks/feature_gpu.py --times {arguments.times} --batch {arguments.batch}",
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cores": len(os.sched_getaffinity(0)),
        "kernels": kernels(device, arguments.batch),
        "machine": describe("torch", "numpy", "soxr"),
        "commit": git_commit(),
    }
    with tempfile.TemporaryDirectory() as folder:
        figures["end_to_end"] = end_to_end(device, wav_files(arguments.data, Path(folder)) * arguments.times)
    print(json.dumps({name: figures[name] for name in ("kernels", "end_to_end")}, indent=2))
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
