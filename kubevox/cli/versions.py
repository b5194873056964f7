"""``kubevox data list``, ``show``, ``diff``, ``verify``, ``rollback`` and ``gc``: the versions of a dataset."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kubevox.cli.options import DEFAULT_CONFIG, SetOption, load

if TYPE_CHECKING:
    from kubevox.data.dataset import DatasetVersion
    from kubevox.data.dataset.comparison import Difference

__all__ = ["ConfigOption", "JsonOption", "StoreOption", "app", "store_of"]

app = typer.Typer(help="The versions of a dataset.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="The configuration that names store and dataset.")]
StoreOption = Annotated[str | None, typer.Option("--store", help="Another store than the configuration's.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
VersionArgument = Annotated[str, typer.Argument(help="current, or the beginning of a version's hash.")]
_SHORT = 12


@app.command("list")
def list_(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All versions in the store, of any dataset.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List a dataset's versions, oldest first; * is the current one.

    Versions are named by their content: ingesting the same recordings again makes no new one.

    Example: kubevox data list
    """
    from kubevox.data.dataset.upkeep import list_versions

    place, name = store_of(config, set_, store)
    listed = list_versions(place, None if everything else name)
    if as_json:
        summaries = [
            {**_summary(one.version), "datasets": list(one.datasets), "current": list(one.current)} for one in listed
        ]
        print(json.dumps(summaries, ensure_ascii=False))
        return
    if not listed:
        of = "" if everything else f" of dataset {name!r}"
        print(f"{place}: no version{of} yet; kubevox data ingest makes the first", file=sys.stderr)
        return
    rows = [["", "version", "created (UTC)", "by", "recordings", "hours", "batches", *(["dataset"] * everything)]]
    for one in listed:
        told = _summary(one.version)
        rows.append(
            [
                "*" if name in one.current or (everything and one.current) else "",
                told["hash"][:_SHORT],
                _minute(told["created"]),
                told["operation"],
                f"{told['utterances']:,}",
                f"{told['hours']:.2f}",
                str(len(one.version.batches)),
                *([", ".join(one.datasets) or "-"] if everything else []),
            ]
        )
    _print_table(rows)


@app.command()
def show(
    version: VersionArgument = "current",
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    shards: Annotated[bool, typer.Option("--shards", help="Also name the shards, a URI each.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell what a version holds: its corpora beside what is published, its batches, and where it comes from.

    Example: kubevox data show 4c6e2f --shards
    """
    from kubevox.data.dataset import history, resolve

    place, name = store_of(config, set_, store)
    found = resolve(place, name, version)
    current = [one for one in history.names(place) if history.current(place, one) == found.hash]
    if as_json:
        told = {
            **_summary(found),
            "current": current,
            "synthetic": found.synthetic,
            "key_fingerprint": found.key_fingerprint,
            "corpora": list(found.corpora),
            "batches": list(found.batches),
            "lineage": found.lineage,
            "shards": found.shard_uris,
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    lineage, size = found.lineage, sum(shard.bytes for shard in found.shards)
    print(f"version     {found.hash}" + (f"  (current of {', '.join(current)})" if current else ""))
    print(f"made        {_minute(lineage.get('created', ''))} UTC by {lineage.get('operation', '?')}", end="")
    print(f" from {lineage['parent'][:_SHORT]}" if lineage.get("parent") else "", end="")
    print(f", kubevox {lineage.get('kubevox', '?')}, commit {lineage.get('commit', '?')[:_SHORT]}")
    print(
        f"recordings  {found.utterances:,}, {found.hours:.2f} h, {len(found.shards)} shards, {size / 1e6:.1f} MB",
        end="",
    )
    print(f"; {found.rejects} could not be decoded" if found.rejects else "")
    print(f"names       {_names(found)}")
    print("corpora")
    _print_table([_corpus_row(corpus) for corpus in found.corpora], indent=2)
    print("batches")
    _print_table([_batch_row(batch) for batch in found.batches], indent=2)
    if shards:
        print("shards", *found.shard_uris, sep="\n  ")


@app.command()
def diff(
    before: Annotated[
        str, typer.Argument(help="A version: current, or the beginning of its hash.", show_default=False)
    ],
    after: VersionArgument = "current",
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the source ids.")] = False,
) -> None:
    """Compare two versions, recording by recording: what the second has more, has no more, and has otherwise.

    Example: kubevox data diff 4c6e2f current
    """
    from kubevox.data.dataset import resolve
    from kubevox.data.dataset.comparison import compare

    place, name = store_of(config, set_, store)
    found = compare(resolve(place, name, before), resolve(place, name, after))
    if as_json:
        print(json.dumps(_told(found), ensure_ascii=False))
        return
    print(f"from {found.before.hash[:_SHORT]} ({found.before.utterances:,}) ", end="")
    print(f"to {found.after.hash[:_SHORT]} ({found.after.utterances:,} recordings)")
    for what, rows in (
        ("added", found.added),
        ("removed", found.removed),
        ("changed", [change.after for change in found.changed]),
    ):
        print(f"{what}  {len(rows):,}")
        for column, counts in found.counts(rows).items() if rows else ():
            more = f", and {len(counts) - 8} more" if len(counts) > 8 else ""
            print(f"  by {column}: " + ", ".join(f"{name} {n:,}" for name, n in list(counts.items())[:8]) + more)
    for change in found.changed[:20]:
        fields = [
            f"{name} {getattr(change.before, name)} -> {getattr(change.after, name)}" if name != "id" else "other audio"
            for name in change.fields
        ]
        print(f"  {change.after.source_id}: {', '.join(fields)}")
    if len(found.changed) > 20:
        print(f"  and {len(found.changed) - 20} more; --json lists them")


@app.command()
def verify(
    version: VersionArgument = "current",
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read all of a version and compare it with the hashes that it is named by; exits with 1 where it is damaged.

    Of a bucket everything is fetched anew, past the cache.

    Example: kubevox data verify
    """
    from kubevox.data.dataset import resolve
    from kubevox.data.dataset.upkeep import verify as verify_version

    place, name = store_of(config, set_, store)
    found = verify_version(resolve(place, name, version))
    if as_json:
        told = {
            "hash": found.version.hash,
            "utterances": found.version.utterances,
            "sound": found.recordings,
            "damages": list(found.damages),
            "gone": found.gone,
        }
        print(json.dumps(told, ensure_ascii=False))
    else:
        gone = f"; {found.gone} older entries of histories name versions that were removed" if found.gone else ""
        print(
            f"version {found.version.hash[:_SHORT]}: {found.recordings:,} of {found.version.utterances:,} recordings "
            f"in {len(found.version.shards)} shards are what their ids say{gone}"
        )
    for line in found.damages:
        print(f"error: {line}", file=sys.stderr)
    if found.damages:
        sys.exit(1)


@app.command()
def rollback(
    version: Annotated[str, typer.Argument(help="The beginning of an older version's hash.", show_default=False)],
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an older version the current one; nothing is removed, and the way back is another rollback.

    A version with somebody who was forgotten since is refused.

    Example: kubevox data rollback 4c6e2f
    """
    from kubevox.data.dataset.upkeep import rollback as roll_back

    place, name = store_of(config, set_, store)
    found, before = roll_back(place, name, version)
    if as_json:
        print(json.dumps({"dataset": name, "before": before, "after": found.hash}))
    elif before == found.hash:
        print(f"dataset {name!r}: version {found.hash[:_SHORT]} is the current one already")
    else:
        print(f"dataset {name!r}: version {found.hash[:_SHORT]} is current; it was {before[:_SHORT]}")


@app.command()
def gc(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    keep: Annotated[
        int, typer.Option(min=1, help="Versions of each dataset that stay: those that were current last.")
    ] = 3,
    min_age_hours: Annotated[
        float, typer.Option(min=0.0, help="What was written later stays: a run may need it that is on its way.")
    ] = 24.0,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this it is only told.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find what nobody needs any more, and remove it with --delete.

    What stays: the last versions of each dataset, and those that a bundle of the store was trained on, with their
    shards, splits, validations and features; everything that is younger than a day; bundles, checkpoints, evaluations,
    rollouts, in any case. What goes: all other versions, shards, splits, validations and features, what stages remember
    of them, and what killed runs left behind.

    Example: kubevox data gc --keep 5
    """
    from kubevox.garbage import collect, find_garbage

    place, _ = store_of(config, set_, store)
    found = find_garbage(place, keep, min_age_hours * 3600)
    swept = collect(found) if delete else []
    if as_json:
        told = {
            "store": place,
            "deleted": delete,
            "bytes": found.bytes,
            "kept": {digest: list(why) for digest, why in found.kept.items()},
            "objects": dict(found.objects),
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    print(f"{len(found.kept)} versions stay in {place}")
    for digest, why in found.kept.items():
        print(f"  {digest[:_SHORT]}  {', '.join(why)}")
    print(f"{'removed' if delete else 'would be removed'}: {len(found.objects):,} objects, {_size(found.bytes)}")
    for kind, (count, size) in found.counts.items():
        print(f"  {kind}  {count:,}  {_size(size)}")
    if found.objects and not delete:
        print("nothing was removed; --delete does it, --json names each")
    if uploads := [one for one in swept if one.startswith("s3://")]:
        print(f"and unfinished uploads: {len(uploads)}")


def store_of(config: Path, set_: list[str] | None, store: str | None) -> tuple[str, str]:
    """The store, and the dataset's name."""
    settings = load(config, set_)
    from kubevox import storage

    return storage.absolute(store or settings.store), settings.data.name


def _summary(version: DatasetVersion) -> dict[str, Any]:
    return {
        "hash": version.hash,
        "uri": version.uri,
        "created": version.lineage.get("created", ""),
        "operation": version.lineage.get("operation", "?"),
        "utterances": version.utterances,
        "rejects": version.rejects,
        "hours": version.hours,
    }


def _names(version: DatasetVersion) -> str:
    if version.key_fingerprint:
        return f"pseudonyms under the key {version.key_fingerprint}"
    return "machines', as they are" if version.synthetic else "as they are"


def _corpus_row(corpus: dict[str, Any]) -> list[str]:
    published = corpus.get("published")
    of = f" of {published['recordings']:,} published" if published else ""
    less = [
        f"{corpus[key]:,} {text}" for key, text in (("left_out", "left out"), ("forgotten", "forgotten")) if corpus[key]
    ]
    less += [f"{corpus['failed']:,} failed"] if corpus["failed"] else []
    people = f"{corpus['speakers']:,} speakers" + (
        f" of {published['speakers']}" if published and published["speakers"] else ""
    )
    labels = ", ".join(f"{label} {count:,}" for label, count in list(corpus["labels"].items())[:10])
    return [
        corpus["name"],
        f"{corpus['found']:,} found{of}",
        ", ".join([*less, f"{corpus['stored']:,} stored"]),
        people,
        labels,
    ]


def _batch_row(batch: dict[str, Any]) -> list[str]:
    when = f"recorded {batch['recorded']}" if batch.get("recorded") else ""
    recordings = f"{batch['utterances']:,} recordings"
    return [batch["name"], f"added {_minute(batch['added'])}", recordings, ", ".join(batch["corpora"]), when]


def _told(found: Difference) -> dict[str, Any]:
    return {
        "before": found.before.hash,
        "after": found.after.hash,
        "added": {"ids": [row.source_id for row in found.added], "counts": found.counts(found.added)},
        "removed": {"ids": [row.source_id for row in found.removed], "counts": found.counts(found.removed)},
        "changed": {
            "ids": [change.after.source_id for change in found.changed],
            "counts": found.counts(change.after for change in found.changed),
            "fields": [
                {name: [getattr(change.before, name), getattr(change.after, name)] for name in change.fields}
                for change in found.changed
            ],
        },
    }


def _print_table(rows: Sequence[Sequence[str]], indent: int = 0) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        print(" " * indent + "  ".join(cells).rstrip())


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
