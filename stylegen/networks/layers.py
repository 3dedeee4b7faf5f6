"""Layers that the families share. Weights have an equalised learning rate (ProGAN, Karras et al. 2018, section 4.1)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylegen.config import DiscriminatorConfig, GeneratorConfig, levels_of, resolution_of, size_text
from stylegen.errors import UserError
from stylegen.ops import conv2d, down_conv2d, down_kernel, referenced, scaled_cast, up_conv2d, up_kernel

Resolution = int | tuple[int, int] | None
PLAIN_STD = 0.02  # of weights without an equalised learning rate (Radford et al. 2016, section 4)


class Dense(nn.Module):
    """[N, fan_in] -> [N, fan_out]: x @ (weight * coef)^T + bias * lrmul, with coef = gain / sqrt(fan_in) * lrmul."""

    def __init__(self, fan_in: int, fan_out: int, gain: float = math.sqrt(2), lrmul: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) / lrmul)
        self.bias = nn.Parameter(torch.zeros(fan_out))
        self.coef, self.lrmul = gain / math.sqrt(fan_in) * lrmul, lrmul

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.coef, self.bias * self.lrmul if self.lrmul != 1 else self.bias)


class PlainDense(nn.Module):
    """[N, fan_in] -> [N, fan_out]: x @ weight^T + bias, weights from N(0, PLAIN_STD), used as they are stored."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) * PLAIN_STD)
        self.bias = nn.Parameter(torch.zeros(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Conv(nn.Module):
    """A square convolution: [N, in, H, W] -> [N, out, H', W'], zero padded, in x's dtype.

    Its `bias` [out], if any, is added by the caller, in one operator with the activation.

    `scale` "same" keeps the size. "down" halves it: blur, convolution, 2x2 means. "up" doubles it: nearest neighbour,
    convolution, blur. "fused_up" is what the official code calls fused: a stored weight means nearest neighbour, then
    convolution with the spatially flipped kernel, then blur. `blur`: the taps of a separable filter, or none.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        kernel: int = 3,
        gain: float = math.sqrt(2),
        scale: str = "same",
        bias: bool = True,
        blur: tuple[float, ...] = (),
    ):
        super().__init__()
        assert scale in ("same", "up", "fused_up", "down") and (scale == "same" or kernel == 3)
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(fan_out)) if bias else None
        self.coef = gain / math.sqrt(fan_in * kernel * kernel)
        self.scale, self.blur = scale, blur
        self.frozen: tuple[Tensor, dict[str, Tensor]] | None = None  # the kernel, and what `conv2d` keeps beside it
        self.shared: dict[torch.dtype, tuple[Tensor, dict[str, Tensor]]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        kept = self.frozen if self.shared is None else self.shared.get(x.dtype)
        if kept is None:
            kept = self.kernel(x.dtype), {}
            if self.shared is not None:
                self.shared[x.dtype] = kept
        kernel, cache = kept
        if self.scale == "same":
            return conv2d(x, kernel, padding=kernel.shape[-1] // 2, cache=cache)
        return (down_conv2d if self.scale == "down" else up_conv2d)(x, kernel, self.blur, cache)

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """The weights as the operators take them."""
        weight = scaled_cast(self.weight, self.coef, dtype)
        if self.scale == "same":
            return weight
        if self.scale == "down":
            return down_kernel(weight)
        return up_kernel(weight.flip([2, 3]) if self.scale == "fused_up" else weight)

    @torch.no_grad()
    def arrange(self) -> None:
        """Puts the weights into the memory order of the kernel, so that neither it nor its gradient is transposed."""
        flip = (lambda w: w.transpose(0, 1)) if self.scale in ("up", "fused_up") else (lambda w: w)
        self.weight.data = flip(flip(self.weight.data).contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def freeze(self, dtype: torch.dtype) -> None:
        """Computes the kernel for inputs of `dtype` once and for all, and lets go of the weights' memory."""
        self.frozen = self.kernel(dtype).contiguous(memory_format=torch.channels_last), {}
        self.weight = nn.Parameter(self.weight.to("meta"), requires_grad=False)


@contextmanager
def shared_kernels(network: nn.Module) -> Iterator[None]:
    """Within it, all passes through `network` use the same kernels: for a step in which no weight changes."""
    convolutions = [module for module in network.modules() if isinstance(module, Conv)]
    for module in convolutions:
        module.shared = {}
    try:
        yield
    finally:
        for module in convolutions:
            module.shared = None


class ToRGB(Conv):
    """Features [N, in, H, W] -> pictures [N, channels, H, W] in float32: a 1x1 convolution of gain 1."""

    def __init__(self, fan_in: int, channels: int):
        super().__init__(fan_in, channels, kernel=1, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return super().forward(x.to(self.weight.dtype)) + self.bias[:, None, None]

    def freeze(self, dtype: torch.dtype) -> None:
        super().freeze(self.weight.dtype)


def features(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` as the layers work on it: in `dtype`, with the channels innermost but in the plain reference."""
    return x.to(dtype) if referenced() else x.to(dtype, memory_format=torch.channels_last)


def limit(x: Tensor) -> float | None:
    """What activations of a discriminator are clamped to: they overflow in float16 (as in Karras et al. 2020, ADA)."""
    return 256.0 if x.dtype == torch.float16 else None


def minibatch_stddev(x: Tensor, group: int, features: int = 1, parts: int = 1) -> Tensor:
    """Appends `features` channels that hold the spread within a group: [N, C, H, W] -> [N, C + features, H, W].

    Sample i belongs to group i mod (N / group); a batch that `group` does not divide uses its largest divisor below.
    `parts`: how many equal batches, one after another, x holds; their samples do not mix. (ProGAN, Karras et al. 2018,
    section 3.)
    """
    n, c, h, w = len(x) // parts, *x.shape[1:]
    size = max(d for d in range(1, min(group, n) + 1) if n % d == 0)
    y = x.reshape(parts, size, n // size, features, c // features, h, w)
    y = y - y.mean(1, keepdim=True)
    y = (y.square().mean(1) + 1e-8).sqrt().mean((3, 4, 5))  # [parts, n / size, features]
    y = y[:, None].expand(-1, size, -1, -1).reshape(len(x), features, 1, 1)
    return torch.cat([x, y.expand(-1, -1, h, w)], 1)


class Together(Protocol):
    """Where each of several workers has a part of a batch: sums and rows over all of them, differentiable."""

    def all_sum(self, x: Tensor) -> Tensor: ...

    def gather(self, x: Tensor) -> Tensor: ...


class MinibatchDiscrimination(nn.Module):
    """Appends to every sample how near the others of its batch are: [N, fan_in] -> [N, fan_in + features].

    Feature b of sample i is the mean over all samples j of exp(-|M_ib - M_jb|_1), where M = x T is [N, features, size]
    (Salimans et al. 2016, "Improved Techniques for Training GANs", section 3.2). There it is the sum, which drowns x in
    large batches. The columns of T start with length 1, by their weights or, `equalized`, where they are used: samples
    then differ by about as much as their features do.
    """

    crew: Together | None = None  # others who have parts of the same batch

    def __init__(self, fan_in: int, features: int, size: int, *, equalized: bool = False):
        super().__init__()
        std = fan_in**-0.5
        self.weight = nn.Parameter(torch.randn(fan_in, features, size) * (1.0 if equalized else std))
        self.coef = std if equalized else 1.0

    def forward(self, x: Tensor, parts: int = 1) -> Tensor:
        """`parts`: how many equal batches, one after another, x holds; their samples do not mix."""
        m = torch.einsum("na,abc->nbc", x, self.weight * self.coef)
        m = m.reshape(parts, len(x) // parts, *m.shape[1:])
        others = m if self.crew is None else torch.stack([self.crew.gather(batch) for batch in m])
        near = (m[:, :, None] - others[:, None]).abs().sum(-1).neg().exp().mean(2)
        return torch.cat([x, near.flatten(0, 1).to(x.dtype)], 1)


def upscale(x: Tensor) -> Tensor:
    """Doubles height and width by nearest neighbour."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def downscale(x: Tensor) -> Tensor:
    """Halves height and width by 2x2 box means."""
    return F.avg_pool2d(x, 2)


def fmaps(config: GeneratorConfig | DiscriminatorConfig, stage: int) -> int:
    """Feature maps at a stage (level + 1): min(fmap_base / 2^(stage * fmap_decay), fmap_max), at least 1."""
    return max(1, min(int(config.fmap_base / 2.0 ** (stage * config.fmap_decay)), config.fmap_max))


def level_of(config: GeneratorConfig | DiscriminatorConfig, resolution: Resolution) -> int:
    """The level of a resolution: None for the full one, a side for squares, or (height, width). Raises UserError."""
    if resolution is None:
        return config.levels - 1
    size = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    for level in levels_of(config):
        if resolution_of(config, level) == size:
            return level
    known = ", ".join(size_text(resolution_of(config, level)) for level in levels_of(config))
    raise UserError(f"resolution {size_text((size[0], size[1]))} is not a level of this network; it has {known}")


def conditioned(z: Tensor, labels: Tensor | None, label_size: int) -> Tensor:
    """z [N, Z] with its labels, if any, beside it: [N, Z + label_size]. Raises UserError for labels that do not fit."""
    labels = check_labels(labels, len(z), label_size)
    return z if labels is None else torch.cat([z, labels.to(z.dtype)], 1)


def selected(scores: Tensor, labels: Tensor | None, label_size: int) -> Tensor:
    """One score a class [N, label_size] -> [N, 1], that of each label (all of [N, 1] without labels).

    Raises UserError for labels that do not fit.
    """
    labels = check_labels(labels, len(scores), label_size)
    return scores if labels is None else (scores * labels.to(scores.dtype)).sum(1, keepdim=True)


def check_labels(labels: Tensor | None, batch: int, label_size: int) -> Tensor | None:
    """`labels` [batch, label_size], or None for a network without labels. Raises UserError where they do not fit."""
    if label_size == 0:
        return None
    if labels is None or tuple(labels.shape) != (batch, label_size):
        given = "none" if labels is None else f"shape {list(labels.shape)}"
        raise UserError(f"this network is conditional: labels must have shape [{batch}, {label_size}], got {given}")
    return labels
