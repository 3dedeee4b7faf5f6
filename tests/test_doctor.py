"""`stylegen doctor`: healthy with and without compiled kernels, and loud about a wrong one."""

import importlib
import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from stylegen.ops import native
from stylegen.tools.cli import cli
from stylegen.tools.doctor import remedies

module = importlib.import_module("stylegen.ops.pixel_norm")  # the package's attribute is the function
needs_kernels = pytest.mark.skipif(not native.enabled(), reason="needs the compiled kernels")
OPERATORS = {"bias_act lrelu", "bias_act swish", "upfirdn2d", "upfirdn2d edge", "adain_epilogue", "pixel_norm"}
OPERATORS |= {"conv2d", "conv2d, few", "conv2d stride 2"}


def test_healthy() -> None:
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "WRONG" not in result.output and f"torch      {torch.__version__}" in result.output


def test_json() -> None:
    facts = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).output)
    assert facts["healthy"] and facts["native"] == native.enabled()
    assert {test["operator"] for test in facts["tests"] if test["device"] == "cpu"} == OPERATORS
    assert all(len(test["errors"]) == 3 for test in facts["tests"])


def test_without_compiled_kernels_it_names_the_remedy_and_is_healthy() -> None:
    program = (
        "import sys; sys.modules['stylegen._native'] = None\n"
        "from stylegen.tools.cli import cli; cli(['doctor', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    facts = json.loads(done.stdout)
    assert done.returncode == 0 and not facts["native"] and facts["healthy"]
    assert len(facts["remedies"]) == 1 and "install stylegen again" in facts["remedies"][0]


@needs_kernels
def test_a_wrong_operator_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    right = module._op
    monkeypatch.setattr(module, "_op", lambda x, eps: right(x, eps) * 1.01)
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1
    assert "WRONG  cpu  pixel_norm" in result.output and "verdict" in result.output


@needs_kernels
def test_a_failing_kernel_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel image is available\nand so on")

    monkeypatch.setattr(module, "_op", fail)
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1 and "no kernel image is available" in result.output


def test_a_gpu_without_kernels_has_a_remedy() -> None:
    gpu = {"device": "cuda:0", "name": "some GPU", "native": False}
    assert any("nvcc" in line or "CUDA" in line for line in remedies([gpu], ""))
