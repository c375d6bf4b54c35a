# SPDX-License-Identifier: Apache-2.0
"""What a recipe's file shows is told before torch is imported, by names that are the dataclasses' own."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml
from trl import ModelConfig

from hf_unlearn.data.qa import QAFormat
from hf_unlearn.methods import METHODS
from hf_unlearn.runs.arguments import RunArguments
from hf_unlearn.runs.field_names import fields_of
from hf_unlearn.runs.parser import StrictParser
from hf_unlearn.runs.quick import check_recipe, recipe_fields


RECIPE = {"method": "npo", "model_name_or_path": "owner/model", "forget_dataset": "forget.jsonl"}

# Run in a process of its own, which says whether torch was imported.
PROGRAM = """
import sys
from hf_unlearn.cli.main import main
status = main(sys.argv[1:])
print(status, sorted({"torch", "transformers", "datasets", "peft"} & set(sys.modules)))
"""


@pytest.mark.parametrize("method", METHODS)
def test_fields_read_from_sources_are_those_of_the_dataclasses(method):
    parser = StrictParser((RunArguments, QAFormat, METHODS[method][0], ModelConfig), prog="hf-unlearn run")
    options = {word[2:].replace("-", "_") for word in parser._option_string_actions if word.startswith("--")}
    read = recipe_fields(method)
    assert options - read.keys() - {f"no_{name}" for name in read} == {"help", "suite"}
    assert set(fields_of(*METHODS.where(method))) == {field.name for field in fields(METHODS[method][0])}


BAD = {
    "an unknown field": ({"betta": 1}, (), "Unknown field 'betta' in .* Did you mean 'beta'"),
    "a field of another method": ({"beta": 1}, ("--method", "rmu"), "beta in it is of that method alone"),
    "an unknown option": ({}, ("--max_stepz", "1"), "Unknown field 'max_stepz' on the command line"),
    "a number that is none": ({"beta": "x"}, (), "beta: 'x' in the recipe is no float"),
    "a model that is not there": ({"model_name_or_path": "/no/model"}, (), "No model folder at '/no/model'"),
    "two sources of rows": ({"benchmark": "tofu"}, (), "Give exactly one: a benchmark's name, or your own rows"),
    "a key written twice": (..., (), "'method' is written twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_it_is_told_in_a_moment(case, tmp_path):
    given, words, message = BAD[case]
    text = "method: npo\nmethod: ga\n" if given is ... else yaml.safe_dump({**RECIPE, **given})
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        check_recipe(["--config", str(tmp_path / "recipe.yaml"), *words])


@pytest.mark.parametrize("command", ["run", "plan"])
def test_nothing_heavy_is_imported_for_it(command, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "betta": 1}))
    words = [sys.executable, "-c", PROGRAM, command, str(tmp_path / "recipe.yaml")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"
    assert "Unknown field 'betta'" in done.stderr


GOOD = [
    ({}, ()),
    ({"beta": 1, "env": {"A": "b"}}, ()),
    ({"beta": "1e-3", "max_length": None}, ()),
    ({}, ("--suite", "tofu", "--forget_dataset", "null")),
    ({}, ("--max-steps=3", "--no_bf16", "--use_cpu")),
    ({"model_name_or_path": "/no/model"}, ("--model_name_or_path", "owner/model")),
    ({"beta": 1}, ("--method", "npo")),
    ({"model_name_or_path": "world/target"}, ()),
    ({"privacy": json.dumps({"attacks": ["loss"]})}, ()),
]


@pytest.mark.parametrize(("given", "words"), GOOD)
def test_what_may_be_meant_goes_on(given, words, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **given}))
    check_recipe(["--config", str(tmp_path / "recipe.yaml"), *words])
