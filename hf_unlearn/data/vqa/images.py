# SPDX-License-Identifier: Apache-2.0
"""Pictures that stay where they are, and what is said when some are missing."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path


_SHOWN = 3


def check_images(paths: Sequence[str], where: str) -> None:
    """
    Make sure that all pictures are there. A folder is listed once, however many of its pictures are asked for.

    Args:
        paths (`Sequence[str]`):
            Files.
        where (`str`):
            What names them, for the message.

    Raises:
        `ValueError`: if some are missing, with their number and the first of them.
    """
    wanted = defaultdict(set)
    for path in paths:
        folder, name = os.path.split(path)
        wanted[folder].add(name)
    missing = []
    for folder, names in wanted.items():
        there = set(os.listdir(folder or ".")) if Path(folder or ".").is_dir() else set()
        missing += [os.path.join(folder, name) for name in sorted(names - there)]
    if missing:
        total = sum(len(names) for names in wanted.values())
        raise ValueError(
            f"{len(missing)} of the {total} pictures that {where} names are missing: {', '.join(missing[:_SHOWN])}"
            f"{', ...' if len(missing) > _SHOWN else ''}. Give the folder that holds them, or leave their rows out."
        )
