"""DCGAN (Radford et al., "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", ICLR 2016): strided and transposed convolutions with batch norm, one resolution.

G's batch norm keeps running statistics, with which an evaluated G makes pictures. D's has none: D only ever judges
batches, and what it was shown before does not change what it says.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylegen.config import DiscriminatorConfig, GeneratorConfig
from stylegen.ops import bias_act, conv2d, conv_transpose2d

from .layers import (
    PLAIN_STD,
    MinibatchDiscrimination,
    PlainDense,
    Resolution,
    Together,
    conditioned,
    features,
    fmaps,
    level_of,
    limit,
    selected,
)

EPS = 1e-5
MOMENTUM = 0.1  # of the running statistics: what a new batch counts


class Norm(nn.Module):
    """[N, C, H, W] -> the same, normalised, scaled and shifted a channel; float32 inside whatever the precision.

    "batch": each channel over a batch (Ioffe and Szegedy 2015, "Batch Normalization", algorithm 1), or, where
    `running`, by running statistics once the network is in eval mode. "layer": each sample by itself (Ba et al. 2016,
    "Layer Normalization"), which leaves gradient penalties a sample's own (Gulrajani et al. 2017, section 4).
    """

    running_mean: Tensor
    running_var: Tensor
    crew: Together | None = None  # others who have parts of the same batch

    def __init__(self, kind: str, channels: int, running: bool):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(1 + PLAIN_STD * torch.randn(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running = running and kind == "batch"
        if self.running:
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, parts: int = 1) -> Tensor:
        """`parts`: how many equal batches, one after another, x holds; statistics are those of each batch alone."""
        weight, bias = self.weight, self.bias
        if self.kind == "layer":
            return F.group_norm(x.float() if x.dtype != torch.float64 else x, 1, weight, bias, EPS).to(x.dtype)
        if self.crew is not None and (self.training or not self.running):
            return torch.cat([self._together(part) for part in x.chunk(parts)])
        if self.running:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, weight, bias, self.training, MOMENTUM, EPS)
        return torch.cat([F.batch_norm(part, None, None, weight, bias, True, eps=EPS) for part in x.chunk(parts)])

    def _together(self, x: Tensor) -> Tensor:
        """Batch norm of a part of a batch by the statistics of all of it."""
        assert self.crew is not None
        y = x.float() if x.dtype != torch.float64 else x
        sums = self.crew.all_sum(torch.cat([y.sum((0, 2, 3)), y.new_tensor([y[:, 0].numel()])]))
        mean, count = (sums[:-1] / sums[-1])[:, None, None], sums.detach()[-1].item()
        y = y - mean
        var = self.crew.all_sum(y.square().sum((0, 2, 3))) / count
        if self.running:
            with torch.no_grad():
                self.running_mean.lerp_(mean.flatten(), MOMENTUM)
                self.running_var.lerp_(var * (count / (count - 1)), MOMENTUM)
        y = y * ((var + EPS).rsqrt() * self.weight)[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)


class Layer(nn.Module):
    """(A 4x4 convolution of stride 2,) norm or bias, activation. `scale`: "up", "down", or "" for no convolution."""

    def __init__(self, scale: str, fan_in: int, fan_out: int, norm: str, activation: str, running: bool = False):
        super().__init__()
        self.scale, self.activation = scale, activation
        if scale:
            shape = (fan_in, fan_out) if scale == "up" else (fan_out, fan_in)
            self.weight = nn.Parameter(PLAIN_STD * torch.randn(*shape, 4, 4))
        self.norm = Norm(norm, fan_out, running) if norm != "none" else None
        self.bias = nn.Parameter(torch.zeros(fan_out)) if norm == "none" else None

    def forward(self, x: Tensor, parts: int = 1) -> Tensor:
        if self.scale:
            convolve = conv_transpose2d if self.scale == "up" else conv2d
            x = convolve(x, self.weight.to(x.dtype), stride=2, padding=1)
        if self.norm is not None:
            x = self.norm(x, parts)
        return bias_act(x, self.bias, act=self.activation, gain=1.0, clamp=limit(x))


class Generator(nn.Module):
    """Latents, with labels concatenated, to the base, then a transposed convolution a level; tanh.

    Its convolutions compute in `compute_dtype`, but for the last.
    """

    compute_dtype = torch.float32

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        last = config.levels - 1
        widths = [fmaps(config, k + 1) for k in range(last)]
        self.dense = nn.Parameter(
            PLAIN_STD * torch.randn(widths[0] * math.prod(config.base), config.latent_size + config.label_size)
        )
        how = config.norm, config.activation, True
        self.first = Layer("", widths[0], widths[0], *how)
        self.layers = nn.ModuleList([Layer("up", widths[k - 1], widths[k], *how) for k in range(1, last)])
        self.to_rgb = Layer("up", widths[-1], config.channels, "none", "tanh")

    def forward(
        self, z: Tensor, labels: Tensor | None = None, *, resolution: Resolution = None, alpha: float = 1.0
    ) -> Tensor:
        """z [N, latent_size], labels [N, label_size] or None -> pictures [N, C, H, W] in [-1, 1].

        `resolution` is the only one or None, `alpha` is not used: this family does not grow. In training mode batch
        norm uses the batch and moves its running statistics. Raises UserError for labels or a resolution that do not
        fit.
        """
        level_of(self.config, resolution)
        x = F.linear(conditioned(z, labels, self.config.label_size), self.dense)
        x = self.first(features(x.reshape(len(x), -1, *self.config.base), self.compute_dtype))
        for layer in self.layers:
            x = layer(x)
        return self.to_rgb(x.to(z.dtype))


class Discriminator(nn.Module):
    """A strided convolution a level down to the base, then one dense layer -> scores [N, 1].

    With labels, the score is their selection from one output a class. Its convolutions compute in `compute_dtype`.
    """

    compute_dtype = torch.float32

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        widths = [config.channels] + [fmaps(config, k + 1) for k in range(config.levels - 2, -1, -1)]
        norms = ["none"] + [config.norm] * (len(widths) - 2)
        pairs = zip(widths, widths[1:], norms, strict=False)
        self.layers = nn.ModuleList([Layer("down", a, b, norm, config.activation) for a, b, norm in pairs])
        width, n = widths[-1] * math.prod(config.base), config.mbdisc_features
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

        `parts`: how many equal batches, one after another, these are; statistics are those of each batch alone. Raises
        UserError for labels or pictures that do not fit.
        """
        x = self.features(images, resolution=resolution, parts=parts)
        x = x if self.mbdisc is None else self.mbdisc(x, parts)
        return selected(self.score(x), labels, self.config.label_size)

    def features(self, images: Tensor, *, resolution: Resolution = None, alpha: float = 1.0, parts: int = 1) -> Tensor:
        """images as above -> [N, F], the last convolution's activations: what feature matching compares."""
        level_of(self.config, resolution)
        level_of(self.config, (images.shape[2], images.shape[3]))
        x = features(images, self.compute_dtype)
        for layer in self.layers:
            x = layer(x, parts)
        return x.to(images.dtype).flatten(1)
