"""``kubevox cascade``: put a small model before the champion, say what one is, copy it to where it is served."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kubevox.cli.options import DEFAULT_CONFIG, SetOption, load
from kubevox.errors import ConfigError, RegistryError

if TYPE_CHECKING:
    from kubevox.config import Config, FrontendConfig, MiniConfig
    from kubevox.data.splits import Split
    from kubevox.evaluation.cascade import Curve
    from kubevox.models.bundle import Bundle
    from kubevox.models.cascade import CascadeSpec

__all__ = ["app"]

app = typer.Typer(help="Two models, one question: a small one before the champion.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="The configuration of the run that trained the champion.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
UriArgument = Annotated[str, typer.Argument(help="A cascade's folder, as build prints it.", show_default=False)]
_SHORT = 12
_SHOWN_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


@app.command()
def build(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    mini: Annotated[
        str | None,
        typer.Option("--mini", help="The bundle that answers first; by default trained as the section mini says."),
    ] = None,
    premium: Annotated[
        str | None, typer.Option("--premium", help="The bundle to ask where it is not sure; by default the champion.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose, on the validation split, from which confidence on the small model answers alone.

    Trains the small model first, on the champion's split, unless it was trained before.

    Prints the curve's essentials and the folder in which cascade.json and the report lie.

    Example: kubevox cascade build --set mini.margin=0.02
    """
    settings = load(config, set_)
    from kubevox import storage
    from kubevox.data.splits import load_split
    from kubevox.evaluation.cascade import build_cascade
    from kubevox.models.bundle import load_bundle

    store = storage.absolute(settings.store)
    premium_bundle = load_bundle(premium or _champion(settings))
    split = load_split(storage.join(store, "splits", premium_bundle.spec.split_hash))
    blocks = _extracted(settings, split, premium_bundle.frontend.config, ["default"], store)
    if mini is None:
        section = _mini_section(settings)
        frontend = settings.features.frontends[section.model.frontend]
        blocks += _extracted(settings, split, frontend, ["default", *section.model.recipes], store)
        mini = _trained(settings, section, split, blocks, store)
        margin = section.margin
    else:
        blocks += _extracted(settings, split, load_bundle(mini).frontend.config, ["default"], store)
        margin = _margin(settings)
    built = build_cascade(mini, premium_bundle.uri, blocks, split.uri, settings.evaluate, margin, store)
    if as_json:
        print(json.dumps({"uri": built.uri, "reused": built.reused, **built.spec.model_dump(mode="json")}))
        return
    _tell(built.spec, [load_bundle(mini), premium_bundle])
    print()
    _print_curve(built.curve, built.spec.threshold)
    print(f"\nCascade    {built.uri}" + ("  (built before)" if built.reused else ""))
    print(f"Report     {storage.join(built.uri, 'report.html')}")


@app.command()
def show(uri: UriArgument, as_json: JsonOption = False) -> None:
    """Tell what a cascade is: its bundles, its threshold, and what the validation split said.

    Example: kubevox cascade show .kubevox/store/cascades/HASH
    """
    from kubevox.models.cascade import read_cascade

    spec, digest = read_cascade(uri)
    if as_json:
        print(json.dumps({"uri": uri.rstrip("/"), "hash": digest, **spec.model_dump(mode="json")}))
        return
    print(f"Cascade    {digest}\nTask       {spec.task}: {', '.join(spec.labels)}\nSplit      {spec.split_hash}")
    _tell(spec)


@app.command()
def export(
    uri: UriArgument,
    folder: Annotated[
        str, typer.Argument(help="Where to: a folder that is not there yet, or s3://bucket/prefix.", show_default=False)
    ],
) -> None:
    """Copy a cascade with both bundles into a folder that needs nothing else: what a pod is brought.

    Example: kubevox cascade export .kubevox/store/cascades/HASH s3://models/emotion
    """
    from kubevox.models.cascade import export as export_cascade

    print(export_cascade(uri, folder))


def _champion(settings: Config) -> str:
    """The URI of the registry's champion; asking makes no database."""
    tracking = settings.tracking.uri
    if not tracking.startswith("sqlite:///") or Path(tracking.removeprefix("sqlite:///")).exists():
        from kubevox.registry import Registry

        if champion := Registry(tracking).champion(settings.registered_model):
            return champion.bundle_uri
    raise RegistryError(
        f"no champion of {settings.registered_model} in {tracking}; train one: make run TASK={settings.task.name}, or "
        "name a bundle with --premium"
    )


def _mini_section(settings: Config) -> MiniConfig:
    if settings.mini is None:
        raise ConfigError("mini: the configuration has none; add the section, or name a bundle with --mini")
    return settings.mini


def _margin(settings: Config) -> float:
    from kubevox.config import MiniConfig

    return settings.mini.margin if settings.mini else MiniConfig.model_fields["margin"].default


def _extracted(
    settings: Config, split: Split, frontend: FrontendConfig, recipes: Sequence[str], store: str
) -> list[str]:
    """The indexes of a frontend's features, a shard each; what the store has is not computed again."""
    from kubevox.features.blocks import extract_shard

    features = settings.features.model_copy(update={"frontends": {"mine": frontend}})
    plan = {"mine": list(dict.fromkeys(recipes))}
    return [extract_shard(shard, split.split_of, features, plan, store).uri for shard in split.dataset.shard_uris]


def _trained(settings: Config, section: MiniConfig, split: Split, blocks: list[str], store: str) -> str:
    """The small model's bundle: trained now, taken up where it was ended, or known."""
    from kubevox.progress import note
    from kubevox.training.loop import train

    done = train(
        split.uri,
        blocks,
        section.model,
        section.train,
        settings.features,
        settings.data.limits,
        store,
        settings.tracking.uri,
        settings.experiment,
    )
    best = done.history[done.best_epoch - 1]
    note(
        f"mini: {section.model.architecture}, best of {len(done.history)} epochs is {done.best_epoch}, validation UAR "
        f"{best['val_uar']:.3f}" + (" (trained before)" if done.reused else "")
    )
    return done.bundle_uri


def _tell(spec: CascadeSpec, bundles: Sequence[Bundle] = ()) -> None:
    from kubevox.page import SYNTHETIC_NOTICE

    found = spec.figures
    if spec.synthetic:
        print(f"{SYNTHETIC_NOTICE}\n")
    sizes = [f"{bundle.spec.parameters:,} parameters" for bundle in bundles] or ["", ""]
    rows = [["", "bundle", "UAR", "accuracy", "ms", ""]]
    rows.append(["mini", spec.mini[:_SHORT], *_cells(found.mini_uar, found.mini_accuracy, found.mini_ms), sizes[0]])
    rows.append(
        [
            "premium",
            spec.premium[:_SHORT],
            *_cells(found.premium_uar, found.premium_accuracy, found.premium_ms),
            sizes[1],
        ]
    )
    rows.append(["cascade", "", *_cells(found.uar, found.accuracy, found.mean_ms), ""])
    _print_table(rows)
    share, interval = f"{found.premium_share:.0%}", f"[{found.difference_low:+.3f}, {found.difference_high:+.3f}]"
    print(f"\nThreshold  {spec.threshold:.4g}: {share} of {found.recordings} validation recordings go to premium")
    print(
        f"Difference {found.difference:+.3f}  {interval} UAR to premium alone, {spec.confidence:.0%} over "
        f"{found.speakers} speakers; margin {spec.margin:g}"
    )
    for remark in spec.remarks:
        print(f"Remark     {remark}")


def _print_curve(curve: Curve, chosen: float) -> None:
    """The curve at some shares, and the point that was chosen."""
    points = {min(curve.points, key=lambda point: abs(point.premium_share - share)) for share in _SHOWN_SHARES}
    points |= {point for point in curve.points if point.threshold == chosen}
    rows = [["", "threshold", "to premium", "UAR", "accuracy", "mean ms"]]
    for point in sorted(points, key=lambda point: point.threshold):
        mark = "*" if point.threshold == chosen else ""
        cells = _cells(point.uar, point.accuracy, point.mean_ms)
        rows.append([mark, f"{point.threshold:.4f}", f"{point.premium_share:.0%}", *cells])
    _print_table(rows)


def _cells(uar: float, accuracy: float, cost_ms: float) -> list[str]:
    return [f"{uar:.3f}", f"{accuracy:.3f}", f"{cost_ms:.2f}"]


def _print_table(rows: Sequence[Sequence[Any]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    sys.stdout.flush()
