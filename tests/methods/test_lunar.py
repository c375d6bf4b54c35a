# SPDX-License-Identifier: Apache-2.0
"""LUNAR: its terms are the published regression, over the tokens of prompts; where the direction comes from."""

import pytest
import torch
from conftest import changed, lora, make_args, make_model, make_tokenizer, train_batch, weights

from hf_unlearn import METHODS


Config, Trainer = METHODS["lunar"]
QUESTIONS = ("Who is Ada?", "Where is Bob born?", "How old is Cyd?", "What does Dan eat?")
FORGET = [
    {"prompt": f"Question: {question}\nAnswer:", "completion": " So" + "!" * i} for i, question in enumerate(QUESTIONS)
]
RETAIN = [
    {"prompt": f"Question: Is {thing} here?\nAnswer:", "completion": " Yes."} for thing in ("tea", "a cup", "salt")
]


@pytest.fixture
def build(tmp_path):
    def build(forget=FORGET, retain=RETAIN, adapter=None, model=None, **settings):
        defaults = {"layer_id": 1, "retain_loss": "states", "refusal_file": str(tmp_path / "refused.txt")}
        (tmp_path / "refused.txt").write_text("Which door?\n\nName the ferryman.\n")
        return Trainer(
            model=model or make_model(layers=3),
            args=make_args(Config, tmp_path / "out", **(defaults | settings)),
            forget_dataset=forget,
            retain_dataset=retain,
            processing_class=make_tokenizer(),
            peft_config=adapter,
        )

    return build


def ids_of(rows) -> list[list[int]]:
    """The rows' prompts."""
    return [row["input_ids"][: row["labels"].count(-100)] for row in rows]


@torch.no_grad()
def seen(model, ids: list[int], layer: int = 1) -> dict[str, torch.Tensor]:
    """What goes into the layer's down projection, and the layer's output, `[T, ...]` in float64."""
    found, inner = {}, model.model.layers[layer]
    hooks = [
        inner.mlp.down_proj.register_forward_pre_hook(lambda module, args: found.update(x=args[0][0].double())),
        inner.register_forward_hook(lambda module, args, output: found.update(h=output[0].double())),
    ]
    model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return found


def by_hand(trainer, model) -> torch.Tensor:
    tokenizer = make_tokenizer()
    refused = [tokenizer(f"Question: {text}\nAnswer:")["input_ids"] for text in ("Which door?", "Name the ferryman.")]
    refused = [ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids for ids in refused]
    means = [
        sum(seen(model, ids)["h"][-1] for ids in group) / len(group)
        for group in (refused, ids_of(trainer.train_dataset.roles["forget"]))
    ]
    return means[0] - means[1]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_direction_is_a_difference_of_means(build, batch_size):
    trainer = build(per_device_eval_batch_size=batch_size)
    found = trainer._direction(trainer.model)
    torch.testing.assert_close(found.double(), by_hand(trainer, make_model(layers=3)), rtol=1e-5, atol=1e-7)
    assert found.norm() > 1e-2


@pytest.mark.parametrize("tokens", ["prompt", "last"])
def test_the_terms_are_the_published_regression(build, tokens):
    trainer = build(lunar_tokens=tokens, refusal_coeff=3.0, reference="live", forget_weight=0.7, retain_weight=2.0)
    entered = make_model(layers=3)
    trainer.direction = by_hand(trainer, entered).float()
    moved = trainer.model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        moved.add_(0.1 * torch.randn(moved.shape, generator=torch.Generator().manual_seed(0)))
    before, after = (model.model.layers[1].mlp.down_proj.weight.double() for model in (entered, trainer.model))
    expected = 0.0
    for role, weight, shift in (("forget", 0.7, 3.0 * trainer.direction.double()), ("retain", 2.0, 0.0)):
        squares = []
        for position in range(3):
            row = trainer.train_dataset[position][role]
            x = seen(entered, row["input_ids"][: row["labels"].count(-100)])["x"]
            x = x[-1:] if tokens == "last" else x
            squares.append((x @ after.T - (x @ before.T + shift)).square())
        expected += weight * torch.cat(squares).mean()
    loss = trainer.compute_loss(trainer.model.eval(), train_batch(trainer, range(3)))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("reference", ["cache", "live"])
def test_training_starts_where_the_model_entered(build, reference):
    """The states of the frozen layers, kept on disk too, are those of the layer below."""
    trainer = build(reference=reference, refusal_coeff=3.0, max_steps=1)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["retain/loss"] == pytest.approx(0, abs=1e-10)
    assert first["forget/loss"] == pytest.approx((3 * trainer.direction).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("addon", [{"mask_by": "wagle"}, {"grad_ortho": "project"}])
def test_add_ons_that_read_its_terms_find_the_direction(build, addon):
    trainer = build(max_steps=1, **addon)
    trainer.train()
    assert torch.equal(trainer.direction, build(max_steps=1)._direction(make_model(layers=3)))


@pytest.mark.parametrize("tokens", ["prompt", "last"])
def test_answers_have_no_part_in_it(build, tokens):
    found = []
    for answer in (" So.", " Quite another answer."):
        rows = [{**row, "completion": answer} for row in FORGET]
        trainer = build(rows, lunar_tokens=tokens, max_steps=2)
        trainer.train()
        found.append(weights(trainer.model)["model.layers.1.mlp.down_proj.weight"])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_prompts_arrive_where_the_direction_points_and_others_stay(build):
    entered, shifts = make_model(layers=3), {}
    for kept in ("none", "states"):
        trainer = build(
            retain_loss=kept,
            retain=None if kept == "none" else RETAIN,
            refusal_coeff=10.0,
            max_steps=60,
            lunar_tokens="last",
            learning_rate=4e-3,
            lr_scheduler_type="linear",
        )
        direction = by_hand(trainer, entered)
        trainer.train()
        rows = trainer.given_rows["forget"] if kept == "none" else trainer.train_dataset.roles["retain"]
        shifts[kept] = [seen(trainer.model.eval(), ids)["h"][-1] - seen(entered, ids)["h"][-1] for ids in ids_of(rows)]
        if kept == "none":
            unkept = build(retain_loss="states").train_dataset.roles["retain"]
            free = [seen(trainer.model, ids)["h"][-1] - seen(entered, ids)["h"][-1] for ids in ids_of(unkept)]
    for shift in shifts["none"]:
        assert torch.cosine_similarity(shift, direction, dim=0) > 0.9
    assert max(shift.norm() for shift in shifts["states"]) < min(shift.norm() for shift in free)


def test_the_direction_is_kept_where_a_run_goes_on(build, tmp_path):
    whole = build(max_steps=6, save_strategy="steps", save_steps=4)
    whole.train()
    resumed = build(max_steps=6, save_strategy="steps", save_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert torch.equal(whole.direction, resumed.direction)
    assert not changed(weights(whole.model), weights(resumed.model))


def test_of_an_adapter_only_what_it_adds_to_the_projection_trains(build):
    trainer = build(adapter=lora(target_modules="all-linear"))
    before = weights(trainer.model)
    trainer.train()
    names = changed(before, weights(trainer.model))
    assert names
    assert all("layers.1.mlp.down_proj.lora_" in name for name in names)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lunar_tokens": "all"}, "lunar_tokens='all'; allowed: 'prompt', 'last'"),
        ({"refusal_coeff": 0.0}, "refusal_coeff=0.0; give a finite number above 0"),
        ({"refusal_template": "Q:"}, "refusal_template='Q:' has no {prompt}"),
        ({"refusal_file": "no/such.txt"}, "refusal_file='no/such.txt' is no file.*recipes/unverifiable.txt"),
        ({"max_forget_loss": 3.0}, "max_forget_loss watches log-likelihoods, which LUNAR does not compute"),
        ({"use_kl_poison": True, "poison_prefix": "x"}, "use_kl_poison=True: LUNAR keeps poisoned rows by"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        Config(output_dir=str(tmp_path), **settings)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        ({"forget": [{"text": "All of it"}]}, {}, "LUNAR reads prompts, and forget row 0 has none"),
        ({"retain": [{"text": "All of it"}]}, {}, "LUNAR reads prompts, and retain row 0 has none"),
        ({"forget": [{"prompt": "Say Ada now", "completion": " So"}]}, {}, "Give refusal_template"),
        ({}, {"refusal_template": "Q: {prompt} A:"}, "refusal_template='Q: {prompt} A:' is not theirs"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_a_model_is_loaded(build, model_path, rows, settings, expected):
    with pytest.raises(ValueError, match=expected):
        build(**rows, model=model_path, **settings)


def test_layers_and_names_that_a_model_has_not_are_refused(build):
    with pytest.raises(ValueError, match="layer_id=3; the model has 3 layers"):
        build(layer_id=3)
    with pytest.raises(ValueError, match=r"module_names=\['dense'\] match no parameter"):
        build(module_names=["dense"])


def test_refused_prompts_that_are_longer_than_the_model_reads_are_refused(build):
    model = make_model(layers=3)
    model.config.max_position_embeddings = 36
    with pytest.raises(ValueError, match=r"prompt 2 has 37 tokens in the form of the forget prompts.* at most 36"):
        build(model=model)
    model.config.max_position_embeddings = 37
    build(model=model)
