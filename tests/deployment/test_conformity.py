"""The recordings that a rollout sends, and the comparison of served with evaluated answers."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from kubevox.config import AudioLimits
from kubevox.data.audio import decode
from kubevox.deployment.backend import Endpoint
from kubevox.deployment.conformity import ConformityError, Reference, compare, draw_probe
from kubevox.errors import DeploymentError
from tests.tiny import Tiny

LIMITS = AudioLimits()
LABELS = ("angry", "happy", "sad")
EXPECTED = Reference(LABELS, (b"one", b"two"), np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]), 1e-5)


def test_the_probe_is_of_validation_speakers_balanced_and_as_the_seed_says(tiny: Tiny) -> None:
    validation = {utterance.id: label for utterance, label in tiny.split.of("validation")}
    others = {utterance.id for utterance, _ in tiny.split.of("train", "test")}
    whole = draw_probe(tiny.split, LIMITS, 100, 0)
    assert {recording.utterance: recording.label for recording in whole} == validation
    assert others.isdisjoint(recording.utterance for recording in whole)
    three = draw_probe(tiny.split, LIMITS, 3, 0)
    assert Counter(recording.label for recording in three) == dict.fromkeys(LABELS, 1)
    assert three == draw_probe(tiny.split, LIMITS, 3, 0)
    assert any(three != draw_probe(tiny.split, LIMITS, 3, seed) for seed in range(1, 6))
    for recording in three:
        decode(recording.audio, LIMITS)


def test_what_a_server_would_refuse_is_not_sent(tiny: Tiny) -> None:
    strict = LIMITS.model_copy(update={"min_duration_s": 30.0})
    with pytest.raises(DeploymentError, match=r"no recording of a validation speaker is 30 to 60 s long"):
        draw_probe(tiny.split, strict, 10, 0)


@dataclass
class Served:
    """A server of two canned answers."""

    v1: Any = None
    v2: Any = None
    status: int = 200
    hosts: list[str] = field(default_factory=list)
    url: str = ""

    def say(
        self, probabilities: Any = EXPECTED.probabilities, labels: Any = ("angry", "sad"), version: str = "2"
    ) -> None:
        rows = np.asarray(probabilities, dtype=float)
        self.v1 = {
            "predictions": [
                {
                    "label": label,
                    "probabilities": dict(zip(LABELS, map(float, row), strict=True)),
                    "model_version": version,
                }
                for label, row in zip(labels, rows, strict=True)
            ]
        }
        outputs = [{"name": "label", "data": list(labels)}, {"name": "probabilities", "data": rows.ravel().tolist()}]
        self.v2 = {"model_version": version, "outputs": outputs}


@pytest.fixture
def served() -> Iterator[Served]:
    told = Served()
    told.say()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            told.hosts.append(self.headers["host"])
            body = json.dumps(told.v2 if "/v2/" in self.path else told.v1).encode()
            self.send_response(told.status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


def compared(served: Served, **headers: str) -> Any:
    return compare(Endpoint(served.url, headers), "mood", "2", EXPECTED, 5.0)


def test_equal_answers_conform_and_the_largest_difference_is_told(served: Served) -> None:
    served.say(EXPECTED.probabilities + 5e-6)
    found = compared(served, Host="mood.example.org")
    assert (found.recordings, found.tolerance, found.protocols) == (2, 1e-5, ("v1", "v2"))
    assert found.largest_difference == pytest.approx(5e-6)
    assert set(served.hosts) == {"mood.example.org"}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"probabilities": EXPECTED.probabilities + 2e-5}, r"differ by 2e-05 over V1 \(tolerance 1e-05\)"),
        ({"probabilities": EXPECTED.probabilities * np.nan}, "differ by nan over V1"),
        ({"labels": ("angry", "happy")}, "labels over V1 do not follow from the probabilities"),
        ({"version": "1"}, "the server answers as version 1, not 2"),
    ],
)
def test_answers_that_are_not_the_evaluated_ones_are_refused(served: Served, what: dict[str, Any], words: str) -> None:
    served.say(**what)
    with pytest.raises(ConformityError, match=words):
        compared(served)


def test_protocols_that_do_not_agree_are_refused(served: Served) -> None:
    v1 = served.v1
    served.say(EXPECTED.probabilities + 0.1)
    served.v1 = v1
    with pytest.raises(ConformityError, match=r"differ by 0\.1 over V2"):
        compared(served)


@pytest.mark.parametrize(
    "damage",
    [
        {"v1": {"predictions": [{"label": "angry"}]}},
        {"v1": {"predictions": [{"label": "angry", "probabilities": {"angry": "much"}, "model_version": "2"}] * 2}},
        {"v2": {"model_version": "2", "outputs": [{"name": "label", "data": ["angry", "sad"]}]}},
        {"v2": {"model_version": "2", "outputs": [{"name": "probabilities", "data": [0.1]}]}},
    ],
)
def test_answers_of_another_shape_are_refused_in_one_line(served: Served, damage: dict[str, Any]) -> None:
    for name, value in damage.items():
        setattr(served, name, value)
    with pytest.raises(ConformityError, match="not those of such a model") as caught:
        compared(served)
    assert len(str(caught.value).splitlines()) == 1


def test_fewer_answers_than_recordings_are_refused(served: Served) -> None:
    served.v1 = {"predictions": served.v1["predictions"][:1]}
    with pytest.raises(ConformityError, match="1 answers to 2 recordings over V1"):
        compared(served)


def test_a_server_that_fails_is_an_error_that_says_so(served: Served) -> None:
    served.status = 500
    with pytest.raises(DeploymentError, match="answered 500"):
        compared(served)
