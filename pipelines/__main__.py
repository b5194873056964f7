"""``python -m pipelines``: run the training pipeline here, or compile it for a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from kubevox.config import Config, corpus_source, load_config
from kubevox.data.corpora import open_corpus
from kubevox.errors import KubevoxError

app = typer.Typer(
    help="Run the training pipeline on this machine, or compile it for a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[Path, typer.Option("--config", help="The run's configuration, such as configs/emotion.yaml.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one value, such as train.epochs=5; can be repeated.")
]
CorporaOption = Annotated[
    str | None,
    typer.Option(
        "--corpora",
        help='Corpora in place of those in the configuration: "ravdess=DIR emodb=DIR"; a name alone needs no folder. '
        "data.labels is then null: all labels of the task.",
    ),
]


@app.command()
def run(
    config: ConfigOption,
    set_: SetOption = None,
    corpora: CorporaOption = None,
    work_dir: Annotated[Path, typer.Option(help="Where logs and KFP's own files go.")] = Path(".kubevox"),
    pipeline: Annotated[
        Path | None, typer.Option(help="Run this compiled YAML instead of the pipeline function.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on standard output.")] = False,
) -> None:
    """Run the whole pipeline through KFP's local runner: ingest to deployment.

    What was done before with the same inputs is reused. Exit codes: 0 promoted, 3 rejected by the gate or taken back
    by the rollout, 1 failed, 2 wrong usage.
    """
    settings = _load(config, set_, corpora)
    names = ", ".join(source.name for source in settings.data.corpora)
    print(f"kubevox  {settings.task.name} on {names}  →  {settings.store}\n", file=sys.stderr)
    from pipelines.local import FAILED, run_locally, summary

    compiled = None
    if pipeline is not None:
        from kfp import components

        compiled = components.load_component_from_file(str(pipeline))
    try:
        outcome = run_locally(settings, work_dir, compiled)
    except KubevoxError as error:
        _fail(error)
    if as_json:
        print(outcome.to_json())
    if outcome.code == FAILED:
        print(f"\nerror: {outcome.error}", file=sys.stderr)
    else:
        print("", *summary(outcome, settings, str(config)), sep="\n", file=sys.stderr if as_json else sys.stdout)
        reused = sorted({result["stage"] for result in outcome.results if result.get("reused")})
        print(
            f"\nDone in {outcome.seconds:.0f} s" + (f"; reused: {', '.join(reused)}" if reused else ""), file=sys.stderr
        )
    sys.exit(outcome.code)


@app.command("compile")
def compile_(
    output: Annotated[Path, typer.Option(help="The YAML file to write.")] = Path("training_pipeline.yaml"),
    config: Annotated[
        Path | None, typer.Option("--config", help="Put this configuration's values in as the parameters' defaults.")
    ] = None,
    set_: SetOption = None,
    corpora: CorporaOption = None,
) -> None:
    """Compile the pipeline to the YAML that Kubeflow Pipelines takes.

    Images and accelerators are fixed here: $KUBEVOX_IMAGE names the image that every step runs in, and with
    `--set features.device=cuda` each extract-features task requests a GPU.
    """
    settings = _load(config, set_, corpora) if config else None
    from kfp import compiler

    from pipelines.training import arguments, build_pipeline

    values = arguments(settings, settings.store, settings.tracking.uri) if settings else None
    pipeline = build_pipeline(features_on_gpu=settings is not None and settings.features.device == "cuda")
    compiler.Compiler().compile(pipeline, str(output), pipeline_parameters=values)
    print(f"wrote {output}", file=sys.stderr)


def _load(path: Path, overrides: list[str] | None, corpora: str | None) -> Config:
    """Read and check the configuration; whatever is wrong ends the command with one line and code 2."""
    try:
        config = load_config(path, overrides or [])
        if corpora is not None and corpora.strip():
            sources = [corpus_source(word, config.data.corpora) for word in corpora.split()]
            data = config.data.model_copy(update={"corpora": sources, "labels": None})
            config = config.model_copy(update={"data": data})
        for source in config.data.corpora:
            open_corpus(source, str(path))
    except KubevoxError as error:
        _fail(error, 2)
    return config


def _fail(error: KubevoxError, code: int = 1) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    app(prog_name="python -m pipelines")
