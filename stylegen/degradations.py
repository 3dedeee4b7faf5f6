"""What happened to a picture before it was given: inverse problems are projections that compare after the same."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Degradation(Protocol):
    """each: whether every target has its own, so that it matters which pictures are compared with which."""

    each: bool

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """Pictures [N, C, H, W] in [-1, 1] as the targets `rows` [N] or [1] were seen."""
        ...


class Whole:
    """Nothing happened."""

    each = False

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        return images


class Downsample:
    """Averages of `factor` x `factor` pixels: super-resolution."""

    each = False

    def __init__(self, factor: int):
        self.factor = factor

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.factor)


class Gray:
    """The luma of ITU-R BT.601 in the place of each colour: colourisation. Other channels stay."""

    each = False

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        luma = (images[:, :3] * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        return torch.cat([luma.expand(-1, 3, -1, -1), images[:, 3:]], 1)


class Masked:
    """Only where `known` [N, 1, H, W] is 1; elsewhere the grey of 0: inpainting."""

    each = True

    def __init__(self, known: Tensor):
        self.known = known

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        return images * self.known[rows]
