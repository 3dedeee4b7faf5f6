"""The compiled CPU kernels: against the references, on every dtype, memory order and awkward tensor."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from stylegen import ops
from stylegen.ops import native
from stylegen.ops.bias_act import ACTIVATIONS

pytestmark = pytest.mark.skipif(not native.enabled(), reason="needs the compiled kernels")
CPU_OPS = torch.ops.stylegen
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ORDERS = [torch.contiguous_format, torch.channels_last]
SHAPES = [(2, 16, 8, 8), (3, 5, 7, 9), (1, 1, 1, 1), (2, 33, 1, 17), (1, 3, 70, 1), (2, 64, 5, 3)]
BLUR, BINOMIAL, BOX = (ops.setup_filter(taps) for taps in ([1, 2, 1], [1, 3, 3, 1], [1, 1]))
PLANE = ops.setup_filter([[1.0, 2.0, 3.0], [0.5, -1.0, 2.0]])

# Numbers that float holds exactly, so that float64 goes through the kernels too.
ACTS = {
    f"bias_act {act}{' clamped' if clamp else ''}": (
        lambda x, b, act=act, clamp=clamp: ops.bias_act(x, b, act=act, alpha=0.25, gain=1.5, clamp=clamp),
        ("x", "c"),
    )
    for act in ACTIVATIONS
    for clamp in (None, 1.0)
}
FILTERS = {
    "blur": (BLUR, {"padding": 1}),
    "binomial": (BINOMIAL, {"padding": (2, 1)}),
    "up": (BINOMIAL, {"up": 2, "padding": (2, 1, 1, 2)}),
    "down": (BINOMIAL, {"down": 2, "padding": 2}),
    "crop": (BOX, {"up": 3, "padding": (-1, 2, 0, 1)}),
    "plane": (PLANE, {"up": (2, 3), "down": (3, 2), "padding": (2, 1, 1, 2)}),
    "flipped": (PLANE, {"padding": 2, "flip_filter": True}),
    "edge": (BINOMIAL, {"padding": 2, "edge": 0.125}),
    "edge adjoint": (BINOMIAL, {"padding": 1, "edge": 0.125}),
}
UPFIRDN = {
    f"upfirdn2d {name}": (lambda x, f=f, options=options: ops.upfirdn2d(x, f, **options), ("x",))
    for name, (f, options) in FILTERS.items()
}
OTHERS = {
    "pixel_norm": (lambda x: ops.pixel_norm(x), ("x",)),
    "adain": (lambda x, s, b, st, n: ops.adain_epilogue(x, n, s, b, st), ("x", "c", "c", "style", "noise")),
    "adain batched noise": (
        lambda x, s, b, st, n: ops.adain_epilogue(x, n, s, b, st, act="relu"),
        ("x", "c", "c", "style", "noises"),
    ),
    "adain bare": (lambda x, b: ops.adain_epilogue(x, None, None, b, None, act="linear"), ("x", "c")),
}
CASES = ACTS | UPFIRDN | OTHERS


def inputs(kinds, shape, dtype, order=torch.contiguous_format, seed=0):
    """Tensors of the named kinds; all but the noise want gradients."""
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    sizes = {"x": shape, "c": (c,), "style": (n, 2 * c), "noise": (1, 1, h, w), "noises": (n, 1, h, w)}
    tensors = [torch.randn(sizes[kind], generator=generator, dtype=torch.float64).to(dtype) for kind in kinds]
    tensors = [t.contiguous(memory_format=order) if kind == "x" else t for t, kind in zip(tensors, kinds, strict=True)]
    return [t.requires_grad_(not kind.startswith("noise")) for t, kind in zip(tensors, kinds, strict=True)]


def results(function, tensors, g=None):
    """The value and the gradients by what wants them."""
    y = function(*tensors)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    g = torch.ones_like(y) if g is None else g.to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, wanted, g)]


def leaves(tensors, dtype=None):
    """Detached copies of the same memory order."""
    return [t.detach().clone().to(dtype or t.dtype).requires_grad_(t.requires_grad) for t in tensors]


def error(found, exact):
    return max(((a.double() - e).abs().max().item() for a, e in zip(found, exact, strict=True) if e.numel()), default=0)


def compare(name, tensors):
    """Our error is no larger than twice PyTorch's own at the same precision, and a rounding of the result.

    Sums have several of those, and float64 too: there is no better number to compare it with.
    """
    function, dtype = CASES[name][0], tensors[0].dtype
    g = torch.randn(function(*tensors).shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = results(function, tensors, g)
    with ops.reference():
        plain = results(function, leaves(tensors), g)
        exact = results(function, leaves(tensors, torch.float64), g)
    roundings = (8 if dtype == torch.float64 else 1) * (8 if "adain" in name else 1)
    if dtype in (torch.float16, torch.bfloat16) and "clamped" in name:
        found = found[:1]  # results that are rounded to the clamp count as clamped, so gradients there differ
    for ours, theirs, truth in zip(found, plain, exact, strict=False):
        assert ours.shape == truth.shape and ours.dtype == theirs.dtype
        size = max(truth.abs().max().item(), 1)  # at least that of what went in: gradients may cancel to nothing
        rounding = torch.finfo(ours.dtype).eps * size * roundings
        assert error([ours], [truth]) <= 2 * error([theirs], [truth]) + rounding


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_accuracy(name, dtype):
    for shape in SHAPES:
        if "adain" in name and math.prod(shape[2:]) < 60:
            continue  # a channel may be zero almost everywhere, and its variance nothing
        for order in ORDERS:
            try:
                compare(name, inputs(CASES[name][1], shape, dtype, order))
            except ValueError as refused:
                assert "does not fit" in str(refused)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("order", ORDERS, ids=["contiguous", "channels_last"])
def test_gradients(name, order):
    function, kinds = CASES[name]
    if name == "adain":  # lrelu's 0.2 is no float, so the public function would leave float64 to the reference
        function = lambda x, s, b, st, n: CPU_OPS.adain_epilogue(x, n, s, b, st, 0.25, 1e-8)[0]  # noqa: E731
    tensors = inputs(kinds, (2, 3, 4, 5), torch.float64, order)
    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)


def checks():
    x, b = inputs(("x", "c"), (2, 3, 4, 5), torch.float32, torch.channels_last)
    g, h = (torch.randn_like(x).requires_grad_() for _ in range(2))
    noise, style, statistic = torch.randn(2, 1, 4, 5), torch.randn(2, 6, requires_grad=True), torch.rand(2, 3) + 1
    half = x.detach().bfloat16().contiguous().requires_grad_()
    numbers = (0.25, 1.5, 1.0)
    return {
        "bias_act": (CPU_OPS.bias_act, (x, b, 1, 2, 0, None, None, None, *numbers)),
        "bias_act bf16": (CPU_OPS.bias_act, (half, b, 1, 8, 0, None, None, None, *numbers)),
        "bias_act ref": (CPU_OPS.bias_act, (x, None, 1, 2, 1, x.detach(), g, None, *numbers)),
        "bias_act order 1": (CPU_OPS.bias_act, (x, b, 1, 8, 1, None, g, None, *numbers)),
        "bias_act order 2": (CPU_OPS.bias_act, (x, b, 1, 8, 2, None, g, h, *numbers)),
        "bias_act dim": (CPU_OPS.bias_act, (x, torch.randn(5), 3, 3, 0, None, None, None, *numbers)),
        "channel_sum": (CPU_OPS.channel_sum, (x, 1)),
        "channel_sum rows": (CPU_OPS.channel_sum, (x[0, 0], 1)),
        "upfirdn2d": (CPU_OPS.upfirdn2d, (x, PLANE, [2, 1], [1, 3], [2, 1, 0, 3], False, 2.0, 0.0)),
        "upfirdn2d edge": (CPU_OPS.upfirdn2d, (half, BINOMIAL, [1, 1], [1, 1], [2] * 4, False, 1.0, 0.125)),
        "adain": (CPU_OPS.adain_epilogue, (x, noise, b, b, style, 0.25, 1e-8)),
        "adain backward": (
            CPU_OPS.adain_epilogue_backward,
            (g, x, noise, b, b, style, statistic, statistic, 0.25, 1e-8),
        ),
        "adain backward bare": (
            CPU_OPS.adain_epilogue_backward,
            (g, x, None, None, b, None, statistic, statistic, 0.25, 1e-8),
        ),
        "pixel_norm": (CPU_OPS.pixel_norm, (x, 1e-8)),
        "pixel_norm backward": (CPU_OPS.pixel_norm_backward, (g, x, 1e-8)),
    }


@pytest.mark.parametrize(
    "name",
    ["bias_act", "bias_act bf16", "bias_act ref", "bias_act order 1", "bias_act order 2", "bias_act dim"]
    + ["channel_sum", "channel_sum rows", "upfirdn2d", "upfirdn2d edge", "adain", "adain backward"]
    + ["adain backward bare", "pixel_norm", "pixel_norm backward"],
)
def test_opcheck(name):
    opcheck(*checks()[name])


VIEWS = {
    "unaligned": lambda n, c, h, w: torch.randn(n * c * h * w + 1)[1:].view(n, c, h, w),
    "unaligned channels_last": lambda n, c, h, w: (
        torch.randn(n * c * h * w + 3)[3:].view(n, h, w, c).permute(0, 3, 1, 2)
    ),
    "some channels": lambda n, c, h, w: torch.randn(n, c + 3, h, w)[:, 2:-1],
    "some channels_last": lambda n, c, h, w: torch.randn(n, h, w, c + 3).permute(0, 3, 1, 2)[:, 2:-1],
    "cropped": lambda n, c, h, w: torch.randn(n, c, h + 2, w + 2)[:, :, 1:-1, 1:-1],
    "cropped channels_last": lambda n, c, h, w: torch.randn(n, h, w + 2, c).permute(0, 3, 1, 2)[..., 1:-1],
    "every second": lambda n, c, h, w: torch.randn(n, c, h, 2 * w)[..., ::2],
    "transposed": lambda n, c, h, w: torch.randn(n, c, w, h).transpose(2, 3),
    "expanded": lambda n, c, h, w: torch.randn(1, c, h, 1).expand(n, c, h, w),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["bias_act lrelu", "bias_act swish", "upfirdn2d edge", "upfirdn2d up", *OTHERS])
def test_views(name, view):
    torch.manual_seed(0)
    tensors = inputs(CASES[name][1], (2, 5, 9, 7), torch.float32)
    tensors[0] = VIEWS[view](2, 5, 9, 7).requires_grad_()
    compare(name, tensors)
    y, dx = results(CASES[name][0], tensors)[:2]  # with a gradient that is expanded from one number
    assert y.is_contiguous(memory_format=native.memory_format(tensors[0]))
    assert dx.shape == tensors[0].shape


@pytest.mark.parametrize("order", ORDERS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_memory_order_is_kept(name, order):
    function, kinds = CASES[name]
    tensors = inputs(kinds, (2, 5, 6, 7), torch.bfloat16, order)
    y, dx = results(function, tensors)[:2]
    assert y.is_contiguous(memory_format=order) and dx.is_contiguous(memory_format=order)
    assert y.dtype == dx.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
@pytest.mark.parametrize("name", ["bias_act lrelu", "upfirdn2d binomial", *OTHERS])
def test_empty(name, shape):
    function, kinds = CASES[name]
    if shape[2] == 0 and name.startswith("upfirdn2d"):
        pytest.skip("PyTorch pads no picture without pixels")
    y, *gradients = results(function, inputs(kinds, shape, torch.float32))
    assert y.numel() == 0
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", ["bias_act lrelu", "bias_act softplus", "upfirdn2d edge", "upfirdn2d down", *OTHERS])
def test_threads_change_nothing(name):
    function, kinds = CASES[name]
    before = torch.get_num_threads()
    try:
        for order in ORDERS:
            tensors = inputs(kinds, (3, 24, 65, 33), torch.float32, order)
            torch.set_num_threads(1)
            one = results(function, tensors)
            torch.set_num_threads(2)
            two = results(function, tensors)
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_lesser_processors(isa):
    ladder = ["baseline", "avx2", "avx512", "avx512bf16"]
    if ladder.index(native.module.isa) <= ladder.index(isa):
        pytest.skip(f"this processor runs the {native.module.isa} kernels already")
    environment = os.environ | {"STYLEGEN_ISA": isa}
    command = [sys.executable, "-m", "stylegen.tools.cli", "doctor", "--json"]
    facts = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True).stdout)
    assert facts["isa"] == isa and facts["healthy"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "accuracy or views", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


def test_unknown_instruction_set_is_named():
    command = [sys.executable, "-c", "import stylegen.ops"]
    done = subprocess.run(command, env=os.environ | {"STYLEGEN_ISA": "bogus"}, capture_output=True, text=True)
    assert done.returncode == 0 and "STYLEGEN_ISA=bogus" in done.stderr and "avx2" in done.stderr


def test_stale_kernels_are_not_used(monkeypatch):
    monkeypatch.setattr(native.module, "interface", 0)
    module, failure = native._load()
    assert module is None and "install stylegen again" in failure


def test_small_tensors_in_half_precision_get_gradients_in_it():
    function, kinds = OTHERS["adain"]
    assert [t.dtype for t in results(function, inputs(kinds, (2, 3, 4, 4), torch.float16))] == [torch.float16] * 5


def test_noise_that_wants_a_gradient_gets_one():
    tensors = inputs(OTHERS["adain"][1], (2, 3, 8, 8), torch.float32)
    tensors[-1].requires_grad_()
    compare("adain", tensors)


def test_reference_launches_no_kernel():
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    assert "stylegen" in type(ops.pixel_norm(x).grad_fn).__name__
    with ops.reference():
        assert not native.enabled()
        assert "stylegen" not in type(ops.pixel_norm(x).grad_fn).__name__
    assert native.enabled()


def test_misuse_is_refused_with_words():
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(RuntimeError, match="b has a shape that does not fit"):
        CPU_OPS.bias_act(x, torch.zeros(4), 1, 0, 0, None, None, None, 0.0, 1.0, -1.0)
    with pytest.raises(RuntimeError, match="float64, float32, float16 or bfloat16"):
        CPU_OPS.pixel_norm(x.int(), 1e-8)
    with pytest.raises(RuntimeError, match="style has a shape"):
        CPU_OPS.adain_epilogue(x, None, None, torch.zeros(3), torch.zeros(1, 3), 0.2, 1e-8)
