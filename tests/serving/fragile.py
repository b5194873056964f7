"""A worker whose codec is as bad as they come: recordings can end its process, or never be done."""

from __future__ import annotations

import os
import socket
from typing import Any

from kubevox.serving.work import Worker

CRASH, HANG, SLOW = b"then it crashed", b"then it hung", b"then it took its time"


def main(told: Worker, channel: socket.socket, parent: int) -> None:
    """As ``kubevox.serving.worker_process.main``, with a decoder that minds the last bytes of a file."""
    from kubevox.serving import worker

    real = worker.decode

    def decode(data: bytes, *rest: Any) -> Any:
        if data.endswith(CRASH):
            os.abort()
        while data.endswith(HANG):
            pass
        if data.endswith(SLOW):
            import time

            time.sleep(0.3)
        return real(data, *rest)

    worker.decode = decode  # type: ignore[assignment]
    worker.run(told, channel, parent)


def only_the_first(told: Worker, channel: socket.socket, parent: int) -> None:
    """As ``kubevox.serving.worker_process.main``, but of a model only the first worker begins."""
    from kubevox.serving import worker

    try:
        os.close(os.open(f"{told.model_uri}.begun", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    worker.run(told, channel, parent)
