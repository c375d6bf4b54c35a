# SPDX-License-Identifier: Apache-2.0
"""WAGLE's scores: of the method's own forget term, against its formula in float64."""

import pytest
import torch
from align_encoder import make_encoder, make_trainer
from conftest import make_model, make_tokenizer
from torch.nn.functional import logsigmoid

from hf_unlearn import (
    DPOUnlearnTrainer,
    GATrainer,
    LLMUTrainer,
    NPOTrainer,
    RepNoiseConfig,
    RepNoiseTrainer,
    RMUTrainer,
    SimNPOTrainer,
)


FORGET = [{"prompt": f"Who is {'x' * (3 * i + 1)}?", "completion": f" A spy{'!' * i}"} for i in range(6)]
RETAIN = [{"text": f"common {'y' * i} of Bob"} for i in range(6)]
SAVES = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture
def masked(build):
    def masked(trainer=NPOTrainer, given=None, **settings):
        rows = {"forget_dataset": FORGET, "retain_dataset": RETAIN} | (given or {})
        defaults = {"mask_by": "wagle", "retain_loss": "nll", "per_device_train_batch_size": 2, "max_steps": 1}
        return build(trainer, given=rows, **defaults | settings)

    return masked


def npo(logps, lengths, args):
    """At the reference, whose log-probabilities are those of the model itself."""
    return -2 / args.beta * logsigmoid(-args.beta * (logps - logps.detach())).mean()


def simnpo(logps, lengths, args):
    return -2 / args.beta * logsigmoid(-args.beta * (logps / lengths + args.delta)).mean()


def slow_scores(term, trainer, mu, rows=None):
    model = make_model().double()
    parameters = dict(model.named_parameters())

    def of_rows(role):
        own = trainer.train_dataset.roles[role]
        chosen = range(len(own)) if rows is None else rows[role]
        logps, lengths = [], []
        for row in (own[i] for i in chosen):
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
            found = model(ids).logits[0, :-1].log_softmax(-1)
            kept = labels != -100
            logps.append(found[kept].gather(1, labels[kept][:, None]).sum())
            lengths.append(kept.sum())
        return torch.stack(logps), torch.stack(lengths)

    forget = torch.autograd.grad(term(*of_rows("forget"), trainer.args), parameters.values())
    logps, lengths = of_rows("retain")
    retain = torch.autograd.grad(-logps.sum() / lengths.sum(), parameters.values())
    items = zip(parameters.items(), forget, retain, strict=True)
    return {name: ((weight - kept / mu) * own).abs().detach() for (name, weight), own, kept in items}


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        largest = values.max().item()
        torch.testing.assert_close(found[name].double(), values, rtol=5e-3, atol=1e-5 * largest, msg=name)


@pytest.fixture
def scores(masked, monkeypatch):
    """Scores of a run that ends there, and its trainer."""

    class Scored(Exception):
        pass

    def scores(*args, **settings):
        seen = {}

        def stop(found, share):
            seen.update(found)
            raise Scored

        monkeypatch.setattr("hf_unlearn.addons.masks.mask.highest", stop)
        trainer = masked(*args, **settings)
        with pytest.raises(Scored):
            trainer.train()
        return seen, trainer

    return scores


@pytest.mark.parametrize(("method", "term"), [(NPOTrainer, npo), (SimNPOTrainer, simnpo)])
@pytest.mark.parametrize("settings", [{}, {"mask_mu": 0.5, "per_device_train_batch_size": 3, "reference": "live"}])
def test_scores_equal_their_formula_whatever_the_batch(scores, method, term, settings):
    if method is SimNPOTrainer:
        settings = {name: value for name, value in settings.items() if name != "reference"}
    found, trainer = scores(method, **settings)
    check_equal(found, slow_scores(term, trainer, settings.get("mask_mu", 1e-6)))


def test_terms_that_forget_count_together_with_their_weights(scores):
    answers = [{"prompt": f"Who {i}?", "completion": f" Bob{'?' * i}"} for i in range(6)]
    settings = {"alternate_source": "shuffled", "num_alternates": 2, "per_device_train_batch_size": 6}
    found, trainer = scores(LLMUTrainer, {"retain_dataset": answers}, mask_mu=0.5, **settings)
    model = trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[position] for position in range(6)])
    terms = trainer.weighted_terms(model, batch)
    assert {*terms} == {"forget", "alternate", "retain"}
    parameters = dict(model.named_parameters())
    forget = torch.autograd.grad(terms["forget"] + terms["alternate"], parameters.values(), retain_graph=True)
    kept = torch.autograd.grad(terms["retain"], parameters.values())
    items = zip(parameters.items(), forget, kept, strict=True)
    check_equal(
        found, {name: ((weight - by / 0.5) * own).abs().detach().double() for (name, weight), own, by in items}
    )


def test_rows_may_be_fewer(scores):
    found, trainer = scores(mask_rows=2, mask_mu=0.5)
    pairs = [trainer.train_dataset[position] for position in range(2)]
    # Forget rows are those of the first pairs; retain rows the first of those that are trained on.
    rows = {"forget": [pair["forget"]["index"] for pair in pairs], "retain": [0, 1]}
    check_equal(found, slow_scores(npo, trainer, 0.5, rows))


@pytest.mark.parametrize("method", [RMUTrainer, DPOUnlearnTrainer, GATrainer])
def test_any_method_may_be_the_host(masked, method):
    settings = {"layer_id": 1, "layer_ids": [0, 1], "param_ids": None, "retain_loss": "states"}
    settings = settings if method is RMUTrainer else {}
    settings |= {"alternate_source": "shuffled"} if method is DPOUnlearnTrainer else {}
    trainer = masked(method, mask_share=0.3, weight_decay=0.1, **settings)
    entered = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    masks = trainer.addons["mask"].masks
    assert sum(int(m.sum()) for m in masks.values()) == round(0.3 * sum(m.numel() for m in masks.values()))
    for name, mask in masks.items():
        now = dict(trainer.model.named_parameters())[name]
        assert torch.equal(now[~mask], entered[name][~mask])
    # What is logged is of training alone.
    assert len([entry for entry in trainer.state.log_history if "forget/loss" in entry]) == 1


def test_it_goes_on_with_the_mask_of_the_checkpoint_and_no_other(masked, tmp_path):
    whole = masked(max_steps=2, output_dir=tmp_path / "whole", **SAVES)
    whole.train()
    checkpoint = f"{whole.args.output_dir}/checkpoint-1"
    rest = masked(max_steps=2, output_dir=tmp_path / "rest")
    rest.train(resume_from_checkpoint=checkpoint)
    for own, other in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(own, other)
    with pytest.raises(ValueError, match=r"mask_mu=1e-06, and this run has mask_by='wagle', .* mask_mu=0.1\."):
        masked(max_steps=2, mask_mu=0.1, output_dir=tmp_path / "mu").train(resume_from_checkpoint=checkpoint)


def test_a_method_that_begins_with_something_else_is_refused(tmp_path, unloaded):
    with pytest.raises(ValueError, match="align_then_unlearn begins by training something else. Choose another"):
        make_trainer(tmp_path / "out", make_encoder(tmp_path / "encoder"), mask_by="wagle", retain_loss="nll")


def test_a_forget_term_of_the_rows_of_all_processes_is_refused_on_several(masked, model_path, unloaded, monkeypatch):
    monkeypatch.setattr(RepNoiseConfig, "world_size", 2)
    given = {"model": model_path, "processing_class": make_tokenizer()}
    with pytest.raises(ValueError, match="repnoise takes that of the rows of all processes together. Choose another"):
        masked(trainer=RepNoiseTrainer, given=given)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mask_mu": 0.0}, "mask_mu=0.0; give a finite number above 0"),
        ({"mask_by": "snip", "mask_mu": 0.1}, "mask_mu would have no effect with mask_by='snip'"),
        ({"given": {"retain_dataset": None}, "retain_loss": "none"}, "by retain rows, and this run has forget rows"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(masked, model_path, unloaded, settings, told):
    given = {"model": model_path, "processing_class": make_tokenizer()} | settings.pop("given", {})
    with pytest.raises(ValueError, match=told):
        masked(given=given, **settings)
