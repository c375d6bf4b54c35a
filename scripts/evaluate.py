# SPDX-License-Identifier: Apache-2.0
"""For `accelerate launch [--config_file F] scripts/evaluate.py --model_name_or_path MODEL --benchmark NAME ...`."""

import sys

from hf_unlearn.cli.evaluate import main
from hf_unlearn.cli.main import run_guarded


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
