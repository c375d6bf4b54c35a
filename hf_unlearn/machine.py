# SPDX-License-Identifier: Apache-2.0
"""The machine on which something was measured."""

import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .versions import versions


if TYPE_CHECKING:
    import torch


def machine(device: "torch.device") -> dict[str, Any]:
    """Where this process measures: `device`, `accelerator`, `processor`, `processors`, `threads`, `system`,
    `versions`."""
    import torch

    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return {
        "device": device.type,
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "processor": name.group(1) if name else platform.machine(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": versions(),
    }
