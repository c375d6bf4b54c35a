# SPDX-License-Identifier: Apache-2.0
"""Fields that stand in no file of their own, read as strictly as a file's."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import write_text


@contextmanager
def as_file(content: dict, name: str) -> Iterator[Path]:
    """A file that holds `content`; messages about it name `name`."""
    import yaml

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        try:
            yield path
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from error
