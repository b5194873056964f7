"""A journal that kills its process at one of its entries; as a program, a deployment with such a journal."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from kubevox.deployment.journal import Journal


class Deadly(Journal):
    """Kills the process before its entry of that number is written, or after."""

    def __init__(self, *args: Any, number: int, when: str) -> None:
        super().__init__(*args)
        self.left, self.when = number, when

    def append(self, event: Any, **what: Any) -> Any:
        self.left -= 1
        if self.left == 0 and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        entry = super().append(event, **what)
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return entry


if __name__ == "__main__":
    from functools import partial

    from kubevox.config import DeployConfig
    from kubevox.deployment import rollout

    told = json.loads(sys.argv[1])
    rollout.Journal = partial(Deadly, number=told.pop("number"), when=told.pop("when"))  # type: ignore[misc,assignment]
    rollout.deploy(config=DeployConfig.from_json(told.pop("config")), **told)
