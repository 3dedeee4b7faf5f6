"""Imports flow tools -> training -> stylegen, files stay small, and the package map is complete."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"stylegen": "stylegen", "training": "stylegen.training", "tools": "stylegen.tools"}
SOURCES = {
    ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for folder, package in FOLDERS.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TESTS = sorted((ROOT / "tests").rglob("*.py"))
KERNELS = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"})

# Modules -> the only parts of stylegen that they may import. Outside the list, whatever is below them.
ALLOWED = {
    "stylegen.errors": (),
    "stylegen.files": ("errors",),
    "stylegen.config": ("errors",),
    "stylegen.ops": ("ops", "errors"),
    "stylegen.networks": ("networks", "ops", "config", "errors"),
}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports(module: str, path: Path) -> set[str]:
    """Absolute names of everything that a module imports, inside functions too."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*parent, *([node.module] if node.module else [])])
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", SOURCES)
def test_imports_flow_one_way(module: str) -> None:
    names = imports(module, SOURCES[module])
    assert not {name for name in names if name.split(".")[0] in {"training", "tools", "tests"}}
    if not within(module, "stylegen.tools"):
        assert not {name for name in names if within(name, "stylegen.tools")}
        if not within(module, "stylegen.training"):
            assert not {name for name in names if within(name, "stylegen.training")}
    for package, allowed in ALLOWED.items():
        if within(module, package):
            ours = {name for name in names if within(name, "stylegen")}
            assert not {name for name in ours if not any(within(name, f"stylegen.{part}") for part in allowed)}


def test_relative_imports_resolve(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("from .. import x\nfrom ..tools.y import z\nfrom . import b\nimport c.d\n")
    assert imports("stylegen.ops.a", path) == {"stylegen.x", "stylegen.tools.y.z", "stylegen.ops.b", "c.d"}


def test_losses_take_callables() -> None:
    path = SOURCES["stylegen.training.losses"]
    assert not {name for name in imports("stylegen.training.losses", path) if within(name, "stylegen.networks")}


def test_only_ops_call_the_extension() -> None:
    users = {module for module, path in SOURCES.items() if "torch.ops.stylegen" in path.read_text(encoding="utf-8")}
    assert all(within(module, "stylegen.ops") for module in users), users


@pytest.mark.parametrize("path", [*SOURCES.values(), *TESTS, *KERNELS], ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, "files stay under 400 lines"
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 60, f"{node.name} has {lines} lines; functions stay under 60"


def test_package_map_is_complete() -> None:
    packages = (ROOT / "setup.py").read_text(encoding="utf-8").partition("PACKAGES = ")[2].partition("}")[0] + "}"
    folders = {str(path.parent.relative_to(ROOT)) for path in SOURCES.values()}
    assert set(ast.literal_eval(packages).values()) == folders


def test_documentation_is_for_strangers() -> None:
    private = re.compile(r"(?<![\w.])/(?:work|root|home)/|\.\./shared")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *SOURCES.values()]
    assert not [page for page in pages if private.search(page.read_text(encoding="utf-8"))]


def test_documentation_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"
