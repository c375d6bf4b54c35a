# SPDX-License-Identifier: Apache-2.0
"""Which errors are told in one line: mistakes that this package or a library explains, and what machines run out of.

All else is a bug and keeps its traceback; HF_UNLEARN_TRACEBACK=1 shows one for every error.
"""

import os
import re
import signal
import sysconfig
import traceback
from pathlib import Path


PACKAGE = Path(__file__).parents[1]
# By name, where the library that raises them may not be imported, or not be there.
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")
EXPLAINED = ("SafetensorError", "YAMLError", "UnpicklingError")


def explained(error: BaseException) -> tuple[str, int] | None:
    """One line and the exit status, or `None` for what keeps its traceback."""
    from ..training.faults import NonFiniteError

    if os.environ.get("HF_UNLEARN_TRACEBACK"):
        return None
    if isinstance(error, NonFiniteError):
        return str(error), 1
    if isinstance(error, KeyboardInterrupt):
        return "interrupted.", 128 + signal.SIGINT
    names = {kind.__name__ for kind in type(error).__mro__}
    told = " ".join(str(error).split()) or "no reason is given"
    if names & {*OUT_OF_MEMORY}:
        way_out = "Take smaller batches (`per_device_train_batch_size`, `audit_batch_size`) or `hf-unlearn plan`."
        return f"out of memory: {told[:300]} {way_out}", 1
    raised = traceback.extract_tb(error.__traceback__)[-1].filename if error.__traceback__ else ""
    if isinstance(error, ValueError) and Path(raised).is_relative_to(PACKAGE):
        return str(error), 2
    library = _library(raised)
    if isinstance(error, (OSError, ImportError)) or (
        library and (isinstance(error, (ValueError, re.error)) or names & {*EXPLAINED})
    ):
        whose = f", in {library}" if library else ""
        return f"{told} ({type(error).__name__}{whose}; HF_UNLEARN_TRACEBACK=1 shows where)", 2
    return None


def _library(file: str) -> str | None:
    """The installed library that a source file is of; `None` for what is no library's."""
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].removesuffix(".py")
    if not Path(file).is_absolute():
        # Compiled code names its source as it was built: `pyarrow/array.pxi`, `<frozen os>`.
        return parts[0].strip("<>") if parts else None
    return "Python" if Path(file).is_relative_to(sysconfig.get_path("stdlib")) else None
