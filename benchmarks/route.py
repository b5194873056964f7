"""What the local platform's route costs: the same requests with it and without it, one after the other.

    python benchmarks/route.py [--requests 2000]

Behind the route stands a server that reads a request's body and answers a prediction's 200 bytes at once, so that the
difference is the route's own: a process that reads the request, chooses a version, sends it on over a pooled
connection and passes the answer back. h2load (of nghttp2) sends bodies of 1 KB, 64 KB and 400 KB (the last two: a clip
of 3 s as compressed speech, and as CD sound, in JSON) by one client, and then by eight at once. Each measurement is
made directly and through the route in turns, five times; the medians of the five are reported.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvicorn
from machine import describe

from kubevox.deployment.backend import ServedVersion
from kubevox.deployment.local import LocalBackend
from kubevox.provenance import git_commit

SIZES = {"1 KB": 1_000, "64 KB": 64_000, "400 KB": 400_000}
TURNS = 5
ANSWER = json.dumps({"predictions": [{"label": "happy", "model_version": "1", "padding": "x" * 130}]}).encode()


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """A model server that has nothing to compute."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


def measure(url: str, body: Path, requests: int, clients: int, log: Path) -> dict[str, float]:
    """Latencies in milliseconds, and requests a second."""
    command = ["h2load", "--h1", "-n", str(requests), "-c", str(clients), "-d", str(body), f"--log-file={log}"]
    said = subprocess.run(
        [*command, f"{url}/v1/models/bench:predict"], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    log.unlink()
    assert len(rows) == requests, said
    assert {row[1] for row in rows} == {"200"}, said
    took = sorted(int(row[2]) / 1000 for row in rows)
    (rate,) = [line.split(",")[1].split()[0] for line in said.splitlines() if line.startswith("finished in")]
    return {"p50_ms": took[len(took) // 2], "p95_ms": took[len(took) * 95 // 100], "requests_per_s": float(rate)}


def compare(ways: dict[str, str], body: Path, requests: int, clients: int, log: Path) -> dict[str, Any]:
    """Medians over the turns, of each way, and the difference of the latencies."""
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(TURNS):
        for way, url in ways.items():
            turns[way].append(measure(url, body, requests, clients, log))
    median = {
        way: {name: round(statistics.median(turn[name] for turn in found), 3) for name in found[0]}
        for way, found in turns.items()
    }
    added = {name: round(median["route"][name] - median["direct"][name], 3) for name in ("p50_ms", "p95_ms")}
    return median | {"added": added}


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="in each measurement")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "route.json")
    flags = parser.parse_args()
    if flags.serve:
        uvicorn.run(answer, host="127.0.0.1", port=flags.serve, log_level="warning", lifespan="off")
        return
    if shutil.which("h2load") is None:
        sys.exit("error: h2load is not installed; it comes with nghttp2 (Debian: nghttp2-client)")
    command = [sys.executable, __file__, "--serve", "{port}"]
    machine, results = describe(), {}
    with tempfile.TemporaryDirectory() as folder:
        platform = LocalBackend("bench", folder, 20.0, 20.0, command, stable=ServedVersion("1", folder))
        try:
            ends = platform.endpoints()
            assert ends.stable is not None
            ways = {"direct": ends.stable.url, "route": ends.route.url}
            for name, size in SIZES.items():
                body = Path(folder) / "body"
                body.write_bytes(b"x" * size)
                for clients in (1, 8):
                    found = compare(ways, body, flags.requests, clients, Path(folder) / "log")
                    results[f"{name}, {clients} at once"] = found
                    print(f"{name:>7}, {clients} at once: {json.dumps(found)}")
        finally:
            platform.close()
    told = {"commit": git_commit(), "machine": machine, "requests": flags.requests, "turns": TURNS, "results": results}
    flags.output.write_text(json.dumps(told, indent=2) + "\n")
    print(f"written to {flags.output}")


if __name__ == "__main__":
    main()
