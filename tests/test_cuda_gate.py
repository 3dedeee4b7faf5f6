"""The CUDA kernels compile, without spills and with 16-byte accesses; see tests/cuda_gate.py.

Two architectures, as compiling takes a while; STYLEGEN_GATE_ARCHS="75 90" chooses others, and "all" checks all of them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_gate
import pytest


@pytest.mark.skipif(not cuda_gate.find("nvcc"), reason="no nvcc: looked at CUDA_HOME, PATH and /usr/local/cuda")
def test_kernels_as_compiled() -> None:
    archs = os.environ.get("STYLEGEN_GATE_ARCHS", "80 100").split()
    words = [] if archs == ["all"] else ["--archs", *archs]
    gate = subprocess.run([sys.executable, cuda_gate.__file__, *words], capture_output=True, text=True)
    assert gate.returncode == 0, gate.stdout + gate.stderr


def test_occupancy() -> None:
    """Against cuda_occupancy.h of the toolkit, for 256 threads of 115 registers and 4608 bytes: 2 blocks."""
    symbol = "_ZN8stylegen4cuda14forward_kernelIfLb1EEEvNS_11AdainParamsE"
    kernel = cuda_gate.Kernel(symbol, "80", registers=115, shared=4608)
    assert (kernel.operator, kernel.variant, kernel.dtype) == ("adain forward", "channels innermost", "f32")
    assert kernel.occupancy() == 25


def test_page_names_every_operator() -> None:
    page = Path(cuda_gate.PAGE).read_text(encoding="utf-8")
    rows = {row.strip() for row in re.findall(r"^\|([^|]+)\|", page, re.MULTILINE)}
    assert set(cuda_gate.OPERATORS) <= rows
