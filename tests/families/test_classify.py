# SPDX-License-Identifier: Apache-2.0
"""Classifiers in the trainers: rows, losses, steps."""

import datasets
import numpy as np
import pytest
import torch
from conftest import changed, make_args, weights
from vilt import CLASSES, make_processor, make_rows, make_vilt, picture

from hf_unlearn import GAConfig, GATrainer, MUAlignConfig, MUAlignTrainer, NPOConfig, NPOTrainer, losses
from hf_unlearn.families.classifier.encode import Classes, encode_classes
from hf_unlearn.methods.relabel import relabelled_classes


KINDS = Classes({name: i for i, name in enumerate(CLASSES)}, many=True)
FORGET, RETAIN = make_rows(6), make_rows(8, first=20)


def trainer_of(trainer_class, config_class, tmp_path, model=None, forget=FORGET, retain=RETAIN, **settings):
    settings = {"output_dir": tmp_path / "out", "per_device_train_batch_size": 2, **settings}
    return trainer_class(
        model=model or make_vilt(),
        args=make_args(config_class, **settings),
        forget_dataset=forget,
        retain_dataset=retain,
        processing_class=make_processor(),
    )


def npo_trainer(tmp_path, **settings):
    return trainer_of(NPOTrainer, NPOConfig, tmp_path, retain_loss="kl", **settings)


def random_logits(rows=4, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(rows, classes, generator=generator, dtype=torch.float64)  # noqa: E731
    return 3 * draw(), 3 * draw(), draw().sigmoid()


# Losses against slow formulas


def test_bernoulli_nll_is_the_sum_over_classes_and_vilts_own_loss():
    logits, _, targets = random_logits()
    q, t = 1 / (1 + np.exp(-logits.numpy())), targets.numpy()
    slow = -(t * np.log(q) + (1 - t) * np.log(1 - q)).sum(-1)
    assert losses.bernoulli_nll_rows(logits, targets).numpy() == pytest.approx(slow, rel=1e-9)
    model = make_vilt().eval()
    pictures, questions = ([row[name] for row in FORGET] for name in ("image", "question"))
    batch = make_processor()(pictures, questions, padding=True, return_tensors="pt")
    targets = torch.rand(len(FORGET), len(CLASSES), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(**batch, labels=targets)
    assert losses.bernoulli_nll_rows(out.logits, targets).mean().item() == pytest.approx(out.loss.item(), rel=1e-5)


def test_smoothed_bernoulli_targets_move_towards_one_share_each():
    logits, _, targets = random_logits()
    moved = 0.9 * targets + 0.1 / 5
    assert torch.allclose(losses.bernoulli_nll_rows(logits, targets, 0.1), losses.bernoulli_nll_rows(logits, moved))


def test_soft_nll_takes_targets_as_shares():
    logits, _, targets = random_logits()
    targets[2] = 0
    slow = []
    for z, t in zip(logits.numpy(), targets.numpy(), strict=True):
        log_p = z - np.log(np.exp(z).sum())
        shares = 0.8 * t / t.sum() + 0.2 / 5 if t.sum() else 0 * t
        slow.append(-(shares * log_p).sum())
    assert losses.soft_nll_rows(logits, targets, 0.2).numpy() == pytest.approx(slow, rel=1e-9)
    one_hot = torch.eye(5, dtype=torch.float64)[[1, 3, 0, 2]]
    plain = torch.nn.functional.cross_entropy(logits, one_hot.argmax(-1), reduction="none")
    assert torch.allclose(losses.soft_nll_rows(logits, one_hot), plain)


def test_bernoulli_distillation_is_the_sum_of_divergences():
    logits, teacher, _ = random_logits()
    for temperature in (1.0, 2.0):
        slow = []
        for z, t in zip(logits.numpy() / temperature, teacher.numpy() / temperature, strict=True):
            q, p = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-t))
            slow.append(temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum())
        found = losses.bernoulli_distillation_rows(logits, teacher, temperature)
        assert found.numpy() == pytest.approx(slow, rel=1e-9)
    assert losses.bernoulli_distillation_rows(logits, logits).abs().max() < 1e-12
    certain = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.5]], dtype=torch.float64)
    assert losses.bernoulli_kl_rows(logits, certain).isfinite().all()


# Rows


def test_answers_become_soft_targets_as_in_vqa_v2():
    rows = [{"question": "?", "answers": ["red"] * 2 + ["green"] * 3 + ["sky"] * 5}]
    encoded = encode_classes(rows, KINDS, "forget")
    found = dict(zip(encoded[0]["label_ids"], encoded[0]["label_weights"], strict=True))
    assert found == pytest.approx({0: 2 / 3, 1: 1.0})


def test_labels_in_every_form_are_the_same():
    dense = {"question": "?", "labels": [0.5, 0.0, 0.0, 1.0, 0.0]}
    named = {"question": "?", "label": {"ids": ["red", "one"], "weights": [0.5, 1.0]}}
    found = [encode_classes([row], KINDS, "forget")[0] for row in (dense, named)]
    assert found[0] == found[1]
    single = Classes(KINDS.label2id, many=False)
    by_name, by_number = (encode_classes([{"text": "?", "label": x}], single, "forget")[0] for x in ("one", 3))
    assert by_name == by_number
    assert by_name["label_ids"] == [3]
    assert by_name["label_weights"] == [1.0]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "?", "label": 3}, "give soft targets, 5 numbers"),
        ({"question": "?", "labels": [1.0]}, "`labels` has 1 numbers, and there are 5 classes"),
        ({"question": "?", "labels": [2.0, 0.0, 0.0, 0.0, 0.0]}, "numbers between 0 and 1"),
        ({"question": "?", "label": {"ids": [1, 2, 3], "weights": [0.5]}}, "`label` has 3 ids and 1 weights"),
        ({"question": "?", "label": {"ids": ["mauve"], "weights": [1.0]}}, "'mauve' is none of the model's 5 classes"),
        ({"question": "?", "answers": ["mauve"] * 10}, "No row of forget_dataset has an answer"),
        ({"question": "?"}, "A classifier's rows have"),
        ({"image": None, "question": "?", "answers": ["red"] * 10}, "1 of 1 forget rows have no picture"),
        ({"image": "/nowhere/a.png", "question": "?", "answers": ["red"] * 10}, "/nowhere/a.png"),
    ],
)
def test_rows_that_cannot_be_used_are_told(row, told):
    with pytest.raises(ValueError, match=told):
        encode_classes([row], KINDS, "forget")


def test_shared_rows_are_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    make_vilt().save_pretrained(tmp_path / "model")
    monkeypatch.setattr("transformers.ViltForQuestionAnswering.from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="1 of 8 retain rows are forget rows too, the first: 'q20'"):
        npo_trainer(tmp_path, model=str(tmp_path / "model"), forget=[*FORGET, RETAIN[0]])
    anonymous = [{k: v for k, v in row.items() if k != "example_id"} for row in (*FORGET, RETAIN[0])]
    kept = [{k: v for k, v in row.items() if k != "example_id"} for row in RETAIN]
    with pytest.raises(ValueError, match="1 of 8 retain rows are forget rows too"):
        npo_trainer(tmp_path, model=str(tmp_path / "model"), forget=anonymous, retain=kept)


@pytest.mark.parametrize(
    "settings", [{"poison_prefix": "x"}, {"forward_passes": "packed"}, {"fused_losses": True}, {"reference": "cache"}]
)
def test_what_is_for_language_models_is_refused(tmp_path, settings):
    with pytest.raises(ValueError, match="is a classifier"):
        npo_trainer(tmp_path, **settings)


@pytest.mark.parametrize("name", ["RMU", "AlignThenUnlearn"])
def test_methods_of_language_models_refuse_a_classifier(tmp_path, name):
    import hf_unlearn

    settings = {"concept": "red", "encoder_name_or_path": "x"} if name == "AlignThenUnlearn" else {}
    config = getattr(hf_unlearn, f"{name}Config")
    with pytest.raises(ValueError, match="is for causal language models, and this model is one of the classifiers"):
        trainer_of(getattr(hf_unlearn, f"{name}Trainer"), config, tmp_path, **settings)


# One step


def spelled_out(model, rows):
    """Logits `[n, K]` in float64 and targets, row by row."""
    logits, targets = [], []
    for row in rows:
        batch = make_processor()(row["image"], row["question"], return_tensors="pt")
        with torch.no_grad():
            logits.append(model.eval()(**batch).logits[0].double())
        counts = [row["answers"].count(name) for name in CLASSES]
        targets.append(torch.tensor([min(count / 3, 1.0) for count in counts], dtype=torch.float64))
    return torch.stack(logits), torch.stack(targets)


def bce(logits, targets):
    return -(targets * logits.sigmoid().log() + (1 - targets) * (-logits).sigmoid().log()).sum(-1)


def first_batch(trainer):
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def rows_of(trainer, rows, role):
    index = first_batch(trainer)
    chosen = index["index"][index["role"] == trainer.data_collator.roles.index(role)]
    return [rows[i] for i in chosen.tolist()]


def test_npo_with_kl_is_the_formula_over_whole_predictions(tmp_path):
    original = make_vilt()
    trainer = npo_trainer(tmp_path, beta=0.5)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    loss = trainer.compute_loss(trainer.model.eval(), first_batch(trainer)).item()
    logits, targets = spelled_out(trainer.model, rows_of(trainer, FORGET, "forget"))
    before, _ = spelled_out(original, rows_of(trainer, FORGET, "forget"))
    ratios = bce(before, targets) - bce(logits, targets)
    forget = (2 / 0.5) * (1 + (0.5 * ratios).exp()).log().mean()
    after, _ = spelled_out(trainer.model, rows_of(trainer, RETAIN, "retain"))
    entered, _ = spelled_out(original, rows_of(trainer, RETAIN, "retain"))
    p, q = entered.sigmoid(), after.sigmoid()
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(-1).mean()
    assert loss == pytest.approx((forget + kl).item(), rel=1e-4)


@pytest.mark.parametrize("shape", ["one", "split"])
def test_one_pass_and_a_pass_a_role_agree(tmp_path, shape):
    trainer = npo_trainer(tmp_path, forward_passes=shape)
    assert trainer.forward_path.shape == shape
    plain = npo_trainer(tmp_path)
    found = [t.compute_loss(t.model.eval(), first_batch(t)).item() for t in (trainer, plain)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("likelihood", ["bernoulli", "softmax"])
def test_mu_align_is_the_formula(tmp_path, likelihood):
    settings = {"top_k": 3, "alpha": 2.0, "label_smoothing": 0.1, "lambda_kd": 0.7, "likelihood": likelihood}
    trainer = trainer_of(MUAlignTrainer, MUAlignConfig, tmp_path, **settings)
    original = make_vilt()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    loss = trainer.compute_loss(trainer.model.eval(), first_batch(trainer)).item()
    z, _ = spelled_out(trainer.model, rows_of(trainer, FORGET, "forget"))
    flat = (z / 2).softmax(-1)
    uniform = 4 * (-np.log(5) - flat.log().mean(-1))
    tail = (z.softmax(-1).topk(3).values - 1 / 5).clamp(min=0).square().mean(-1)
    kept, targets = spelled_out(trainer.model, rows_of(trainer, RETAIN, "retain"))
    teacher, _ = spelled_out(original, rows_of(trainer, RETAIN, "retain"))
    if likelihood == "bernoulli":
        ce = bce(kept, 0.9 * targets + 0.1 / 5)
        p, q = (teacher / 2).sigmoid(), (kept / 2).sigmoid()
        kd = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(-1)
    else:
        shares = 0.9 * targets / targets.sum(-1, keepdim=True) + 0.1 / 5
        ce = -(shares * kept.log_softmax(-1)).sum(-1)
        p, q = (teacher / 2).softmax(-1), (kept / 2).softmax(-1)
        kd = 4 * (p * (p / q).log()).sum(-1)
    slow = (2 * uniform + 0.5 * tail).mean() + (ce + 0.7 * kd).mean()
    assert loss == pytest.approx(slow.item(), rel=1e-4)


def test_cvar_of_a_classifier_is_over_the_rows_of_a_batch(tmp_path):
    settings = {"tail": "cvar", "cvar_level": 0.25, "top_k": 3, "alpha": 0.0, "retain_loss": "none"}
    trainer = trainer_of(MUAlignTrainer, MUAlignConfig, tmp_path, per_device_train_batch_size=4, **settings)
    loss = trainer.compute_loss(trainer.model.eval(), first_batch(trainer)).item()
    z, _ = spelled_out(trainer.model, rows_of(trainer, FORGET, "forget"))
    tails = (z.softmax(-1).topk(3).values - 1 / 5).clamp(min=0).square().mean(-1)
    assert loss == pytest.approx(0.5 * tails.max().item(), rel=1e-4)


def test_second_moments_are_of_what_the_classifier_reads(tmp_path):
    trainer = trainer_of(MUAlignTrainer, MUAlignConfig, tmp_path, lambda_align=1.0, alpha=0.0, beta=0.0, top_k=3)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    loss = trainer.compute_loss(trainer.model.eval(), first_batch(trainer)).item()
    rows, moments = rows_of(trainer, RETAIN, "retain"), []
    for model in (trainer.model, make_vilt()):
        pooled = []
        for row in rows:
            batch = make_processor()(row["image"], row["question"], return_tensors="pt")
            with torch.no_grad():
                pooled.append(model.eval().vilt(**batch).pooler_output[0].double())
        h = torch.stack(pooled)
        moments.append(h.T @ h / len(h))
    logits, targets = spelled_out(trainer.model, rows)
    slow = bce(logits, targets).mean() + (moments[0] - moments[1]).square().mean()
    assert loss == pytest.approx(slow.item(), rel=1e-4)


# Runs


@pytest.mark.parametrize("adapter", [False, True])
def test_training_forgets_and_saves_a_checkpoint_that_loads(tmp_path, adapter):
    from peft import LoraConfig
    from transformers import AutoProcessor, ViltForQuestionAnswering

    lora = (
        LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["classifier"], task_type="CAUSAL_LM")
        if adapter
        else None
    )
    trainer = GATrainer(
        model=make_vilt(),
        args=make_args(GAConfig, output_dir=tmp_path, max_steps=6, learning_rate=1e-2, retain_loss="kl"),
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
        eval_dataset={"forget": FORGET, "retain": RETAIN},
        processing_class=make_processor(),
        peft_config=lora,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_forget_loss"] > before["eval_forget_loss"] + 0.5
    trainer.save_model()
    AutoProcessor.from_pretrained(tmp_path)
    if not adapter:
        again = ViltForQuestionAnswering.from_pretrained(tmp_path)
        assert not changed(weights(again), weights(trainer.model))
    card = (tmp_path / "README.md").read_text()
    assert "from transformers import ViltForQuestionAnswering" in card
    assert "pipeline_tag: visual-question-answering" in card
    assert ("PeftModel.from_pretrained(model" in card) == adapter


def test_accumulated_batches_step_as_one_large_batch(tmp_path):
    found = []
    for size, steps in ((4, 1), (2, 2)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        trainer = npo_trainer(tmp_path / str(size), learning_rate=1e-2, optim="sgd", max_grad_norm=0, **settings)
        trainer.train()
        found.append(weights(trainer.model))
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], atol=1e-5), name


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path):
    settings = {"learning_rate": 1e-2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = npo_trainer(tmp_path / "a", **settings)
    whole.train()
    again = npo_trainer(tmp_path / "a", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "out" / "checkpoint-2"))
    for name, tensor in weights(whole.model).items():
        assert torch.allclose(tensor, weights(again.model)[name], atol=1e-6), name


def test_pictures_in_files_are_read_when_they_are_needed(tmp_path):
    rows = []
    for number, row in enumerate(FORGET):
        path = tmp_path / f"{number}.png"
        picture(number).save(path)
        rows.append({**row, "image": str(path)})
    forget = datasets.Dataset.from_list(rows)
    trainers = [npo_trainer(tmp_path, forget=found) for found in (forget, FORGET)]
    found = [t.compute_loss(t.model.eval(), first_batch(t)).item() for t in trainers]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_text_classifier_with_one_label_a_row_trains(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = make_processor().tokenizer
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=3, **size))
    rows = [{"text": text, "label": i % 3} for i, text in enumerate(["what is it", "how many", "colour", "is it"])]
    trainer = GATrainer(
        model=model,
        args=make_args(GAConfig, output_dir=tmp_path, max_steps=3, learning_rate=1e-2, retain_loss="nll"),
        forget_dataset=rows[:2],
        retain_dataset=rows[2:],
        processing_class=tokenizer,
    )
    assert trainer.family.likelihood == "softmax"
    trainer.train()
    logged = [entry["forget/nll"] for entry in trainer.state.log_history if "forget/nll" in entry]
    assert logged[-1] > logged[0]


# MU-ALIGN's terms of classifiers


def shaken(trainer):
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return trainer


@pytest.mark.parametrize("target", ["bernoulli_prior", "bernoulli_half"])
def test_forget_rows_are_pulled_to_a_probability_for_each_class(tmp_path, target):
    settings = {"forget_target": target, "alpha": 2.0, "beta": 0.0, "top_k": 3, "retain_weight": 0.0}
    trainer = shaken(trainer_of(MUAlignTrainer, MUAlignConfig, tmp_path, **settings))
    loss = trainer.compute_loss(trainer.model.eval(), first_batch(trainer)).item()
    z, _ = spelled_out(trainer.model, rows_of(trainer, FORGET, "forget"))
    _, targets = spelled_out(trainer.model, RETAIN)
    p, q = targets.mean(0) if target == "bernoulli_prior" else torch.full((5,), 0.5).double(), z.sigmoid()
    slow = torch.special.xlogy(p, p / q) + torch.special.xlogy(1 - p, (1 - p) / (1 - q))
    assert loss == pytest.approx(2 * slow.sum(-1).mean().item(), rel=1e-4)


def test_a_prior_needs_a_model_that_judges_each_class(tmp_path):
    with pytest.raises(ValueError, match="forget_target='bernoulli_prior' is for a classifier that says of each"):
        trainer_of(
            MUAlignTrainer, MUAlignConfig, tmp_path, forget_target="bernoulli_prior", likelihood="softmax", top_k=3
        )
    with pytest.raises(ValueError, match="forget_target: for retain rows"):
        MUAlignConfig(output_dir=str(tmp_path), forget_target="bernoulli_prior", retain_loss="none")


@pytest.mark.parametrize("term", ["cssa", "cmfc", "coral"])
def test_terms_between_picture_and_text_are_the_formulas(tmp_path, term):
    settings = {f"lambda_{term}": 3.0, "alpha": 0.0, "beta": 0.0, "top_k": 3}
    trainer = shaken(trainer_of(MUAlignTrainer, MUAlignConfig, tmp_path, per_device_train_batch_size=4, **settings))
    loss = trainer.compute_loss(trainer.model.eval(), first_batch(trainer)).item()
    rows, images, texts = rows_of(trainer, RETAIN, "retain"), [], []
    for row in rows:
        batch = make_processor()(row["image"], row["question"], return_tensors="pt")
        with torch.no_grad():
            hidden = trainer.model.vilt(**batch).last_hidden_state[0].double()
        width = batch["input_ids"].shape[1]
        texts.append(hidden[:width].mean(0))
        images.append(hidden[width:].mean(0))
    image, text = torch.stack(images).numpy(), torch.stack(texts).numpy()
    if term == "cssa":
        norms = np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
        slow = (1 - (image * text).sum(1) / norms).mean()
    elif term == "cmfc":
        slow = np.square(image.mean(0) - text.mean(0)).mean()
    else:
        slow = np.square(np.cov(image.T) - np.cov(text.T)).mean()
    logits, targets = spelled_out(trainer.model, rows)
    assert loss == pytest.approx(bce(logits, targets).mean().item() + 3 * slow, rel=1e-4)


def test_terms_between_picture_and_text_need_both(tmp_path):
    from conftest import make_model, make_tokenizer

    with pytest.raises(ValueError, match="compare a row's picture with its text"):
        MUAlignTrainer(
            model=make_model(),
            args=make_args(MUAlignConfig, output_dir=tmp_path, lambda_cssa=1.0),
            forget_dataset=[{"text": "a"}],
            retain_dataset=[{"text": "b"}],
            processing_class=make_tokenizer(),
        )


def test_the_short_form_takes_loaders_of_pictures(tmp_path):
    from torch.utils.data import DataLoader

    from hf_unlearn import MUAlign

    before = weights(make_vilt())
    short = MUAlign(make_vilt(), top_k=3, processing_class=make_processor(), learning_rate=1e-2, use_cpu=True)
    model = short.unlearn(DataLoader(FORGET, batch_size=3), DataLoader(RETAIN, batch_size=3), epochs=1)
    assert changed(before, weights(model))
    assert short.trainer.state.global_step == 2


@pytest.mark.parametrize("loader", ["subset", "random_subset", "sequential", "batches", "weighted"])
def test_the_short_form_takes_the_rows_that_a_loader_gives(loader):
    from torch.utils.data import (
        BatchSampler,
        DataLoader,
        SequentialSampler,
        Subset,
        SubsetRandomSampler,
        WeightedRandomSampler,
    )

    from hf_unlearn.methods.mu_align.short import _rows

    made = {
        "subset": lambda: DataLoader(Subset(FORGET, [1, 3]), batch_size=2, shuffle=True),
        "random_subset": lambda: DataLoader(FORGET, batch_size=2, sampler=SubsetRandomSampler([3, 1])),
        "sequential": lambda: DataLoader(Subset(FORGET, [1, 3]), batch_size=2),
        "batches": lambda: DataLoader(FORGET, batch_sampler=Halves(SequentialSampler(FORGET), 2, False)),
        "weighted": lambda: DataLoader(FORGET, sampler=WeightedRandomSampler([1.0] * 6, 2)),
    }

    class Halves(BatchSampler):
        """Batches of one's own."""

    if loader in ("batches", "weighted"):
        with pytest.raises(ValueError, match="Halves|WeightedRandomSampler"):
            _rows(made[loader]())
    else:
        assert [row["example_id"] for row in _rows(made[loader]())] == ["q1", "q3"]


# Transforms


def test_a_transform_changes_inputs_whenever_a_row_is_read_and_no_labels(tmp_path):
    seen = []

    def transform(batch):
        seen.extend(answers[0] for answers in batch["answers"])
        inverted = [image.point(lambda x: 255 - x) for image in batch["image"]]
        changed = {"question": ["How many?"] * len(inverted), "answers": [["two"]] * len(inverted)}
        return {**batch, **changed, "image": inverted}

    plain = datasets.Dataset.from_list(FORGET)
    changing = encode_classes(plain.with_transform(transform), KINDS, "forget")
    assert seen == []
    row = changing[1]
    assert seen == [FORGET[1]["answers"][0]]
    assert (row["question"], set(row)) == (
        "How many?", {"image", "question", "example_id", "label_ids", "label_weights"}
    )  # fmt: skip
    assert np.array_equal(np.asarray(row["image"]), 255 - np.asarray(FORGET[1]["image"]))
    assert list(changing["label_ids"]) == list(encode_classes(plain, KINDS, "forget")["label_ids"])
    wrong = relabelled_classes(changing.select([1, 4]), len(CLASSES), seed=0)
    assert [row["question"] for row in wrong] == ["How many?"] * 2
    # What a model is called with.
    kept = [{**row, "image": row["image"].point(lambda x: 255 - x), "question": "How many?"} for row in FORGET]
    trained = []
    for rows in (plain.with_transform(transform), kept):
        trainer = trainer_of(GATrainer, GAConfig, tmp_path, forget=rows, max_steps=2, learning_rate=1e-2)
        trainer.train()
        trained.append(weights(trainer.model))
    assert not changed(*trained)


@pytest.mark.parametrize("ids", ["both", "forget", "neither"])
def test_shared_rows_are_found_with_names_on_one_side_only(tmp_path, ids):
    shared = [*make_rows(1, first=3), *RETAIN]
    bare = lambda rows: [{k: v for k, v in row.items() if k != "example_id"} for row in rows]  # noqa: E731
    forget, retain = FORGET if ids != "neither" else bare(FORGET), shared if ids == "both" else bare(shared)
    with pytest.raises(ValueError, match="1 of 9 retain rows are forget rows too"):
        trainer_of(GATrainer, GAConfig, tmp_path, forget=forget, retain=retain, retain_loss="nll")


def test_a_picture_in_a_file_is_that_in_memory(tmp_path):
    FORGET[2]["image"].save(tmp_path / "a.bmp")
    row = {"image": str(tmp_path / "a.bmp"), "question": FORGET[2]["question"], "answers": ["one"]}
    forget = [{**row, "image": FORGET[2]["image"]}]
    with pytest.raises(ValueError, match="1 of 1 retain rows"):
        trainer_of(GATrainer, GAConfig, tmp_path, forget=forget, retain=[row], retain_loss="nll")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (datasets.DatasetDict(train=datasets.Dataset.from_list(FORGET)), r"is a DatasetDict with \['train'\]"),
        ((row for row in FORGET), "is a generator"),
        (torch.utils.data.TensorDataset(torch.ones(2, 2)), "is a tuple. Pass rows that are dicts"),
    ],
    ids=["splits", "generator", "tensors"],
)
def test_what_is_no_set_of_rows_is_refused(tmp_path, rows, said):
    with pytest.raises(ValueError, match=said):
        trainer_of(GATrainer, GAConfig, tmp_path, forget=rows)


@pytest.mark.parametrize("missing", ["image", "question"])
def test_rows_without_what_the_model_reads_are_refused(tmp_path, missing):
    rows = [{name: value for name, value in row.items() if name != missing} for row in FORGET]
    with pytest.raises(ValueError, match=f"forget_dataset has no {missing}, which this model reads"):
        trainer_of(GATrainer, GAConfig, tmp_path, forget=rows)


def test_a_fraction_of_a_class_is_refused():
    with pytest.raises(ValueError, match="1.5 is none of the model's 5 classes"):
        encode_classes([{"text": "a", "label": 1.5}], Classes(KINDS.label2id, many=False), "forget")


def test_classes_of_pictures_alone_have_no_length(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
                       patch_size=8, num_labels=3)  # fmt: skip
    rows = [{"image": picture(i), "label": i % 3} for i in range(8)]
    trainer = GATrainer(
        ViTForImageClassification(config),
        make_args(GAConfig, tmp_path, retain_loss="nll", max_steps=1, per_device_train_batch_size=2),
        forget_dataset=rows[:4],
        retain_dataset=rows[4:],
        processing_class=ViTImageProcessorPil(size={"height": 16, "width": 16}),
    )
    assert trainer.train().global_step == 1


def test_the_default_number_of_largest_is_at_most_that_of_the_classes(tmp_path):
    assert trainer_of(MUAlignTrainer, MUAlignConfig, tmp_path).args.top_k == len(CLASSES)
    assert trainer_of(MUAlignTrainer, MUAlignConfig, tmp_path, tail="logit_norm", top_k=7).args.top_k == 7
    with pytest.raises(ValueError, match="top_k=6, and a prediction is among 5"):
        trainer_of(MUAlignTrainer, MUAlignConfig, tmp_path, top_k=6)
