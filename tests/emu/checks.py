"""One random case of an operator, against its plain-PyTorch reference in double precision.

Every check draws everything about its case (type, memory order, sizes, numbers, alignment) from `random`, and raises
AssertionError where the kernel is wrong. The rule for errors: no more than twice those of PyTorch when it computes at
the precision that the kernel keeps sums in and rounds its result once, and a few units in the last place.
"""

from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor

from stylegen import ops
from stylegen.ops.bias_act import ACTIVATIONS

from . import ACC, Emulator

SIZES = (1, 2, 3, 7, 8, 31, 33, 64, 130)
PIECEWISE = 3  # linear, relu, lrelu


def check_bias_act(emulator: Emulator, random: Random) -> None:
    """All activations and orders, with and without bias, clamp and the saved output."""
    x, g, gg = _pictures(emulator, random, 3)
    act = random.randrange(len(ACTIVATIONS))
    order = random.randrange(3)
    if order < 2:  # zeros, where slopes jump; the second derivative is a matter of convention there
        x = x * (x.abs() > 0.1)
    if x.dtype != torch.float64:  # where torch's softplus is a line from 20 on
        x = x * random.choice([1, 1, 100])
    b = random.choice([None, _normal(random, [x.shape[1]], ACC[x.dtype])])
    # Numbers that a float holds; no output of 16 bits is just at the clamp.
    alpha, gain = random.choice([0.1875, 0.25]), random.choice([1.0, 1.375])
    clamp = torch.tensor(random.choice([-1.0, 0.53, 0.53] if order else [-1.0, 0.53, 0.0])).item()

    def forward(x: Tensor) -> Tensor:
        bias = None if b is None else b.to(x.dtype)
        slope = alpha if ACTIVATIONS[act] == "lrelu" else None
        limit = None if clamp < 0 else clamp
        return ops.bias_act(x, bias, act=ACTIVATIONS[act], alpha=slope, gain=gain, clamp=limit)

    def derivative(order: int) -> Callable[..., Tensor]:
        def function(x: Tensor, g: Tensor, gg: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            result = forward(x)
            for outer in (g, gg)[:order]:
                if not result.requires_grad:
                    return torch.zeros_like(x)
                result = _gradients(result, [x], outer)[0]
            return result.detach()

        return function

    if order == 0:
        y = emulator.bias_act(x, b, act, 0, None, None, None, (alpha, gain, clamp))
        return _compare(y, forward, x)
    y = emulator.bias_act(x, b, act, order, None, g, gg if order == 2 else None, (alpha, gain, clamp))
    _compare(y, derivative(order), x, g, gg)
    if act < PIECEWISE and order == 1:
        ref = forward(x)
        y = emulator.bias_act(None, b, act, 1, ref, g, None, (alpha, gain, clamp))

        def by_output(ref: Tensor, g: Tensor) -> Tensor:
            slope = {"linear": 1.0, "relu": 0.0, "lrelu": alpha}[ACTIVATIONS[act]]
            inside = True if clamp < 0 else ref.abs() < clamp
            return g * gain * torch.where(ref > 0, 1.0, slope) * inside

        _compare(y, by_output, ref, g)


def check_channel_sum(emulator: Emulator, random: Random) -> None:
    """Both memory orders; sums of tensors of 16 bits are kept in float."""
    (v,) = _pictures(emulator, random, 1)
    scale = v.double().abs().sum((0, 2, 3)).max().item()
    _compare(emulator.channel_sum(v), lambda v: v.sum((0, 2, 3)), v, scale=scale)


def check_pixel_norm(emulator: Emulator, random: Random) -> None:
    """The operator and its gradient."""
    x, g = _pictures(emulator, random, 2)
    eps = random.choice([1e-8, 1e-2])
    if random.random() < 0.5:
        return _compare(emulator.pixel_norm(x, None, eps), lambda x: ops.pixel_norm(x, eps), x)

    def backward(x: Tensor, g: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return _gradients(ops.pixel_norm(x, eps), [x], g)[0]

    scale = (g.double().abs() / x.double().square().mean(1, keepdim=True).sqrt()).max().item()
    _compare(emulator.pixel_norm(x, g, eps), backward, x, g, scale=scale)


def check_upfirdn2d(emulator: Emulator, random: Random) -> None:
    """Any filter, padding, cropping, up and down; `edge`."""
    (x,) = _pictures(emulator, random, 1)
    usual = [[1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 1, 1], [1, 1, 2, 2]]  # up, down
    factors = random.choice([*usual, [random.choice([1, 2, 3]) for _ in range(4)]])
    plain, taps = factors == usual[0], _taps(random)
    sizes = x.shape[3] * factors[0], x.shape[2] * factors[1]
    # Torch's own padding cannot crop more than there is.
    ranges = [(-min(4, size // 2), k) for size, k in zip(sizes, (taps.shape[-1], taps.shape[0]), strict=True)]
    padding = [random.randint(*limits) for limits in ranges for _ in range(2)]
    edge = random.choice([0.0, 0.375]) if plain and taps.ndim == 1 else 0.0
    check_resampling(emulator, x, taps, factors[:2], factors[2:], padding, edge, random.choice([1.0, 4.0]))


def check_resampling(
    emulator: Emulator,
    x: Tensor,
    taps: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    edge: float = 0.0,
    gain: float = 1.0,
) -> None:
    """upfirdn2d, and its gradient: the operator itself, transposed. Pads more where nothing of `x` would be left."""
    padding, size, before = list(padding), [], []
    for axis, k in enumerate((taps.shape[-1], taps.shape[0])):
        whole = x.shape[3 - axis] * up[axis] + padding[2 * axis] + padding[2 * axis + 1]
        padding[2 * axis + 1] += max(0, k - whole)
        size.append((max(whole, k) - k) // down[axis] + 1)
        before.append(k - 1 - padding[2 * axis])

    def forward(x: Tensor) -> Tensor:
        f = taps.to(x.dtype)
        return ops.upfirdn2d(x, f, up=up, down=down, padding=padding, flip_filter=True, edge=edge, gain=gain)

    def backward(g: Tensor) -> Tensor:
        start = torch.zeros(x.shape, dtype=g.dtype, requires_grad=True)
        return _gradients(forward(start), [start], g)[0]

    scale = 4 * (taps.double().abs().sum().item() ** (2 / taps.ndim) * gain + edge)
    filters = [taps, taps] if taps.ndim == 1 else [taps, None]
    y = emulator.upfirdn2d(x, *filters, size[::-1], up, down, padding[::2], edge, gain)
    _compare(y, forward, x, scale=scale)
    filters = [None if f is None else f.flip(list(range(f.ndim))) for f in filters]
    g = _normal(emulator.random, y.shape, y.dtype).to(memory_format=_format(x))
    dx = emulator.upfirdn2d(g, *filters, x.shape[2:], down, up, before, edge, gain)
    _compare(dx, backward, g, scale=scale)


def check_upfirdn2d_axes(emulator: Emulator, random: Random) -> None:
    """Different filters along the two axes, against their outer product."""
    (x,) = _pictures(emulator, random, 1)
    fx, fy = (_normal(random, [random.randint(1, 6)], torch.float32) for _ in range(2))
    pad = random.randint(0, 3)
    size = [x.shape[2] + len(fy) + pad, x.shape[3] + len(fx) + pad]
    y = emulator.upfirdn2d(x, fx, fy, size, [1, 1], [1, 1], [len(fx), len(fy)], 0.0, 1.0)
    padding = [len(fx), pad + len(fx) - 1, len(fy), pad + len(fy) - 1]

    def forward(x: Tensor) -> Tensor:
        return ops.upfirdn2d(x, torch.outer(fy.to(x.dtype), fx.to(x.dtype)), padding=padding, flip_filter=True)

    _compare(y, forward, x, scale=4 * fx.abs().sum().item() * fy.abs().sum().item())


def check_adain(emulator: Emulator, random: Random) -> None:
    """The epilogue with all its options, and all its gradients."""
    x, g = _pictures(emulator, random, 2)
    n, c, h, w = x.shape
    bias, alpha, eps = (
        _normal(random, [c], ACC[x.dtype]),
        random.choice([1.0, 0.0, 0.1875]),
        random.choice([1e-8, 1e-3]),
    )
    style = random.choice([None, _normal(random, [n, 2 * c], bias.dtype)])
    noise = strength = None
    if random.random() < 0.7:
        noise = _normal(random, [random.choice([1, n]), 1, h, w], bias.dtype)
        strength = _normal(random, [c], bias.dtype)
    small = [noise, strength, bias, style]

    def activated(x: Tensor, small: Sequence[Tensor | None]) -> Tensor:
        noise, strength, bias, _ = (t if t is None else t.to(x.dtype) for t in small)
        x = x if noise is None or strength is None else x + noise * strength[:, None, None]
        return ops.bias_act(x, bias, act="lrelu", alpha=alpha, gain=1.0)

    def mean(x: Tensor) -> Tensor:
        return activated(x, small).mean((2, 3))

    def rstd(x: Tensor) -> Tensor:
        return (activated(x, small).var((2, 3), correction=0) + eps).rsqrt()

    def forward(x: Tensor, small: Sequence[Tensor | None] = small) -> Tensor:
        style = None if small[3] is None else small[3].to(x.dtype)
        t, zero = activated(x, small), torch.zeros(c, dtype=x.dtype)
        return ops.adain_epilogue(t, None, None, zero, style, act="linear", eps=eps)

    with ops.reference():
        t64, rstd64 = activated(x.double(), small), rstd(x.double())
        statistics = [mean(x.double()).to(bias.dtype), rstd64.to(bias.dtype)]
    # Rounding errors of the activation are magnified by what divides it.
    most, magnified = t64.abs().max().item(), (t64.abs().amax((2, 3)) * rstd64).max().item()
    styled = 1.0 if style is None else 1 + style.abs().max().item()
    y, found_mean, found_rstd = emulator.adain_forward(x, small, alpha, eps)
    _compare(found_mean, mean, x, scale=most)
    _compare(found_rstd, rstd, x, scale=rstd64.max().item() * (1 + magnified))
    _compare(y, forward, x, scale=magnified * styled)

    def backward(x: Tensor, g: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        leaves = [None if t is None else t.to(x.dtype).requires_grad_(t is not noise) for t in small]
        by = [t for t in (x, leaves[2], leaves[1], leaves[3]) if t is not None]
        return _gradients(forward(x, leaves), by, g)

    scale = g.double().abs().max().item() * styled * rstd64.max().item() * (1 + magnified)
    terms = n * h * w * (1.0 if noise is None else 1 + noise.abs().max().item())
    for i, gradient in enumerate(emulator.adain_backward(g, x, small, statistics, alpha, eps)):
        _compare(gradient, lambda x, g, i=i: backward(x, g)[i], x, g, scale=scale if i == 0 else scale * terms)


CHECKS = {
    "bias_act": check_bias_act,
    "channel_sum": check_channel_sum,
    "pixel_norm": check_pixel_norm,
    "upfirdn2d": check_upfirdn2d,
    "upfirdn2d_axes": check_upfirdn2d_axes,
    "adain": check_adain,
}


def _pictures(emulator: Emulator, random: Random, count: int) -> list[Tensor]:
    """Random ones of one random type, size and memory order; half the time, tensors start askew."""
    dtype, memory_format = random.choice(emulator.dtypes), random.choice([torch.contiguous_format, torch.channels_last])
    shape = [emulator.most]
    while torch.Size(shape).numel() >= emulator.most:
        shape = [random.choice([1, 2, 3]), *(random.choice(SIZES) for _ in range(3))]
    emulator.aligned = random.random() < 0.5
    emulator.random.seed(random.random())
    return [_normal(random, shape, dtype).to(memory_format=memory_format) for _ in range(count)]


def _normal(random: Random, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(random.randrange(1 << 31))
    return torch.randn(list(shape), dtype=torch.float64, generator=generator).to(dtype)


def _taps(random: Random) -> Tensor:
    """Mostly of the sizes that networks use, and now and then larger than any tile."""
    rare = random.choice([[1], [5], [6], [12], [41], [1, 1], [3, 3], [4, 4], [2, 5], [7, 1], [12, 12]])
    return _normal(random, random.choice([[2], [3], [4], [4], rare, rare]), torch.float32)


def _format(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _gradients(y: Tensor, by: Sequence[Tensor], g: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(y, by, g, create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if d is None else d for x, d in zip(by, found, strict=True)]


def _compare(result: Tensor, function: Callable[..., Tensor], *inputs: Tensor, scale: float = 0.0) -> None:
    """`scale`: of the largest terms that a result is the sum of; rounding errors are in proportion to it."""
    with ops.reference():
        exact = function(*(t.double() for t in inputs)).detach()
        rounded = function(*(t.to(ACC[t.dtype]) for t in inputs)).detach().to(result.dtype)
    assert result.shape == exact.shape
    if result.numel() == 0:
        return
    error, usual = ((t.double() - exact).abs().max().item() for t in (result, rounded))
    floor = torch.finfo(ACC[inputs[0].dtype]).eps * max(scale, exact.abs().max().item())
    floor += torch.finfo(result.dtype).eps * exact.abs().max().item()
    allowed = 2 * usual + 4 * floor
    assert error <= allowed, f"an error of {error:.2g}, {allowed:.2g} allowed: {_described(inputs)}"


def _described(inputs: Sequence[Tensor]) -> str:
    x = inputs[0]
    return f"{x.dtype} {tuple(x.shape)} {'contiguous' if x.is_contiguous() else 'channels_last'}"
