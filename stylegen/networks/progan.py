"""ProGAN (Karras et al., "Progressive Growing of GANs for Improved Quality, Stability, and Variation", ICLR 2018)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylegen.config import DiscriminatorConfig, GeneratorConfig
from stylegen.ops import bias_act, pixel_norm

from .discriminator import DiscriminatorTail, FromRGB, discriminate, trunk
from .layers import Conv, Dense, Resolution, ToRGB, conditioned, downscale, features, fmaps, level_of, limit, upscale


class GeneratorBlock(nn.Module):
    """One level of G: (up) convolution and convolution, each with bias, activation and pixel norm."""

    def __init__(self, config: GeneratorConfig, level: int):
        super().__init__()
        self.config = config
        channels = fmaps(config, level + 1)
        if level > 0:
            scale = "up" if config.fused_scale == "off" else "fused_up"
            self.conv0 = Conv(fmaps(config, level), channels, scale=scale)
        self.conv1 = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "conv0"):
            x = epilogue(self.config, self.conv0(x), self.conv0.bias)
        return epilogue(self.config, self.conv1(x), self.conv1.bias)


class Generator(nn.Module):
    """Latents, with labels concatenated, pixel-normalised, to pictures at any level.

    Its convolutions compute in `compute_dtype`; pictures stay in float32.
    """

    compute_dtype = torch.float32

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        channels = fmaps(config, 1)
        area = config.base[0] * config.base[1]
        self.dense = Dense(config.latent_size + config.label_size, channels * area, gain=math.sqrt(2) / 4)
        self.dense.bias = nn.Parameter(torch.zeros(channels))  # a channel, not a unit
        self.blocks = nn.ModuleList([GeneratorBlock(config, k) for k in range(config.levels)])
        self.to_rgb = nn.ModuleList([ToRGB(fmaps(config, k + 1), config.channels) for k in range(config.levels)])

    def forward(
        self, z: Tensor, labels: Tensor | None = None, *, resolution: Resolution = None, alpha: float = 1.0
    ) -> Tensor:
        """z [N, latent_size], labels [N, label_size] or None -> pictures [N, C, H, W] in about [-1, 1].

        `resolution`: a level's side or (height, width), None for the full one. `alpha` below 1 fades that level in over
        the one below. Raises UserError for labels or a resolution that do not fit.
        """
        level = level_of(self.config, resolution)
        x = conditioned(z, labels, self.config.label_size)
        if self.config.normalize_latents:
            x = pixel_norm(x)
        x = F.linear(x, self.dense.weight * self.dense.coef).reshape(len(x), -1, *self.config.base)
        x = epilogue(self.config, features(x, self.compute_dtype), self.dense.bias)
        coarse = x
        for k in range(level + 1):
            coarse, x = x, self.blocks[k](x)
        image = self.to_rgb[level](x)
        if alpha < 1 and level > 0:
            image = torch.lerp(upscale(self.to_rgb[level - 1](coarse)), image, alpha)
        return torch.tanh(image) if self.config.tanh_output else image


class DiscriminatorBlock(nn.Module):
    """One level of D: two convolutions with activations. Halves the resolution.

    With `fused_scale` "off" the activation comes before the box, otherwise after it.
    """

    def __init__(self, config: DiscriminatorConfig, level: int):
        super().__init__()
        self.config = config
        self.conv0 = Conv(fmaps(config, level + 1), fmaps(config, level + 1))
        scale = "same" if config.fused_scale == "off" else "down"
        self.conv1 = Conv(fmaps(config, level + 1), fmaps(config, level), scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        x = bias_act(self.conv0(x), self.conv0.bias, act=self.config.activation, gain=1.0, clamp=limit(x))
        x = bias_act(self.conv1(x), self.conv1.bias, act=self.config.activation, gain=1.0, clamp=limit(x))
        return downscale(x) if self.config.fused_scale == "off" else x


class Discriminator(nn.Module):
    """Pictures -> (scores [N, 1], class logits [N, label_size]); the latter is the AC-GAN head.

    Its convolutions compute in `compute_dtype`, but for the coarsest level.
    """

    compute_dtype = torch.float32

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        self.from_rgb = nn.ModuleList([FromRGB(config, k) for k in range(config.levels)])
        self.blocks = nn.ModuleList([DiscriminatorBlock(config, k) for k in range(1, config.levels)])
        self.tail = DiscriminatorTail(config, 1 + config.label_size)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        resolution: Resolution = None,
        alpha: float = 1.0,
        parts: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """images [N, C, H, W] in [-1, 1] -> scores [N, 1], high for real, and class logits [N, label_size].

        Labels are not an input of this network: they only enter the loss. The level is that of the pictures' size, or
        `resolution` (larger pictures are box-reduced to it); `alpha` below 1 fades it in. `parts`: how many equal
        batches, one after another, these are; statistics are those of each batch alone. Raises UserError for a
        resolution that does not fit.
        """
        outputs = discriminate(self, images, resolution, alpha, parts)
        return outputs[:, :1], outputs[:, 1:]

    def features(self, images: Tensor, *, resolution: Resolution = None, alpha: float = 1.0) -> Tensor:
        """images as above -> [N, F], what feature matching compares: see `DiscriminatorTail.features`."""
        return self.tail.features(trunk(self, images, resolution, alpha))


def epilogue(config: GeneratorConfig, x: Tensor, bias: Tensor | None) -> Tensor:
    """Bias and activation, then pixel norm where the config has it."""
    x = bias_act(x, bias, act=config.activation, gain=1.0)
    return pixel_norm(x) if config.pixel_norm else x
