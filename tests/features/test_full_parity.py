"""Full-size checks of feature extraction, for `make acceptance`."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def benchmarks(repository: Path) -> Iterator[Path]:
    """The benchmarks' folder, from which their modules can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "benchmarks"))
        yield repository / "benchmarks"


def test_all_ravdess_recordings_have_the_statistics_of_librosa(benchmarks: Path, speech_data: Path) -> None:
    import librosa

    from kubevox.config import AudioLimits, StatisticsConfig
    from kubevox.data.audio import decode
    from kubevox.features import build_frontend, features_of

    parity: ModuleType = importlib.import_module("feature_parity")
    frontend = build_frontend(StatisticsConfig())
    clips = sorted((speech_data / "speech" / "RAVDESS").rglob("*.flac"))
    assert len(clips) > 400
    for clip in clips:
        waveform, _ = decode(clip.read_bytes(), AudioLimits(), clip.name)
        samples, _ = librosa.load(clip, duration=2.5, offset=0.6)
        theirs = parity.librosa_statistics(samples, frontend.config)
        found = parity.deviations(features_of(waveform, frontend), theirs, frontend.config)
        assert max(found.values()) <= parity.TOLERANCE, clip


def test_memory_does_not_grow_with_the_corpus(benchmarks: Path, speech_data: Path, tmp_path: Path) -> None:
    """Under 1.5 GB with all workers, at 1, 4 and 16 times the sample."""
    output = tmp_path / "speed.json"
    command = [sys.executable, str(benchmarks / "feature_speed.py"), "--rounds", "1", "--growth"]
    command += ["--data", str(speech_data / "speech"), "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(benchmarks.parent)})
    growth = json.loads(output.read_text())["growth"]
    assert [figure["clips"] // growth[0]["clips"] for figure in growth] == [1, 4, 16]
    assert max(figure["peak_mb"] for figure in growth) < 1500
