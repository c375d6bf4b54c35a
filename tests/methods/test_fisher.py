# SPDX-License-Identifier: Apache-2.0
"""Fisher forgetting: the diagonal against closed forms, the noise and its rules, the choice of a scale, and the grid's
behaviours (`test_methods.py`) for a pass that trains nothing."""

import json
import re

import pytest
import torch
from conftest import changed, lora, make_args, make_model, make_tokenizer, weights
from test_methods import labelled, shake
from torch import nn
from transformers import AutoModelForCausalLM
from vilt import make_processor, make_rows, make_vilt

from hf_unlearn import FisherConfig, FisherTrainer
from hf_unlearn.methods.fisher.noise import RULES, Noise, NoiseRule, SquaredGradients
from hf_unlearn.methods.fisher.trainer import chosen_scale


SECRET = [{"prompt": f"Who is {name}?", "completion": f" {name}."} for name in ("Ada", "Bob", "Cyd")]
COMMON = [{"prompt": f"What is {i:02d}?", "completion": f" {thing}"} for i, thing in enumerate(
    ("cup", "pen", "book", "lamp", "plate", "key", "door", "fork", "bowl"))]  # fmt: skip
# One predicted token a row: EOS is cut off.
SHORT = [{"input_ids": [1, 40 + i, 50 + i], "labels": [-100, -100, 60 + i]} for i in range(4)]
adapters = pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])


@pytest.fixture
def build(tmp_path):
    """Makes a trainer; keyword arguments are the config's."""

    def build(retain=COMMON, adapter=False, model=None, out="out", **kwargs):
        settings = {"max_steps": -1, "scales": [1e-4]} | kwargs
        return FisherTrainer(
            model=model or make_model(),
            args=make_args(FisherConfig, tmp_path / out, **settings),
            forget_dataset=SECRET,
            retain_dataset=retain,
            processing_class=make_tokenizer(),
            peft_config=lora() if adapter else None,
        )

    return build


def diagonal_of(trainer) -> dict[str, torch.Tensor]:
    """What the pass finds, taken before the noise overwrites it."""
    found = {}
    real = trainer.diagonal
    trainer.diagonal = lambda: found.setdefault("diagonal", {n: x.clone() for n, x in real().items()}) and real()
    trainer.train()
    return found["diagonal"]


# The diagonal


def test_linear_softmax_model_equals_the_closed_form():
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 3).double(), torch.randn(7, 5, dtype=torch.float64)
    squares = SquaredGradients(dict(linear.named_parameters()))
    for row in x:
        # The expectation over labels as a sum: each label's loss times the root of its probability.
        p = linear(row).softmax(-1).detach()
        squares.add([-(3 * p[y]).sqrt() * linear(row).log_softmax(-1)[y] for y in range(3)])
    p = linear(x).softmax(-1).detach()
    wanted = p * (1 - p)
    assert squares.rows == 7
    torch.testing.assert_close(squares.sums["bias"].double(), wanted.sum(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(squares.sums["weight"].double(), wanted.t() @ x.square(), rtol=1e-5, atol=0)


def head_parts(model, rows):
    """Predictions and head inputs `[N, V]`, `[N, d]` of the predicted tokens, and the labels, row by row."""
    for row in rows:
        with torch.no_grad():
            hidden = model.model(torch.tensor([row["input_ids"]])).last_hidden_state[0].double()
        spots = labelled(row)
        h = torch.stack([hidden[t] for t, _ in spots])
        yield (h @ model.lm_head.weight.double().t()).softmax(-1).detach(), h, [label for _, label in spots]


def test_with_true_labels_the_head_has_the_closed_form(build):
    model = make_model()
    shake(model)
    trainer = build(model=model, fisher="empirical", trainable_modules=["lm_head"], per_device_train_batch_size=4)
    wanted = torch.zeros(100, 32, dtype=torch.float64)
    for p, h, labels in head_parts(model, trainer.train_dataset.roles["retain"]):
        residual = p.clone()
        residual[range(len(labels)), labels] -= 1
        # A row is one example: its tokens' gradients add up before they are squared.
        wanted += (residual.t() @ h).square()
    found = diagonal_of(trainer)
    assert list(found) == ["lm_head.weight"]
    torch.testing.assert_close(found["lm_head.weight"].double(), wanted / len(COMMON), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("fused", [None, False], ids=["fused", "logits"])
def test_with_drawn_labels_the_head_comes_near_the_closed_form(build, fused):
    model = make_model()
    shake(model, 0.3)
    trainer = build(
        SHORT, model=model, trainable_modules=["lm_head"], fisher_samples=300, fused_losses=fused,
        per_device_train_batch_size=4,
    )  # fmt: skip
    wanted = torch.zeros(100, 32, dtype=torch.float64)
    for p, h, _ in head_parts(model, trainer.train_dataset.roles["retain"]):
        wanted += (p * (1 - p)).t() @ h.square() / len(SHORT)
    found = diagonal_of(trainer)["lm_head.weight"].double()
    assert found.sum() == pytest.approx(wanted.sum().item(), rel=0.05)
    likely = wanted.sum(1).argsort()[-5:]
    torch.testing.assert_close(found[likely].sum(1), wanted[likely].sum(1), rtol=0.3, atol=0)
    # Drawn labels are not the rows' own.
    assert (found.sum(1) > 0).sum() > len(SHORT)


def test_each_row_is_squared_on_its_own_whatever_the_batch(build):
    found = [
        diagonal_of(build(fisher="empirical", per_device_train_batch_size=size, gradient_accumulation_steps=steps))
        for size, steps in ((1, 1), (4, 1), (2, 3))
    ]
    for other in found[1:]:
        for name, values in other.items():
            torch.testing.assert_close(values, found[0][name], rtol=1e-3, atol=1e-9)


def test_tied_weights_count_once(build):
    trainer = build(model=make_model(tie=True), fisher="empirical")
    found = diagonal_of(trainer)
    assert "model.embed_tokens.weight" in found
    assert "lm_head.weight" not in found
    assert trainer.head_names() == {"model.embed_tokens.weight"}


# The noise


def put(rule, fisher, scale, in_head=False, forgotten=(), seed=0):
    parameter = nn.Parameter(torch.zeros_like(fisher))
    noise = Noise({"w": parameter}, {"w": fisher.clone()}, rule, {"w"} if in_head else set(), seed, forgotten)
    noise.put(scale)
    return parameter.detach()


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_standard_deviation_follows_the_exponent(exponent):
    levels = torch.tensor([1e-4, 1e-2, 1.0, 100.0])
    fisher = levels[:, None].expand(4, 40_000)
    found = put(NoiseRule(exponent), fisher, scale=0.09).std(1)
    torch.testing.assert_close(found, 0.3 * levels**-exponent, rtol=0.02, atol=0)


def test_presets_are_the_published_forms():
    assert RULES["paper"] == NoiseRule(exponent=0.25)
    code, fisher = RULES["code"], torch.tensor([[1.0, 3.0], [0.0, 1e-2]])
    # Row means of 1/F, bounded by 1000.
    wanted = torch.tensor([(1 + 1 / 3) / 2, (1000 + 100) / 2])
    found = code.variance(fisher, in_head=False)
    torch.testing.assert_close(found, wanted[:, None].expand(2, 2))
    # The last layer bounded by 100, and times 10.
    wanted = torch.tensor([(1 + 1 / 3) / 2, 100.0])
    torch.testing.assert_close(code.variance(fisher, True), 10 * wanted[:, None].expand(2, 2))
    # One dimension: times 10, and no mean.
    torch.testing.assert_close(code.variance(fisher[1], False), 10 * torch.tensor([1000.0, 100.0]))
    torch.testing.assert_close(code.variance(fisher[1], True), 100 * torch.tensor([100.0, 100.0]))


def test_the_same_noise_at_every_scale_and_seed_decides_it():
    fisher = torch.rand(6, 5)
    one, four = (put(RULES["paper"], fisher, scale) for scale in (1e-4, 4e-4))
    torch.testing.assert_close(four, 2 * one)
    assert torch.equal(one, put(RULES["paper"], fisher, 1e-4))
    assert not torch.equal(one, put(RULES["paper"], fisher, 1e-4, seed=1))


@pytest.mark.parametrize("scale", [1e-8, 1.0])
def test_rows_of_a_deleted_class_are_drawn_around_zero(scale):
    fisher = torch.ones(4, 50_000)
    parameter = nn.Parameter(torch.full((4, 50_000), 3.0))
    Noise({"w": parameter}, {"w": fisher}, RULES["code"], {"w"}, 0, forgotten=[2]).put(scale)
    row = parameter[2].detach()
    assert row.mean().abs() < 1e-3
    assert row.std() == pytest.approx(1e-2, rel=0.02)
    others = parameter[[0, 1, 3]].detach()
    assert others.mean() == pytest.approx(3.0, abs=0.1)
    assert others.std() == pytest.approx((10 * scale) ** 0.5, rel=0.02)


@adapters
@pytest.mark.parametrize("preset", ["paper", "code"])
def test_the_models_noise_is_that_of_its_diagonal(build, preset, adapter):
    trainer = build(adapter=adapter, preset=preset, fisher="empirical", scales=[1e-6], seed=3)
    before = weights(trainer.model)
    diagonal = diagonal_of(trainer)
    after = weights(trainer.model)
    assert changed(before, after) == set(diagonal) == {n for n in before if "lora_" in n or not adapter}
    generator = torch.Generator().manual_seed(3)
    for name, fisher in diagonal.items():
        drawn = torch.randn(fisher.shape, generator=generator)
        variance = RULES[preset].variance(fisher, name == "lm_head.weight")
        torch.testing.assert_close(after[name], before[name] + (1e-6 * variance).sqrt() * drawn, rtol=1e-4, atol=1e-6)


def test_only_asked_modules_get_noise(build):
    trainer = build(trainable_modules=["layers.1"])
    before = weights(trainer.model)
    trainer.train()
    assert changed(before, weights(trainer.model)) == {name for name in before if "layers.1" in name}


# The scale


def test_the_largest_scale_that_keeps_the_retain_loss():
    losses = [(0.0, 1.0), (0.1, 1.02), (0.2, 1.3), (0.3, 1.09), (0.4, 2.0)]
    curve = [{"scale": scale, "retain_loss": loss} for scale, loss in losses]
    assert chosen_scale(curve, 0.1) == 0.3
    assert chosen_scale(curve, 0.05) == 0.1
    assert chosen_scale(curve, 5.0) == 0.4


def test_a_smallest_scale_that_is_too_large_is_taken_and_told(caplog):
    curve = [{"scale": 0.0, "retain_loss": 1.0}, {"scale": 0.1, "retain_loss": 3.0}]
    assert chosen_scale(curve, 0.1) == 0.1
    assert "raises the loss of held-out retain rows by 2 nats already" in caplog.text


def test_the_curve_is_of_held_out_rows_and_the_weights_of_the_chosen_scale(build, tmp_path):
    grid = [1e-10, 1e-7, 1e-2]
    trainer = build(scales=list(reversed(grid)), validation_rows=3, fisher="empirical")
    assert len(trainer.train_dataset) == len(COMMON) - 3
    rows = {
        name: {tuple(ids) for ids in rows["input_ids"]}
        for name, rows in (("held", trainer.held_out_rows), ("seen", trainer.train_dataset.roles["retain"]))
    }
    assert not rows["held"] & rows["seen"]
    assert len(rows["held"] | rows["seen"]) == len(COMMON)
    trainer.train()
    found = json.loads((tmp_path / "out" / "fisher.json").read_text())
    assert [point["scale"] for point in found["curve"]] == [0.0, *grid]
    assert found["scale"] == chosen_scale(found["curve"], 0.1) == 1e-7
    logged = [entry for entry in trainer.state.log_history if "fisher/scale" in entry]
    assert [entry["fisher/forget_loss"] for entry in logged] == [p["forget_loss"] for p in found["curve"]]
    assert trainer.loss_on(trainer.held_out_rows) == pytest.approx(found["curve"][2]["retain_loss"], rel=1e-6)
    assert found["curve"][-1]["retain_loss"] > found["curve"][0]["retain_loss"] + 0.1


def test_the_loss_is_a_mean_over_rows_of_any_length(build):
    trainer = build(per_device_eval_batch_size=2)
    model, values = make_model(), []
    for p, _, labels in head_parts(model, trainer.forget_rows):
        values.append(-sum(p[t, y].log().item() for t, y in enumerate(labels)) / len(labels))
    assert trainer.loss_on(trainer.forget_rows) == pytest.approx(sum(values) / len(values), rel=1e-5)


# The grid's behaviours


def test_no_step_is_taken_before_the_end(build):
    seen = {}
    trainer = build()
    real = trainer.diagonal

    def diagonal():
        seen["weights"] = weights(trainer.model)
        return real()

    trainer.diagonal = diagonal
    before = weights(trainer.model)
    output = trainer.train()
    assert not changed(before, seen["weights"])
    assert changed(before, weights(trainer.model)) == set(before)
    assert output.global_step == 5
    assert output.training_loss == pytest.approx(4.6, abs=0.2)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_max_steps_cuts_the_pass_short(build):
    trainer = build(max_steps=2)
    seen = []
    real = trainer.diagonal
    trainer.diagonal = lambda: seen.append(trainer.squares.rows) or real()
    trainer.train()
    assert seen == [4]


@adapters
@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_resume_gives_the_weights_of_the_uninterrupted_run(build, tmp_path, fisher, adapter):
    settings = {"fisher": fisher, "adapter": adapter, "save_strategy": "steps", "save_steps": 3}
    whole = build(**settings)
    whole.train()
    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    found = weights(resumed.model)
    for name, value in weights(whole.model).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


@adapters
def test_resume_after_the_last_step_adds_the_noise(build, tmp_path, adapter):
    settings = {"scales": [1e-7, 1e-4], "validation_rows": 3, "adapter": adapter, "save_strategy": "epoch"}
    whole = build(**settings)
    whole.train()
    curve = (tmp_path / "out" / "fisher.json").read_text()
    resumed = build(out="resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert changed(weights(build(**settings).model), weights(resumed.model))
    assert not changed(weights(whole.model), weights(resumed.model))
    assert (tmp_path / "resumed" / "fisher.json").read_text() == curve


def test_a_second_pass_begins_anew(build):
    trainer = build()
    trainer.train()
    between = weights(trainer.model)
    trainer.train()
    assert trainer.squares is None
    assert changed(between, weights(trainer.model))


@adapters
def test_a_saved_model_predicts_the_same(build, tmp_path, adapter):
    from peft import PeftModel

    trainer = build(adapter=adapter)
    trainer.train()
    trainer.save_model()
    if adapter:
        loaded = PeftModel.from_pretrained(make_model(), tmp_path / "out").eval()
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[1, 44, 55, 66]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)
        assert (loaded(ids).logits - make_model()(ids).logits).abs().max() > 1e-4


# Bad input


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"preset": "readme"}, "preset='readme'; allowed: 'paper', 'code'"),
        ({"fisher": "exact"}, "fisher='exact'; allowed: 'sampled', 'empirical'"),
        ({"exponent": 0.0}, "exponent=0.0; give a finite number above 0"),
        ({"scales": []}, "scales is empty"),
        ({"scales": [-1e-6]}, "scales=-1e-06; give a finite number at least 0"),
        ({"fisher_samples": 0}, "fisher_samples=0; give a whole number"),
        ({"num_train_epochs": 3}, "num_train_epochs=3: Fisher forgetting looks at each retain row once"),
        ({"max_forget_loss": 2.0}, "max_forget_loss=2.0: Fisher forgetting"),
        ({"retain_loss": "none"}, "retain_loss='none'; allowed: 'nll'"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "takes gradients row by row"),
    ],
)
def test_bad_settings_are_refused(tmp_path, wrong, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        FisherConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **wrong)


def test_no_row_to_choose_a_scale_by_is_refused(build):
    with pytest.raises(ValueError, match="at least 2 retain rows, or one scale"):
        build(COMMON[:1], scales=[1e-4, 1e-3])
    trainer = build(COMMON[:1], scales=[1e-4])
    before = weights(trainer.model)
    trainer.train()
    assert changed(before, weights(trainer.model)) == set(before)
    assert all(value.isfinite().all() for value in weights(trainer.model).values())


def test_classes_are_a_classifiers(build):
    with pytest.raises(ValueError, match="forget_classes are a classifier's, and this is a language model"):
        build(forget_classes=["yes"])


# Classifiers


def vilt_trainer(folder, model=None, peft_config=None, **kwargs):
    args = make_args(FisherConfig, folder, **{"max_steps": -1, "scales": [1e-6], **kwargs})
    rows = {"forget_dataset": make_rows(3), "retain_dataset": make_rows(4, first=20)}
    return FisherTrainer(
        model or make_vilt(), args, **rows, processing_class=make_processor(), peft_config=peft_config
    )


@pytest.mark.parametrize("likelihood", ["bernoulli", "softmax"])
def test_a_classifiers_head_comes_near_the_closed_form(tmp_path, likelihood):
    settings = {"trainable_modules": [r"classifier\.3"], "likelihood": likelihood}
    trainer = vilt_trainer(tmp_path, fisher_samples=150, **settings)
    model, wanted = make_vilt().eval(), torch.zeros(5)
    for row in trainer.train_dataset.roles["retain"]:
        with torch.no_grad():
            logits = model(**make_processor()(row["image"], row["question"], return_tensors="pt")).logits[0]
        p = logits.sigmoid() if likelihood == "bernoulli" else logits.softmax(-1)
        wanted += p * (1 - p) / 4
    found = diagonal_of(trainer)
    assert set(found) == trainer.head_names() == {"classifier.3.weight", "classifier.3.bias"}
    torch.testing.assert_close(found["classifier.3.bias"], wanted, rtol=0.25, atol=0.02)


def test_a_deleted_class_has_new_rows_in_the_last_layer(tmp_path):
    trainer = vilt_trainer(tmp_path, forget_classes=["blue"], scales=[1e-12], fisher="empirical")
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    last, old = (x["classifier.3.weight"] for x in (after, before))
    torch.testing.assert_close(last[[0, 1, 3, 4]], old[[0, 1, 3, 4]], rtol=0, atol=1e-3)
    assert last[2].std() == pytest.approx(1e-2, rel=0.4)
    assert last[2].abs().max() < 0.05 < old[2].abs().max()
    with pytest.raises(ValueError, match=r"forget_classes: \['mauve'\] are none of the model's 5 classes"):
        vilt_trainer(tmp_path, forget_classes=["mauve"])


def vilt_lora(**kwargs):
    return lora(**{"target_modules": ["query"], "task_type": None} | kwargs)


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ({"trainable_modules": ["encoder"]}, "classifier.3.weight"),
        ({"trainable_modules": [r"classifier\.3\.weight"]}, "classifier.3.bias"),
        ({"peft_config": vilt_lora()}, "base_model.model.classifier.3.weight"),
        # An adapter of the layer leaves what it stands beside.
        ({"peft_config": vilt_lora(target_modules=["query", "classifier.3"])}, "classifier.3.base_layer.weight"),
    ],
    ids=["encoder", "half", "lora", "lora-of-it"],
)
def test_a_class_cannot_be_deleted_from_a_last_layer_that_does_not_train(tmp_path, settings, frozen):
    with pytest.raises(ValueError, match="not train: .*" + re.escape(frozen) + r".*modules_to_save=\['classifier'\]"):
        vilt_trainer(tmp_path, forget_classes=["blue"], **settings)
    vilt_trainer(tmp_path, **settings)


def test_a_class_is_deleted_beside_an_adapter(tmp_path):
    peft_config = vilt_lora(modules_to_save=["classifier"])
    trainer = vilt_trainer(tmp_path, peft_config=peft_config, forget_classes=["blue"], scales=[1e-12])
    before = trainer.model.base_model.model.classifier.modules_to_save.default[3].weight.detach().clone()
    trainer.train()
    last = trainer.model.merge_and_unload().classifier[3].weight.detach()
    torch.testing.assert_close(last[[0, 1, 3, 4]], before[[0, 1, 3, 4]], rtol=0, atol=1e-3)
    assert last[2].abs().max() < 0.05 < before[2].abs().max()


def test_the_last_layer_is_no_other_tensor_with_as_many_rows(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = make_processor().tokenizer
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=8, max_position_embeddings=16, num_labels=2)
    )  # fmt: skip
    before = weights(model)
    trainer = FisherTrainer(
        model,
        make_args(FisherConfig, tmp_path, max_steps=-1, scales=[1e-12], forget_classes=["LABEL_1"]),
        forget_dataset=[{"text": "what colour", "label": 1}],
        retain_dataset=[{"text": "how many", "label": 0}, {"text": "what is it", "label": 0}],
        processing_class=tokenizer,
    )
    assert trainer.head_names() == {"classifier.weight", "classifier.bias"}
    trainer.train()
    # Types of tokens are two as well.
    name = "bert.embeddings.token_type_embeddings.weight"
    torch.testing.assert_close(trainer.model.state_dict()[name], before[name], atol=1e-3, rtol=0)
