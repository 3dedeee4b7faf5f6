"""Bias, activation, gain and clamp in one operator."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import native

# name -> (function of (x, alpha), default alpha, default gain); the gains keep the variance of unit normal input
# about 1 (StyleGAN2, Karras et al. 2020, which scales after the activation; StyleGAN1 and ProGAN pass gain=1).
_ACTIVATIONS = {
    "linear": (lambda x, a: x, 0.0, 1.0),
    "relu": (lambda x, a: F.relu(x), 0.0, math.sqrt(2)),
    "lrelu": (F.leaky_relu, 0.2, math.sqrt(2)),
    "tanh": (lambda x, a: torch.tanh(x), 0.0, 1.0),
    "sigmoid": (lambda x, a: torch.sigmoid(x), 0.0, 1.0),
    "elu": (lambda x, a: F.elu(x), 0.0, 1.0),
    "selu": (lambda x, a: F.selu(x), 0.0, 1.0),
    "softplus": (lambda x, a: F.softplus(x), 0.0, 1.0),
    "swish": (lambda x, a: torch.sigmoid(x) * x, 0.0, math.sqrt(2)),
}
ACTIVATIONS = tuple(_ACTIVATIONS)  # in the kernels' order
_PIECEWISE = 3  # linear, relu, lrelu: the derivative can be read from the output, and the second one is zero
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    *,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """clamp(gain * act(x + b), -clamp, clamp), of the same shape and dtype as `x`.

    `x` has any shape, `b` is [x.shape[dim]] or None. `alpha` is the slope of "lrelu" below zero (default 0.2); other
    activations take none. `gain` defaults to sqrt(2) for relu, lrelu and swish and to 1 otherwise; `clamp` None
    clamps nothing. Raises KeyError for an unknown activation.
    """
    function, default_alpha, default_gain = _ACTIVATIONS[act]
    alpha = default_alpha if alpha is None else alpha
    gain = default_gain if gain is None else gain
    if b is None and act == "linear" and gain == 1 and clamp is None:
        return x
    if native.covers(x, alpha, gain, clamp or 0.0):
        number, limit = ACTIVATIONS.index(act), -1.0 if clamp is None else clamp
        return _op(x, native.small(b, x), dim % x.ndim, number, 0, None, None, None, alpha, gain, limit)
    x = function(_biased(x, b, dim), alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def _biased(x: Tensor, b: Tensor | None, dim: int) -> Tensor:
    return x if b is None else x + _along(b.to(x.dtype), x, dim)


def _along(b: Tensor, x: Tensor, dim: int) -> Tensor:
    return b.reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])


def _derivative(t: Tensor, act: str, alpha: float, order: int) -> Tensor:
    """The first or second derivative of an activation at `t`."""
    if act in ("linear", "relu", "lrelu"):
        slope = {"linear": 1.0, "relu": 0.0, "lrelu": alpha}[act]
        return torch.zeros_like(t) if order == 2 else torch.where(t > 0, 1.0, slope).to(t.dtype)
    if act == "tanh":
        y = t.tanh()
        return 1 - y * y if order == 1 else -2 * y * (1 - y * y)
    if act in ("elu", "selu"):
        scale, a = (1.0, 1.0) if act == "elu" else (_SELU_SCALE, _SELU_ALPHA)
        return torch.where(t > 0, scale if order == 1 else 0.0, scale * a * t.clamp(max=0).exp())
    s = t.sigmoid()
    return {
        "sigmoid": (s * (1 - s), s * (1 - s) * (1 - 2 * s)),
        "softplus": (s, s * (1 - s)),
        "swish": (s * (1 + t * (1 - s)), s * (1 - s) * (2 + t * (1 - 2 * s))),
    }[act][order - 1]


def _plain(
    x: Tensor,
    b: Tensor | None,
    dim: int,
    act: int,
    order: int,
    ref: Tensor | None,
    g: Tensor | None,
    gg: Tensor | None,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    """Any of the three orders (csrc/bias_act.h says which is what), in the precision that sums are kept in."""
    name, dtype = ACTIVATIONS[act], native.ACC[x.dtype]
    function = _ACTIVATIONS[name][0]
    t = _biased(x.to(dtype), b, dim) if ref is None else ref.to(dtype)
    y = function(t, alpha) * gain if ref is None else t
    if order == 0:
        return y if clamp < 0 else y.clamp(-clamp, clamp)
    assert g is not None
    result = g.to(dtype) * _derivative(t, name, alpha, order) * gain
    if order == 2:
        assert gg is not None
        result = result * gg.to(dtype)
    return result if clamp < 0 else result * (y.abs() < clamp)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, b, ctx.dim, ctx.act, ctx.order, ref, g, gg, *ctx.numbers = inputs
    alpha, gain, clamp = ctx.numbers
    if ctx.order == 0 and ctx.act < _PIECEWISE and gain > 0 and alpha >= 0:
        # Neither x nor b: the output tells the sign and the clamp, and stays in memory for the next layer anyway.
        x = b = None
        ref = None if ctx.act == 0 and clamp < 0 else output
    ctx.save_for_backward(x, b, ref, g, gg)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, b, ref, g, gg = ctx.saved_tensors
    need_x, need_b, need_g, need_gg = (ctx.needs_input_grad[i] for i in (0, 1, 6, 7))
    dx = db = dg = dgg = None

    def derivative(order: int, g: Tensor, gg: Tensor | None = None) -> Tensor:
        stand_in = g if ref is None else ref  # an unclamped linear one needs nothing but g
        source = (stand_in, None) if x is None else (x, b)
        return _op(*source, ctx.dim, ctx.act, order, stand_in if x is None else ref, g, gg, *ctx.numbers)

    if ctx.order == 0:
        if need_x or need_b:
            dx = derivative(1, grad)
    elif ctx.order == 1:
        dg = derivative(1, grad) if need_g else None
        if ctx.act >= _PIECEWISE and (need_x or need_b):
            dx = derivative(2, g, grad)
    else:  # a third derivative, which no loss of ours takes

        def function(x: Tensor, b: Tensor | None, g: Tensor, gg: Tensor) -> tuple[Tensor]:
            return (_plain(x, b, ctx.dim, ctx.act, 2, ref, g, gg, *ctx.numbers).to(x.dtype),)

        dx, db, dg, dgg = native.gradients(function, (x, b, g, gg), (need_x, need_b, need_g, need_gg), (grad,))
    if dx is not None and need_b and db is None:
        db = channel_sum(dx, ctx.dim)
    return dx if need_x else None, db, None, None, None, None, dg, dgg, None, None, None


_op = native.define(
    "bias_act(Tensor x, Tensor? b, int dim, int act, int order, Tensor? ref, Tensor? g, Tensor? gg, float alpha, "
    "float gain, float clamp) -> Tensor",
    lambda x, *rest: native.settle(_plain(x, *rest), x),
    lambda x, *rest: native.empty(x),
)
native.differentiable("bias_act", _backward, _setup)


def _plain_channel_sum(v: Tensor, dim: int) -> Tensor:
    rows = v.movedim(dim, 0).unsqueeze(-1).flatten(1)
    return rows.sum(1, dtype=native.ACC[v.dtype])


def _channel_sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return grad.to(ctx.dtype).reshape(ctx.shape).expand(ctx.full), None


def _channel_sum_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    v, dim = inputs
    ctx.dtype, ctx.full, ctx.shape = v.dtype, v.shape, [v.shape[dim] if i == dim else 1 for i in range(v.ndim)]


# The sum over all dimensions but one, in the precision that sums are kept in: a bias' gradient.
channel_sum = native.define(
    "channel_sum(Tensor v, int dim) -> Tensor",
    _plain_channel_sum,
    lambda v, dim: v.new_empty(v.shape[dim], dtype=native.ACC[v.dtype]),
)
native.differentiable("channel_sum", _channel_sum_backward, _channel_sum_setup)
