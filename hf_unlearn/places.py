# SPDX-License-Identifier: Apache-2.0
"""Places that a command reads or will write to, tried before it computes anything."""

import os
from pathlib import Path


def check_folder(name: str, folder: str | os.PathLike | None) -> None:
    """Refuses a folder that cannot be made or written to.

    Args:
        name (`str`): the field that names it.
        folder (`str` or `Path`, *optional*): made later, if it is not there.

    Raises:
        `ValueError`
    """
    if folder is None:
        return
    path = Path(folder).expanduser().absolute()
    there = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    if not there.is_dir():
        within = "a file" if there == path else f"inside {str(there)!r}, which is a file"
        raise ValueError(f"{name}={str(folder)!r} is {within}. Give a folder's name.")
    if not os.access(there, os.W_OK | os.X_OK) or _is_virtual(there):
        raise ValueError(f"{name}={str(folder)!r}: nothing can be written to {str(there)!r}. Give another folder.")


def check_file(name: str, file: str | os.PathLike | None) -> None:
    """Refuses a file that cannot be written: its folder must be there.

    Raises:
        `ValueError`
    """
    if file is None:
        return
    folder = Path(file).expanduser().absolute().parent
    if Path(file).is_dir() or not folder.is_dir():
        what = "is a folder" if Path(file).is_dir() else "is in a folder that is not there"
        raise ValueError(f"{name}={str(file)!r} {what}. Give the name of a file to write.")
    check_folder(name, folder)


def _is_virtual(folder: Path) -> bool:
    # Root may write anywhere, except where there is nothing to write to.
    return folder.parts[:2] in (("/", "proc"), ("/", "sys"))


def recipe_path(name: str) -> str:
    """The path of a recipe, of its rows or of their folder as it is, or, for `recipes/...`, of the shipped one."""
    shipped = Path(__file__).parent / name
    return str(shipped) if not Path(name).exists() and shipped.exists() else name
