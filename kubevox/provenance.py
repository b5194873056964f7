"""Where a result comes from: canonical JSON, content hashes, the code's commit."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["canonical_json", "content_hash", "file_sha256", "git_commit"]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text, which can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(*parts: Any) -> str:
    """SHA-256, in hex, over the parts: bytes as they are, anything else as canonical JSON.

    Each part is preceded by its length, so that no two lists of parts share a hash by running together.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else canonical_json(part).encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def git_commit() -> str:
    """The commit of the code that runs: ``$KUBEVOX_COMMIT`` (set in images), else git's own answer, else "unknown".

    A working tree with changes adds "-dirty".
    """
    if commit := os.environ.get("KUBEVOX_COMMIT"):
        return commit
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    try:
        run = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, check=True, timeout=10)
        head = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}-dirty" if changed else head
