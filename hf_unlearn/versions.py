# SPDX-License-Identifier: Apache-2.0
"""Versions and machine, for reports, model cards and bug reports."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from . import __version__


PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "bitsandbytes",
    "safetensors",
    "huggingface_hub",
    "tokenizers",
    "evaluate",
    "scikit-learn",
    "scipy",
    "numpy",
)


def versions(machine: bool = False) -> dict[str, str]:
    """Name to version of what decides a result; packages that are not installed are left out.

    Args:
        machine (`bool`): adds platform, processors and accelerators (imports torch).
    """
    found = {"hf_unlearn": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if machine:
        import torch

        found["platform"] = platform.platform()
        found["processors"] = str(os.cpu_count())
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["accelerators"] = ", ".join(gpus) or "none"
        found["offline"] = os.environ.get("HF_HUB_OFFLINE", "0")
    return found
