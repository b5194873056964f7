"""``rescnn``: a small residual CNN over log-mel bands with attentive statistics pooling.

Residual blocks as in He et al. 2016 ("Deep residual learning for image recognition", CVPR, figure 2), time pooled as
in Okabe, Koshinaka & Shinoda 2018 ("Attentive statistics pooling for deep speaker embedding", Interspeech, equations
2 to 6): every frame gets a weight, and the weighted mean and standard deviation over time describe the utterance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kubevox.config import ResCnnConfig

__all__ = ["AttentiveStatisticsPooling", "ResCnn"]


class ResCnn(nn.Module):
    """Stem, stages of residual blocks, attentive statistics pooling, one linear layer.

    The stem and every stage after the first halve bands and frames.

    Args:
        config: channels of the stages, blocks a stage, attention width, dropout.
        bands: mel bands.
        labels: how many classes.

    Example:
        >>> import torch
        >>> ResCnn(ResCnnConfig(), 64, 7).eval()(torch.zeros(2, 64, 150)).shape
        torch.Size([2, 7])
    """

    def __init__(self, config: ResCnnConfig, bands: int, labels: int) -> None:
        super().__init__()
        width = config.channels[0]
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        bands = -(-bands // 2)
        blocks: list[nn.Module] = []
        for stage, channels in enumerate(config.channels):
            for block in range(config.blocks):
                stride = 2 if stage and not block else 1
                blocks.append(_ResidualBlock(width, channels, stride))
                width, bands = channels, -(-bands // stride)
        self.stages = nn.Sequential(*blocks)
        self.pooling = AttentiveStatisticsPooling(width * bands, config.attention)
        self.head = nn.Sequential(
            nn.BatchNorm1d(2 * width * bands), nn.Dropout(config.dropout), nn.Linear(2 * width * bands, labels)
        )
        # Channels last is a third faster on CPUs; torch 2.13 crashes on it (in the backward pass) for some widths below
        # sixteen, so it is used only where every width fills whole vectors.
        whole = all(channels % 16 == 0 for channels in config.channels)
        self._layout = torch.channels_last if whole else torch.contiguous_format
        self.to(memory_format=self._layout)  # type: ignore[call-overload]

    def forward(self, log_mel: Tensor) -> Tensor:
        """Logits [batch, labels] of normalised log-mel bands [batch, bands, frames]."""
        maps = self.stages(self.stem(log_mel.unsqueeze(1).contiguous(memory_format=self._layout)))
        return self.head(self.pooling(maps.flatten(1, 2)))


class _ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.shortcut(x))


class AttentiveStatisticsPooling(nn.Module):
    """Weighted mean and standard deviation over time, the weights learnt.

    Args:
        channels: channels of the input.
        width: hidden channels of the attention.

    Example:
        >>> import torch
        >>> AttentiveStatisticsPooling(16, 8)(torch.randn(2, 16, 50)).shape
        torch.Size([2, 32])
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Conv1d(channels, width, 1), nn.Tanh(), nn.Conv1d(width, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """[batch, 2 * channels] of frames [batch, channels, time]."""
        weights = torch.softmax(self.attention(frames), dim=-1)
        mean = (weights * frames).sum(dim=-1)
        variance = (weights * frames.square()).sum(dim=-1) - mean.square()
        return torch.cat([mean, variance.clamp_min(1e-6).sqrt()], dim=1)
