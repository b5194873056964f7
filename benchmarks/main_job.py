"""The main job as a person runs it: a fresh store, then the same again.

    python benchmarks/main_job.py emotion
    python benchmarks/main_job.py language
    python benchmarks/main_job.py emotion --corpora "ravdess=DIR emodb=DIR" --name real_speech

Prints wall-clock seconds of both runs, the seconds of each stage, and the test UAR of the model beside the baseline's;
writes them to ``benchmarks/results/main_job_<name>.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe

from kubevox.provenance import git_commit

ROOT = Path(__file__).resolve().parent.parent


def run(task: str, corpora: str | None, folder: Path) -> tuple[float, dict[str, Any]]:
    """Seconds, and the outcome of ``python -m pipelines run --json``."""
    command = [sys.executable, "-m", "pipelines", "run", "--config", f"configs/{task}.yaml", "--json"]
    command += ["--work-dir", str(folder), "--set", f"store={folder}/store"]
    command += ["--set", f"tracking.uri=sqlite:///{folder}/mlflow.db", *(["--corpora", corpora] if corpora else [])]
    started = time.monotonic()
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode not in (0, 3):
        sys.exit(f"the run failed with {ended.returncode}")
    return time.monotonic() - started, json.loads(ended.stdout)


def main() -> None:
    """Run twice, tell, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["emotion", "language"])
    parser.add_argument("--corpora", help='real recordings, such as "ravdess=DIR emodb=DIR"')
    parser.add_argument("--name", help="of the result's file; the task's where not given")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first_s, first = run(flags.task, flags.corpora, Path(folder))
        second_s, second = run(flags.task, flags.corpora, Path(folder))
    judged = next(stage for stage in first["stages"] if stage["stage"] == "evaluate")
    split = next(stage for stage in first["stages"] if stage["stage"] == "split")
    figures = {name: round(value, 4) for name, value in judged["figures"].items()}
    corpora = " ".join(word.partition("=")[0] + "=DIR" for word in (flags.corpora or "").split())
    result = {
        "command": f"python benchmarks/main_job.py {flags.task}" + (f' --corpora "{corpora}"' if corpora else ""),
        "outcome": first["outcome"],
        "first_run_s": round(first_s, 1),
        "second_run_s": round(second_s, 1),
        "stages_s": [[stage["stage"], stage["seconds"]] for stage in first["stages"]],
        "reused_by_second": sorted({stage["stage"] for stage in second["stages"] if stage.get("reused")}),
        "speakers": split["speakers"],
        "figures": figures,
        "machine": describe("torch", "kfp", "kserve", "mlflow"),
        "commit": git_commit(),
    }
    path = ROOT / "benchmarks" / "results" / f"main_job_{flags.name or flags.task}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"first run {first_s:.0f} s, second {second_s:.0f} s, {first['outcome']}")
    print(f"test UAR {figures['test_uar']:.3f}, baseline {figures.get('baseline_uar', float('nan')):.3f}; {path}")


if __name__ == "__main__":
    main()
