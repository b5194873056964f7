"""The local stand-in for KServe: one model's servers on one machine, behind a router on one port.

A supervisor process (:mod:`~kubevox.deployment.local.supervisor`) keeps a model server a version and the router, as a
controller keeps an InferenceService: what is wanted lies in one file, what is in force in another
(:mod:`~kubevox.deployment.local.state`). So who asked for something may end without effect on what is served.
:class:`LocalBackend` is a rollout's way to it.
"""

from kubevox.deployment.local.backend import LocalBackend
from kubevox.deployment.local.client import ModelClient
from kubevox.deployment.local.servers import free_port, model_server, server_command
from kubevox.deployment.local.state import PlatformFolder, PlatformSpec, PlatformStatus, WantedServer, platform_folder

__all__ = [
    "LocalBackend",
    "ModelClient",
    "PlatformFolder",
    "PlatformSpec",
    "PlatformStatus",
    "WantedServer",
    "free_port",
    "model_server",
    "platform_folder",
    "server_command",
]
