"""The queue and the workers: what is asked is answered as the bundle answers, whatever happens to a worker."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
import torch

from kubevox.config import InferenceLogConfig, ServingConfig
from kubevox.data.audio import Waveform, decode
from kubevox.errors import BundleError, BusyError
from kubevox.features.frontends import build_frontend
from kubevox.models.bundle import Bundle, load_bundle
from kubevox.serving import worker_process
from kubevox.serving.engine import Engine, Entry, Outcome
from kubevox.serving.work import (
    HEADER,
    Answer,
    Greeting,
    Item,
    LateDrift,
    Refusal,
    Window,
    Worker,
    items_from,
    pack_answers,
    pack_greeting,
    pack_items,
    said_from,
)
from tests.serving import fragile
from tests.serving.recordings import LIMITS, recording
from tests.tiny import Tiny, untrained_bundle

pytestmark = pytest.mark.e2e

WAV = recording()
OPTIONS = ServingConfig(workers=1, max_batch=4, max_queue=8, work_timeout_s=8.0, log=InferenceLogConfig(enabled=False))


@pytest.fixture(scope="module")
def bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(untrained_bundle(tiny, tmp_path_factory.mktemp("store"), seed=9, limits=LIMITS))


def with_engine(
    bundle: Bundle,
    use: Callable[[Engine], Coroutine[Any, Any, Any]],
    options: ServingConfig = OPTIONS,
    entry: Entry = fragile.main,
    **hooks: Any,
) -> Any:
    """Start an engine, use it, stop it."""

    async def all_of_it() -> Any:
        engine = Engine(Worker(bundle.uri, "cpu", options), entry, **hooks)
        await engine.start()
        try:
            return await use(engine)
        finally:
            await engine.stop()

    return asyncio.run(all_of_it())


def items(*files: bytes, **changes: Any) -> list[Item]:
    return [Item(0, f"recording {index}", data, "raw", **changes) for index, data in enumerate(files)]


async def until(so: Callable[[], bool]) -> None:
    """Wait for something, for a while."""
    async with asyncio.timeout(20):
        await asyncio.sleep(0)
        while not so():
            await asyncio.sleep(0.005)


def answers(outcomes: list[Outcome]) -> list[Answer]:
    assert all(isinstance(outcome.answer, Answer) for outcome in outcomes), outcomes
    return [outcome.answer for outcome in outcomes if isinstance(outcome.answer, Answer)]


def test_a_batch_answers_as_the_bundle_does(bundle: Bundle) -> None:
    files = [recording(seconds=0.6 + 0.1 * index) for index in range(6)]

    async def use(engine: Engine) -> list[Outcome]:
        return await engine.submit(items(*files), 10.0)

    sizes: list[int] = []
    found = answers(with_engine(bundle, use, on_batch=sizes.append))
    expected = bundle.predict([decode(data, LIMITS)[0] for data in files])
    np.testing.assert_allclose([answer.probabilities for answer in found], expected, atol=1e-5)
    assert sizes == [4, 2]
    assert [answer.batch for answer in found] == [4, 4, 4, 4, 2, 2]


def test_free_workers_share_what_waits(bundle: Bundle) -> None:
    async def use(engine: Engine) -> list[Outcome]:
        return await engine.submit(items(WAV, WAV, WAV, WAV), 10.0)

    sizes: list[int] = []
    with_engine(bundle, use, OPTIONS.model_copy(update={"workers": 2}), on_batch=sizes.append)
    assert sorted(sizes) == [2, 2]


def test_a_full_queue_refuses_at_once_and_takes_requests_again(bundle: Bundle) -> None:
    async def use(engine: Engine) -> None:
        slow = [asyncio.create_task(engine.submit(items(WAV + fragile.SLOW), 10.0))]
        await until(lambda: not engine.waiting)
        slow += [asyncio.create_task(engine.submit(items(WAV), 10.0)) for _ in range(8)]
        await until(lambda: engine.waiting == 8)
        began = time.monotonic()
        with pytest.raises(BusyError, match="8 recordings wait already") as caught:
            await engine.submit(items(WAV), 10.0)
        assert time.monotonic() - began < 0.1
        assert caught.value.retry_after_s >= 1.0
        await asyncio.gather(*slow)
        answers(await engine.submit(items(WAV), 10.0))

    with_engine(bundle, use, OPTIONS.model_copy(update={"max_batch": 1}))


def test_what_is_not_answered_in_time_is_refused_and_not_worked_on(bundle: Bundle) -> None:
    sizes: list[int] = []

    async def use(engine: Engine) -> None:
        first = asyncio.create_task(engine.submit(items(WAV + fragile.SLOW), 10.0))
        await until(lambda: not engine.waiting)
        with pytest.raises(BusyError, match=r"not answered within 0\.1 s"):
            await engine.submit(items(WAV), 0.1)
        await first
        answers(await engine.submit(items(WAV), 10.0))

    with_engine(bundle, use, on_batch=sizes.append)
    assert sizes == [1, 1]


@pytest.mark.parametrize(("end", "reason"), [(fragile.CRASH, "crashed"), (fragile.HANG, "timeout")])
def test_a_recording_that_ends_or_holds_its_worker_is_refused_and_its_company_answered(
    end: bytes, reason: str, bundle: Bundle
) -> None:
    async def use(engine: Engine) -> list[Outcome]:
        outcomes = await engine.submit(items(WAV, WAV + end, WAV), 10.0)
        answers(await engine.submit(items(WAV), 10.0))
        assert engine.ready
        assert engine.restarts >= 2  # with the others, and alone
        return outcomes

    # Time enough for the good ones on a busy machine: each alone gets half of it.
    before, bad, after = with_engine(bundle, use, OPTIONS.model_copy(update={"work_timeout_s": 3.0}))
    assert isinstance(bad.answer, Refusal)
    assert bad.answer.reason == reason
    assert "recording 1" in bad.answer.message
    expected = bundle.predict([decode(WAV, LIMITS)[0]])[0]
    for one in answers([before, after]):
        np.testing.assert_allclose(one.probabilities, expected, atol=1e-5)


def test_a_worker_that_is_killed_while_it_waits_is_replaced(bundle: Bundle) -> None:
    async def use(engine: Engine) -> None:
        process = engine._begun[0]._process
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: engine.restarts == 1 and engine.ready)
        assert engine._begun[0]._process.pid != process.pid
        answers(await engine.submit(items(WAV), 10.0))

    with_engine(bundle, use)


def test_a_recording_whose_worker_is_killed_is_answered_by_another(bundle: Bundle) -> None:
    async def use(engine: Engine) -> None:
        asked = asyncio.create_task(engine.submit(items(WAV + fragile.SLOW), 10.0))
        await until(lambda: engine._begun[0]._answers is not None)
        os.kill(engine._begun[0]._process.pid, signal.SIGKILL)
        answers(await asked)
        assert engine.restarts == 1

    with_engine(bundle, use)


def test_what_nobody_waits_for_any_more_is_not_tried_again(bundle: Bundle) -> None:
    async def use(engine: Engine) -> None:
        with pytest.raises(BusyError, match="not answered within"):
            await engine.submit(items(WAV + fragile.HANG, WAV + fragile.HANG, WAV + fragile.HANG), 0.3)
        answers(await engine.submit(items(WAV), 10.0))
        assert engine.restarts == 1

    with_engine(bundle, use, OPTIONS.model_copy(update={"work_timeout_s": 2.0}))


def test_where_one_worker_cannot_begin_those_that_have_begun_can_be_ended(bundle: Bundle) -> None:
    async def start() -> None:
        options = OPTIONS.model_copy(update={"workers": 3})
        engine = Engine(Worker(bundle.uri, "cpu", options), fragile.only_the_first)
        with pytest.raises(BundleError, match="ended while it started"):
            await engine.start()
        (first,) = engine._begun
        await engine.stop()
        assert not first._process.is_alive()

    asyncio.run(start())


def test_a_model_that_cannot_be_loaded_says_why(bundle: Bundle) -> None:
    async def start() -> None:
        await Engine(Worker(bundle.uri + "-gone", "cpu", OPTIONS)).start()

    with pytest.raises(BundleError, match="gone: cannot be read"):
        asyncio.run(start())


def test_drift_features_come_when_a_worker_has_nothing_else_to_do(bundle: Bundle) -> None:
    late: list[LateDrift] = []

    async def use(engine: Engine) -> None:
        assert engine.greeting is not None
        assert len(engine.greeting.drift_names) == 49
        await engine.submit([Item(engine.key(), "recording 0", WAV, "raw")], 10.0)
        await until(lambda: bool(late))

    options = OPTIONS.model_copy(update={"log": InferenceLogConfig()})
    with_engine(bundle, use, options, worker_process.main, on_drift=late.append)
    from kubevox.config import DriftConfig

    drift = build_frontend(DriftConfig())
    expected = drift.extract([drift.prepare(decode(WAV, LIMITS)[0])])[0]
    assert [one.key for one in late] == [1]
    np.testing.assert_array_equal(np.float32(late[0].values), expected)


def test_a_timeline_has_overlapping_windows_up_to_the_end_each_answered_as_a_recording(bundle: Bundle) -> None:
    long = recording(seconds=3.3, rate=8_000)

    async def use(engine: Engine) -> list[Outcome]:
        return await engine.submit(items(long, task="timeline"), 10.0)

    (answer,) = answers(with_engine(bundle, use))
    assert [(window.start_s, window.end_s) for window in answer.windows] == [
        (0.0, 1.0),
        (0.5, 1.5),
        (1.0, 2.0),
        (1.5, 2.5),
        (2.0, 3.0),
        (2.5, 3.3),
    ]
    waveform, _ = decode(long, LIMITS.model_copy(update={"max_duration_s": 10.0}))
    cuts = [Waveform(waveform.pcm[int(w.start_s * 8_000) : int(w.end_s * 8_000)], 8_000) for w in answer.windows]
    np.testing.assert_allclose([w.probabilities for w in answer.windows], bundle.predict(cuts), atol=1e-5)
    np.testing.assert_allclose(answer.probabilities, bundle.predict([waveform])[0], atol=1e-5)


def test_what_is_said_between_processes_arrives_as_it_was() -> None:
    row = tuple(float(p) for p in torch.softmax(torch.randn(7), 0))
    full = Answer(
        row, "mini", 3.0, 2.5, 16_000, "WAV", 0.1, None, 2.0, 4, (Window(0.0, 1.0, row),), {"a": [1]}, b"RIFF"
    )
    said = [full, Refusal("crashed", "recording 1: it did"), Answer(row, "", 1.0, 1.0, 8_000, "FLAC", 0.1, 0.2, 0.3, 1)]
    assert said_from(bytearray(pack_answers(said)[HEADER.size :])) == said
    asked = [Item(1, "recording 0", b"RIFF", "raw", "explain", "sad", True), Item(0, "recording 1", b"", "base64")]
    assert items_from(bytearray(pack_items(asked)[HEADER.size :])) == asked
    greeting = Greeting("mood", ("a", "b"), "h", "d", LIMITS, 0.5, 3.0, {"mini": "m", "premium": "p"}, ("x",))
    assert said_from(bytearray(pack_greeting(greeting)[HEADER.size :])) == greeting
