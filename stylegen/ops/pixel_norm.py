"""Pixelwise feature normalisation."""

from typing import Any

from torch import Tensor

from . import native


def pixel_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """x / sqrt(mean over channels of x^2 + eps), for [N, C] or [N, C, H, W] (ProGAN, Karras et al. 2018, 4.2)."""
    return _op(x, eps) if native.covers(x) and x.ndim in (2, 4) else _plain(x, eps)


def _plain(x: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + eps).rsqrt()


def _plain_backward(g: Tensor, x: Tensor, eps: float) -> Tensor:
    scale = (x.square().mean(1, keepdim=True) + eps).rsqrt()
    return scale * (g - x * scale.square() * (g * x).mean(1, keepdim=True))


def _precise(x: Tensor) -> Tensor:
    return x.to(native.ACC[x.dtype])


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return _op_backward(grad, x, ctx.eps), None


def _second_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    def function(g: Tensor, x: Tensor) -> tuple[Tensor]:
        return (_plain_backward(_precise(g), _precise(x), ctx.eps).to(x.dtype),)

    return *native.gradients(function, ctx.saved_tensors, ctx.needs_input_grad[:2], (grad,)), None


_op = native.define(
    "pixel_norm(Tensor x, float eps) -> Tensor",
    lambda x, eps: native.settle(_plain(_precise(x), eps), x),
    lambda x, eps: native.empty(x),
)
_op_backward = native.define(
    "pixel_norm_backward(Tensor g, Tensor x, float eps) -> Tensor",
    lambda g, x, eps: native.settle(_plain_backward(_precise(g), _precise(x), eps), x),
    lambda g, x, eps: native.empty(x),
)
native.differentiable("pixel_norm", _backward, _setup)
native.differentiable("pixel_norm_backward", _second_backward, _setup)
