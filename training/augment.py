"""Differentiable augmentation of everything that D sees, for data sets of a few hundred to a few thousand pictures.

Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training": reals and fakes are altered alike, in
D's step and in G's, and gradients flow through. D cannot learn a small set by heart, and G learns what is not altered.
"""

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegen.config import AUGMENTATIONS

from .rng import Numbers

Uniform = Callable[[], Tensor]  # a number in [0, 1) a picture, [N, 1, 1, 1]


def augment(images: Tensor, kinds: Collection[str], numbers: Numbers) -> Tensor:
    """images [N, C, H, W] in about [-1, 1], each altered in its own way by the `kinds`, of AUGMENTATIONS.

    `numbers` for N samples advance. Differentiable as often as wanted.
    """

    def uniform() -> Tensor:
        return numbers.uniform(1)[..., None, None].to(images)

    for kind in AUGMENTATIONS:
        if kind in kinds:
            images = _ALTER[kind](images, uniform)
    return images


def _color(images: Tensor, uniform: Uniform) -> Tensor:
    """Brightness by up to 0.5 either way, saturation times 0 to 2, contrast times 0.5 to 1.5; no alpha, no extras."""
    count = 3 if images.shape[1] >= 3 else 1
    x, others = images[:, :count], images[:, count:]
    x = x + (uniform() - 0.5)
    x = torch.lerp(x.mean(1, keepdim=True), x, 2 * uniform())
    x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, 0.5 + uniform())
    return torch.cat([x, others], 1)


def _translation(images: Tensor, uniform: Uniform) -> Tensor:
    """Whole pixels, up to an eighth of the side either way; zero comes in."""
    for axis in (2, 3):
        side = images.shape[axis]
        most = round(side / 8)
        shift = (uniform() * (2 * most + 1)).long() - most
        shape = [1, 1, 1, 1]
        shape[axis] = side
        at = torch.arange(side, device=images.device).reshape(shape) - shift + most
        padded = F.pad(images, (0, 0, most, most) if axis == 2 else (most, most))
        images = padded.gather(axis, at.expand(images.shape))
    return images


def _cutout(images: Tensor, uniform: Uniform) -> Tensor:
    """Zero in a box of half the sides, its middle anywhere in the picture."""
    inside = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=images.device)
    for axis in (2, 3):
        side = images.shape[axis]
        shape = [1, 1, 1, 1]
        shape[axis] = side
        first = (uniform() * side).long() - (side // 2) // 2
        at = torch.arange(side, device=images.device).reshape(shape)
        inside = inside & (at >= first) & (at < first + side // 2)
    return images * ~inside


_ALTER = {"color": _color, "translation": _translation, "cutout": _cutout}
