"""``kubevox``: what a person does without a pipeline.

Ask the champion, serve it, look after data, compute features, check a configuration.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

import kubevox
from kubevox.cli.cascade import app as cascade_app
from kubevox.cli.data import app as data_app
from kubevox.cli.features import app as features_app
from kubevox.cli.manifests import app as manifests_app
from kubevox.cli.options import DEFAULT_CONFIG, SetOption, fail, load, read_recording
from kubevox.cli.rollout import rollout
from kubevox.cli.serve import BundleOption, ConfigOption, champion_of, serve
from kubevox.errors import AudioError, ConfigError, KubevoxError

__all__ = ["main"]

app = typer.Typer(
    help="Speech classification on Kubeflow: ask the champion, serve it, look after data, compute features.\n\n"
    "Models are trained by `make run` (python -m pipelines run).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(cascade_app, name="cascade")
app.add_typer(features_app, name="features")
app.add_typer(manifests_app, name="manifests")

app.command()(serve)
app.command()(rollout)


@app.command()
def predict(
    files: Annotated[
        list[Path],
        typer.Argument(help="Recordings: WAV, FLAC, Ogg, Opus, MP3, or M4A with ffmpeg.", show_default=False),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    bundle: BundleOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a recording.")] = False,
) -> None:
    """Classify recordings with the champion, here and now, without a server.

    Exits with 1 where a recording could not be used; the others are answered all the same.
    """
    uri = bundle if bundle is not None else champion_of(load(config, set_)).bundle_uri
    from kubevox.data.audio import decode
    from kubevox.models.bundle import load_bundle

    model = load_bundle(uri, "auto")
    failures = 0
    for file in files:
        try:
            waveform, _ = decode(read_recording(file, model.spec.limits), model.spec.limits, str(file))
            row = model.predict([waveform])[0]
        except AudioError as error:
            message = str(error) if str(file) in str(error) else f"{file}: {error}"
            print(f"error: {message}", file=sys.stderr)
            failures += 1
            continue
        probabilities = {label: round(float(p), 4) for label, p in zip(model.spec.labels, row, strict=True)}
        ranked = sorted(probabilities.items(), key=lambda item: -item[1])
        if as_json:
            print(json.dumps({"file": str(file), "label": ranked[0][0], "probabilities": probabilities}))
        else:
            others = ", ".join(f"{label} {p:.2f}" for label, p in ranked[1:3])
            print(f"{file}  {ranked[0][0]} {ranked[0][1]:.2f}  ({others})")
    if failures:
        sys.exit(1)


@app.command("config")
def config_(
    file: Annotated[Path, typer.Argument(help="A configuration, such as configs/emotion.yaml.")],
    set_: SetOption = None,
) -> None:
    """Check a configuration and print it whole, with overrides and defaults filled in."""
    settings = load(file, set_)
    import yaml

    from kubevox.data.corpora import open_corpus

    for source in settings.data.corpora:
        try:
            open_corpus(source, str(file))
        except KubevoxError as error:
            fail(error, 2)

    print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        print(f"kubevox {kubevox.__version__}")
        sys.exit(0)


def main() -> None:
    """Run the command line; a user's error is one line on standard error."""
    try:
        app(prog_name="kubevox")
    except KubevoxError as error:
        fail(error, 2 if isinstance(error, ConfigError) else 1)
