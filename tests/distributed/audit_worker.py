# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn run` whose final audit lasts: it tells that it has begun and waits. Arguments: the file that tells, and
the command's."""

import os
import sys
import time
from pathlib import Path


# The library of this checkout, whatever is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(begun: str, argv: list[str]) -> int:
    from hf_unlearn.cli.unlearn import main as run
    from hf_unlearn.training.callbacks import AuditCallback

    finish = AuditCallback.finish

    def slow(self):
        Path(f"{begun}-{os.environ.get('RANK', '0')}").touch()
        time.sleep(120)
        return finish(self)

    AuditCallback.finish = slow
    return run(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
