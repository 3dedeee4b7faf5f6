"""Pixelwise feature normalisation."""

from torch import Tensor


def pixel_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """x / sqrt(mean over channels of x^2 + eps), for [N, C] or [N, C, H, W] (ProGAN, Karras et al. 2018, 4.2)."""
    return x * (x.square().mean(1, keepdim=True) + eps).rsqrt()
