"""Where a pretrained encoder lies, what it is, and whether it is the one that a configuration pins.

Nothing here imports torch or transformers: the shape of the ``ssl`` frontend's features and its part of a block's key
are known without loading a model.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kubevox import storage
from kubevox.config import SslConfig
from kubevox.errors import ConfigError, StorageError

__all__ = [
    "ARCHITECTURES",
    "MISSING_TRANSFORMERS",
    "encoder_files",
    "encoder_hash",
    "hidden_size",
    "locate",
    "pinned_hash",
    "read_configs",
    "relocated",
    "verified",
]

# By `model_type` in config.json; XLS-R and MMS are wav2vec 2.0 in architecture. The value is the key of the width.
ARCHITECTURES = {"hubert": "hidden_size", "wav2vec2": "hidden_size", "wavlm": "hidden_size", "whisper": "d_model"}
MISSING_TRANSFORMERS = "the ssl frontend needs transformers: pip install 'kubevox[ssl]'"

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# How transformers keeps the feature extractor's parameters: in a file of its own, or inside a processor's.
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_WANTED = [_CONFIG, *_PREPROCESSORS, _WEIGHTS, _INDEX, "model-?????-of-?????.safetensors"]


def locate(config: SslConfig, download: bool = True) -> Path:
    """The local folder with the encoder's files.

    ``model`` is taken as a folder where there is one, else as ``s3://bucket/prefix`` (copied once into the cache), else
    as a hub's id: then the cache of ``huggingface_hub`` is looked up first, and the hub is asked only for what is not
    there (not at all with ``HF_HUB_OFFLINE=1``).

    Args:
        config: the frontend's section.
        download: whether what is not on this machine may be fetched.

    Raises:
        ConfigError: there is no such folder, or the store or the hub does not give it.
    """
    model = config.model
    if model.startswith("s3://"):
        try:
            return storage.fetch(model)
        except StorageError as error:
            raise ConfigError(f"frontend ssl: model {model!r}: {error}") from None
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(model):
        raise ConfigError(
            f"frontend ssl: model {model!r}: no such folder{_as_pinned(config)}; put the encoder's folder there, "
            "or name another place in `model`"
        )
    return _from_hub(config, download)


def encoder_files(folder: Path) -> list[Path]:
    """The files that make the encoder: its configuration, its feature extractor's, and its safetensors weights.

    Raises:
        ConfigError: one is missing, or the weights are there as a pickle only.
    """
    if not (folder / _CONFIG).is_file():
        raise ConfigError(f"encoder {folder}: no {_CONFIG}; expected a folder as transformers' save_pretrained writes")
    preprocessors = [folder / name for name in _PREPROCESSORS if (folder / name).is_file()]
    if not preprocessors:
        raise ConfigError(
            f"encoder {folder}: no {_PREPROCESSORS[0]}, which says how the encoder wants its input; save the feature "
            "extractor there too"
        )
    if (folder / _WEIGHTS).is_file():
        weights = [folder / _WEIGHTS]
    elif (folder / _INDEX).is_file():
        shards = sorted(set(_json(folder / _INDEX).get("weight_map", {}).values()))
        weights = [folder / _INDEX, *(folder / Path(shard).name for shard in shards)]
    elif any(folder.glob("pytorch_model*.bin")):
        raise ConfigError(
            f"encoder {folder}: its weights are a pickle (pytorch_model.bin), which is never loaded; convert it once "
            "where you trust it, with transformers' from_pretrained(...).save_pretrained(folder), or name a "
            f"`revision` that has {_WEIGHTS}"
        )
    else:
        raise ConfigError(f"encoder {folder}: no weights; expected {_WEIGHTS}")
    if missing := [path.name for path in weights if not path.is_file()]:
        raise ConfigError(f"encoder {folder}: {missing[0]} is missing; copy the folder again")
    return [folder / _CONFIG, *preprocessors, *weights]


def encoder_hash(folder: Path) -> str:
    """SHA-256, in hex, of the encoder's files: their names, sizes and bytes; computed once a process.

    Raises:
        ConfigError: as :func:`encoder_files`.
    """
    from kubevox.features.content import files_hash

    return files_hash(folder, encoder_files(folder))


def verified(config: SslConfig) -> tuple[Path, str]:
    """The encoder's folder and hash; what :func:`~kubevox.features.build_frontend` rests on.

    Raises:
        ConfigError: the folder is gone or incomplete, or its content is not what ``sha256`` pins.
    """
    folder = locate(config)
    found = encoder_hash(folder)
    _refuse_other(config, folder, found)
    return folder, found


def pinned_hash(config: SslConfig) -> str:
    """The hash of the encoder: of its files where they are at hand, else the ``sha256`` that the section holds.

    Nothing is downloaded for a section that is pinned already.

    Raises:
        ConfigError: as :func:`verified`; but a pinned encoder may be elsewhere.
    """
    if config.sha256 is None:
        return verified(config)[1]
    try:
        folder = locate(config, download=False)
    except ConfigError:
        return config.sha256
    _refuse_other(config, folder, encoder_hash(folder))
    return config.sha256


def hidden_size(config: SslConfig) -> int:
    """The width of the encoder's hidden states, from its config.json.

    Raises:
        ConfigError: the encoder is not there, or not of an architecture that the frontend knows.
    """
    model, _ = read_configs(locate(config))
    return model[ARCHITECTURES[model["model_type"]]]


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The encoder's configuration and its feature extractor's, as they are written.

    Raises:
        ConfigError: one is missing or damaged, or the architecture is not one of :data:`ARCHITECTURES`.
    """
    encoder_files(folder)
    model = _json(folder / _CONFIG)
    kind = model.get("model_type")
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"encoder {folder}: model_type {kind!r} is not supported; expected one of {', '.join(ARCHITECTURES)}"
        )
    if not isinstance(model.get(ARCHITECTURES[kind]), int):
        raise ConfigError(f"encoder {folder}: {_CONFIG} has no {ARCHITECTURES[kind]}; copy the folder again")
    # transformers gives precedence to the extractor inside a processor's file.
    for name in reversed(_PREPROCESSORS):
        if (folder / name).is_file():
            values = _json(folder / name)
            if name == _PREPROCESSORS[0] or "feature_extractor" in values:
                return model, values.get("feature_extractor", values)
    raise ConfigError(f"encoder {folder}: {_PREPROCESSORS[1]} holds no feature_extractor; save it there too")


def relocated(config: SslConfig, folder: Path) -> SslConfig:
    """The same encoder, found in ``folder``: its features have the same key, for a pinned section's place is not in it.

    Raises:
        ConfigError: as :func:`verified`.
    """
    moved = config.model_copy(update={"model": str(folder), "revision": None})
    verified(moved)
    return moved


def _from_hub(config: SslConfig, download: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(MISSING_TRANSFORMERS) from None
    try:
        # The cache first: a run needs no network for what it has, and does not change when the hub does.
        folder = Path(
            snapshot_download(config.model, revision=config.revision, allow_patterns=_WANTED, local_files_only=True)
        )
        encoder_files(folder)
        return folder
    except Exception as error:  # the client's errors have no common base
        reason = error
    if download:
        try:
            return Path(snapshot_download(config.model, revision=config.revision, allow_patterns=_WANTED))
        except Exception as error:
            reason = error
    what = f"{config.model!r}" + (f" at revision {config.revision!r}" if config.revision else "")
    raise ConfigError(
        f"frontend ssl: model {what} is no folder here, and the hub did not give it "
        f"({type(reason).__name__}){_as_pinned(config)}; download the folder where there is a network and "
        "give its path in `model`"
    ) from None


def _refuse_other(config: SslConfig, folder: Path, found: str) -> None:
    if config.sha256 is not None and found != config.sha256:
        raise ConfigError(
            f"frontend ssl: the encoder in {folder} has the SHA-256 {found}, not {config.sha256} as `sha256` says: "
            "restore its files, or remove `sha256` to use them as they are"
        )


def _as_pinned(config: SslConfig) -> str:
    return f" (the encoder pinned as SHA-256 {config.sha256})" if config.sha256 else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"encoder {path.parent}: {path.name} cannot be read ({error}); copy it again") from None
    if not isinstance(value, dict):
        raise ConfigError(f"encoder {path.parent}: {path.name} is no JSON object; copy it again")
    return value
