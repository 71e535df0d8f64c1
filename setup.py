"""Packaging. `kernels/` and `configs/` stand at the root of the tree and install inside the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(r'^__version__ = "(.+)"$', Path("megaselect/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)

REPORT = ["plotly>=6"]  # compare.html
DASHBOARD = ["wandb-workspaces>=0.4"]
TENSORBOARD = ["tensorboard>=2.18"]
TEST = [
    *("pytest>=8", "hypothesis>=6", "pytest-xdist>=3.6"),
    *("ruff>=0.9", "mypy>=1.15", "types-PyYAML", "import-linter>=2.1"),
    *("transformers>=4.50", "megatron-core>=0.14"),  # what ours is compared with
    "accelerate>=1.1",  # transformers' Trainer needs it
    "torch_remat>=0.2.2",  # what verify is tried on
    *(*REPORT, *DASHBOARD, *TENSORBOARD),
]

setup(
    name="megaselect",
    version=VERSION[1],
    description="Trains GPT models with activation recomputation that changes memory and time and nothing else",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    author="The Megaselect developers",
    keywords=["activation checkpointing", "gradient checkpointing", "recomputation", "GPT", "PyTorch", "Triton"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # kernels/ has no __init__.py (transformers would take it for its own `kernels` package when run from the root),
    # so find_packages does not see it, nor the link megaselect/kernels that serves runs without an install.
    packages=[*find_packages(include=["megaselect", "megaselect.*"]), "megaselect.kernels", "megaselect.configs"],
    package_dir={"megaselect.kernels": "kernels", "megaselect.configs": "configs"},
    package_data={"megaselect": ["py.typed"], "megaselect.configs": ["*.yaml"], "megaselect.report": ["*.css", "*.js"]},
    include_package_data=False,
    install_requires=[
        "torch>=2.11",
        # CPU builds of torch do not ask for triton; the kernels import it everywhere that it exists.
        "triton>=3.6; sys_platform == 'linux'",
        "sentencepiece>=0.2",
        "wandb>=0.19",
        "numpy>=2.0",
        # It compiles the CPU kernels; where it is missing or refuses the NumPy that is there, plain torch runs them.
        "numba>=0.68; python_version < '3.15'",
        "pydantic>=2",
        "rich>=13",
        "safetensors>=0.4",
        "PyYAML>=6",
        "zstandard>=0.22",
    ],
    extras_require={
        "report": REPORT,
        "wandb": DASHBOARD,
        "tensorboard": TENSORBOARD,
        "test": TEST,
        "dev": [*TEST, "build>=1.2"],
    },
    entry_points={"console_scripts": ["megaselect = megaselect.cli.main:main"]},
)
