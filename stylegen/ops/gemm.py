"""Convolutions whose result has few pixels, on the CPU: one matrix product.

Reading the weights is most of the work then. PyTorch's library rearranges them in memory first, Winograd's form makes
more of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import native

_MAX_PIXELS = 64  # of the result, in all samples

native.library.define("gemm_conv2d(Tensor x, Tensor w, int[] size, int stride, int padding, bool turned) -> Tensor")


def pays(picture: Tensor, w: Tensor, size: Sequence[int]) -> bool:
    """Whether a convolution of `picture` [N, C, H, W], or its adjoint, is possible so and faster.

    w: [out, in, kh, kw]; `size`: height and width of the result.
    """
    return (
        0 < len(picture) * size[0] * size[1] <= _MAX_PIXELS
        and native.fast_products(picture)
        and all(t.is_contiguous(memory_format=torch.channels_last) for t in (picture, w))
        and w.shape[0] % 32 == w.shape[1] % 32 == 0
    )


def conv2d(x: Tensor, w: Tensor, size: Sequence[int], stride: int, padding: int, *, turned: bool = False) -> Tensor:
    """As torch's, or if `turned` its adjoint by its input, with a result of height and width `size`."""
    return torch.ops.stylegen.gemm_conv2d(x, w, size, stride, padding, turned)
