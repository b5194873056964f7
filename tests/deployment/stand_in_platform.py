"""A place where versions "run", over real HTTP and in a process of its own, for tests of many rollouts.

One server speaks V1 for the route and for each version, and takes a back end's orders. What a version does follows from
the last part of its bundle's URI: ``good``, ``crash``, ``errors-0.05``, ``slow-3``, ``permuted``, ``worse``,
``busy``, ``garbled``; several are joined with ``+``. A recording's bytes are its label and a number.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from kubevox.deployment.backend import ChallengerError, Deployed, Endpoint, Endpoints, ServedVersion
from kubevox.deployment.local import free_port
from kubevox.deployment.traffic import Recording
from kubevox.errors import DeploymentError

ROOT = Path(__file__).resolve().parents[2]
LABELS = ("angry", "fear", "happy", "neutral", "sad")
_RIGHT = 0.8  # of a good version's answers


def recordings(count: int = 60) -> list[Recording]:
    """Recordings that the platform knows how to label."""
    return [
        Recording(f"{number:064x}", LABELS[number % len(LABELS)], f"{LABELS[number % len(LABELS)]} {number}".encode())
        for number in range(count)
    ]


class PlatformBackend:
    """The platform as a back end; any number of processes may have one."""

    name = "stand-in"

    def __init__(self, url: str) -> None:
        self.url = url
        self.closed = False
        self._http = httpx.Client(base_url=url, timeout=10, trust_env=False, verify=False)  # noqa: S501 - no TLS here

    def observe(self) -> Deployed:
        told = self._ask("observe")
        stable, canary = (ServedVersion(**told[who]) if told[who] else None for who in ("stable", "canary"))
        return Deployed(stable, canary, told["percent"])

    def start_canary(self, canary: ServedVersion) -> None:
        self._ask("start_canary", **asdict(canary))

    def set_canary_percent(self, percent: int) -> None:
        self._ask("set_canary_percent", percent=percent)

    def endpoints(self) -> Endpoints:
        there = self.observe()
        stable, canary = (
            Endpoint(f"{self.url}/{who}") if getattr(there, who) else None for who in ("stable", "canary")
        )
        return Endpoints(Endpoint(f"{self.url}/route"), stable, canary)

    def promote(self) -> None:
        self._ask("promote")

    def take_back(self) -> None:
        self._ask("take_back")

    def close(self) -> None:
        self.closed = True

    # --- for tests --------------------------------------------------------------------------------------------------

    def reset(self, stable: ServedVersion | None = None, delay_ms: float = 0.0) -> None:
        """Nothing but this in production, and nothing counted; answers take as long."""
        self._ask("reset", stable=asdict(stable) if stable else None, delay_ms=delay_ms)

    def mend(self, **how: Any) -> None:
        """Change how the platform behaves: ``share`` (of the route, whatever is asked), ``foreign`` (versions)."""
        self._ask("mend", **how)

    def answered(self) -> dict[str, int]:
        """How many answers of each status each version gave to clients of the route, such as ``2: 200``."""
        return self._ask("answered")

    def orders(self) -> list[str]:
        """What the back end was told to do."""
        return self._ask("orders")["orders"]

    def _ask(self, order: str, **values: Any) -> Any:
        try:
            response = self._http.post(f"/control/{order}", json=values)
        except httpx.HTTPError as error:
            raise DeploymentError(f"platform {self.url}: did not answer ({type(error).__name__})") from None
        if response.status_code != 200:
            raise (ChallengerError if order == "start_canary" else DeploymentError)(response.text)
        return response.json()


@contextlib.contextmanager
def running_platform() -> Iterator[PlatformBackend]:
    """A platform in a process of its own."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.deployment.stand_in_platform", str(port)], cwd=ROOT)
    backend = PlatformBackend(f"http://127.0.0.1:{port}")
    try:
        while process.poll() is None:
            with contextlib.suppress(DeploymentError):
                backend.observe()
                break
        yield backend
    finally:
        process.kill()
        process.wait()


class _Version:
    def __init__(self, version: str, bundle_uri: str) -> None:
        self.told = {"version": version, "bundle_uri": bundle_uri}
        self.version = version
        traits = [trait.partition("-") for trait in bundle_uri.rpartition("/")[2].split("+")]
        self.traits = {trait: float(amount or 1) for trait, _, amount in traits}
        self.asked = 0

    async def answer(self, audio: bytes, delay_s: float) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        self.asked += 1
        await asyncio.sleep(delay_s * self.traits.get("slow", 1.0))
        if self._due("errors"):
            return 500, b'{"error": "it broke"}', []
        if self._due("busy"):
            return 503, b'{"error": "busy"}', [(b"retry-after", b"1")]
        if "garbled" in self.traits:
            return 200, b'{"predictions": []}', []
        label, _, number = audio.decode().partition(" ")
        place = LABELS.index(label)
        # Two good versions are wrong about much the same recordings, as two models are.
        right = 0.4 if "worse" in self.traits else _RIGHT
        if random.Random(int(number)).random() > right:
            place += 1 + int(number) % (len(LABELS) - 1)
        if "permuted" in self.traits:
            place += 1
        said = {"label": LABELS[place % len(LABELS)], "probabilities": {}, "model_version": self.version}
        return 200, json.dumps({"predictions": [said]}).encode(), []

    def _due(self, trait: str) -> bool:
        """Whether it is this request's turn; of 0.05 every twentieth is."""
        share = self.traits.get(trait, 0.0)
        return int(self.asked * share + 1e-9) > int((self.asked - 1) * share + 1e-9)


class _Platform:
    """The ASGI application."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self._reset(None, 0.0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        who, _, rest = scope["path"].lstrip("/").partition("/")
        headers: list[tuple[bytes, bytes]] = []
        if who == "control":
            status, content = self._obey(rest, json.loads(body))
        else:
            status, content, headers = await self._predict(who, body)
        length = (b"content-length", str(len(content)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
        await send({"type": "http.response.body", "body": content})

    async def _predict(self, who: str, body: bytes) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        version = {"stable": self.stable, "canary": self.canary}.get(who)
        if who == "route":
            version = self._chosen()
        if version is None:
            return 503, b'{"error": "nothing is there"}', []
        audio = base64.b64decode(json.loads(body)["instances"][0]["audio"])
        status, content, headers = await version.answer(audio, self.delay_s)
        if who == "route":
            self.counted[f"{version.version}: {status}"] += 1
            if self.foreign:
                content = content.replace(f'"{version.version}"'.encode(), f'"{self.foreign}"'.encode())
        return status, content, headers

    def _chosen(self) -> _Version | None:
        share = self.percent / 100 if self.share is None else self.share
        self.credit += share
        if self.canary is not None and self.credit >= 1 - 1e-9:
            self.credit -= 1
            return self.canary
        return self.stable

    def _obey(self, order: str, values: dict[str, Any]) -> tuple[int, bytes]:
        if order not in ("observe", "orders", "answered", "reset", "mend"):
            self.log.append(" ".join([order, *(str(value) for value in values.values())]))
        answer: Any = {}
        if order == "observe":
            stable, canary = (one.told if one else None for one in (self.stable, self.canary))
            answer = {"stable": stable, "canary": canary, "percent": self.percent}
        elif order == "orders":
            answer = {"orders": self.log}
        elif order == "answered":
            answer = self.counted
        elif order == "reset":
            self._reset(values["stable"], values["delay_ms"] / 1000)
        elif order == "mend":
            self.share, self.foreign = values.get("share"), values.get("foreign")
            if values.get("lose_canary"):
                self.canary, self.percent = None, 0
        elif order == "start_canary":
            if "crash" in _Version(**values).traits:
                return 500, f"version {values['version']} ended at start: ValueError: no such layer".encode()
            if self.canary is None or self.canary.told != values:
                self.canary = _Version(**values)
            self.percent = 0
        elif order == "set_canary_percent":
            self.percent, self.credit = values["percent"], 0.0
        elif order == "promote":
            if self.canary is not None:
                self.stable, self.canary, self.percent = self.canary, None, 0
        elif order == "take_back":
            self.canary, self.percent = None, 0
        return 200, json.dumps(answer).encode()

    def _reset(self, stable: dict[str, str] | None, delay_s: float) -> None:
        self.stable = _Version(**stable) if stable else None
        self.canary: _Version | None = None
        self.percent, self.credit, self.delay_s = 0, 0.0, delay_s
        self.share: float | None = None
        self.foreign: str | None = None
        self.counted: Counter[str] = Counter()
        self.log: list[str] = []


def main(arguments: Sequence[str]) -> None:
    import uvicorn

    uvicorn.run(_Platform(), host="127.0.0.1", port=int(arguments[0]), log_level="error", lifespan="off")


if __name__ == "__main__":
    main(sys.argv[1:])
