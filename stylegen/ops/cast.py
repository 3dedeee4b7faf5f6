"""Scaling and changing the dtype in one pass over memory."""

from typing import Any

import torch
from torch import Tensor

from . import native

_SHORT = (torch.float16, torch.bfloat16)


def scaled_cast(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """x * scale in `dtype`, rounded once, in x's memory order."""
    return (x * scale).to(dtype) if x.dtype == dtype or native.referenced() else _ScaledCast.apply(x, scale, dtype)


class _ScaledCast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        ctx.how = scale, x.dtype
        served = (x.dtype == torch.float32 and dtype in _SHORT) or (x.dtype in _SHORT and dtype == torch.float32)
        if x.device.type != "cpu" or not native.covers(x) or not served:
            return _plain(x, scale, dtype)
        order = sorted(range(x.ndim), key=x.stride, reverse=True)  # as x lies in memory
        y = _op(x.permute(order), scale, dtype)
        return y.permute(sorted(range(x.ndim), key=order.__getitem__))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _ScaledCast.apply(g, *ctx.how), None, None


def _plain(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return (x.to(torch.promote_types(x.dtype, dtype)) * scale).to(dtype)


_op = native.define(
    "scaled_cast(Tensor x, float scale, ScalarType dtype) -> Tensor",
    _plain,
    lambda x, scale, dtype: x.new_empty(x.shape, dtype=dtype),
)
