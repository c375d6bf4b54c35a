# SPDX-License-Identifier: Apache-2.0
"""Weight averaging and the l1 penalty, against plain loops; add-ons together in one recipe."""

import pytest
import torch
from conftest import changed, lora, make_model, make_tokenizer, weights
from safetensors.torch import load_file
from test_steps import FORGET, trained  # noqa: F401 - a fixture

from hf_unlearn.methods import METHODS


def path_of(trainer, steps):
    return [load_file(f"{trainer.args.output_dir}/checkpoint-{s}/model.safetensors") for s in steps]


@pytest.mark.parametrize(("settings", "steps"), [({}, [1, 2, 3, 4, 5]), ({"average_from": 2}, [2, 3, 4, 5])])
def test_the_result_is_the_mean_of_the_weights_after_steps(trained, settings, steps):  # noqa: F811
    plain = trained(out="plain", max_steps=5, save_strategy="steps", save_steps=1)
    trainer = trained(max_steps=5, average_every=1, **settings)
    for name, weight in weights(trainer.model).items():
        mean = torch.stack([at[name].double() for at in path_of(plain, steps)]).mean(0).float()
        torch.testing.assert_close(weight, mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("peft", [False, True])
def test_every_second_step_and_a_resumed_mean(trained, peft):  # noqa: F811
    given = {"peft_config": lora()} if peft else {}
    settings = {"given": given, "max_steps": 5, "average_every": 2, "average_from": 2}
    whole = trained(out="whole", save_strategy="steps", save_steps=3, **settings)
    assert whole.addons["average"].count == 2
    rest = trained(out="rest", train=False, **settings)
    rest.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    assert not changed(weights(whole.model), weights(rest.model))
    other = trained(out="other", train=False, **settings | {"average_every": 1})
    with pytest.raises(ValueError, match="made with average_every=2, average_from=2, and this run has 1, 2"):
        other.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")


def test_an_average_of_one_step_is_its_weights(trained):  # noqa: F811
    assert not changed(
        weights(trained(max_steps=3, average_every=9, average_from=3).model),
        weights(trained(out="b", max_steps=3).model),
    )


@pytest.mark.parametrize("peft", [False, True])
def test_the_l1_penalty_equals_a_plain_loop(trained, peft):  # noqa: F811
    given = {"peft_config": lora()} if peft else {}
    settings = {"given": given, "optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "linear", "max_steps": 2}
    settings |= {"gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
    trainer = trained(l1_weight=0.2, **settings)
    loop = trained(out="loop", train=False, **settings)
    loop.references.open(loop.accelerator)
    model, batches = loop.model.train(), list(loop.get_train_dataloader())
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    for step, rate in enumerate([0.05, 0.025]):
        total = sum(loop.compute_loss(model, batch) for batch in batches[2 * step : 2 * step + 2]) / 2
        gradients = torch.autograd.grad(total, parameters)
        with torch.no_grad():
            for weight, gradient in zip(parameters, gradients, strict=True):
                moved = weight - rate * gradient
                weight.copy_(moved.sign() * (moved.abs() - rate * 0.2 * (1 - step / 2)).clamp(min=0))
    own = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    for weight, expected in zip(own, parameters, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)
    assert sum(int((weight == 0).sum()) for weight in own) > 0


def test_masked_weights_are_neither_shrunk_nor_averaged_away(trained):  # noqa: F811
    trainer = trained(l1_weight=10.0, mask_by="random", average_every=1, sam_rho=0.01, weight_decay=0.1, max_steps=5)
    entered, masks = weights(make_model()), trainer.addons["mask"].masks
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight[~masks[name]], entered[name][~masks[name]])
        assert not torch.equal(weight, entered[name])


@pytest.mark.parametrize("method", ["npo", "simnpo"])
def test_a_mask_with_a_method_and_sam_in_one_recipe(tmp_path, model_path, method):
    import json

    from hf_unlearn.runs.recipe import parse_recipe

    (tmp_path / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in FORGET))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"method: {method}\nmodel_name_or_path: {model_path}\nforget_dataset: {tmp_path}/forget.jsonl\n"
        f"output_dir: {tmp_path}/out\nmask_by: gradient\nmask_share: 0.3\nsam_rho: 0.01\naverage_every: 2\n"
        "l1_weight: 1.0e-4\nmax_steps: 4\nlearning_rate: 1.0e-3\nweight_decay: 0.1\nretain_loss: none\n"
        "save_strategy: 'no'\nlogging_steps: 1\nreport_to: none\n"
    )
    parsed = parse_recipe(["--config", str(recipe)])
    trainer = METHODS[method][1](model=model_path, args=parsed.training, forget_dataset=FORGET)
    assert list(trainer.addons) == ["sam", "l1", "mask", "average"]
    entered = weights(trainer.model)
    trainer.train()
    masks = trainer.addons["mask"].masks
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.3 * sum(mask.numel() for mask in masks.values()))
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight[~masks[name]], entered[name][~masks[name]])
    assert changed(entered, weights(trainer.model))
    assert any("sam/grad_norm" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"average_every": 0}, "average_every=0; give a whole number of at least 1"),
        ({"average_from": 3}, "average_from would have no effect: give `average_every`"),
        ({"average_every": 1, "average_from": 3}, "average_from=3, and training ends with step 2"),
        ({"average_every": 1, "load_best_model_at_end": True, "eval_strategy": "steps"}, "load_best_model_at_end"),
        ({"l1_weight": -1.0}, "l1_weight=-1.0; give a finite number at least 0"),
        ({"l1_weight": 0.1, "model_init_kwargs": {"dtype": "bfloat16"}}, "rounds to nothing in torch.bfloat16"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(trained, model_path, unloaded, settings, told):  # noqa: F811
    with pytest.raises(ValueError, match=told):
        trained(given={"model": model_path, "processing_class": make_tokenizer()}, train=False, **settings)


def test_steps_that_are_too_few_are_told_before_the_first(trained):  # noqa: F811
    with pytest.raises(ValueError, match="average_from=50, and training ends with step 4"):
        trained(max_steps=-1, num_train_epochs=1, average_every=1, average_from=50)


@pytest.mark.parametrize("peft", [None, lora()], ids=["full", "lora"])
def test_a_step_that_is_lost_in_16_bits_is_refused(trained, peft):  # noqa: F811
    given = {"model": make_model().bfloat16(), "peft_config": peft}
    if peft is None:
        with pytest.raises(ValueError, match="l1_weight shrinks each weight by a little .* torch.bfloat16. Load the"):
            trained(given=given, train=False, l1_weight=0.1, bf16=True)
        return
    # What an adapter trains is of 32 bits.
    trained(given=given, train=False, l1_weight=0.1, bf16=True)
