"""In which numbers the networks compute, and how their memory is laid out for it.

Whatever the precision, weights, statistics, styles, averages, pictures, losses and the coarsest level of D are float32.
"""

import platform
from pathlib import Path

import torch
from torch import nn

from .config import PRECISIONS
from .networks.layers import Conv

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(wanted: str, device: torch.device) -> str:
    """`wanted`, one of PRECISIONS; for "auto" bf16 where `device` multiplies it faster than float32, else fp32."""
    if wanted != "auto":
        assert wanted in PRECISIONS
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_multiplies_bf16() else "fp32"


def prepare(network: nn.Module, precision: str) -> nn.Module:
    """`network` itself, set to compute in `precision`, with its weights in the memory order of its convolutions.

    "tf32" and "fp32" also switch the rounding of CUDA's float32 products for the whole process; elsewhere they are the
    same. The values of the weights do not change.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if hasattr(module, "compute_dtype"):
            setattr(module, "compute_dtype", _DTYPES[precision])  # noqa: B010 (which families have it is their matter)
        if isinstance(module, Conv):
            module.arrange()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    return network


def freeze(network: nn.Module) -> nn.Module:
    """`network` itself, for making pictures only, once and for all: it can neither be saved nor trained any more.

    Its kernels are computed, and the weights they come from given up: they are left on PyTorch's "meta" device.
    """
    network.eval().requires_grad_(False)
    for parent in network.modules():
        if dtype := getattr(parent, "compute_dtype", None):
            for module in parent.modules():
                if isinstance(module, Conv):
                    module.freeze(dtype)
    return network


def _cpu_multiplies_bf16() -> bool:
    """By the processor's flags, where the system shows them; timing would not choose the same every time."""
    facts = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not facts.exists():
        return False
    flags = next((line for line in facts.read_text().splitlines() if line.startswith("flags")), "").split()
    return "amx_bf16" in flags or "avx512_bf16" in flags
