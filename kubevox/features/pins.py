"""What a frontend or a recipe is, wherever its files lie: sections that name files are pinned to their content."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from kubevox import storage
from kubevox.config import BackgroundRecipe, ChainRecipe, ReverbRecipe, Section, SslConfig
from kubevox.errors import ConfigError, StorageError
from kubevox.features.content import files_hash

__all__ = ["identity", "pinned", "recordings_in"]

_S = TypeVar("_S", bound=Section)

# Keys that say where something lies, next to a `sha256` that says what it is.
_PLACES = frozenset({"corpus", "model", "responses", "revision"})
_AUDIO = frozenset({".flac", ".mp3", ".ogg", ".wav"})


def identity(section: Section) -> Any:
    """A frontend's or recipe's values, as JSON would have them, less where pinned files lie."""
    return _without_places(section.model_dump(mode="json"))


def pinned(section: _S) -> _S:
    """The section with the SHA-256 of the files that it names; the same section where it names none.

    Pinned are the encoder of an :class:`~kubevox.config.SslConfig`, the recordings of a
    :class:`~kubevox.config.BackgroundRecipe` or :class:`~kubevox.config.ReverbRecipe`, and the steps of a
    :class:`~kubevox.config.ChainRecipe`. A ``sha256`` that is already there is compared with the files where they are
    at hand and left as it is where they are not: features that were computed elsewhere can be used without them.

    Raises:
        ConfigError: the files are not there and no ``sha256`` is given, or they are not those of the ``sha256``.
    """
    if isinstance(section, SslConfig):
        from kubevox.features.frontends.encoder import pinned_hash

        return section.model_copy(update={"sha256": pinned_hash(section)})
    if isinstance(section, ChainRecipe):
        return section.model_copy(update={"steps": tuple(pinned(step) for step in section.steps)})
    if isinstance(section, BackgroundRecipe) and section.corpus != "white":
        return section.model_copy(update={"sha256": _recordings_hash("corpus", section.corpus, section.sha256)})
    if isinstance(section, ReverbRecipe) and section.responses is not None:
        return section.model_copy(update={"sha256": _recordings_hash("responses", section.responses, section.sha256)})
    return section


def recordings_in(folder: str | Path, key: str = "folder") -> list[Path]:
    """The recordings (.wav, .flac, .ogg, .mp3) in a folder and its subfolders, sorted by their names within it.

    Args:
        folder: a local folder or ``s3://bucket/prefix``.
        key: the configuration's key that named it, for the error.

    Raises:
        ConfigError: there is no such folder, or no recording in it.
    """
    root = _local(folder, key)
    # Sorted by name and not by path: the order, which decides what chance picks, is the same wherever the folder lies.
    found = sorted(
        (path for path in root.rglob("*") if path.suffix.lower() in _AUDIO and path.is_file()),
        key=lambda path: path.relative_to(root).as_posix(),
    )
    if not found:
        raise ConfigError(f"{key} {str(folder)!r}: no recordings (.wav, .flac, .ogg, .mp3) in this folder")
    return found


def _recordings_hash(key: str, folder: str, given: str | None) -> str:
    try:
        root = _local(folder, key)
    except ConfigError:
        if given is None:
            raise
        return given
    found = files_hash(root, recordings_in(root, key))
    if given is not None and found != given:
        raise ConfigError(
            f"{key} {folder!r}: the recordings there have the SHA-256 {found}, not {given} as `sha256` says: "
            "restore them, or remove `sha256` to use them as they are"
        )
    return found


def _local(folder: str | Path, key: str) -> Path:
    """The folder itself, or the copy of a bucket's in the cache."""
    try:
        root = storage.fetch(str(folder)) if str(folder).startswith("s3://") else Path(folder).expanduser()
    except StorageError as error:
        raise ConfigError(f"{key} {str(folder)!r}: {error}") from None
    if not root.is_dir():
        raise ConfigError(f"{key} {str(folder)!r}: no such folder; `{key}` names a folder of recordings")
    return root


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        hidden = _PLACES if value.get("sha256") else frozenset()
        return {key: _without_places(item) for key, item in value.items() if key not in hidden}
    return [_without_places(item) for item in value] if isinstance(value, list) else value
