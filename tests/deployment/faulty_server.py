"""The real model server with a fault: ``python -m tests.deployment.faulty_server --errors 0.05 --slow 3 FLAGS…``."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any


class Faulty:
    """Around the server's door: every so-manieth prediction is a 500, and each takes so many times as long."""

    def __init__(self, door: Any, errors: float, slow: float) -> None:
        self.door, self.errors, self.slow, self.asked = door, errors, slow, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].endswith(":predict"):
            await self.door(scope, receive, send)
            return
        self.asked += 1
        started = time.perf_counter()

        async def late(message: Any) -> None:
            if message["type"] == "http.response.start":
                await asyncio.sleep((self.slow - 1) * (time.perf_counter() - started))
            await send(message)

        if int(self.asked * self.errors + 1e-9) > int((self.asked - 1) * self.errors + 1e-9):
            body = b""
            while (message := await receive()).get("more_body"):
                body += message["body"]
            await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        await self.door(scope, receive, late)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--errors", type=float, default=0.0)
    parser.add_argument("--slow", type=float, default=1.0)
    faults, flags = parser.parse_known_args()
    sys.argv[1:] = flags
    from kubevox.serving import server
    from kubevox.serving.__main__ import main as serve

    real = server.Door
    server.Door = lambda *args, **options: Faulty(  # type: ignore[assignment,misc]
        real(*args, **options), faults.errors, faults.slow
    )
    serve()


if __name__ == "__main__":
    main()
