"""The parts that every progressive discriminator shares."""

from typing import Protocol

import torch
from torch import Tensor, nn

from stylegen.config import DiscriminatorConfig, resolution_of
from stylegen.ops import bias_act

from .layers import (
    Conv,
    Dense,
    MinibatchDiscrimination,
    Resolution,
    downscale,
    features,
    fmaps,
    level_of,
    limit,
    minibatch_stddev,
)


class DiscriminatorTail(nn.Module):
    """The coarsest level of D: minibatch stddev, conv, dense, (minibatch discrimination,) dense -> [N, outputs]."""

    def __init__(self, config: DiscriminatorConfig, outputs: int):
        super().__init__()
        self.config = config
        self.stddev = config.mbstd_features if config.mbstd_group > 1 else 0
        width, inner = fmaps(config, 1), fmaps(config, 0)
        self.conv = Conv(width + self.stddev, width)
        self.dense0 = Dense(width * config.base[0] * config.base[1], inner)
        self.dense1 = Dense(inner + config.mbdisc_features, outputs, gain=1.0)
        self.mbdisc: MinibatchDiscrimination | None = None
        if n := config.mbdisc_features:
            self.mbdisc = MinibatchDiscrimination(inner, n, config.mbdisc_size, equalized=True)

    def forward(self, x: Tensor, parts: int = 1) -> Tensor:
        x = self.features(x, parts)
        return self.dense1(x if self.mbdisc is None else self.mbdisc(x, parts))

    def features(self, x: Tensor, parts: int = 1) -> Tensor:
        """What the last layers start from, [N, inner]: the activations of the first dense layer."""
        act = self.config.activation
        if self.stddev:
            x = minibatch_stddev(x, self.config.mbstd_group, self.stddev, parts)
        x = bias_act(self.conv(x), self.conv.bias, act=act, gain=1.0)
        return bias_act(self.dense0(x.flatten(1)), act=act, gain=1.0)


class FromRGB(Conv):
    """Pictures [N, channels, H, W] -> features [N, out, H, W], activated."""

    def __init__(self, config: DiscriminatorConfig, level: int):
        super().__init__(config.channels, fmaps(config, level + 1), kernel=1)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        return bias_act(super().forward(x), self.bias, act=self.activation, gain=1.0, clamp=limit(x))


class Progressive(Protocol):
    """What `discriminate` needs of a discriminator: levels with pictures coming in, blocks between them, a tail."""

    config: DiscriminatorConfig
    compute_dtype: torch.dtype
    from_rgb: nn.ModuleList
    blocks: nn.ModuleList
    tail: DiscriminatorTail


def discriminate(D: Progressive, images: Tensor, resolution: Resolution, alpha: float, parts: int) -> Tensor:
    """What every progressive D does: [N, C, H, W] -> the tail's [N, outputs]. Larger pictures are box-reduced first.

    `parts`: how many equal batches, one after another, the pictures are; statistics are those of each batch alone.
    """
    return D.tail(trunk(D, images, resolution, alpha), parts)


def trunk(D: Progressive, images: Tensor, resolution: Resolution, alpha: float) -> Tensor:
    """Pictures -> what the tail takes; all of D but that."""
    level = level_of(D.config, (images.shape[2], images.shape[3]) if resolution is None else resolution)
    height = resolution_of(D.config, level)[0]
    while images.shape[2] > height:
        images = downscale(images)
    level_of(D.config, (images.shape[2], images.shape[3]))
    x = D.from_rgb[level](features(images, D.compute_dtype))
    for k in range(level, 0, -1):
        x = D.blocks[k - 1](x)
        if k == level and alpha < 1:
            coarse = D.from_rgb[k - 1](features(downscale(images), D.compute_dtype))
            x = torch.lerp(coarse, x, alpha)
    return x.to(images.dtype)
