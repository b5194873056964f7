"""What a compiled pipeline asks of a cluster."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from pipelines.training import build_pipeline


@pytest.mark.parametrize("on_gpu", [False, True])
def test_feature_extraction_requests_a_gpu_where_it_is_to_run_on_one(on_gpu: bool, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(build_pipeline(features_on_gpu=on_gpu), str(path))
    executors: dict[str, Any] = next(yaml.safe_load_all(path.read_text()))["deploymentSpec"]["executors"]
    requests = {
        name: executor["container"].get("resources", {}).get("accelerator") for name, executor in executors.items()
    }
    asked = requests.pop("exec-extract-features")
    assert (asked is not None) == on_gpu
    if asked:
        assert (asked["resourceType"], asked["resourceCount"]) == ("nvidia.com/gpu", "1")
    assert not any(requests.values())
