# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from conftest import changed, make_args, make_model, make_tokenizer, weights

from hf_unlearn import GAConfig, GATrainer
from hf_unlearn.training.rounding import RoundingCheck


class StochasticAdamW(torch.optim.AdamW):
    """Says of itself what torchao's AdamW8bit says."""

    bf16_stochastic_round = True


def train(tmp_path, forget_rows, dtype, watch=True, optimizer=None, **kwargs):
    model = make_model().to(dtype)
    args = make_args(GAConfig, tmp_path, **({"learning_rate": 1e-5, "max_steps": 5} | kwargs))
    optimizers = (None, None) if optimizer is None else (optimizer(model.parameters(), lr=args.learning_rate), None)
    trainer = GATrainer(
        model=model, args=args, forget_dataset=forget_rows, processing_class=make_tokenizer(), optimizers=optimizers
    )
    if not watch:
        trainer.pop_callback(RoundingCheck)
    trainer.train()
    return trainer


def shares(trainer):
    return [log["weights/changed"] for log in trainer.state.log_history if "weights/changed" in log]


def warned(caplog):
    return [record.getMessage() for record in caplog.records if "eats most of the update" in record.getMessage()]


def test_warns_where_bfloat16_eats_the_update(tmp_path, forget_rows, caplog):
    trainer = train(tmp_path, forget_rows, torch.bfloat16)
    (message,) = warned(caplog)
    assert "bf16_stochastic_round=True" in message
    assert "1e-05" in message
    # Three steps are looked at, and none after them.
    assert len(shares(trainer)) == 3
    assert max(shares(trainer)) < 0.5


def test_a_rate_that_bfloat16_can_take_does_not_warn(tmp_path, forget_rows, caplog):
    trainer = train(tmp_path, forget_rows, torch.bfloat16, learning_rate=1e-2)
    assert not warned(caplog)
    assert min(shares(trainer)) > 0.9


def test_float32_costs_nothing(tmp_path, forget_rows, caplog):
    trainer = train(tmp_path, forget_rows, torch.float32)
    assert not shares(trainer)
    assert not warned(caplog)


def test_stochastic_rounding_is_told_but_not_warned_of(tmp_path, forget_rows, caplog):
    trainer = train(tmp_path, forget_rows, torch.bfloat16, optimizer=StochasticAdamW)
    assert len(shares(trainer)) == 3
    assert not warned(caplog)


def test_judges_after_the_warm_up(tmp_path, forget_rows, caplog):
    train(tmp_path / "short", forget_rows, torch.bfloat16, lr_scheduler_type="linear", warmup_steps=4, max_steps=6)
    assert not warned(caplog), "two steps after the warm-up are not enough"
    train(tmp_path / "long", forget_rows, torch.bfloat16, lr_scheduler_type="linear", warmup_steps=4, max_steps=8)
    assert warned(caplog)


def test_share_is_that_of_all_weights(tmp_path, forget_rows):
    before = weights(make_model().bfloat16())
    trainer = train(tmp_path, forget_rows, torch.bfloat16, max_steps=1, learning_rate=1e-4, weight_decay=0.0)
    after = weights(trainer.model)
    # With Adam's first step a weight moves by the rate, whatever its gradient, unless that is 0.
    moved = sum((after[name] != before[name]).sum().item() for name in before)
    total = sum(tensor.numel() for name, tensor in before.items() if "embed_tokens" not in name)
    seen = {int(token) for row in trainer.train_dataset.roles["forget"]["input_ids"] for token in row}
    total += len(seen) * before["model.embed_tokens.weight"].shape[1]
    assert shares(trainer)[0] == pytest.approx(moved / total, abs=0.05)


def test_watching_changes_nothing(tmp_path, forget_rows):
    watched = weights(train(tmp_path / "a", forget_rows, torch.bfloat16, learning_rate=1e-3).model)
    unwatched = weights(train(tmp_path / "b", forget_rows, torch.bfloat16, False, learning_rate=1e-3).model)
    assert not changed(watched, unwatched)
