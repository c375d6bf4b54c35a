# SPDX-License-Identifier: Apache-2.0
"""What documents and docstrings name can be imported from where they say."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
from conftest import ROOT

from hf_unlearn import audit
from hf_unlearn.audit import privacy


DOCS = sorted((ROOT / "docs").glob("*.md"))


def documented() -> set[tuple[str, str]]:
    """`(module, name)` of every import of the audits in the documents, and of every dotted name there."""
    found = set()
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        for module, names in re.findall(r"from (hf_unlearn\.audit[\w.]*) import \(?([\w, \n]+)", text):
            found |= {(module, name) for name in re.findall(r"\w+", names.split("\n\n")[0])}
        for module, name in re.findall(r"`(hf_unlearn\.audit(?:\.[a-z_]+)*)\.(\w+)\b", text):
            found.add((module, name))
    return {(module, name) for module, name in found if name != "import"}


def test_the_documents_name_something():
    assert ("hf_unlearn.audit", "evaluate_privacy") in documented()
    assert ("hf_unlearn.audit", "knowmem") in documented()


@pytest.mark.parametrize(("module", "name"), sorted(documented()))
def test_a_documented_name_is_there(module, name):
    try:
        assert hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("package", [audit, privacy], ids=lambda package: package.__name__)
def test_every_public_name_is_there_and_documented(package):
    source = Path(package.__file__).read_text(encoding="utf-8")
    for name in package.__all__:
        found = getattr(package, name)
        assert name.isupper() or inspect.getdoc(found), name
        # Also for whoever reads types.
        assert (
            re.search(rf"^    from \..* import .*\b{name}\b", source, re.MULTILINE) or f"        {name},\n" in source
        )


@pytest.mark.parametrize(
    "name", ["gain", "mcnemar", "fluency", "linear_cka", "roc_tpr", "knowmem_prompt", "holdout_auc", "MinKAttack"]
)
def test_what_a_user_needs_is_public(name):
    assert name in audit.__all__
    assert name in dir(audit)
