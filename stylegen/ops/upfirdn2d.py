"""Upsample, pad, filter with a finite impulse response, downsample."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

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
) -> Tensor:
    """[N, C, H, W] -> [N, C, H', W'] with H' = (H * up + pads - kh) // down + 1, in four steps.

    Insert up - 1 zeros after each pixel; pad with zeros, or crop where negative (`padding`: one number, (x, y), or
    (left, right, top, bottom)); convolve with `f` ([k] applied to both axes, [kh, kw], or None for the identity; with
    `flip_filter` correlate instead); keep every `down`-th pixel. `gain` multiplies the result. `up` and `down` are
    one number or (x, y). Its gradient is an upfirdn2d too: up and down swapped, the filter flipped. Raises ValueError
    where nothing of the picture would be left.
    """
    up_x, up_y = _pair(up)
    down_x, down_y = _pair(down)
    left, right, top, bottom = _padding(padding)
    n, c, h, w = x.shape
    if up_x > 1 or up_y > 1:
        x = x.reshape(n, c, h, 1, w, 1)
        x = F.pad(x, [0, up_x - 1, 0, 0, 0, up_y - 1]).reshape(n, c, h * up_y, w * up_x)
    kh, kw = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    if x.shape[2] + top + bottom < kh or x.shape[3] + left + right < kw:
        raise ValueError(f"upfirdn2d: a {kh}x{kw} filter does not fit {tuple(x.shape)} padded by {padding}")
    x = F.pad(x, [left, right, top, bottom])
    if f is not None:
        f = (f * gain ** (f.ndim / 2)).to(x.dtype)  # the gain at the filter's own precision, as the official code
        f = f if flip_filter else f.flip(list(range(f.ndim)))
        if f.ndim == 1:
            return _taps(_taps(x, f, 3, down_x), f, 2, down_y)
        rows = [_taps(x[:, :, i : x.shape[2] - kh + 1 + i], f[i], 3, down_x) for i in range(kh)]
        return torch.stack(rows).sum(0)[:, :, ::down_y]
    return x[:, :, ::down_y, ::down_x] * gain


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
