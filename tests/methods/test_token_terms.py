# SPDX-License-Identifier: Apache-2.0
"""What methods over single tokens do beside their equation: variants, tokens left out, settings and rows refused."""

import math

import pytest
import torch
from conftest import make_model, train_batch

from hf_unlearn import METHODS, losses


TOKEN_METHODS = ("simnpo", "wga", "satimp", "tnpo", "ceu", "undial", "ihl", "unilogit", "unlikelihood",
                 "max_entropy")  # fmt: skip
# Where authors differ, the defaults are the paper's or its code's.
DEFAULTS = {
    "simnpo": {"beta": 2.5, "delta": 0.0, "forget_weight": 0.1375, "retain_weight": 1.0},
    "wga": {"beta": 5.0},
    "satimp": {"beta1": 5.0, "beta2": 1.0, "forget_weight": 1.0, "retain_weight": 0.1},
    "tnpo": {"beta": 4.0, "alpha": 0.0},
    "ceu": {"skip_tokens": 1},
    "undial": {"beta": 10.0},
    "whp": {"alpha": 5.0, "whp_target": "softmax"},
}


@pytest.mark.parametrize("method", DEFAULTS)
def test_defaults_are_the_published_ones(method, tmp_path):
    args = METHODS[method][0](output_dir=str(tmp_path))
    assert {name: getattr(args, name) for name in DEFAULTS[method]} == DEFAULTS[method]


@pytest.mark.parametrize("method", TOKEN_METHODS)
def test_only_methods_that_compare_with_it_have_a_reference(build, method):
    trainer = build(METHODS[method][1], reference="live")
    assert (trainer.reference is not None) == (method in ("tnpo", "undial"))


def test_alpha_makes_tnpo_wtnpo(build):
    trainer = build(METHODS["tnpo"][1], beta=1.5, alpha=0.5, reference="live", retain_loss="none")
    entered = make_model()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.3)
    batch, logps = train_batch(trainer, range(3)), []
    for model in (trainer.model.eval(), entered):
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach().double()
        found, mask = losses.per_token_logps(logits, batch["labels"])
        logps.append(found[mask].tolist())
    terms = [2 * math.exp(2 * a) / (math.exp(1.5 * a) + math.exp(1.5 * b)) * a for a, b in zip(*logps, strict=True)]
    expected = sum(terms) / len(terms)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("skipped", [0, 1, 3])
@pytest.mark.parametrize("fused", [True, False])
def test_ceu_trains_on_no_token_that_it_leaves_out(build, skipped, fused):
    trainer = build(METHODS["ceu"][1], skip_tokens=skipped, fused_losses=fused, retain_loss="none")
    batch = train_batch(trainer, range(3))
    loss = trainer.compute_loss(trainer.model.eval(), batch)
    # By hand: without the first tokens, mean over what is left of a row, then over rows.
    means = []
    for ids, attention, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        logits = trainer.model(ids[None], attention_mask=attention[None]).logits[0].detach().double()
        spots = [t - 1 for t in range(1, len(labels)) if labels[t] != -100][skipped:]
        means.append(losses.ceu_rows(logits[spots], labels[[t + 1 for t in spots]]).mean().item())
    assert loss.item() == pytest.approx(sum(means) / len(means), rel=1e-5)


@pytest.mark.usefixtures("unloaded")
def test_ceu_refuses_rows_of_which_nothing_would_be_forgotten(build, model_path):
    rows = [{"input_ids": [1, 44, 55, 66]}, {"input_ids": [1, 44]}]
    with pytest.raises(ValueError, match=r"skip_tokens=1, and 1 of 2 forget rows .* row 1: .*`skip_tokens`"):
        build(METHODS["ceu"][1], {"forget_dataset": rows, "model": model_path})
    build(METHODS["ceu"][1], {"forget_dataset": rows}, skip_tokens=0)


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("simnpo", {"beta": 0}, "beta=0; give a finite number above 0"),
        ("simnpo", {"delta": -1.0}, "delta=-1.0; give a finite number at least 0"),
        ("wga", {"beta": -0.5}, "beta=-0.5; give a finite number at least 0"),
        ("satimp", {"beta1": math.nan}, "beta1=nan; give a finite number at least 0"),
        ("satimp", {"beta2": -1}, "beta2=-1; give a finite number at least 0"),
        ("tnpo", {"beta": 0}, "beta=0; give a finite number above 0"),
        ("tnpo", {"alpha": -1.5}, "alpha=-1.5; give a finite number at least 0"),
        ("undial", {"beta": math.inf}, "beta=inf; give a finite number at least 0"),
        ("ceu", {"skip_tokens": -1}, "skip_tokens=-1; give a whole number of at least 0"),
        ("ceu", {"skip_tokens": None}, "skip_tokens=None; give a whole number of at least 0"),
        ("ceu", {"skip_tokens": 0.5}, "skip_tokens=0.5; give a whole number of at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(method, settings, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        METHODS[method][0](output_dir=str(tmp_path), **settings)


@pytest.mark.parametrize("fused", [True, False])
def test_entropy_counts_no_entry_that_only_pads_the_head(build, fused):
    args = {"fused_losses": fused, "retain_loss": "none"}
    trainer = build(METHODS["max_entropy"][1], {"model": make_model(vocab_size=128)}, **args)
    batch, tokens = train_batch(trainer, range(3)), len(trainer.processing_class)
    loss = trainer.compute_loss(trainer.model.eval(), batch)
    means = []
    for ids, attention, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        logits = trainer.model(ids[None], attention_mask=attention[None]).logits[0].detach().double()
        p = logits[[t - 1 for t in range(1, len(labels)) if labels[t] != -100], :tokens].softmax(-1)
        means.append((p * p.log()).sum(-1).mean().item())
    assert loss.item() == pytest.approx(sum(means) / len(means), rel=1e-5)
