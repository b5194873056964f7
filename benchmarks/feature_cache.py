"""What a second extraction over the same corpus costs, and one after a shard was added.

    python benchmarks/feature_cache.py [--data FOLDER]

The RAVDESS sample is ingested into shards; every shard's blocks of the ``statistics`` frontend under four recipes are
computed, then asked for again (every block is found, read whole and compared with its checksum), then again with one
shard's blocks gone, as after new recordings came.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from feature_parity import ROOT, speech_data
from machine import describe

from kubevox.config import (
    ChainRecipe,
    CorpusSource,
    DataConfig,
    FeaturesConfig,
    NoiseRecipe,
    OriginalRecipe,
    PitchRecipe,
    StatisticsConfig,
)
from kubevox.data.dataset import ingest, read_utterances
from kubevox.features import BlockIndex, extract_shard
from kubevox.provenance import git_commit

FEATURES = FeaturesConfig(
    frontends={"statistics": StatisticsConfig()},
    recipes={
        "default": OriginalRecipe(),
        "noise": NoiseRecipe(),
        "pitch": PitchRecipe(),
        "both": ChainRecipe(steps=(PitchRecipe(), NoiseRecipe())),
    },
    device="cpu",
)


def main() -> int:
    """Measure, print, and write ``benchmarks/results/feature_cache.json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=speech_data(), help="folder with one subfolder a corpus")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "feature_cache.json")
    arguments = parser.parse_args()
    if arguments.data is None:
        sys.exit("no recordings: put them in ../shared/data/speech beside the project, or set SPEECH_DATA")
    with tempfile.TemporaryDirectory() as folder:
        corpus = CorpusSource(name="ravdess", path=str(arguments.data / "RAVDESS"))
        dataset, _ = ingest(DataConfig(corpora=[corpus], shard_mb=4), folder)
        wanted = {row.id: "train" for row in read_utterances(dataset.shard_uris)}
        plan = {"statistics": list(FEATURES.recipes)}

        def run() -> tuple[float, list[BlockIndex]]:
            start = time.perf_counter()
            indexes = [extract_shard(shard, wanted, FEATURES, plan, folder) for shard in dataset.shard_uris]
            return time.perf_counter() - start, indexes

        first, indexes = run()
        again, found = run()
        for block in indexes[0].blocks:
            Path(block.uri).unlink()
        added, partly = run()
    figures: dict[str, Any] = {
        "command": "python benchmarks/feature_cache.py",
        "clips": len(wanted),
        "shards": len(dataset.shard_uris),
        "seconds": {"first": round(first, 3), "again": round(again, 3), "one_shard_gone": round(added, 3)},
        "blocks_computed": [sum(i.computed for i in run) for run in (indexes, found, partly)],
        "again_over_first": round(again / first, 4),
        "machine": describe("torch", "numpy", "pyarrow"),
        "commit": git_commit(),
    }
    print(f"first {first:.2f} s, again {again:.3f} s ({again / first:.2%}), one shard gone {added:.2f} s")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
