"""What is worth knowing of a dataset as a whole: balance, speakers, counts that are not as published.

A remark refuses nothing: it says, with its figures, what a person should look at before believing a score.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kubevox.config import TaskConfig, ValidateConfig
from kubevox.data.dataset import DatasetVersion, Utterance
from kubevox.data.validation.tables import repeated

if TYPE_CHECKING:
    from kubevox.data.validation import Row

__all__ = ["Remark", "remarks"]

_NAMED = 5  # at most so many names in a message; the figures have all


@dataclass(frozen=True)
class Remark:
    """Something that a dataset is, and that its user should know.

    Attributes:
        kind: a word that a program can look for.
        message: a sentence for a person.
        figures: what the message rests on.
    """

    kind: str
    message: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def remarks(
    rows: Sequence[Row],
    utterances: Sequence[Utterance],
    dataset: DatasetVersion,
    task: TaskConfig,
    config: ValidateConfig,
) -> list[Remark]:
    """All that there is to remark on, in the order of reading.

    Args:
        rows: every utterance's, as validated.
        utterances: the same utterances' metadata.
        dataset: the version, which tells what its corpora hold when complete.
        task: the label set.
        config: what counts as out of balance.
    """
    accepted = [row for row in rows if row.accepted]
    return [
        *_published(dataset),
        *_labels(accepted, task, config),
        *_sexes(accepted, task, config),
        *_languages(accepted, config),
        *_speakers(accepted),
        *_speakers_that_contradict(accepted),
        *_audio_of_two_speakers(rows),
        *_not_unique(utterances),
    ]


def _published(dataset: DatasetVersion) -> Iterable[Remark]:
    for corpus in dataset.corpora:
        published, found = corpus.get("published"), corpus.get("found")
        if not published or found is None:
            continue
        labels = corpus.get("labels", {})
        wanted = published.get("labels", {})
        differing = {
            label: {"found": labels.get(label, 0), "published": wanted.get(label, 0)}
            for label in sorted({*labels, *wanted})
            if wanted and labels.get(label, 0) != wanted.get(label, 0)
        }
        if found == published["recordings"] and not differing:
            continue
        of_labels = _listed(f"{label} {n['found']:,} of {n['published']:,}" for label, n in differing.items())
        yield Remark(
            "counts_differ",
            f"{corpus['name']}: {found:,} recordings were found, {published['recordings']:,} are published"
            + (f" ({of_labels})" if differing else ""),
            {
                "corpus": corpus["name"],
                "found": found,
                "published": published["recordings"],
                "labels": differing,
                "source": published.get("source"),
            },
        )


def _labels(accepted: Sequence[Row], task: TaskConfig, config: ValidateConfig) -> Iterable[Remark]:
    counts = dict.fromkeys(task.labels, 0) | Counter(row.label for row in accepted if row.label)
    if missing := [label for label, count in counts.items() if not count]:
        yield Remark("label_absent", f"No accepted recording is labelled {', '.join(missing)}", {"labels": missing})
    present = {label: count for label, count in counts.items() if count}
    yield from _uneven("label_imbalance", "label", present, config.max_label_ratio, "max_label_ratio")
    corpora: dict[str, set[str]] = defaultdict(set)
    for row in accepted:
        if row.label:
            corpora[row.label].add(row.corpus)
    if len({corpus for held in corpora.values() for corpus in held}) > 1:
        single = {label: next(iter(held)) for label, held in sorted(corpora.items()) if len(held) == 1}
        if single:
            named = _listed(f"{label} (only {corpus})" for label, corpus in single.items())
            yield Remark(
                "label_of_one_corpus",
                f"Labels that come from a single corpus: {named}; a model may learn its channel instead",
                {"labels": single},
            )


def _sexes(accepted: Sequence[Row], task: TaskConfig, config: ValidateConfig) -> Iterable[Remark]:
    sexes = Counter(row.sex for row in accepted if row.sex)
    total = sum(sexes.values())
    if total and max(sexes.values()) / total > config.max_sex_share:
        sex, count = sexes.most_common(1)[0]
        yield Remark(
            "sex_imbalance",
            f"{count / total:.0%} of the accepted recordings whose speaker's sex is known are of {sex} speakers "
            f"(validation.max_sex_share is {config.max_sex_share:.0%})",
            {"sexes": dict(sorted(sexes.items()))},
        )
        return
    by_label: dict[str, dict[str, int]] = {}
    for label in task.labels:
        inside = Counter(row.sex for row in accepted if row.sex and row.label == label)
        if inside and max(inside.values()) / sum(inside.values()) > config.max_sex_share:
            by_label[label] = dict(sorted(inside.items()))
    if by_label:
        named = _listed(
            f"{label} ({max(counts.values()) / sum(counts.values()):.0%} {max(counts, key=lambda sex: counts[sex])})"
            for label, counts in by_label.items()
        )
        yield Remark(
            "sex_imbalance_in_label",
            f"Labels that are mostly spoken by one sex: {named} "
            f"(validation.max_sex_share is {config.max_sex_share:.0%})",
            {"labels": by_label},
        )


def _languages(accepted: Sequence[Row], config: ValidateConfig) -> Iterable[Remark]:
    counts = Counter(row.language for row in accepted if row.language)
    yield from _uneven("language_imbalance", "language", counts, config.max_language_ratio, "max_language_ratio")


def _uneven(kind: str, what: str, counts: Mapping[str, int], limit: float, key: str) -> Iterable[Remark]:
    if len(counts) < 2 or max(counts.values()) <= limit * min(counts.values()):
        return
    most, least = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    yield Remark(
        kind,
        f"The {what} {most} has {counts[most]:,} accepted recordings, {least} {counts[least]:,}: "
        f"{counts[most] / counts[least]:.1f} times as many (validation.{key} is {limit:g})",
        {"counts": dict(sorted(counts.items())), "ratio": round(counts[most] / counts[least], 3)},
    )


def _speakers(accepted: Sequence[Row]) -> Iterable[Remark]:
    anonymous = Counter(row.corpus for row in accepted if row.speaker is None)
    if anonymous:
        total = sum(anonymous.values())
        yield Remark(
            "speakers_unknown",
            f"{_counted(total, 'accepted recording names', 'accepted recordings name')} no speaker "
            f"({_listed(sorted(anonymous))}): "
            "no split of them can be certified as disjoint",
            {"corpora": dict(sorted(anonymous.items()))},
        )


def _speakers_that_contradict(accepted: Sequence[Row]) -> Iterable[Remark]:
    for column, kind, said in (
        (
            "sex",
            "speaker_of_two_sexes",
            ("speaker is said to be of both sexes", "speakers are said to be of both sexes"),
        ),
        (
            "language",
            "speaker_in_several_languages",
            ("speaker speaks more than one language", "speakers speak more than one language"),
        ),
    ):
        values: dict[str, set[str]] = defaultdict(set)
        for row in accepted:
            if row.speaker and getattr(row, column):
                values[row.speaker].add(getattr(row, column))
        several = {speaker: sorted(held) for speaker, held in sorted(values.items()) if len(held) > 1}
        if several:
            yield Remark(kind, f"{_counted(len(several), *said)}: {_listed(several)}", {"speakers": several})


def _audio_of_two_speakers(rows: Sequence[Row]) -> Iterable[Remark]:
    speakers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.speaker:
            speakers[row.id].add(row.speaker)
    shared = sorted(sorted(held) for held in speakers.values() if len(held) > 1)
    if shared:
        yield Remark(
            "audio_of_several_speakers",
            f"{_counted(len(shared), 'recording is', 'recordings are')} there under more than one speaker: "
            f"{_listed(' and '.join(held) for held in shared)}; they may be one person, on both sides of a split",
            {"speakers": shared},
        )


def _not_unique(utterances: Sequence[Utterance]) -> Iterable[Remark]:
    for column, kind, what in (
        ("duration_s", "duration_not_unique", "duration"),
        ("source_bytes", "size_not_unique", "file size"),
    ):
        count = repeated(utterances, column)
        if count:
            yield Remark(
                kind,
                f"{count:,} of {len(utterances):,} recordings have the exact {what} of another one; "
                "by itself that is no fault",
                {"recordings": count},
            )


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _NAMED:,} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more
