"""Convolutions with gradients of their own, and their up- and down-sampling forms."""

import pytest
import torch
from torch.nn import functional as F

from stylegen import ops
from stylegen.ops import gemm, native, resample, winograd

BLURS = [(), (1.0, 2.0, 1.0), (1.0, 3.0, 1.0), (1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 4.0)]


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"), [(1, 1, 0, (3, 4)), (3, 1, 1, (5, 4)), (3, 2, 0, (6, 7))]
)
def test_gradients_of_convolutions(kernel, stride, padding, size):
    x, w = normal(2, 3, *size), normal(4, 3, kernel, kernel)
    how = {"stride": stride, "padding": padding}
    for function, other in ((ops.conv2d, x), (ops.conv_transpose2d, normal(2, 4, *size))):
        assert torch.autograd.gradcheck(lambda a, b, f=function: f(a, b, **how), (other, w))
        assert torch.autograd.gradgradcheck(lambda a, b, f=function: f(a, b, **how), (other, w))


def test_convolutions_are_torchs():
    x, w = normal(2, 3, 6, 8), normal(4, 3, 3, 3)
    torch.testing.assert_close(ops.conv2d(x, w, stride=2, padding=1), F.conv2d(x, w, stride=2, padding=1))
    g = normal(2, 4, 5, 3)
    expected = F.conv_transpose2d(g, w, stride=2, padding=1)
    torch.testing.assert_close(ops.conv_transpose2d(g, w, stride=2, padding=1), expected)


def test_input_gradients_only_computes_no_weight_gradient():
    x, w = normal(2, 3, 6, 6), normal(4, 3, 3, 3)
    with ops.input_gradients_only():
        (dx,) = torch.autograd.grad(ops.conv2d(x, w, padding=1).square().sum(), x, create_graph=True)
        assert torch.autograd.grad(ops.conv2d(x, w).sum(), w, allow_unused=True) == (None,)
    (expected,) = torch.autograd.grad(F.conv2d(x, w, padding=1).square().sum(), x, create_graph=True)
    torch.testing.assert_close(dx, expected)
    penalties = [torch.autograd.grad(g.square().sum(), w)[0] for g in (dx, expected)]  # the second derivative is whole
    torch.testing.assert_close(*penalties)


@pytest.mark.parametrize("blur", BLURS)
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 2)])
@pytest.mark.parametrize(
    ("function", "kernel"), [(ops.up_conv2d, ops.up_kernel), (ops.down_conv2d, ops.down_kernel)], ids=["up", "down"]
)
def test_the_cheap_form_is_exact(function, kernel, size, blur):
    """Values, gradients and gradients of gradients, against convolution and box one after the other."""
    x, w = normal(2, 32, *size), normal(33, 32, 3, 3)
    results = []
    for plain in (False, True):
        if plain:
            with ops.reference():
                y = function(x, kernel(w), blur)
        else:
            y = function(x, kernel(w), blur)
        grads = torch.autograd.grad(y.square().sum(), (x, w), create_graph=True)
        results += [(y, *grads, *torch.autograd.grad(grads[0].square().sum(), (x, w)))]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("channels", [3, 32])
def test_what_up_and_down_mean(channels):
    x, w = normal(1, channels, 4, 6), normal(channels, channels, 3, 3)
    up = F.conv2d(F.interpolate(x, scale_factor=2), w, padding=1)
    torch.testing.assert_close(ops.up_conv2d(x, ops.up_kernel(w), (1.0, 2.0, 1.0)), ops.blur2d(up, (1.0, 2.0, 1.0)))
    down = F.avg_pool2d(F.conv2d(ops.blur2d(x, (1.0, 2.0, 1.0)), w, padding=1), 2)
    torch.testing.assert_close(ops.down_conv2d(x, ops.down_kernel(w), (1.0, 2.0, 1.0)), down)


needs_native = pytest.mark.skipif(native.module is None, reason="the kernels are not built")


@needs_native
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("shape", "out"), [((2, 256, 4, 10), 160), ((9, 128, 14, 18), 160), ((1, 160, 64, 32), 128), ((9, 96, 16, 18), 64)]
)
@pytest.mark.parametrize("form", ["same", "down", "up"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2)])
def test_fewer_products(dtype, tolerance, form, shape, out, layout):
    """Winograd's forms: values and gradients against the definition's in float64."""
    n, channels, *small = shape
    size = [2 * side + 1 for side in small] if form == "down" else small
    x = normal(n, channels, *size, dtype=dtype).detach().to(memory_format=layout).requires_grad_()
    w = normal(*((channels, out) if form == "up" else (out, channels)), 3, 3, dtype=dtype)
    how = {"padding": 1} if form == "same" else {"stride": 2}
    stride, padding = (1, 1) if form == "same" else (2, 0)
    large = small if form == "same" else [2 * side + 1 for side in small]
    assert winograd.pays(x, large, small, w.shape, stride, padding, weight=True)
    name = "conv_transpose2d" if form == "up" else "conv2d"
    results = []
    for module, a, b in ((ops, x, w), (F, x.detach().double(), w.detach().double())):
        a, b = (a, b) if module is ops else (a.requires_grad_(), b.requires_grad_())
        y = getattr(module, name)(a, b, **how)
        grads = torch.autograd.grad(y.square().sum(), (a, b), create_graph=True)
        results.append((y, *grads, *torch.autograd.grad(grads[0].square().sum(), (a, b))))
    for ours, expected in zip(*results, strict=True):
        error = (ours.double() - expected).norm() / expected.norm()
        assert ours.shape == expected.shape and ours.dtype == dtype and error < tolerance


@needs_native
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [96, 160])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fewer_products_whatever_the_threads(dtype, channels, stride):
    size, how = (16, {"padding": 1}) if stride == 1 else (33, {"stride": 2})
    x, w = normal(9, channels, size, size, dtype=dtype), normal(channels, channels, 3, 3, dtype=dtype)
    assert winograd.pays(x, [size] * 2, [16] * 2, w.shape, stride, 2 - stride, weight=True)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            y = ops.conv2d(x, w, **how)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, w))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_native
@pytest.mark.parametrize(("stride", "padding", "kernel"), [(1, 1, 3), (1, 0, 1), (2, 0, 3), (2, 1, 4), (3, 2, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 1e-2)])
def test_few_pixels(dtype, tolerance, stride, padding, kernel):
    """One matrix product: values and gradients against the library's in float64."""
    x = normal(3, 64, 4, 5, dtype=dtype).detach().to(memory_format=torch.channels_last).requires_grad_()
    w = normal(96, 64, kernel, kernel, dtype=dtype).detach().to(memory_format=torch.channels_last).requires_grad_()
    results = []
    for function, a, b in ((ops.conv2d, x, w), (F.conv2d, x.detach().double(), w.detach().double())):
        a, b = a.requires_grad_(), b.requires_grad_()
        y = function(a, b, stride=stride, padding=padding)
        results.append((y, *torch.autograd.grad(y.square().sum(), (a, b))))
    assert gemm.pays(x, w, results[0][0].shape[2:]) and gemm.pays(results[0][0], w, x.shape[2:])
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == dtype and (ours.double() - expected).norm() / expected.norm() < tolerance


def test_training_after_generating():
    """What is kept between calls serves both."""
    x, w = normal(1, 32, 4, 4), ops.up_kernel(normal(32, 32, 3, 3))
    resample._filter.cache_clear()
    with torch.inference_mode():
        ops.up_conv2d(x, w)
    ops.up_conv2d(x, w).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("permutation", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0)])
@pytest.mark.parametrize("size", [(3, 5, 3, 3), (70, 40, 2, 3), (4, 0, 3, 3)])
def test_scaled_cast(size, permutation, dtype):
    """One rounding there and one back, in the order of memory, differentiable."""
    back = sorted(range(4), key=permutation.__getitem__)
    x = normal(*size, dtype=torch.float32).detach().permute(permutation).contiguous().permute(back).requires_grad_()
    y = ops.scaled_cast(x, 0.3, dtype)
    assert torch.equal(y, (x * 0.3).to(dtype)) and y.stride() == x.stride()
    g = normal(*size, dtype=torch.float32).to(dtype)
    (dx,) = torch.autograd.grad(y, x, g)
    assert torch.equal(dx, g.float() * 0.3)
