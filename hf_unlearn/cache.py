# SPDX-License-Identifier: Apache-2.0
"""Where things that can be made again are kept."""

import os
from pathlib import Path


def cache_root(cache_dir: str | os.PathLike | None = None) -> Path:
    """`cache_dir`, else `$HF_UNLEARN_CACHE`, else `~/.cache/hf_unlearn`."""
    return Path(cache_dir or os.environ.get("HF_UNLEARN_CACHE") or "~/.cache/hf_unlearn").expanduser()
