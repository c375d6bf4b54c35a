# SPDX-License-Identifier: Apache-2.0
"""MultiDelete: its three losses against the models called row by row, what it refuses, and the grid's behaviours."""

import collections
import re

import pytest
import torch
from conftest import changed, lora, make_args, make_model, make_tokenizer, train_batch, weights
from test_methods import shake
from transformers import BertConfig, BertForSequenceClassification, ViltForQuestionAnswering
from vilt import make_processor, make_rows, make_vilt

from hf_unlearn import MultiDeleteConfig, MultiDeleteTrainer
from hf_unlearn.families.classifier.pairs import derangement, with_texts_of


FORGET, RETAIN = make_rows(6), make_rows(8, first=20)
adapters = pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])


@pytest.fixture
def build(tmp_path):
    def build(forget=FORGET, retain=RETAIN, adapter=False, model=None, out="out", **kwargs):
        return MultiDeleteTrainer(
            model=model or make_vilt(),
            args=make_args(MultiDeleteConfig, tmp_path / out, **{"learning_rate": 1e-3, **kwargs}),
            forget_dataset=forget,
            retain_dataset=retain,
            processing_class=make_processor(),
            peft_config=lora(target_modules=["query", "value"], task_type=None) if adapter else None,
        )

    return build


def test_a_derangement_has_no_fixed_point_and_is_uniform():
    torch.manual_seed(0)
    found = collections.Counter(tuple(derangement(4).tolist()) for _ in range(1800))
    assert all(number != place for order in found for place, number in enumerate(order))
    assert len(found) == 9
    assert all(140 < count < 260 for count in found.values())
    assert derangement(2).tolist() == [1, 0]
    with pytest.raises(ValueError, match="1 row cannot change its text"):
        derangement(1)


def test_texts_move_and_pictures_stay():
    part = {"input_ids": torch.tensor([[1], [2], [3]]), "pixel_values": torch.tensor([[1.0], [2.0], [3.0]])}
    found = with_texts_of(part, part, torch.tensor([2, 0, 1]))
    assert found["input_ids"].tolist() == [[3], [1], [2]]
    assert torch.equal(found["pixel_values"], part["pixel_values"])
    other = {"input_ids": torch.tensor([[7], [8], [9]]), "pixel_values": -part["pixel_values"]}
    found = with_texts_of(part, other)
    assert found["input_ids"].tolist() == [[7], [8], [9]]
    assert torch.equal(found["pixel_values"], part["pixel_values"])


def terms(trainer, positions) -> dict[str, float]:
    """What the trainer logs of one batch."""
    inputs = train_batch(trainer, positions)
    rows = trainer.role_rows(trainer.model, inputs)
    values = {"forget": trainer.forget_loss(rows["forget"]), "retain": trainer.retain_loss(rows["retain"])}
    return {name: x.item() for r in rows.values() for name, x in r.noted.items()} | {
        k: v.item() for k, v in values.items()
    }


@adapters
def test_at_the_start_only_the_decoupling_is_not_zero(build, adapter):
    trainer = build(adapter=adapter, per_device_train_batch_size=6, reference="adapter" if adapter else "live")
    trainer.model.eval()
    found = terms(trainer, range(6))
    assert found["ukr"] == 0
    # ViLT draws an order of patches at every call, and sums round.
    assert found["mkr"] == found["retain"] < 1e-12
    assert found["forget"] == found["md"] > 1e-3


@torch.no_grad()
def said(model, image, question) -> dict[str, torch.Tensor]:
    """Pooled state, embedded patches and embedded tokens of one pair alone."""
    core = getattr(model, "get_base_model", lambda: model)()
    batch = make_processor()(image, question, return_tensors="pt")
    embeddings = core.vilt.embeddings
    return {
        "fused": core.vilt(**batch).pooler_output[0],
        "image": embeddings.patch_embeddings(batch["pixel_values"])[0],
        "text": embeddings.text_embeddings(batch["input_ids"])[0],
    }


@pytest.mark.parametrize("texts", ["forget", "retain"])
@adapters
def test_losses_equal_the_models_called_row_by_row(build, adapter, texts, monkeypatch):
    order = torch.tensor([3, 2, 0, 1])
    monkeypatch.setattr("hf_unlearn.methods.multidelete.derangement", lambda count: order)
    trainer = build(
        adapter=adapter, per_device_train_batch_size=4, md_weight=0.5, mkr_weight=3.0, ukr_weight=2.0,
        reference="adapter" if adapter else "live", unrelated_from=texts,
    )  # fmt: skip
    entered, policy = make_vilt().eval(), trainer.model.eval()
    shake(policy, 0.05)
    pairs = [trainer.train_dataset[position] for position in range(4)]
    forget, retain = ([pair[role] for pair in pairs] for role in ("forget", "retain"))
    md, text, image = [], [], []
    for i, row in enumerate(forget):
        ours = said(policy, row["image"], row["question"])
        question = forget[order[i]]["question"] if texts == "forget" else retain[i]["question"]
        other = said(entered, row["image"], question)
        own = said(entered, row["image"], row["question"])
        md.append((ours["fused"] - other["fused"]).square())
        image.append((ours["image"] - own["image"]).square())
        text.append((ours["text"] - own["text"]).square())
    mkr = [
        (said(policy, row["image"], row["question"])["fused"] - said(entered, row["image"], row["question"])["fused"])
        for row in retain
    ]
    found = terms(trainer, range(4))
    assert found["md"] == pytest.approx(torch.stack(md).mean().item(), rel=1e-4)
    ukr = torch.stack(image).mean().item() + torch.cat(text).mean().item()
    assert found["ukr"] == pytest.approx(ukr, rel=1e-4, abs=1e-9)
    assert found["mkr"] == pytest.approx(torch.stack(mkr).square().mean().item(), rel=1e-4)
    assert found["forget"] == pytest.approx(0.5 * found["md"] + 2.0 * found["ukr"])
    assert found["retain"] == pytest.approx(3.0 * found["mkr"])
    assert (found["ukr"] == 0) == adapter
    assert len({tuple(row["question"]) for row in forget}) == 2


@adapters
def test_pairs_come_apart_and_nothing_else_moves(build, adapter):
    trainer = build(adapter=adapter, max_steps=20, per_device_train_batch_size=3, md_weight=1.0)
    before = weights(trainer.model)
    trainer.train()
    moved = changed(before, weights(trainer.model))
    assert moved
    assert not [name for name in moved if "classifier" in name]
    assert all("lora_" in name for name in moved) == adapter
    logs = [entry for entry in trainer.state.log_history if "forget/md" in entry]
    assert set(logs[0]) >= {"forget/md", "forget/ukr", "retain/mkr", "forget/nll", "retain/nll"}
    first, last = (sum(entry["forget/md"] for entry in part) for part in (logs[:4], logs[-4:]))
    assert last < 0.8 * first


def test_every_batch_has_another_forget_row(build):
    trainer = build(forget=make_rows(5), per_device_train_batch_size=2)
    assert len(trainer.train_dataset) == 6
    trainer.args.max_steps = 5
    trainer.train()


@adapters
def test_resume_gives_the_weights_of_the_uninterrupted_run(build, tmp_path, adapter):
    settings = {"adapter": adapter, "max_steps": 5, "save_strategy": "steps", "save_steps": 3}
    whole = build(**settings)
    whole.train()
    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert not changed(weights(whole.model), weights(resumed.model))


def test_a_saved_model_predicts_the_same(build, tmp_path):
    trainer = build()
    trainer.train()
    trainer.save_model()
    loaded = ViltForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    batch = make_processor()(FORGET[0]["image"], FORGET[0]["question"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, trainer.model.eval()(**batch).logits)
        assert (loaded(**batch).logits - make_vilt().eval()(**batch).logits).abs().max() > 1e-4


# What it refuses


def test_models_of_text_alone_are_refused(tmp_path):
    args = make_args(MultiDeleteConfig, tmp_path / "out")
    rows = [{"text": "a secret"}, {"text": "another"}]
    with pytest.raises(ValueError, match="MultiDeleteTrainer is for classifiers"):
        MultiDeleteTrainer(make_model(), args, None, rows, [{"text": "a cup"}], processing_class=make_tokenizer())
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    rows = [{"text": "what colour", "label": i % 2} for i in range(3)]
    kept = [{"text": "how many", "label": i % 2} for i in range(3)]
    with pytest.raises(ValueError, match="built for ViLT; this model is a BertForSequenceClassification"):
        MultiDeleteTrainer(
            BertForSequenceClassification(config), args, None, rows, kept, processing_class=make_processor().tokenizer
        )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"unrelated_from": "both"}, "unrelated_from='both'; allowed: 'forget', 'retain'"),
        ({"md_weight": -1.0}, "md_weight=-1.0; give a finite number at least 0"),
        ({"forget_weight": 2.0}, "forget_weight=2.0: MultiDelete has `md_weight`"),
        ({"retain_loss": "nll"}, "retain_loss='nll'; allowed: 'states'"),
        ({"per_device_train_batch_size": 1}, "per_device_train_batch_size=1: a forget row takes another's text"),
    ],
)
def test_bad_settings_are_refused(tmp_path, wrong, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        MultiDeleteConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **wrong)


def test_texts_that_are_all_the_same_are_told(build, caplog):
    same = [{**row, "question": "What is it?"} for row in FORGET]
    build(forget=same)
    assert "All forget rows ask 'What is it?'" in caplog.text
    caplog.clear()
    build(forget=same, unrelated_from="retain")
    build()
    assert "All forget rows ask" not in caplog.text


def test_one_forget_row_is_too_few(build):
    with pytest.raises(ValueError, match="There is one forget row"):
        build(forget=FORGET[:1])
