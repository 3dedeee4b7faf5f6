"""3x3 convolutions with fewer products, on the CPU.

Winograd's F(2x2, 3x3) (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1) computes
a 2x2 tile of the result from 16 products a pair of channels where the definition takes 36: y = A^T [(G w G^T) * (B^T x
B)] A, the products being 16 matrix products over channels. In float32 it rounds about as well as the definition does;
in bfloat16 its relative error is about 0.005 where the definition's is 0.003. The gradients have the same form.

Tiles are worked on in pieces, so that the matrices between the steps stay in the caches.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from . import native

_G = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
_GG = torch.kron(_G, _G)  # [16, 9]
_PIECE_BYTES = 16 << 20  # of one set of matrices; half of a common last-level cache
_MIN_CHANNELS = 128  # below, memory and not products take the time

native.library.define("winograd_input(Tensor x, Tensor(a!) v, int first) -> ()")
native.library.define("winograd_output(Tensor m, Tensor(a!) y, int first) -> ()")
native.library.define("winograd_spread(Tensor g, Tensor(a!) v, int first) -> ()")


def pays(x: Tensor, shape: Sequence[int], stride: int, padding: int) -> bool:
    """Whether a convolution of x [N, in, H, W] with weights [out, in, kh, kw] is faster this way."""
    return (
        stride == 1
        and padding == 1
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and native.covers(x)
        and tuple(shape[2:]) == (3, 3)
        and min(shape[:2]) >= _MIN_CHANNELS
        and all(n % 16 == 0 for n in shape[:2])
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
        and len(x) * x.shape[2] * x.shape[3] >= 512
    )


def conv2d(x: Tensor, w: Tensor) -> Tensor:
    """As torch's, with padding 1: x [N, in, H, W], w [out, in, 3, 3] -> [N, out, H, W], channels innermost."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = native.empty(x, (len(x), len(w), *x.shape[2:]))
    u = _weights(w)
    v = None
    for first, rows in _pieces(x, len(w)):
        v = _matrices(x, rows, v)
        torch.ops.stylegen.winograd_input(x, v, first)
        torch.ops.stylegen.winograd_output(_products(v, u, x.shape[3] // 2), y, first)
    return y


def input_gradient(g: Tensor, w: Tensor) -> Tensor:
    """The gradient by x of `conv2d`, where g [N, out, H, W] is that by its result: the convolution turned round."""
    return conv2d(g, w.flip([2, 3]).transpose(0, 1))


def weight_gradient(x: Tensor, g: Tensor) -> Tensor:
    """The gradient [out, in, 3, 3] by w of `conv2d`, where g [N, out, H, W] is that by its result."""
    x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    total = torch.zeros(16, g.shape[1], x.shape[1])
    v = m = None
    for first, rows in _pieces(x, g.shape[1]):
        v, m = _matrices(x, rows, v), _matrices(g, rows, m)
        torch.ops.stylegen.winograd_input(x, v, first)
        torch.ops.stylegen.winograd_spread(g, m, first)
        total += _weight_products(v, m, x.shape[3] // 2)
    w = (_GG.T @ total.reshape(16, -1)).reshape(3, 3, *total.shape[1:])
    return w.permute(2, 3, 0, 1).to(x.dtype, memory_format=torch.channels_last)


def _weights(w: Tensor) -> Tensor:
    """G w G^T as [16, out, in]."""
    u = _GG @ w.permute(2, 3, 0, 1).reshape(9, -1).float()
    return u.to(w.dtype).reshape(16, *w.shape[:2])


def _pieces(x: Tensor, out: int) -> Iterator[tuple[int, int]]:
    """(first row of tiles, number of rows), through all samples."""
    rows, across = len(x) * x.shape[2] // 2, x.shape[3] // 2
    size = max(1, _PIECE_BYTES // (16 * across * max(x.shape[1], out) * x.element_size()))
    count = -(-rows // size)
    for i in range(count):  # as equal as can be
        first = rows * i // count
        yield first, rows * (i + 1) // count - first


def _matrices(x: Tensor, rows: int, old: Tensor | None) -> Tensor:
    """[16, tiles, C] for rows of tiles of x, in the memory of `old` where that is large enough.

    In the order in which torch multiplies them fastest: bfloat16 as a batch of matrices, float32 as grouped
    convolutions (whose kernels reach twice the rate of the library that multiplies float32 matrices).
    """
    tiles, c = rows * (x.shape[3] // 2), x.shape[1]
    if old is not None and old.shape[1] == tiles:
        return old
    if x.dtype == torch.bfloat16:
        return x.new_empty(16, tiles, c)
    return x.new_empty(tiles, 16, c).transpose(0, 1)


def _products(v: Tensor, u: Tensor, across: int) -> Tensor:
    """v [16, tiles, in] and u [16, out, in] -> [16, tiles, out]."""
    if v.dtype == torch.bfloat16:
        return torch.bmm(v, u.transpose(1, 2))
    y = F.conv2d(_grouped(v, across), u.reshape(-1, u.shape[2], 1, 1), groups=16)
    return y.permute(0, 2, 3, 1).reshape(v.shape[1], 16, -1).transpose(0, 1)


def _weight_products(v: Tensor, m: Tensor, across: int) -> Tensor:
    """v [16, tiles, in] and m [16, tiles, out] -> [16, out, in]."""
    if v.dtype == torch.bfloat16:
        return torch.bmm(m.transpose(1, 2), v)
    size = 16 * m.shape[2], v.shape[2], 1, 1
    return conv2d_weight(_grouped(v, across), size, _grouped(m, across), groups=16).reshape(16, m.shape[2], -1)


def _grouped(v: Tensor, across: int) -> Tensor:
    """[16, tiles, C] in float32's order as pictures [1, 16 * C, rows, across], without a copy."""
    return v.transpose(0, 1).reshape(1, -1, across, 16 * v.shape[2]).permute(0, 3, 1, 2)
