# SPDX-License-Identifier: Apache-2.0
"""The notebook's cells, one after the other."""

import json
import runpy

import pytest
from conftest import ROOT


NOTEBOOK = ROOT / "docs" / "mu_align.ipynb"


@pytest.mark.slow
def test_the_notebook_does_what_it_says(tmp_path, capsys):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    script = tmp_path / "cells.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in cells))
    known = runpy.run_path(str(script))["known"]
    assert known["target"]["forget/accuracy"] > 0.9
    assert known["unlearned"]["forget/accuracy"] <= known["retrained"]["forget/accuracy"]
    assert known["unlearned"]["retain/accuracy"] > 0.95
    said = capsys.readouterr().out
    assert said.count("TPR at 1e-3: unresolved") == 3
