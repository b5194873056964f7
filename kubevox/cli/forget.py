"""``kubevox data forget``: take a person out of a dataset, and out of the whole store."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kubevox.cli.options import DEFAULT_CONFIG, SetOption, load
from kubevox.errors import StorageError

if TYPE_CHECKING:
    from kubevox.data.dataset.forgetting import Forgotten
    from kubevox.erasure import Erased, Holdings, TrainedModel

__all__ = ["forget"]


def forget(
    speakers: Annotated[
        list[str],
        typer.Argument(
            metavar="SPEAKER...",
            help="Pseudonyms (ravdess:5f0c2b71d9aa), or the corpus' own ids (ravdess:01).",
            show_default=False,
        ),
    ],
    config: Annotated[Path, typer.Option("--config", help="The configuration that names store and dataset.")] = (
        DEFAULT_CONFIG
    ),
    set_: SetOption = None,
    store: Annotated[str | None, typer.Option("--store", help="Another store than the configuration's.")] = None,
    erase: Annotated[
        bool, typer.Option("--erase", help="Also purge everything in the store that holds them, of any version.")
    ] = False,
    models: Annotated[
        bool, typer.Option("--models", help="With --erase: also delete the bundles trained on them, but no champion.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --erase: do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a version of the dataset without some people, and name the models that were trained on them.

    They are left out when their corpora are ingested again. Older versions stay, unless --erase purges them with all
    that was made of them: shards, features, splits, checkpoints, evaluations. Without --yes it is shown first, and
    asked for. No other stage may work in the store meanwhile. Exits with 1 where a speaker is not there, or something
    that was asked for could not be done.
    """
    if models and not erase:
        raise typer.BadParameter("needs --erase", param_hint="--models")
    settings = load(config, set_)
    from kubevox import erasure, storage
    from kubevox.data.dataset import history
    from kubevox.data.dataset.forgetting import Suppressed
    from kubevox.data.dataset.forgetting import forget as forget_in

    place = storage.absolute(store or settings.store)
    tracking = settings.tracking.uri
    names, pseudonyms = _identified(place, settings.data.name, speakers, erase)
    people = list(pseudonyms.values())
    if not as_json:
        for asked, pseudonym in pseudonyms.items():
            if asked != pseudonym:
                print(f"{asked} is {pseudonym} in this store")
    key = names.fingerprint if names else None
    ids = erasure.recordings(place, people)
    trained = erasure.trained_on(place, tracking, people, ids, key)
    kept = [model for model in trained if model.champion]
    champions = {model.bundle for model in kept}
    bundles = sorted({model.bundle for model in trained if models and not model.doubt} - champions)
    bundles = [uri for uri in bundles if storage.absolute(uri).startswith(f"{place}/bundles/")]
    if erase and not yes:
        _confirm(erasure.holdings(place, people, bundles), trained, bundles, as_json)
    Suppressed(place, names).add(people)
    datasets = history.names(place) if erase else [settings.data.name]
    done = [made for name in datasets if (made := forget_in(place, name, people, names, ids))]
    erased = erasure.erase(place, people, bundles) if erase else None
    left = erasure.out_of_reach(place, tracking, trained)
    refused = [f"{model.bundle}: the champion of {model.name}" for model in kept] if models else []
    if as_json:
        print(json.dumps(_told(pseudonyms, done, trained, bundles, erased, left, refused), indent=2))
    else:
        _print_versions(done)
        _print_models(trained, bundles)
        if erased:
            _print_erased(erased)
            print("out of reach:", *left, sep="\n  ")
    for line in refused:
        print(f"error: {line}; not deleted: promote a model without them first", file=sys.stderr)
    if refused or (erased and erased.unreadable):
        sys.exit(1)


def _identified(place: str, dataset: str, asked: list[str], erase: bool) -> tuple[Any, dict[str, str]]:
    """What makes the store's pseudonyms, and the pseudonym of each person who was asked for."""
    from kubevox import erasure
    from kubevox.data.dataset import history, resolve
    from kubevox.data.dataset.forgetting import Suppressed, identify, speakers_of
    from kubevox.data.pseudonyms import Pseudonyms

    names = Pseudonyms.of_store(place)
    known = set()
    if erase:
        known = erasure.people(place)
    if not erase or history.current(place, dataset):
        version = resolve(place, dataset, "current")
        known |= speakers_of(version)
        where = f"version {version.hash[:12]} of dataset {dataset!r}"
    else:
        where = f"dataset {dataset!r}"
    suppressed = Suppressed(place, names)
    pseudonyms = {}
    for one in asked:
        pseudonym = identify(one, known, names, suppressed)
        if pseudonym is None:
            hint = "" if erase else "; with --erase older versions are searched as well"
            raise StorageError(f"speaker {one}: not in {'any version' if erase else where} in {place}{hint}")
        pseudonyms[one] = pseudonym
    return names, pseudonyms


def _confirm(found: Holdings, trained: list[TrainedModel], bundles: list[str], as_json: bool) -> None:
    """Show what would go, and ask; without a terminal, refuse."""
    to = sys.stderr if as_json else sys.stdout
    print(f"would be purged: {_counts(found.counts)} ({_size(found.bytes)}), for good", file=to)
    for path, (_, size) in found.objects.items():
        print(f"  {path}  {_size(size)}", file=to)
    for path in found.rewritten:
        print(f"  {path}  written again without them", file=to)
    if not as_json:
        _print_models(trained, bundles)
    if not sys.stdin.isatty():
        raise StorageError("nothing was purged: there is no terminal to ask at; add --yes")
    if not typer.confirm("purge all of that?", err=as_json):
        raise StorageError("nothing was purged")


def _print_versions(done: list[Forgotten]) -> None:
    for made in done:
        copies = f", {made.copies} of them the same audio under another name" if made.copies else ""
        print(
            f"dataset {made.dataset!r}: version {made.after.hash[:12]} is current, without {made.utterances} recordings"
            f"{copies} and {made.rejects} rejects ({made.shards} of {len(made.before.shards)} shards written again); "
            f"it was {made.before.hash[:12]}"
        )
    if not done:
        print("the current version held nothing of them")


def _print_models(trained: list[TrainedModel], bundles: list[str]) -> None:
    print(f"models trained on them or chosen by them: {len(trained) or 'none'}")
    for model in trained:
        name = f"{model.name} version {model.version}" if model.name else "not registered"
        champion = ", champion" if model.champion else ""
        gone = "its bundle goes from the store" if model.bundle in bundles else ""
        advice = [gone, model.advice if model.name or not gone else ""]
        print(f"  {name}{champion}  {model.bundle}\n    {'; '.join(filter(None, advice))}")


def _print_erased(erased: Erased) -> None:
    print(f"purged: {_counts(erased.counts)} ({_size(erased.bytes)})")
    if erased.orphans:
        print(
            f"{len(erased.orphans)} objects list recordings that no shard holds any more, nobody can say whose:",
            *erased.orphans,
            sep="\n  ",
        )
    for path in erased.unreadable:
        print(f"error: {path}: cannot be opened, so that nobody can say whom it holds; delete it", file=sys.stderr)


def _told(
    pseudonyms: dict[str, str],
    done: list[Forgotten],
    trained: list[TrainedModel],
    bundles: list[str],
    erased: Erased | None,
    left: list[str],
    refused: list[str],
) -> dict[str, Any]:
    told: dict[str, Any] = {
        "speakers": pseudonyms,
        "datasets": [
            {
                "name": made.dataset,
                "before": made.before.hash,
                "after": made.after.hash,
                "utterances": made.utterances,
                "copies": made.copies,
                "rejects": made.rejects,
            }
            for made in done
        ],
        "models": [{**asdict(model), "advice": model.advice, "deleted": model.bundle in bundles} for model in trained],
    }
    if erased:
        told |= {"erased": asdict(erased), "out_of_reach": left, "refused": refused}
    return told


def _counts(counts: Any) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "nothing"


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"
