"""Compiles csrc/*.cu as C++ against the emulator, with objects cached in build/emu by what they are made of."""

import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
HERE = Path(__file__).parent
CACHE = ROOT / "build" / "emu"

# The library is for Python; the others are programs that replay recorded calls.
FLAGS = {
    "library": ["-O1", "-fPIC", "-fno-gnu-unique"],
    "address": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
}
COMMON = ["-std=c++17", "-DCUDA_EMU", "-Wall", "-Wno-sign-compare", "-Wno-unknown-pragmas"]

Patch = tuple[str, str, str]  # a file of csrc, what stands in it once, and what shall stand there
# What tensors of a few kilobytes would never see: grid-stride loops that stride, pictures that blocks share, and 64-bit
# indices.
STRESSED: tuple[Patch, ...] = (
    ("common.cuh", "kMaxBlocks = 65536;", "kMaxBlocks = 3;"),
    ("reduce.cuh", "points / (8 * step)", "points / step"),
    ("upfirdn2d.cu", "128 / down, p.out.w", "16 / down, p.out.w"),
    ("bias_act.cu", "kLanes<T> <= INT32_MAX", "kLanes<T> <= 15000"),
)
# For builds that need no more: they take a third of the time.
FLOAT_ONLY: tuple[Patch, ...] = tuple(
    ("common.cuh", f"f(static_cast<{name}*>(nullptr))", "f(static_cast<float*>(nullptr))")
    for name in ("double", "__half", "__nv_bfloat16")
)


@functools.cache
def missing() -> str | None:
    """Why the emulation cannot be built here, or None."""
    if not shutil.which("g++"):
        return "there is no g++"
    return None if include_folder() else "there is no CUDA toolkit (looked at nvcc, CUDA_HOME and /usr/local/cuda)"


@functools.cache
def include_folder() -> Path | None:
    """The folder that holds cuda_runtime.h; nvcc may be a wrapper that stands anywhere, so it is asked."""
    roots = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    if nvcc := shutil.which("nvcc"):
        CACHE.mkdir(parents=True, exist_ok=True)
        empty = CACHE / "empty.cu"
        empty.touch()
        said = subprocess.run([nvcc, "-dryrun", str(empty)], capture_output=True, text=True).stderr
        roots += [Path(top.strip()) for top in re.findall(r"^#\$ TOP=(.*)", said, re.MULTILINE)]
    roots += [Path("/usr/local/cuda"), Path("/opt/cuda"), Path("/usr")]
    return next((root / "include" for root in roots if (root / "include" / "cuda_runtime.h").exists()), None)


def build(kind: str = "library", patches: Sequence[Patch] = STRESSED) -> Path:
    """The library, or one of the programs, of the patched sources (csrc itself is left alone)."""
    texts = {
        path.name: path.read_text() for path in sorted([*CSRC.glob("*.*h"), *CSRC.glob("*.cu"), *HERE.glob("*.h")])
    }
    texts["driver.cpp"] = (HERE / "driver.cpp").read_text()
    for name, old, new in patches:
        assert texts[name].count(old) == 1, f"{name} has {texts[name].count(old)} times what a patch replaces: {old}"
        texts[name] = texts[name].replace(old, new)
    headers = {name: text for name, text in texts.items() if name.endswith("h")}
    folder = CACHE / f"headers-{_digest(*headers, *headers.values())}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in headers.items():
        if not (folder / name).exists():
            _write(folder / name, text)
    with ThreadPoolExecutor(2) as pool:
        sources = [(name, text) for name, text in texts.items() if name not in headers]
        objects = list(pool.map(lambda source: _compile(kind, folder, *source), sources))
    target = CACHE / f"{kind}-{_digest(*(path.name for path in objects))}{'.so' if kind == 'library' else ''}"
    if not target.exists():
        shared = ["-shared"] if kind == "library" else []
        _run(["g++", *FLAGS[kind], *shared, *map(str, objects)], target)
    return target


def _compile(kind: str, headers: Path, name: str, text: str) -> Path:
    key = _digest(*FLAGS[kind], *COMMON, str(headers), text, _compiler())
    target = CACHE / f"{Path(name).stem}-{key}.o"
    if not target.exists():
        source = CACHE / f"{key}-{name}"
        _write(source, text)
        folders = [f"-I{headers}", "-isystem", str(include_folder())]
        _run(["g++", *COMMON, *FLAGS[kind], *folders, "-x", "c++", "-c", str(source)], target)
    return target


def _run(command: list[str], target: Path) -> None:
    temporary = target.with_name(f"{os.getpid()}-{target.name}")
    result = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result.stderr[:3000]  # a warning is an error
    temporary.replace(target)


def _write(path: Path, text: str) -> None:
    """Whole at once: two test runs may build at the same time."""
    temporary = path.with_name(f"{os.getpid()}-{path.name}")
    temporary.write_text(text)
    temporary.replace(path)


@functools.cache
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout + str(include_folder())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
