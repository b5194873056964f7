"""Two models, one question: a small one answers first, a large one only where the small one is not sure.

A cascade is a folder named by its content's hash, ``<store>/cascades/<hash>/``, with ``cascade.json`` in it: the task,
the labels, the two bundles by their hashes, the threshold below which the small model's calibrated confidence counts as
unsure (Viola & Jones 2001 put cheap classifiers before dear ones in this way), and what the validation split said about
it. The bundles are the folders ``mini`` and ``premium`` in it where there are such, else they lie in
``<store>/bundles/<hash>``. :func:`export` makes a folder that has both, for a pod which is brought nothing else.

How the threshold is chosen is in :mod:`kubevox.evaluation.cascade`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from kubevox import storage
from kubevox.config import AudioLimits, Section, SslConfig, parse_section
from kubevox.errors import BundleError, ConfigError, StorageError
from kubevox.features.frontends import minimum_duration_s
from kubevox.features.frontends.encoder import encoder_files, locate
from kubevox.features.pins import identity
from kubevox.models.bundle import Bundle, load_bundle
from kubevox.provenance import content_hash

if TYPE_CHECKING:
    from kubevox.data.audio import Waveform

__all__ = [
    "Cascade",
    "CascadeAnswer",
    "CascadeFigures",
    "CascadeSpec",
    "assemble",
    "export",
    "load_model",
    "read_cascade",
    "save_cascade",
    "unsure",
]

_FORMAT = 1
_HEAD = "cascade.json"
_ROLES: tuple[Literal["mini", "premium"], ...] = ("mini", "premium")


class CascadeFigures(Section):
    """What the validation split said of a cascade at its threshold, and of its two models alone.

    Attributes:
        recordings: of the validation split.
        speakers: known speakers among them.
        premium_share: of the recordings that the premium model answered.
        uar: unweighted average recall of the cascade.
        accuracy: share recognised by the cascade.
        mini_uar: of the mini model alone; likewise the accuracy.
        premium_uar: of the premium model alone; likewise the accuracy.
        difference: the cascade's UAR less the premium model's,
        difference_low: and its interval over speakers,
        difference_high: from here to here.
        mini_ms: median time of a recording that the mini model answers, in milliseconds.
        added_ms: what asking the premium model adds to that.
        premium_ms: median time of a recording that the premium model alone answers.
        mean_ms: of the cascade: ``mini_ms + premium_share * added_ms``.
    """

    recordings: int
    speakers: int
    premium_share: float = Field(ge=0.0, le=1.0)
    uar: float
    accuracy: float
    mini_uar: float
    mini_accuracy: float
    premium_uar: float
    premium_accuracy: float
    difference: float
    difference_low: float
    difference_high: float
    mini_ms: float
    added_ms: float
    premium_ms: float
    mean_ms: float


class CascadeSpec(Section):
    """What ``cascade.json`` says.

    Attributes:
        mini: the hash of the bundle that answers first.
        premium: the hash of the bundle that is asked where the first is not sure.
        threshold: the confidence below which it is not.
        split_hash: of the split on whose validation part the threshold was chosen.
        margin: by how much the cascade's UAR there might lie below the premium model's.
        confidence: of the interval of the difference.
        figures: what was found there.
        remarks: what whoever serves it should know, a sentence each; often none.
        synthetic: whether any of the speakers is a machine.
    """

    format: int = _FORMAT
    task: str
    labels: list[str]
    mini: str
    premium: str
    threshold: float = Field(ge=0.0, le=1.0)
    split_hash: str
    margin: float
    confidence: float
    figures: CascadeFigures
    remarks: list[str]
    synthetic: bool


@dataclass(frozen=True, eq=False)
class CascadeAnswer:
    """What a cascade says of N recordings.

    Attributes:
        probabilities: calibrated, float32 [N, labels]; each row is that of the bundle which answered.
        by_premium: bool [N]: whether the premium model did.
    """

    probabilities: npt.NDArray[np.float32]
    by_premium: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Cascade:
    """A loaded cascade.

    Attributes:
        mini: the bundle that answers first.
        premium: the bundle that is asked where the first is not sure.
        threshold: the confidence of the mini model below which it is not.
        limits: what audio may be: whatever both bundles take, whoever will answer.
        uri: its folder; "" where it is not stored.
        hash: of ``cascade.json``; "" likewise.
    """

    mini: Bundle
    premium: Bundle
    threshold: float
    limits: AudioLimits
    uri: str = ""
    hash: str = ""

    @property
    def task(self) -> str:
        """The task's name."""
        return self.premium.spec.task

    @property
    def labels(self) -> list[str]:
        """In the order of the probabilities."""
        return self.premium.spec.labels

    @property
    def speakers(self) -> list[str]:
        """Whom either bundle was trained on or chosen by, sorted."""
        return sorted({*self.mini.spec.speakers, *self.premium.spec.speakers})

    def answer(self, waveforms: Sequence[Waveform]) -> CascadeAnswer:
        """Have the mini model answer, and the premium model what the mini model is not sure of, as one batch.

        Where both hear the same features, those are computed once.

        Raises:
            AudioError: a recording is too short for a frontend.
        """
        features = self.mini.features(waveforms)
        probabilities = self.mini.probabilities(features)
        asked = unsure(probabilities, self.threshold)
        if asked.any():
            if self.premium.frontend is self.mini.frontend:
                heard = features[asked]
            else:
                heard = self.premium.features([waveforms[i] for i in np.flatnonzero(asked).tolist()])
            probabilities[asked] = self.premium.probabilities(heard)
        return CascadeAnswer(probabilities, asked)


def unsure(probabilities: npt.NDArray[np.floating], threshold: float) -> npt.NDArray[np.bool_]:
    """Of which recordings a model's confidence, its highest probability, is below a threshold: bool [N].

    Args:
        probabilities: float [N, labels].
        threshold: compared in float64, however the probabilities are kept.
    """
    return probabilities.max(axis=1).astype(np.float64) < threshold


def assemble(mini: Bundle, premium: Bundle, threshold: float) -> Cascade:
    """A cascade of two loaded bundles, which is stored nowhere.

    Args:
        mini: answers first.
        premium: answers where the first is not sure.
        threshold: the confidence below which it is not; infinity has the premium model answer everything.

    Raises:
        BundleError: they are of different tasks, labels or orders of labels, or no recording is within both limits.
    """
    one, other = ((bundle.spec.task, bundle.spec.labels) for bundle in (mini, premium))
    if one != other:
        raise BundleError(
            f"cascade of {mini.uri} and {premium.uri}: both must be of one task with the same labels in the same "
            f"order, not {one[0]} ({', '.join(one[1])}) and {other[0]} ({', '.join(other[1])})"
        )
    ears = [(identity(bundle.frontend.config), bundle.frontend.version) for bundle in (mini, premium)]
    if ears[0] == ears[1]:
        premium = replace(premium, frontend=mini.frontend)
    return Cascade(mini, premium, threshold, _common_limits(mini, premium))


def save_cascade(spec: CascadeSpec, store: str, files: Mapping[str, str]) -> str:
    """Publish a cascade; the same description has the same URI.

    Args:
        spec: what is said of it.
        store: a folder or ``s3://bucket/prefix``, with both bundles in it.
        files: texts to lie beside ``cascade.json``, by their names.

    Returns:
        The cascade's URI.

    Raises:
        BundleError: a bundle is not in the store.
    """
    for role in _ROLES:
        place = storage.join(store, "bundles", getattr(spec, role))
        if not storage.exists(storage.join(place, "bundle.json")):
            raise BundleError(
                f"cascade: its {role} is not in the store, where a cascade looks for it: copy the bundle's folder "
                f"to {place}"
            )
    text = json.dumps(spec.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    uri = storage.join(store, "cascades", content_hash(text.encode()))
    with storage.staging(store) as folder:
        for name, content in {**files, _HEAD: text}.items():
            (folder / name).write_text(content, encoding="utf-8")
        storage.publish(folder, uri, _HEAD)
    return uri


def load_model(uri: str, device: str = "cpu") -> Bundle | Cascade:
    """Load what lies there: a cascade where there is a ``cascade.json``, else a bundle.

    Args:
        uri: the folder: in a store, or a copy of it under any name.
        device: "cpu", "cuda" or "auto".

    Raises:
        BundleError: it, or one of a cascade's bundles, is missing or damaged, or they do not fit each other.
        ConfigError: the device is not there, or transformers, which an ``ssl`` frontend needs.
    """
    uri = uri.rstrip("/")
    try:
        is_cascade = storage.exists(storage.join(uri, _HEAD))
    except StorageError as error:
        raise BundleError(f"model {uri}: cannot be read ({error})") from None
    return _load_cascade(uri, device) if is_cascade else load_bundle(uri, device)


def read_cascade(uri: str) -> tuple[CascadeSpec, str]:
    """What a cascade says of itself, and its hash; its bundles are not looked at.

    Raises:
        BundleError: it is missing or damaged.
    """
    uri = uri.rstrip("/")
    try:
        text = storage.read_bytes(storage.join(uri, _HEAD))
    except StorageError as error:
        raise BundleError(f"cascade {uri}: cannot be read ({error})") from None
    digest = content_hash(text)
    named = uri.rpartition("/")[2]
    if len(named) == len(digest) and named != digest:
        raise BundleError(f"cascade {uri}: damaged: its content has the hash {digest[:12]}")
    try:
        return parse_section(CascadeSpec, json.loads(text), f"{uri}/{_HEAD}"), digest
    except (ConfigError, ValueError) as error:
        raise BundleError(f"cascade {uri}: damaged: {' '.join(str(error).split())}") from None


def export(cascade_uri: str, folder: str) -> str:
    """Copy a cascade with both bundles, and their encoders where they have one, into a folder that needs no store.

    Args:
        cascade_uri: the cascade.
        folder: where to: a folder that is not there or is empty, or ``s3://bucket/prefix``.

    Returns:
        The folder's absolute URI; where it holds this cascade already, nothing is written.

    Raises:
        BundleError: the cascade or one of its bundles is missing or damaged.
        StorageError: the folder holds something else, or cannot be written.
    """
    cascade = _load_cascade(cascade_uri.rstrip("/"), "cpu")
    target = storage.absolute(folder)
    head = storage.join(target, _HEAD)
    if storage.exists(head):
        if content_hash(storage.read_bytes(head)) == cascade.hash:
            return target
        raise StorageError(f"{folder}: holds another cascade; choose another folder")
    if any(True for _ in storage.walk(target)):
        raise StorageError(f"{folder}: is not empty; choose another folder")
    try:
        with _staged(target) as staged:
            for path in _folder(cascade.uri, f"cascade {cascade.uri}").iterdir():
                if path.is_file():
                    shutil.copyfile(path, staged / path.name)
            for role in _ROLES:
                _copy_bundle(getattr(cascade, role), staged / role)
            storage.publish(staged, target, _HEAD)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from None
    return target


def _load_cascade(uri: str, device: str) -> Cascade:
    spec, digest = read_cascade(uri)
    mini, premium = (_part(uri, role, getattr(spec, role), device) for role in _ROLES)
    cascade = assemble(mini, premium, spec.threshold)
    if (cascade.task, cascade.labels) != (spec.task, spec.labels):
        raise BundleError(f"cascade {uri}: damaged: {_HEAD} names another task or other labels than its bundles")
    return replace(cascade, uri=uri, hash=digest)


def _part(uri: str, role: str, digest: str, device: str) -> Bundle:
    """One of a cascade's bundles: in its own folder, or in its store."""
    place = storage.join(uri, role)
    if not storage.exists(storage.join(place, "bundle.json")):
        store, _, _ = storage.absolute(uri).rpartition("/cascades/")
        if not store:
            raise BundleError(
                f"cascade {uri}: its {role} is missing: there is no folder {role!r} in it, and it lies in no store; "
                "`kubevox cascade export` makes a folder with both bundles in it"
            )
        place = storage.join(store, "bundles", digest)
    _folder(place, f"cascade {uri}: its {role}")
    bundle = load_bundle(place, device)
    if bundle.hash != digest:
        raise BundleError(
            f"cascade {uri}: its {role} in {place} has the hash {bundle.hash[:12]}, not {digest[:12]} as {_HEAD} says; "
            "copy the right bundle there"
        )
    return bundle


def _folder(uri: str, what: str) -> Path:
    """A local path that holds the folder; in a bucket, no object of that name is looked for first."""
    try:
        return storage.fetch(f"{uri}/")
    except StorageError as error:
        raise BundleError(f"{what} cannot be read ({error})") from None


def _common_limits(mini: Bundle, premium: Bundle) -> AudioLimits:
    """What both bundles take. A frontend's own least duration counts: who answers must not decide what is refused."""
    one, other = mini.spec.limits, premium.spec.limits
    least_s = [one.min_duration_s, other.min_duration_s]
    least_s += [minimum_duration_s(bundle.frontend.config) for bundle in (mini, premium)]
    try:
        return AudioLimits(
            max_bytes=min(one.max_bytes, other.max_bytes),
            min_duration_s=max(least_s),
            max_duration_s=min(one.max_duration_s, other.max_duration_s),
            min_sample_rate=max(one.min_sample_rate, other.min_sample_rate),
            max_sample_rate=min(one.max_sample_rate, other.max_sample_rate),
            max_channels=min(one.max_channels, other.max_channels),
        )
    except ValidationError:
        raise BundleError(
            f"cascade of {mini.uri} and {premium.uri}: no recording is within the limits of both; train them with the "
            "same data.limits"
        ) from None


def _copy_bundle(bundle: Bundle, folder: Path) -> None:
    shutil.copytree(_folder(bundle.uri, f"bundle {bundle.uri}"), folder)
    config = bundle.frontend.config
    if isinstance(config, SslConfig) and not (folder / "encoder").is_dir():
        (folder / "encoder").mkdir()
        for path in encoder_files(locate(config)):
            shutil.copyfile(path, folder / "encoder" / path.name)


@contextlib.contextmanager
def _staged(target: str) -> Iterator[Path]:
    """A temporary folder from which ``target`` can be published, gone afterwards."""
    if target.startswith("s3://"):
        with storage.staging(target) as folder:
            yield folder
        return
    place = Path(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
