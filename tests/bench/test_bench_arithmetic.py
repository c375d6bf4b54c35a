# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of a step of every method beside fine-tuning on the same rows: counted, so alike on any machine."""

import functools
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from hf_unlearn.bench.cases import CASES, PARTIAL, SFT
from hf_unlearn.bench.observe import ForwardCounter
from hf_unlearn.bench.sizes import PRESETS
from hf_unlearn.bench.worker import make_trainer, random_model, random_rows, save_other


# The preset's shape, smaller: the head has as large a part in it.
SIZE = replace(
    PRESETS["cpu"], hidden_size=64, intermediate_size=172, vocab_size=2000, num_attention_heads=2,
    num_key_value_heads=2, rows=2, row_length=32,
)  # fmt: skip


class Counted(TrainerCallback):
    """Operations and forwards of the last step."""

    def __init__(self, counter: ForwardCounter):
        self.counter = counter

    def on_step_begin(self, args, state, control, **kwargs):
        self.before = self.counter.counts.copy()
        self.mode = FlopCounterMode(display=False)
        self.mode.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self.mode.__exit__(None, None, None)
        self.operations = self.mode.get_total_flops()
        self.forwards = self.counter.counts - self.before


def counted(case, folder) -> Counted:
    model, rows = random_model(SIZE, torch.device("cpu")), random_rows((*case.roles, *case.beside), SIZE, case.prompt)
    others = {name: save_other(model, f"{folder}/{name}", 1) for name in case.others}
    counter = ForwardCounter()
    with counter.watching(type(model.base_model)):
        found = Counted(counter)
        trainer = make_trainer(case, SIZE, model, rows, 2, str(folder), f"{folder}/cache", others)
        trainer.add_callback(found)
        trainer.train()
    return found


@pytest.fixture(scope="module")
def fine_tuning(tmp_path_factory):
    @functools.cache
    def operations(roles: tuple[str, ...]) -> int:
        return counted(SFT[roles], tmp_path_factory.mktemp("sft")).operations

    return operations


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("undial", "npo_klr") else pytest.mark.slow) for name in CASES]
)
def test_a_step_is_one_forward_and_hardly_more_arithmetic_than_fine_tuning(name, tmp_path, fine_tuning):
    case = CASES[name]
    found = counted(case, tmp_path)
    assert (found.forwards["policy"], found.forwards["reference"]) == (1, 0)
    # A frozen model's predictions are its head's product, once more without a gradient.
    frozen = 1 + len(case.others)
    assert case.more or found.operations < (1 + 0.1 * frozen) * fine_tuning(case.roles)
    if case.method in PARTIAL:
        assert found.operations < 0.7 * fine_tuning(case.roles)
