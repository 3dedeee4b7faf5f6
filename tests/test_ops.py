"""Operators against the official code's numbers, and their first and second gradients against finite differences."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from stylegen import ops
from stylegen.ops import native
from stylegen.ops.sample2d import _add, _add_sorted

GOLDEN = Path(__file__).parent / "golden"
BIAS_ACT = np.load(GOLDEN / "ops_bias_act.npz")
UPFIRDN = np.load(GOLDEN / "ops_upfirdn2d.npz")

DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, {"atol": 1e-9, "rtol": 1e-9}), (torch.float32, {"atol": 2e-6, "rtol": 2e-6})],
    ids=["float64", "float32"],
)


@pytest.fixture(autouse=True, params=["kernels", "reference"])
def path(request):
    """Every test here runs through the compiled kernels (where they are built) and through the reference."""
    if request.param == "kernels" and not native.enabled():
        pytest.skip("no compiled kernels")
    with ops.reference() if request.param == "reference" else contextlib.nullcontext():
        yield request.param


def cases(file):
    return json.loads(str(file["meta"]))["cases"]


def options(case, *names):
    return {name: case[name] for name in names if name in case}


@DTYPES
@pytest.mark.parametrize("case", cases(BIAS_ACT), ids=lambda case: f"{case['i']:02d}-{case['act']}")
def test_bias_act_golden(case, dtype, tolerance):
    x, b, gy, v = (torch.from_numpy(BIAS_ACT[key]).to(dtype).requires_grad_() for key in ("x", "b", "gy", "v"))
    y = ops.bias_act(x, b if case["use_bias"] else None, **options(case, "act", "alpha", "gain", "clamp"))
    (gx,) = torch.autograd.grad(y, x, gy, create_graph=True)
    found = {"y": y, "gx": gx}
    if case["use_bias"]:
        (found["gb"],) = torch.autograd.grad(y, b, gy, create_graph=True)
    (ggx,) = torch.autograd.grad((gx * v).sum(), x, allow_unused=True)
    found["ggx"] = torch.zeros_like(x) if ggx is None else ggx
    for key, value in found.items():
        np.testing.assert_allclose(value.detach().numpy(), BIAS_ACT[f"{case['i']:02d}/{key}"], **tolerance)


@DTYPES
@pytest.mark.parametrize("case", cases(UPFIRDN), ids=lambda case: f"{case['i']:02d}-{case['filter']}")
def test_upfirdn2d_golden(case, dtype, tolerance):
    prefix = f"upfirdn/{case['i']:02d}/"
    x = torch.from_numpy(UPFIRDN["upfirdn/x"]).to(dtype).requires_grad_()
    f = torch.from_numpy(UPFIRDN[f"{prefix}f"]) if f"{prefix}f" in UPFIRDN.files else None
    y = ops.upfirdn2d(x, f, **options(case, "up", "down", "padding", "flip_filter", "gain"))
    np.testing.assert_allclose(y.detach().numpy(), UPFIRDN[f"{prefix}y"], **tolerance)
    (gx,) = torch.autograd.grad(y, x, torch.from_numpy(UPFIRDN[f"{prefix}gy"]).to(dtype))
    np.testing.assert_allclose(gx.numpy(), UPFIRDN[f"{prefix}gx"], **tolerance)


def test_upfirdn2d_separable_equals_its_outer_product():
    x, f = torch.randn(2, 3, 7, 5, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    for flip in (False, True):
        arguments = {"up": 2, "down": (1, 3), "padding": (2, 1, 3, 0), "gain": 1.7, "flip_filter": flip}
        torch.testing.assert_close(ops.upfirdn2d(x, f, **arguments), ops.upfirdn2d(x, torch.outer(f, f), **arguments))


def test_upfirdn2d_refuses_to_leave_nothing():
    with pytest.raises(ValueError, match="does not fit"):
        ops.upfirdn2d(torch.zeros(1, 1, 4, 4), torch.ones(3) / 3, padding=-1)


def test_upfirdn2d_edge_needs_one_to_one_and_one_dimension():
    x = torch.zeros(1, 1, 4, 4)
    for taps, options in (([1.0, 2.0, 1.0], {"up": 2}), ([1.0, 2.0, 1.0], {"down": (1, 2)}), ([[1.0, 1.0]], {})):
        with pytest.raises(ValueError, match="edge needs"):
            ops.upfirdn2d(x, ops.setup_filter(taps), padding=1, edge=0.25, **options)


@pytest.mark.parametrize("size", [(7, 6), (1, 5), (2, 1), (1, 1)])
def test_upfirdn2d_edge_is_a_blur_that_is_cut_and_then_a_box(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    taps = [ops.setup_filter(numbers) for numbers in ([1, 2, 1], [1, 1], [1, 3, 3, 1])]
    composed = ops.upfirdn2d(ops.upfirdn2d(x, taps[0], padding=1), taps[1], padding=1)
    y = ops.upfirdn2d(x, taps[2], padding=2, edge=1 / 8)
    torch.testing.assert_close(y, composed)
    g = torch.randn_like(y)
    adjoint = ops.upfirdn2d(g, taps[2], padding=1, edge=1 / 8)
    for result in (y, composed):
        torch.testing.assert_close(torch.autograd.grad(result, x, g)[0], adjoint)


@pytest.mark.parametrize("nearest", [False, True])
def test_sample2d_is_grid_sample_with_a_second_gradient(nearest):
    x, at = torch.randn(2, 3, 5, 4, dtype=torch.float64).requires_grad_(), torch.rand(2, 6, 3, 2, dtype=torch.float64)
    at = at * 2.4 - 1.2  # past the border too
    at[0, 0, 0], at[0, 0, 1], at[1, 0, 0] = 1, -1, torch.tensor([1 / 3, -1 / 2])  # pixels
    expected = F.grid_sample(x, at, "nearest" if nearest else "bilinear", "border", align_corners=True)
    found = ops.sample2d(x, at, nearest=nearest)
    g = torch.randn_like(found)
    assert found.equal(expected)
    torch.testing.assert_close(torch.autograd.grad(found, x, g), torch.autograd.grad(expected, x, g))
    assert gradgradcheck(lambda x: ops.sample2d(x, at, nearest=nearest).sin(), x)


def test_sample2d_adds_alike_on_other_devices():
    index, values = torch.randint(0, 7, (2, 50)), torch.randn(2, 3, 50, dtype=torch.float64)
    one, other = torch.zeros(2, 2, 3, 9, dtype=torch.float64)
    _add(one[:, :, 1:], index, values)
    _add_sorted(other[:, :, 1:], index, values)
    torch.testing.assert_close(one, other)


def test_adain_epilogue_formula():
    n, c, h, w = 3, 4, 5, 6
    x = torch.randn(n, c, h, w, dtype=torch.float64)
    noise, strength = torch.randn(n, 1, h, w, dtype=torch.float64), torch.randn(c, dtype=torch.float64)
    bias, style = torch.randn(c, dtype=torch.float64), torch.randn(n, 2 * c, dtype=torch.float64)
    y = ops.adain_epilogue(x, noise, strength, bias, style)
    for i in range(n):
        for k in range(c):
            plane = (x[i, k] + noise[i, 0] * strength[k] + bias[k]).numpy()
            plane = np.where(plane < 0, 0.2 * plane, plane)
            plane = (plane - plane.mean()) / np.sqrt(plane.var() + 1e-8)
            expected = plane * (style[i, k].item() + 1) + style[i, c + k].item()
            np.testing.assert_allclose(y[i, k].numpy(), expected, atol=1e-12)


def test_second_gradients():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    x, bias, style = draw(2, 3, 4, 5), draw(3), draw(2, 6)
    noise, strength = draw(2, 1, 4, 5).detach(), draw(3)
    f = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    functions = [
        (lambda a, b: ops.bias_act(a, b, act="lrelu"), (x, bias)),
        (lambda a: ops.upfirdn2d(a, f, up=2, padding=(2, 1)), (x,)),
        (lambda a: ops.pixel_norm(a), (x,)),
        (lambda a, s, b, st: ops.adain_epilogue(a, noise, s, b, st), (x, strength, bias, style)),
    ]
    for function, inputs in functions:
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 1, 1), (1, 1, 7, 3)])
def test_odd_shapes(shape):
    x = torch.randn(*shape)
    c = shape[1]
    assert ops.bias_act(x, torch.zeros(c), act="lrelu").shape == shape
    assert ops.upfirdn2d(x, ops.setup_filter([1, 2, 1]), padding=1).shape == shape
    assert ops.pixel_norm(x).shape == shape
    assert ops.adain_epilogue(x, None, None, torch.zeros(c), torch.zeros(shape[0], 2 * c)).isfinite().all()
