"""``kubevox serve``: the champion, and a challenger beside it while there is a rollout, behind one port."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from kubevox.cli.options import DEFAULT_CONFIG, SetOption, load
from kubevox.errors import ConfigError, DeploymentError, RegistryError

if TYPE_CHECKING:
    from kubevox.config import Config
    from kubevox.deployment.backend import ServedVersion
    from kubevox.deployment.local import PlatformSpec
    from kubevox.registry import ModelVersion

__all__ = ["BundleOption", "ConfigOption", "champion_of", "serve", "to_serve"]

ConfigOption = Annotated[Path, typer.Option("--config", help="The configuration of the run that trained the champion.")]
BundleOption = Annotated[
    str | None, typer.Option("--bundle", help="A bundle's URI to use in place of the registry's champion.")
]

_MARGIN_S = 5.0  # a server refuses what takes too long by itself; the router gives up later


def serve(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    bundle: BundleOption = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The HTTP port.")] = 8080,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    direct: Annotated[
        bool, typer.Option("--direct", help="One server without the route: no rollout reaches it. So with --bundle.")
    ] = False,
    grpc_port: Annotated[int, typer.Option(help="The port for gRPC, with --direct; 0 for none.")] = 0,
) -> None:
    """Serve the champion behind one port, V1 :predict and V2 infer, until Ctrl-C.

    A rollout of another version (make run, make rollout) takes place in here, and what it promotes is served on.
    """
    if bundle is not None or direct:
        _serve_directly(config, set_, bundle, host, port, device, grpc_port)
    if grpc_port:
        raise ConfigError("--grpc-port: the route is HTTP; add --direct to serve gRPC without it")
    settings = load(config, set_)
    champion = champion_of(settings)
    from kubevox.deployment.backend import ServedVersion
    from kubevox.deployment.local import platform_folder, server_command

    model, serving = settings.task.name, settings.serving
    folder = platform_folder(model, settings.tracking.uri, settings.store)
    if folder.running():
        status = folder.status()
        where = f" at {status.url} by process {status.pid}" if status is not None else ""
        raise DeploymentError(f"{model} is served already{where}; end that, or wait until its rollout has ended")
    served = ServedVersion(champion.version, champion.bundle_uri)
    command = server_command(device, serving, settings.store)
    spec = folder.change(lambda before: to_serve(before, served, command, settings.deploy.start_timeout_s))
    if spec.canary is not None:
        print(
            f"version {spec.canary.version} is in a rollout that was interrupted: it gets no requests until that is "
            "carried on",
            file=sys.stderr,
        )
    supervisor = ["-m", "kubevox.deployment.local", "--model", model, "--folder", str(folder.path), "--must_start"]
    supervisor += ["--host", host, "--port", str(port), "--grace_s", str(serving.grace_s)]
    supervisor += ["--request_timeout_s", str(serving.request_timeout_s + _MARGIN_S)]
    _become(supervisor)


def to_serve(spec: PlatformSpec, champion: ServedVersion, command: list[str], start_timeout_s: float) -> PlatformSpec:
    """What is wanted when serving begins: the champion, and a challenger only to be at hand.

    Nobody watches the challenger of a rollout that was interrupted, so it gets no share until somebody does.
    """
    from kubevox.deployment.local import WantedServer

    canary = spec.canary
    if canary is not None:
        again = WantedServer.of(canary.served, command, start_timeout_s).model_copy(update={"attempt": canary.attempt})
        canary = again if canary.served != champion else None
    stable = WantedServer.of(champion, command, start_timeout_s)
    return spec.model_copy(update={"stable": stable, "canary": canary, "canary_percent": 0})


def champion_of(settings: Config) -> ModelVersion:
    """The registry's champion.

    Raises:
        RegistryError: there is none, or the registry does not answer.
    """
    tracking = settings.tracking.uri
    champion = None
    # MLflow would make the database where there is none, and take its time over it.
    if not tracking.startswith("sqlite:///") or Path(tracking.removeprefix("sqlite:///")).exists():
        from kubevox.registry import Registry

        champion = Registry(tracking).champion(settings.registered_model)
    if champion is None:
        raise RegistryError(
            f"no champion of {settings.registered_model} in {tracking}; train one: make run TASK={settings.task.name}"
        )
    return champion


def _serve_directly(
    config: Path, overrides: list[str] | None, bundle: str | None, host: str, port: int, device: str, grpc_port: int
) -> NoReturn:
    """Become the model server itself; of a bundle that nobody registered nothing is logged."""
    from kubevox.config import ServingConfig

    # A bundle is served without any configuration too, as `kubevox predict` uses it.
    without = bundle is not None and config == DEFAULT_CONFIG and not config.exists() and not overrides
    settings = None if without else load(config, overrides)
    serving = ServingConfig() if settings is None else settings.serving
    version, log = "unregistered", None
    if bundle is None:
        assert settings is not None  # noqa: S101 - only a bundle is served without
        champion = champion_of(settings)
        bundle, version, log = champion.bundle_uri, champion.version, settings.store
        name = settings.task.name
    else:
        from kubevox.models.cascade import Cascade, load_model

        model = load_model(bundle)
        name = model.task if isinstance(model, Cascade) else model.spec.task
    print(f"serving {name} version {version} at http://{host}:{port}/v1/models/{name}:predict", file=sys.stderr)
    server = ["-m", "kubevox.serving", "--model_name", name, "--model_dir", bundle, "--model_version", version]
    server += ["--host", host, "--http_port", str(port), "--grpc_port", str(grpc_port), "--device", device]
    server += ["--options", serving.to_json()]
    server += ["--log_store", log] if log is not None else []
    _become(server)


def _become(arguments: list[str]) -> NoReturn:
    """Go on as another program of this interpreter: what was imported to get here is not carried along."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - our own interpreter
