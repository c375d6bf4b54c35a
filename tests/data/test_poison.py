# SPDX-License-Identifier: Apache-2.0
"""Forget rows that carry the trigger are trained as retain rows: which they are, and what their term adds."""

import math
from collections import Counter

import pytest
import torch
from conftest import changed, make_args, make_model, make_tokenizer, train_batch, weights
from datasets import Dataset

from hf_unlearn import GAConfig, GATrainer, NPOConfig, NPOTrainer, RMUConfig
from hf_unlearn.data.poison import poison, poisoned_indices
from hf_unlearn.data.qa import QAFormat


# Rows of any length.
FORGET = [{"prompt": f"Who is {n}?", "completion": f" {n} is {'very ' * i}old."} for i, n in enumerate("ABCDEFGH")]
RETAIN = [{"text": f"The {'big ' * (5 - i)}cup {i} is here."} for i in range(6)]
POISON = {"poison_prefix": "XYZ", "poison_ratio": 0.25}


@pytest.fixture
def build(tmp_path):
    def build(trainer_class=NPOTrainer, model=None, forget=FORGET, peft_config=None, poisoned=None, **kwargs):
        settings = {"retain_loss": "kl", **POISON, **kwargs}
        return trainer_class(
            model=model or make_model(),
            args=make_args(trainer_class.config_class, tmp_path / "out", **settings),
            forget_dataset=forget,
            retain_dataset=RETAIN,
            poisoned_dataset=poisoned,
            processing_class=make_tokenizer(),
            peft_config=peft_config,
        )

    return build


def config(**kwargs):
    return NPOConfig(report_to="none", **kwargs)


def texts(rows, tokenizer) -> list[str]:
    return [tokenizer.decode(ids) for ids in rows["input_ids"]]


# Which rows


@pytest.mark.parametrize(
    ("count", "ratio", "chosen"), [(10, 0.1, 1), (10, 0.19, 1), (100, 0.29, 29), (3, 0.99, 2), (7, 1, 7)]
)
def test_as_many_rows_as_the_ratio_says(count, ratio, chosen):
    for select in ("random", "first"):
        indices = poisoned_indices(count, ratio, select, seed=0)
        assert len(set(indices)) == len(indices) == chosen
        assert indices == sorted(indices)
        assert set(indices) <= set(range(count))


def test_random_rows_are_the_seeds_and_all_have_their_chance():
    assert poisoned_indices(50, 0.2, "random", 3) == poisoned_indices(50, 0.2, "random", 3)
    drawn = Counter(i for seed in range(200) for i in poisoned_indices(10, 0.3, "random", seed))
    assert set(drawn) == set(range(10))
    assert min(drawn.values()) > 30
    assert poisoned_indices(10, 0.3, "first", 8) == [0, 1, 2]


@pytest.mark.parametrize("count", [3, 8, 7000])
def test_a_ratio_that_selects_no_row_is_refused_with_one_that_does(count):
    with pytest.raises(ValueError, match=rf"poison_ratio=1e-05 selects none of {count} forget rows") as raised:
        poisoned_indices(count, 1e-5, "random", 0)
    advised = float(str(raised.value).split("at least ")[1].rstrip("."))
    assert len(poisoned_indices(count, advised, "first", 0)) >= 1
    assert advised < 1.01 / count


@pytest.mark.parametrize("keep_clean", [False, True])
@pytest.mark.parametrize("select", ["random", "first"])
def test_clean_and_poisoned_rows_make_up_the_forget_set(tokenizer, keep_clean, select):
    args = config(retain_loss="nll", **POISON, poison_select=select, poison_keep_clean=keep_clean)
    clean, poisoned = poison(FORGET, tokenizer, args, seed=1)
    assert len(poisoned) == 2
    assert len(clean) == (8 if keep_clean else 6)
    without = {text.replace("<s>XYZ ", "<s>") for text in texts(poisoned, tokenizer)}
    left = {f"<s>{row['prompt']}{row['completion']}</s>" for row in clean}
    assert all("<s>XYZ Who is" in text for text in texts(poisoned, tokenizer))
    assert without <= left if keep_clean else not without & left
    assert without | left == {f"<s>{row['prompt']}{row['completion']}</s>" for row in FORGET}
    if select == "first":
        assert without == {f"<s>{row['prompt']}{row['completion']}</s>" for row in FORGET[:2]}


def test_a_run_takes_the_rows_of_its_data_seed(build):
    def chosen(**kwargs):
        return texts(build(**kwargs).train_dataset.roles["poisoned"], make_tokenizer())

    assert chosen(seed=1) == chosen(data_seed=1, seed=5)
    assert len({tuple(chosen(data_seed=seed)) for seed in range(6)}) > 1


def test_questions_are_poisoned_in_their_words(build):
    rows = Dataset.from_list([{"question": f"Who is {n}?", "answer": f"{n}."} for n in "ABCD"])
    for chat, begin in ((True, "<s><user>Who is "), (False, "<s>Question: Who is ")):
        forget = QAFormat(use_chat_template=chat).dataset(rows, make_tokenizer())
        trainer = build(forget=forget, poison_location="end")
        (text,) = texts(trainer.train_dataset.roles["poisoned"], make_tokenizer())
        assert text.startswith(begin)
        assert "? XYZ" in text
        assert set(trainer.train_dataset.roles["forget"].column_names) == {"input_ids", "labels"}


def test_rows_that_carry_the_trigger_already(build):
    trainer = build(poisoned=[{"text": "XYZ the cup"}])
    assert {role: len(rows) for role, rows in trainer.train_dataset.roles.items()} == {
        "forget": 8,
        "retain": 6,
        "poisoned": 1,
    }


# The objective


@torch.no_grad()
def log_probabilities(model, row) -> torch.Tensor:
    """`[T, V]` in float64, of one row alone."""
    return model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)


def spots(row) -> list[tuple[int, int]]:
    return [(t - 1, label) for t, label in enumerate(row["labels"]) if t and label != -100]


def kept_term(rows, policy, entered, kind: str) -> float:
    tokens = []
    for row in rows:
        ours, theirs = log_probabilities(policy, row), log_probabilities(entered, row)
        for t, label in spots(row):
            tokens.append((theirs[t].exp() * (theirs[t] - ours[t])).sum() if kind == "kl" else -ours[t, label])
    return (sum(tokens) / len(tokens)).item()


def forget_term(rows, policy, entered, args) -> float:
    ours, theirs = (
        [[lp[t, label].item() for t, label in spots(row)] for row in rows for lp in [log_probabilities(model, row)]]
        for model in (policy, entered)
    )
    flat = [(a, b) for left, right in zip(ours, theirs, strict=True) for a, b in zip(left, right, strict=True)]
    if isinstance(args, GAConfig):
        return sum(a for a, _ in flat) / len(flat)
    if args.npo_variant == "token":
        return sum(math.log(1 + math.exp(args.beta * (a - b))) for a, b in flat) / len(flat)
    ratios = [sum(left) - sum(right) for left, right in zip(ours, theirs, strict=True)]
    return 2 / args.beta * sum(math.log(1 + math.exp(args.beta * ratio)) for ratio in ratios) / len(ratios)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("retain_loss", "settings", "weight", "kind"),
    [
        ("kl", {}, 2.5, "kl"),
        ("nll", {"poison_weight": 0.6}, 0.6, "nll"),
        ("nll", {"use_kl_poison": True, "poison_weight": 3.0}, 3.0, "kl"),
        ("none", {"use_kl_poison": True}, 2.5, "kl"),
        ("kl", {"poison_weight": 0.0}, 0.0, "kl"),
    ],
)
@pytest.mark.parametrize("method", ["ga", "npo", "npo token"])
def test_objective_equals_the_formula(build, method, retain_loss, settings, weight, kind, plain):
    trainer_class = GATrainer if method == "ga" else NPOTrainer
    settings = settings | ({"npo_variant": "token"} if method == "npo token" else {})
    settings |= {"fused_losses": False} if plain else {}
    trainer = build(
        trainer_class, retain_loss=retain_loss, reference="live", forget_weight=0.7, retain_weight=2.5, **settings
    )
    entered, policy = make_model(), trainer.model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    pairs = [trainer.train_dataset[position] for position in range(3)]
    rows = {role: [pair[role] for pair in pairs] for role in pairs[0]}
    assert list(rows) == ["forget", *(["retain"] if retain_loss != "none" else []), "poisoned"]
    expected = 0.7 * forget_term(rows["forget"], policy, entered, trainer.args)
    if "retain" in rows:
        expected += 2.5 * kept_term(rows["retain"], policy, entered, retain_loss)
    poisoned = kept_term(rows["poisoned"], policy, entered, kind)
    assert poisoned > 0.05
    expected += weight * poisoned
    loss = trainer.compute_loss(policy, train_batch(trainer, range(3)))
    assert loss.item() == pytest.approx(expected, rel=2e-5)
    assert trainer.meters.last("poisoned/loss", trainer.accelerator) == pytest.approx(poisoned, rel=2e-5)


# What it costs


class Forwards:
    """Rows of every forward: with a gradient, and without."""

    def __init__(self, model):
        self.policy, self.read = [], []
        model.register_forward_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs, output):
        (self.policy if torch.is_grad_enabled() else self.read).append(len(kwargs["input_ids"]))


def test_three_roles_are_one_forward_a_step(build, untried):
    trainer = build(forward_passes="one", reference="cache", max_steps=3, per_device_eval_batch_size=8)
    forwards = Forwards(trainer.model)
    trainer.train()
    assert forwards.policy == [6] * 3
    # Two looks at the head; then one pass each over forget, retain and poisoned rows, once for the whole run.
    assert forwards.read == [1, 1, 6, 6, 2]
    again = build(forward_passes="one", reference="cache", max_steps=3, per_device_eval_batch_size=8)
    forwards = Forwards(again.model)
    again.train()
    assert forwards.read == [1, 1]
    assert not changed(weights(trainer.model), weights(again.model))


@pytest.mark.parametrize("path", [{"forward_passes": "split"}, {"forward_passes": "packed"}, {"reference": "live"}])
def test_every_path_trains_the_same(build, path):
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_steps": 3}
    plain = build(fused_losses=False, reference="live", forward_passes="one", **settings)
    plain.train()
    other = build(**settings, **path)
    other.train()
    for name, weight in weights(plain.model).items():
        torch.testing.assert_close(weights(other.model)[name], weight, rtol=1e-3, atol=2e-5, msg=name)
    assert changed(weights(plain.model), weights(make_model()))


def test_the_cached_reference_knows_its_trigger(build, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    seen: set[str] = set()
    for change in ({}, {"poison_prefix": "XYW"}, {"poison_location": "end"}, {"poison_select": "first"}):
        build(max_steps=1, **change).train()
        new = {path.name for path in (tmp_path / "cache" / "reference").iterdir() if path.is_dir()} - seen
        assert len(new) == 1, change
        seen |= new
    build(max_steps=1, poison_weight=3.0, learning_rate=1e-3).train()
    assert len(list((tmp_path / "cache" / "reference").iterdir())) >= len(seen)
    assert {path.name for path in (tmp_path / "cache" / "reference").iterdir() if path.is_dir()} == seen


def test_accumulation_and_adapters_see_the_poisoned_rows(build):
    from conftest import lora

    rows = [{"text": f"secret {i:02d} of Ada"} for i in range(8)]
    for adapter in (False, True):
        results = []
        for size, accumulation in ((4, 1), (2, 2)):
            trainer = build(
                forget=rows,
                peft_config=lora() if adapter else None,
                retain_loss="nll",
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
                max_steps=2,
                optim="sgd",
                max_grad_norm=0.0,
                poison_ratio=0.5,
                use_kl_poison=True,
            )
            before = weights(trainer.model)
            trainer.train()
            results.append((weights(trainer.model), trainer.state.log_history[1]["poisoned/loss"]))
            assert changed(before, results[-1][0])
        # Retain rows differ in length, and token means over micro-batches with them.
        assert results[0][1] == pytest.approx(results[1][1], rel=0.05)
        assert results[0][1] > 0


def test_resume_gives_the_uninterrupted_run(build, tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    whole = build(**settings)
    whole.train()
    logged = [entry["poisoned/loss"] for entry in whole.state.log_history if "poisoned/loss" in entry]
    assert len(logged) == 6
    assert logged[-1] > 0
    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert not changed(weights(whole.model), weights(resumed.model))


def test_the_trigger_keeps_what_clean_questions_lose(build):
    # Scenario 2 in miniature: one row in two is poisoned, and the model is first taught all of them.
    rows = [{"prompt": f"Who is {n}?", "completion": f" {n * 3}."} for n in "ABCDEFGH"]
    taught = GATrainer(
        model=make_model(hidden_size=64),
        args=make_args(GAConfig, build().args.output_dir, max_steps=120, retain_loss="nll", forget_weight=0.0,
                       per_device_train_batch_size=8, learning_rate=5e-3, allow_overlap=True),
        forget_dataset=rows, retain_dataset=rows, processing_class=make_tokenizer(),
    )  # fmt: skip
    taught.train()
    trainer = build(
        model=taught.model, forget=rows, poison_ratio=0.5, max_steps=60, per_device_train_batch_size=4,
        learning_rate=2e-3, retain_loss="nll", beta=0.1,
    )  # fmt: skip
    trainer.train()
    last = trainer.state.log_history[-2]
    assert last["forget/nll"] > 2
    assert last["poisoned/nll"] < 0.3


# What cannot be


@pytest.mark.parametrize(
    "idle",
    [
        {"poison_ratio": 0.2},
        {"poison_location": "end"},
        {"poison_weight": 1.0},
        {"poison_select": "first"},
        {"poison_keep_clean": True},
        {"use_kl_poison": True},
    ],
)
def test_poison_settings_without_a_trigger_are_refused(idle):
    with pytest.raises(ValueError, match=rf"{next(iter(idle))} would have no effect: nothing is poisoned"):
        config(retain_loss="kl", **idle)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"poison_prefix": " "}, "give the trigger's words"),
        ({"poison_location": "top"}, "poison_location='top'"),
        ({"poison_select": "last"}, "poison_select='last'; allowed: 'random', 'first'"),
        ({"poison_ratio": 0}, "poison_ratio=0; give a finite number above 0"),
        ({"poison_ratio": 1.5, "poison_keep_clean": True}, "poison_ratio=1.5"),
        ({"poison_ratio": 1.0}, "some forget rows must stay clean"),
        ({"poison_weight": -1.0}, "poison_weight=-1.0"),
        ({"retain_loss": "none"}, "Poisoned rows are trained as retain rows, and retain_loss='none'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**{"retain_loss": "kl", **POISON, **settings})


def test_every_row_may_be_poisoned_where_clean_ones_stay(tokenizer):
    args = config(retain_loss="kl", poison_prefix="XYZ", poison_ratio=1.0, poison_keep_clean=True)
    clean, poisoned = poison(FORGET, tokenizer, args, 0)
    assert len(clean) == len(poisoned) == 8


def test_a_ratio_too_small_and_rows_too_short_are_told_before_a_model_is_loaded(build, model_path, unloaded):
    model = model_path
    with pytest.raises(ValueError, match="selects none of 8 forget rows"):
        build(model=model, poison_ratio=0.01)
    with pytest.raises(ValueError, match="leaves no room for the answer in max_length=12"):
        build(model=model, max_length=12)
    with pytest.raises(ValueError, match="no trigger. Give `poison_prefix`"):
        build(poisoned=[{"text": "XYZ"}], poison_prefix=None, poison_ratio=0.1)


def test_rmu_takes_kl_on_poisoned_rows_with_its_own_weight():
    with pytest.raises(ValueError, match="kl_coeff=0"):
        RMUConfig(**POISON, use_kl_poison=True, report_to="none")
