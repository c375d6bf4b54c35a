# SPDX-License-Identifier: Apache-2.0
"""The arithmetic that a run reports: what PyTorch counts, but for attention's own products."""

import pytest
from conftest import lora, make_args, make_model, make_tokenizer
from torch.utils.flop_counter import FlopCounterMode
from vilt import make_processor, make_rows, make_vilt

from hf_unlearn import GAConfig, GATrainer, MUAlignConfig, MUAlignTrainer, NPOConfig, NPOTrainer


# As long as each other: a step's rows are padded to the same length wherever they are counted.
FORGET = [{"text": f"secret number {i}"} for i in range(4)]
RETAIN = [{"text": f"common number {i}"} for i in range(4)]
NPO = {"retain_loss": "kl", "forward_passes": "one", "fused_losses": False}


def counted(trainer) -> tuple[float, float]:
    """Operations of two steps: reported, and seen by PyTorch."""
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    return trainer.state.total_flos, counter.get_total_flops()


def of_language(tmp_path, config=NPOConfig, trainer=NPOTrainer, peft_config=None, tie=False, **settings):
    # Wide enough that attention's products hardly count, deep enough that what lies below the first adapter does not.
    model = make_model(hidden_size=128, layers=6, tie=tie)
    args = make_args(config, tmp_path, max_steps=2, **(NPO | settings))
    rows = {"forget_dataset": FORGET, "retain_dataset": RETAIN}
    return trainer(model, args, processing_class=make_tokenizer(), peft_config=peft_config, **rows)


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("reference", ["live", "adapter", "cache"])
def test_it_is_what_pytorch_counts(tmp_path, reference, tie):
    adapter = lora(target_modules="all-linear") if reference == "adapter" else None
    settings = {"reference": reference, "tie": tie, "retain_loss": "nll" if reference == "cache" else "kl"}
    if reference == "cache":
        # What is computed ahead is not in it.
        of_language(tmp_path, **settings).train()
    told, seen = counted(of_language(tmp_path, peft_config=adapter, **settings))
    assert told == pytest.approx(seen, rel=0.06)


@pytest.mark.usefixtures("untried")
def test_a_method_without_reference_and_accumulation(tmp_path):
    settings = {"config": GAConfig, "trainer": GATrainer, "retain_loss": "nll"}
    told, seen = counted(of_language(tmp_path / "one", **settings))
    assert told == pytest.approx(seen, rel=0.06)
    accumulated = of_language(
        tmp_path / "two", **settings, per_device_train_batch_size=1, gradient_accumulation_steps=2
    )
    assert counted(accumulated)[0] == told


def test_pictures_count(tmp_path):
    args = make_args(MUAlignConfig, tmp_path, max_steps=2, lambda_kd=1.0, reference="live")
    rows = {"forget_dataset": make_rows(4), "retain_dataset": make_rows(4, 4)}
    trainer = MUAlignTrainer(
        make_vilt(hidden_size=128, intermediate_size=512, num_hidden_layers=6),
        args,
        processing_class=make_processor(),
        **rows,
    )
    told, seen = counted(trainer)
    assert told == pytest.approx(seen, rel=0.1)


def test_resumed_runs_count_all_their_steps(tmp_path):
    whole = of_language(tmp_path / "whole", reference="live")
    whole.train()
    of_language(tmp_path / "part", reference="live", save_strategy="steps", save_steps=1).train()
    resumed = of_language(tmp_path / "part", reference="live")
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-1"))
    assert resumed.state.total_flos == whole.state.total_flos > 0
