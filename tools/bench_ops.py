"""`bench ops`: every operator and convolution, by shape, dtype and memory order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stylegen import ops
from stylegen.ops import native

from .bench_measure import DTYPES, REFERENCE, Floor, Row, interleave, row

Call = Callable[[], object]
ORDERS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
SHAPES = ((4, 512, 4, 4), (4, 512, 32, 32), (4, 64, 256, 256))  # 128 KB, 8 MB and 64 MB of float32
CONV_SHAPES = ((4, 512, 4, 4), (4, 512, 32, 32), (2, 64, 128, 128))
BLUR = (1.0, 2.0, 1.0)
QUICK_SHAPES = ((2, 16, 4, 4), (1, 16, 9, 16))


@dataclass(frozen=True)
class Case:
    """make(x) prepares a call on x; traffic: bytes read and written at least, in units of x; flops on top."""

    name: str
    make: Callable[[Tensor], Call]
    traffic: float
    flops: float = 0.0  # per element of x


def operators() -> Iterator[Case]:
    """The operators without products. Where a statistic of a picture needs it twice, `traffic` counts both readings."""
    yield Case("bias_act lrelu", _bias_act, 2)
    yield Case("bias_act lrelu, gradient", _bias_act_gradient, 3)
    yield Case("blur 1-2-1", _filter([1, 2, 1], padding=1), 2)
    yield Case("blur 1-3-3-1, edge 1", _filter([1, 3, 3, 1], padding=(2, 1, 2, 1), edge=1.0), 2)
    yield Case("upfirdn2d up 2", _filter([1, 3, 3, 1], up=2, padding=(2, 1, 2, 1), gain=4.0), 5)
    yield Case("upfirdn2d down 2", _filter([1, 3, 3, 1], down=2, padding=1), 1.25)
    yield Case("adain_epilogue", _adain, 3)
    yield Case("adain_epilogue, forward and gradient", _adain_both, 8)
    yield Case("pixel_norm", lambda x: lambda: ops.pixel_norm(x), 2)


def convolutions(channels: int) -> Iterator[Case]:
    """3x3 convolutions that keep the number of channels: 9 products a pixel (the smaller side's) and channel."""
    kinds: dict[str, tuple[Any, float, float]] = {
        "conv2d 3x3": (lambda x, w: ops.conv2d(x, w, padding=1), 2.0, 9.0),
        "up_conv2d 3x3, blur": (lambda x, w: ops.up_conv2d(x, w, BLUR), 5.0, 9.0),
        "down_conv2d 3x3, blur": (lambda x, w: ops.down_conv2d(x, w, BLUR), 1.25, 9.0 / 4),
    }
    for name, (function, traffic, taps) in kinds.items():
        flops = 2.0 * taps * channels
        yield Case(name, _conv(function), traffic, flops)
        yield Case(f"{name}, forward and gradient", _conv(function, gradient=True), 3 * traffic, 3 * flops)


def measure(
    floor: Floor, device: torch.device, dtypes: list[str], orders: list[str], repeats: int, quick: bool, baseline: bool
) -> Iterator[Row]:
    """Every case at every shape; one baseline (float32, contiguous, reference) a case and shape."""
    for case, shape in listed(quick):
        variants: dict[str, Call] = {}
        for dtype in dtypes:
            for order in orders:
                variants[f"{dtype} {order}"] = case.make(_input(shape, device, dtype, order))
        if baseline:
            with ops.reference():
                call = case.make(_input(shape, device, "float32", "contiguous"))
            variants[REFERENCE] = _under_reference(call)
        samples = interleave(variants, repeats, min_ms=0.5 if quick else 5.0)
        size = torch.Size(shape).numel()
        for variant in variants:
            if variant != REFERENCE:
                dtype, order = variant.split()
                least = floor.ms(dtype, case.traffic * size * DTYPES[dtype].itemsize, case.flops * size)
                text = "x".join(map(str, shape))
                yield row(case.name, dtype, samples, variant, least, shape=text, order=order)


def listed(quick: bool) -> list[tuple[Case, tuple[int, ...]]]:
    """What `measure` goes through."""
    plain, convs = (QUICK_SHAPES, QUICK_SHAPES[:1]) if quick else (SHAPES, CONV_SHAPES)
    found: list[tuple[Case, tuple[int, ...]]] = [(case, shape) for shape in plain for case in operators()]
    return found + [(case, shape) for shape in convs for case in convolutions(shape[1])]


def _input(shape: tuple[int, ...], device: torch.device, dtype: str, order: str) -> Tensor:
    return torch.randn(shape, device=device).to(DTYPES[dtype]).contiguous(memory_format=ORDERS[order])


def _under_reference(call: Call) -> Call:
    def run() -> None:
        with ops.reference():
            call()

    return run


def _small(x: Tensor, *shape: int) -> Tensor:
    return torch.randn(shape, device=x.device)  # biases, styles and the like are float32 whatever x is


def _bias_act(x: Tensor) -> Call:
    bias = _small(x, x.shape[1])
    return lambda: ops.bias_act(x, bias, act="lrelu", gain=1.0)


def _bias_act_gradient(x: Tensor) -> Call:
    inputs = [x.requires_grad_(), _small(x, x.shape[1]).requires_grad_()]
    y = ops.bias_act(*inputs, act="lrelu", gain=1.0)
    g = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, inputs, g, retain_graph=True)


def _filter(taps: list[float], **settings: Any) -> Callable[[Tensor], Call]:
    def make(x: Tensor) -> Call:
        f = ops.setup_filter(taps, device=x.device)
        return lambda: ops.upfirdn2d(x, f, **settings)

    return make


def _adain(x: Tensor) -> Call:
    n, c, h, w = x.shape
    small = [_small(x, n, 1, h, w), _small(x, c), _small(x, c), _small(x, n, 2 * c)]
    return lambda: ops.adain_epilogue(x, *small)


def _adain_both(x: Tensor) -> Call:
    n, c, h, w = x.shape
    noise, *small = [_small(x, n, 1, h, w), _small(x, c), _small(x, c), _small(x, n, 2 * c)]
    inputs = [tensor.requires_grad_() for tensor in (x, *small)]
    g = torch.randn_like(x)

    def both() -> None:
        y = ops.adain_epilogue(x, noise, *small)
        torch.autograd.grad(y, inputs, g)

    return both


def _conv(function: Callable[[Tensor, Tensor], Tensor], gradient: bool = False) -> Callable[[Tensor], Call]:
    def make(x: Tensor) -> Call:
        channels = x.shape[1]
        w = _small(x, channels, channels, 3, 3) / (3 * channels**0.5)
        w = w.to(x.dtype, memory_format=native.memory_format(x))
        if not gradient:
            return lambda: function(x, w)
        inputs = [x.requires_grad_(), w.requires_grad_()]
        g = torch.randn_like(function(x, w))
        return lambda: torch.autograd.grad(function(x, w), inputs, g)

    return make
