"""Whether a served answer is the evaluator's, for every recording of a test split."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np

from kubevox.data.audio import encode_flac
from kubevox.data.dataset import read_audio
from kubevox.data.splits import load_split
from kubevox.evaluation.run import load_evaluation
from tests.serving.live import live_server
from tests.serving.recordings import text

__all__ = ["largest_difference"]


def largest_difference(evaluation_uri: str, *arguments: str) -> tuple[int, dict[str, float]]:
    """How many test recordings there are, and the largest difference of a probability, by the way of asking.

    Args:
        evaluation_uri: of the bundle that is served.
        arguments: for the server.
    """
    evaluation = load_evaluation(evaluation_uri)
    expected = evaluation.probabilities()
    files: dict[str, str] = {}
    for shard in load_split(evaluation.split_uri).dataset.shard_uris:
        files |= {name: text(encode_flac(waveform)) for name, waveform in read_audio(shard, list(expected))}
    names = sorted(expected)
    truth = np.array([expected[name] for name in names])
    with live_server(evaluation.bundle_uri, *arguments) as server:

        def ask(some: list[str]) -> list[list[float]]:
            body = {"instances": [{"audio": files[name]} for name in some]}
            answer = httpx.post(f"{server.url}/v1/models/mood:predict", json=body, timeout=60, trust_env=False)
            assert answer.status_code == 200, answer.text
            return [list(one["probabilities"].values()) for one in answer.json()["predictions"]]

        ways = {"one by one": [row for name in names for row in ask([name])]}
        ways["eight in a request"] = [row for at in range(0, len(names), 8) for row in ask(names[at : at + 8])]
        with ThreadPoolExecutor(16) as pool:
            ways["sixteen clients at once"] = [
                row for rows in pool.map(lambda name: ask([name]), names) for row in rows
            ]
        batches = server.metric("kubevox_batch_size_sum") / server.metric("kubevox_batch_size_count")
    assert batches > 1.0  # or nothing was seen of batches
    return len(names), {way: float(np.abs(np.array(rows) - truth).max()) for way, rows in ways.items()}
