# SPDX-License-Identifier: Apache-2.0
"""For `accelerate launch [--config_file F] scripts/unlearn.py --config RECIPE [--field value ...]`."""

import sys

from hf_unlearn.cli.unlearn import main


if __name__ == "__main__":
    sys.exit(main())
