"""What can go wrong in a user's hands, each with a message that names the thing and the remedy.

Every exception that a user can cause derives from :class:`KubevoxError`; the command line and the pipeline's runner
print its message as one line. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

__all__ = [
    "AudioError",
    "BundleError",
    "BusyError",
    "ConfigError",
    "CorpusError",
    "DeploymentError",
    "KubevoxError",
    "RegistryError",
    "SplitError",
    "StorageError",
    "TrainingError",
    "ValidationError",
]


class KubevoxError(Exception):
    """Base of the errors that a user can cause; its text is one clear line."""


class ConfigError(KubevoxError):
    """A configuration key or value that cannot be used."""


class StorageError(KubevoxError):
    """A store that cannot be reached, or an object that is missing or damaged."""


class AudioError(KubevoxError):
    """Bytes that are not a usable recording; ``reason`` is a short machine-readable word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, str]]:
        # A worker process hands it to its parent.
        return type(self), (self.reason, str(self))


class CorpusError(KubevoxError):
    """A corpus whose folder, layout or labels are not as published."""


class ValidationError(KubevoxError):
    """A dataset of which too much had to be refused."""


class SplitError(KubevoxError):
    """A split that cannot be made, or one without a valid certificate."""


class BundleError(KubevoxError):
    """A model bundle that is damaged or does not fit what it is used for."""


class TrainingError(KubevoxError):
    """Training that cannot start, or that went wrong (for example, a loss that is no number)."""


class RegistryError(KubevoxError):
    """A model registry that cannot be reached, or a model or alias it does not have."""


class BusyError(KubevoxError):
    """A model server that has no room for a request now; ``retry_after_s`` is when it may have some."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeploymentError(KubevoxError):
    """A model server that did not start, or whose answers differ from the evaluator's."""
