"""``kubevox data``: from corpora to versions of a dataset, what arrives later, and looking after all of it."""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kubevox.cli.corpora import app as corpora_app
from kubevox.cli.forget import forget
from kubevox.cli.options import DEFAULT_CONFIG, SetOption, fail, load
from kubevox.cli.versions import ConfigOption, JsonOption, StoreOption, store_of
from kubevox.cli.versions import app as versions_app
from kubevox.errors import ConfigError, KubevoxError

if TYPE_CHECKING:
    from kubevox.config import Config
    from kubevox.data.dataset.growth import Grown, Window

__all__ = ["app"]

app = typer.Typer(
    help="Corpora, and the versions of a dataset that is made of them.\n\n"
    "A run ingests by itself. To train on what was added since: data.version=current.",
    no_args_is_help=True,
)

CorporaOption = Annotated[
    str | None,
    typer.Option(
        "--corpora",
        help='Corpora in place of the configuration\'s, as "name=folder" separated by spaces: "ravdess=/data/RAVDESS".',
    ),
]
MaxAgeOption = Annotated[
    int | None, typer.Option("--max-age-days", min=1, help="Drop batches that were recorded, or added, longer ago.")
]
MaxUtterancesOption = Annotated[
    int | None,
    typer.Option("--max-utterances", min=1, help="Drop the oldest batches until so many recordings are left."),
]
KeepFirstOption = Annotated[
    bool, typer.Option("--keep-first", help="Never drop the batch that the dataset began with.")
]


@app.command()
def ingest(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    corpora: CorporaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring corpora into the store as a version of the dataset, as the pipeline's first step does.

    Unchanged sources are recognised without being read; new content becomes the current version. What was ended
    half-way goes on where it was. Prints the version's URI.

    Example: kubevox data ingest --corpora "ravdess=/data/RAVDESS emodb=/data/emodb.zip"
    """
    settings, place = _settings(config, set_, store, corpora)
    from kubevox.data.dataset import history
    from kubevox.data.dataset import ingest as ingest_corpora

    version, reused = ingest_corpora(settings.data, place)
    current = history.current(place, settings.data.name) == version.hash
    if as_json:
        told = {
            "hash": version.hash,
            "uri": version.uri,
            "reused": reused,
            "current": current,
            "utterances": version.utterances,
            "rejects": version.rejects,
            "hours": version.hours,
        }
        print(json.dumps(told))
        return
    print(
        f"version {version.hash[:12]}{', which was there already' if reused else ''}: "
        f"{version.utterances:,} recordings, {version.hours:.2f} h, {version.rejects} could not be decoded",
        file=sys.stderr,
    )
    if not current:
        print("another version is current; kubevox data list shows which", file=sys.stderr)
    print(version.uri)


@app.command()
def validate(
    version: Annotated[str, typer.Argument(help="current, or the beginning of a version's hash.")] = "current",
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every recording of a version against the configuration's expectations, as the pipeline's second step does.

    Prints where the report is. Exits with 1 where more is quarantined than validation.max_quarantined_share allows.

    Example: kubevox data validate --set validation.vad=true
    """
    settings, place = _settings(config, set_, store, None)
    from kubevox.data.dataset import resolve
    from kubevox.data.validation import validate as validate_version

    found = validate_version(resolve(place, settings.data.name, version), settings.run_task, settings.validation, place)
    if as_json:
        print(json.dumps({**asdict(found), "report": found.report_uri}, ensure_ascii=False))
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in found.reasons.items())
    print(
        f"{found.utterances:,} recordings: {found.accepted:,} accepted, {found.quarantined:,} quarantined"
        f"{f' ({reasons})' if reasons else ''}; {found.rejects:,} could not be decoded before",
        file=sys.stderr,
    )
    print(found.report_uri)


@app.command()
def add(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="The batch: a folder of recordings, with its recordings.csv where it has one.", show_default=False
        ),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="The batch's name; by default the folder's. Each batch needs its own.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    corpora: CorporaOption = None,
    recorded: Annotated[
        datetime.datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The day of the recordings, for windows; by default today."),
    ] = None,
    max_age_days: MaxAgeOption = None,
    max_utterances: MaxUtterancesOption = None,
    keep_first: KeepFirstOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add a batch of new recordings to the current version, as a new version on top of it.

    Nothing that is there is copied: the new version lists the old shards beside the batch's own. The same batch added
    again changes nothing. With a window, old batches are dropped in the same step.

    Example: kubevox data add arriving/batch-03 --max-age-days 90 --keep-first
    """
    settings, place = _settings(config, set_, store, corpora, folder)
    name = batch or (folder.resolve().name if folder else None)
    if name is None:
        raise typer.BadParameter("needed where no folder is given", param_hint="--batch")
    from kubevox.data.dataset.growth import add as add_batch

    window = _window(max_age_days, max_utterances, keep_first)
    grown = add_batch(settings.data, place, name, recorded.date() if recorded else None, window)
    if grown.added is None and not as_json:
        why = "is so old that the window drops it" if not _has(grown, name) else "was there already"
        print(f"batch {name!r} {why}")
    _print_grown(grown, as_json)


@app.command()
def window(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    max_age_days: MaxAgeOption = None,
    max_utterances: MaxUtterancesOption = None,
    keep_first: KeepFirstOption = False,
    as_json: JsonOption = False,
) -> None:
    """Drop old batches from the current version, as a new version without them; whole batches go, oldest first.

    Older versions stay as they are, until `kubevox data gc` removes them.

    Example: kubevox data window --max-utterances 20000 --keep-first
    """
    limits = _window(max_age_days, max_utterances, keep_first)
    if limits is None:
        raise typer.BadParameter("one of them is needed", param_hint="--max-age-days or --max-utterances")
    place, name = store_of(config, set_, store)
    from kubevox.data.dataset.growth import slide

    _print_grown(slide(place, name, limits), as_json)


@app.command()
def simulate(
    to: Annotated[Path, typer.Option("--to", help="The folder to make the batches in.", show_default=False)],
    batches: Annotated[int, typer.Option(min=1, help="How many batches.")] = 5,
    size: Annotated[int, typer.Option(min=1, help="Recordings in each.")] = 40,
    base: Annotated[int, typer.Option(min=0, help="Recordings of a folder `base` to begin a dataset with.")] = 0,
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    corpora: CorporaOption = None,
    noise_snr_db: Annotated[
        float | None, typer.Option("--noise-snr-db", help="Add noise, so many dB below speech.")
    ] = None,
    noise: Annotated[str, typer.Option(help="white or pink.")] = "white",
    band_limit_hz: Annotated[
        float | None, typer.Option("--band-limit-hz", help="Take away what is higher; a telephone ends at 3400.")
    ] = None,
    class_shift: Annotated[
        str | None, typer.Option(help="Shares of labels, such as angry=0.6,sad=0.1; the others keep their proportions.")
    ] = None,
    start_at: Annotated[int, typer.Option(help="The first batch that differs; those before are as the corpus is.")] = 1,
    seed: Annotated[int, typer.Option(help="Another seed, other recordings.")] = 0,
    audio: Annotated[str, typer.Option(help="flac or wav.")] = "flac",
    as_json: JsonOption = False,
) -> None:
    """Make arriving batches out of corpora, to try a monitoring loop on: some like the corpora, then some that differ.

    No recording is in two batches. Each batch is a folder with recordings.csv, for `kubevox data add`. Begin the
    dataset with the folder `base` (--base): a recording that a dataset has already is quarantined as a duplicate.

    Example: kubevox data simulate --to arriving --base 400 --batches 6 --noise-snr-db 10 --start-at 4
    """
    settings, _ = _settings(config, set_, None, corpora)
    from kubevox.data.dataset.simulation import Shift
    from kubevox.data.dataset.simulation import simulate as make_batches

    shift = Shift(noise_snr_db, _one_of("--noise", noise, "white", "pink"), band_limit_hz, _shares(class_shift))
    form = _one_of("--audio", audio, "flac", "wav")
    made = make_batches(settings.data, settings.run_task, to, batches, size, shift, start_at, base, seed, form)
    if as_json:
        print(json.dumps([asdict(one) for one in made], ensure_ascii=False))
        return
    for one in made:
        labels = ", ".join(f"{label} {count}" for label, count in one.labels.items())
        print(f"{one.path}  {one.recordings} recordings  {'shifted' if one.shifted else 'clean'}  {labels}")


@app.command()
def where(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Source ids, as reports name them.", show_default=False)
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    corpora: CorporaOption = None,
    batch: Annotated[str | None, typer.Option(help="The batch that they came with, where it was added later.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="That batch's folder; without it the configuration's corpora are searched.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which files some stored source ids are: needs the key that the names are hidden under, and the corpora.

    Exits with 1 where one is not found; the others are told all the same.

    Example: kubevox data where ravdess:1b2c5e0a9d7f41c3b8e6
    """
    settings, place = _settings(config, set_, store, corpora, folder)
    from kubevox.data.dataset.ingestion import survey

    name = batch or (folder.resolve().name if folder else None)
    places = survey(settings.data, place, name).places
    found = {id: places[id].origin for id in ids if id in places}
    if as_json:
        print(json.dumps({id: found.get(id) for id in ids}, ensure_ascii=False))
    else:
        for origin in found.values():
            print(origin)
    names = ", ".join(source.name for source in settings.data.corpora)
    for id in ids:
        if id not in found:
            print(f"error: {id}: none of the recordings of {names} under this key", file=sys.stderr)
    if len(found) < len(set(ids)):
        sys.exit(1)


app.add_typer(versions_app)
app.command()(forget)
app.add_typer(corpora_app)


def _settings(
    config: Path, set_: list[str] | None, store: str | None, corpora: str | None, folder: Path | None = None
) -> tuple[Config, str]:
    """The configuration, with the corpora that the command names in place of its own; and the store."""
    settings = load(config, set_)
    from kubevox import storage
    from kubevox.config import CorpusSource, corpus_source
    from kubevox.data.corpora import open_corpus

    try:
        if folder is not None and corpora is not None:
            raise ConfigError("a folder and --corpora: name one of them")
        sources = settings.data.corpora
        if folder is not None:
            listed = (folder / "recordings.csv").is_file()
            by = settings.task.label_column
            options = {"csv": "recordings.csv", "label_is": by} if listed else {"label_is": by}
            sources = [CorpusSource(name="folder", path=str(folder), options=options)]
        elif corpora is not None:
            sources = [corpus_source(word, settings.data.corpora) for word in corpora.split()]
            if not sources:
                raise ConfigError("--corpora: names none; expected name=folder, such as ravdess=/data/ravdess")
        if sources is not settings.data.corpora:
            data = settings.data.model_copy(update={"corpora": sources, "version": None})
            settings = settings.model_copy(update={"data": data})
        for source in sources:
            open_corpus(source, str(config))
    except KubevoxError as error:
        fail(error, 2)
    return settings, storage.absolute(store or settings.store)


def _window(max_age_days: int | None, max_utterances: int | None, keep_first: bool) -> Window | None:
    if max_age_days is None and max_utterances is None:
        if keep_first:
            raise typer.BadParameter("needs --max-age-days or --max-utterances", param_hint="--keep-first")
        return None
    from kubevox.data.dataset.growth import Window

    return Window(max_age_days, max_utterances, keep_first)


def _has(grown: Grown, batch: str) -> bool:
    return any(one["name"] == batch for one in grown.after.batches)


def _print_grown(grown: Grown, as_json: bool) -> None:
    before, after = grown.before, grown.after
    if as_json:
        told = {
            "before": before.hash,
            "after": after.hash,
            "uri": after.uri,
            "added": grown.added,
            "dropped": list(grown.dropped),
            "utterances": after.utterances,
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    if after.hash == before.hash:
        print(f"version {after.hash[:12]} stays current, with {after.utterances:,} recordings")
        return
    if grown.added:
        failed = sum(count["failed"] for count in grown.added["counts"])
        less = f", {failed} could not be decoded" if failed else ""
        print(f"batch {grown.added['name']!r}: {grown.added['utterances']:,} recordings{less}")
    if grown.dropped:
        print(f"dropped: {', '.join(grown.dropped)}")
    print(
        f"version {after.hash[:12]} is current, with {after.utterances:,} recordings in {len(after.batches)} batches; "
        f"it was {before.hash[:12]}"
    )


def _shares(text: str | None) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in text.split(",") if text else ():
        label, _, share = part.partition("=")
        try:
            shares[label.strip()] = float(share)
        except ValueError:
            raise typer.BadParameter(
                f"{part!r}: expected label=share, such as angry=0.6", param_hint="--class-shift"
            ) from None
    return shares


def _one_of(option: str, value: str, *allowed: str) -> Any:
    if value not in allowed:
        raise typer.BadParameter(f"{value!r}: expected {' or '.join(allowed)}", param_hint=option)
    return value
