"""The deployable model: a folder named by its hash, with everything that a prediction needs.

``bundle.json`` (task, labels, frontend, architecture, audio limits, temperature, what it was trained on) and
``model.safetensors`` (weights and normalisation). The evaluator, the model server and the command line all predict
through :class:`Bundle`; there is no second copy of any step.

A bundle whose frontend is ``ssl`` also holds the pretrained encoder's files, byte for byte, in ``encoder/``; files of
more than 1 GiB together lie once in the store, in ``<store>/encoders/<sha256>/``, for all bundles that use them. The
bundle's hash is over ``bundle.json`` and ``model.safetensors``: the first holds the encoder's ``sha256``, so the hash
covers the encoder wherever it lies, and loading reads its files once, to compare them with that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from kubevox import storage
from kubevox.config import AudioLimits, FrontendConfig, ModelConfig, Section, SslConfig, parse_section
from kubevox.errors import BundleError, ConfigError, StorageError
from kubevox.features.frontends import Frontend, build_frontend
from kubevox.features.frontends.encoder import encoder_files, encoder_hash, locate, relocated, verified
from kubevox.features.pins import pinned
from kubevox.models import build_network
from kubevox.provenance import content_hash

if TYPE_CHECKING:
    from kubevox.data.audio import Waveform

__all__ = ["Bundle", "BundleSpec", "Classifier", "fit_temperature", "load_bundle", "save_bundle"]

_FORMAT = 1
_BATCH = 32
# A bundle of more than this is slow to bring to a pod, and each training would store the encoder anew.
_MOST_ENCODER_BYTES = 1 << 30


class BundleSpec(Section):
    """What ``bundle.json`` says.

    Attributes:
        frontend_version: the frontend's version when the model was trained; another version would give other numbers.
        shape: one feature's shape.
        temperature: the logits are divided by it before the softmax (Guo et al. 2017).
        speakers: whom the model was trained on or chosen by (train and validation).
        key_fingerprint: of the key that the speakers' names are pseudonyms under; names under another key mean nothing
            beside them. None: of machines' voices only.
        synthetic: whether any of them is a machine.
    """

    format: int = _FORMAT
    task: str
    labels: list[str]
    frontend: FrontendConfig
    frontend_version: int
    shape: list[int]
    model: ModelConfig
    parameters: int
    temperature: float = Field(gt=0.0)
    limits: AudioLimits
    dataset_hash: str
    split_hash: str
    training_key: str
    speakers: list[str]
    key_fingerprint: str | None = None
    synthetic: bool


class Classifier(nn.Module):
    """Normalisation and network: float32 features [batch, *shape] to logits [batch, labels]."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def normalise(self, features: Tensor) -> Tensor:
        """Zero mean and unit variance by the training rows' figures."""
        return (features - self.mean) / self.scale

    def forward(self, features: Tensor) -> Tensor:
        """Logits of raw features."""
        return self.network(self.normalise(features))


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle.

    ``spec`` is what ``bundle.json`` says; ``frontend.config`` differs from its ``frontend`` in where the encoder of an
    ``ssl`` frontend was found.
    """

    uri: str
    hash: str
    spec: BundleSpec
    classifier: Classifier
    frontend: Frontend

    def probabilities(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Calibrated probabilities [N, labels] of features [N, *shape]."""
        if not len(features):
            return np.empty((0, len(self.spec.labels)), np.float32)
        with torch.inference_mode():
            logits = [
                self.classifier(torch.from_numpy(np.ascontiguousarray(batch)).to(self.frontend.device)).double()
                for batch in np.array_split(features, range(_BATCH, len(features), _BATCH))
            ]
            return torch.softmax(torch.cat(logits) / self.spec.temperature, dim=-1).float().cpu().numpy()

    def features(self, waveforms: Sequence[Waveform]) -> npt.NDArray[np.float32]:
        """Features [N, *shape] of canonical waveforms, as the training rows' were computed.

        Raises:
            AudioError: a recording is too short for the frontend.
        """
        return self.frontend.extract([self.frontend.prepare(waveform) for waveform in waveforms])

    def predict(self, waveforms: Sequence[Waveform]) -> npt.NDArray[np.float32]:
        """Calibrated probabilities [N, labels] of canonical waveforms.

        Raises:
            AudioError: a recording is too short for the frontend.
        """
        return self.probabilities(self.features(waveforms))


def save_bundle(classifier: Classifier, spec: BundleSpec, store: str) -> str:
    """Publish a bundle, with its encoder if it has one; the same model with the same description has the same URI.

    Returns:
        The bundle's URI.

    Raises:
        ConfigError: the encoder of an ``ssl`` frontend is not there, or other than the ``sha256`` in ``spec``.
    """
    spec = spec.model_copy(update={"frontend": pinned(spec.frontend)})
    weights = save({name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()})
    text = json.dumps(spec.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    uri = storage.join(store, "bundles", content_hash(text.encode(), weights))
    with storage.staging(store) as folder:
        (folder / "bundle.json").write_text(text, encoding="utf-8")
        (folder / "model.safetensors").write_bytes(weights)
        if isinstance(spec.frontend, SslConfig):
            _save_encoder(spec.frontend, folder / "encoder", store)
        storage.publish(folder, uri, "bundle.json")
    return uri


def load_bundle(uri: str, device: str = "cpu") -> Bundle:
    """Load a bundle and check that its content has the hash that it is named by.

    Args:
        uri: the bundle's folder: in a store, or a copy of it under any name.
        device: "cpu", "cuda" or "auto".

    Raises:
        BundleError: it or its encoder is missing or damaged, or it was made by a frontend of another version.
        ConfigError: the device is not there, or transformers, which an ``ssl`` frontend needs.
    """
    try:
        folder = storage.fetch(uri.rstrip("/"))
        text = (folder / "bundle.json").read_bytes()
        weights = (folder / "model.safetensors").read_bytes()
    except (OSError, StorageError) as error:
        raise BundleError(f"bundle {uri}: cannot be read ({error})") from None
    digest = content_hash(text, weights)
    named = uri.rstrip("/").rpartition("/")[2]
    if len(named) == len(digest) and named != digest:
        raise BundleError(f"bundle {uri}: damaged: its content has the hash {digest[:12]}")
    try:
        spec = parse_section(BundleSpec, json.loads(text), f"{uri}/bundle.json")
    except (ConfigError, ValueError) as error:
        raise BundleError(f"bundle {uri}: damaged: {' '.join(str(error).split())}") from None
    config = spec.frontend
    frontend = build_frontend(_with_encoder(config, folder, uri) if isinstance(config, SslConfig) else config, device)
    if spec.frontend_version != frontend.version:
        raise BundleError(
            f"bundle {uri}: trained with version {spec.frontend_version} of the {spec.frontend.kind} frontend, this is "
            f"version {frontend.version}; train again"
        )
    try:
        network = build_network(spec.model, tuple(spec.shape), len(spec.labels))
        state = load(weights)
        classifier = Classifier(network, torch.zeros_like(state["mean"]), torch.ones_like(state["scale"]))
        classifier.load_state_dict(state)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise BundleError(f"bundle {uri}: damaged: {' '.join(str(error).split())}") from None
    classifier.eval().to(frontend.device)
    return Bundle(uri.rstrip("/"), digest, spec, classifier, frontend)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017, section 4.2).

    Args:
        logits: float [N, labels].
        labels: int64 [N].
    """
    logits = logits.detach().double()
    candidates = torch.logspace(-1, 1, 401, dtype=torch.float64)
    losses = torch.stack([nn.functional.cross_entropy(logits / t, labels) for t in candidates])
    return round(float(candidates[losses.argmin()]), 4)


def _save_encoder(config: SslConfig, folder: Path, store: str) -> None:
    """Put the encoder's files into the bundle's ``folder``, or into the store where they are too large for that."""
    source, sha256 = verified(config)
    files = encoder_files(source)
    if sum(path.stat().st_size for path in files) <= _MOST_ENCODER_BYTES:
        folder.mkdir()
        _gather(files, folder, store)
        return
    uri, head = storage.join(store, "encoders", sha256), files[0].name
    if not storage.exists(storage.join(uri, head)):
        with storage.staging(store) as staged:
            _gather(files, staged, store)
            storage.publish(staged, uri, head)


def _gather(files: Sequence[Path], folder: Path, store: str) -> None:
    for path in files:
        if store.startswith("s3://"):
            # Uploaded from where it is: a pod's temporary folder need not hold gigabytes.
            (folder / path.name).symlink_to(path.resolve())
        else:
            shutil.copyfile(path, folder / path.name)


def _with_encoder(config: SslConfig, folder: Path, uri: str) -> SslConfig:
    """The frontend's section with the place where its encoder is: in the bundle, in its store, or as it says.

    Raises:
        BundleError: it is in none of them, or what is in the first that there is, is damaged.
    """
    if config.sha256 is None:
        raise BundleError(f"bundle {uri}: damaged: bundle.json has no sha256 of the encoder {config.model!r}")
    place = _encoder_place(config, config.sha256, folder, uri)
    try:
        found = encoder_hash(place)
    except (ConfigError, OSError) as error:
        raise BundleError(f"bundle {uri}: its encoder is damaged: {error}") from None
    if found != config.sha256:
        raise BundleError(
            f"bundle {uri}: its encoder is damaged: {place} has the SHA-256 {found}, not {config.sha256} as "
            "bundle.json says; delete that folder and copy it again"
        )
    return relocated(config, place)


def _encoder_place(config: SslConfig, sha256: str, folder: Path, uri: str) -> Path:
    if (folder / "encoder").is_dir():
        return folder / "encoder"
    store, _, _ = storage.absolute(uri).rpartition("/bundles/")
    where = f"<store>/encoders/{sha256}"
    if store:
        where = storage.join(store, "encoders", sha256)
        try:
            return storage.fetch(where)
        except StorageError:
            pass  # an encoder that is small enough is in no such place
    try:
        return locate(config)
    except ConfigError as error:
        raise BundleError(
            f"bundle {uri}: its encoder is missing: neither `encoder` in the bundle's folder, nor {where}, nor the "
            f"place that it was trained with ({error}); copy it to `encoder` in the bundle's folder: a model server is "
            "brought that folder and nothing else of the store"
        ) from None
