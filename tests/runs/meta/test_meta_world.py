# SPDX-License-Identifier: Apache-2.0
"""A miniature of the real thing, in the embedded world."""

import json
from pathlib import Path

import pytest

from hf_unlearn.cli.main import main
from hf_unlearn.runs.meta import arguments
from hf_unlearn.runs.meta.arguments import PLANS, Plan
from hf_unlearn.runs.meta.members import LOCKS


# What catches each lock.
CATCHES = {
    "head": ("representation",),
    "password": ("representation", "relearn"),
    "rmu": ("relearn",),
    "idk": ("representation", "relearn"),
    "in_bin": ("quantize",),
}


@pytest.mark.slow
def test_locks_are_caught_by_audits_and_not_by_exact_match(tmp_path, monkeypatch):
    sizes = {"P0": 1, "P2": 1, "P3": 1, "N0": 1, "N2": 1, "N3": 1}
    audits = {name: PLANS["quick"].audits[name] for name in ("quantize", "representation", "relearn")}
    monkeypatch.setitem(arguments.PLANS, "quick", Plan(sizes, audits))
    assert main(["audit", "meta", "--preset", "quick", "--output_dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "meta.json").read_text())
    rows = {(row["audit"], row["metric"]): row for row in found["rows"]}
    for name in (("relearn", "worst/remaining"), ("representation", "erasure/intact/remaining")):
        assert rows[name]["separation"]["auc"] >= 0.95
        assert not any(one["alarms"] for one in rows[name]["alarms"].values())
    lens = rows["representation", "lens_original/readable/remaining"]["locks"]["head"]
    assert lens["mean"] > rows["output", "exact_match"]["locks"]["head"]["mean"] + 0.3
    for lock in LOCKS:
        assert all(rows[audit, "worst/remaining"]["locks"][lock]["alarms"] for audit in CATCHES[lock])
        assert not rows["output", "exact_match"]["locks"][lock]["alarms"]
    # The mean probability of a token sees two of them.
    assert not any(rows["output", "probability"]["locks"][lock]["alarms"] for lock in ("head", "rmu", "idk"))
    assert Path(tmp_path / "meta.md").is_file()
