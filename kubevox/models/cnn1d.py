"""``cnn1d``: a one-dimensional convolutional network over a vector of clip statistics.

The architecture that speech-emotion projects on RAVDESS commonly start from: three blocks of strided convolutions over
the concatenated statistics (Issa, Demirci & Yazici 2020, "Speech emotion recognition with deep convolutional neural
networks", Biomedical Signal Processing and Control 59, is the best-known of the family). It is kept as the reference
that a default model has to beat.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kubevox.config import Cnn1dConfig

__all__ = ["Cnn1d"]


class Cnn1d(nn.Module):
    """Blocks of [convolution, ReLU]*, max pooling (stride 1) and batch norm; then dense layers.

    Convolutions and pooling pad as "same" does in Keras: a stride of s leaves ceil(n / s) values.

    Args:
        config: filters and strides of each block, kernel, pool, dropout, dense layers.
        values: how many statistics a clip has.
        labels: how many classes.

    Example:
        >>> import torch
        >>> Cnn1d(Cnn1dConfig(), 270, 7).eval()(torch.zeros(2, 270)).shape
        torch.Size([2, 7])
    """

    def __init__(self, config: Cnn1dConfig, values: int, labels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, length = 1, values
        for filters, strides in zip(config.filters, config.strides, strict=True):
            for width, stride in zip(filters, strides, strict=True):
                layers += [_SameConv(channels, width, config.kernel, stride), nn.ReLU()]
                channels, length = width, -(-length // stride)
            layers += [_SamePool(config.pool), nn.BatchNorm1d(channels), nn.Dropout(config.dropout)]
        self.blocks = nn.Sequential(*layers)
        head: list[nn.Module] = [nn.Flatten()]
        width_in = channels * length
        for width in config.dense:
            head += [nn.Linear(width_in, width), nn.ReLU(), nn.Dropout(config.dropout)]
            width_in = width
        self.head = nn.Sequential(*head, nn.Linear(width_in, labels))

    def forward(self, statistics: Tensor) -> Tensor:
        """Logits [batch, labels] of normalised statistics [batch, values]."""
        return self.head(self.blocks(statistics.unsqueeze(1)))


class _SameConv(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        missing = max(0, (-(-length // self.stride) - 1) * self.stride + self.kernel - length)
        return self.conv(nn.functional.pad(x, (missing // 2, missing - missing // 2)))


class _SamePool(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        left = (self.size - 1) // 2
        padded = nn.functional.pad(x, (left, self.size - 1 - left), value=-torch.inf)
        return nn.functional.max_pool1d(padded, self.size, stride=1)
