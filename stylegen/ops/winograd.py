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

_G = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
_GG = torch.kron(_G, _G)  # [16, 9]
_MIN_CHANNELS = 128  # below, memory and not products take the time
_PIECE_BYTES = 16 << 20  # of one set of matrices; half of a common last-level cache

native.library.define("winograd_conv2d(Tensor x, Tensor u, bool turned) -> Tensor")
native.library.define("winograd_input(Tensor x, Tensor(a!) v, int first) -> ()")
native.library.define("winograd_spread(Tensor g, Tensor(a!) v, int first) -> ()")


def pays(x: Tensor, shape: Sequence[int], stride: int, padding: int) -> bool:
    """Whether a convolution of x [N, in, H, W] with weights [out, in, kh, kw] is faster this way, and possible."""
    fast = {torch.float32: "winograd_f32", torch.bfloat16: "winograd_bf16"}
    return (
        stride == 1
        and padding == 1
        and x.device.type == "cpu"
        and native.covers(x)
        and bool(getattr(native.module, fast.get(x.dtype, ""), False))
        and tuple(shape[2:]) == (3, 3)
        and min(shape[:2]) >= _MIN_CHANNELS
        and all(n % 32 == 0 for n in shape[:2])
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
        and len(x) * x.shape[2] * x.shape[3] >= 2048
    )


def pays_weight_gradient(x: Tensor, shape: Sequence[int], stride: int, padding: int) -> bool:
    """The same of `weight_gradient`, which pays where there is more to do."""
    large = min(shape[:2]) >= 512 and len(x) * x.shape[2] * x.shape[3] >= 8192
    return large and x.dtype == torch.bfloat16 and pays(x, shape, stride, padding)


def conv2d(x: Tensor, w: Tensor) -> Tensor:
    """As torch's, with padding 1: x [N, in, H, W], w [out, in, 3, 3] -> [N, out, H, W], channels innermost."""
    return torch.ops.stylegen.winograd_conv2d(_innermost(x), _weights(w), False)


def input_gradient(g: Tensor, w: Tensor) -> Tensor:
    """The gradient by x of `conv2d`, where g [N, out, H, W] is that by its result: the convolution turned round."""
    return torch.ops.stylegen.winograd_conv2d(_innermost(g), _weights(w), True)


def weight_gradient(x: Tensor, g: Tensor) -> Tensor:
    """The gradient [out, in, 3, 3] by w of `conv2d`, where g [N, out, H, W] is that by its result; for bfloat16.

    Tiles are worked on in pieces, so that the matrices stay in the caches.
    """
    x, g = _innermost(x), _innermost(g)
    rows, across, out = len(x) * x.shape[2] // 2, x.shape[3] // 2, g.shape[1]
    pieces = -(-rows * 16 * across * max(x.shape[1], out) * x.element_size() // _PIECE_BYTES)
    total = torch.zeros(16, out, x.shape[1])
    for i in range(pieces):
        first, last = rows * i // pieces, rows * (i + 1) // pieces
        v, m = (x.new_empty(16, (last - first) * across, c) for c in (x.shape[1], out))
        torch.ops.stylegen.winograd_input(x, v, first)
        torch.ops.stylegen.winograd_spread(g, m, first)
        total += torch.bmm(m.transpose(1, 2), v)
    w = (_GG.T @ total.reshape(16, -1)).reshape(3, 3, *total.shape[1:])
    return w.permute(2, 3, 0, 1).to(x.dtype, memory_format=torch.channels_last)


def _weights(w: Tensor) -> Tensor:
    """G w G^T as [16, out, in]."""
    u = _GG @ w.permute(2, 3, 0, 1).reshape(9, -1).float()
    return u.to(w.dtype).reshape(16, *w.shape[:2])


def _innermost(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
