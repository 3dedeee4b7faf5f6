"""How equal two pictures are, pixel by pixel: PSNR and SSIM."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, _SIGMA = 11, 1.5  # of SSIM's Gaussian


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """float [N, C, H, W] in [-1, 1], clamped to it -> dB [N], 10 log10(peak^2 / MSE); infinite where they are equal."""
    error = ((a.clamp(-1, 1) - b.clamp(-1, 1)) / 2).square().mean((1, 2, 3))
    return -10 * error.log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """float [N, C, H, W] in [-1, 1], clamped to it, 11x11 or larger -> [N], 1 where they are equal.

    Wang et al. 2004, "Image quality assessment", equation 13, with its Gaussian window of 11x11 and deviation 1.5,
    K1 = 0.01, K2 = 0.03; the mean over channels and the places where the window fits.
    """
    a, b = ((x.clamp(-1, 1).double() + 1) / 2 for x in (a, b))
    at = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
    gauss = (-at.square() / (2 * _SIGMA**2)).exp()
    window = torch.outer(gauss, gauss)[None, None] / gauss.sum() ** 2

    def local(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], window).unflatten(0, x.shape[:2])

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    shape = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (shape / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).flatten(1).mean(1).float()
