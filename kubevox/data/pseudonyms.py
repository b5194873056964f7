"""Names that do not tell whose they are: keyed hashes of speakers and of file names.

The key comes from ``$KUBEVOX_PSEUDONYM_KEY``; where that is not set, one is generated once for this user and kept in
``$XDG_CONFIG_HOME/kubevox/pseudonym.key`` (``~/.config`` by default), outside every store. A store holds the key's
fingerprint and no more. Who has the key can tell which pseudonym belongs to a name that he knows or guesses; who has
not can only tell that two recordings are of one speaker. A store keeps to one key: under another, people whom the store
knows would come back as strangers, on the wrong side of a split.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from kubevox import storage
from kubevox.errors import ConfigError, StorageError
from kubevox.progress import note
from kubevox.provenance import canonical_json

__all__ = ["Pseudonyms"]

_VARIABLE = "KUBEVOX_PSEUDONYM_KEY"
_SHORTEST_KEY = 16
_NAME_IN_STORE = "pseudonym-key.json"


class Pseudonyms:
    """Pseudonyms under one key (HMAC-SHA-256, RFC 2104).

    Args:
        key: the secret, at least 16 characters.
        where: where it is kept, for messages.

    Raises:
        ConfigError: the key is too short to keep anything secret.
    """

    def __init__(self, key: str, where: str = f"${_VARIABLE}") -> None:
        self._where = where
        if len(key) < _SHORTEST_KEY:
            raise ConfigError(
                f"{where}: {len(key)} characters are too few to keep names secret; "
                f"use at least {_SHORTEST_KEY}, such as the output of: openssl rand -hex 32"
            )
        self._key = key.encode(errors="surrogateescape")  # the environment may hold any bytes

    @classmethod
    def of_user(cls, store: str | None = None) -> Pseudonyms:
        """Under this user's key: from the environment, or the one generated for the user.

        Args:
            store: the store that the pseudonyms are for.

        Raises:
            ConfigError: the key is too short, or cannot be kept.
            StorageError: the store's names are pseudonyms under another key.
        """
        if key := os.environ.get(_VARIABLE):
            names = cls(key)
        else:
            file = _key_file()
            if store and not store.startswith("s3://") and file.resolve().is_relative_to(Path(store).resolve()):
                raise ConfigError(
                    f"{file}: the key would lie in the store that it protects; set {_VARIABLE}, or XDG_CONFIG_HOME"
                )
            names = cls(_kept_key(file), str(file))
        if store and storage.exists(storage.join(store, _NAME_IN_STORE)):
            names._compare(store)
        return names

    @classmethod
    def of_store(cls, store: str) -> Pseudonyms | None:
        """Under the key that a store keeps to; None where it has none: every voice in it is a machine's.

        Raises:
            ConfigError: the key is too short, or cannot be kept.
            StorageError: this user's key is another.
        """
        return cls.of_user(store) if storage.exists(storage.join(store, _NAME_IN_STORE)) else None

    @property
    def fingerprint(self) -> str:
        """Tells keys apart without telling the key: 16 hex digits."""
        return hmac.new(self._key, b"kubevox: fingerprint of this key", hashlib.sha256).hexdigest()[:16]

    def speaker(self, speaker: str) -> str:
        """``corpus:`` and 12 hex digits for ``corpus:id``."""
        return self._pseudonym("speaker", speaker, 12)

    def source(self, source_id: str) -> str:
        """``corpus:`` and 20 hex digits for ``corpus:path``."""
        return self._pseudonym("source", source_id, 20)

    def mark(self, name: str) -> str:
        """64 hex digits by which a name, itself a pseudonym, is recognised and not told."""
        return hmac.new(self._key, f"forgotten:{name}".encode(), hashlib.sha256).hexdigest()

    def _pseudonym(self, what: str, name: str, digits: int) -> str:
        corpus = name.partition(":")[0]
        return f"{corpus}:{hmac.new(self._key, f'{what}:{name}'.encode(), hashlib.sha256).hexdigest()[:digits]}"

    def bind(self, store: str) -> None:
        """Have a store keep to this key; only its fingerprint is written.

        Raises:
            StorageError: the store's names are pseudonyms under another key.
        """
        uri = storage.join(store, _NAME_IN_STORE)
        if not storage.exists(uri) and storage.create(uri, canonical_json({"fingerprint": self.fingerprint}).encode()):
            return
        self._compare(store)

    def _compare(self, store: str) -> None:
        uri = storage.join(store, _NAME_IN_STORE)
        try:
            theirs = storage.read_json(uri)["fingerprint"]
        except (KeyError, TypeError):
            raise StorageError(f"{uri}: damaged: no fingerprint of a key in it") from None
        if theirs != self.fingerprint:
            raise StorageError(
                f"store {store}: its names are pseudonyms under the key {theirs}, and the key in {self._where} is "
                f"{self.fingerprint}; set {_VARIABLE} to the key that the store was begun with, or use another store"
            )


def _key_file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kubevox" / "pseudonym.key"


def _kept_key(file: Path) -> str:
    """The user's key; made where there is none, by the first process that asks."""
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Of a name that no process on another machine with this home takes too; readable by its owner only.
            descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
            temporary = Path(name)
            try:
                with open(descriptor, "w") as out:
                    out.write(secrets.token_hex(32))
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, file)
                    note(
                        f"made a key for pseudonyms of speakers: {file}; keep it, or the same people get other names "
                        f"(on other machines set {_VARIABLE})"
                    )
            finally:
                temporary.unlink()
        return file.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError as error:
        raise ConfigError(
            f"{file}: the key for pseudonyms of speakers cannot be kept there ({error.strerror}); set {_VARIABLE} "
            "(in a cluster from a secret), at least 16 characters"
        ) from None
