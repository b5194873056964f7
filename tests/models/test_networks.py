"""The networks: shapes and sizes as they are described, and the examples in their docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import kubevox.models
from kubevox.config import Cnn1dConfig, ResCnnConfig
from kubevox.models import build_network
from kubevox.models.cnn1d import Cnn1d
from kubevox.models.rescnn import AttentiveStatisticsPooling, ResCnn

MODULES = [module.name for module in pkgutil.iter_modules(kubevox.models.__path__, "kubevox.models.")]
DEFAULTS = {"cnn1d": (Cnn1dConfig(), (270,)), "rescnn": (ResCnnConfig(), (64, 151))}


def lengths_after_convolutions(network: Cnn1d, values: int) -> list[int]:
    lengths: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda module, given, made: lengths.append(made.shape[-1]))
        for layer in network.blocks
        if any(isinstance(part, nn.Conv1d) for part in layer.modules())
    ]
    network.eval()(torch.zeros(1, values))
    for hook in hooks:
        hook.remove()
    return lengths


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_hold(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(module))
    assert outcome.failed == 0
    if module.endswith(("cnn1d", "rescnn")):
        assert outcome.attempted > 0


def test_cnn1d_has_the_published_layers() -> None:
    network = Cnn1d(Cnn1dConfig(), 270, 7)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv1d)]
    assert [layer.out_channels for layer in convolutions] == [64, 64, 64, 128, 128, 256]
    assert [layer.kernel_size for layer in convolutions] == [(3,)] * 6
    assert [layer.stride for layer in convolutions] == [(1,), (2,), (2,), (1,), (2,), (2,)]
    assert lengths_after_convolutions(network, 270) == [270, 135, 68, 68, 34, 17]
    dense = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in dense] == [(17 * 256, 64), (64, 16), (16, 7)]
    norms = [layer.num_features for layer in network.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert norms == [64, 128, 256]
    assert {layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)} == {0.2}


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=30)
def test_cnn1d_pads_so_that_a_stride_leaves_the_ceiling_and_a_pool_leaves_all(length: int, kernel: int, stride: int):
    config = Cnn1dConfig(filters=[[2]], strides=[[stride]], kernel=kernel, pool=kernel, dense=[2])
    network = Cnn1d(config, length, 2)
    assert network.eval().blocks(torch.zeros(1, 1, length)).shape == (1, 2, -(-length // stride))


def test_the_default_rescnn_has_a_third_of_a_million_parameters() -> None:
    network = ResCnn(ResCnnConfig(), 64, 7)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(350_000, rel=0.1)


@pytest.mark.parametrize("architecture", DEFAULTS)
def test_one_recording_alone_gets_what_it_gets_in_a_batch(architecture: str) -> None:
    config, shape = DEFAULTS[architecture]
    torch.manual_seed(0)
    network = build_network(config, shape, 5).eval()
    batch = torch.randn(4, *shape)
    with torch.inference_mode():
        together = network(batch)
        alone = torch.cat([network(one) for one in batch.split(1)])
    assert together.shape == (4, 5)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", DEFAULTS)
def test_every_parameter_learns(architecture: str) -> None:
    config, shape = DEFAULTS[architecture]
    network = build_network(config, shape, 3).train()
    nn.functional.cross_entropy(network(torch.randn(4, *shape)), torch.tensor([0, 1, 2, 0])).backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []


def test_pooling_gives_mean_and_deviation_where_all_frames_weigh_the_same() -> None:
    pooling = AttentiveStatisticsPooling(3, 4)
    for parameter in pooling.parameters():
        nn.init.zeros_(parameter)
    frames = torch.randn(2, 3, 20)
    expected = torch.cat([frames.mean(-1), frames.std(-1, unbiased=False)], dim=1)
    torch.testing.assert_close(pooling(frames), expected)


def test_pooling_of_frames_that_never_move_is_finite_and_so_is_its_gradient() -> None:
    frames = torch.full((1, 3, 20), 1e3, requires_grad=True)
    pooled = AttentiveStatisticsPooling(3, 4)(frames)
    pooled.sum().backward()
    assert torch.isfinite(pooled).all()
    assert frames.grad is not None
    assert torch.isfinite(frames.grad).all()
