"""Metadata, the package map, and (where one is declared) the native build."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent

# Import name -> folder. The engine and the command line live in folders of their own but install below `stylegen`,
# so that no generic name lands in site-packages.
PACKAGES = {
    "stylegen": "stylegen",
    "stylegen.assets": "stylegen/assets",
    "stylegen.networks": "stylegen/networks",
    "stylegen.ops": "stylegen/ops",
    "stylegen.training": "training",
    "stylegen.tools": "tools",
}

TENSORBOARD = ["tensorboard"]
PLOT = ["matplotlib>=3.6"]
TEST = ["pytest>=8"]
LINT = ["ruff>=0.9", "mypy>=1.14", "clang-format>=19", "pre-commit>=4", "types-tqdm"]


def version() -> str:
    """The version, read as text: importing the package would need torch."""
    match = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "stylegen/__init__.py").read_text(), re.MULTILINE)
    assert match, "stylegen/__init__.py has no __version__ line"
    return match[1]


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
        "test": TEST,
        "dev": TEST + LINT,
        "all": TENSORBOARD + PLOT,
    },
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={"stylegen": ["py.typed"], "stylegen.assets": ["*.zip", "*.txt", "networks/*"]},
    zip_safe=False,
    entry_points={"console_scripts": ["stylegen = stylegen.tools.cli:main"]},
)
