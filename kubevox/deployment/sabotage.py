"""A model server that is worse than it should be, so that a rollout can be seen to take it back.

    python -m kubevox.deployment.sabotage --kind errors --share 0.05 --model NAME --version 2 --port 8081 -- COMMAND …

starts the real server with COMMAND, whose argument ``{server_port}`` is replaced by a port, and answers on its own port
what the real one answers, but for the sabotage. Nothing in a server's configuration leads here: who wants a sabotaged
server has to start it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

from kubevox.deployment.local.servers import environment, free_port
from kubevox.errors import DeploymentError, KubevoxError
from kubevox.processes import die_with

__all__ = ["Kind", "Sabotage", "sabotaged"]

Kind = Literal["errors", "slow", "crash"]

_SERVER_PORT = "{server_port}"
_ASK_EVERY_S = 0.05
_SOUND_AT_FIRST = 10
_GRACE_S = 10.0
_TIMEOUT_S = 60.0


def sabotaged(command: Sequence[str], kind: Kind, share: float = 0.05, factor: float = 3.0) -> list[str]:
    """The command of a sabotaged server, from that of a sound one.

    Args:
        command: starts a sound server; ``{model}``, ``{version}`` and ``{port}`` are still open in it.
        kind: ``errors``: some requests are answered 500; ``slow``: every answer takes longer; ``crash``: it ends at
            start.
        share: of the requests, with ``errors``.
        factor: how many times as long, with ``slow``.
    """
    own = [sys.executable, "-m", "kubevox.deployment.sabotage", "--kind", kind, "--share", str(share)]
    own += ["--factor", str(factor), "--model", "{model}", "--version", "{version}", "--port", "{port}", "--"]
    return own + [_SERVER_PORT if argument == "{port}" else argument for argument in command]


class Sabotage:
    """An ASGI middleware that spoils what a model answers.

    Args:
        app: answers as it should.
        kind: ``errors`` or ``slow``.
        version: which a spoilt answer names, so that it can be counted.
        share: of the POST requests that are answered 500; spread evenly, at random places, but for the first few: they
            are answered well, as by a server that shows what is wrong with it only under traffic.
        factor: how many times as long an answer takes.
    """

    def __init__(self, app: Any, kind: Kind, version: str, share: float, factor: float) -> None:
        from kubevox.deployment.local.router import Share

        self._app, self._kind, self._version, self._factor = app, kind, version, factor
        self._spoilt, self._sound = Share(round(100 * share)), _SOUND_AT_FIRST

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One request."""
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
        elif self._kind == "errors" and self._is_spoilt():
            await _answer_500(receive, send, self._version)
        else:
            began = time.perf_counter()

            async def later(message: dict[str, Any]) -> None:
                if self._kind == "slow" and message["type"] == "http.response.start":
                    await asyncio.sleep((self._factor - 1) * (time.perf_counter() - began))
                await send(message)

            await self._app(scope, receive, later)

    def _is_spoilt(self) -> bool:
        if self._sound:
            self._sound -= 1
            return False
        return self._spoilt.is_canarys()


async def _answer_500(receive: Any, send: Any, version: str) -> None:
    import orjson

    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    content = orjson.dumps({"error": "sabotaged", "model_version": version})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def _serve(flags: argparse.Namespace) -> int:
    """Serve until told to end, or until the real server ends; returns the exit code."""
    import aiohttp

    from kubevox.deployment.local.listening import RouteServer, listen
    from kubevox.deployment.local.router import Router, Upstream

    listener, port = listen("127.0.0.1", flags.port), free_port()
    process = await asyncio.create_subprocess_exec(
        *(str(port) if argument == _SERVER_PORT else argument for argument in flags.command),
        env=environment(),
        preexec_fn=functools.partial(die_with, os.getpid()),
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    upstream, router = Upstream(flags.version, _TIMEOUT_S), Router(flags.model, _TIMEOUT_S)
    await upstream.open(port)
    router.direct(upstream, None, 0)
    server = RouteServer(Sabotage(router, flags.kind, flags.version, flags.share, flags.factor), _GRACE_S)
    tasks = [asyncio.ensure_future(work) for work in (server.serve(sockets=[listener]), stop.wait(), process.wait())]
    try:
        async with aiohttp.ClientSession(trust_env=False) as session:
            while not upstream.alive and not any(task.done() for task in tasks):
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://127.0.0.1:{port}/v2/models/{flags.model}/ready") as answer:
                        upstream.alive = answer.status == 200
                await asyncio.sleep(_ASK_EVERY_S)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return process.returncode or 0
    finally:
        router.closing = server.should_exit = True
        await asyncio.wait(tasks[:1])
        await upstream.close()
        if process.returncode is None:
            process.terminate()
        tasks[1].cancel()
        await process.wait()


def main() -> None:
    """Parse the flags and serve badly."""
    parser = argparse.ArgumentParser(prog="python -m kubevox.deployment.sabotage", allow_abbrev=False)
    parser.add_argument("--kind", required=True, choices=["errors", "slow", "crash"])
    parser.add_argument("--share", type=float, default=0.05, help="of the requests, with errors")
    parser.add_argument("--factor", type=float, default=3.0, help="how many times as long, with slow")
    parser.add_argument("--model", required=True, help="the model's name in the URL")
    parser.add_argument("--version", required=True, help="the version that spoilt answers name")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("command", nargs="+", help="the real server's command, after --")
    flags = parser.parse_args()
    try:
        if flags.kind == "crash":
            raise DeploymentError("sabotaged: this server crashes on start")
        sys.exit(asyncio.run(_serve(flags)))
    except KubevoxError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
