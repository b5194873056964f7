"""Speaker-disjoint splits, with a certificate that says what was checked.

``<store>/splits/<hash>/`` holds ``split.parquet`` (utterance, label, split, fold) and ``certificate.json``. The hash is
over the rows, the task's labels and the dataset's hash, so a split that was edited no longer has its name, and the
certificate carries a hash of itself; :func:`load_split` checks both, and the speakers against the dataset, every time a
split is used.

A speaker once assigned stays where it is. Assignments are a log of immutable entries, written once each under
``<store>/assignments/<task>/<number>.json``; a later entry only adds speakers that no earlier one names.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from kubevox import storage
from kubevox.config import SplitConfig, TaskConfig
from kubevox.data.dataset import DatasetVersion, Utterance, load_dataset, read_utterances
from kubevox.errors import SplitError, StorageError
from kubevox.provenance import canonical_json, content_hash

__all__ = ["SPLITS", "Split", "SplitName", "assign_speakers", "load_split", "make_split"]

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
_FORMAT = 2
_CANDIDATES = 300


@dataclass(frozen=True)
class Split:
    """A split and what it was certified for.

    Attributes:
        uri: its folder in the store.
        hash: over its rows and labels.
        labels: the task's labels, in the order of the model's outputs.
        rows: (utterance id, label, split, fold); the fold is None for test rows.
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
        config: shares, folds, seed, whether sentences must be disjoint too.
        store: where the split and the assignments are kept.

    Returns:
        The split, and whether it was there already.

    Raises:
        SplitError: a label without an utterance, or too few speakers; the counts are in the message.
    """
    keep = set(accepted)
    labelled: list[tuple[Utterance, str]] = []
    for utterance in read_utterances(dataset.shard_uris):
        if utterance.source_id not in keep:
            continue
        known, label = task.label_of(utterance.corpus, getattr(utterance, task.label_column))
        if known and label is not None:
            labelled.append((utterance, label))
    _refuse_missing_labels(labelled, task, dataset)
    assigned = _assign_in_store(labelled, task, config, store)
    placed = [(utterance, label, assigned[_group(utterance)]) for utterance, label in labelled]
    dropped = 0
    if config.disjoint_sentences:
        placed, dropped = _drop_shared_sentences(placed)
    _refuse_thin_splits(placed, task, dropped)
    folds = _folds(placed, config)
    rows = sorted(
        (utterance.id, label, split, None if split == "test" else folds[_group(utterance)])
        for utterance, label, split in placed
    )
    digest = _hash(rows, task, dataset.hash)
    uri = storage.join(store, "splits", digest)
    if storage.exists(storage.join(uri, "certificate.json")):
        return load_split(uri), True
    with storage.staging(store) as folder:
        columns = {name: [row[i] for row in rows] for i, name in enumerate(("utterance", "label", "split", "fold"))}
        table = pa.table(
            columns,
            schema=pa.schema(
                [("utterance", pa.string()), ("label", pa.string()), ("split", pa.string()), ("fold", pa.int32())]
            ),
        )
        pq.write_table(table, folder / "split.parquet", compression="zstd")
        certificate = _certificate(placed, dataset, task, config, digest, dropped)
        certificate["seal"] = content_hash(certificate)
        (folder / "certificate.json").write_text(json.dumps(certificate, indent=2, ensure_ascii=False) + "\n")
        fresh = storage.publish(folder, uri, "certificate.json")
    return load_split(uri), not fresh


def load_split(uri: str) -> Split:
    """Read a split and check it again: its rows against its name, its speakers against its dataset.

    Raises:
        SplitError: no valid certificate: the rows were changed, or a speaker or a recording is in two splits.
        StorageError: the split or its dataset is not there.
    """
    try:
        certificate = storage.read_json(storage.join(uri, "certificate.json"))
    except StorageError as error:
        raise SplitError(f"split {uri}: no certificate ({error}); make the split with the split stage") from None
    sealed = certificate if isinstance(certificate, dict) else {}
    if sealed.get("seal") != content_hash({key: value for key, value in sealed.items() if key != "seal"}):
        raise SplitError(
            f"split {uri}: no valid certificate: it was changed after it was made; delete the folder and run the split "
            "stage again"
        )
    try:
        table = pq.read_table(storage.fetch(storage.join(uri, "split.parquet")))
        rows = [(row["utterance"], row["label"], row["split"], row["fold"]) for row in table.to_pylist()]
        task = TaskConfig.model_validate(certificate["task"])
        dataset = load_dataset(_dataset_uri(uri, certificate))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        why = " ".join(str(error).split())
        raise SplitError(f"split {uri}: damaged ({why}); delete the folder and run again") from None
    known = {utterance.id: utterance for utterance in reversed(read_utterances(dataset.shard_uris))}
    if unknown := [row[0] for row in rows if row[0] not in known]:
        raise SplitError(f"split {uri}: {len(unknown)} utterances are not in its dataset, first {unknown[0][:12]}")
    utterances = [known[row[0]] for row in rows]
    where: dict[str, set[str]] = defaultdict(set)
    for utterance, row in zip(utterances, rows, strict=True):
        if utterance.speaker:
            where[utterance.speaker].add(row[2])
    if shared := sorted(speaker for speaker, splits in where.items() if len(splits) > 1):
        raise SplitError(
            f"split {uri}: no valid certificate: speaker {shared[0]} is in {' and '.join(sorted(where[shared[0]]))}"
            + (f" ({len(shared)} such speakers)" if len(shared) > 1 else "")
            + "; delete the folder and run the split stage again"
        )
    digest = _hash(rows, task, dataset.hash)
    if digest != certificate.get("split_hash") or not uri.rstrip("/").endswith(digest):
        raise SplitError(
            f"split {uri}: no valid certificate: its rows were changed after it was made (hash {digest[:12]}, "
            f"certified {str(certificate.get('split_hash'))[:12]}); delete the folder and run the split stage again"
        )
    if failed := [check["name"] for check in certificate["checks"] if check["passed"] is False]:
        raise SplitError(f"split {uri}: its certificate says that these checks failed: {', '.join(failed)}")
    return Split(uri, digest, tuple(task.labels), tuple(rows), certificate, tuple(utterances))


def assign_speakers(
    labelled: Sequence[tuple[Utterance, str]],
    config: SplitConfig,
    previous: Mapping[str, SplitName],
) -> dict[str, SplitName]:
    """Place speakers: those in ``previous`` stay, new ones fill the shares.

    The number of speakers for each split follows the shares, corpus by corpus where a corpus has at least three
    speakers. Which speakers they are is the best of a few hundred seeded draws: the one with the most even labels,
    corpora and sexes across the splits. Utterances without a speaker are placed one by one.

    Args:
        labelled: utterances with their labels.
        config: shares and seed.
        previous: where speakers (of any dataset) were placed before.

    Returns:
        Every speaker (or lone utterance) of ``labelled`` and its split.

    Raises:
        SplitError: fewer than three speakers.
    """
    groups: dict[str, list[tuple[Utterance, str]]] = defaultdict(list)
    for utterance, label in labelled:
        groups[_group(utterance)].append((utterance, label))
    if len(groups) < len(SPLITS):
        raise SplitError(
            f"a split needs at least {len(SPLITS)} speakers, one for each of {', '.join(SPLITS)}; the accepted "
            f"recordings have {len(groups)}: {', '.join(sorted(groups)) or 'none'}"
        )
    pools: dict[str, list[str]] = defaultdict(list)
    for name, members in groups.items():
        pools[members[0][0].corpus].append(name)
    if any(len(pool) < len(SPLITS) for pool in pools.values()):
        pools = {"": sorted(groups)}
    fixed: dict[str, SplitName] = {name: previous[name] for name in groups if name in previous}
    quotas = {corpus: _quota(pool, fixed, config) for corpus, pool in pools.items()}
    profiles = {name: _profile(members) for name, members in groups.items()}
    total = sum(profiles.values(), Counter())
    rng = random.Random(f"{config.seed}")
    best: tuple[float, dict[str, SplitName]] | None = None
    for _ in range(_CANDIDATES if len(fixed) < len(groups) else 1):
        candidate = dict(fixed)
        for corpus in sorted(pools):
            new = sorted(name for name in pools[corpus] if name not in fixed)
            rng.shuffle(new)
            slots = [split for split in SPLITS for _ in range(quotas[corpus][split])]
            candidate.update(zip(new, slots, strict=True))
        cost = _unevenness(candidate, profiles, total, config)
        if best is None or cost < best[0]:
            best = (cost, candidate)
    assert best is not None  # noqa: S101 - the loop runs at least once
    return best[1]


def _dataset_uri(split: str, certificate: Mapping[str, Any]) -> str:
    """The dataset beside the split, so that a store can be moved; else where it was when the split was made."""
    store = split.rpartition("/splits/")[0]
    beside = storage.join(store, "datasets", certificate["dataset"]["hash"])
    return beside if storage.exists(storage.join(beside, "dataset.json")) else certificate["dataset"]["uri"]


def _group(utterance: Utterance) -> str:
    """What must stay in one split: the speaker, or the recording itself where the speaker is not known."""
    return utterance.speaker or f"utterance:{utterance.id}"


def _quota(pool: Sequence[str], fixed: Mapping[str, SplitName], config: SplitConfig) -> dict[SplitName, int]:
    """How many new speakers of a pool go to each split."""
    size = len(pool)
    wanted: dict[SplitName, int] = {
        "test": max(1, round(config.test_share * size)),
        "validation": max(1, round(config.validation_share * size)),
    }
    while size - sum(wanted.values()) < 1:
        largest: SplitName = max(wanted, key=lambda split: wanted[split])
        if wanted[largest] == 1:
            break
        wanted[largest] -= 1
    have = Counter(fixed[name] for name in pool if name in fixed)
    free = sum(1 for name in pool if name not in fixed)
    quota: dict[SplitName, int] = {"train": 0, "validation": 0, "test": 0}
    for split in ("test", "validation"):
        quota[split] = min(free, max(0, wanted[split] - have[split]))
        free -= quota[split]
    quota["train"] = free
    return quota


def _profile(members: Sequence[tuple[Utterance, str]]) -> Counter[str]:
    """What is to be even across splits, with weights: labels first, then corpora, then sexes."""
    profile: Counter[str] = Counter()
    for utterance, label in members:
        profile[f"label:{label}"] += 1
        profile[f"corpus:{utterance.corpus}"] += 1
        profile[f"sex:{utterance.sex}"] += 1
    return profile


def _unevenness(
    candidate: Mapping[str, SplitName],
    profiles: Mapping[str, Counter[str]],
    total: Counter[str],
    config: SplitConfig,
) -> float:
    shares = {
        "train": 1 - config.validation_share - config.test_share,
        "validation": config.validation_share,
        "test": config.test_share,
    }
    filled: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for name, split in candidate.items():
        filled[split] += profiles[name]
    cost = 0.0
    for key, count in sorted(total.items()):  # in one order, so that rounding is the same for the same speakers
        weight = 1.0 if key.startswith("label:") else 0.5
        for split in SPLITS:
            cost += weight * abs(filled[split][key] / count - shares[split])
            if key.startswith("label:") and not filled[split][key]:
                # A label that a split never sees cannot be scored there; one that train never sees cannot be learnt.
                cost += 100.0 if split == "train" else 10.0
    return cost


def _assign_in_store(
    labelled: Sequence[tuple[Utterance, str]], task: TaskConfig, config: SplitConfig, store: str
) -> dict[str, SplitName]:
    """Place new speakers and log them; where another run logged first, its word stands and we place the rest again."""
    folder = storage.join(store, "assignments", task.name)
    while True:
        names = storage.list_names(folder)
        previous: dict[str, SplitName] = {}
        for name in names:
            for speaker, split in storage.read_json(storage.join(folder, name)).items():
                previous.setdefault(speaker, split)
        assigned = assign_speakers(labelled, config, previous)
        new = {name: split for name, split in assigned.items() if name not in previous}
        if not new:
            return assigned
        entry = storage.join(folder, f"{len(names):06d}.json")
        if storage.create(entry, canonical_json(new).encode()):
            return assigned


def _refuse_missing_labels(
    labelled: Sequence[tuple[Utterance, str]], task: TaskConfig, dataset: DatasetVersion
) -> None:
    counts = Counter(label for _, label in labelled)
    if missing := [label for label in task.labels if not counts[label]]:
        corpora = ", ".join(corpus["name"] for corpus in dataset.corpora)
        raise SplitError(
            f"task '{task.name}': no accepted recording has the label {', '.join(repr(m) for m in missing)} "
            f"(corpora: {corpora}); add a corpus that has it, or leave it out with data.labels="
            f"[{', '.join(label for label in task.labels if counts[label])}]"
        )


def _refuse_thin_splits(placed: Sequence[tuple[Utterance, str, SplitName]], task: TaskConfig, dropped: int) -> None:
    for split in SPLITS:
        speakers = {_group(utterance) for utterance, _, where in placed if where == split}
        if not speakers and dropped:
            raise SplitError(
                f"the {split} split is empty: split.disjoint_sentences left out {dropped} recordings of sentences that "
                "other splits have; where all speakers say the same sentences, set it to false"
            )
        if not speakers:
            everyone = Counter(where for _, where in {(_group(u), where) for u, _, where in placed})
            raise SplitError(
                f"the {split} split is empty: speakers are "
                + ", ".join(f"{name} {everyone[name]}" for name in SPLITS)
                + "; speakers keep the split they were first given, so add speakers or use a fresh store"
            )
    trained = {label for _, label, where in placed if where == "train"}
    if untrained := [label for label in task.labels if label not in trained]:
        by_label = {
            label: sorted({_group(utterance) for utterance, other, _ in placed if other == label})
            for label in untrained
        }
        detail = ", ".join(f"{label} ({len(speakers)} speakers)" for label, speakers in by_label.items())
        left_out = f" (split.disjoint_sentences left out {dropped} recordings)" if dropped else ""
        raise SplitError(
            f"no training speaker has the label {detail}{left_out}; each label needs speakers enough to divide"
        )


def _drop_shared_sentences(
    placed: Sequence[tuple[Utterance, str, SplitName]],
) -> tuple[list[tuple[Utterance, str, SplitName]], int]:
    """Leave out of training and validation what is said in a later split; test sentences stay."""
    heard: dict[str, set[str | None]] = {split: {u.text for u, _, s in placed if s == split} for split in SPLITS}
    heard["validation"] -= heard["test"]
    forbidden: dict[str, set[str | None]] = {
        "train": heard["validation"] | heard["test"],
        "validation": heard["test"],
        "test": set(),
    }
    kept = [
        (utterance, label, split)
        for utterance, label, split in placed
        if utterance.text is None or utterance.text not in forbidden[split] - {None}
    ]
    return kept, len(placed) - len(kept)


def _folds(placed: Sequence[tuple[Utterance, str, SplitName]], config: SplitConfig) -> dict[str, int]:
    """Speaker-disjoint folds over what is not test: the next largest speaker goes to the emptiest fold."""
    sizes = Counter(_group(utterance) for utterance, _, split in placed if split != "test")
    filled = [0] * config.folds
    folds = {}
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        fold = filled.index(min(filled))
        folds[name] = fold
        filled[fold] += size
    return folds


def _hash(rows: Iterable[Sequence[Any]], task: TaskConfig, dataset_hash: str) -> str:
    ordered = sorted([list(row) for row in rows], key=lambda row: row[0])
    return content_hash([_FORMAT, task.name, task.labels, dataset_hash], ordered)


def _certificate(
    placed: Sequence[tuple[Utterance, str, SplitName]],
    dataset: DatasetVersion,
    task: TaskConfig,
    config: SplitConfig,
    digest: str,
    dropped: int,
) -> dict[str, Any]:
    speakers: dict[str, set[str]] = {split: set() for split in SPLITS}
    recordings: dict[str, set[str]] = {split: set() for split in SPLITS}
    sentences: dict[str, set[str]] = {split: set() for split in SPLITS}
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    anonymous: Counter[str] = Counter()
    for utterance, label, split in placed:
        recordings[split].add(utterance.id)
        counts[split][label] += 1
        if utterance.speaker:
            speakers[split].add(utterance.speaker)
        else:
            anonymous[utterance.corpus] += 1
        if utterance.text:
            sentences[split].add(utterance.text)
    shared_text = len(_overlap(sentences))
    checks: list[dict[str, Any]] = [
        {
            "name": "speaker-disjoint",
            "passed": not _overlap(speakers),
            "detail": f"{sum(map(len, speakers.values()))} speakers, none in two splits"
            + (f"; unverified for {', '.join(sorted(anonymous))}, which names no speakers" if anonymous else ""),
        },
        {
            "name": "audio-disjoint",
            "passed": not _overlap(recordings),
            "detail": "no recording, by its decoded audio, is in two splits",
        },
        {
            # None: looked at and reported, but not asked for.
            "name": "sentence-disjoint",
            "passed": not shared_text if config.disjoint_sentences else None,
            "detail": f"{dropped} recordings left out so that no sentence is in two splits"
            if config.disjoint_sentences
            else f"not asked for: {shared_text} sentences occur in more than one split",
        },
    ]
    return {
        "format": _FORMAT,
        "split_hash": digest,
        "dataset": {"uri": dataset.uri, "hash": dataset.hash, "synthetic": dataset.synthetic},
        "task": task.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "checks": checks,
        "unverified_corpora": dict(sorted(anonymous.items())),
        "speakers": {split: len(speakers[split]) for split in SPLITS},
        "utterances": {split: len(recordings[split]) for split in SPLITS},
        "labels": {split: {label: counts[split][label] for label in task.labels} for split in SPLITS},
    }


def _overlap(sets: Mapping[str, set[str]]) -> set[str]:
    first, second, third = (sets[split] for split in SPLITS)
    return (first & second) | (first & third) | (second & third)
