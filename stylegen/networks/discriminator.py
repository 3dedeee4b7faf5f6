"""The parts that every progressive discriminator shares."""

from typing import Protocol

import torch
from torch import Tensor, nn

from stylegen.config import DiscriminatorConfig, resolution_of
from stylegen.ops import bias_act

from .layers import Conv, Dense, Resolution, downscale, features, fmaps, level_of, limit, minibatch_stddev


class DiscriminatorTail(nn.Module):
    """The coarsest level of D: minibatch stddev, conv, two dense layers -> [N, outputs]."""

    def __init__(self, config: DiscriminatorConfig, outputs: int):
        super().__init__()
        self.config = config
        self.features = config.mbstd_features if config.mbstd_group > 1 else 0
        width, inner = fmaps(config, 1), fmaps(config, 0)
        self.conv = Conv(width + self.features, width)
        self.dense0 = Dense(width * config.base[0] * config.base[1], inner)
        self.dense1 = Dense(inner, outputs, gain=1.0)

    def forward(self, x: Tensor, parts: int = 1) -> Tensor:
        act = self.config.activation
        if self.features:
            x = minibatch_stddev(x, self.config.mbstd_group, self.features, parts)
        x = bias_act(self.conv(x), self.conv.bias, act=act, gain=1.0)
        x = bias_act(self.dense0(x.flatten(1)), act=act, gain=1.0)
        return self.dense1(x)


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
    return D.tail(x.to(images.dtype), parts)
