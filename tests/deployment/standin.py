"""A tiny model server that speaks V1 and names its version: starts in a blink, and fails in the ways that it is told.

``python -P tests/deployment/standin.py --name mood --version 1 --port 8081 …``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn


async def whole(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def answer(send: Any, status: int, content: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    headers = [(b"content-length", b"%d" % len(content)), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class StandIn:
    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags, self.served = flags, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, flags = scope["path"], self.flags
        if path == f"/v2/models/{flags.name}/ready":
            await answer(send, 503 if flags.never_ready else 200, b"{}")
        elif path == f"/v1/models/{flags.name}:predict":
            await whole(receive)
            self.served += 1
            if flags.crash_after and self.served >= flags.crash_after:
                print("error: out of memory", file=sys.stderr, flush=True)
                os._exit(3)
            await asyncio.sleep(flags.delay_s)
            label = {"label": "happy", "model_version": flags.version}
            await answer(send, 200, json.dumps({"predictions": [label]}).encode())
        elif path == "/echo":  # what arrived, as it arrived
            body = await whole(receive)
            told = {
                "method": scope["method"],
                "path": scope["raw_path"].decode(),
                "query": scope["query_string"].decode(),
                "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
                "bytes": len(body),
            }
            await answer(send, 201, json.dumps(told).encode(), [(b"x-own", b"caf\xe9"), (b"set-cookie", b"a=1")])
        elif path == "/count":  # a body that is not held
            seen = 0
            while True:
                message = await receive()
                seen += len(message.get("body", b""))
                if not message.get("more_body"):
                    break
            await answer(send, 200, json.dumps({"bytes": seen}).encode())
        elif path == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(int(scope["query_string"])):
                await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        elif path == "/refuse":  # before the body is read
            await answer(send, 413, b'{"error": "too large"}')
        elif path == "/die":  # in the middle of an answer
            await whole(receive)
            length = [(b"content-length", b"1000")] if scope["query_string"] == b"whole" else []
            await send({"type": "http.response.start", "status": 200, "headers": length})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            await asyncio.sleep(0.05)
            os._exit(3)
        elif path == "/wait":  # until the client leaves
            while (await receive())["type"] != "http.disconnect":
                pass
            self.served = -1
        elif path == "/left":
            await answer(send, 200, json.dumps(self.served == -1).encode())
        else:
            await answer(send, 404, b"{}")


class Abrupt(uvicorn.Server):
    """Ends at once: whoever ends it has drained it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        yield


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay_s", type=float, default=0.0)
    parser.add_argument("--crash", action="store_true")
    parser.add_argument("--crash_after", type=int, default=0)
    parser.add_argument("--never_ready", action="store_true")
    flags = parser.parse_args()
    if flags.crash:
        sys.exit("error: the weights are damaged")
    options = {"host": "127.0.0.1", "port": flags.port, "log_level": "warning", "lifespan": "off", "access_log": False}
    Abrupt(uvicorn.Config(StandIn(flags), **options)).run()


if __name__ == "__main__":
    main()
