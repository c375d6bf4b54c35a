# SPDX-License-Identifier: Apache-2.0
"""Align-then-Unlearn as a trainer: what every method must do (the grid of `test_methods.py`, by stage), stages that go
on after a resume, and what costs nothing twice. Formulas are spelled out row by row."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from align_encoder import FORGET, RETAIN, STAGES, make_encoder, make_trainer
from conftest import changed, make_model, make_tokenizer, train_batch, weights
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from hf_unlearn.methods.align_then_unlearn.head import load_head
from hf_unlearn.methods.align_then_unlearn.stages import ALIGN, UNLEARN


RAGGED = [{"prompt": "Who is Ada?", "completion": " Ada is a spy" + " of Bob" * i} for i in range(4)]
# In a model of two layers, of which the head reads the first: what its output depends on.
BELOW = r"embed_tokens|layers\.0\."

grid = pytest.mark.parametrize("retain_loss", ["none", "nll", "kl"])
adapters = pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def build(tmp_path, encoder):
    """Makes a trainer; keyword arguments are the config's."""
    return partial(make_trainer, tmp_path / "out", encoder)


def at(trainer, step: int) -> None:
    """Puts a trainer that did not train before a step."""
    trainer.state.global_step, trainer.state.max_steps = step, trainer.args.max_steps
    trainer.create_optimizer()
    trainer.targets.prepare(trainer)


def followed(trainer, row, size=2) -> list[tuple[int, list[int]]]:
    """The tokens of a row that so many encoder tokens follow, and those, by characters."""
    tokenizer = make_tokenizer()
    encoder = AutoTokenizer.from_pretrained(trainer.args.encoder_name_or_path)
    text = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
    encoded = encoder(text, add_special_tokens=False, return_offsets_mapping=True)
    found = []
    for t in range(len(row["input_ids"])):
        read = len(tokenizer.decode(row["input_ids"][: t + 1], skip_special_tokens=True))
        ends = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        window = [token for token, (_, end) in ends if end > read][:size]
        if len(window) == size:
            found.append((t, window))
    return found


@torch.no_grad()
def predictions(trainer, model, row) -> torch.Tensor:
    """What the head says of one row alone, `[T, d]`."""
    inner = getattr(model, "get_base_model", lambda: model)().model.layers[trainer.args.layer_id]
    taken = []
    hook = inner.register_forward_hook(lambda module, args, output: taken.append(output))
    model.eval()(torch.tensor([row["input_ids"]]))
    hook.remove()
    head = trainer.rounds.head.eval()
    return head(taken[0], torch.ones(taken[0].shape[:2], dtype=torch.bool))[0].double()


@torch.no_grad()
def vector(trainer, ids: list[int]) -> torch.Tensor:
    model = AutoModel.from_pretrained(trainer.args.encoder_name_or_path).eval()
    return model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0).double()


# The objectives


@adapters
def test_alignment_equals_the_formula_on_rows_of_any_length(build, adapter):
    trainer = build(RAGGED, RETAIN, adapter, head_dropout=0.0, per_device_train_batch_size=3)
    at(trainer, 0)
    pairs = [trainer.train_dataset[position] for position in range(3)]
    cosines = []
    for row in (pair[role] for pair in pairs for role in ("forget", "retain")):
        predicted = predictions(trainer, trainer.model, row)
        cosines += [
            F.cosine_similarity(predicted[t], vector(trainer, ids), dim=0) for t, ids in followed(trainer, row)
        ]
    loss = trainer.compute_loss(trainer.model, train_batch(trainer, range(3)))
    assert loss.item() == pytest.approx(-torch.stack(cosines).mean().item(), rel=1e-4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in trainer.rounds.head.parameters())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@grid
@adapters
def test_unlearning_equals_the_formula_on_rows_of_any_length(build, retain_loss, adapter):
    trainer = build(
        RAGGED, RETAIN, adapter, retain_loss=retain_loss, per_device_train_batch_size=3, retain_weight=0.5,
        forget_weight=2.0, concept_aliases=["spy"], reference="adapter" if adapter else "live",
        concept_descriptions=["The lamp is on the table"],
    )  # fmt: skip
    at(trainer, 3)
    entered, policy = make_model(), trainer.model.eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    pairs = [trainer.train_dataset[position] for position in range(3)]
    names = AutoTokenizer.from_pretrained(trainer.args.encoder_name_or_path)
    concept = [vector(trainer, names(text)["input_ids"]) for text in ("Ada", "spy", "The lamp is on the table")]
    terms = []
    for row in (pair["forget"] for pair in pairs):
        predicted = predictions(trainer, policy, row)
        for t, _ in followed(trainer, row):
            nearest = max(F.cosine_similarity(predicted[t], c, dim=0).item() for c in concept)
            terms.append(max(0.0, nearest + 0.5))
    kept = []
    for row in (pair["retain"] for pair in pairs) if retain_loss != "none" else ():
        with torch.no_grad():
            ours, theirs = (
                model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
                for model in (policy, entered)
            )
        for t, label in enumerate(row["labels"][1:]):
            kl = (theirs[t].exp() * (theirs[t] - ours[t])).sum().item()
            kept.append(kl if retain_loss == "kl" else -ours[t, label].item())
    wanted = 2.0 * sum(terms) / len(terms) + 0.5 * (sum(kept) / len(kept) if kept else 0)
    loss = trainer.compute_loss(policy, train_batch(trainer, range(3)))
    assert loss.item() == pytest.approx(wanted, rel=2e-4)
    assert sum(terms) > 0.1
    loss.backward()
    trained = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    reached = {name for name in trained if re.search(BELOW, name)}
    assert reached
    assert (trained == reached) == (retain_loss == "none")
    assert all(parameter.grad is None for parameter in trainer.rounds.head.parameters())


def test_stopping_at_the_layer_gives_what_the_whole_model_gives(build):
    losses = []
    for fused in (None, False):
        trainer = build(RAGGED, fused_losses=fused, retain_loss="nll")
        ran = []
        trainer.model.model.layers[1].register_forward_hook(lambda *args, ran=ran: ran.append(1))
        at(trainer, 0)
        trainer.compute_loss(trainer.model, train_batch(trainer, range(2)))
        assert bool(ran) == (fused is False)
        at(trainer, 3)
        losses.append(trainer.compute_loss(trainer.model, train_batch(trainer, range(2))).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# Stages of one run


@grid
@adapters
def test_each_stage_trains_its_own_and_nothing_else(build, retain_loss, adapter):
    trainer = build(adapter=adapter, retain_loss=retain_loss)
    watched = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            watched[state.global_step] = weights(trainer.model), weights(trainer.rounds.head)

    trainer.add_callback(Watch())
    trainer.train()
    watched[trainer.args.max_steps] = weights(trainer.model), weights(trainer.rounds.head)
    pattern = "" if retain_loss != "none" else BELOW
    expected = {name for name in watched[0][0] if ("lora_" in name or not adapter) and re.search(pattern, name)}
    assert [stage.kind for stage in trainer.stages] == [ALIGN, UNLEARN] * 2
    for stage in trainer.stages:
        (model, head), (model_after, head_after) = watched[stage.start], watched[stage.stop]
        in_model, in_head = changed(model, model_after), changed(head, head_after)
        if stage.kind == ALIGN:
            assert not in_model
        else:
            # Above the layer an adapter is reached by the retain term alone, and its first gradients may round to 0.
            assert {name for name in expected if re.search(BELOW, name)} <= in_model <= expected
        assert bool(in_head) == (stage.kind == ALIGN)
    log = trainer.state.log_history
    align = [entry["align/loss"] for entry in log if "align/loss" in entry]
    hinge = [entry["forget/loss"] for entry in log if "forget/loss" in entry]
    assert len(align) == 5
    assert len(hinge) == 6
    assert align[2] < align[0]
    assert hinge[2] < hinge[0]


@grid
def test_accumulation_gives_the_update_of_one_big_batch(build, retain_loss):
    results = {}
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = build(
            retain_loss=retain_loss, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
            first_align_steps=1, unlearn_steps=1, thresholds=[-0.9], max_grad_norm=0.0, head_dropout=0.0,
        )  # fmt: skip
        before = weights(trainer.model) | weights(trainer.rounds.head)
        trainer.train()
        after = weights(trainer.model) | weights(trainer.rounds.head)
        results[size] = {name: after[name] - before[name] for name in before}
        results[f"log {size}"] = trainer.state.log_history
    assert max(update.abs().max() for update in results[8].values()) > 1e-4
    # A key's bias has no gradient but rounding, of which Adam's first step takes the sign.
    for name in (name for name in results[8] if "in_proj_bias" not in name):
        torch.testing.assert_close(results[2][name], results[8][name], rtol=1e-3, atol=2e-6)
    for small, big in zip(results["log 2"][:2], results["log 8"][:2], strict=True):
        for key in (key for key in big if "/" in key):
            assert small[key] == pytest.approx(big[key], rel=1e-4, abs=1e-6), key


# Steps 0 to 2 align, 3 to 5 unlearn, 6 and 7 align, 8 to 10 unlearn.
@pytest.mark.parametrize("saved", [2, 3, 5, 7, 10])
@pytest.mark.parametrize("mode", ["cosine", "quantile"])
def test_resume_amid_a_round_gives_the_weights_of_the_uninterrupted_run(build, tmp_path, saved, mode):
    settings = {
        "save_strategy": "steps",
        "save_steps": saved,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "retain_loss": "kl",
        "threshold_mode": mode,
        "thresholds": [0.5, 0.2] if mode == "quantile" else STAGES["thresholds"],
    }
    whole = build(**settings)
    whole.train()
    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{saved}"))
    assert resumed.state.global_step == 11
    assert not changed(weights(whole.model), weights(resumed.model))
    assert not changed(weights(whole.rounds.head), weights(resumed.rounds.head))
    assert resumed.rounds.thresholds == whole.rounds.thresholds
    for kind, optimizer in whole.staged.optimizers.items():
        ours, theirs = optimizer.state_dict(), resumed.staged.optimizers[kind].state_dict()
        assert ours["param_groups"] == theirs["param_groups"]
        steps = {float(state["step"]) for state in ours["state"].values()}
        # Adam counts its own stages' steps: it is kept from one to the next.
        assert steps == {5.0 if kind == ALIGN else 6.0}
        for number, state in ours["state"].items():
            assert all(torch.equal(state[key], theirs["state"][number][key]) for key in state)


@adapters
def test_model_and_head_are_saved(build, tmp_path, adapter):
    from peft import PeftModel

    trainer = build(adapter=adapter)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "out"
    loaded = (
        PeftModel.from_pretrained(make_model(), folder) if adapter else AutoModelForCausalLM.from_pretrained(folder)
    )
    ids = torch.tensor([[1, 44, 55, 66]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids).logits, trainer.model.eval()(ids).logits)
        assert (loaded(ids).logits - make_model()(ids).logits).abs().max() > 1e-3
    states, mask = torch.randn(1, 5, 32), torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(load_head(folder)(states, mask), trainer.rounds.head.eval()(states, mask))


def test_evaluation_during_training(build):
    trainer = build(eval_dataset={"forget": FORGET, "retain": RETAIN}, eval_strategy="steps", eval_steps=3)
    trainer.train()
    curve = [entry["eval_forget_loss"] for entry in trainer.state.log_history if "eval_forget_loss" in entry]
    # At steps 3, 6, 9 and the end; the model does not change while the head is aligned.
    with torch.no_grad():
        ids = trainer.eval_dataset["forget"]["input_ids"]
        losses = [make_model()(torch.tensor([row]), labels=torch.tensor([row])).loss for row in ids]
    assert curve[0] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    assert len(set(curve)) == 4


# Never computed twice


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(("steps", "computed"), [(6, 8 + 12), (5, 8 + 5 * 2), (3, 2 * 3 * 2)])
def test_states_are_computed_once_where_a_stage_comes_back_to_rows(build, steps, computed):
    # Two pairs a step; 8 forget and 12 retain rows.
    trainer = build(first_align_steps=steps, align_steps=1, unlearn_steps=1, per_device_eval_batch_size=32)
    seen = []
    trainer.model.model.layers[0].register_forward_hook(
        lambda module, args, output: seen.append((trainer.state.global_step, output.shape[:2]))
    )
    trainer.train()
    # Rows have 16 tokens; what else runs before the first step are a few tokens that try the path.
    assert sum(shape[0] for step, shape in seen if step < steps and shape[1] > 10) == computed


def test_kept_states_train_the_same_head(build, monkeypatch):
    heads = []
    for kept in (True, False):
        trainer = build(RAGGED, first_align_steps=8)
        if not kept:
            monkeypatch.setattr(type(trainer.rounds.states), "fill", lambda *args: None)
        trainer.train()
        heads.append(weights(trainer.rounds.head))
    for name in heads[0]:
        torch.testing.assert_close(heads[0][name], heads[1][name], rtol=1e-3, atol=1e-5)


def test_each_distinct_window_is_encoded_once_and_kept(build, monkeypatch, tmp_path):
    from hf_unlearn.methods.align_then_unlearn.encoder import TextEncoder

    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    encoded = []
    real = TextEncoder.embed_windows
    monkeypatch.setattr(
        TextEncoder, "embed_windows", lambda self, windows, **kw: encoded.append(windows) or real(self, windows, **kw)
    )
    trainer = build(RAGGED)
    at(trainer, 0)
    assert sum(map(len, encoded)) == len(trainer.targets.windows.distinct) == len(torch.cat(encoded).unique(dim=0))
    assert trainer.targets.encoder is None
    again = build(RAGGED)
    at(again, 0)
    assert len(encoded) == 1
    other = build(RAGGED, encoder_pooling="first")
    at(other, 0)
    assert len(encoded) == 2


def test_quantiles_are_of_what_the_head_finds(build):
    trainer = build(RAGGED, thresholds=[0.75, 0.25], threshold_mode="quantile")
    trainer.train()
    assert len(trainer.rounds.thresholds) == 2
    last = [entry for entry in trainer.state.log_history if "forget/active" in entry]
    # A quarter of the tokens is above the first threshold, three quarters above the second.
    fresh = build(RAGGED, thresholds=[0.75], threshold_mode="quantile", per_device_train_batch_size=4)
    at(fresh, 3)
    fresh.compute_loss(fresh.model, train_batch(fresh, range(4)))
    active = fresh.meters.last("forget/active", fresh.accelerator)
    assert active == pytest.approx(0.25, abs=0.06)
    assert last


def test_a_quantile_that_leaves_nothing_to_push_is_told(build, caplog):
    build(RAGGED, thresholds=[1.0, 0.5], threshold_mode="quantile").train()
    [record] = [record for record in caplog.records if "next to nothing" in record.message]
    assert "The threshold 1, a quantile, leaves 0 % of the forget rows' tokens" in record.message


@pytest.mark.parametrize("mode", ["quantile", "cosine"])
def test_a_second_run_of_a_trainer_has_its_own_thresholds(build, mode):
    trainer = build(RAGGED, thresholds=[0.75, 0.25], threshold_mode=mode)
    trainer.train()
    first = list(trainer.rounds.thresholds)
    kinds = []
    enter = trainer.rounds.enter
    trainer.rounds.enter = lambda stage, model: (enter(stage, model), kinds.append(stage.kind))
    trainer.train()
    # The model has forgotten since, and the head has learned: other cosines are large.
    assert (trainer.rounds.thresholds == first) == (mode == "cosine")
    assert len(trainer.rounds.thresholds) == 2
    assert kinds == [ALIGN] * 3 + [UNLEARN] * 3 + [ALIGN] * 2 + [UNLEARN] * 3


def test_the_gradient_norm_is_that_of_what_trains(build):
    trainer = build(head_dropout=0.0, per_device_train_batch_size=8)
    at(trainer, 0)
    trainer.compute_loss(trainer.model, train_batch(trainer, range(8))).backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in trainer.rounds.head.parameters()]).norm().item()
    trainer = build(head_dropout=0.0, per_device_train_batch_size=8)
    trainer.train()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(norms) == 11
    assert norms[0] == pytest.approx(wanted, rel=1e-3)
    assert min(norms) > 0
    assert len(set(norms)) == 11


def test_stages_are_entered_where_an_add_on_owns_the_backward_pass(build):
    trainer = build(retain_loss="nll", grad_ortho="project")
    stages = []
    enter = trainer.rounds.enter

    def entering(stage, model):
        enter(stage, model)
        stages.append((stage.kind, trainer.staged.active))

    trainer.rounds.enter = entering
    trainer.train()
    assert {kind for kind, _ in stages} == {ALIGN, UNLEARN}
    assert all(kind == active for kind, active in stages)
    assert len(trainer.rounds.thresholds) == len({s.round for s in trainer.stages})


def test_unlearning_stages_go_under_a_perturbation_of_forget_rows(build):
    settings = {"retain_loss": "nll", "max_steps": 10}
    trainer, plain = build(lat_epsilon=0.5, lat_layers=[0], lat_steps=2, **settings), build(**settings)
    for found in (trainer, plain):
        found.train()
    logs = [(entry, other) for entry, other in zip(trainer.state.log_history, plain.state.log_history, strict=True)]
    unlearning = [pair for pair in logs if "forget/cosine" in pair[0]]
    assert all(("lat/nll" in entry) == ("forget/cosine" in entry) for entry, _ in logs)
    entry, other = unlearning[0]
    assert entry["lat/elicited_nll"] < entry["lat/nll"]
    assert entry["forget/cosine"] != other["forget/cosine"]
    assert entry["retain/nll"] == other["retain/nll"]
