"""The first GAN (Goodfellow et al., "Generative Adversarial Nets", NIPS 2014): fully connected, one resolution.

Differences: pictures in [-1, 1] through tanh, which is the paper's sigmoid on [0, 1] rescaled; no dropout in D.
"""

import math

import torch
from torch import Tensor, nn

from stylegen.config import DiscriminatorConfig, GeneratorConfig, resolution_of
from stylegen.ops import bias_act

from .layers import MinibatchDiscrimination, PlainDense, Resolution, conditioned, level_of, limit, selected


class Generator(nn.Module):
    """Latents, with labels concatenated, to pictures. Hidden layers compute in `compute_dtype`."""

    compute_dtype = torch.float32

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.size = config.channels, *resolution_of(config, config.levels - 1)
        widths = [config.latent_size + config.label_size] + [config.hidden_width] * config.hidden_layers
        self.hidden = nn.ModuleList([PlainDense(a, b) for a, b in zip(widths, widths[1:], strict=False)])
        self.to_rgb = PlainDense(widths[-1], math.prod(self.size))

    def forward(
        self, z: Tensor, labels: Tensor | None = None, *, resolution: Resolution = None, alpha: float = 1.0
    ) -> Tensor:
        """z [N, latent_size], labels [N, label_size] or None -> pictures [N, C, H, W] in [-1, 1].

        `resolution` is the only one or None, `alpha` is not used: this family does not grow. Raises UserError for
        labels or a resolution that do not fit.
        """
        level_of(self.config, resolution)
        x = conditioned(z, labels, self.config.label_size).to(self.compute_dtype)
        for dense in self.hidden:
            x = bias_act(dense(x), act=self.config.activation, gain=1.0)
        return torch.tanh(self.to_rgb(x.to(z.dtype))).reshape(-1, *self.size)


class Discriminator(nn.Module):
    """Pictures -> scores [N, 1]; with labels, their selection from one output a class.

    Hidden layers compute in `compute_dtype`. With `maxout_pieces` above 1 each unit is the largest of that many linear
    ones (Goodfellow et al. 2013, "Maxout Networks", section 2), as in the paper.
    """

    compute_dtype = torch.float32

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        inputs = config.channels * math.prod(resolution_of(config, config.levels - 1))
        width, n = config.hidden_width, config.mbdisc_features
        widths = [inputs] + [width] * config.hidden_layers
        pairs = zip(widths, widths[1:], strict=False)
        self.hidden = nn.ModuleList([PlainDense(a, b * config.maxout_pieces) for a, b in pairs])
        self.mbdisc = MinibatchDiscrimination(width, n, config.mbdisc_size) if n else None
        self.score = PlainDense(width + n, max(config.label_size, 1))

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        resolution: Resolution = None,
        alpha: float = 1.0,
        parts: int = 1,
    ) -> Tensor:
        """images [N, C, H, W] in [-1, 1], labels [N, label_size] or None -> scores [N, 1], high for real.

        `parts`: how many equal batches, one after another, these are; minibatch discrimination compares within each.
        Raises UserError for labels or pictures that do not fit.
        """
        x = self.features(images, resolution=resolution)
        x = x if self.mbdisc is None else self.mbdisc(x, parts)
        return selected(self.score(x), labels, self.config.label_size)

    def features(self, images: Tensor, *, resolution: Resolution = None, alpha: float = 1.0) -> Tensor:
        """images as above -> [N, hidden_width], the last hidden layer: what feature matching compares."""
        level_of(self.config, resolution)
        level_of(self.config, (images.shape[2], images.shape[3]))
        x = images.flatten(1).to(self.compute_dtype)
        for dense in self.hidden:
            x = dense(x)
            if self.config.maxout_pieces > 1:
                x = x.unflatten(1, (-1, self.config.maxout_pieces)).amax(2)
            else:
                x = bias_act(x, act=self.config.activation, gain=1.0, clamp=limit(x))
        return x.to(images.dtype)
