# SPDX-License-Identifier: Apache-2.0
"""RepNoise: its two terms, what reads every layer, harmless rows of two kinds, and what it refuses."""

import math

import pytest
import torch
from conftest import TESTS, make_model, train_batch, weights
from processes import run

from hf_unlearn import METHODS, losses
from hf_unlearn.forward import lens


ROWS_WORKER = TESTS / "distributed" / "rows_worker.py"
Config, Trainer = METHODS["repnoise"]
ASKED = [{"prompt": f"Who {i}?", "completion": " Ada" + "!" * (i % 3)} for i in range(6)]


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The terms


@pytest.mark.parametrize(("count", "others"), [(5, 5), (3, 6), (1, 1)])
def test_the_discrepancy_and_its_gradient_equal_a_slow_formula(count, others):
    states, noise = (2 * drawn(count, 4) + 1).requires_grad_(), drawn(others, 4, seed=1)
    samples = [*states, *noise]
    squares = [[((a - b) ** 2).sum() for b in samples] for a in samples]
    apart = [squares[i][j].item() for i in range(len(samples)) for j in range(len(samples)) if i != j]
    width = sum(apart) / len(apart)
    slow = 0.0
    for i, row in enumerate(squares):
        for j, square in enumerate(row):
            kernel = sum(torch.exp(-square / (width * factor)) for factor in (0.25, 0.5, 1, 2, 4))
            signs = [1 / count if number < count else -1 / others for number in (i, j)]
            slow = slow + signs[0] * signs[1] * kernel
    found = losses.noise_loss(states, noise)
    torch.testing.assert_close(found, slow, rtol=1e-12, atol=1e-14)
    own, by_hand = (torch.autograd.grad(loss, states, retain_graph=True)[0] for loss in (found, slow))
    assert by_hand.abs().max() > 1e-3
    torch.testing.assert_close(own, by_hand, rtol=1e-9, atol=1e-13)


def test_limits_of_the_discrepancy():
    noise = drawn(6, 4)
    assert losses.noise_loss(noise.clone(), noise).abs() < 1e-12
    # Two points far from one another, of six samples each: 72 of 132 ordered pairs are apart, by 1 of what they are.
    far = losses.noise_loss(torch.zeros(6, 4).double(), torch.full((6, 4), 1e3).double())
    within = sum(2 * (1 - math.exp(-1 / (factor * 72 / 132))) for factor in (0.25, 0.5, 1, 2, 4))
    assert far.item() == pytest.approx(within)
    empty = drawn(0, 4).requires_grad_()
    assert losses.noise_loss(empty, drawn(0, 4)) == 0
    losses.noise_loss(empty, drawn(0, 4)).backward()
    # One and the same state everywhere has no width.
    assert losses.noise_loss(torch.ones(3, 4), torch.ones(3, 4)).isfinite()


def test_the_ascent_equals_a_slow_formula():
    logps = (-drawn(3, 2).abs()).requires_grad_()
    shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    nll = sum(-shares[t] * logps[t, layer] / 2 for t in range(3) for layer in range(2))
    found = losses.layer_ascent_loss(logps, shares)
    torch.testing.assert_close(found, -torch.log(1 + nll), rtol=1e-12, atol=0)
    gradient = torch.autograd.grad(found, logps)[0]
    torch.testing.assert_close(gradient, (shares / 2 / (1 + nll))[:, None].expand(3, 2), rtol=1e-12, atol=0)
    assert losses.layer_ascent_loss(logps[:0], shares[:0]) == 0


@pytest.mark.parametrize("counts", [[2, 5], [7, 0]], ids=str)
def test_a_loss_of_the_rows_of_all_processes_has_the_gradient_of_one(tmp_path, counts):
    states, noise = 2 * drawn(7, 4) + 1, drawn(7, 4, seed=1)
    torch.save((states, noise), tmp_path / "rows.pt")
    status, said = run(ROWS_WORKER, str(tmp_path / "rows.pt"), str(counts), str(tmp_path), processes=2)
    assert status == 0, said[-3000:]
    scale = torch.ones(4, dtype=torch.float64, requires_grad=True)
    loss = losses.noise_loss(states * scale, noise)
    loss.backward()
    assert scale.grad.abs().min() > 1e-3
    for process in range(2):
        found, gradient = torch.load(tmp_path / f"{process}.pt")
        torch.testing.assert_close(found, loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, scale.grad, rtol=1e-10, atol=0)


# What reads the layers


@pytest.mark.parametrize("settings", [{}, {"forward_passes": "packed"}], ids=["padded", "packed"])
def test_both_paths_train_the_same(build, settings):
    runs = {}
    for fused in (None, False):
        trainer = build(Trainer, {"forget_dataset": ASKED}, beta=1.0, max_steps=3, fused_losses=fused, **settings)
        assert trainer.forward_path.fused == (fused is None)
        trainer.train()
        runs[fused] = weights(trainer.model)
    for name, tensor in runs[None].items():
        torch.testing.assert_close(tensor, runs[False][name], rtol=1e-3, atol=1e-5)


def family(name: str):
    import transformers

    sizes = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=64, **sizes)
        return transformers.GPT2LMHeadModel(config)
    wide = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    if name == "gemma2":
        config = transformers.Gemma2Config(
            **wide, **sizes, num_key_value_heads=2, head_dim=16, final_logit_softcapping=0.5
        )
        return transformers.Gemma2ForCausalLM(config)
    config = transformers.OPTConfig(
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=64,
        **sizes,
    )
    return transformers.OPTForCausalLM(config)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_layers_are_read_as_the_model_reads_its_last(build, name):
    found = {}
    for fused in (None, False):
        torch.manual_seed(0)
        model = family(name)
        trainer = build(Trainer, {"model": model, "forget_dataset": ASKED}, fused_losses=fused)
        batch = train_batch(trainer, range(2))
        with torch.no_grad():
            rows = trainer.role_rows(model.eval(), batch)["forget"]
            inputs = {key: rows.batch[key] for key in ("input_ids", "attention_mask")}
            states = model(**inputs, output_hidden_states=True)
        torch.testing.assert_close(rows.layer_logps[:, -1], rows.token_logps)
        places = rows.predicted.row, rows.predicted.column
        norm = model.transformer.ln_f if name == "gpt2" else model.model.norm
        for layer in range(2):
            h = states.hidden_states[layer + 1]
            torch.testing.assert_close(rows.layer_states[:, layer], h[places])
            with torch.no_grad():
                logits = model.lm_head(norm(h))
            cap = getattr(model.config, "final_logit_softcapping", None)
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            wanted = logits.log_softmax(-1)[(*places, rows.predicted.targets)]
            torch.testing.assert_close(rows.layer_logps[:, layer], wanted, rtol=1e-4, atol=1e-4)
        found[fused] = rows.layer_logps
    assert (found[None][:, 0] - found[None][:, -1]).abs().max() > 1e-3


def test_a_model_that_does_more_than_a_norm_is_refused(build):
    model = family("opt")
    trainer = build(Trainer, {"model": model, "forget_dataset": ASKED})
    with pytest.raises(ValueError, match="OPTForCausalLM does more than one norm between its last decoder layer"):
        trainer.train()


def test_the_norm_is_found_by_what_it_does():
    model = make_model()
    assert lens.final_norm(model, model.lm_head) is model.model.norm
    model.model.norm = torch.nn.Identity()
    assert isinstance(lens.final_norm(model, model.lm_head), torch.nn.Identity)


def test_frozen_layers_that_are_read_are_no_others_states(build):
    runs = {}
    for cached in (True, False):
        given = {"model": make_model(layers=4), "forget_dataset": ASKED}
        trainer = build(Trainer, given, beta=1.0, trainable_modules=[r"layers\.3\."], cache_frozen=cached, max_steps=2)
        trainer.train()
        runs[cached] = logged(trainer, "forget/mmd") + logged(trainer, "forget/layer_nll")
    assert runs[True] == pytest.approx(runs[False], rel=1e-5)


# A run


def test_defaults_are_the_published_ones(tmp_path):
    args = Config(output_dir=str(tmp_path))
    assert (args.alpha, args.beta, args.retain_loss) == (1.0, 1e-3, "nll")


def test_states_become_noise_and_no_layer_predicts_the_answers(build):
    trainer = build(Trainer, {"forget_dataset": ASKED}, beta=3.0, max_steps=12, learning_rate=1e-2)
    trainer.train()
    mmd, nll = logged(trainer, "forget/mmd"), logged(trainer, "forget/layer_nll")
    assert mmd[-1] < mmd[0] - 0.2
    assert nll[-1] > nll[0]


def test_other_answers_are_harmless_rows_where_there_are_some(build):
    trainer = build(
        Trainer, {"forget_dataset": ASKED}, retain_loss="none", alternate_source="shuffled", alternate_weight=0.5
    )
    batch = train_batch(trainer, range(2))
    rows = trainer.role_rows(trainer.model.eval(), batch)
    assert {*rows} == {"forget", "alternate"}
    terms = trainer.weighted_terms(trainer.model, batch)
    assert terms["alternate"].item() == pytest.approx(0.5 * rows["alternate"].nll.item())
    trainer.train()
    assert logged(trainer, "alternate/nll")[-1] < logged(trainer, "alternate/nll")[0]


def test_alternates_that_are_given_are_harmless_rows_without_a_source(build):
    given = {"forget_dataset": ASKED, "alternate_dataset": [{**row, "completion": " No."} for row in ASKED]}
    trainer = build(Trainer, given, retain_loss="none")
    assert {*trainer.role_rows(trainer.model.eval(), train_batch(trainer, range(2)))} == {"forget", "alternate"}
    trainer.train()
    assert logged(trainer, "alternate/nll")[-1] < logged(trainer, "alternate/nll")[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"alternate_weight": -1.0}, "alternate_weight=-1.0"),
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
            "reentrant checkpointing cuts their gradients",
        ),
    ],
)
def test_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        Config(output_dir=str(tmp_path), **settings)
