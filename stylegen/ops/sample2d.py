"""Pixels read between the pixels, with gradients of every order, which are the same at every run.

torch's grid_sample has no second derivative, and on GPUs it adds its first up in whatever order. Reading is linear in
the picture: its gradient is its adjoint, whose gradient is reading again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def sample2d(x: Tensor, at: Tensor, *, nearest: bool = False) -> Tensor:
    """x [N, C, H, W] at points [N, H', W', 2] -> [N, C, H', W'], bilinear or of the nearest pixel.

    at: (x, y), where -1 and 1 are the middles of the first and the last pixel; beyond them the border goes on. Float32
    or float64, as x. It gets no gradient.
    """
    return _Read.apply(x, at, nearest)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, at: Tensor, nearest: bool) -> Tensor:
        ctx.save_for_backward(at)
        ctx.size, ctx.nearest = x.shape[2:], nearest
        mode = "nearest" if nearest else "bilinear"
        return F.grid_sample(x, at, mode=mode, padding_mode="border", align_corners=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Write.apply(grads[0], *ctx.saved_tensors, ctx.size, ctx.nearest), None, None


class _Write(torch.autograd.Function):
    """y [N, C, H', W'] is added up where it was read, in pictures of `size`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, at: Tensor, size: torch.Size, nearest: bool) -> Tensor:
        ctx.save_for_backward(at)
        ctx.nearest, y = nearest, y.contiguous()
        height, width = size
        column, row = (
            ((at[..., axis] + 1) * ((side - 1) / 2)).clamp_(0, side - 1) for axis, side in enumerate((width, height))
        )
        left, top = (column.round(), row.round()) if nearest else (column.floor(), row.floor())
        index = top.long().mul_(width + 1).add_(left.long()).flatten(1)
        x = y.new_zeros(*y.shape[:2], (height + 1) * (width + 1))  # a row and a column more, where nothing is added
        if nearest:
            parts = {0: y}
        else:
            below = y * (row - top)[:, None]
            above, right = y - below, (column - left)[:, None]
            above_right, below_right = above * right, below * right
            parts = {0: above.sub_(above_right), 1: above_right}
            parts |= {width + 1: below.sub_(below_right), width + 2: below_right}
        for offset, part in parts.items():
            _add(x[:, :, offset:], index, part.flatten(2))
        return x.unflatten(2, (height + 1, width + 1))[:, :, :-1, :-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Read.apply(grads[0], *ctx.saved_tensors, ctx.nearest), None, None, None


def _add(x: Tensor, index: Tensor, values: Tensor) -> None:
    """x [N, C, P] at index [N, Q] += values [N, C, Q], always in the same order."""
    if x.device.type == "cpu":  # a thread a row
        x.scatter_add_(2, index[:, None].expand(values.shape), values)
    else:  # sorts, where scatter_add_ on GPUs uses atomics
        _add_sorted(x, index, values)


def _add_sorted(x: Tensor, index: Tensor, values: Tensor) -> None:
    row = torch.arange(len(x), device=x.device)[:, None]
    x.transpose(1, 2).index_put_((row, index), values.transpose(1, 2), accumulate=True)
