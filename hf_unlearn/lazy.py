# SPDX-License-Identifier: Apache-2.0
"""Packages whose names are imported when they are used: torch and transformers alone take seconds."""

import ast
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(
    package: str, more: Mapping[str, str] | None = None
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """
    `__all__`, `__getattr__` and `__dir__` of a package, of the names that its file imports under
    `if TYPE_CHECKING:`. So each name is written once, where editors and type checkers read it too.

    Args:
        package (`str`):
            `__name__` of the package, which is being imported.
        more (`Mapping`, *optional*):
            Further names, with the modules that have them.
    """
    source = sys.modules[package].__spec__.loader.get_source(package)
    names = {
        alias.name: f"{'.' * line.level}{line.module}"
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for line in block.body
        for alias in line.names
    } | dict(more or {})
    public = sorted(names)

    def look_up(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(names[name], package), name)

    return public, look_up, lambda: public
