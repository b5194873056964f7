"""``kubevox data corpora``, ``download`` and ``card``: which corpora there are, how to get one, what one is."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kubevox.cli.options import fail, load
from kubevox.errors import ConfigError, CorpusError

if TYPE_CHECKING:
    from kubevox.data.corpora import Corpus

__all__ = ["app"]

app = typer.Typer(help="Which corpora there are, how to get one, what one is.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="A corpus, as `kubevox data corpora` names it.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_SHIPPED = (Path("configs/emotion.yaml"), Path("configs/language.yaml"))


@app.command()
def corpora(
    as_json: JsonOption = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/corpora.md.")] = False,
) -> None:
    """List the corpora that a configuration can name under data.corpora.

    A corpus that can be downloaded is fetched by `kubevox data download`, or by a run whose configuration sets its key
    download. The licence is the recordings': it binds whoever uses them, and often whoever uses what was trained on
    them.

    Example: kubevox data corpora
    """
    from kubevox.data.cards import overview, overview_table
    from kubevox.data.corpora import corpus_class, corpus_names

    kinds = [corpus_class(name) for name in corpus_names()]
    lines = [overview(kind) for kind in kinds]
    if as_json:
        print(json.dumps([asdict(line) for line in lines], ensure_ascii=False))
        return
    if markdown:
        print(overview_table(kinds))
        return
    rows = [["name", "title", "languages", "recordings", "download", "licence"]]
    for line in lines:
        languages, count = ", ".join(line.languages) or "by choice", str(line.recordings or "-")
        rows.append([line.name, line.title, languages, count, "yes" if line.download else "no", line.licence])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def download(
    name: NameArgument,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="A new or empty folder, or that of an earlier download; by default in the cache."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="An option of the corpus, such as locales=[da_dk]; can be repeated."),
    ] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep archives in .downloads when they are unpacked.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Download a corpus from its official source, verify and unpack it.

    Its licence, citation and terms are said first. What was interrupted goes on where it was when the command is run
    again; what is there is not fetched again. Where the source states no checksum, that of the first download is kept
    and compared later.

    Prints the folder, which is what a configuration names as the corpus' path.

    Example: kubevox data download ravdess --to /data/RAVDESS
    """
    from kubevox.data.corpora.downloads import default_folder, download_corpus, how_to_get

    corpus = _opened(name, option or [])
    if not corpus.needs_path:
        raise CorpusError(f"corpus {name}: there is nothing to download; it is made on this machine")
    if not corpus.downloads:
        raise CorpusError(f"corpus {name}: cannot be downloaded by itself; how to get it: {how_to_get(corpus)}")
    folder = download_corpus(corpus, _absolute(to) or default_folder(corpus), keep_archives=keep_archives)
    if as_json:
        about = {"name": name, "path": str(folder), "licence": corpus.licence, "citation": corpus.citation}
        print(json.dumps(about, ensure_ascii=False))
    else:
        print(folder)


@app.command()
def card(
    name: NameArgument,
    dataset: Annotated[
        str | None, typer.Option(help="The URI of a dataset version: what was found in it, beside what is published.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="The URI of its validation: what was refused, and the audio's quality.")
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            "--config",
            help="A configuration whose task maps the corpus' labels; can be repeated; by default the shipped.",
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="The file to write; by default the card is printed.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a corpus' data card: what it holds, how its labels map onto tasks, its licence, whose voices it has.

    The cards in docs/data-cards are those of the code alone. With a dataset, a card also has the counts that differ
    from the published ones, hours, rates, speakers and labels.

    Example: kubevox data card emodb --dataset STORE/datasets/HASH --to emodb.md
    """
    from kubevox.data.cards import card as data_card
    from kubevox.data.cards import overview
    from kubevox.data.corpora import corpus_class

    kind = corpus_class(name, "kubevox data card")
    files = config if config is not None else [file for file in _SHIPPED if file.exists()]
    tasks = [load(file, None).task for file in files]
    version = found = None
    if validation is not None and dataset is None:
        fail(ConfigError("--validation: name the dataset version that it is of as --dataset"), 2)
    if dataset is not None:
        from kubevox.data.dataset import load_dataset

        version = load_dataset(dataset)
    if version is not None and validation is not None:
        from kubevox.data.validation import load_validation

        found = load_validation(validation)
        if found.dataset_hash != version.hash:
            fail(ConfigError(f"--validation {validation}: of another dataset version than {dataset}"), 2)
    text = data_card(kind, version, found, tasks)
    if to is not None:
        _write(to, text)
    if as_json:
        print(json.dumps({**asdict(overview(kind)), "card": text, "file": str(to) if to else None}, ensure_ascii=False))
    elif to is None:
        print(text, end="")
    else:
        print(to)


def _opened(name: str, options: list[str]) -> Corpus:
    """The corpus with its options, checked as a configuration's are; it need not be there."""
    import yaml

    from kubevox.config import CorpusSource
    from kubevox.data.corpora import corpus_class, open_corpus

    corpus_class(name, "kubevox data download")
    given = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"--option {option}: expected name=value")
        try:
            given[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--option {option}: the value is not valid YAML") from None
    return open_corpus(CorpusSource(name=name, path=os.curdir, options=given), "--option")


def _absolute(folder: Path | None) -> Path | None:
    return folder.expanduser().absolute() if folder is not None else None


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--to {file}: cannot be written ({error.strerror or error})") from None
