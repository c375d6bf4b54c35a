# SPDX-License-Identifier: Apache-2.0
"""Files of settings, read with one clear error each."""

from pathlib import Path
from typing import Any

import yaml


def load_yaml(path: Path, missing: str) -> Any:
    """What a YAML file holds.

    Args:
        path (`Path`): the file.
        missing (`str`): what to say where there is none.

    Raises:
        `ValueError`: if there is no such file, or it is no YAML.
    """
    if not path.is_file():
        raise ValueError(missing)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
