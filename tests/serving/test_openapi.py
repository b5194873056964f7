"""The server is what its OpenAPI document says: schemathesis looks for a request that shows otherwise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubevox.config import ServingConfig
from tests.serving.live import Live, live_server
from tests.serving.recordings import LIMITS
from tests.tiny import Tiny, untrained_bundle

pytestmark = pytest.mark.e2e

# That text of the schema's shape is a recording is more than a schema can ask: such requests are refused with 400.
UNKNOWABLE = "positive_data_acceptance"


@pytest.fixture(scope="module")
def live(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    bundle = untrained_bundle(tiny, tmp_path_factory.mktemp("store"), seed=9, limits=LIMITS)
    with live_server(bundle, "--options", ServingConfig.model_validate({"workers": 1}).to_json()) as server:
        yield server
        assert "Traceback" not in server.log()


@pytest.mark.parametrize("examples", [10, pytest.param(300, marks=pytest.mark.acceptance)])
def test_no_request_shows_the_document_wrong(examples: int, live: Live, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{live.url}/openapi.json", "--seed", "1"]
    command += ["--checks", "all", "--exclude-checks", UNKNOWABLE, "-n", str(examples), "--no-color"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stdout
    assert "13 selected / 13 total" in ended.stdout
