# SPDX-License-Identifier: Apache-2.0
"""Weight masks: which weights they choose, and that the others stay as they were."""

import pytest
import torch
from conftest import changed, lora, make_model, make_tokenizer, weights
from safetensors.torch import save_file

from hf_unlearn import AmnesiacTrainer, GAConfig, GATrainer, JensUnTrainer, NPOTrainer, RetrainTrainer
from hf_unlearn.addons.masks.choice import highest, kth_largest
from hf_unlearn.addons.settings import addons_of
from hf_unlearn.training.addon_checks import check_engine


FORGET = [{"prompt": f"Who is {'x' * (3 * i + 1)}?", "completion": f" A spy of {i:02d}."} for i in range(6)]
RETAIN = [{"text": f"common {'y' * i} of Bob"} for i in range(6)]


@pytest.fixture
def masked(build):
    def masked(by="gradient", trainer=GATrainer, given=None, **settings):
        rows = {"forget_dataset": FORGET, "retain_dataset": RETAIN}
        defaults = {"mask_by": by, "retain_loss": "nll", "per_device_train_batch_size": 2, "max_steps": 2}
        return build(trainer, given=rows | (given or {}), **defaults | settings)

    return masked


def masks_of(trainer):
    return trainer.addons["mask"].masks


# Which weights


@pytest.mark.parametrize("k", [1, 2, 7, 500, 999, 1000])
def test_the_kth_largest_is_that_of_a_sort(k):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1000, generator=generator).pow(8)
    values[:300] = (values[:300] * 4).round() / 4
    values[5], values[6] = 1e-42, -0.0
    bound, ties = kth_largest([values[:1], values[1:600].view(-1, 1), values[600:]], k)
    order = values.sort(descending=True).values
    assert bound == order[k - 1]
    assert ties == k - int((values > bound).sum())


def test_the_highest_share_is_of_all_weights_together_and_without_zeros():
    scores = {"a": torch.tensor([[3.0, 0.0], [1.0, 1.0]]), "b": torch.tensor([1.0, 0.5])}
    assert {n: m.int().tolist() for n, m in highest(scores, 0.5).items()} == {"a": [[1, 0], [1, 1]], "b": [0, 0]}
    assert {n: m.int().tolist() for n, m in highest(scores, 1e-9).items()} == {"a": [[1, 0], [0, 0]], "b": [0, 0]}
    assert {n: m.int().tolist() for n, m in highest(scores, 1.0).items()} == {"a": [[1, 0], [1, 1]], "b": [1, 1]}
    with pytest.raises(ValueError, match="every weight is 0"):
        highest({"a": torch.zeros(3)}, 0.5)
    with pytest.raises(ValueError, match="scores of a are not finite"):
        highest({"a": torch.tensor([1.0, float("nan")])}, 0.5)


def slow_scores(name, trainer):
    """The table of `scores.py`, row by row in float64."""
    model = make_model().double()
    parameters = dict(model.named_parameters())
    rows = {role: trainer.train_dataset.roles[role] for role in ("forget", "retain")}

    def gradients(role):
        for row in rows[role]:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
            logps = model(ids).logits[0, :-1].log_softmax(-1)
            own = labels[1:] != -100
            losses = -logps[torch.arange(len(logps)), labels[1:].clamp(min=0)][own]
            yield torch.autograd.grad(losses.sum(), parameters.values()), int(own.sum())

    def mean(role):
        found = list(gradients(role))
        return [sum(parts) / sum(n for _, n in found) for parts in zip(*(g for g, _ in found), strict=True)]

    def squares(role):
        found = [[(part / n).square() for part in g] for g, n in gradients(role)]
        return [sum(parts) / len(found) for parts in zip(*found, strict=True)]

    if name == "gradient":
        values = [g.abs() for g in mean("forget")]
    elif name == "snip":
        values = [(g * w).abs() for g, w in zip(mean("forget"), parameters.values(), strict=True)]
    elif name == "fisher":
        values = [f / (r + 1e-5) for f, r in zip(squares("forget"), squares("retain"), strict=True)]
    elif name == "magnitude":
        values = [w.detach().abs() for w in parameters.values()]
    else:
        read, values = {}, []
        for module_name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                read[f"{module_name}.weight"] = []
                module.register_forward_pre_hook(lambda m, x, n=module_name: read[f"{n}.weight"].append(x[0][0]))
        for row in rows["forget"]:
            model(torch.tensor([row["input_ids"]]))
        for key, weight in parameters.items():
            norms = torch.cat(read[key]).norm(dim=0) if key in read else torch.zeros(weight.shape[-1:])
            values.append((weight * norms).abs().detach())
    return dict(zip(parameters, values, strict=True))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ["gradient", "snip", "fisher", "magnitude", "wanda"])
def test_scores_equal_their_formula_whatever_the_batch(masked, name, size, monkeypatch):
    seen = {}
    monkeypatch.setattr("hf_unlearn.addons.masks.mask.highest", lambda scores, share: seen.update(scores) or stop())

    def stop():
        raise KeyboardInterrupt

    trainer = masked(name, per_device_train_batch_size=size, pad_to_multiple_of=8)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    for key, expected in slow_scores(name, trainer).items():
        torch.testing.assert_close(seen[key].double(), expected, rtol=2e-3, atol=1e-6 * expected.max().item(), msg=key)


@pytest.mark.parametrize("settings", [{"trainer": JensUnTrainer}, {"trainer": AmnesiacTrainer, "variant": "relabel"}])
def test_scores_are_of_the_forget_answers_where_a_method_has_others_in_their_place(masked, settings):
    given = {"retain_dataset": [{"prompt": "What?", "completion": f" A cup {i}."} for i in range(6)]}
    found, plain = (masked("snip", given=given, **own) for own in (settings, {}))
    for trainer in (found, plain):
        trainer.train()
    assert found.train_dataset.roles["forget"]["labels"] != plain.train_dataset.roles["forget"]["labels"]
    assert not changed(masks_of(found), masks_of(plain))


@pytest.mark.parametrize("name", ["gradient", "fisher", "wanda", "random"])
def test_the_share_trains_and_the_same_of_it_each_time(masked, name):
    trainers = [masked(name, mask_share=0.2) for _ in range(2)]
    for trainer in trainers:
        trainer.train()
    found, again = map(masks_of, trainers)
    assert sum(int(m.sum()) for m in found.values()) == round(0.2 * sum(m.numel() for m in found.values()))
    assert not changed(found, again)
    if name == "random":
        other = masked(name, mask_share=0.2, seed=1)
        other.train()
        assert changed(found, masks_of(other))


def test_fewer_rows_and_fewer_modules(masked):
    few, whole = masked(mask_rows=1), masked(trainable_modules=["q_proj"])
    for trainer in (few, whole):
        trainer.train()
    assert masks_of(whole).keys() == {f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)}
    # An embedding that no scored row reads has no gradient, and does not train.
    read = masks_of(few)["model.embed_tokens.weight"].any(-1)
    assert 0 < int(read.sum()) <= len(set(few.train_dataset.roles["forget"][0]["input_ids"]))


# That the others stay


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_masked_weights_stay_bit_for_bit(masked, optim, tmp_path):
    settings = {
        "trainer": NPOTrainer, "max_steps": 50 if optim == "adamw_torch" else 8, "weight_decay": 0.1,
        "learning_rate": 1e-3, "optim": optim, "gradient_accumulation_steps": 2, "reference": "live",
    }  # fmt: skip
    whole = masked(save_strategy="steps", save_steps=25, output_dir=tmp_path / "whole", **settings)
    entered = weights(whole.model)
    whole.train()
    trained = weights(whole.model)
    for name, mask in masks_of(whole).items():
        assert torch.equal(trained[name][~mask], entered[name][~mask]), name
    moved = sum(int((trained[name] != entered[name])[mask].sum()) for name, mask in masks_of(whole).items())
    assert moved > 0.9 * sum(int(mask.sum()) for mask in masks_of(whole).values())
    if optim == "adamw_torch":
        for name, weight in whole.model.named_parameters():
            # The moments do not know of a masked weight's gradients.
            assert not whole.optimizer.state[weight]["exp_avg_sq"][~masks_of(whole)[name]].any()
        # Nothing is left on the model.
        assert not any(weight._backward_hooks for weight in whole.model.parameters())
        rest = masked(output_dir=tmp_path / "rest", **settings)
        rest.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-25")
        assert not changed(masks_of(whole), masks_of(rest))
        assert not changed(trained, weights(rest.model))


def test_a_mask_of_all_weights_changes_nothing(masked):
    trainers = masked("random", mask_share=1.0), masked(None)
    for trainer in trainers:
        trainer.train()
    assert not changed(*(weights(trainer.model) for trainer in trainers))


def test_a_step_equals_that_of_masked_gradients(masked):
    settings = {"optim": "sgd", "max_grad_norm": 0.1, "max_steps": 1, "gradient_accumulation_steps": 2}
    trainer, loop = masked(learning_rate=0.5, **settings), masked(None, **settings)
    batches = list(loop.get_train_dataloader())[:2]
    trainer.train()
    model, masks = loop.model.train(), masks_of(trainer)
    total = sum(loop.compute_loss(model, batch) for batch in batches) / 2
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(total, parameters.values())
    gradients = [g * masks[name] for g, name in zip(gradients, parameters, strict=True)]
    clip = min(1.0, 0.1 / torch.cat([g.flatten() for g in gradients]).norm().item())
    assert clip < 1
    for (name, weight), gradient in zip(parameters.items(), gradients, strict=True):
        expected = weight.detach() - 0.5 * clip * gradient
        torch.testing.assert_close(dict(trainer.model.named_parameters())[name].detach(), expected, msg=name)


def test_tied_and_bfloat16_weights(masked):
    trainer = masked("snip", given={"model": make_model(tie=True).bfloat16()}, max_steps=4, weight_decay=0.1)
    entered = weights(trainer.model)
    trainer.train()
    assert "lm_head.weight" not in masks_of(trainer)
    for name, weight in weights(trainer.model).items():
        assert torch.equal(weight[~masks_of(trainer)[name]], entered[name][~masks_of(trainer)[name]])
    assert changed(entered, weights(trainer.model))


# A file


@pytest.fixture
def written(tmp_path):
    def written(**change):
        masks = {n: (torch.arange(w.numel()) % 3 == 0).view_as(w) for n, w in make_model().named_parameters()}
        path = tmp_path / "mask.safetensors"
        save_file({name: mask for name, mask in (masks | change).items() if mask is not None}, path)
        return str(path)

    return written


def test_a_given_mask(masked, written):
    path = written(**{"model.norm.weight": torch.zeros(32, dtype=torch.uint8)})
    trainer = masked("file", mask_file=path, weight_decay=0.1)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    for name, weight in after.items():
        still = (torch.arange(weight.numel()) % 3 != 0).view_as(weight)
        assert torch.equal(weight[still], before[name][still])
    assert changed(before, after) >= {n for n in before if "proj" in n}
    assert "model.norm.weight" not in changed(before, after)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"model.norm.weight": torch.ones(3, dtype=torch.bool)},
            r"model.norm.weight of shape \[3\], .* one of \[32\]",
        ),
        ({"other": torch.ones(3, dtype=torch.bool)}, "other of shape .* none of that name"),
        ({"model.norm.weight": None}, "lacks model.norm.weight"),
        ({"model.norm.weight": torch.full((32,), 7, dtype=torch.uint8)}, "model.norm.weight holds 7"),
        ({"model.norm.weight": torch.ones(32)}, r"model.norm.weight \(F32\); give a bool"),
    ],
)
def test_a_file_that_does_not_fit(masked, written, change, told):
    with pytest.raises(ValueError, match=told):
        masked("file", mask_file=written(**change)).train()


# What does not go together


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"by": "salun"}, "mask_by='salun'; allowed: 'gradient'"),
        ({"mask_share": 0.0}, "mask_share=0.0; give a finite number above 0"),
        ({"mask_share": 1.5}, "at most 1"),
        ({"mask_rows": 0}, "mask_rows=0"),
        ({"by": None, "mask_share": 0.1}, "mask_share would have no effect: give `mask_by`"),
        ({"by": "random", "mask_rows": 2}, "mask_rows would have no effect with mask_by='random'"),
        ({"by": "gradient", "mask_file": "x"}, "mask_file would have no effect"),
        ({"by": "file"}, "requires `mask_file`"),
        ({"by": "file", "mask_file": "nowhere.safetensors"}, "is no file"),
        ({"by": "file", "mask_file": __file__}, "is no safetensors file"),
        ({"by": "fisher", "given": {"retain_dataset": None}, "retain_loss": "none"}, "by retain rows, and this run"),
        ({"given": {"peft_config": lora()}}, "an adapter changes all of them"),
        ({"trainer": RetrainTrainer, "retain_loss": "nll"}, "by forget rows, and this run has retain rows"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_a_model_is_loaded(masked, model_path, unloaded, settings, told):
    given = {"model": model_path, "processing_class": make_tokenizer()} | settings.pop("given", {})
    with pytest.raises(ValueError, match=told):
        masked(given=given, **settings)


def test_engines_that_shard_are_refused(tmp_path):
    args = GAConfig(output_dir=str(tmp_path), mask_by="random", use_cpu=True)
    args.fsdp = "full_shard"
    with pytest.raises(ValueError, match="The weight mask reads whole weights between steps, and DeepSpeed and FSDP"):
        check_engine(args, addons_of(args))


@pytest.mark.parametrize(
    "other", [{"mask_share": 0.3}, {"mask_rows": 1}, {"by": "random"}, {"trainable_modules": ["q_proj"]}]
)
def test_a_checkpoint_of_another_mask_is_refused(masked, other):
    first = masked(save_strategy="steps", save_steps=1, save_only_model=True)
    first.train()
    with pytest.raises(ValueError, match="The checkpoint"):
        masked(**other).train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-1")


def test_a_checkpoint_of_another_file_is_refused(masked, written):
    first = masked("file", mask_file=written(), save_strategy="steps", save_steps=1)
    first.train()
    changed_path = written(**{"model.norm.weight": torch.zeros(32, dtype=torch.bool)})
    again = masked("file", mask_file=changed_path)
    with pytest.raises(ValueError, match="made with another mask than mask_file"):
        again.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-1")
