"""Run the training pipeline on this machine, through KFP's own local runner, and tell what came out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubevox import storage
from kubevox.config import Config
from kubevox.page import SYNTHETIC_NOTICE
from pipelines.view import RunView, last_result

__all__ = ["FAILED", "PROMOTED", "REJECTED", "RunOutcome", "absolute_tracking", "run_locally"]

PROMOTED, FAILED, REJECTED = 0, 1, 3
_KEPT_RUNS = 10


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        code: 0 promoted, 3 rejected by the gate or taken back by the rollout, 1 failed.
        seconds: it took.
        results: what the stages said.
        error: why it failed, in one line.
        log: the file with all output.
        example: a test recording to try the endpoint with, or None.
    """

    code: int
    seconds: float
    results: list[dict[str, Any]]
    error: str | None
    log: Path
    example: Path | None = None

    def of(self, stage: str) -> dict[str, Any]:
        """The last result of a stage; empty where it did not end."""
        return last_result(self.results, stage) or {}

    def to_json(self) -> str:
        """For scripts."""
        refused = "rolled_back" if self.of("deploy") else "rejected"
        verdict = {PROMOTED: "promoted", REJECTED: refused}.get(self.code, "failed")
        return json.dumps(
            {
                "outcome": verdict,
                "exit_code": self.code,
                "seconds": round(self.seconds, 1),
                "error": self.error,
                "log": str(self.log),
                "stages": self.results,
            },
            indent=2,
        )


def run_locally(config: Config, work_dir: Path, pipeline: Any = None) -> RunOutcome:
    """Execute the pipeline's steps as processes of this machine.

    Args:
        config: the run's configuration.
        work_dir: where the run's log and KFP's own files go.
        pipeline: the compiled pipeline, such as one loaded from YAML; the pipeline function itself where None.
    """
    from kfp import local

    from pipelines.training import ACCEPTED, arguments, training_pipeline

    started = time.monotonic()
    runs = work_dir.absolute() / "runs"
    folder = runs / time.strftime("%Y%m%d-%H%M%S")
    suffix = 0
    while folder.exists():
        suffix += 1
        folder = runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{suffix}"
    folder.mkdir(parents=True)
    _forget_old_runs(runs)
    store, tracking = storage.absolute(config.store), absolute_tracking(config.tracking.uri)
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "kfp"), raise_on_error=True)
    view = RunView(folder / "log.txt", sys.stderr)
    error: str | None = None
    quiet = warnings.catch_warnings()
    # OpenMP's threads wait for each other by spinning, which slows them down many times over where another process
    # wants a core too. A short spin costs a tenth on a quiet machine and spares that.
    spin = os.environ.get("GOMP_SPINCOUNT", "1000")
    # Every task's command leaves a temporary folder behind: let it be in the run's own, which goes with old runs.
    temporary = folder / "tmp"
    temporary.mkdir()
    steps = _environment(KUBEVOX_EVENTS="1", PYTHONUNBUFFERED="1", GOMP_SPINCOUNT=spin, TMPDIR=str(temporary))
    with steps, contextlib.redirect_stdout(view), quiet:
        # Display names are for the cluster's UI; that the local runner ignores them needs no line a task.
        warnings.filterwarnings("ignore", message=".*no effect in the current local runner.*")
        try:
            (pipeline or training_pipeline)(**arguments(config, store, tracking))
        except RuntimeError as failure:
            where = f"{view.failed}: " if view.failed else ""
            # A traceback that the user did not cause is for the log; its last line says what it was.
            error = where + (view.error or f"{view.unexpected or failure} (traceback in {folder / 'log.txt'})")
        finally:
            view.close()
    code = FAILED
    verdict = view.result("evaluate")
    if error is None and verdict is None:
        error = "the pipeline ended without a verdict: KFP's local runner skipped the evaluation"
    elif error is None and verdict is not None and verdict["verdict"] != ACCEPTED:
        code = REJECTED
    elif error is None and view.result("deploy") is None:
        # KFP's local runner can skip a branch and still report success.
        error = "the gate accepted the model, but KFP's local runner skipped its deployment"
    elif error is None:
        code = PROMOTED if (view.result("deploy") or {}).get("outcome") == "promoted" else REJECTED
    example = (
        _write_example(view, work_dir.absolute() / f"example-{config.task.name}.flac") if code == PROMOTED else None
    )
    return RunOutcome(code, time.monotonic() - started, view.results, error, folder / "log.txt", example)


def absolute_tracking(uri: str) -> str:
    """MLflow's URI, with a database's relative path made absolute."""
    if not uri.startswith("sqlite:///"):
        return uri
    return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"


def summary(outcome: RunOutcome, config: Config, config_file: str) -> list[str]:
    """The lines that end a run: data, speakers, score, gate, version, reports, and what to try next."""
    data, split, judged = outcome.of("ingest"), outcome.of("split"), outcome.of("evaluate")
    deployed = outcome.of("deploy")
    figures = judged["figures"]

    def interval(name: str) -> str:
        low, high = figures[f"{name}_uar_low"], figures[f"{name}_uar_high"]
        return f"{figures[f'{name}_uar']:.3f}  [{low:.3f}, {high:.3f}]"

    lines = [SYNTHETIC_NOTICE, ""] if data.get("synthetic") else []
    lines += [
        f"Data       {', '.join(data['corpora'])}: {data['utterances']} recordings, {data['hours']:.2f} h",
        "Speakers   "
        + ", ".join(f"{name} {count}" for name, count in split["speakers"].items())
        + "; none in two splits"
        + (f" (unverified: {', '.join(split['unverified'])})" if split["unverified"] else ""),
        f"Test UAR   {interval('test')}  95 % over speakers; chance {figures['chance_uar']:.3f}",
    ]
    if "baseline_uar" in figures and config.baseline:
        lines.append(f"  {config.baseline.model.architecture:9}{interval('baseline')}  the baseline, same split")
    if "champion_uar" in figures:
        lines.append(f"  champion {interval('champion')}  in production until now, same split")
    lines.append(f"Gate       {'accepted' if judged['verdict'] == 'promote' else 'REJECTED'}")
    lines += [f"  {line}" for line in judged["criteria"]]
    if deployed and outcome.code == PROMOTED:
        lines.append(f"Version    {config.registered_model} version {deployed['version']}, alias champion")
    elif deployed:
        champion = f"version {deployed['champion']} stays champion" if deployed["champion"] else "there is no champion"
        lines.append(f"Rollout    version {deployed['version']} TAKEN BACK; {champion}")
        lines += [f"  {line}" for line in deployed["reason"].split("; ")]
    lines += [
        f"Report     {judged['report']}",
        f"           {outcome.of('validate')['report']}",
        *([f"           {deployed['timeline']}"] if deployed else []),
        f"Log        {outcome.log}",
    ]
    if outcome.code == PROMOTED:
        url = f"http://localhost:8080/v1/models/{config.task.name}:predict"
        task = f" TASK={config.task.name}" if config.task.name != "emotion" else ""
        if config_file != f"configs/{config.task.name}.yaml":
            serve = f"kubevox serve --config {config_file}"
        else:
            serve = f"make serve{task}"
        lines += ["", "Try it     " + serve]
        if outcome.example:
            lines.append(
                f'           printf \'{{"instances":[{{"audio":"%s"}}]}}\' "$(base64 -w0 {outcome.example})" | '
                f"curl -s -d @- {url}"
            )
    return lines


def _write_example(view: RunView, path: Path) -> Path | None:
    """One test recording as a file, so that the curl line can be pasted."""
    from kubevox.data.audio import encode_flac
    from kubevox.data.dataset import read_audio
    from kubevox.data.splits import load_split

    split = load_split((view.result("split") or {})["split"])
    chosen = split.of("test")[0][0].id
    for shard in split.dataset.shard_uris:
        for _, waveform in read_audio(shard, [chosen]):
            path.write_bytes(encode_flac(waveform))
            return path
    return None


def _forget_old_runs(runs: Path) -> None:
    """Logs and KFP's own files of the last runs are kept, older ones go."""
    for old in sorted(path for path in runs.iterdir() if path.is_dir())[:-_KEPT_RUNS]:
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _environment(**values: str) -> Any:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
