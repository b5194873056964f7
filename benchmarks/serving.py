"""The model server under load: latency by stage, what it sustains, and what becomes of three times as much.

    python benchmarks/serving.py [--bundle URI] [--part latency threads throughput overload]

The load generator is h2load (nghttp2; Debian: ``apt install nghttp2-client``), open loop: a new connection a request,
at a fixed rate, whatever becomes of those before. Generator and server share the machine. The clip is 3 s of 16 kHz,
16-bit WAV. Without ``--bundle`` the network is the configuration's ``mini`` with random weights, which cost what
trained ones do.

``latency``: one client, one request after another, the connection kept; V1 with base64, and the file as the body.

``throughput``: rising rates, so many seconds each, for this server and for the reference, ``serving_reference.py``: the
same network in FastAPI with librosa, as it is commonly run (one uvicorn process, torch's own number of threads), and
tuned by hand (a process a core, a thread each). A rate is sustained where nothing was refused or failed, and 95 % of
the answers came within the limit. The reference runs before and after ours; the better counts.

``threads``: workers and their threads, 16 clients that each send again as soon as they are answered.

``overload``: three times the sustained rate for 60 s: statuses, memory, and the latency five seconds later.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
from machine import describe
from memory import Peak

from kubevox.config import ServingConfig, load_config
from kubevox.deployment.local import free_port
from kubevox.provenance import git_commit

ROOT = Path(__file__).resolve().parent.parent
LIMITS_MS = (30, 50, 100)
RATES = (10, 20, 30, 40, *range(50, 201, 25), *range(250, 701, 50), 800, 900, 1000, 1200, 1400)
PARTS = ["latency", "threads", "throughput", "overload"]
BOUNDARY = "of-this-benchmark"


@dataclass(frozen=True)
class Target:
    """A server and a request that it takes."""

    name: str
    url: str
    body: Path
    kind: str
    pid: int


def clip(seconds: float = 3.0, rate: int = 16_000) -> bytes:
    """Noise that rises and falls, as WAV; what is in it changes no time."""
    chance = np.random.default_rng(0)
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * np.arange(round(seconds * rate)) / rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * envelope * chance.standard_normal(len(envelope)), rate, format="WAV")
    return buffer.getvalue()


def untrained_mini(folder: Path) -> str:
    """A bundle of the configuration's mini model with random weights."""
    import torch

    from kubevox.features.frontends import build_frontend
    from kubevox.models import build_network
    from kubevox.models.bundle import BundleSpec, Classifier, save_bundle

    config = load_config(ROOT / "configs" / "emotion.yaml", [])
    assert config.mini is not None
    torch.manual_seed(0)
    model = config.mini.model
    frontend = build_frontend(config.features.frontends[model.frontend])
    network = build_network(model, frontend.shape, len(config.labels))
    bands = frontend.shape[0]
    spec = BundleSpec(
        task=config.task.name,
        labels=config.labels,
        frontend=frontend.config,
        frontend_version=frontend.version,
        shape=list(frontend.shape),
        model=model,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        temperature=1.0,
        limits=config.data.limits,
        dataset_hash="0" * 64,
        split_hash="0" * 64,
        training_key="0" * 64,
        speakers=[],
        synthetic=True,
    )
    return save_bundle(
        Classifier(network, torch.full((bands, 1), -60.0), torch.full((bands, 1), 20.0)), spec, str(folder)
    )


@contextlib.contextmanager
def process(command: list[str], url: str, **environment: str) -> Iterator[int]:
    """A server until it is no longer needed; ready when it answers."""
    with tempfile.TemporaryFile() as log:
        running = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 120
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(url, trust_env=False).status_code == 200:
                        break
                if running.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{command}: not ready: {log.read().decode()[-2000:]}")
                time.sleep(0.1)
            yield running.pid
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(60)


@contextlib.contextmanager
def ours(bundle: str, folder: Path, **options: Any) -> Iterator[Target]:
    """This project's server, with its log and its drift features, as it comes."""
    port = free_port()
    name = json.loads((Path(bundle) / "bundle.json").read_text())["task"]
    command = [sys.executable, "-m", "kubevox.serving", "--model_name", name, "--model_dir", bundle]
    command += ["--host", "127.0.0.1", "--http_port", str(port), "--log_store", str(folder / "log")]
    command += ["--options", ServingConfig(**options).to_json()]
    url = f"http://127.0.0.1:{port}"
    with process(command, f"{url}/v2/models/{name}/ready") as pid:
        yield Target("kubevox", f"{url}/v1/models/{name}:predict", folder / "v1.json", "application/json", pid)


@contextlib.contextmanager
def reference(bundle: str, folder: Path, tuned: bool) -> Iterator[Target]:
    """FastAPI and librosa."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "serving_reference:app", "--app-dir", "benchmarks"]
    command += ["--port", str(port), "--log-level", "warning", *(["--workers", str(os.cpu_count())] if tuned else [])]
    url = f"http://127.0.0.1:{port}"
    threads = {"OMP_NUM_THREADS": "1"} if tuned else {}
    with process(command, f"{url}/docs", BUNDLE=bundle, **threads) as pid:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        target = Target("tuned" if tuned else "common", f"{url}/predict", folder / "multipart", kind, pid)
        for _ in range(20 * (os.cpu_count() or 1)):  # each of its processes compiles and caches
            httpx.post(target.url, content=target.body.read_bytes(), headers={"content-type": kind}, trust_env=False)
        yield target


def write_bodies(folder: Path) -> None:
    """The clip in each of the forms in which it is sent."""
    wav = clip()
    (folder / "clip.wav").write_bytes(wav)
    (folder / "v1.json").write_text(json.dumps({"instances": [{"audio": base64.b64encode(wav).decode()}]}))
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="clip.wav"\r\n'
        "Content-Type: audio/wav\r\n\r\n"
    )
    (folder / "multipart").write_bytes(head.encode() + wav + f"\r\n--{BOUNDARY}--\r\n".encode())


def load(target: Target, rate: int, seconds: float) -> dict[str, Any]:
    """h2load at a rate: statuses, and percentiles of the answers in ms."""
    count = int(rate * seconds)
    # h2load opens some connections every period; the period is as short as whole milliseconds allow.
    period_ms = next(ms for ms in range(2, 1001) if rate * ms % 1000 == 0)
    with tempfile.NamedTemporaryFile() as log:
        command = ["h2load", "--h1", "-n", str(count), "-c", str(count), "-r", str(rate * period_ms // 1000)]
        command += ["--rate-period", f"{period_ms}ms", "-d", str(target.body), "-H", f"content-type: {target.kind}"]
        command += ["--log-file", log.name, "--connection-active-timeout=60s", target.url]
        peak = Peak(target.pid, 1.0)
        began = time.monotonic()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        took, memory = time.monotonic() - began, peak.stop()
        rows = np.loadtxt(log.name, dtype=np.int64, ndmin=2)
    statuses = {str(status): int(n) for status, n in zip(*np.unique(rows[:, 1], return_counts=True), strict=True)}
    good = rows[rows[:, 1] == 200, 2] / 1000
    return {
        "rate": rate,
        "sent": count,
        "answered_a_second": round(len(good) / took, 1),
        "statuses": statuses | ({"none": count - len(rows)} if len(rows) < count else {}),
        **{f"p{p}_ms": round(float(np.percentile(good, p)), 1) if len(good) else None for p in (50, 95, 99)},
        "memory_mb": round(memory / 1e6),
    }


def closed_loop(target: Target, clients: int, seconds: float) -> dict[str, Any]:
    """h2load with so many clients, each of which waits for its answer before it asks again."""
    with tempfile.NamedTemporaryFile() as log:
        command = ["h2load", "--h1", "-c", str(clients), "-D", str(round(seconds)), "-d", str(target.body)]
        command += ["-H", f"content-type: {target.kind}", "--log-file", log.name, target.url]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        rows = np.loadtxt(log.name, dtype=np.int64, ndmin=2)
    good = rows[rows[:, 1] == 200, 2] / 1000
    return {"answered_a_second": round(len(good) / seconds, 1), "p95_ms": round(float(np.percentile(good, 95)), 1)}


def sustained(rows: list[dict[str, Any]], limit_ms: float) -> int:
    """The highest rate up to which all was answered, and 95 % within the limit."""
    best = 0
    for row in rows:
        if set(row["statuses"]) != {"200"} or row["p95_ms"] > limit_ms or row["answered_a_second"] < 0.95 * row["rate"]:
            break
        best = row["rate"]
    return best


def rising(target: Target, seconds: float) -> list[dict[str, Any]]:
    """Rates one after another, until there is no point in more."""
    rows: list[dict[str, Any]] = []
    for rate in RATES:
        row = load(target, rate, seconds)
        rows.append(row)
        print(
            f"  {target.name:8} {rate:5}/s  {row['statuses']}  p50 {row['p50_ms']}  p95 {row['p95_ms']} ms", flush=True
        )
        if sustained(rows, 3 * max(LIMITS_MS)) < rate:
            break
        time.sleep(0.5)
    return rows


def latency(target: Target, folder: Path, count: int = 400) -> dict[str, Any]:
    """One client, one request after another."""
    result: dict[str, Any] = {}
    forms = {"v1": (target.body, target.kind), "raw": (folder / "clip.wav", "audio/wav")}
    with httpx.Client(trust_env=False) as http:
        for form, (body, kind) in forms.items():
            content, stages, times = body.read_bytes(), [], []
            for _ in range(count):
                began = time.perf_counter()
                answer = http.post(target.url, content=content, headers={"content-type": kind})
                times.append(1000 * (time.perf_counter() - began))
                stages.append(answer.json()["timing_ms"])
            result[form] = {f"p{p}_ms": round(float(np.percentile(times[20:], p)), 2) for p in (50, 95, 99)} | {
                "stages_p50_ms": {
                    stage: round(float(np.percentile([row[stage] for row in stages[20:]], 50)), 2)
                    for stage in stages[0]
                }
            }
    return result


def main() -> None:
    """Run the parts that are asked for, tell, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="a bundle's folder; the mini model with random weights where not given")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=None)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each rate")
    parser.add_argument("--name", default="serving", help="of the result's file")
    flags = parser.parse_args()
    if shutil.which("h2load") is None:
        sys.exit("h2load is not installed: apt install nghttp2-client")
    parts = flags.part or PARTS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_bodies(folder)
        bundle = flags.bundle or untrained_mini(folder / "store")
        spec = json.loads((Path(bundle) / "bundle.json").read_text())
        result: dict[str, Any] = {
            "command": "python benchmarks/serving.py" + (" --bundle BUNDLE" if flags.bundle else ""),
            "model": {key: spec["model"][key] for key in ("architecture", "channels") if key in spec["model"]}
            | {"parameters": spec["parameters"]},
            "clip": "3 s, 16 kHz, 16-bit WAV",
        }
        if "latency" in parts:
            with ours(bundle, folder) as target:
                result["latency_one_client"] = latency(target, folder)
            print(json.dumps(result["latency_one_client"], indent=2))
        if "threads" in parts:
            result["workers_x_threads"] = {}
            for workers, threads in ((1, 1), (1, 2), (2, 1), (2, 2)):
                with ours(bundle, folder, workers=workers, threads=threads) as target:
                    closed_loop(target, 16, 2)
                    result["workers_x_threads"][f"{workers} x {threads}"] = closed_loop(target, 16, flags.seconds)
            print(json.dumps(result["workers_x_threads"], indent=2))
        best = 0
        if "throughput" in parts:
            runs: dict[str, list[list[dict[str, Any]]]] = {"common": [], "tuned": [], "kubevox": []}
            for tuned in (False, True):
                with reference(bundle, folder, tuned) as target:
                    runs[target.name].append(rising(target, flags.seconds))
            for _ in range(2):
                with ours(bundle, folder) as target:
                    runs["kubevox"].append(rising(target, flags.seconds))
            for tuned in (True, False):
                with reference(bundle, folder, tuned) as target:
                    runs[target.name].append(rising(target, flags.seconds))
            at = {
                f"p95 <= {limit} ms": {
                    name: max(sustained(rows, limit) for rows in passes) for name, passes in runs.items()
                }
                for limit in LIMITS_MS
            }
            result["sustained_a_second"] = at
            result["ratio_to_common"] = {
                limit: round(row["kubevox"] / row["common"], 2) if row["common"] else None for limit, row in at.items()
            }
            result["ratio_to_tuned"] = {
                limit: round(row["kubevox"] / row["tuned"], 2) if row["tuned"] else None for limit, row in at.items()
            }
            result["rates"] = runs
            best = max(row["kubevox"] for row in at.values())
            print(json.dumps({key: result[key] for key in ("sustained_a_second", "ratio_to_common", "ratio_to_tuned")}))
        if "overload" in parts:
            with ours(bundle, folder) as target:
                before = latency(target, folder, 120)["v1"]
                usual = Peak(target.pid)
                time.sleep(1)
                usual_mb = round(usual.stop() / 1e6)
                if not best:
                    best = sustained(rising(target, flags.seconds), max(LIMITS_MS))
                row = load(target, 3 * best, 60.0)
                time.sleep(5)
                after = latency(target, folder, 120)["v1"]
            result["overload"] = row | {
                "usual_memory_mb": usual_mb,
                "before": {key: before[key] for key in ("p50_ms", "p95_ms")},
                "five_seconds_after": {key: after[key] for key in ("p50_ms", "p95_ms")},
            }
            print(json.dumps(result["overload"]))
    result |= {"machine": describe("torch", "kserve", "uvicorn", "fastapi", "librosa"), "commit": git_commit()}
    path = ROOT / "benchmarks" / "results" / f"{flags.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
