"""Convolutions whose gradients are convolutions again.

The derivatives of a convolution are a transposed convolution and a weight gradient, and theirs are the same three
again. Written out so, the gradient of a gradient (R1, WGAN-GP) costs what ordinary convolutions cost.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from . import gemm, native, winograd

_wanted = {"weights": True}  # not thread-local: on GPUs the backward pass runs in a thread of its own


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """Within it, a backward pass through `conv2d` and its kin computes no weight gradient.

    For a gradient by the pictures alone: autograd does not tell an operator which of its gradients are wanted.
    """
    before, _wanted["weights"] = _wanted["weights"], False
    try:
        yield
    finally:
        _wanted["weights"] = before


def conv2d(
    x: Tensor, w: Tensor, *, stride: int = 1, padding: int = 0, cache: dict[str, Tensor] | None = None
) -> Tensor:
    """Cross-correlation of x [N, in, H, W] with w [out, in, kh, kw] -> [N, out, H', W'], as torch's.

    `cache`: the same dict, empty at first, in calls with the very same w: it keeps what is computed from w alone.
    """
    if native.referenced():
        return F.conv2d(x, w, stride=stride, padding=padding)
    return _Conv.apply(x, w, stride, padding, cache)


def conv_transpose2d(
    x: Tensor, w: Tensor, *, stride: int = 1, padding: int = 0, cache: dict[str, Tensor] | None = None
) -> Tensor:
    """The adjoint of `conv2d` by its input: x [N, in, H, W], w [in, out, kh, kw] -> [N, out, H', W'], as torch's."""
    if native.referenced():
        return F.conv_transpose2d(x, w, stride=stride, padding=padding)
    size = [(n - 1) * stride - 2 * padding + k for n, k in zip(x.shape[2:], w.shape[2:], strict=True)]
    return _ConvInput.apply(x, w, size, stride, padding, cache)


def _kept(cache: dict[str, Tensor], name: str, make: Callable[[], Tensor]) -> Tensor:
    """make(), or what it returned before."""
    if name not in cache:
        cache[name] = make()
    return cache[name]


class _Conv(torch.autograd.Function):
    """y(x, w). `cache` as in conv2d; the gradients by x share it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, stride: int, padding: int, cache: dict[str, Tensor] | None = None
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how, ctx.cache = (stride, padding), {} if cache is None else cache
        small = [(n + 2 * padding - k) // stride + 1 for n, k in zip(x.shape[2:], w.shape[2:], strict=True)]
        if gemm.pays(x, w, small):
            return gemm.conv2d(x, w, small, stride, padding)
        if winograd.pays(x, x.shape[2:], small, w.shape, stride, padding):
            return winograd.conv2d(x, _kept(ctx.cache, "u", lambda: winograd.weights(w, stride)), stride)
        return F.conv2d(x, w, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        dx = _ConvInput.apply(g, w, x.shape[2:], *ctx.how, ctx.cache) if ctx.needs_input_grad[0] else None
        dw = _ConvWeight.apply(x, g, w.shape, *ctx.how) if ctx.needs_input_grad[1] and _wanted["weights"] else None
        return dx, dw, None, None, None


class _ConvInput(torch.autograd.Function):
    """The gradient of y by x, of height and width `size`, where g is that by y. `cache` as in _Conv."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        w: Tensor,
        size: list[int],
        stride: int,
        padding: int,
        cache: dict[str, Tensor] | None = None,
    ) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.how, ctx.cache = (stride, padding), {} if cache is None else cache
        if gemm.pays(g, w, size):
            return gemm.conv2d(g, w, size, stride, padding, turned=True)
        if winograd.pays(g, size, g.shape[2:], w.shape, stride, padding):
            u = _kept(ctx.cache, "turned u", lambda: winograd.weights(w, stride, turned=True))
            return winograd.conv2d(g, u, stride, turned=True)
        if stride == 1 and max(w.shape) <= 128 and w.shape[2] == w.shape[3] == 2 * padding + 1:
            turned = _kept(ctx.cache, "turned", lambda: w.flip([2, 3]).transpose(0, 1))
            return F.conv2d(g, turned, padding=padding)  # faster than the library's own
        if stride == 1:
            return conv2d_input([len(g), w.shape[1], *size], w, g, stride=stride, padding=padding)
        least = [(n - 1) * stride - 2 * padding + k for n, k in zip(g.shape[2:], w.shape[2:], strict=True)]
        extra = [a - b for a, b in zip(size, least, strict=True)]
        return F.conv_transpose2d(g, w, stride=stride, padding=padding, output_padding=extra)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        g, w = ctx.saved_tensors
        dg = _Conv.apply(d, w, *ctx.how, ctx.cache) if ctx.needs_input_grad[0] else None
        dw = _ConvWeight.apply(d, g, w.shape, *ctx.how) if ctx.needs_input_grad[1] and _wanted["weights"] else None
        return dg, dw, None, None, None, None


class _ConvWeight(torch.autograd.Function):
    """The gradient of y by w, of shape `shape`, where g is that by y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, shape: list[int], stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.how = stride, padding
        if winograd.pays(x, x.shape[2:], g.shape[2:], shape, stride, padding, weight=True):
            return winograd.weight_gradient(x, g, stride)
        return conv2d_weight(x, shape, g, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        x, g = ctx.saved_tensors
        dx = _ConvInput.apply(g, d, x.shape[2:], *ctx.how) if ctx.needs_input_grad[0] else None
        dg = _Conv.apply(x, d, *ctx.how) if ctx.needs_input_grad[1] else None
        return dx, dg, None, None, None
