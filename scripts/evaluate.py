# SPDX-License-Identifier: Apache-2.0
"""For `accelerate launch [--config_file F] scripts/evaluate.py --model_name_or_path MODEL --benchmark NAME ...`."""

import sys

from hf_unlearn.cli.evaluate import main


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
