"""A model server whose workers take their time: 20 ms a recording."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

from kubevox.serving import worker_process
from kubevox.serving.work import Item, Worker


def slowly(told: Worker, channel: socket.socket, parent: int) -> None:
    """As ``kubevox.serving.worker_process.main``."""
    from kubevox.serving import worker

    real = worker.Computer.work

    def work(self: Any, items: Sequence[Item]) -> Any:
        time.sleep(0.02 * len(items))
        return real(self, items)

    worker.Computer.work = work  # type: ignore[method-assign]
    worker.run(told, channel, parent)


if __name__ == "__main__":
    from kubevox.serving.__main__ import main
    from tests.serving.slow_server import slowly as entry  # by the name under which a worker can find it

    worker_process.main = entry
    main()
