"""The native build: what it finds, and that without a compiler everything installs and runs in plain PyTorch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("stylegen_setup", ROOT / "setup.py")
assert SPEC and SPEC.loader
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)
KNOWN = {"75", "80", "86", "90", "90a", "120"}


def test_archs_are_parsed() -> None:
    assert build.parse_archs("75;80;86;89;90;100;120", KNOWN) == ["75", "80", "86", "90", "120"]
    assert build.parse_archs(" 9.0a, 8.6 8.6", KNOWN) == ["86", "90a"]


@pytest.mark.parametrize(("text", "says"), [("volta", "'volta' is no compute capability"), ("35;50", "supports none")])
def test_wrong_archs_are_named(text: str, says: str) -> None:
    with pytest.raises(build.BuildError, match=says):
        build.parse_archs(text, KNOWN)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("CUDA_HOME", "CUDA_PATH", "STYLEGEN_CUDA", "STYLEGEN_CUDA_ARCHS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


posix = pytest.mark.skipif(os.name == "nt", reason="shell scripts stand in for compilers")


@posix
def test_nvcc_is_that_of_cuda_home(tmp_path: Path, bare: pytest.MonkeyPatch) -> None:
    mine = script(tmp_path / "bin" / "nvcc", "echo compute_90; echo compute_75; echo compute_120")
    bare.setenv("CUDA_HOME", str(tmp_path))
    assert build.find_nvcc() == str(mine)
    compilers = build.Compilers()
    compilers.use_cuda()
    assert compilers.archs == ["75", "90", "120"]
    command = compilers.cuda(Path("x.cu"), Path("x.o"))
    assert [word for word in command if "120" in word] == [
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


@posix
def test_cuda_can_be_off_optional_or_demanded(tmp_path: Path, bare: pytest.MonkeyPatch) -> None:
    compilers = build.Compilers()
    bare.setenv("CUDA_HOME", str(script(tmp_path / "bin" / "nvcc", "echo compute_90").parents[1]))
    bare.setenv("STYLEGEN_CUDA", "0")
    compilers.use_cuda()
    assert compilers.nvcc is None
    bare.setattr(build, "find_nvcc", lambda: None)
    bare.setenv("STYLEGEN_CUDA", "auto")
    compilers.use_cuda()
    assert compilers.nvcc is None
    for wish, says in (("1", "STYLEGEN_CUDA=1, but no nvcc"), ("yes", "may be 0, 1 or auto")):
        bare.setenv("STYLEGEN_CUDA", wish)
        with pytest.raises(build.BuildError, match=says):
            compilers.use_cuda()


@posix
def test_only_what_changed_is_compiled(tmp_path: Path) -> None:
    source, target, log = tmp_path / "a.cpp", tmp_path / "a.o", tmp_path / "log"
    source.write_text("1")
    compiler = script(tmp_path / "compiler", f'echo run >> "{log}"; cp "$1" "$2"')

    def compiled() -> int:
        build.compile_one([str(compiler), str(source), str(target)], source, target)
        return log.read_text().count("run")

    assert [compiled(), compiled()] == [1, 1]
    source.write_text("2")
    assert [compiled(), compiled()] == [2, 2]
    (tmp_path / "a.h").write_text("3")
    assert compiled() == 3
    target.unlink()
    assert compiled() == 4


def install(folder: Path, **environment: str) -> tuple[str, dict[str, str]]:
    """Builds into `folder` as pip would; the output, and what has come to lie beside the package."""
    program = (
        "import runpy, sys; sys.path.insert(0, ''); sys.argv = ['setup.py', '-q', 'build', '--build-base', 'none', "
        f"'--build-lib', {str(folder / 'lib')!r}, '--build-temp', {str(folder / 'temp')!r}]; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr, {path.name: path.read_text() for path in (folder / "lib/stylegen").glob("_native.txt")}


@posix
@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"CXX": "/bin/false"}, "false failed"),
        ({"CXX": "/nowhere/g++"}, "/nowhere/g++ cannot be run"),
        ({"PATH": "/nowhere", "CXX": ""}, "there is no C++ compiler"),
    ],
)
def test_without_a_compiler_it_installs_in_plain_pytorch(
    tmp_path: Path, environment: dict[str, str], says: str
) -> None:
    output, notes = install(tmp_path, **environment, STYLEGEN_CUDA="auto")
    assert output.count("WARNING") == 1 and says in output
    assert "built without compiled kernels" in notes["_native.txt"] and says in notes["_native.txt"]
    assert not [*(tmp_path / "lib").rglob("_native*.so")]
    program = (
        # An editable installation would still find its own module.
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')];"
        "import torch; from stylegen import ops; from stylegen.ops import native; assert not native.enabled();"
        "print(ops.bias_act(torch.full((1, 1, 1, 1), -1.0), act='lrelu', gain=1.0).item())"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "lib")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("-0.2"), done.stderr


@posix
def test_a_demanded_cuda_build_fails_loudly(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"stylegen: .*false failed"):
        install(tmp_path, CXX="/bin/false", STYLEGEN_CUDA="1")


def test_torch_is_found_where_the_package_will_be(tmp_path: Path, bare: pytest.MonkeyPatch) -> None:
    """As in pip's isolated builds, where torch is not on sys.path."""
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        bare.delenv(name, raising=False)
    bare.setattr(build.sys, "path", [])
    bare.setattr(build.sysconfig, "get_path", lambda _: str(tmp_path))
    bare.setattr(build.site, "getusersitepackages", lambda: str(tmp_path / "user"))
    with pytest.raises(build.BuildError, match="install torch first"):
        build.torch_folder()
    header = tmp_path / "torch/include/torch/csrc/stable/library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    version = tmp_path / "torch/version.py"
    version.write_text("__version__ = '2.9.1'\n")
    with pytest.raises(build.BuildError, match="too old"):
        build.torch_folder()
    version.write_text("__version__ = '2.10.0+cpu'\n")
    assert build.torch_folder() == tmp_path / "torch"
