"""Metadata expectations and audio checks: what of a dataset is accepted, what is quarantined, and why.

``<store>/validations/<key>/`` holds ``validation.json`` (counts and figures), ``rows.parquet`` (every utterance with
what was measured and the reasons against it) and ``report.html``. The key is over the dataset's hash, the task's labels
and the configuration, so the same question is answered once.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

import kubevox
from kubevox import storage
from kubevox.config import TaskConfig, VadConfig, ValidateConfig
from kubevox.data.audio import decode_stored
from kubevox.data.dataset import DatasetVersion, Utterance, read_encoded, read_rejects, read_utterances
from kubevox.data.validation.checks import CHECKS, Finding, divide, duplicates, in_order
from kubevox.data.validation.quality import QUALITY_VERSION, Measured, measure
from kubevox.errors import AudioError, StorageError, ValidationError
from kubevox.page import SYNTHETIC_NOTICE
from kubevox.processes import CRASHED, Workers
from kubevox.progress import ProgressBar
from kubevox.provenance import content_hash, file_sha256, git_commit

__all__ = ["Row", "Validation", "accepted_source_ids", "load_validation", "read_rows", "validate"]

_FORMAT = 2
_HEAD = "validation.json"
# Recordings sent to a process at a time: few, as each may have megabytes.
_CHUNK = 4
_STRINGS = pa.list_(pa.string())
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source_id", pa.string()),
        ("accepted", pa.bool_()),
        ("reasons", _STRINGS),
        ("details", _STRINGS),
        ("warnings", _STRINGS),
        ("warning_details", _STRINGS),
        ("label", pa.string()),
        ("corpus", pa.string()),
        ("speaker", pa.string()),
        ("sex", pa.string()),
        ("language", pa.string()),
        ("duration_s", pa.float64()),
        ("rms_dbfs", pa.float64()),
        ("peak_dbfs", pa.float64()),
        ("clipped_share", pa.float64()),
        ("dc_offset", pa.float64()),
        ("silence_ratio", pa.float64()),
        ("snr_db", pa.float64()),
        ("bandwidth_hz", pa.float64()),
        ("speech_ratio", pa.float64()),
        ("stoi", pa.float64()),
        ("pesq", pa.float64()),
        ("si_sdr_db", pa.float64()),
        ("shard", pa.string()),
        ("row", pa.int64()),
    ]
)
MEASURES = tuple(field.name for field in dataclasses.fields(Measured) if field.name not in ("id", "duration_s"))
"""The columns of ``rows.parquet`` that were measured."""


@dataclass(frozen=True)
class Row:
    """What was found about one utterance.

    What was measured is None where the audio does not decode, or where nobody asked for it;
    :class:`~kubevox.data.validation.quality.Measured` says what the figures are.

    Attributes:
        id: the utterance's.
        source_id: where it came from; unique.
        accepted: whether nothing speaks against it; warnings do not.
        reasons: short words, one for each thing that does.
        details: what each reason is about, in the same order.
        warnings: reasons that the gates only warn of.
        warning_details: what each warning is about, in the same order.
        label: the task's label; None where the task leaves the raw label out, or does not know it.
        corpus: the corpus' name.
        speaker: ``corpus:id`` or None.
        sex: "female", "male" or None.
        language: ISO 639-1 code or None.
        duration_s: as listed in the dataset.
        rms_dbfs: level.
        peak_dbfs: largest sample.
        clipped_share: share of samples held at full scale.
        dc_offset: the mean's distance from zero.
        silence_ratio: share of silence.
        snr_db: signal-to-noise ratio, estimated.
        bandwidth_hz: up to where there is sound.
        speech_ratio: share of speech.
        stoi: estimated intelligibility.
        pesq: estimated quality.
        si_sdr_db: estimated distortion.
        shard: the shard that holds it, relative to the store.
        row: its place in the shard, from 0.
    """

    id: str
    source_id: str
    accepted: bool
    reasons: tuple[str, ...]
    details: tuple[str, ...]
    warnings: tuple[str, ...]
    warning_details: tuple[str, ...]
    label: str | None
    corpus: str
    speaker: str | None
    sex: str | None
    language: str | None
    duration_s: float | None
    rms_dbfs: float | None
    peak_dbfs: float | None
    clipped_share: float | None
    dc_offset: float | None
    silence_ratio: float | None
    snr_db: float | None
    bandwidth_hz: float | None
    speech_ratio: float | None
    stoi: float | None
    pesq: float | None
    si_sdr_db: float | None
    shard: str
    row: int


@dataclass(frozen=True)
class Validation:
    """A dataset version's validation, as ``validation.json`` describes it.

    What was found is ``rejects`` (failed at ingest) + ``accepted`` + ``quarantined``, always.

    Attributes:
        uri: its folder in the store.
        reused: whether it was there already.
        dataset_hash: of the version that was validated.
        found: recordings that ingest read: those below and those it could not decode.
        utterances: how many were looked at.
        accepted: how many of them nothing speaks against.
        quarantined: the others.
        warned: accepted ones with a warning.
        outside_task: accepted ones whose label the task leaves out.
        rejects: recordings that ingest could not decode.
        checks: for each check, how many utterances it refused; one utterance can fail several.
        reasons: the same by reason.
        warnings: utterances that each reason only warns of.
        remarks: what is to be said of the dataset as a whole: kind, message, figures.
        labels: accepted utterances of each of the task's labels.
        corpora: accepted utterances of each corpus.
        speakers: accepted utterances of each known speaker.
        sexes: accepted utterances by sex.
        languages: accepted utterances by language.
    """

    uri: str
    reused: bool
    dataset_hash: str
    found: int
    utterances: int
    accepted: int
    quarantined: int
    warned: int
    outside_task: int
    rejects: int
    checks: dict[str, int]
    reasons: dict[str, int]
    warnings: dict[str, int]
    remarks: list[dict[str, Any]]
    labels: dict[str, int]
    corpora: dict[str, int]
    speakers: dict[str, int]
    sexes: dict[str, int]
    languages: dict[str, int]

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
        ConfigError: voice activity or SQUIM is asked for, and what it needs is not there.
    """
    weights = _weights(config)
    told = {**config.model_dump(mode="json"), "squim": weights.sha256 if weights else None}
    key = content_hash(
        [_FORMAT, QUALITY_VERSION, *([_vad_version()] if config.vad else [])],
        dataset.hash,
        task.model_dump(mode="json"),
        told,
    )
    uri = storage.join(store, "validations", key)
    reused = storage.exists(storage.join(uri, _HEAD))
    if not reused:
        examined = _examine_all(dataset, task, config, weights)
        with storage.staging(store) as folder:
            _write(folder, examined, dataset, task, config, told)
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
    rows: list[dict[str, Any]] = _table(uri).to_pylist()
    lists = [field.name for field in _SCHEMA if field.type == _STRINGS]
    return [Row(**(row | {name: tuple(row[name]) for name in lists})) for row in rows]


def accepted_source_ids(uri: str) -> list[str]:
    """The source ids of a validation's accepted utterances, sorted.

    Raises:
        StorageError: it is missing or damaged.
    """
    table = _table(uri, ["source_id", "accepted"])
    return table.filter(table["accepted"])["source_id"].to_pylist()


class _Weights(NamedTuple):
    file: Path
    sha256: str


class _Examined(NamedTuple):
    rows: list[Row]  # ordered by source id
    utterances: list[Utterance]  # as the shards have them


def _weights(config: ValidateConfig) -> _Weights | None:
    if config.squim is None:
        return None
    from kubevox.data.validation import squim

    file = squim.weights_file(config.squim)
    return _Weights(file, file_sha256(file))


def _vad_version() -> int:
    from kubevox.data.vad import VAD_VERSION

    return VAD_VERSION


def _examine_all(
    dataset: DatasetVersion, task: TaskConfig, config: ValidateConfig, weights: _Weights | None
) -> _Examined:
    # pandas and pandera, a second to import: only where there is something to look at.
    from kubevox.data.validation.tables import examine, labels_of

    members = [read_utterances(uri) for uri in dataset.shard_uris]
    utterances = [utterance for held in members for utterance in held]
    places = [(shard.name, i) for shard, held in zip(dataset.shards, members, strict=True) for i in range(len(held))]
    by_id = _measure_all(dataset, members, config, weights)
    measured = [by_id.get(utterance.id) for utterance in utterances]
    findings = examine(utterances, measured, task, config)
    copies = duplicates(utterances, [not divide(found, config)[0] for found in findings])
    rows = [
        _row(
            utterance,
            by_id.get(utterance.id),
            divide(in_order([*findings[i], *([copies[i]] if i in copies else [])]), config),
            label,
            *places[i],
        )
        for i, (utterance, label) in enumerate(zip(utterances, labels_of(utterances, task), strict=True))
    ]
    return _Examined(sorted(rows, key=lambda row: (row.source_id or "", row.shard, row.row)), utterances)


def _measure_all(
    dataset: DatasetVersion, members: Sequence[Sequence[Utterance]], config: ValidateConfig, weights: _Weights | None
) -> dict[str, Measured | None]:
    """Measure each utterance once, on all cores; None for one whose audio does not decode."""
    first: dict[str, int] = {}
    for number, held in enumerate(members):
        for utterance in held:
            first.setdefault(utterance.id, number)
    wanted: dict[int, list[str]] = defaultdict(list)
    for name, number in first.items():
        wanted[number].append(name)
    names: list[str] = []

    def encoded() -> Iterable[bytes]:
        for number, uri in enumerate(dataset.shard_uris):
            for name, flac in read_encoded(uri, wanted[number]):
                names.append(name)
                yield flac

    measured: dict[str, Measured | None] = {}
    with ProgressBar("validate", len(first), "recordings") as bar:
        for place, found in enumerate(Workers(_Ear(config.vad, weights), chunk=_CHUNK).map(encoded())):
            measured[names[place]] = None if found is CRASHED else found
            bar.update()
    return measured


class _Ear:
    """Decodes a stored recording and measures it; in each process the models are loaded when they are first needed."""

    def __init__(self, vad: bool, weights: _Weights | None) -> None:
        self._models: tuple[Any, Any] | None = None
        self._vad, self._weights = vad, weights

    def __call__(self, flac: bytes) -> Measured | None:
        if self._models is None:
            self._models = self._load()
        try:
            waveform = decode_stored(flac, "a stored recording")
        except (AudioError, soundfile.SoundFileError):
            return None
        return measure(waveform, *self._models)

    def _load(self) -> tuple[Any, Any]:
        vad = squim = None
        if self._vad:
            from kubevox.data.vad import VoiceActivity

            vad = VoiceActivity(VadConfig(mode="measure"))
        if self._weights is not None:
            from kubevox.data.validation.squim import Squim

            squim = Squim(self._weights.file)
        return vad, squim


def _row(
    utterance: Utterance,
    measured: Measured | None,
    findings: tuple[Sequence[Finding], Sequence[Finding]],
    label: str | None,
    shard: str,
    place: int,
) -> Row:
    refused, warned = findings
    return Row(
        id=utterance.id,
        source_id=utterance.source_id,
        accepted=not refused,
        reasons=tuple(finding.reason for finding in refused),
        details=tuple(finding.detail for finding in refused),
        warnings=tuple(finding.reason for finding in warned),
        warning_details=tuple(finding.detail for finding in warned),
        label=label,
        corpus=utterance.corpus,
        speaker=utterance.speaker,
        sex=utterance.sex,
        language=utterance.language,
        duration_s=utterance.duration_s,
        **{name: getattr(measured, name) if measured else None for name in MEASURES},
        shard=shard,
        row=place,
    )


def _write(
    folder: Path,
    examined: _Examined,
    dataset: DatasetVersion,
    task: TaskConfig,
    config: ValidateConfig,
    told: dict[str, Any],
) -> None:
    # The report's renderer draws figures: imported only where there is something to draw.
    from kubevox.data.validation.remarks import remarks
    from kubevox.data.validation.report import render

    rows, utterances = examined
    rejects = read_rejects(dataset)
    _account(rows, rejects, dataset)
    noted = [dataclasses.asdict(remark) for remark in remarks(rows, utterances, dataset, task, config)]
    head = _head(rows, rejects, noted, dataset, task, config, told)
    pq.write_table(
        pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=_SCHEMA),
        folder / "rows.parquet",
        compression="zstd",
    )
    page = render(rows, rejects, head, dataset, task, config, _audible(rows, dataset, config))
    (folder / "report.html").write_text(page, encoding="utf-8")
    (folder / _HEAD).write_text(json.dumps(head, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _account(rows: Sequence[Row], rejects: Sequence[Any], dataset: DatasetVersion) -> None:
    """Refuse to report on a dataset of which something is missing.

    Raises:
        StorageError: what was found is not accepted + quarantined + failed.
    """
    counts: dict[str, int] = Counter(
        {key: sum(corpus.get(key, 0) for corpus in dataset.corpora) for key in ("found", "left_out", "forgotten")}
    )
    told = counts["found"] - counts["left_out"] - counts["forgotten"]
    if not counts["found"]:  # a version that says nothing of it
        told = dataset.utterances + dataset.rejects
    accepted = sum(row.accepted for row in rows)
    quarantined = sum(bool(row.reasons) for row in rows)
    if told != accepted + quarantined + len(rejects):
        raise StorageError(
            f"{dataset.uri}: {told} recordings were found, and {accepted} accepted, {quarantined} quarantined and "
            f"{len(rejects)} failed ones are there; the version is damaged: ingest again"
        )


def _audible(rows: Sequence[Row], dataset: DatasetVersion, config: ValidateConfig) -> dict[str, bytes]:
    """The FLAC of the recordings that the report lets hear: quarantined ones first, then those with warnings."""
    order = sorted((row for row in rows if row.reasons or row.warnings), key=lambda row: row.accepted)
    chosen = [row for row in order if row.rms_dbfs is not None][: config.embed_audio]
    heard: dict[str, bytes] = {}
    for shard in sorted({row.shard for row in chosen}):
        heard.update(read_encoded(storage.join(dataset.store, shard), {row.id for row in chosen if row.shard == shard}))
    return heard


def _head(
    rows: Sequence[Row],
    rejects: Sequence[dict[str, str]],
    noted: list[dict[str, Any]],
    dataset: DatasetVersion,
    task: TaskConfig,
    config: ValidateConfig,
    told: dict[str, Any],
) -> dict[str, Any]:
    accepted = [row for row in rows if row.accepted]
    quarantined = [row for row in rows if not row.accepted]
    labels = Counter(row.label for row in accepted)
    first = quarantined[0] if quarantined else None
    return {
        "notice": SYNTHETIC_NOTICE if dataset.synthetic else None,
        "format": _FORMAT,
        "dataset_uri": dataset.uri,
        "dataset_hash": dataset.hash,
        "task": task.model_dump(mode="json"),
        "config": told,
        "passed": _share(len(quarantined), len(rows)) <= config.max_quarantined_share,
        "found": len(rows) + len(rejects),
        "utterances": len(rows),
        "accepted": len(accepted),
        "quarantined": len(quarantined),
        "warned": sum(bool(row.warnings) for row in accepted),
        "outside_task": labels[None],
        "rejects": len(rejects),
        "first_quarantined": {"source_id": first.source_id, "reasons": first.reasons, "details": first.details}
        if first
        else None,
        "checks": {
            check.name: sum(1 for row in quarantined if not set(check.reasons).isdisjoint(row.reasons))
            for check in CHECKS
        },
        "reasons": _counts(reason for row in rows for reason in row.reasons),
        "warnings": _counts(reason for row in rows for reason in row.warnings),
        "rejected": _counts(reject["reason"] for reject in rejects),
        "remarks": noted,
        "labels": {label: labels[label] for label in task.labels},
        "corpora": _counts(row.corpus for row in accepted),
        "speakers": _counts(row.speaker for row in accepted if row.speaker),
        "sexes": _counts(row.sex or "unknown" for row in accepted),
        "languages": _counts(row.language or "unknown" for row in accepted),
        "measures": _figures(rows),
        "lineage": {
            "commit": git_commit(),
            "kubevox": kubevox.__version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    }


def _figures(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """For each corpus and measure how many recordings have it, and its distribution over them."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for corpus in sorted({row.corpus for row in rows}):
        inside = [row for row in rows if row.corpus == corpus]
        figures[corpus] = {}
        for name in ("duration_s", *MEASURES):
            values = [value for row in inside if (value := getattr(row, name)) is not None and np.isfinite(value)]
            if values:
                marks = np.percentile(values, [0, 5, 50, 95, 100])
                names = ("min", "p5", "median", "p95", "max")
                figures[corpus][name] = {"recordings": len(values)} | {
                    name: round(float(mark), 6) for name, mark in zip(names, marks, strict=True)
                }
    return figures


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _share(some: int, every: int) -> float:
    # A quotient is the nearest number to 29 of 100, as 0.29 is; 0.29 times 100 is less than 29.
    return some / max(1, every)


def _refuse_too_many(validation: Validation, first: dict[str, Any] | None, config: ValidateConfig) -> None:
    limit = config.max_quarantined_share
    share = _share(validation.quarantined, validation.utterances)
    if first is None or share <= limit:
        return
    why = "; ".join(f"{reason} ({detail})" for reason, detail in zip(first["reasons"], first["details"], strict=True))
    raise ValidationError(
        f"{validation.quarantined} of {validation.utterances} recordings are quarantined "
        f"({share:.1%}; validation.max_quarantined_share allows {limit:.1%}), "
        f"first {first['source_id']}: {why}; the report names each with its reasons: {validation.report_uri}; "
        "remove or correct them, or raise the limit"
    )


def _table(uri: str, columns: list[str] | None = None) -> pa.Table:
    rows = storage.join(uri, "rows.parquet")
    try:
        return pq.read_table(storage.fetch(rows), columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{rows}: damaged ({error}); delete the validation and run again") from None
