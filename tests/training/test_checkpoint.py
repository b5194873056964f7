"""Checkpoints: all that a training needs to go on, whole or not at all, and never a pickle."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from kubevox.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)


def a_checkpoint(epoch: int = 4) -> Checkpoint:
    weights = {"layer.weight": torch.randn(3, 2), "norm.num_batches_tracked": torch.tensor(7)}
    moments = {"0.exp_avg": torch.randn(3, 2), "0.step": torch.tensor(7.0)}
    return Checkpoint(epoch, weights, weights, moments, torch.get_rng_state(), {"run_id": "r", "best": 0.1 + 0.2})


def step(network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """One step on numbers and with a dropout that chance decides."""
    loss = nn.functional.dropout(network(torch.randn(8, 3)), 0.5).square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def test_a_checkpoint_is_read_back_as_it_was(tmp_path: Path) -> None:
    written = a_checkpoint()
    save_checkpoint(str(tmp_path), written)
    read = load_checkpoint(str(tmp_path))
    assert read is not None
    assert (read.epoch, read.figures) == (written.epoch, written.figures)
    assert torch.equal(read.random, written.random)
    for group in ("model", "best", "optimiser"):
        before, after = getattr(written, group), getattr(read, group)
        assert before.keys() == after.keys()
        assert all(
            torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
        )


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(3):
        step(network, optimiser)
    tensors, groups = optimiser_tensors(optimiser)
    saved = Checkpoint(3, network.state_dict(), {}, tensors, torch.get_rng_state(), {"optimiser": groups})
    save_checkpoint(str(tmp_path), saved)
    for _ in range(3):
        step(network, optimiser)

    read = load_checkpoint(str(tmp_path))
    assert read is not None
    resumed = nn.Linear(3, 2)
    resumed.load_state_dict(read.model)
    its_optimiser = torch.optim.AdamW(resumed.parameters(), lr=7.0)
    restore_optimiser(its_optimiser, read.optimiser, read.figures["optimiser"])
    torch.set_rng_state(read.random)
    for _ in range(3):
        step(resumed, its_optimiser)
    assert torch.equal(resumed.weight, network.weight)
    assert torch.equal(resumed.bias, network.bias)


def test_the_newest_checkpoint_replaces_the_one_before_and_leaves_nothing_else(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save_checkpoint(str(tmp_path), a_checkpoint(epoch))
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]
    read = load_checkpoint(str(tmp_path))
    assert read is not None
    assert read.epoch == 3


def test_a_checkpoint_is_safetensors_with_json_in_its_header(tmp_path: Path) -> None:
    save_checkpoint(str(tmp_path), a_checkpoint())
    data = (tmp_path / "last.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    described = json.loads(header["__metadata__"]["figures"])
    assert described == a_checkpoint().figures
    sizes = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    assert max(end for _, end in sizes) == len(data) - 8 - int.from_bytes(data[:8], "little"), "nothing but tensors"


def test_without_a_checkpoint_there_is_none_and_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_checkpoint(str(tmp_path)) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["empty", "cut off", "text", "a bit", "its header"])
def test_a_damaged_checkpoint_is_said_and_passed_over(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(str(tmp_path), a_checkpoint())
    path = tmp_path / "last.safetensors"
    data = path.read_bytes()
    flipped = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    changed = {
        "empty": b"",
        "cut off": data[:-1],
        "text": b"this is no checkpoint\n" * 40,
        "a bit": flipped,
        "its header": data.replace(b'\\"best\\"', b'\\"besx\\"').replace(b'"epoch"', b'"epocx"'),
    }[damage]
    assert changed != data
    path.write_bytes(changed)
    assert load_checkpoint(str(tmp_path)) is None
    said = capsys.readouterr().err
    assert str(path) in said
    assert "starts over" in said
    assert len(said.splitlines()) == 1


def test_weights_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    weights = {"weight": torch.arange(4.0)}
    shared = Checkpoint(1, weights, weights, {"0.view": weights["weight"][:2]}, torch.get_rng_state(), {})
    before = copy.deepcopy(weights)
    save_checkpoint(str(tmp_path), shared)
    read = load_checkpoint(str(tmp_path))
    assert read is not None
    assert torch.equal(read.model["weight"], before["weight"])
    assert torch.equal(read.best["weight"], before["weight"])
    assert read.model["weight"].data_ptr() != read.best["weight"].data_ptr()
