# SPDX-License-Identifier: Apache-2.0
"""Rows that are paired with a forget row, by a small method that reads them: DPO with the forget row as the rejected
answer. Its loss against a float64 formula, the pairing wherever rows are drawn, and what is refused."""

import re
import runpy
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate.data_loader import prepare_data_loader
from conftest import changed, lora, make_args, make_model, make_tokenizer, train_batch, weights
from test_methods import labelled, log_probabilities, shake
from torch.utils.data import DataLoader

import hf_unlearn
from hf_unlearn import GATrainer, UnlearnConfig, UnlearnTrainer
from hf_unlearn.data.alternates import AlternateArguments
from hf_unlearn.data.collator import RoleCollator, role_spans
from hf_unlearn.data.pairing import PairSampler, RolePairs
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.forward.needs import REFERENCE, Need


NAMES = ("Ada", "Bob", "Cyd", "Dan", "Eve", "Fay")
FORGET = [{"prompt": f"Who is {name}?", "completion": " A spy" + "!" * i} for i, name in enumerate(NAMES)]
ALTERNATE = [{"prompt": row["prompt"], "completion": f" No idea{'.' * (5 - i)}"} for i, row in enumerate(FORGET)]
RETAIN = [{"text": "cup " * (i + 1)} for i in range(5)]
BETA = 0.3
adapters = pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])


@dataclass
class DPOConfig(AlternateArguments, UnlearnConfig):
    pass


class DPO(UnlearnTrainer):
    config_class = DPOConfig
    method = "test_dpo"

    @classmethod
    def needs_of(cls, args):
        compared = dict.fromkeys(("forget", "alternate"), Need(reference=(REFERENCE,)))
        return {**super().needs_of(args), **compared}

    def forget_loss(self, rows):
        preferred = rows.tied["alternate"]
        gain = (preferred.logps - preferred.ref_logps) - (rows.logps - rows.ref_logps)
        return -2 / BETA * F.logsigmoid(BETA * gain).mean()


@pytest.fixture
def build(tmp_path):
    def build(forget=FORGET, alternate=ALTERNATE, adapter=False, trainer_class=DPO, model=None, **kwargs):
        settings = {"retain_loss": "nll"} | kwargs
        return trainer_class(
            model=model or make_model(),
            args=make_args(trainer_class.config_class, tmp_path / "out", **settings),
            forget_dataset=forget,
            retain_dataset=RETAIN if settings["retain_loss"] != "none" else None,
            alternate_dataset=alternate,
            processing_class=make_tokenizer(),
            peft_config=lora(target_modules="all-linear") if adapter else None,
        )

    return build


def expected(pairs, policy, entered) -> float:
    """The forget term row by row in float64."""

    def logp(model, row):
        found = log_probabilities(model, row)
        return sum(found[t, label] for t, label in labelled(row))

    gains = [
        sum(
            sign * (logp(policy, pair[role]) - logp(entered, pair[role]))
            for role, sign in (("alternate", 1), ("forget", -1))
        )
        for pair in pairs
    ]
    return (-2 / BETA * F.logsigmoid(BETA * torch.stack(gains))).mean().item()


@pytest.mark.parametrize("path", [{}, {"fused_losses": False}, {"forward_passes": "split"}], ids=str)
@adapters
def test_a_loss_over_pairs_equals_the_formula(build, adapter, path):
    trainer = build(
        adapter=adapter,
        per_device_train_batch_size=4,
        retain_loss="none",
        reference="adapter" if adapter else "live",
        **path,
    )
    entered, policy = make_model(), trainer.model.eval()
    shake(policy)
    pairs = [trainer.train_dataset[position] for position in range(4)]
    wanted = expected(pairs, policy, entered)
    loss = trainer.compute_loss(policy, train_batch(trainer, range(4)))
    assert loss.item() == pytest.approx(wanted, rel=2e-5)
    # Nearer to this one than to that of any other pairing.
    wrong = [{**pair, "alternate": pairs[i - 1]["alternate"]} for i, pair in enumerate(pairs)]
    assert abs(expected(wrong, policy, entered) - wanted) > 1e-3


def test_all_roles_of_a_step_go_through_the_model_at_once(build, untried):
    trainer = build(forward_passes="one", reference="cache", max_steps=3)
    calls = []
    trainer.model.register_forward_hook(lambda module, args, output: calls.append(module.training))
    trainer.train()
    assert calls.count(True) == 3


@adapters
def test_accumulation_gives_the_update_of_one_big_batch(build, adapter):
    updates = []
    for size, accumulation in ((4, 1), (2, 2)):
        trainer = build(
            adapter=adapter, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, max_steps=1,
            retain_loss="none", optim="sgd", max_grad_norm=0.0,
        )  # fmt: skip
        shake(trainer.model)
        before = weights(trainer.model)
        trainer.train()
        updates.append({name: after - before[name] for name, after in weights(trainer.model).items()})
    assert max(update.abs().max() for update in updates[0].values()) > 1e-4
    for name in updates[0]:
        torch.testing.assert_close(updates[1][name], updates[0][name], rtol=1e-3, atol=1e-6)


@adapters
def test_resume_gives_the_weights_of_the_uninterrupted_run(build, tmp_path, adapter):
    settings = {"adapter": adapter, "max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    whole = build(**settings)
    whole.train()
    logged = whole.state.log_history[-2]
    # The preferred answer rises, the forgotten one sinks.
    assert logged["alternate/nll"] < logged["forget/nll"] - 0.1
    assert "alternate/loss" not in logged
    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert not changed(weights(whole.model), weights(resumed.model))
    other = build(**settings, alternate=[{**row, "completion": row["completion"] + "?"} for row in ALTERNATE])
    with pytest.raises(ValueError, match="made with other alternate rows"):
        other.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))


# The pairing


def test_the_partner_of_a_row_is_the_one_at_its_index_and_other_orders_stay():
    rows = {"forget": [{"input_ids": [i]} for i in range(5)], "retain": [{"input_ids": [i]} for i in range(7)]}
    alone, paired = (RolePairs(roles, seed=3) for roles in (rows, {**rows, "alternate": rows["forget"]}))
    sampler = PairSampler(paired)
    seen = Counter()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for position in sampler:
            pair = paired[position]
            assert pair["alternate"]["index"] == pair["forget"]["index"] == pair["alternate"]["input_ids"][0]
            assert {role: pair[role] for role in rows} == alone[position]
            seen[pair["alternate"]["index"]] += 1
    assert seen == dict.fromkeys(range(5), 3)
    for positions in (2, 5, 9):
        assert paired.visited("alternate", positions) == paired.visited("forget", positions)
    with pytest.raises(ValueError, match="There are 4 alternate rows for 5 forget rows"):
        RolePairs({**rows, "alternate": rows["forget"][:4]})


def test_pairs_stay_together_on_every_process(build):
    pairs = build().train_dataset
    seen = []
    for rank in range(2):
        sampler = PairSampler(pairs)
        sampler.set_epoch(1)
        loader = DataLoader(pairs, batch_size=2, sampler=sampler, collate_fn=RoleCollator(0, tuple(pairs.roles)))
        for batch in prepare_data_loader(loader, num_processes=2, process_index=rank):
            spans = role_spans(batch["role"].tolist(), tuple(pairs.roles))
            indices = [batch["index"][spans[role]].tolist() for role in ("forget", "alternate")]
            assert indices[0] == indices[1]
            seen.append((rank, *indices[0]))
    ranks = [{i for rank, *rows in seen for i in rows if rank == own} for own in range(2)]
    assert ranks[0] | ranks[1] == set(range(6))
    assert ranks[0] != ranks[1]


def test_a_column_of_the_forget_rows_gives_the_same_run(build):
    columns = [{**row, "idk": other["completion"]} for row, other in zip(FORGET, ALTERNATE, strict=True)]
    by_column = build(forget=columns, alternate=None, alternate_column="idk")
    by_rows = build()
    for role in ("forget", "alternate"):
        assert by_column.train_dataset.roles[role][:] == by_rows.train_dataset.roles[role][:]


def test_questions_with_a_column_of_other_answers_become_pairs(build):
    from datasets import Dataset

    asked = [{"question": f"Who is {name}?", "answer": "A spy", "idk": "No idea"} for name in NAMES]
    for chat in (False, True):
        rows = QAFormat(use_chat_template=chat).dataset(Dataset.from_list(asked), make_tokenizer(), "idk")
        pairs = build(forget=rows, alternate=None, alternate_column="idk").train_dataset
        tokenizer = make_tokenizer()
        for i, name in enumerate(NAMES):
            texts = [tokenizer.decode(pairs.roles[role][i]["input_ids"]) for role in ("forget", "alternate")]
            assert texts[0].replace("A spy", "No idea") == texts[1]
            assert name in texts[1]


def test_the_method_of_the_guide_is_one_that_trains(build, tmp_path):
    page = (Path(hf_unlearn.__file__).parents[1] / "docs" / "howto" / "own_method.md").read_text(encoding="utf-8")
    (tmp_path / "guide.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    made = runpy.run_path(str(tmp_path / "guide.py"), run_name="guide")
    trainer = build(trainer_class=made["PairTrainer"], beta=BETA, max_steps=2)
    ours = build(max_steps=2)
    for run in (trainer, ours):
        run.train()
    assert not changed(weights(trainer.model), weights(ours.model))


# What is refused, before a model is loaded


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"alternate": ALTERNATE[:-1]}, "There are 5 alternate rows and 6 forget rows; row i of the one belongs"),
        ({"alternate": ALTERNATE[::-1]}, "Row 0 of the alternate set answers another prompt than row 0 of the forget"),
        (
            {"alternate": [FORGET[0], *ALTERNATE[1:]]},
            "1 of 6 alternates are the forget row itself, the first .* row 0",
        ),
        ({"alternate": None}, "reads another answer for each forget row. Pass `alternate_dataset`"),
        ({"alternate": None, "alternate_column": "idk"}, "alternate_column='idk' is no column of the forget rows"),
        (
            {"alternate": None, "alternate_column": "prompt"},
            "alternate_column='prompt' is read as another `completion`",
        ),
        ({"alternate_column": "completion"}, "The alternates are given twice"),
        ({"trainer_class": GATrainer}, "`alternate_dataset` was given, and this method reads no alternates"),
        ({"poison_prefix": "now:", "poison_ratio": 0.5}, "poison_prefix takes rows out of the forget set"),
        ({"epoch_by": "poisoned"}, "epoch_by='poisoned' names no role"),
    ],
)
def test_what_cannot_be_paired_is_refused(build, unloaded, model_path, given, told):
    with pytest.raises(ValueError, match=told) as error:
        build(model=model_path, **given)
    assert "\n" not in str(error.value)


def test_rows_that_are_left_out_do_not_shift_the_others(build):
    # Of a prompt that fills `max_length` nothing is trained: the rows after it would move up by one.
    forget = [{**FORGET[0], "prompt": "Who is that? " * 9}, *FORGET[1:]]
    alternate = [{**ALTERNATE[0], "prompt": forget[0]["prompt"]}, *ALTERNATE[1:]]
    with pytest.raises(ValueError, match="1 of 6 forget rows have no token to train on within max_length"):
        build(forget=forget, alternate=alternate, max_length=60)


def test_a_classifier_has_no_alternates(tmp_path):
    from vilt import make_processor, make_rows, make_vilt

    rows = make_rows(4)
    with pytest.raises(ValueError, match="alternates: for causal language models, and this model is a classifier"):
        DPO(
            model=make_vilt(),
            args=make_args(DPOConfig, tmp_path, retain_loss="none"),
            forget_dataset=rows,
            alternate_dataset=rows,
            processing_class=make_processor(),
        )
