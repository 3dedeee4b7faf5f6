"""What the CUDA kernels must keep to, checked without a GPU: python tests/cuda_gate.py [--archs 80 90] [--write].

Compiles every csrc/*.cu for each architecture and fails where a kernel spills registers or has a stack frame, or where
one that should move 16 bytes an access does not (the machine code is read by nvdisasm: `pip install
"nvidia-cuda-nvdisasm<13.3"`). Prints registers and theoretical occupancy; --write puts them into docs/cuda_kernels.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/cuda_kernels.md"
SOURCES = sorted((ROOT / "csrc").glob("*.cu"))
DTYPES = {"d": "f64", "f": "f32", "6__half": "f16", "13__nv_bfloat16": "bf16"}  # as names are mangled

# Of a multiprocessor, from the technical specifications in the CUDA C++ Programming Guide: resident threads, resident
# blocks, shared memory in KiB. All have 65536 registers; from 8.0 on the system takes 1 KiB of shared memory a block.
LIMITS = {
    "75": (1024, 16, 64),
    "80": (2048, 32, 164),
    "86": (1536, 16, 100),
    "89": (1536, 24, 100),
    "90": (2048, 32, 228),
    "100": (2048, 32, 228),
    "120": (1536, 24, 100),
}
ARCHS = list(LIMITS)


def tile(up: int, down: int, height: int, width: int) -> tuple[int, float]:
    """Shared bytes of upfirdn2d's tile (channels innermost), and bytes that it moves over the least possible."""
    taps = 5 if up == 2 else 4  # see kTaps
    rows, columns = (((size - 1) * down + taps - 1) // up + 1 for size in (height, width))
    scale = (down / up) ** 2  # inputs an output
    halo = rows * columns / (height * width * scale)
    return height * columns * 128, (scale * halo + 1) / (scale + 1)


# Operator -> (dynamic shared bytes a block, bytes moved over the least that the operator needs, in what circumstances).
OPERATORS = {
    "bias_act": (0, 1.0, "every tensor once"),
    "channel_sum": (0, 1.0, "every tensor once"),
    "upfirdn2d 1:1": (
        *tile(1, 1, 8, 16),
        "tiles of 8 x 16, with the inputs around them, which the L2 may hold",
    ),
    "upfirdn2d up 2": (*tile(2, 1, 8, 32), "tiles of 8 x 32, likewise"),
    "upfirdn2d down 2": (*tile(1, 2, 8, 8), "tiles of 8 x 8, likewise"),
    "upfirdn2d any": (0, None, "each output gathers its inputs through the caches"),
    "adain forward": (0, 3 / 2, "x twice; where a block covers a picture, the second time from the caches"),
    "adain backward": (0, 5 / 3, "x and g twice, likewise"),
    "pixel_norm": (0, 3 / 2, "x (backward: and g) twice, the second time from the caches"),
}


@dataclass
class Kernel:
    """One kernel for one architecture."""

    symbol: str
    arch: str
    registers: int = 0
    shared: int = 0  # static
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        match = re.search(r"(sum|bias_act|tiled|gather|pixel_norm|forward|backward)_kernelI(.*?)EEv", self.symbol)
        assert match, f"{self.symbol} is new: tell tests/cuda_gate.py about it"
        name, arguments = match.groups()
        mangled = next(m for m in DTYPES if arguments.startswith(m))
        self.dtype, rest = DTYPES[mangled], arguments[len(mangled) :]
        flag = "Lb1" in rest
        if name == "tiled":
            up, down = re.findall(r"Li(\d)", rest)
            self.operator = "upfirdn2d " + ("up 2" if up == "2" else "down 2" if down == "2" else "1:1")
            self.variant = "both orders"
        elif name == "bias_act":
            self.operator = name
            self.variant = ("curved" if flag else "straight") + (", 64-bit" if rest.endswith("l") else "")
        else:
            names = {
                "sum": "channel_sum",
                "gather": "upfirdn2d any",
                "forward": "adain forward",
                "backward": "adain backward",
            }
            self.operator = names.get(name, name)
            swapped = name == "pixel_norm"  # its "channels" are pixels
            self.variant = "channels innermost" if flag != swapped else "width innermost"

    @property
    def threads(self) -> int:
        return 128 if self.variant == "both orders" and self.dtype in ("f16", "bf16") else 256  # see kTileThreads

    def occupancy(self) -> int:
        """Resident threads of a multiprocessor, in per cent of what it can hold."""
        threads, blocks, kib = LIMITS[self.arch]
        warps = self.threads // 32
        by_registers = 4 * (65536 // 4 // (-(-self.registers * 32 // 256) * 256)) // warps  # four partitions
        shared = self.shared + OPERATORS[self.operator][0] + (1024 if int(self.arch) >= 80 else 0)
        by_shared = kib * 1024 // shared if shared else blocks
        return 100 * min(blocks, threads // self.threads, by_registers, by_shared) * self.threads // threads


def find(program: str) -> str | None:
    """`program` of the CUDA toolkit: of CUDA_HOME, PATH, the usual folder, or of its package on PyPI."""
    folders = [Path(os.environ["CUDA_HOME"], "bin")] if "CUDA_HOME" in os.environ else []
    wheel = Path(sysconfig.get_paths()["purelib"], "nvidia/cu13/bin")
    for path in [*folders, None, "/usr/local/cuda/bin", wheel]:
        if found := shutil.which(program, path=path and str(path)):
            return found
    return None


def compile_kernels(source: Path, arch: str, folder: Path) -> tuple[list[Kernel], float]:
    """The kernels of one file for one architecture, and the seconds that nvcc took."""
    cubin = folder / f"{source.stem}_{arch}.cubin"
    nvcc = find("nvcc")
    assert nvcc
    start = time.perf_counter()
    command = [nvcc, "-std=c++17", "-O3", "-cubin", f"-arch=sm_{arch}", "-Xptxas", "-v", str(source), "-o", str(cubin)]
    run = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if run.returncode:
        raise SystemExit(f"{source.name} does not compile for sm_{arch}:\n{run.stderr}")
    kernels = []
    for block in run.stderr.split("Compiling entry function '")[1:]:
        kernel = Kernel(block.split("'")[0], arch)
        used = [int(n) for n in re.findall(r"Used (\d+) registers", block)]
        stack, stores, loads = (int(n) for n in re.findall(r"(\d+) bytes (?:stack|spill)", block)[:3])
        shared = re.search(r"(\d+) bytes smem", block)
        kernel.registers, kernel.shared = used[0], int(shared[1]) if shared else 0
        if stack or stores or loads:
            kernel.problems.append(f"{stack} bytes of stack, {stores} spilled, {loads} reloaded")
        kernels.append(kernel)
    check_accesses(kernels, cubin)
    return kernels, seconds


def check_accesses(kernels: list[Kernel], cubin: Path) -> None:
    """Adds a problem to each kernel whose machine code lacks 16-byte accesses to global memory."""
    nvdisasm = find("nvdisasm")
    if not nvdisasm:
        return
    text = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    codes = {part.split(":", 1)[0]: part for part in text.split("\n.text.")[1:]}
    for kernel in kernels:
        code = codes[kernel.symbol]
        scalar = kernel.operator == "upfirdn2d any" and kernel.variant == "width innermost"
        for name, needed in (("LDG", not scalar), ("STG", not scalar and kernel.operator != "channel_sum")):
            if needed and not re.search(rf"{name}\.E[\w.]*\.128", code):
                kernel.problems.append(f"no {name}.E.128")


def table(kernels: list[Kernel], archs: list[str]) -> str:
    """Markdown: a row an operator, variant and dtype (float16 is like bfloat16), a column an architecture."""
    heads = ["operator", "kernel", "dtype", "bytes", *(f"sm_{arch}" for arch in archs)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for k in kernels:
        if k.dtype in ("f32", "bf16", "f64"):
            row = cells.setdefault((k.operator, k.variant, k.dtype), {})
            row[k.arch] = f"{k.registers} · {k.occupancy()}%"
    order = list(OPERATORS)
    for (operator, variant, dtype), row in sorted(cells.items(), key=lambda item: (order.index(item[0][0]), item[0])):
        ratio = OPERATORS[operator][1]
        cell = "-" if ratio is None else f"{ratio:.2f}"
        lines.append("| " + " | ".join([operator, variant, dtype, cell, *(row[arch] for arch in archs)]) + " |")
    return "\n".join(lines)


def page(kernels: list[Kernel], archs: list[str]) -> str:
    notes = "\n".join(f"- {name}: {note}." for name, (_, _, note) in OPERATORS.items())
    return f"""# CUDA kernels, as compiled

Made by `python tests/cuda_gate.py --write`, which needs nvcc and no GPU, and fails where a kernel spills registers, has
a stack frame, or lacks 16-byte loads or stores. Each cell: registers a thread, and theoretical occupancy (the threads
that a multiprocessor holds, in per cent of what it can hold). "bytes": memory traffic over the least that the operator
needs, for pictures larger than the caches. float16 is like bfloat16.

{notes}

{table(kernels, archs)}
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Checks the CUDA kernels as compiled.")
    parser.add_argument("--archs", nargs="+", choices=ARCHS, default=ARCHS)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args(argv)
    if not find("nvcc"):
        raise SystemExit("no nvcc: looked at CUDA_HOME, PATH and /usr/local/cuda")
    jobs = [(source, arch) for source in SOURCES for arch in options.archs]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: compile_kernels(*job, Path(folder)), jobs))
    kernels = [kernel for found, _ in results for kernel in found]
    print(table(kernels, options.archs), end="\n\n")
    for (source, arch), (found, seconds) in zip(jobs, results, strict=True):
        print(f"{source.name} sm_{arch}: {len(found)} kernels in {seconds:.1f} s")
    if not find("nvdisasm"):
        print('no nvdisasm, so the width of accesses was not looked at: pip install "nvidia-cuda-nvdisasm<13.3"')
    problems = [f"sm_{k.arch} {k.operator}, {k.variant}, {k.dtype}: {p}" for k in kernels for p in k.problems]
    print("\n".join(problems) or f"{len(kernels)} kernels, nothing wrong")
    if options.write and not problems:
        PAGE.write_text(page(kernels, options.archs), encoding="utf-8")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
