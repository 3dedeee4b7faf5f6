"""StyleGAN1's layer epilogue: noise, bias, activation, instance norm, style."""

from typing import Any

import torch
from torch import Tensor

from . import native
from .bias_act import bias_act
from .pixel_norm import pixel_norm as normalise

_SLOPES = {"linear": 1.0, "relu": 0.0, "lrelu": 0.2}  # below zero


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
    """style(instance_norm(act(x + noise * strength + bias))), of the same shape and dtype as `x` [N, C, H, W].

    `noise` [N or 1, 1, H, W] with a `strength` a channel [C], or None; `bias` [C]; `style` [N, 2 C], scales first, or
    None. AdaIN (StyleGAN, Karras et al. 2019, equation 1): (x - mean) / sqrt(var + eps) * (scale + 1) + shift with
    the mean and biased variance of each sample and channel.
    """
    fused = instance_norm and not pixel_norm and act in _SLOPES and (noise is None or not noise.requires_grad)
    if fused and native.covers(x, _SLOPES[act]):
        tensors = (noise, None if noise is None else strength, bias, style)
        return _op(x, *(native.small(tensor, x) for tensor in tensors), _SLOPES[act], eps)[0]
    if noise is not None:
        assert strength is not None
        x = x + noise.to(x.dtype) * strength.to(x.dtype)[:, None, None]
    x = bias_act(x, bias, act=act, gain=1.0)
    if pixel_norm:
        x = normalise(x, eps)
    if instance_norm:
        x = x - x.mean((2, 3), keepdim=True)
        x = x * (x.square().mean((2, 3), keepdim=True) + eps).rsqrt()
    if style is not None:
        scale, shift = style.to(x.dtype)[:, :, None, None].chunk(2, 1)
        x = torch.addcmul(shift, x, scale + 1)
    return x


def _activated(x: Tensor, noise: Tensor | None, strength: Tensor | None, bias: Tensor, alpha: float) -> tuple:
    """t = act(x + noise * strength + bias) and its slope there, in the precision that sums are kept in."""
    t = x.to(native.ACC[x.dtype]) + bias[:, None, None]
    if noise is not None and strength is not None:
        t = t + noise * strength[:, None, None]
    slope = torch.where(t > 0, 1.0, alpha).to(t.dtype)
    return t * slope, slope


def _statistics(t: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    mean = t.mean((2, 3), keepdim=True)
    return mean, ((t - mean).square().mean((2, 3), keepdim=True) + eps).rsqrt()


def _plain(
    x: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor,
    style: Tensor | None,
    alpha: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    t, _ = _activated(x, noise, strength, bias, alpha)
    mean, rstd = _statistics(t, eps)
    y = (t - mean) * rstd
    if style is not None:
        scale, shift = style[:, :, None, None].chunk(2, 1)
        y = y * (scale + 1) + shift
    return native.settle(y, x), mean.flatten(1), rstd.flatten(1)


def _plain_backward(
    g: Tensor,
    x: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor,
    style: Tensor | None,
    *,
    alpha: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by x, strength, bias and style, differentiable again: the statistics are computed anew."""
    t, slope = _activated(x, noise, strength, bias, alpha)
    mean, rstd = _statistics(t, eps)
    normal, g = (t - mean) * rstd, g.to(t.dtype)
    dstrength, dstyle = t.new_empty(0), t.new_empty(0)
    if style is not None:
        dstyle = torch.cat([(g * normal).sum((2, 3)), g.sum((2, 3))], 1)
        g = g * (style[:, : x.shape[1], None, None] + 1)
    dt = rstd * (g - g.mean((2, 3), keepdim=True) - normal * (g * normal).mean((2, 3), keepdim=True))
    dx = dt * slope
    if noise is not None:
        dstrength = (dx * noise).sum((0, 2, 3))
    return dx.to(x.dtype), dstrength, dx.sum((0, 2, 3)), dstyle


def _composite_backward(
    g: Tensor,
    x: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor,
    style: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    alpha: float,
    eps: float,
) -> tuple[Tensor, ...]:
    dx, *small = _plain_backward(g, x, noise, strength, bias, style, alpha=alpha, eps=eps)
    return native.settle(dx, x), *small


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistic = x.new_empty(x.shape[:2], dtype=native.ACC[x.dtype])
    return native.empty(x), statistic, torch.empty_like(statistic)


def _fake_backward(
    g: Tensor, x: Tensor, noise: Tensor | None, strength: Tensor | None, bias: Tensor, style: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    n, c = x.shape[:2]
    shapes = ((0 if noise is None else c,), (c,), (0,) if style is None else (n, 2 * c))
    return native.empty(x), *(x.new_empty(shape, dtype=native.ACC[x.dtype]) for shape in shapes)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.alpha, ctx.eps = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx: Any, grad: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    x, noise, strength, bias, style, mean, rstd = ctx.saved_tensors
    dx, dstrength, dbias, dstyle = _op_backward(grad, x, noise, strength, bias, style, mean, rstd, ctx.alpha, ctx.eps)
    dnoise = None
    if noise is not None and ctx.needs_input_grad[1]:  # only projection asks for it
        dnoise = (dx * strength.to(dx.dtype)[:, None, None]).sum(1, keepdim=True).sum_to_size(noise.shape)
    return dx, dnoise, None if noise is None else dstrength, dbias, None if style is None else dstyle, None, None


def _setup_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, _, _, ctx.alpha, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _second_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    def function(*inputs: Any) -> tuple[Tensor, ...]:
        return _plain_backward(*inputs, alpha=ctx.alpha, eps=ctx.eps)

    found = native.gradients(function, ctx.saved_tensors, ctx.needs_input_grad[:6], grads)
    return *found, None, None, None, None


_op = native.define(
    "adain_epilogue(Tensor x, Tensor? noise, Tensor? strength, Tensor bias, Tensor? style, float alpha, float eps) "
    "-> (Tensor y, Tensor mean, Tensor rstd)",
    _plain,
    _fake,
)
_op_backward = native.define(
    "adain_epilogue_backward(Tensor g, Tensor x, Tensor? noise, Tensor? strength, Tensor bias, Tensor? style, "
    "Tensor mean, Tensor rstd, float alpha, float eps) "
    "-> (Tensor dx, Tensor dstrength, Tensor dbias, Tensor dstyle)",
    _composite_backward,
    _fake_backward,
)
native.differentiable("adain_epilogue", _backward, _setup)
native.differentiable("adain_epilogue_backward", _second_backward, _setup_backward)
