# SPDX-License-Identifier: Apache-2.0
"""Peak memory from a moment on: the allocator's on a GPU, the resident set's on a CPU."""

import ctypes
import gc
import re
from pathlib import Path

import torch


class PeakMemory:
    """Starts counting when it is made.

    On a GPU this is memory that tensors hold. On a CPU it is everything of the process that is resident: tensors,
    what the allocator keeps of freed ones, libraries, pages of mapped files. Linux only.

    Attributes:
        before (`int`): bytes in use when counting began.
    """

    def __init__(self, device: torch.device):
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            # What earlier work freed is given back first, or the measured work would use it and seem to need less.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")

    def peak(self) -> int:
        """Most bytes in use at a time since counting began."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _status("VmHWM")


def _status(name: str) -> int:
    (kibibytes,) = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kibibytes) * 1024
