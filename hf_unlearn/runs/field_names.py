# SPDX-License-Identifier: Apache-2.0
"""Fields of the dataclasses that a recipe fills, read from their source: importing them takes seconds."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path


# Where a package defines what it exports.
_DEFINED = {
    ("transformers", "TrainingArguments"): "transformers.training_args",
    ("trl", "ModelConfig"): "trl.trainer.model_config",
}


@cache
def fields_of(module: str, name: str) -> dict[str, str]:
    """Names of a dataclass' fields, its bases' too, with their annotations as they are written.

    Args:
        module (`str`): full name of the module that defines or imports it.
        name (`str`): of the class.
    """
    module = _DEFINED.get((module, name), module)
    file = _source(module)
    if file is None:
        return {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported, classes = {}, {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            imported |= {alias.asname or alias.name: (origin, alias.name) for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            classes[node.name] = node
    if name not in classes:
        return fields_of(*imported[name]) if name in imported else {}
    found: dict[str, str] = {}
    for base in reversed(classes[name].bases):
        if isinstance(base, ast.Name):
            found |= fields_of(*imported.get(base.id, (module, base.id)))
    for node in classes[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            kind = ast.unparse(node.annotation)
            if "ClassVar" not in kind:
                found[node.target.id] = kind
    return found


def _source(module: str) -> Path | None:
    """The file of a module, found without importing any package above it."""
    top, _, below = module.partition(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], *below.split(".")) if below else Path(spec.origin).parent
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
