# SPDX-License-Identifier: Apache-2.0
"""What an attack in a recipe takes over from it: the rows and how they are asked, and nothing of the training."""

from dataclasses import fields

import pytest

from hf_unlearn.audit.registry import AUDITS
from hf_unlearn.audit.robustness.kind import RobustnessKind
from hf_unlearn.runs.audits import block_fields


KINDS = [name for name in AUDITS if isinstance(AUDITS[name], RobustnessKind)]


@pytest.mark.parametrize("name", KINDS)
def test_an_attack_takes_nothing_of_the_training(name):
    kind = AUDITS[name]
    training = {"learning_rate", "learning_rates", "max_steps", "steps", "eval_steps", "warmup_steps", "batch_size"}
    training |= {"lora_r", "lora_alpha", "adapter", "seed", "max_length"}
    recipe = dict.fromkeys([part.name for part in fields(kind.arguments)] + sorted(training), 7)
    recipe |= {"model_name_or_path": "target", "benchmark": "world", "retrained_model_name_or_path": "retrained"}
    found = block_fields(kind, recipe, {}, "out")
    assert not training & found.keys()
    expected = {"model_name_or_path": "target", "original_model_name_or_path": "target", "benchmark": "world"}
    assert expected.items() <= found.items()
    assert found["retrained_model_name_or_path"] == "retrained"


def test_relearning_of_a_recipe_has_its_own_steps():
    recipe = {"model_name_or_path": "m", "benchmark": "world", "max_steps": 200, "eval_steps": 0.1, "lora_r": 8}
    found = block_fields(AUDITS["relearn"], recipe, {"max_steps": 16}, "out")
    assert found["max_steps"] == 16
    assert not {"eval_steps", "lora_r"} & found.keys()
