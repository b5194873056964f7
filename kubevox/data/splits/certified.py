"""Splits in the store: made once under the name of their content, and checked at every use."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kubevox import storage
from kubevox.config import SplitConfig, TaskConfig
from kubevox.data.dataset import DatasetVersion, Utterance, load_dataset, read_utterances
from kubevox.data.splits.assignments import log_name, read_log
from kubevox.data.splits.certificate import examine
from kubevox.data.splits.placement import Labelled, group_of
from kubevox.data.splits.protocols import SHARED_SENTENCES, SPLITS, Division, Row, SplitName, divide
from kubevox.errors import SplitError, StorageError
from kubevox.provenance import content_hash

__all__ = ["Split", "load_split", "make_split"]

_FORMAT = 4
_REMEDY = "delete the folder and run the split stage again"
_SCHEMA = pa.schema(
    [
        ("utterance", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("fold", pa.int32()),
        # Several recordings can be the same sound, and only one of them may have been accepted: which one is said.
        ("source_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class Split:
    """A split and what it was certified for.

    Attributes:
        uri: its folder in the store.
        hash: over its rows, labels, dataset and protocol.
        labels: the task's labels, in the order of the model's outputs.
        rows: (utterance id, label, split, fold); the fold is None where the protocol places none.
        certificate: as in ``certificate.json``.
        utterances: the metadata of each row's utterance, in the same order.
    """

    uri: str
    hash: str
    labels: tuple[str, ...]
    rows: tuple[tuple[str, str, SplitName, int | None], ...]
    certificate: dict[str, Any]
    utterances: tuple[Utterance, ...]

    def of(self, *splits: SplitName) -> list[tuple[Utterance, str]]:
        """The utterances of some splits with their labels, in the split's order."""
        return [
            (utterance, row[1]) for row, utterance in zip(self.rows, self.utterances, strict=True) if row[2] in splits
        ]

    def speakers(self, *splits: SplitName) -> list[str]:
        """The known speakers of some splits, sorted."""
        return sorted({utterance.speaker for utterance, _ in self.of(*splits) if utterance.speaker})

    @property
    def split_of(self) -> dict[str, SplitName]:
        """Utterance id to split."""
        return {row[0]: row[2] for row in self.rows}

    @property
    def dataset(self) -> DatasetVersion:
        """The dataset version that the split was made from."""
        return load_dataset(_dataset_uri(self.uri, self.certificate))


def make_split(
    dataset: DatasetVersion,
    accepted: Iterable[str],
    task: TaskConfig,
    config: SplitConfig,
    store: str,
) -> tuple[Split, bool]:
    """Divide the accepted utterances of a dataset into train, validation and test, disjoint in speakers.

    Speakers whom the store's log already names stay where they are; new ones are placed so that labels, corpora and
    sexes are as even as whole speakers allow. The same dataset in the same store always gives the same split.

    Args:
        dataset: the version to split.
        accepted: the source ids that validation accepted.
        task: the label set and how raw labels map onto it.
        config: the protocol, shares, folds, seed, whether sentences must be disjoint too.
        store: where the split and the assignments are kept.

    Returns:
        The split, and whether it was there already.

    Raises:
        SplitError: a label without an utterance, too few speakers, a recording under two speakers, or a partition that
            cannot be kept; the counts are in the message.
    """
    keep = set(accepted)
    labelled: list[Labelled] = []
    for utterance in read_utterances(dataset.shard_uris):
        if utterance.source_id not in keep:
            continue
        known, label = task.label_of(utterance.corpus, getattr(utterance, task.label_column))
        if known and label is not None:
            labelled.append((utterance, label))
    _refuse_missing_labels(labelled, task, dataset)
    _refuse_shared_audio(labelled)
    division = divide(labelled, task, config, store)
    _refuse_thin_splits(division, task, config)
    ordered = sorted(division.rows, key=lambda row: (row.utterance.id, row.utterance.source_id))
    rows = [(row.utterance.id, row.label, row.split, row.fold, row.utterance.source_id) for row in ordered]
    digest = _hash(rows, task, config, dataset.hash, division.left_out)
    uri = storage.join(store, "splits", digest)
    if storage.exists(storage.join(uri, "certificate.json")):
        return load_split(uri), True
    certificate = {
        "format": _FORMAT,
        "split_hash": digest,
        "dataset": {"uri": dataset.uri, "hash": dataset.hash, "synthetic": dataset.synthetic},
        "task": task.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "left_out": division.left_out,
        **examine(ordered, task, config, read_log(store, log_name(task, config)), division.left_out),
    }
    _refuse_failed(certificate, f"split of dataset {dataset.hash[:12]}")
    certificate["seal"] = content_hash(certificate)
    with storage.staging(store) as folder:
        columns = {name: [row[i] for row in rows] for i, name in enumerate(_SCHEMA.names)}
        pq.write_table(pa.table(columns, schema=_SCHEMA), folder / "split.parquet", compression="zstd")
        (folder / "certificate.json").write_text(json.dumps(certificate, indent=2, ensure_ascii=False) + "\n")
        fresh = storage.publish(folder, uri, "certificate.json")
    return load_split(uri), not fresh


def load_split(uri: str) -> Split:
    """Read a split and check it again: its rows against its name, and all that its certificate says against the rows.

    Raises:
        SplitError: no valid certificate: the rows or the certificate were changed, a speaker or a recording is in two
            splits, or the store's log has somebody elsewhere.
        StorageError: the split or its dataset is not there.
    """
    certificate = _sealed_certificate(uri)
    try:
        table = pq.read_table(storage.fetch(storage.join(uri, "split.parquet")))
        rows = [tuple(row[name] for name in _SCHEMA.names) for row in table.to_pylist()]
        if any(cell is None for row in rows for cell in (*row[:3], row[4])):
            raise ValueError("a row of split.parquet is not whole")
        task = TaskConfig.model_validate(certificate["task"])
        config = SplitConfig.model_validate(certificate["config"])
        dataset = load_dataset(_dataset_uri(uri, certificate))
        left_out = dict(certificate["left_out"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise SplitError(f"split {uri}: damaged ({why}); delete the folder and run again") from None
    known = {(utterance.id, utterance.source_id): utterance for utterance in read_utterances(dataset.shard_uris)}
    if unknown := [row[0] for row in rows if (row[0], row[4]) not in known]:
        raise SplitError(f"split {uri}: {len(unknown)} utterances are not in its dataset, first {unknown[0][:12]}")
    found = [Row(known[id, source_id], label, split, fold) for id, label, split, fold, source_id in rows]
    _refuse_shared_speakers(uri, found)
    digest = _hash(rows, task, config, dataset.hash, left_out)
    if digest != certificate.get("split_hash") or not uri.rstrip("/").endswith(digest):
        raise SplitError(
            f"split {uri}: no valid certificate: its rows were changed after it was made (hash {digest[:12]}, "
            f"certified {str(certificate.get('split_hash'))[:12]}); {_REMEDY}"
        )
    _refuse_other_labels(uri, found, task)
    log = read_log(uri.rpartition("/splits/")[0], log_name(task, config))
    findings = examine(found, task, config, log, left_out)
    _refuse_failed(findings, f"split {uri}")
    findings["dataset"] = {**certificate["dataset"], "hash": dataset.hash, "synthetic": dataset.synthetic}
    if untrue := sorted(name for name, value in findings.items() if certificate.get(name) != value):
        raise SplitError(
            f"split {uri}: no valid certificate: its {', '.join(untrue)} are not what the rows say; {_REMEDY}"
        )
    placed = tuple((row.utterance.id, row.label, row.split, row.fold) for row in found)
    return Split(uri, digest, tuple(task.labels), placed, certificate, tuple(row.utterance for row in found))


def _sealed_certificate(uri: str) -> dict[str, Any]:
    try:
        certificate = storage.read_json(storage.join(uri, "certificate.json"))
    except StorageError as error:
        raise SplitError(f"split {uri}: no certificate ({error}); make the split with the split stage") from None
    sealed = certificate if isinstance(certificate, dict) else {}
    if sealed.get("seal") != content_hash({key: value for key, value in sealed.items() if key != "seal"}):
        raise SplitError(f"split {uri}: no valid certificate: it was changed after it was made; {_REMEDY}")
    if sealed.get("format") != _FORMAT:
        raise SplitError(f"split {uri}: a certificate of format {sealed.get('format')}, not {_FORMAT}; {_REMEDY}")
    return sealed


def _dataset_uri(split: str, certificate: Mapping[str, Any]) -> str:
    """The dataset beside the split, so that a store can be moved; else where it was when the split was made."""
    store = split.rpartition("/splits/")[0]
    beside = storage.join(store, "datasets", str(certificate["dataset"]["hash"]))
    return beside if storage.exists(storage.join(beside, "dataset.json")) else certificate["dataset"]["uri"]


def _hash(
    rows: Iterable[Sequence[Any]],
    task: TaskConfig,
    config: SplitConfig,
    dataset_hash: str,
    left_out: Mapping[str, int],
) -> str:
    """What names a split. Of the configuration only what the certificate answers for: two seeds may give one split."""
    ordered = sorted([list(row) for row in rows], key=lambda row: (row[0], row[4]))
    protocol = [config.protocol, log_name(task, config), config.folds, config.fold, config.published]
    return content_hash(
        [_FORMAT, task.name, task.labels, dataset_hash], [*protocol, config.disjoint_sentences], dict(left_out), ordered
    )


def _refuse_missing_labels(labelled: Sequence[Labelled], task: TaskConfig, dataset: DatasetVersion) -> None:
    counts = Counter(label for _, label in labelled)
    if missing := [label for label in task.labels if not counts[label]]:
        corpora = ", ".join(corpus["name"] for corpus in dataset.corpora)
        raise SplitError(
            f"task '{task.name}': no accepted recording has the label {', '.join(repr(m) for m in missing)} "
            f"(corpora: {corpora}); add a corpus that has it, or leave it out with data.labels="
            f"[{', '.join(label for label in task.labels if counts[label])}]"
        )


def _refuse_shared_audio(labelled: Sequence[Labelled]) -> None:
    """Before anybody is placed: what the assignment log says stays."""
    heard: dict[str, set[str]] = defaultdict(set)
    for utterance, _ in labelled:
        heard[utterance.id].add(group_of(utterance))
    if shared := sorted(sorted(groups) for groups in heard.values() if len(groups) > 1):
        raise SplitError(
            f"{len(shared)} accepted recordings are there under more than one speaker, such as "
            f"{' and '.join(shared[0])}, and could be in two splits; set validation.gates.duplicate to quarantine"
        )


def _refuse_thin_splits(division: Division, task: TaskConfig, config: SplitConfig) -> None:
    groups = {split: {group_of(row.utterance) for row in division.rows if row.split == split} for split in SPLITS}
    dropped = division.left_out.get(SHARED_SENTENCES, 0)
    for split in SPLITS:
        if groups[split]:
            continue
        if dropped:
            raise SplitError(
                f"the {split} split is empty: split.disjoint_sentences left out {dropped} recordings of sentences that "
                "other splits have; where all speakers say the same sentences, set it to false"
            )
        raise SplitError(
            f"the {split} split is empty: speakers are "
            + ", ".join(f"{name} {len(groups[name])}" for name in SPLITS)
            + (
                "; no published partition is called so: add a corpus that has one, or use another split.protocol"
                if config.protocol == "published"
                else "; speakers keep the split they were first given, so add speakers or use a fresh store"
            )
        )
    trained = {row.label for row in division.rows if row.split == "train"}
    if untrained := [label for label in task.labels if label not in trained]:
        heard: dict[str, set[str]] = defaultdict(set)
        for row in division.rows:
            heard[row.label].add(group_of(row.utterance))
        detail = ", ".join(f"{label} ({len(heard[label])} speakers)" for label in untrained)
        left_out = f" (split.disjoint_sentences left out {dropped} recordings)" if dropped else ""
        if config.held_out:
            remedy = f"only {config.held_out}, which is held out, has it: leave it out with data.labels"
        else:
            remedy = "each label needs speakers enough to divide"
        raise SplitError(f"no training speaker has the label {detail}{left_out}; {remedy}")


def _refuse_shared_speakers(uri: str, rows: Iterable[Row]) -> None:
    where: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.utterance.speaker:
            where[row.utterance.speaker].add(row.split)
    if shared := sorted(speaker for speaker, splits in where.items() if len(splits) > 1):
        raise SplitError(
            f"split {uri}: no valid certificate: speaker {shared[0]} is in {' and '.join(sorted(where[shared[0]]))}"
            + (f" ({len(shared)} such speakers)" if len(shared) > 1 else "")
            + f"; {_REMEDY}"
        )


def _refuse_other_labels(uri: str, rows: Iterable[Row], task: TaskConfig) -> None:
    wrong = [
        row
        for row in rows
        if task.label_of(row.utterance.corpus, getattr(row.utterance, task.label_column)) != (True, row.label)
    ]
    if wrong:
        raise SplitError(
            f"split {uri}: no valid certificate: {len(wrong)} rows have labels that its task does not give them; "
            f"{_REMEDY}"
        )


def _refuse_failed(findings: Mapping[str, Any], what: str) -> None:
    if failed := [check for check in findings["checks"] if check["passed"] is False]:
        said = "; ".join(f"{check['name']} ({check['detail']})" for check in failed)
        raise SplitError(f"{what}: these checks fail: {said}")
