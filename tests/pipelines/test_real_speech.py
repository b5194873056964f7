"""The shipped configuration, full size, on real recordings; marked acceptance."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kubevox.data.splits import load_split
from tests.serving.parity import largest_difference

pytestmark = pytest.mark.acceptance


def test_default_model_beats_the_baseline_on_real_speech(repository: Path, speech_data: Path, tmp_path: Path) -> None:
    corpora = f"ravdess={speech_data / 'speech/RAVDESS'} emodb={speech_data / 'speech/EMODB'}"
    command = [sys.executable, "-m", "pipelines", "run", "--config", "configs/emotion.yaml", "--json"]
    command += ["--corpora", corpora, "--work-dir", str(tmp_path), "--set", f"store={tmp_path / 'store'}"]
    command += ["--set", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
    ended = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    stages = {stage["stage"]: stage for stage in json.loads(ended.stdout)["stages"]}
    figures = stages["evaluate"]["figures"]
    assert figures["test_uar"] > figures["baseline_uar"] > figures["chance_uar"]
    split = load_split(stages["split"]["split"])
    heard = [set(split.speakers(part)) for part in ("train", "validation", "test")]
    assert all(heard)
    assert not heard[0] & heard[1]
    assert not heard[0] & heard[2]
    assert not heard[1] & heard[2]
    page = Path(stages["evaluate"]["report"]).read_text()
    assert "synthetic" not in page[page.index("<body") :][:600].lower()
    count, differences = largest_difference(str(Path(stages["evaluate"]["report"]).parent))
    assert count == len(split.of("test"))
    assert max(differences.values()) <= 1e-5, differences
