# SPDX-License-Identifier: Apache-2.0
"""The group of a row does not depend on which other rows are read."""

import json

import pytest
from conftest import make_model, make_tokenizer

from hf_unlearn.audit.robustness.arguments import RobustnessArguments
from hf_unlearn.audit.robustness.rows import prepare_rows
from hf_unlearn.data.qa import QAFormat


@pytest.fixture
def tofu(tmp_path):
    """Files of TOFU's form: 20 rows an author, of which every other one is of the kind `a`."""
    for name, authors in (("forget01", 2), ("retain99", 3)):
        for file in (name, f"{name.rstrip('0123456789') if name == 'retain99' else name}_perturbed"):
            rows = [
                {"question": f"{name} {i}?", "answer": f"Number {i}.", "kind": "ab"[i % 2], "late": i >= 30}
                for i in range(20 * authors)
            ]
            (tmp_path / f"{file}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("real_authors_perturbed", "world_facts_perturbed"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"question": "q", "answer": "a"}) + "\n")
    make_model().save_pretrained(tmp_path / "m")
    make_tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path


@pytest.mark.parametrize(
    ("where", "groups"),
    [(None, [0] * 20 + [1] * 20), ({"kind": "a"}, [0] * 10 + [1] * 10), ({"late": True, "kind": ["b"]}, [1] * 5)],
)
def test_authors_are_those_of_all_rows(tofu, where, groups):
    args = RobustnessArguments(
        model_name_or_path=str(tofu / "m"), benchmark="tofu", benchmark_path=str(tofu), forget_split="forget01",
        forget_where=where,
    )  # fmt: skip
    prepared = prepare_rows(args, QAFormat(), make_tokenizer())
    assert prepared.groups["forget"] == groups
    assert len(prepared.rows["forget"]) == len(groups)
    # Fewer of them are those of the same authors.
    args.max_items = 3
    some = prepare_rows(args, QAFormat(), make_tokenizer())
    places = {row["answer"]: group for row, group in zip(prepared.sets["forget"].rows, groups, strict=True)}
    found = zip(some.sets["forget"].rows, some.groups["forget"], strict=True)
    assert all(places[row["answer"]] == group for row, group in found)
    assert prepared.groups["retain"] == [i // 20 for i in range(60)]
