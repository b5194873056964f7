"""What a serving image runs: ``python -m kubevox.serving --model_name emotion --model_dir /mnt/models``.

The flags are those that KServe's runtimes use.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys

from kubevox.errors import KubevoxError


def main() -> None:
    """Parse the flags and serve."""
    parser = argparse.ArgumentParser(prog="python -m kubevox.serving", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model_name", required=True, help="the model's name in the URL")
    parser.add_argument("--model_dir", default="/mnt/models", help="the bundle or cascade: a folder or s3://…")
    parser.add_argument("--model_version", default="unregistered", help="the registered version, told in every answer")
    parser.add_argument("--host", default="0.0.0.0", help="the address to listen on (a pod's: all)")  # noqa: S104
    parser.add_argument("--http_port", type=int, default=8080, help="the HTTP port")
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda"], help="where the model runs")
    parser.add_argument("--grpc_port", type=int, default=0, help="the port for gRPC; 0: none")
    parser.add_argument("--max_instances", type=int, default=None, help="recordings a request may hold")
    parser.add_argument("--options", default="{}", help="the configuration's section `serving`, as JSON")
    parser.add_argument("--log_store", default=None, help="where the inference log goes: a folder or s3://…")
    flags = parser.parse_args()
    # Until the server answers; the first process of a container would not hear of it otherwise.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        from kubevox.config import ServingConfig

        options = ServingConfig.from_json(flags.options)
        if flags.max_instances is not None:
            changed = options.model_dump(mode="json") | {"max_instances": flags.max_instances}
            options = ServingConfig.from_json(json.dumps(changed))
        from kubevox.serving.engine import prepare

        prepare()
        from kubevox.serving.server import serve

        serve(
            flags.model_dir,
            flags.model_name,
            flags.model_version,
            flags.host,
            flags.http_port,
            flags.device,
            options,
            flags.log_store,
            flags.grpc_port,
        )
    except KubevoxError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
