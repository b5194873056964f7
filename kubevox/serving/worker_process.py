"""Where a worker process begins: named by the front, which imports no torch, and run where torch is."""

from __future__ import annotations

import socket

from kubevox.serving.work import Worker

__all__ = ["main"]


def main(told: Worker, channel: socket.socket, parent: int) -> None:
    """Be a worker until the channel closes."""
    from kubevox.serving.worker import run

    run(told, channel, parent)
