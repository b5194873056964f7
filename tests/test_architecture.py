"""Who may import whom, and what a role does not carry."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def modules_after(code: str) -> set[str]:
    """The top-level modules that are loaded in a fresh interpreter after some code."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_imports_run_one_way():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    run = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout
    assert " 0 broken" in run.stdout
    for contract in (
        "pipelines -> components -> kubevox",
        "inside kubevox, imports follow the data's own path",
        "serving sees only config, storage, data, features and models",
        "the library knows nothing of KFP",
    ):
        assert f"{contract} KEPT" in run.stdout


def test_every_room_of_the_library_is_in_the_layers():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["kubevox"])
    placed = {name.strip() for layer in layers for name in layer.split("|")}
    rooms = {
        path.stem for path in (ROOT / "kubevox").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} <= placed


def test_a_serving_image_needs_neither_mlflow_nor_kfp():
    loaded = modules_after("import kubevox.serving.model, kubevox.serving.server")
    assert not {"mlflow", "kfp", "matplotlib", "jinja2", "minio"} & loaded


def test_a_component_costs_no_heavy_import_until_it_runs():
    code = "import components.train, components.evaluate, components.deploy"
    assert not {"torch", "mlflow", "kubevox", "pyarrow"} & modules_after(code)
