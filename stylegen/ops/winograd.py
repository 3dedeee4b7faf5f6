"""3x3 convolutions with fewer products, on the CPU.

Winograd's F(2x2, 3x3) (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1) computes
a 2x2 tile of the result from 16 products a pair of channels where the definition takes 36: y = A^T [(G w G^T) * (B^T x
B)] A, the products being 16 matrix products over channels. In float32 it rounds about as well as the definition does;
in bfloat16 its relative error is about 0.004 where the definition's is 0.003. The gradients have the same form.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import native

_MIN_CHANNELS = 32  # below, memory and not products take the time
_MIN_CHANNELS_WEIGHT = 96  # likewise, for the weight gradient

native.library.define("winograd_kernel(Tensor w, bool turned) -> Tensor")
native.library.define("winograd_conv2d(Tensor x, Tensor u) -> Tensor")
native.library.define("winograd_weight(Tensor x, Tensor g) -> Tensor")


def pays(x: Tensor, shape: Sequence[int], stride: int, padding: int, *, weight: bool = False) -> bool:
    """Whether a convolution of x [N, in, H, W] with weights [out, in, kh, kw] is faster this way, and possible.

    `weight`: whether its gradient by the weights is.
    """
    fast = {torch.float32: "winograd_f32", torch.bfloat16: "winograd_bf16"}
    return (
        stride == 1
        and padding == 1
        and x.device.type == "cpu"
        and native.covers(x)
        and bool(getattr(native.module, fast.get(x.dtype, ""), False))
        and tuple(shape[2:]) == (3, 3)
        and min(shape[:2]) >= (_MIN_CHANNELS_WEIGHT if weight else _MIN_CHANNELS)
        and all(n % 32 == 0 for n in shape[:2])
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
        and len(x) * x.shape[2] * x.shape[3] >= 64
    )


def weights(w: Tensor, *, turned: bool = False) -> Tensor:
    """w [out, in, 3, 3] as `conv2d` takes it: G w G^T, 16 * out * in numbers in an order of the processor's own.

    `turned`: flipped and transposed, so that `conv2d` of a gradient by a convolution's result gives that by its input.
    """
    return torch.ops.stylegen.winograd_kernel(_innermost(w), turned)


def conv2d(x: Tensor, u: Tensor) -> Tensor:
    """As torch's, with padding 1: x [N, in, H, W], u of w [out, in, 3, 3] -> [N, out, H, W], channels innermost."""
    return torch.ops.stylegen.winograd_conv2d(_innermost(x), u)


def weight_gradient(x: Tensor, g: Tensor) -> Tensor:
    """The gradient [out, in, 3, 3] by w of `conv2d`, where g [N, out, H, W] is that by its result."""
    return torch.ops.stylegen.winograd_weight(_innermost(x), _innermost(g))


def _innermost(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
