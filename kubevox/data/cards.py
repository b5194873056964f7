"""Data cards: what a corpus is and may be used for, written from the code and, where there is one, from a dataset.

What a card should tell is Gebru et al. (2021), Datasheets for Datasets, as far as code and counts can know it.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kubevox.config import TaskConfig
from kubevox.data.corpora.base import Corpus, Published
from kubevox.data.languages import LANGUAGES

if TYPE_CHECKING:
    from kubevox.data.dataset import DatasetVersion, Utterance
    from kubevox.data.validation import Row, Validation

__all__ = ["Overview", "card", "overview", "overview_table"]

_VOICE = (
    "The recordings are of people. A voice can tell who speaks: it is personal data (GDPR, Article 4(1)), and "
    "biometric data where it is processed to that end (Articles 4(14) and 9). Kubevox replaces speakers and file names "
    "by keyed hashes and strips what is embedded in files; the voice itself stays, so what it stores is pseudonymised "
    "and not anonymous (recital 26)."
)
_EMOTION = (
    "A system that infers emotions from voices is, in the EU, forbidden at work and in education but for medical and "
    "safety reasons (AI Act, Article 5(1)(f)), high-risk elsewhere (Annex III, 1(c)), and those who are exposed to it "
    "must be told (Article 50(3)). What a model learns from acted emotions is how people act them, not what they feel."
)
_MACHINE = (
    "Nobody's: the voices are made by a machine. What a model scores on them is no evidence about people, and nothing "
    "in them is personal data."
)
_OWN = (
    "Whose recordings they are, on which legal basis they may be processed, and how long they may be kept is for "
    "whoever gives them to say."
)


_SUMS = {"found": "found", "left_out": "left out by a cap", "failed": "failed to decode", "stored": "stored"}


@dataclass(frozen=True)
class Overview:
    """A corpus in a line.

    Attributes:
        name: as ``data.corpora`` says it.
        title: in full.
        languages: ISO 639-1 codes; empty where that is the user's matter.
        recordings: when complete; None where that depends on a release or a choice.
        speakers: likewise; None also where the authors do not count them.
        licence: as the authors state it.
        download: whether Kubevox can fetch it by itself.
    """

    name: str
    title: str
    languages: tuple[str, ...]
    recordings: int | None
    speakers: int | None
    licence: str
    download: bool


def overview(kind: type[Corpus]) -> Overview:
    """A corpus in a line."""
    published = kind.published
    return Overview(
        name=kind.name,
        title=kind.title,
        languages=kind.languages,
        recordings=published.recordings if published else None,
        speakers=len(published.speakers) or None if published else None,
        licence=kind.licence,
        download=bool(kind.downloads),
    )


def overview_table(kinds: Iterable[type[Corpus]]) -> str:
    """The corpora as a table in Markdown; each name leads to its card beside the page."""
    rows = [
        [
            f"[{one.name}](data-cards/{one.name}.md)",
            one.title,
            ", ".join(one.languages) or "by choice",
            str(one.recordings or "-"),
            one.licence,
            "yes" if one.download else "no",
        ]
        for one in map(overview, kinds)
    ]
    return _table(["name", "corpus", "languages", "recordings", "licence", "download"], rows)


def card(
    kind: type[Corpus],
    dataset: DatasetVersion | None = None,
    validation: Validation | None = None,
    tasks: Sequence[TaskConfig] = (),
) -> str:
    """A corpus' data card, in Markdown.

    Args:
        kind: the corpus.
        dataset: a version that holds some of it: the card then has what was found beside what is published.
        validation: of that version: the card then has what was refused, and figures of the audio's quality.
        tasks: the tasks whose labels its own are mapped onto.

    Raises:
        StorageError: the dataset or the validation is missing or damaged.
    """
    sections = [
        f"# {kind.title}",
        _what(kind),
        _facts(kind),
        *_notes(kind),
        *_options(kind),
        *_labels(kind, tasks),
        *_languages(kind, tasks),
        *_speakers(kind.published),
        _personal(kind),
    ]
    if dataset is not None:
        sections += _found(kind, dataset, tasks)
    if validation is not None:
        sections += _quality(kind, validation)
    return "\n\n".join(sections) + "\n"


def _what(kind: type[Corpus]) -> str:
    return _paragraphs(inspect.getmodule(kind).__doc__)[0]


def _facts(kind: type[Corpus]) -> str:
    published = kind.published
    facts = {
        "name in `data.corpora`": f"`{kind.name}`",
        "here": _paragraphs(kind.__doc__)[0],
        "languages": ", ".join(map(_language, kind.languages)) or "by choice",
        "recordings when complete": f"{published.recordings} ({published.source})" if published else "",
        "layout": getattr(kind, "layout", ""),
        "licence": " ".join([f"{kind.licence}.", *_terms(kind.licence)]),
        "citation": kind.citation,
        "homepage": kind.homepage,
        "access": kind.access,
        "download": f"`kubevox data download {kind.name} --to FOLDER`" if kind.downloads else "",
    }
    return _table(["", ""], [[name, value] for name, value in facts.items() if value])


def _terms(licence: str) -> list[str]:
    parts = re.split(r"[\s-]+", licence)
    terms = ["Not for commercial use."] if "NC" in parts else []
    return terms + (["Altered versions of the recordings may not be passed on."] if "ND" in parts else [])


def _notes(kind: type[Corpus]) -> list[str]:
    notes = _paragraphs(inspect.getmodule(kind).__doc__)[1:] + _paragraphs(kind.__doc__)[1:]
    return ["## What to know", *notes] if notes else []


def _options(kind: type[Corpus]) -> list[str]:
    fields = kind.Options.model_fields
    if not fields:
        return []
    rows = [
        [f"`{name}`", f"`{_value(field.get_default(call_default_factory=True))}`"] for name, field in fields.items()
    ]
    return ["## Options", *_paragraphs(kind.Options.__doc__), _table(["option", "default"], rows)]


def _labels(kind: type[Corpus], tasks: Sequence[TaskConfig]) -> list[str]:
    if kind.published is None or not kind.published.labels:
        return []
    columns = [task for task in tasks if task.label_column == "raw_label"]
    rows = [
        [label, str(count), *(_mapped(task, kind, label) for task in columns)]
        for label, count in kind.published.labels.items()
    ]
    header = ["label of the corpus", "recordings when complete", *(f"task {task.name}" for task in columns)]
    return ["## Labels", _table(header, rows)]


def _languages(kind: type[Corpus], tasks: Sequence[TaskConfig]) -> list[str]:
    columns = [task for task in tasks if task.label_column == "language"]
    rows = []
    for code in kind.languages:
        known = LANGUAGES.get(code)
        codes = [known.name, known.iso639_3, known.glottocode] if known else ["", "", ""]
        rows.append([code, *codes, *(_mapped(task, kind, code) for task in columns)])
    header = ["code", "language", "ISO 639-3", "Glottolog", *(f"task {task.name}" for task in columns)]
    return ["## Languages", _table(header, rows)] if rows else []


def _mapped(task: TaskConfig, kind: type[Corpus], raw: str) -> str:
    known, label = task.label_of(kind.name, raw)
    return label or ("left out" if known else "no label of it")


def _speakers(published: Published | None) -> list[str]:
    if published is None or not published.speakers:
        return []
    counts = sorted(published.speakers.values())
    each = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    return ["## Speakers", f"{len(counts)} when complete, with {each} recordings each."]


def _personal(kind: type[Corpus]) -> str:
    if kind.synthetic:
        return f"## Whose voices\n\n{_MACHINE}"
    said = [_VOICE]
    if not kind.licence or not kind.homepage:
        said.append(_OWN)
    if kind.published and kind.published.labels:
        said.append(_EMOTION)
    return "\n\n".join(["## Whose voices", *said])


def _found(kind: type[Corpus], dataset: DatasetVersion, tasks: Sequence[TaskConfig]) -> list[str]:
    from kubevox.data.dataset import read_utterances

    rows = [row for row in read_utterances(dataset.shard_uris) if row.corpus == kind.name]
    told = next((entry for entry in dataset.corpora if entry.get("name") == kind.name), {})
    title = f"## In dataset {dataset.hash[:12]}"
    if not rows and not told:
        return [title, "Nothing of this corpus."]
    sums = [[name, str(told[key])] for key, name in _SUMS.items() if key in told]
    sections = [title, _table(["recordings", ""], sums)] if sums else [title]
    sections += _differences(kind.published, told)
    if rows:
        sections += [_audio(rows), *_stored_labels(kind, rows, tasks)]
    return sections


def _differences(published: Published | None, told: Mapping[str, Any]) -> list[str]:
    """What was found, beside what is published: a difference is said, not hidden."""
    if published is None or "found" not in told:
        return []
    pairs = [("all", published.recordings, told["found"])]
    labels = told.get("labels") or {}
    if published.labels:
        names = [*published.labels, *(name for name in labels if name not in published.labels)]
        pairs += [(name, published.labels.get(name, 0), labels.get(name, 0)) for name in names]
    differing = [[name, str(there), str(here), f"{here - there:+d}"] for name, there, here in pairs if there != here]
    header = ["recordings", "published", "found", "difference"]
    if not differing:
        return ["What was found is what is published."]
    return ["What was found differs from what is published:", _table(header, differing)]


def _audio(rows: Sequence[Utterance]) -> str:
    seconds = sorted(row.duration_s for row in rows)
    speakers = {row.speaker for row in rows if row.speaker}
    unknown = sum(row.speaker is None for row in rows)
    facts = {
        "audio": f"{sum(seconds) / 3600:.2f} h",
        "duration": f"{seconds[0]:.1f} to {seconds[-1]:.1f} s, median {seconds[len(seconds) // 2]:.1f} s",
        "sample rates": _shares(f"{row.sample_rate} Hz" for row in rows),
        "speakers": f"{len(speakers)}" + (f"; not known of {unknown} recordings" if unknown else ""),
        "sex": _shares(row.sex or "not known" for row in rows),
        "languages": _shares(row.language or "not known" for row in rows),
        "partitions": _shares(row.partition for row in rows if row.partition),
        "intensity": _shares(row.intensity for row in rows if row.intensity),
        "recordings with a text": str(sum(bool(row.text) for row in rows)),
    }
    return _table(["what is stored", ""], [[name, value] for name, value in facts.items() if value])


def _stored_labels(kind: type[Corpus], rows: Sequence[Utterance], tasks: Sequence[TaskConfig]) -> list[str]:
    counts = Counter(row.raw_label for row in rows if row.raw_label)
    if not counts:
        return []
    columns = [task for task in tasks if task.label_column == "raw_label"]
    speakers = {label: {row.speaker for row in rows if row.raw_label == label and row.speaker} for label in counts}
    seconds = {label: sum(row.duration_s for row in rows if row.raw_label == label) for label in counts}
    table = [
        [
            label,
            str(count),
            str(len(speakers[label])),
            f"{seconds[label] / 60:.1f}",
            *(_mapped(task, kind, label) for task in columns),
        ]
        for label, count in sorted(counts.items())
    ]
    header = ["label of the corpus", "stored", "speakers", "minutes", *(f"task {task.name}" for task in columns)]
    return [_table(header, table)]


def _quality(kind: type[Corpus], validation: Validation) -> list[str]:
    from kubevox.data.validation import read_rows

    rows = [row for row in read_rows(validation.uri) if row.corpus == kind.name]
    if not rows:
        return []
    refused = Counter(reason for row in rows for reason in row.reasons if not row.accepted)
    accepted = sum(row.accepted for row in rows)
    sections = ["## Validation", f"{accepted} accepted, {len(rows) - accepted} quarantined."]
    if refused:
        sections.append(_table(["reason", "recordings"], [[name, str(n)] for name, n in sorted(refused.items())]))
    if figures := list(_figures(rows)):
        sections.append(_table(["measured", "5 %", "median", "95 %"], figures))
    return sections


def _figures(rows: Sequence[Row]) -> Iterable[list[str]]:
    """Each measure that is a number, over the recordings that have it."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in asdict(row).items():
            if isinstance(value, float):
                columns.setdefault(name, []).append(value)
    for name, values in columns.items():
        values.sort()
        marks = (values[round(share * (len(values) - 1))] for share in (0.05, 0.5, 0.95))
        yield [f"`{name}`", *(f"{mark:.4g}" for mark in marks)]


def _language(code: str) -> str:
    return LANGUAGES[code].name if code in LANGUAGES else code


def _shares(values: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(Counter(values).items()))


def _value(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _paragraphs(docstring: str | None) -> list[str]:
    """A docstring's paragraphs, as Markdown, each in one line."""
    text = inspect.cleandoc(docstring or "")
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
