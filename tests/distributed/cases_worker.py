# SPDX-License-Identifier: Apache-2.0
"""One process of several that run the cases. Arguments: model, folder, names of cases or `all`."""

import gc
import os
import sys
from pathlib import Path


# The library and the fixtures of this checkout, whatever is installed.
sys.path[:0] = [str(folder) for folder in (*Path(__file__).resolve().parents[1:3], Path(__file__).parent)]


if __name__ == "__main__":
    from cases import main

    # Every case collects garbage, which walks through all that was imported.
    gc.freeze()
    main(*sys.argv[1:])
    # Processes that used ZeRO-3 may abort once the interpreter is gone (see `hf_unlearn.runs.launch.leave`).
    sys.stdout.flush()
    os._exit(0)
