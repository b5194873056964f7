"""Checkpoints without pickle: one safetensors file an epoch, replaced in one step.

Tensors (model, best model, optimiser moments, random state) are tensors; numbers and the history are JSON in the
file's own header. A kill at any moment leaves the previous epoch's file or this one's, never half of one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kubevox import storage
from kubevox.progress import note

__all__ = ["Checkpoint", "load_checkpoint", "optimiser_tensors", "restore_optimiser", "save_checkpoint"]

_NAME = "last.safetensors"


@dataclass
class Checkpoint:
    """The state of a training run after an epoch.

    Attributes:
        epoch: how many epochs are done.
        model: the weights.
        best: the weights of the best epoch so far.
        optimiser: the optimiser's tensors, as ``<parameter index>.<name>``.
        random: torch's CPU generator state.
        figures: JSON-able rest: history, best figure, early stopping's counter, schedules, optimiser scalars, the
            split's hash.
    """

    epoch: int
    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    random: Tensor
    figures: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: str, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint."""
    tensors = {"random": checkpoint.random}
    for group in ("model", "best", "optimiser"):
        tensors |= {f"{group}/{k}": v.detach().cpu().contiguous() for k, v in getattr(checkpoint, group).items()}
    # Tensors that share memory (best is model after an improvement) may not share it in the file.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    header = {"epoch": str(checkpoint.epoch), "figures": json.dumps(checkpoint.figures), "sha256": _digest(tensors)}
    storage.write_bytes(storage.join(folder, _NAME), save(tensors, metadata=header))


def load_checkpoint(folder: str) -> Checkpoint | None:
    """The folder's checkpoint, or None where there is none; a damaged one is said and passed over."""
    uri = storage.join(folder, _NAME)
    if not storage.exists(uri):
        return None
    import tempfile

    try:
        # Not through the cache of fetched objects: a checkpoint is the one thing in the store that changes.
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
            copy.write(storage.read_bytes(uri))
            copy.flush()
            with safe_open(copy.name, framework="pt") as file:
                header = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if header["sha256"] != _digest(tensors):
            raise ValueError("its tensors are not those that were saved")
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            group, slash, key = name.partition("/")
            if slash:
                groups[group][key] = tensor
        return Checkpoint(
            epoch=int(header["epoch"]), random=tensors["random"], figures=json.loads(header["figures"]), **groups
        )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        note(f"checkpoint {uri} is damaged ({error}); training starts over")
        return None


def _digest(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(save(tensors)).hexdigest()


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as named tensors and JSON-able parameter groups."""
    state = optimiser.state_dict()
    tensors = {
        f"{index}.{name}": value
        for index, values in state["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    return tensors, state["param_groups"]


def restore_optimiser(
    optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Put back what :func:`optimiser_tensors` took out."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": groups})
