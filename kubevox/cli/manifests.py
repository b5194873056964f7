"""``kubevox manifests``: what Kubevox would write into a cluster, for whoever applies manifests from a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kubevox.cli.options import DEFAULT_CONFIG, SetOption, load

__all__ = ["app"]

app = typer.Typer(help="Print the objects that Kubevox writes into a cluster, as YAML.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="The configuration; deploy.kserve is what counts.")]


@app.command()
def service(
    version: Annotated[str, typer.Argument(help="The registered version's number.", show_default=False)],
    bundle: Annotated[str, typer.Argument(help="Its bundle: s3://bucket/prefix/bundles/HASH.", show_default=False)],
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
) -> None:
    """Print the InferenceService with one version in production."""
    settings = load(config, set_)
    from kubevox.deployment.backend import ServedVersion
    from kubevox.deployment.kserve import inference_service, predictor

    kserve, model = settings.deploy.kserve, settings.task.name
    _print(inference_service(kserve, model, predictor(kserve, model, ServedVersion(version, bundle))))


@app.command()
def graph(
    cascade: Annotated[str, typer.Argument(help="The cascade's folder, for its threshold.", show_default=False)],
    mini: Annotated[str, typer.Argument(help="The InferenceService of the mini model, or a URL.", show_default=False)],
    premium: Annotated[str, typer.Argument(help="Likewise, of the premium model.", show_default=False)],
    name: Annotated[str | None, typer.Option("--name", help="The graph's; by default the task's.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
) -> None:
    """Print a cascade as an InferenceGraph."""
    settings = load(config, set_)
    from kubevox.deployment.kserve import inference_graph
    from kubevox.models.cascade import read_cascade

    spec, _ = read_cascade(cascade)
    _print(inference_graph(name or spec.task, settings.deploy.kserve.namespace, mini, premium, spec.threshold))


def _print(manifest: dict[str, Any]) -> None:
    import yaml

    print(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True), end="")
