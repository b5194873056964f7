"""Load on a server of this machine: requests at a rate, whatever becomes of those before, and none sent twice."""

from __future__ import annotations

import asyncio
import collections
import time
from dataclasses import dataclass, field

import aiohttp
import numpy as np

__all__ = ["Load", "Sent", "send"]


@dataclass(frozen=True)
class Sent:
    """What became of one request.

    Attributes:
        at_s: when it was to be sent, from the load's begin.
        status: HTTP's; 0: there was no answer.
        took_s: from when it was to be sent.
        error: why there was no answer.
        retry_after: the header of that name.
        written_s: when all of it had left this process; None: it never had.
    """

    at_s: float
    status: int
    took_s: float
    error: str = ""
    retry_after: str | None = None
    written_s: float | None = None


@dataclass
class Load:
    """All that was sent."""

    sent: list[Sent] = field(default_factory=list)

    @property
    def statuses(self) -> dict[int, int]:
        """How many of each."""
        return dict(collections.Counter(one.status for one in self.sent))

    def of(self, status: int, since_s: float = 0.0) -> list[Sent]:
        """Those that ended so, sent at or after some moment."""
        return [one for one in self.sent if one.status == status and one.at_s >= since_s]

    def latency_ms(self, share: float, since_s: float = 0.0) -> float:
        """A quantile of the answered ones."""
        return float(1000 * np.quantile([one.took_s for one in self.of(200, since_s)], share))


async def send(url: str, body: bytes, rate: float, seconds: float, kind: str = "audio/wav") -> Load:
    """Requests evenly spaced, so many a second, for so long; each on its own, retry-free."""
    load, running = Load(), set()
    written: dict[int, float] = {}
    trace = aiohttp.TraceConfig()

    async def all_sent(_: object, context: object, params: aiohttp.TraceRequestChunkSentParams) -> None:
        written[context.trace_request_ctx] = time.monotonic()  # type: ignore[attr-defined]

    trace.on_request_chunk_sent.append(all_sent)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trace_configs=[trace]) as session:
        began = time.monotonic()

        async def one(number: int) -> None:
            due = began + number / rate
            try:
                headers = {"content-type": kind}
                async with session.post(url, data=body, headers=headers, trace_request_ctx=number) as response:
                    await response.read()
                    status, error, again = response.status, "", response.headers.get("retry-after")
            except (aiohttp.ClientError, OSError, TimeoutError) as failure:
                status, error, again = 0, f"{type(failure).__name__}: {failure}", None
            at = written.get(number)
            load.sent.append(
                Sent(number / rate, status, time.monotonic() - due, error, again, None if at is None else at - began)
            )

        for number in range(int(rate * seconds)):
            late = began + number / rate - time.monotonic()
            if late > 0:
                await asyncio.sleep(late)
            task = asyncio.create_task(one(number))
            running.add(task)
            task.add_done_callback(running.discard)
        while running:
            await asyncio.gather(*running)
    return load
