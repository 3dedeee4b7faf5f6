"""StyleGAN1's layer epilogue: noise, bias, activation, instance norm, style."""

import torch
from torch import Tensor

from .bias_act import bias_act


def adain_epilogue(
    x: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor,
    style: Tensor | None,
    *,
    act: str = "lrelu",
    pixel_norm: bool = False,
    instance_norm: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """style(instance_norm(act(x + noise * strength + bias))), of the same shape as `x` [N, C, H, W].

    `noise` [N or 1, 1, H, W] with a `strength` a channel [C], or None; `bias` [C]; `style` [N, 2 C], scales first, or
    None. AdaIN (StyleGAN, Karras et al. 2019, equation 1): (x - mean) / sqrt(var + eps) * (scale + 1) + shift with
    the mean and biased variance of each sample and channel.
    """
    if noise is not None:
        assert strength is not None
        x = x + noise * strength[:, None, None]
    x = bias_act(x, bias, act=act, gain=1.0)
    if pixel_norm:
        x = x * (x.square().mean(1, keepdim=True) + eps).rsqrt()
    if instance_norm:
        x = x - x.mean((2, 3), keepdim=True)
        x = x * (x.square().mean((2, 3), keepdim=True) + eps).rsqrt()
    if style is not None:
        scale, shift = style[:, :, None, None].chunk(2, 1)
        x = torch.addcmul(shift, x, scale + 1)
    return x
