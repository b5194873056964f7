"""``python -m kubevox.deployment.local``: a platform's supervisor, as ``kubevox serve`` and a rollout start it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kubevox.deployment.local.state import PlatformFolder
from kubevox.errors import KubevoxError


def main() -> None:
    """Parse the flags and supervise."""
    parser = argparse.ArgumentParser(prog="python -m kubevox.deployment.local", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="the model's name in the URL")
    parser.add_argument("--folder", required=True, type=Path, help="the platform's files")
    parser.add_argument("--host", default="127.0.0.1", help="the route's address")
    parser.add_argument("--port", type=int, default=0, help="the route's port; 0 for any")
    parser.add_argument("--grace_s", type=float, default=20.0, help="for requests in flight when something is ended")
    parser.add_argument("--request_timeout_s", type=float, default=60.0, help="how long a server may be silent")
    parser.add_argument("--must_start", action="store_true", help="end when the version in production does not start")
    parser.add_argument("--leash", action="store_true", help="end when standard input does")
    flags = parser.parse_args()
    try:
        from kubevox.deployment.local.supervisor import Platform, supervise

        platform = Platform(
            model=flags.model,
            folder=PlatformFolder(flags.folder),
            host=flags.host,
            port=flags.port,
            grace_s=flags.grace_s,
            request_timeout_s=flags.request_timeout_s,
            must_start=flags.must_start,
        )
        supervise(platform, _say, sys.stdin.fileno() if flags.leash else None)
    except KubevoxError as error:
        sys.exit(f"error: {error}")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
