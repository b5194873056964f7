"""The architectures: their examples run, their sizes are the published ones."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch

from kubevox.config import Cnn1dConfig, ResCnnConfig
from kubevox.models import build_network


@pytest.mark.parametrize("module", ["cnn1d", "rescnn"])
def test_docstring_examples_run(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"kubevox.models.{module}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_cnn1d_has_the_blocks_of_its_description() -> None:
    network = build_network(Cnn1dConfig(), (270,), 7)
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv1d)]
    assert [module.out_channels for module in convolutions] == [64, 64, 64, 128, 128, 256]
    assert [module.stride for module in convolutions] == [(1,), (2,), (2,), (1,), (2,), (2,)]
    assert {module.kernel_size for module in convolutions} == {(3,)}
    dense = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    # 270 values, halved (rounding up) at each stride of two: 135, 68, 34, 17.
    assert [(layer.in_features, layer.out_features) for layer in dense] == [(17 * 256, 64), (64, 16), (16, 7)]


def test_default_rescnn_has_about_a_third_of_a_million_parameters() -> None:
    network = build_network(ResCnnConfig(), (64, 150), 7)
    assert 300_000 < sum(parameter.numel() for parameter in network.parameters()) < 400_000


@pytest.mark.parametrize(("config", "shape"), [(Cnn1dConfig(), (270,)), (ResCnnConfig(), (64, 150))])
def test_one_recording_is_a_batch(config: Cnn1dConfig | ResCnnConfig, shape: tuple[int, ...]) -> None:
    network = build_network(config, shape, 5).eval()
    assert network(torch.randn(1, *shape)).shape == (1, 5)
