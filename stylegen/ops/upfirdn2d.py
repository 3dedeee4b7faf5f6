"""Upsample, pad, filter with a finite impulse response, downsample."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import native

Pair = int | Sequence[int]


def setup_filter(taps: Sequence[float] | Sequence[Sequence[float]], *, device: torch.device | None = None) -> Tensor:
    """A float32 filter that sums to 1: [k] (separable) from a list of numbers, [kh, kw] from a list of rows."""
    f = torch.as_tensor(taps, dtype=torch.float32, device=device)
    return f / f.sum()


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    *,
    up: Pair = 1,
    down: Pair = 1,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    edge: float = 0.0,
) -> Tensor:
    """[N, C, H, W] -> [N, C, H', W'] with H' = (H * up + pads - kh) // down + 1, in four steps.

    Insert up - 1 zeros after each pixel; pad with zeros, or crop where negative (`padding`: one number, (x, y), or
    (left, right, top, bottom)); convolve with `f` ([k] applied to both axes, [kh, kw], or None for the identity; with
    `flip_filter` correlate instead); keep every `down`-th pixel. `gain` multiplies the result. `up` and `down` are
    one number or (x, y). Its gradient is an upfirdn2d too: up and down swapped, the filter flipped.

    `edge`, for up = down = 1 and a [k] filter, takes edge * (the first and the last pixel in) away from the first and
    the last pixel out, along each axis. So [1, 2, 1] / 4 over the picture, cut to its size, and then [1, 1] / 2 is
    [1, 3, 3, 1] / 8 with padding 2 and edge 1 / 8: the cut ends show in no other pixels.

    Raises ValueError where nothing of the picture would be left, or where `edge` is not possible.
    """
    up, down, padding = _pair(up), _pair(down), _padding(padding)
    kh, kw = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    height, width = x.shape[2] * up[1] + padding[2] + padding[3], x.shape[3] * up[0] + padding[0] + padding[1]
    if height < kh or width < kw:
        raise ValueError(f"upfirdn2d: a {kh}x{kw} filter does not fit {tuple(x.shape)} padded by {padding}")
    if edge and (f is None or f.ndim != 1 or up != (1, 1) or down != (1, 1)):
        raise ValueError("upfirdn2d: edge needs up = down = 1 and a filter of one dimension")
    if f is not None and not f.requires_grad and native.covers(x, edge) and _float_filter(x, f, gain):
        return _op(x, f.float(), up, down, padding, flip_filter, gain, edge)
    return _plain(x, f, up, down, padding, flip_filter, gain, edge)


def _float_filter(x: Tensor, f: Tensor, gain: float) -> bool:
    """Whether the kernels' filter in float, with a gain of its own, is as good as the reference's."""
    return x.dtype != torch.float64 or (gain == 1 and f.dtype == torch.float32)


def _plain(
    x: Tensor,
    f: Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
    edge: float,
) -> Tensor:
    (up_x, up_y), (down_x, down_y), (left, right, top, bottom) = up, down, padding
    n, c, h, w = x.shape
    if up_x > 1 or up_y > 1:
        x = x.reshape(n, c, h, 1, w, 1)
        x = F.pad(x, [0, up_x - 1, 0, 0, 0, up_y - 1]).reshape(n, c, h * up_y, w * up_x)
    if f is None:
        return F.pad(x, [left, right, top, bottom])[:, :, ::down_y, ::down_x] * gain
    scale = gain ** (f.ndim / 2)
    f = (f * scale).to(x.dtype)  # the gain at the filter's own precision, as the official code
    f = f if flip_filter else f.flip(list(range(f.ndim)))
    if edge:
        x = _cut_ends(x, _taps(F.pad(x, [left, right, 0, 0]), f, 3, 1), 3, edge * scale)
        return _cut_ends(x, _taps(F.pad(x, [0, 0, top, bottom]), f, 2, 1), 2, edge * scale)
    x = F.pad(x, [left, right, top, bottom])
    if f.ndim == 1:
        return _taps(_taps(x, f, 3, down_x), f, 2, down_y)
    kh = len(f)
    rows = [_taps(x[:, :, i : x.shape[2] - kh + 1 + i], f[i], 3, down_x) for i in range(kh)]
    return torch.stack(rows).sum(0)[:, :, ::down_y]


def _cut_ends(x: Tensor, y: Tensor, dim: int, edge: float) -> Tensor:
    """`y`, made of `x` along `dim`, less edge * (the first and the last pixel of x) at its own two ends."""
    before, after = ([0, 0] * (3 - dim) + ends for ends in ([0, y.shape[dim] - 1], [y.shape[dim] - 1, 0]))
    ends = F.pad(x.narrow(dim, 0, 1), before) + F.pad(x.narrow(dim, x.shape[dim] - 1, 1), after)
    return torch.sub(y, ends, alpha=edge)


def _taps(x: Tensor, f: Tensor, dim: int, down: int) -> Tensor:
    """Correlates one axis with `f` as a sum of shifted pictures: a depthwise convolution has a slow double backward."""
    length = x.shape[dim] - len(f) + 1
    result = None
    for i, tap in enumerate(f):
        index = [slice(None)] * dim + [slice(i, i + length, down)]
        result = x[tuple(index)] * tap if result is None else torch.addcmul(result, x[tuple(index)], tap)
    assert result is not None
    return result


def _pair(value: Pair) -> tuple[int, int]:
    x, y = (value, value) if isinstance(value, int) else value
    return x, y


def _padding(value: Pair) -> tuple[int, int, int, int]:
    if isinstance(value, int):
        return value, value, value, value
    if len(value) == 2:
        return value[0], value[0], value[1], value[1]
    left, right, top, bottom = value
    return left, right, top, bottom


def _settled(x: Tensor, f: Tensor, *options: Any) -> Tensor:
    return native.settle(_plain(x.to(native.ACC[x.dtype]), f, *options), x)


def _fake(x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int], *rest: Any) -> Tensor:
    height = (x.shape[2] * up[1] + padding[2] + padding[3] - f.shape[0]) // down[1] + 1
    width = (x.shape[3] * up[0] + padding[0] + padding[1] - f.shape[-1]) // down[0] + 1
    return native.empty(x, (x.shape[0], x.shape[1], height, width))


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, f, ctx.up, ctx.down, ctx.padding, ctx.flip_filter, ctx.gain, ctx.edge = inputs
    ctx.save_for_backward(f)
    ctx.sizes = (x.shape[3], x.shape[2]), (output.shape[3], output.shape[2])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The transpose: up and down swapped, the filter flipped, padded so that the input's size comes out."""
    (f,) = ctx.saved_tensors
    padding = []
    for axis, (before, k) in enumerate(zip(ctx.padding[::2], (f.shape[-1], f.shape[0]), strict=True)):
        size_in, size_out, up, down = ctx.sizes[0][axis], ctx.sizes[1][axis], ctx.up[axis], ctx.down[axis]
        padding += [k - 1 - before, size_in * up - size_out * down + before - up + 1]
    dx = _op(grad, f, ctx.down, ctx.up, padding, not ctx.flip_filter, ctx.gain, ctx.edge)
    return dx, None, None, None, None, None, None, None


_op = native.define(
    "upfirdn2d(Tensor x, Tensor f, int[2] up, int[2] down, int[4] padding, bool flip_filter, float gain, float edge) "
    "-> Tensor",
    _settled,
    _fake,
)
native.differentiable("upfirdn2d", _backward, _setup)
