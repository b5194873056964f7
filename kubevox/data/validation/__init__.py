"""Metadata expectations and audio checks: what of a dataset is accepted, what is quarantined, and why.

``<store>/validations/<key>/`` holds ``validation.json`` (the counts), ``rows.parquet`` (every utterance with the
reasons against it) and ``report.html``. The key is over the dataset's hash, the task's labels and the configuration,
so the same question is answered once.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

import kubevox
from kubevox import storage
from kubevox.config import TaskConfig, ValidateConfig
from kubevox.data.dataset import DatasetVersion, Utterance, read_audio, read_utterances
from kubevox.data.validation.checks import CHECKS, Finding, Measured, duplicates, examine, measure
from kubevox.errors import AudioError, StorageError, ValidationError
from kubevox.page import SYNTHETIC_NOTICE
from kubevox.progress import ProgressBar
from kubevox.provenance import content_hash, git_commit

__all__ = ["Row", "Validation", "accepted_source_ids", "load_validation", "read_rows", "validate"]

_FORMAT = 1
_HEAD = "validation.json"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source_id", pa.string()),
        ("accepted", pa.bool_()),
        ("reasons", pa.list_(pa.string())),
        ("details", pa.list_(pa.string())),
        ("label", pa.string()),
        ("corpus", pa.string()),
        ("speaker", pa.string()),
        ("sex", pa.string()),
        ("duration_s", pa.float64()),
        ("rms_dbfs", pa.float64()),
        ("clipped_share", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Row:
    """What was found about one utterance.

    Attributes:
        id: the utterance's.
        source_id: where it came from; unique.
        accepted: whether nothing speaks against it.
        reasons: short words, one for each thing that does.
        details: what each reason is about, in the same order.
        label: the task's label; None where the task leaves the raw label out, or does not know it.
        corpus: the corpus' name.
        speaker: ``corpus:id`` or None.
        sex: "female", "male" or None.
        duration_s: as listed in the dataset.
        rms_dbfs: level; None where the audio does not decode.
        clipped_share: share of samples held at full scale; None likewise.
    """

    id: str
    source_id: str
    accepted: bool
    reasons: tuple[str, ...]
    details: tuple[str, ...]
    label: str | None
    corpus: str
    speaker: str | None
    sex: str | None
    duration_s: float | None
    rms_dbfs: float | None
    clipped_share: float | None


@dataclass(frozen=True)
class Validation:
    """A dataset version's validation, as ``validation.json`` describes it.

    Attributes:
        uri: its folder in the store.
        reused: whether it was there already.
        dataset_hash: of the version that was validated.
        utterances: how many were looked at.
        accepted: how many of them nothing speaks against.
        quarantined: the others.
        outside_task: accepted ones whose label the task leaves out.
        rejects: recordings that ingest could not decode.
        checks: for each check, how many utterances it refused; one utterance can fail several.
        reasons: the same by reason.
        labels: accepted utterances of each of the task's labels.
        corpora: accepted utterances of each corpus.
        speakers: accepted utterances of each known speaker.
        sexes: accepted utterances by sex.
    """

    uri: str
    reused: bool
    dataset_hash: str
    utterances: int
    accepted: int
    quarantined: int
    outside_task: int
    rejects: int
    checks: dict[str, int]
    reasons: dict[str, int]
    labels: dict[str, int]
    corpora: dict[str, int]
    speakers: dict[str, int]
    sexes: dict[str, int]

    @property
    def report_uri(self) -> str:
        """Where the HTML report is."""
        return storage.join(self.uri, "report.html")


def validate(dataset: DatasetVersion, task: TaskConfig, config: ValidateConfig, store: str) -> Validation:
    """Check every utterance of a dataset version, its metadata and its stored audio.

    Every reason against an utterance is listed, not the first. An utterance whose raw label the task knows and leaves
    out is accepted.

    Args:
        dataset: the version.
        task: the label set, and how raw labels map onto it.
        config: the limits, and how much may be quarantined.
        store: where the result is kept.

    Returns:
        The validation; reused where the same dataset was validated before against the same task and limits.

    Raises:
        ValidationError: more than ``max_quarantined_share`` is quarantined; the report is in the store nevertheless,
            and the message names it.
        StorageError: a shard is missing or damaged.
    """
    key = content_hash(
        [_FORMAT],
        dataset.hash,
        task.model_dump(mode="json"),
        config.model_dump(mode="json"),
    )
    uri = storage.join(store, "validations", key)
    reused = storage.exists(storage.join(uri, _HEAD))
    if not reused:
        with storage.staging(store) as folder:
            _write(folder, _examine_all(dataset, task, config), dataset, task, config)
            storage.publish(folder, uri, _HEAD)
    validation = load_validation(uri, reused=reused)
    _refuse_too_many(validation, storage.read_json(storage.join(uri, _HEAD))["first_quarantined"], config)
    return validation


def load_validation(uri: str, *, reused: bool = True) -> Validation:
    """Read ``validation.json``.

    Raises:
        StorageError: there is no complete validation under the URI.
    """
    head = storage.read_json(storage.join(uri, _HEAD))
    try:
        return Validation(
            uri=uri,
            reused=reused,
            **{field.name: head[field.name] for field in dataclasses.fields(Validation)[2:]},
        )
    except (KeyError, TypeError) as error:
        raise StorageError(f"{uri}: damaged {_HEAD} ({error}); delete the folder and run again") from None


def read_rows(uri: str) -> list[Row]:
    """Every utterance of a validation, ordered by source id.

    Raises:
        StorageError: it is missing or damaged.
    """
    return [
        Row(**{**row, "reasons": tuple(row["reasons"]), "details": tuple(row["details"])})
        for row in _table(uri).to_pylist()
    ]


def accepted_source_ids(uri: str) -> list[str]:
    """The source ids of a validation's accepted utterances, sorted.

    Raises:
        StorageError: it is missing or damaged.
    """
    table = _table(uri, ["source_id", "accepted"])
    return table.filter(table["accepted"])["source_id"].to_pylist()


def _examine_all(dataset: DatasetVersion, task: TaskConfig, config: ValidateConfig) -> list[Row]:
    shards = {uri: read_utterances(uri) for uri in dataset.shard_uris}
    utterances = [utterance for members in shards.values() for utterance in members]
    measured: dict[str, Measured | None] = {}
    with ProgressBar("validate", len({utterance.id for utterance in utterances}), "recordings") as bar:
        for uri, members in shards.items():
            for name, found in _measure_shard(uri, [u.id for u in members if u.id not in measured]):
                measured[name] = found
                bar.update()
    examined = [examine(utterance, measured.get(utterance.id), task, config) for utterance in utterances]
    copies = duplicates(utterances, [not findings for findings, _ in examined])
    rows = []
    for utterance, (findings, label) in zip(utterances, examined, strict=True):
        copy = copies.get(utterance.source_id)
        rows.append(_row(utterance, measured.get(utterance.id), [*findings, *([copy] if copy else [])], label))
    return sorted(rows, key=lambda row: row.source_id)


def _measure_shard(uri: str, ids: Iterable[str]) -> Iterator[tuple[str, Measured | None]]:
    """Measure the utterances of a shard, each once; None for one whose audio does not decode."""
    left = deque(dict.fromkeys(ids))
    while left:
        try:
            for name, waveform in read_audio(uri, left):
                left.remove(name)
                yield name, measure(waveform)
            return
        except (AudioError, soundfile.SoundFileError):
            # They come in the shard's order, so the first one left is the damaged one; the reader goes on behind it.
            yield left.popleft(), None


def _row(utterance: Utterance, measured: Measured | None, findings: Sequence[Finding], label: str | None) -> Row:
    return Row(
        id=utterance.id,
        source_id=utterance.source_id,
        accepted=not findings,
        reasons=tuple(finding.reason for finding in findings),
        details=tuple(finding.detail for finding in findings),
        label=label,
        corpus=utterance.corpus,
        speaker=utterance.speaker,
        sex=utterance.sex,
        duration_s=utterance.duration_s,
        rms_dbfs=measured.rms_dbfs if measured else None,
        clipped_share=measured.clipped_share if measured else None,
    )


def _write(folder: Path, rows: list[Row], dataset: DatasetVersion, task: TaskConfig, config: ValidateConfig) -> None:
    # The report's renderer draws figures: imported only where there is something to draw.
    from kubevox.data.validation.report import render

    rejects = _rejects(dataset)
    head = _head(rows, rejects, dataset, task, config)
    pq.write_table(
        pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=_SCHEMA),
        folder / "rows.parquet",
        compression="zstd",
    )
    (folder / "report.html").write_text(render(rows, rejects, head, dataset, task, config), encoding="utf-8")
    (folder / _HEAD).write_text(json.dumps(head, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _head(
    rows: Sequence[Row],
    rejects: Sequence[dict[str, str]],
    dataset: DatasetVersion,
    task: TaskConfig,
    config: ValidateConfig,
) -> dict[str, Any]:
    accepted = [row for row in rows if row.accepted]
    quarantined = [row for row in rows if not row.accepted]
    reasons = Counter(reason for row in rows for reason in row.reasons)
    labels = Counter(row.label for row in accepted)
    first = quarantined[0] if quarantined else None
    return {
        "notice": SYNTHETIC_NOTICE if dataset.synthetic else None,
        "format": _FORMAT,
        "dataset_uri": dataset.uri,
        "dataset_hash": dataset.hash,
        "task": task.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "passed": len(quarantined) <= config.max_quarantined_share * len(rows),
        "utterances": len(rows),
        "accepted": len(accepted),
        "quarantined": len(quarantined),
        "outside_task": labels[None],
        "rejects": len(rejects),
        "first_quarantined": {"source_id": first.source_id, "reasons": first.reasons, "details": first.details}
        if first
        else None,
        "checks": {
            check.name: sum(1 for row in quarantined if not set(check.reasons).isdisjoint(row.reasons))
            for check in CHECKS
        },
        "reasons": dict(sorted(reasons.items())),
        "labels": {label: labels[label] for label in task.labels},
        "corpora": _counts(row.corpus for row in accepted),
        "speakers": _counts(row.speaker for row in accepted if row.speaker),
        "sexes": _counts(row.sex or "unknown" for row in accepted),
        "lineage": {
            "commit": git_commit(),
            "kubevox": kubevox.__version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _refuse_too_many(validation: Validation, first: dict[str, Any] | None, config: ValidateConfig) -> None:
    limit = config.max_quarantined_share
    if first is None or validation.quarantined <= limit * validation.utterances:
        return
    why = "; ".join(f"{reason} ({detail})" for reason, detail in zip(first["reasons"], first["details"], strict=True))
    raise ValidationError(
        f"{validation.quarantined} of {validation.utterances} recordings are quarantined "
        f"({validation.quarantined / validation.utterances:.1%}; validation.max_quarantined_share allows {limit:.1%}), "
        f"first {first['source_id']}: {why}; the report names each with its reasons: {validation.report_uri}; "
        "remove or correct them, or raise the limit"
    )


def _rejects(dataset: DatasetVersion) -> list[dict[str, str]]:
    uri = storage.join(dataset.uri, "rejects.parquet")
    try:
        return pq.read_table(storage.fetch(uri)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri}: damaged ({error}); delete the dataset version and ingest again") from None


def _table(uri: str, columns: list[str] | None = None) -> pa.Table:
    rows = storage.join(uri, "rows.parquet")
    try:
        return pq.read_table(storage.fetch(rows), columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{rows}: damaged ({error}); delete the validation and run again") from None
