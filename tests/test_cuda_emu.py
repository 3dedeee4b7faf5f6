"""The CUDA kernels, run on the CPU by an emulation of the CUDA execution model (tests/emu).

Random cases with fixed seeds sample the product of all types, memory orders, sizes, options and alignments; each runs
under three schedules. What the emulation cannot show is speed, and what depends on a device's own arithmetic.
"""

import itertools
import subprocess
from pathlib import Path
from random import Random

import emu
import pytest
import torch
from emu.build import FLOAT_ONLY, STRESSED, Patch
from emu.checks import CHECKS, check_resampling

pytestmark = pytest.mark.skipif(emu.missing() is not None, reason=str(emu.missing()))

CASES = {"bias_act": 1000, "channel_sum": 400, "pixel_norm": 200, "upfirdn2d": 800, "upfirdn2d_axes": 200, "adain": 250}
# Faults, each planted by itself: the check that must find it, and the patch.
FAULTS: dict[str, tuple[str, Patch]] = {
    "a tail read and written past the end": (
        "bias_act",
        ("bias_act.cu", "const bool all = whole && left >= n;", "const bool all = whole;"),
    ),
    "the bias of the next channel": (
        "bias_act",
        ("bias_act.cu", "at.place + n <= Index(p.inner)", "at.place + n <= Index(p.inner) + 1"),
    ),
    "no barrier before a read": (
        "channel_sum",
        ("reduce.cuh", "  __syncthreads();\n  if (thread < columns)", "  if (thread < columns)"),
    ),
    "too few lanes merged": (
        "channel_sum",
        ("reduce.cuh", "mask < p.width && mask < 32", "mask < p.width && mask < 16"),
    ),
    "a thread that leaves before the others meet": (
        "channel_sum",
        ("reduce.cuh", "  S s[n];\n", "  S s[n];\n  if (!c.present) return;\n"),
    ),
    "no barrier between two passes": (
        "upfirdn2d",
        ("upfirdn2d.cu", "  tile.vertical();\n  __syncthreads();", "  tile.vertical();"),
    ),
    "a halo of one column too few": (
        "upfirdn2d",
        ("upfirdn2d.cu", "kTaps<up> - 1) / up + 1;\n  if", "kTaps<up> - 2) / up + 1;\n  if"),
    ),
    "a tiled phase off by one": ("upfirdn2d", ("upfirdn2d.cu", "up == 2 ? pad & 1 : 0", "0")),
    "a gathered phase off by one": (
        "upfirdn2d",
        ("upfirdn2d.cu", "(up - begin % up) % up", "(up - begin % up + 1) % up"),
    ),
    "an edge forgotten": (
        "upfirdn2d",
        ("upfirdn2d.cu", "out_y + row + r == p.out.h - 1", "out_y + row + r == p.out.h"),
    ),
    "no barrier between two reductions": (
        "adain",
        ("reduce.cuh", "  __syncthreads();  // scratch may still be in use from an earlier call\n", ""),
    ),
    "statistics of one lane too many": ("adain", ("adain.cu", "m[j].count = j < last ? n : n - 1;", "m[j].count = n;")),
    "the noise of the first sample": (
        "adain",
        ("adain.cu", "p.noise_batched ? c.outer", "p.noise_batched ? 0 * c.outer"),
    ),
    "a gradient without the mean's part": (
        "adain",
        ("adain.cu", "mean_g[j] = s[j].v[0] / A(l.plan.points)", "mean_g[j] = 0 * s[j].v[0]"),
    ),
    "a mean of one point too many": (
        "pixel_norm",
        ("pixel_norm.cu", "A(plan.points) + A(p.eps)", "A(plan.points + 1) + A(p.eps)"),
    ),
    "a vector stored past the end of a row": (
        "upfirdn2d",
        ("upfirdn2d.cu", "t.whole_out = (nhwc ? p.in.c : p.out.w) % lanes == 0 && ", "t.whole_out = "),
    ),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For tensors of a few kilobytes a second thread only waits, on a busy machine for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(emulator: emu.Emulator, name: str, cases: int) -> None:
    for seed in range(cases):
        try:
            CHECKS[name](emulator, Random(seed))
        except AssertionError as error:
            raise AssertionError(f"{name}, seed {seed}: {error}") from error


def record(cases: int, **options) -> list[bytes]:
    calls: list[bytes] = []
    emulator = emu.Emulator(emu.build(), record=calls, **options)
    for name in CHECKS:
        run(emulator, name, cases)
    return calls


def replay(kind: str, calls: list[bytes], folder: Path, *patches: Patch) -> subprocess.CompletedProcess:
    """Runs recorded calls in a program that a sanitizer watches."""
    path = folder / "calls"
    path.write_bytes(b"".join(calls))
    program = emu.build(kind, (*STRESSED, *patches))
    return subprocess.run([program, path], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", CHECKS)
def test_against_reference(name):
    run(emu.Emulator(emu.build()), name, CASES[name])


@pytest.mark.parametrize("name", CHECKS)
def test_against_reference_as_shipped(name):
    run(emu.Emulator(emu.build(patches=())), name, CASES[name] // 8)


@pytest.mark.parametrize("name", CHECKS)
def test_one_element(name):
    run(emu.Emulator(emu.build(), most=2), name, 30)


def test_every_phase():
    """One axis after the other, all that differs in how input, zeros, taps and output meet."""
    emulator, generator = emu.Emulator(emu.build()), torch.Generator().manual_seed(0)
    for taps, up, down, before in itertools.product((1, 2, 3, 4), (1, 2, 3), (1, 2, 3), (-2, -1, 0, 1, 2)):
        f = torch.randn(1, taps, generator=generator)
        x = torch.randn(1, 2, 5, 6, generator=generator)
        check_resampling(emulator, x, f, (up, 1), (down, 1), (before, 1, 0, 0))
        x = x.to(memory_format=torch.channels_last)
        check_resampling(emulator, x, f.T, (1, up), (1, down), (0, 0, before, 1))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty(shape):
    emulator = emu.Emulator(emu.build())
    x, f = torch.zeros(shape), torch.ones(3)
    n, c, h, w = shape
    small = [torch.zeros(n, 1, h, w), torch.zeros(c), torch.zeros(c), torch.zeros(n, 2 * c)]
    statistics = [torch.zeros(n, c), torch.zeros(n, c)]
    emulator.bias_act(x, small[1], 2, 0, None, None, None, (0.25, 1.0, -1.0))
    emulator.channel_sum(x)
    emulator.pixel_norm(x, None, 1e-8)
    emulator.pixel_norm(x, x, 1e-8)
    emulator.upfirdn2d(x, f, f, (h, w), (1, 1), (1, 1), (1, 1), 0.0, 1.0)
    emulator.adain_forward(x, small, 0.25, 1e-8)
    emulator.adain_backward(x, x, small, statistics, 0.25, 1e-8)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault):
    name, patch = FAULTS[fault]
    emulator = emu.Emulator(emu.build(patches=(*STRESSED, *FLOAT_ONLY, patch)), dtypes=[torch.float32])
    with pytest.raises(AssertionError):
        run(emulator, name, 100)


def test_no_access_out_of_bounds(tmp_path):
    """AddressSanitizer and UBSan, which also knows the addresses that a 16-byte access may have. One schedule each."""
    calls = record(30)[::3]
    result = replay("address", calls, tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]
    fault = ("bias_act.cu", "const bool whole = aligned(p.x) && ", "const bool whole = ")
    assert "misaligned address" in replay("address", calls, tmp_path, fault).stderr


def test_no_race(tmp_path):
    """ThreadSanitizer. One schedule will do: it looks at what barriers order, not at what came first."""
    calls = record(3, dtypes=[torch.float32], most=1000)[::3]
    result = replay("thread", calls, tmp_path, *FLOAT_ONLY)
    assert result.returncode == 0, result.stderr[-4000:]
    _, fault = FAULTS["no barrier between two passes"]
    assert "data race" in replay("thread", calls, tmp_path, *FLOAT_ONLY, fault).stderr
