# SPDX-License-Identifier: Apache-2.0
"""Versions of what decides a result, for reports, model cards and bug reports."""

import platform
from importlib.metadata import PackageNotFoundError, version

from .version import __version__


PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "bitsandbytes",
    "torchao",
    "safetensors",
    "huggingface_hub",
    "tokenizers",
    "evaluate",
    "scikit-learn",
    "scipy",
    "numpy",
)


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Name to version of this package, Python and others; what is not installed is left out."""
    found = {"hf_unlearn": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
