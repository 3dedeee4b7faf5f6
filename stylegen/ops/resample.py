"""Convolutions that halve or double a picture, with the blur of StyleGAN, in their cheapest exact form.

"3x3 convolution, then 2x2 means" can be computed as one 4x4 convolution of stride 2, with 16 products a pixel out; so
can its adjoint, "repeat every pixel twice, then convolve". But the 2x2 box commutes with the convolution: filtering
first, which costs no products with weights, leaves a 3x3 convolution of stride 2, with 9. A blur joins the box in one
filter, but for the pixels at the picture's border, where `upfirdn2d`'s `edge` mends the difference.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from . import native
from .conv import conv2d, conv_transpose2d
from .upfirdn2d import setup_filter, upfirdn2d

Taps = tuple[float, ...]


def down_conv2d(x: Tensor, kernel: Tensor, blur: Taps = (), cache: dict[str, Tensor] | None = None) -> Tensor:
    """`blur`, 3x3 convolution, 2x2 means: [N, in, H, W] -> [N, out, H / 2, W / 2]; `kernel` is down_kernel(weights).

    The blur and the convolution pad with zeros and keep the size; `blur` holds the taps of a separable filter of any
    sum (they are normalised), or nothing. `cache` as in `conv2d`.
    """
    if kernel.shape[-1] == 4:
        return conv2d(blur2d(x, blur), kernel, stride=2, padding=1)
    if joint := _joint(blur):
        taps, edge = joint
        x = upfirdn2d(x, _filter(taps, x.device), padding=2, edge=edge)
    else:
        x = upfirdn2d(blur2d(x, blur), _filter((1.0, 1.0), x.device), padding=1)
    return conv2d(x, kernel, stride=2, cache=cache)


def up_conv2d(x: Tensor, kernel: Tensor, blur: Taps = (), cache: dict[str, Tensor] | None = None) -> Tensor:
    """Each pixel twice in both directions, 3x3 convolution, `blur`: [N, in, H, W] -> [N, out, 2 H, 2 W].

    `kernel` is up_kernel(weights). Padding, `blur` and `cache` as in `down_conv2d`.
    """
    if kernel.shape[-1] == 4:
        return blur2d(conv_transpose2d(x, kernel, stride=2, padding=1), blur)
    x = conv_transpose2d(x, kernel, stride=2, cache=cache)
    if joint := _joint(blur):
        taps, edge = joint
        return upfirdn2d(x, _filter(taps, x.device), padding=1, edge=edge, gain=4.0)
    return blur2d(upfirdn2d(x, _filter((1.0, 1.0), x.device), gain=4.0), blur)


def down_kernel(w: Tensor) -> Tensor:
    """Weights [out, in, 3, 3] as `down_conv2d` takes them: [out, in, k, k]."""
    return w if _cheap(w) else spread(w) * 0.25


def up_kernel(w: Tensor) -> Tensor:
    """Weights [out, in, 3, 3], correlated as in `conv2d`, as `up_conv2d` takes them: [in, out, k, k]."""
    w = w.flip([2, 3]).transpose(0, 1)
    w = w if _cheap(w) else spread(w)
    return w if native.referenced() else w.contiguous(memory_format=torch.channels_last)


def blur2d(x: Tensor, taps: Taps) -> Tensor:
    """A separable filter at 1:1, zero padded so that the size stays; the identity for no taps."""
    if not taps:
        return x
    return upfirdn2d(x, _filter(taps, x.device), padding=[len(taps) // 2, (len(taps) - 1) // 2] * 2)


def spread(w: Tensor) -> Tensor:
    """[..., k, k] -> [..., k + 1, k + 1]: the kernel's four shifts by 0 or 1 pixel, summed."""
    padded = F.pad(w, [1, 1, 1, 1])
    return padded[..., 1:, 1:] + padded[..., :-1, 1:] + padded[..., 1:, :-1] + padded[..., :-1, :-1]


def _cheap(w: Tensor) -> bool:
    """Whether fewer products pay for one more pass over the picture: with few channels they do not."""
    return not native.referenced() and min(w.shape[:2]) >= 32


def _joint(blur: Taps) -> tuple[Taps, float] | None:
    """The taps of `blur` followed by a box of two, and the `edge` (of taps that sum to 1) that the cut between leaves.

    None where `upfirdn2d` cannot express it.
    """
    if len(blur) != 3 or blur[0] != blur[2]:
        return None
    a, b, _ = blur
    return (a, a + b, a + b, a), a / (2 * (2 * a + b))


@lru_cache(maxsize=64)
def _filter(taps: Taps, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is kept, and training may use it next
        return setup_filter(taps, device=device)
