"""Ten thousand requests that nobody should send: not one is a server error, and the server is the same afterwards."""

from __future__ import annotations

import collections
import io
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubevox.config import AudioLimits, ServingConfig
from kubevox.data.audio import decode
from kubevox.models.bundle import Bundle, load_bundle
from tests.serving.live import Live, live_server
from tests.serving.recordings import recording, text
from tests.serving.test_model_server import DOCUMENTS, V1_BODIES, V2_BODIES
from tests.tiny import Tiny, untrained_bundle

pytestmark = [pytest.mark.e2e, pytest.mark.acceptance]

LIMITS = AudioLimits(min_duration_s=0.5)
PREDICT, EXPLAIN, INFER = "/v1/models/mood:predict", "/v1/models/mood:explain", "/v2/models/mood/infer"
# 503 says that there is no room just now; 499 is no answer at all and never comes.
FINE = {200, 400, 404, 405, 408, 413, 503}
MOST_MB = 1_500.0
SIZES = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80")  # that no file has


def encoded(container: str, subtype: str, rate: int = 16_000, channels: int = 1) -> bytes:
    return recording(0.8, rate, channels, container, subtype)


FORMATS = {
    "wav 16": encoded("WAV", "PCM_16"),
    "wav 24 stereo": encoded("WAV", "PCM_24", 44_100, 2),
    "wav float": encoded("WAV", "FLOAT"),
    "wav u8": encoded("WAV", "PCM_U8", 8_000),
    "wav ulaw": encoded("WAV", "ULAW", 8_000),
    "wav adpcm": encoded("WAV", "IMA_ADPCM"),
    "wavex": encoded("WAVEX", "PCM_16"),
    "rf64": encoded("RF64", "PCM_16"),
    "flac": encoded("FLAC", "PCM_16"),
    "flac 24": encoded("FLAC", "PCM_24", 48_000, 2),
    "vorbis": encoded("OGG", "VORBIS"),
    "opus": encoded("OGG", "OPUS", 48_000),
    "mp3": encoded("MP3", "MPEG_LAYER_III", 44_100),
    "aiff": encoded("AIFF", "PCM_16"),
    "caf": encoded("CAF", "PCM_16"),
    "m4a": b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0" + b"\0\0\0\x08free" + b"\0\0\x01\0mdat" + bytes(248),
}


@pytest.fixture(scope="module")
def bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(untrained_bundle(tiny, tmp_path_factory.mktemp("store"), seed=9, limits=LIMITS))


@pytest.fixture(scope="module")
def live(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    options = ServingConfig(workers=2)
    with live_server(
        bundle.uri, "--options", options.to_json(), "--log_store", str(tmp_path_factory.mktemp("log"))
    ) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def unharmed(live: Live, bundle: Bundle) -> Iterator[collections.Counter[int]]:
    """Around all of it: memory stays bounded, the process lives, and its answers are those of before."""
    highest, over = [live.memory_mb()], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            highest.append(live.memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    statuses: collections.Counter[int] = collections.Counter()
    yield statuses
    over.set()
    watcher.join()
    print(f"\n{sum(statuses.values())} requests: {dict(statuses)}; memory {highest[0]:.0f} to {max(highest):.0f} MB")
    assert sum(statuses.values()) >= 10_000
    assert set(statuses) <= FINE
    assert max(highest) < MOST_MB
    assert live.process.poll() is None
    assert "Traceback" not in live.log(), live.log()[live.log().index("Traceback") - 300 :][:3000]
    good = live.http.post(PREDICT, json={"instances": [{"audio": text(FORMATS["wav 16"])}]}).json()
    expected = bundle.predict([decode(FORMATS["wav 16"], LIMITS)[0]])[0]
    np.testing.assert_allclose(list(good["predictions"][0]["probabilities"].values()), expected, atol=1e-5)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Cut, flipped, overwritten, doubled, or with a size in its header that is none."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 30))):
        if not changed:
            break
        near = min(len(changed), chance.choice((16, 64, 200, len(changed))))
        at = chance.randrange(near)
        match chance.randrange(7):
            case 0:
                del changed[chance.randrange(len(changed)) :]
            case 1:
                changed[at] ^= 1 << chance.randrange(8)
            case 2:
                changed[at : at + 4] = chance.choice(
                    (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80")
                )
            case 3:
                changed[at : at + 8] = chance.randbytes(8)
            case 4:
                changed[at:at] = changed[at : at + chance.randrange(1, 400)]
            case 5:
                del changed[at : at + chance.randrange(1, 40)]
            case 6:
                changed += chance.choice((bytes(1000), changed[:2000], chance.randbytes(300)))
    return bytes(changed)


def ask(live: Live, data: bytes, number: int, http: httpx.Client) -> int:
    """Send bytes as a recording, each time in another way."""
    match number % 5:
        case 0 | 1:
            response = http.post(PREDICT, content=data, headers={"content-type": "audio/wav"})
        case 2:
            response = http.post(PREDICT, json={"instances": [{"audio": text(data), "timeline": number % 2 == 0}]})
        case 3:
            audio = {"name": "audio", "shape": [1], "datatype": "BYTES", "data": [text(data)]}
            response = http.post(INFER, json={"inputs": [audio]})
        case _:
            response = http.post(EXPLAIN, content=data, headers={"content-type": "audio/wav"})
    assert response.status_code in FINE, f"{response.status_code}: {response.text[:300]} for {data[:100]!r}"
    assert response.status_code == 200 or response.json()["error"]
    return response.status_code


def side_by_side(live: Live, jobs: list[Callable[[httpx.Client], int]]) -> list[int]:
    local = threading.local()

    def do(job: Callable[[httpx.Client], int]) -> int:
        if not hasattr(local, "http"):
            local.http = httpx.Client(base_url=live.url, timeout=60.0, trust_env=False)
        return job(local.http)

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(do, jobs))


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_of_every_format(kind: str, live: Live, unharmed: collections.Counter[int]) -> None:
    chance = random.Random(kind)
    files = [damaged(FORMATS[kind], chance) for _ in range(450)]
    jobs = [lambda http, data=data, n=n: ask(live, data, n, http) for n, data in enumerate(files)]
    unharmed.update(side_by_side(live, jobs))  # type: ignore[arg-type]


def test_bytes_of_no_format(live: Live, unharmed: collections.Counter[int]) -> None:
    chance = random.Random(0)
    starts = [b"", b"RIFF", b"fLaC", b"OggS", b"ID3\x04", b"\xff\xfb", b"RF64", b"\0\0\0\x18ftyp", b"FORM", b"caff"]
    files = [chance.choice(starts) + chance.randbytes(chance.randrange(2000)) for _ in range(600)]
    jobs = [lambda http, data=data, n=n: ask(live, data, n, http) for n, data in enumerate(files)]
    unharmed.update(side_by_side(live, jobs))  # type: ignore[arg-type]


@given(DOCUMENTS | V1_BODIES | V2_BODIES, st.sampled_from([PREDICT, EXPLAIN, INFER]))
@settings(max_examples=2_200, suppress_health_check=[HealthCheck.too_slow])
def test_json_of_wrong_shapes(live: Live, unharmed: collections.Counter[int], body: object, path: str) -> None:
    headers = {"content-type": "application/json"}
    response = live.http.post(path, content=json.dumps(body).encode(), headers=headers)
    assert response.status_code in FINE, response.text
    unharmed[response.status_code] += 1


def unfolding(container: str, subtype: str, rate: int, hours: float) -> bytes:
    """Silence, of which hours need few bytes."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, subtype, format=container) as file:
        for _ in range(int(hours * 60)):
            file.write(np.zeros(60 * rate, np.float32))
    return buffer.getvalue()


def test_small_files_that_unfold_into_hours(live: Live, unharmed: collections.Counter[int]) -> None:
    bombs = [
        unfolding("FLAC", "PCM_16", 48_000, 1.0),
        unfolding("FLAC", "PCM_24", 8_000, 3.0),
        unfolding("OGG", "OPUS", 48_000, 0.2),
        unfolding("OGG", "VORBIS", 8_000, 0.5),
        unfolding("MP3", "MPEG_LAYER_III", 8_000, 0.3),
    ]
    assert all(len(bomb) < LIMITS.max_bytes for bomb in bombs)
    jobs = [lambda http, data=data, n=n: ask(live, data, n, http) for n, data in enumerate(bombs * 10)]
    found = side_by_side(live, jobs)  # type: ignore[arg-type]
    assert set(found) <= {400, 413, 503}
    unharmed.update(found)


def test_bodies_of_a_hundred_megabytes(live: Live, unharmed: collections.Counter[int]) -> None:
    piece = b"A" * (1 << 20)

    def in_pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield piece

    for number in range(12):
        path = (PREDICT, INFER, EXPLAIN)[number % 3]
        headers = {"content-type": ("application/json", "audio/wav")[number % 2]}
        body = in_pieces() if number % 4 < 2 else piece * 100
        response = live.http.post(path, content=body, headers=headers)
        assert response.status_code == 413
        unharmed[413] += 1


def test_requests_that_are_hardly_http(live: Live, unharmed: collections.Counter[int]) -> None:
    chance = random.Random(1)
    head = f"POST {PREDICT} HTTP/1.1\r\nhost: a\r\ncontent-type: audio/wav\r\ncontent-length: 20\r\n\r\n".encode()
    port = httpx.URL(live.url).port or 0
    for _ in range(200):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.sendall(damaged(head + bytes(20), chance))
            sock.shutdown(socket.SHUT_WR)
            said = sock.recv(200)
            status = int(said.split()[1]) if said.startswith(b"HTTP/1.1 ") else 400  # or it just hung up
            assert status in FINE, said
            unharmed[status] += 1
