"""What happened to a picture before it was given: inverse problems are projections that compare after the same."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 7  # px, of the weights near a hole


class Degradation(Protocol):
    """each: whether every target has its own, so that it matters which pictures are compared with which.

    weight: [N, 1, H, W], of the targets' pixels in their squared difference, or None for 1.
    """

    each: bool
    weight: Tensor | None

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """Pictures [N, C, H, W] in [-1, 1] as the targets `rows` [N] or [1] were seen."""
        ...


class Whole:
    """Nothing happened."""

    each = False
    weight: Tensor | None = None

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        return images


class Downsampled:
    """Averages of `factor` x `factor` pixels: super-resolution."""

    each = False
    weight: Tensor | None = None

    def __init__(self, factor: int):
        self.factor = factor

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.factor)


class Grey:
    """The luma of ITU-R BT.601 in the place of each colour: colourisation. Other channels stay."""

    each = False
    weight: Tensor | None = None

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        return torch.cat([luma(images).expand(-1, 3, -1, -1), images[:, 3:]], 1)


class Noisy:
    """Gaussian noise of deviation `sigma` in grey levels of 255, the same in every picture: denoising.

    Noisy pictures look more like a noisy target than clean ones do, whichever noise it is.
    """

    each = False
    weight: Tensor | None = None

    def __init__(self, sigma: float, shape: torch.Size, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.noise = sigma / 127.5 * torch.randn(shape, generator=generator)

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        return images + self.noise.to(images.device)


class Masked:
    """Only where `known` [N, 1, H, W] is 1; elsewhere the grey of 0: inpainting. N is 1 where all have the same hole.

    Known pixels weigh the more, the more unknown ones are in the window around them (Yeh et al. 2017, equation 3).
    """

    def __init__(self, known: Tensor):
        self.known, self.each = known, len(known) > 1
        near = F.avg_pool2d(1 - known, WINDOW, 1, WINDOW // 2, count_include_pad=False)
        weight = known * (near + 1e-2)  # far from every hole a little is left, or colours there would be free
        self.weight: Tensor | None = weight / weight.mean((1, 2, 3), keepdim=True).clamp_min(1e-12)

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        return images * (self.known[rows] if self.each else self.known)


def luma(images: Tensor) -> Tensor:
    """[N, 3 or 4, H, W] -> [N, 1, H, W], of ITU-R BT.601."""
    return (images[:, :3] * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def seamless(target: Tensor, made: Tensor, known: Tensor, tolerance: float = 1e-4) -> Tensor:
    """The known pixels of `target`, and between them those of `made` with its gradients but without a seam.

    [C, H, W] each, `known` [1, H, W] 0 or 1. Poisson blending (Pérez et al. 2003, equation 7), of the unknown pixels:
    the discrete Laplace equation of made's correction, which is target - made where known; by conjugate gradients.
    """
    if not known.any() or known.all():
        return target * known + made * (1 - known)
    hole = 1 - known
    fixed = (target - made) * known

    def neighbours(x: Tensor) -> Tensor:
        """The sum of the four around each; beyond the border there is nothing."""
        padded = F.pad(x, (1, 1, 1, 1))
        return padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]

    count = neighbours(torch.ones_like(known))

    def laplace(x: Tensor) -> Tensor:
        return (count * x - neighbours(x)) * hole

    x = torch.zeros_like(fixed)
    residual = neighbours(fixed) * hole
    direction, energy = residual.clone(), residual.square().sum((1, 2), keepdim=True)
    least = tolerance**2 * energy.clamp_min(1e-12)
    for _ in range(int(hole.sum()) + 1):
        if (energy <= least).all():
            break
        pushed = laplace(direction)
        step = energy / (direction * pushed).sum((1, 2), keepdim=True).clamp_min(1e-12)
        x, residual = x + step * direction, residual - step * pushed
        before, energy = energy, residual.square().sum((1, 2), keepdim=True)
        direction = residual + energy / before.clamp_min(1e-12) * direction
    return made + fixed + x * hole
