"""What this installation can do, and whether it does it right."""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import stylegen

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-3  # of the largest number: float32 against float64, through two gradients


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Tell what is installed, which kernels are compiled, and whether each operator computes what it should.

    Each operator is tried on each device (result, gradient and second gradient) against its plain-PyTorch
    definition in double precision. The exit code is 1 if one of them is wrong. Without compiled kernels everything
    works too, only slower: what is missing is named, with the remedy, and the exit code is 0.

    \b
    Examples:
      stylegen doctor
      stylegen doctor --json
    """
    facts = examine()
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)))
    if not facts["healthy"]:
        ctx.exit(1)


def examine() -> dict[str, Any]:
    """The facts about this installation, in plain types, with a self-test of each operator on each device."""
    import torch

    from stylegen.ops import native

    devices = [_device(name) for name in ["cpu", *_accelerators()]]
    tests = [result for device in devices for result in self_test(device["device"])]
    module = native.module
    return {
        "stylegen": stylegen.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "native": module is not None,
        "compiler": module.compiler if module else None,
        "isa": module.isa if module else None,
        "cuda_archs": module.cuda_archs.split(";") if module and module.cuda_archs else [],
        "devices": devices,
        "remedies": remedies(devices, native.failure if module is None else ""),
        "tests": tests,
        "healthy": all(test["ok"] for test in tests),
    }


def _accelerators() -> list[str]:
    import torch

    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [f"{kind.type}:{i}" for i in range(torch.accelerator.device_count())] if kind else []


def _device(name: str) -> dict[str, Any]:
    import torch

    from stylegen.ops import native

    facts: dict[str, Any] = {"device": name, "name": platform.machine(), "native": name.split(":")[0] in native.devices}
    if name.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability(name)
        facts |= {"name": torch.cuda.get_device_name(name), "capability": f"{major}.{minor}"}
    return facts


def remedies(devices: list[dict[str, Any]], failure: str) -> list[str]:
    """One line for each thing that is missing, with what to do about it. `failure`: why there is no module, or ""."""
    file = Path(stylegen.__file__).with_name("_native.txt")
    note = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    again = "install stylegen again (pip install --force-reinstall --no-deps, from where you have it)"
    if failure:
        cause = note or f"no compiled kernels ({failure})"
        return [f"{cause}. With torch and a C++ compiler in place (on Debian: apt install g++), {again}."]
    lines = [f"{note}. Once mended, {again}."] if note else []
    if not note and any(device["device"].startswith("cuda") and not device["native"] for device in devices):
        lines.append(f"no CUDA kernels were built: with the CUDA toolkit's nvcc in PATH or CUDA_HOME, {again}.")
    return lines


def self_test(device: str) -> list[dict[str, Any]]:
    """Each operator on `device`: the largest errors of its result and its first and second gradients, relative."""
    import torch

    from stylegen import ops

    def draw(*shape: int) -> "Tensor":
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(0)
    taps, noise = ops.setup_filter([1, 3, 3, 1]), draw(1, 1, 7, 9)
    x, bias, style = draw(2, 16, 7, 9), draw(16), draw(2, 32)
    few, many, odd, w = draw(2, 64, 4, 6), draw(2, 64, 8, 6), draw(2, 160, 17, 13), draw(64, 64, 3, 3)
    cases: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "bias_act lrelu": (lambda x, b: ops.bias_act(x, b, act="lrelu"), (x, bias)),
        "bias_act swish": (lambda x, b: ops.bias_act(x, b, act="swish"), (x, bias)),
        "upfirdn2d": (lambda x: ops.upfirdn2d(x, taps.to(x.device), up=2, padding=(2, 1), gain=4.0), (x,)),
        "upfirdn2d edge": (lambda x: ops.upfirdn2d(x, taps.to(x.device), padding=2, edge=0.125), (x,)),
        "adain_epilogue": (lambda x, n, s, b, st: ops.adain_epilogue(x, n, s, b, st), (x, noise, bias, bias, style)),
        "pixel_norm": (lambda x: ops.pixel_norm(x), (x,)),
        "conv2d, few": (lambda x, w: ops.conv2d(x, w, padding=1), (few, w)),
        "conv2d": (lambda x, w: ops.conv2d(x, w, padding=1), (many, w)),
        "conv2d stride 2": (lambda x, w: ops.conv2d(x, w, stride=2), (odd, draw(160, 160, 3, 3))),
    }
    results = []
    for name, (function, inputs) in cases.items():
        double = device if device.startswith(("cpu", "cuda")) else "cpu"  # others may not have float64
        with ops.reference():
            expected = _derivatives(function, inputs, double, torch.float64)
        for order in ("contiguous", "channels_last"):
            test = {"device": device, "operator": name, "order": order}
            try:
                found = _derivatives(function, inputs, device, torch.float32, order == "channels_last")
                errors = [_error(a, b) for a, b in zip(found, expected, strict=True)]
                ok = all(error <= TOLERANCE for error in errors)
                results.append(test | {"errors": errors, "ok": ok})
            except RuntimeError as error:  # what a kernel says about itself belongs into the report
                results.append(test | {"errors": [], "ok": False, "message": str(error).splitlines()[0]})
    return results


def _derivatives(
    function: "Callable[..., Tensor]",
    inputs: "tuple[Tensor, ...]",
    device: str,
    dtype: Any,
    channels_last: bool = False,
) -> "list[list[Tensor]]":
    """The result, its gradients, and the gradients of their sum of squares."""
    import torch

    def place(tensor: "Tensor") -> "Tensor":
        order = torch.channels_last if channels_last and tensor.ndim == 4 else torch.contiguous_format
        return tensor.to(dtype).to(device).clone(memory_format=order)

    placed = [place(tensor) for tensor in inputs]
    wanted = [tensor.requires_grad_() for tensor in placed if tensor.shape[:2] != (1, 1)]  # all but the noise
    result = function(*placed)
    outer = torch.linspace(-1, 1, result.numel(), device=device).to(dtype).reshape(result.shape)
    first = torch.autograd.grad(result, wanted, outer * (1 + result), create_graph=True)
    second = torch.autograd.grad(torch.stack([gradient.square().sum() for gradient in first]).sum(), wanted)
    return [[tensor.detach() for tensor in tensors] for tensors in ((result,), first, second)]


def _error(found: "list[Tensor]", expected: "list[Tensor]") -> float:
    """The largest difference, relative to the largest number of each tensor; infinite where one is not finite."""
    ratios = [
        (a.cpu().double() - b.cpu()).abs().max().item() / b.abs().max().item()
        for a, b in zip(found, expected, strict=True)
    ]
    return max(ratio if ratio == ratio else float("inf") for ratio in ratios)


def _lines(facts: dict[str, Any]) -> list[str]:
    rows = [
        ("stylegen", f"{facts['stylegen']}, Python {facts['python']}, {facts['platform']}"),
        ("torch", f"{facts['torch']}, {facts['threads']} threads"),
        ("kernels", f"compiled by {facts['compiler']}" if facts["native"] else "none compiled; plain PyTorch runs"),
    ]
    for device in facts["devices"]:
        kind = facts["isa"] if device["device"] == "cpu" else f"built for {', '.join(facts['cuda_archs'])}"
        capability = f", capability {device['capability']}" if "capability" in device else ""
        kernels = f"native kernels ({kind})" if device["native"] else "plain PyTorch"
        rows.append((device["device"], f"{device['name']}{capability}: {kernels}"))
    if facts["cuda_archs"] and not any(device["device"].startswith("cuda") for device in facts["devices"]):
        rows.append(("cuda", f"native kernels ({', '.join(facts['cuda_archs'])}), but torch sees no CUDA device here"))
    rows.append(("self-test", "relative errors: of the result, of its gradients, of theirs"))
    for test in facts["tests"]:
        errors = "  ".join(f"{error:.0e}" for error in test["errors"]) or test["message"]
        verdict = "ok" if test["ok"] else "WRONG"
        rows.append(
            ("self-test", f"{verdict:5}  {test['device']}  {test['operator']:15}  {test['order']:13}  {errors}")
        )
    rows += [("missing", line) for line in facts["remedies"]]
    if not facts["healthy"]:
        rows.append(("verdict", "an operator is WRONG here; please report this with the output of --json"))
    width = max(len(key) for key, _ in rows)
    return [f"{key:{width}}  {value}" for key, value in rows]
