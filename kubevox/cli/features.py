"""``kubevox features``: compute features of any recordings, fill a store with a dataset's, say what there is."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kubevox.cli.options import DEFAULT_CONFIG, SetOption, fail, load
from kubevox.errors import AudioError, ConfigError, KubevoxError

if TYPE_CHECKING:
    from kubevox.config import FrontendConfig, RecipeConfig
    from kubevox.features.blocks import BlockIndex

__all__ = ["app"]

app = typer.Typer(help="Compute features, and say which there are.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="The configuration that names frontends and recipes.")]


@app.command()
def compute(
    paths: Annotated[
        list[Path], typer.Argument(help="Recordings (WAV, FLAC, Ogg, MP3), or folders of them.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("--output", help="The Parquet file to write; replaced where there is one.", show_default=False),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    frontend: Annotated[
        str | None, typer.Option(help="A frontend's name in the configuration; by default the model's.")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="A recipe's name in the configuration; can be repeated; by default the recording as it is."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; by default features.device.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; by default features.workers, else all cores.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Recordings at once; by default features.batch_size.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Close with one JSON object.")] = False,
) -> None:
    """Compute the features of recordings that are in no dataset.

    One row a recording and recipe: path, id, recipe, values.

    Exits with 1 where a recording could not be used; the others are computed all the same.

    Example: kubevox features compute recordings/ --frontend statistics --output features.parquet
    """
    given = {"device": device, "workers": workers, "batch_size": batch_size}
    overrides = [f"features.{key}={value}" for key, value in given.items() if value is not None]
    settings = load(config, [*(set_ or []), *overrides])
    from tqdm import tqdm

    from kubevox.cli.feature_table import find_recordings, write_features

    def refused(error: AudioError) -> None:
        # A progress bar steps aside for it.
        tqdm.write(f"error: {error}", file=sys.stderr)

    done = write_features(
        find_recordings(paths),
        output,
        settings.features,
        frontend or settings.model.frontend,
        list(dict.fromkeys(recipe or ["default"])),
        settings.data.limits,
        refused,
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(done)))
    elif done.output:
        print(
            f"{done.output}: {done.rows} rows of {done.recordings} recordings, {done.hours:.2f} h of audio "
            f"in {done.seconds:.1f} s ({done.clips_per_s:g} clips/s)"
        )
    if done.failed:
        sys.exit(1)


@app.command()
def extract(
    dataset: Annotated[str, typer.Option(help="The URI of a dataset version in the store.", show_default=False)],
    split: Annotated[str, typer.Option(help="The URI of a split of that dataset.", show_default=False)],
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Bring a dataset's features into the store, as the pipeline's extract step does.

    Prints the URI of each shard's block index; what the store holds already is not computed again.

    Several may run at once on one store, on one machine or many: they share the work.

    Example: kubevox features extract --dataset STORE/datasets/HASH --split STORE/splits/HASH
    """
    settings = load(config, set_)
    from kubevox.data.dataset import load_dataset
    from kubevox.data.splits import load_split
    from kubevox.features.blocks import extract_shard
    from kubevox.progress import ProgressBar

    version, made = load_dataset(dataset), load_split(split)
    if made.dataset.hash != version.hash:
        raise ConfigError(f"--split {split}: made of the dataset {made.dataset.uri}, not of {dataset}")
    wanted, shards = made.split_of, version.shard_uris
    # Processes that fill one store in the same order would all compute the same block at the same time, and all but
    # one for nothing. Each has an order of its own and skips what others have done; were the orders only rotated, one
    # that caught up with another would stay beside it to the end.
    ordered = _own_order(shards, socket.gethostname(), os.getpid())
    indexes: dict[str, BlockIndex] = {}
    with ProgressBar("shards", len(shards), "shards") as bar:
        for shard in ordered:
            indexes[shard] = extract_shard(shard, wanted, settings.used_features, settings.feature_plan, settings.store)
            bar.update()
    uris = [indexes[shard].uri for shard in shards]
    computed = sum(index.computed for index in indexes.values())
    reused = sum(index.reused for index in indexes.values())
    if as_json:
        print(json.dumps({"dataset": dataset, "split": split, "indexes": uris, "computed": computed, "reused": reused}))
        return
    print("\n".join(uris))
    print(f"{len(shards)} shards: {computed} blocks computed, {reused} reused", file=sys.stderr)


@app.command("list")
def list_(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the frontends and recipes of a configuration.

    Example: kubevox features list --config configs/language.yaml
    """
    features = load(config, set_).features
    from kubevox.features.augmentation import recipe_version

    frontends = {name: _describe(section) for name, section in features.frontends.items()}
    versions = {name: recipe_version(section) for name, section in features.recipes.items()}
    if as_json:
        recipes = {
            name: {**section.model_dump(mode="json"), "version": versions[name]}
            for name, section in features.recipes.items()
        }
        print(json.dumps({"frontends": frontends, "recipes": recipes}))
        return
    rows = [["frontend", "kind", "shape", "rate", "stretch", "speech", "stored", "version"]]
    for name, about in frontends.items():
        shape = " x ".join(map(str, about["shape"])) if about["shape"] else "?"
        stretch = f"{about['offset_s']:g} to {about['offset_s'] + about['duration_s']:g} s"
        rate = f"{about['sample_rate']} Hz"
        rows.append(
            [name, about["kind"], shape, rate, stretch, about["vad"] or "-", about["stored"], str(about["version"])]
        )
    _print_table(rows)
    print()
    rows = [["recipe", "kind", "parameters", "version"]]
    for name, section in features.recipes.items():
        version = ".".join(map(str, versions[name])) or "-"
        rows.append([name, section.kind, _parameters(section), version])
    _print_table(rows)


@app.command()
def names(
    frontend: Annotated[str, typer.Argument(help="A frontend's name in the configuration.", show_default=False)],
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
) -> None:
    """Print the names of a frontend's features, one a line, in their order.

    Example: kubevox features names statistics
    """
    frontends = load(config, set_).features.frontends
    if frontend not in frontends:
        fail(ConfigError(f"{config}: there is no frontend {frontend!r}; known are {', '.join(sorted(frontends))}"), 2)
    from kubevox.features.frontends import build_frontend

    print("\n".join(build_frontend(frontends[frontend]).feature_names))


def _own_order(shards: Sequence[str], host: str, process: int) -> list[str]:
    """The shards in an order that looks random and belongs to one process of one machine."""
    from kubevox.provenance import content_hash

    return sorted(shards, key=lambda shard: content_hash(host, process, shard))


def _describe(config: FrontendConfig) -> dict[str, Any]:
    """What can be said of a frontend without computing or downloading anything; no shape where that is not known."""
    from kubevox.config import SslConfig
    from kubevox.features.frontends import feature_shape, frontend_version, minimum_duration_s

    shape: Sequence[int] | None
    try:
        if isinstance(config, SslConfig):
            from kubevox.features.frontends.encoder import locate

            locate(config, download=False)
        shape = list(feature_shape(config))
    except KubevoxError:
        shape = None
    return {
        "kind": config.kind,
        "shape": shape,
        "sample_rate": config.sample_rate,
        "offset_s": config.offset_s,
        "duration_s": config.duration_s,
        "minimum_duration_s": minimum_duration_s(config),
        "vad": config.vad.mode if config.vad else None,
        "stored": config.stored,
        "version": frontend_version(config),
    }


def _parameters(recipe: RecipeConfig) -> str:
    """A recipe's parameters in one line; a chain's steps in their order."""
    from kubevox.config import ChainRecipe

    if isinstance(recipe, ChainRecipe):
        return ", then ".join(f"{step.kind} ({_parameters(step)})" for step in recipe.steps)
    values = recipe.model_dump(mode="json", exclude={"kind"}, exclude_none=True)
    return ", ".join(f"{key} {_readable(value)}" for key, value in values.items()) or "-"


def _readable(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_readable, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
