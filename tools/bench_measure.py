"""What the benchmarks share: interleaved timings, the machine's floor, rows, tables, files."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import stylegen
from stylegen.errors import UserError
from stylegen.files import write_atomic
from stylegen.ops import native

Samples = dict[str, list[float]]  # variant -> milliseconds a call, one of every round
REFERENCE = "reference"  # the variant that the others are measured against
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Floor:
    """What the machine can do at best: copy in GB/s (read + written), multiply-add rates in Gflop/s by dtype."""

    copy_gb_sec: float
    gflop_sec: dict[str, float]

    def ms(self, dtype: str, size_bytes: float = 0.0, flops: float = 0.0) -> float:
        """The least time for so much memory traffic and so much arithmetic, if they overlap perfectly."""
        rate = self.gflop_sec.get(dtype)
        return max(size_bytes / self.copy_gb_sec / 1e6, flops / rate / 1e6 if rate else 0.0)


@dataclass(frozen=True)
class Row:
    """One measurement. ratio: how many times faster than the baseline; floor_fraction: 1 is as fast as can be."""

    name: str
    dtype: str
    median_ms: float
    baseline_ms: float | None
    ratio: float | None
    floor_fraction: float | None
    more: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        row = asdict(self)
        return row | row.pop("more")


def row(name: str, dtype: str, samples: Samples, variant: str, floor_ms: float | None, **more: Any) -> Row:
    """The row of one variant. The ratio is the median over rounds, so that a slow spell hits both sides of it."""
    own, base = samples[variant], samples.get(REFERENCE)
    median = statistics.median(own)
    return Row(
        name=name,
        dtype=dtype,
        median_ms=median,
        baseline_ms=statistics.median(base) if base else None,
        ratio=statistics.median(b / a for a, b in zip(own, base, strict=True)) if base else None,
        floor_fraction=floor_ms / median if floor_ms else None,
        more=more,
    )


def interleave(variants: Mapping[str, Callable[[], object]], repeats: int, *, min_ms: float = 5.0) -> Samples:
    """Times the variants in turn, `repeats` rounds of them; short calls are repeated until they fill `min_ms`."""
    calls = {}
    for name, call in variants.items():
        _clock(call, 1)  # allocates, fills caches, lets libraries choose their kernels
        calls[name] = max(1, round(min_ms / _clock(call, 1))) if min_ms else 1
    samples: Samples = {name: [] for name in variants}
    for _ in range(repeats):
        for name, call in variants.items():
            samples[name].append(_clock(call, calls[name]))
    return samples


def measure_floor(device: torch.device, dtypes: Iterable[str], *, quick: bool = False) -> Floor:
    """Best of several: a copy of 256 MB, and the faster of a matrix product and a 512-channel 3x3 convolution.

    Which of the two is faster, and by how much, depends on the processor and on PyTorch's library for it.
    """
    side, copy_bytes = (256, 2**22) if quick else (2048, 2**28)
    source = torch.ones(copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    copy_ms = min(interleave({"copy": lambda: target.copy_(source)}, 15)["copy"])
    rates = {}
    for name in dict.fromkeys(dtypes):
        kind: dict[str, Any] = {"device": device, "dtype": DTYPES[name]}
        a, b = torch.randn(side, side, **kind), torch.randn(side, side, **kind)
        x = torch.randn(2 if quick else 8, 512, side // 64, side // 64, **kind).to(memory_format=torch.channels_last)
        weight = torch.randn(512, 512, 3, 3, **kind).to(memory_format=torch.channels_last)
        products = {"mm": partial(torch.mm, a, b), "conv": partial(F.conv2d, x, weight, padding=1)}
        flops = {"mm": 2 * side**3, "conv": 2 * 9 * 512 * x.numel()}
        samples = interleave(products, 7)
        rates[name] = max(flops[kernel] / min(samples[kernel]) / 1e6 for kernel in products)
    return Floor(2 * copy_bytes / copy_ms / 1e6, rates)


def machine(device: torch.device) -> dict[str, Any]:
    """Facts that figures depend on."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "stylegen": stylegen.__version__,
        "kernels": native.module.isa if native.module else "none: plain PyTorch",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    if hasattr(os, "getloadavg"):
        facts["load_before"] = round(os.getloadavg()[0], 2)
    return facts


def machine_lines(facts: dict[str, Any], floor: Floor | None) -> Iterator[str]:
    """The machine in a few lines for people."""
    yield f"{facts['processor']}, {facts['processors']} processors, {facts['instructions']}; {facts['system']}"
    yield (
        f"Python {facts['python']}, PyTorch {facts['torch']} on {facts['device']}, threads: {facts['threads']}, "
        f"stylegen {facts['stylegen']}, kernels {facts['kernels']}; load before {facts.get('load_before', 'unknown')}"
    )
    if floor:
        rates = "".join(f"; {dtype} {rate:,.0f} Gflop/s" for dtype, rate in floor.gflop_sec.items())
        yield f"Floor: copy {floor.copy_gb_sec:.1f} GB/s (read + written){rates}"


def cells(rows: list[Row]) -> list[list[str]]:
    """A header and a line a row, as text; columns that no row fills are left out."""
    flat = [row.flat() for row in rows]
    front = ["name", *dict.fromkeys(key for row in rows for key in _leading_texts(row.more))]
    keys = [*front, "dtype", "median_ms", "baseline_ms", "ratio", "floor_fraction"]
    keys += dict.fromkeys(key for row in rows for key in row.more if key not in front)
    keys = [key for key in keys if any(row.get(key) is not None for row in flat)]
    return [[key.replace("_", " ") for key in keys], *([_text(key, row.get(key)) for key in keys] for row in flat)]


def aligned(table: list[list[str]]) -> str:
    """The table for a terminal: words to the left, numbers to the right."""
    columns = []
    for column in zip(*table, strict=True):
        width = max(map(len, column))
        columns.append([text.rjust(width) if _numeric(column[1:]) else text.ljust(width) for text in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def markdown(table: list[list[str]]) -> str:
    header, *lines = table
    rule = ["---:" if _numeric(column[1:]) else "---" for column in zip(*table, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def write_json(path: Path, command: str, facts: dict[str, Any], floor: Floor | None, rows: list[Row]) -> None:
    """Everything that was measured, whole or not at all. Raises OSError."""
    content = {
        "command": command,
        "machine": facts,
        "floor": asdict(floor) if floor else None,
        "rows": [row.flat() for row in rows],
    }
    write_atomic(path, json.dumps(content, indent=2) + "\n")


def replace_section(path: Path, name: str, text: str) -> None:
    """Puts `text` between the `markers` of a page, whatever stood there. Raises UserError, OSError."""
    before, after = around_section(path, name)
    write_atomic(path, f"{before}\n{text}\n{after}")


def around_section(path: Path, name: str) -> tuple[str, str]:
    """A page up to the first of the `markers` and from the second on. Raises UserError where it has none, OSError."""
    begin, end = markers(name)
    page = path.read_text(encoding="utf-8")
    before, found, rest = page.partition(begin)
    _, found_too, after = rest.partition(end)
    if not (found and found_too):
        raise UserError(f"{path} has no place for the table; give it two lines, {begin} and {end}")
    return before + begin, end + after


def markers(name: str) -> tuple[str, str]:
    """The lines between which a page holds the tables of `bench NAME`."""
    return f"<!-- bench {name} -->", f"<!-- end of bench {name} -->"


def _clock(call: Callable[[], object], count: int) -> float:
    """Milliseconds a call."""
    if cuda := torch.cuda.is_initialized():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000 / count


def _leading_texts(more: dict[str, Any]) -> list[str]:
    return list(takewhile(lambda key: isinstance(more[key], str), more))


def _numeric(texts: Sequence[str]) -> bool:
    return any(text[0].isdigit() for text in texts) and all(text[0].isdigit() or text == "-" for text in texts)


def _text(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        if key in ("ratio", "floor_fraction"):
            return f"{value:,.2f}"
        return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
    return str(value)


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
