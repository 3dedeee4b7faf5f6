"""Convolutions with 3x3 kernels and fewer products, on the CPU.

Winograd's F(2x2, 3x3) (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1) computes
a 2x2 tile of the result from 16 products a pair of channels where the definition takes 36: y = A^T [(G w G^T) * (B^T x
B)] A, the products being 16 matrix products over channels. In float32 it rounds about as well as the definition does;
in bfloat16 its relative error is about 0.004 where the definition's is 0.002.

With stride 2 the outer two taps of a row meet only every second number: F(2, 2) makes two results of them from 3
products where the definition takes 4. The middle tap takes 2, so that a tile takes 25. The gradients of either form
have the same form.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import native

# Below these, transforming pictures and weights takes longer than the products saved: in * out channels, by dtype and
# stride, and pixels of the smaller picture, in all samples.
_MIN_PRODUCTS = {
    (torch.float32, 1): 32 * 32,
    (torch.float32, 2): 128 * 128,
    (torch.bfloat16, 1): 64 * 64,
    (torch.bfloat16, 2): 128 * 256,
}
_MIN_PIXELS = 65

native.library.define("winograd_kernel(Tensor w, int stride, bool turned) -> Tensor")
native.library.define("winograd_conv2d(Tensor x, Tensor u, int stride, bool turned) -> Tensor")
native.library.define("winograd_weight(Tensor x, Tensor g, int stride) -> Tensor")


def pays(
    picture: Tensor,
    large: Sequence[int],
    small: Sequence[int],
    shape: Sequence[int],
    stride: int,
    padding: int,
    *,
    weight: bool = False,
) -> bool:
    """Whether a convolution, or its gradient by its input, is possible this way and faster.

    `picture`: its input or result [N, ...]; `large`, `small`: height and width of the two; weights [out, in, kh, kw].
    `weight`: the same of the gradient by the weights, which is faster wherever it is possible.
    """
    height, width = small
    return (
        (stride, padding) in ((1, 1), (2, 0))
        and native.fast_products(picture)
        and tuple(shape[2:]) == (3, 3)
        and all(n % 32 == 0 for n in shape[:2])
        and (weight or shape[0] * shape[1] >= _MIN_PRODUCTS[picture.dtype, stride])
        and height % 2 == width % 2 == 0
        and (stride == 1 or tuple(large) == (2 * height + 1, 2 * width + 1))
        and len(picture) * height * width >= (1 if weight else _MIN_PIXELS)
    )


def weights(w: Tensor, stride: int = 1, *, turned: bool = False) -> Tensor:
    """w [out, in, 3, 3] as `conv2d` takes it: G w G^T, 16 * out * in numbers in an order of the processor's own.

    `turned`: for the adjoint of the convolution with w.
    """
    return torch.ops.stylegen.winograd_kernel(_innermost(w), stride, turned)


def conv2d(x: Tensor, u: Tensor, stride: int = 1, *, turned: bool = False) -> Tensor:
    """As torch's, x [N, in, H, W] -> [N, out, H', W'], with `u` from `weights`; `turned`: its adjoint, by its input.

    Padding is 1 for stride 1 and 0 for stride 2. The result has the channels innermost.
    """
    return torch.ops.stylegen.winograd_conv2d(_innermost(x), u, stride, turned)


def weight_gradient(x: Tensor, g: Tensor, stride: int = 1) -> Tensor:
    """The gradient [out, in, 3, 3] by w of `conv2d`, where g [N, out, H', W'] is that by its result."""
    return torch.ops.stylegen.winograd_weight(_innermost(x), _innermost(g), stride)


def _innermost(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
