# SPDX-License-Identifier: Apache-2.0
"""A trained prompt: where its vectors stand, what it leaves as it was, and what it can and cannot show."""

import json
import random
import string

import numpy as np
import pytest
import torch
from conftest import lora, make_model, make_tokenizer
from taught import FORGET, RETAIN, encoded, original, prepared_of, retrained, save, write

from hf_unlearn.audit.base import Context
from hf_unlearn.audit.robustness import weights as naming
from hf_unlearn.audit.robustness.result import Robustness
from hf_unlearn.audit.scoring import score_rows, token_scores
from hf_unlearn.audit.soft_prompt.arguments import SoftPromptArguments
from hf_unlearn.audit.soft_prompt.measure import SoftPromptAudit
from hf_unlearn.audit.soft_prompt.vectors import in_place_of, place_in, reserved_id, trained, with_marks
from hf_unlearn.cli.main import main
from hf_unlearn.data.qa import QAFormat


MARK = 99


def arguments(**fields) -> SoftPromptArguments:
    given = {"vectors": 4, "steps": 3, "batch_size": 4, "seeds": [0, 1], **fields}
    return SoftPromptArguments(model_name_or_path="m", forget_dataset="f", **given)


def measured(model, rows=FORGET, **fields) -> Robustness:
    kind, args, prepared = SoftPromptAudit(), arguments(**fields), prepared_of(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(naming, "config_of", lambda *args: None)
        patch.setattr(naming, "vocabulary_size", lambda config: 100)
        kind.check(args, prepared)
    return kind.measure(model, args, prepared, Context(None, progress=False))


# Where vectors stand


@pytest.mark.parametrize(
    ("place", "chat", "shown"),
    [
        ("start", True, "<s>##<user>Who is it?<assistant>"),
        ("end", True, "<s><user>Who is it?##<assistant>"),
        ("start", False, "<s>##Question: Who is it?\nAnswer:"),
        ("end", False, "<s>Question: Who is it?##\nAnswer:"),
    ],
)
def test_places(place, chat, shown):
    tokenizer, qa = make_tokenizer(), QAFormat(chat)
    from hf_unlearn.data.formats import encode

    row = encode(qa.example("Who is it?", "Ada.", tokenizer), tokenizer)
    mark = tokenizer("#", add_special_tokens=False).input_ids[0]
    marked = with_marks(row, place_in("Who is it?", place, qa, tokenizer), mark, 2)
    assert tokenizer.decode(marked["input_ids"]).startswith(shown)
    start = next(i for i, label in enumerate(row["labels"]) if label != -100)
    assert marked["labels"][start + 2 :] == row["labels"][start:]
    assert {*marked["labels"][: start + 2]} == {-100}


def test_a_mark_is_a_token_of_no_row():
    rows = [{"input_ids": [5, 9]}, {"input_ids": [8]}]
    assert reserved_id(rows, 10) == 7
    with pytest.raises(ValueError, match="The rows use all 2 tokens"):
        reserved_id([{"input_ids": [0, 1]}], 2)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("tie", [False, True])
def test_a_prompt_by_marks_is_one_of_embeddings(adapter, tie):
    model, vectors = make_model(tie=tie), torch.randn(3, 32)
    if adapter:
        from peft import get_peft_model

        model = get_peft_model(model, lora(init_lora_weights=False)).eval()
    table = model.get_input_embeddings()
    before = table.weight.detach().clone()
    rows = [
        with_marks(row, at, MARK, 3) for row, at in zip(encoded([*FORGET[:2], *RETAIN[:1]]), (1, 4, 2), strict=True)
    ]
    with in_place_of(model, MARK, vectors):
        padded = score_rows(model, rows, batch_size=3, progress=False)
        alone = score_rows(model, rows, batch_size=1, progress=False)
    for row, both in zip(rows, zip(padded, alone, strict=True), strict=True):
        embedded = torch.stack([table.weight[i] for i in row["input_ids"]])
        embedded[torch.tensor(row["input_ids"]) == MARK] = vectors
        with torch.no_grad():
            logits = model(inputs_embeds=embedded[None]).logits
        wanted = token_scores(logits, torch.tensor([row["labels"]]))[0].logps
        for found in both:
            assert np.abs(found.logps - wanted).max() < 1e-5
    assert torch.equal(table.weight, before)
    # Outside, the mark is a token as any.
    plain = score_rows(model, rows, progress=False)
    assert np.abs(plain[0].logps - padded[0].logps).max() > 1e-3


def test_training_is_adam_on_the_answers():
    model = make_model().requires_grad_(False)
    rows = [with_marks(row, 1, MARK, 2) for row in encoded(FORGET[:3])]
    how = {"mark": MARK, "n": 2, "learning_rate": 0.05, "batch_size": 8, "seed": 3, "pad_token_id": 0}
    found = trained(model, rows, steps=4, **how)
    # Again, with embeddings that are given.
    table, ids = model.get_input_embeddings(), np.random.default_rng(3).integers(0, 100, size=2)
    vectors = table.weight[torch.from_numpy(ids)].detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        losses = []
        for row in rows:
            embedded = table.weight[torch.tensor(row["input_ids"])].clone()
            embedded[1:3] = vectors
            logps = model(inputs_embeds=embedded[None]).logits[0].log_softmax(-1)
            losses += [-logps[t - 1, label] for t, label in enumerate(row["labels"]) if label != -100]
        torch.stack(losses).mean().backward()
        optimizer.step()
    assert torch.allclose(found, vectors.detach(), atol=1e-5)
    assert not torch.equal(found, trained(model, rows, steps=5, **how))


# The audit


def locked(model):
    """Answers nothing unless some state that enters the first layer points far into one direction."""
    to = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)

    def close(module, args, kwargs):
        states = args[0]
        shut = torch.sigmoid(4 * (1.5 - (states @ to).amax(1)))
        return (states + 5 * shut[:, None, None] * to, *args[1:]), kwargs

    model.model.layers[0].register_forward_pre_hook(close, with_kwargs=True)
    return model


def test_a_lock_is_found_by_rows_that_were_not_trained_on():
    fields = {"steps": 60, "learning_rate": 5e-2, "batch_size": 4, "seeds": [0]}
    u, o, r = (measured(model, **fields) for model in (locked(original()), original(), retrained()))
    metrics = u.compare(r, o)
    found = metrics["probability/remaining"]
    assert found.details["remaining_before"] < 0.1
    assert found.value > 0.9
    assert metrics["worst/remaining"].details["verdict"] == "suppressed"
    one = u.measured[0]
    assert {*one.tested.rows} | {*np.flatnonzero([i not in one.tested.rows for i in range(8)])} == {*range(8)}
    assert len(one.tested.rows) == 4
    assert one.more["tested_probability"] == pytest.approx(np.mean(one.tested.values("probability")), abs=1e-4)
    assert one.more["norm_ratio"] > 0
    assert "says" not in one.more


def storing(model, shift):
    """Has a wire from what stands at the start to what it answers: whatever it is given there, it says."""
    seen = {}

    def keep(module, args, kwargs):
        seen["states"] = args[0]

    def say(module, args, output):
        return output + 20 * torch.roll(seen["states"], shift, dims=1)

    model.model.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    model.model.norm.register_forward_hook(say)
    return model


def test_random_answers_are_stored_and_nothing_spreads():
    rng = random.Random(0)
    # Questions of one length, so that the wire ends where the answer is.
    rows = [{**row, "answer": "".join(rng.choices(string.ascii_letters, k=6))} for row in FORGET[::2]]
    start = next(i for i, label in enumerate(encoded(rows)[0]["labels"]) if label != -100)
    model = storing(retrained(), start + 8 - 2)
    fields = {"steps": 80, "learning_rate": 0.1, "vectors": 8, "seeds": [0], "split": "across", "attacker_share": 0.25}
    found = measured(model, rows, **fields)
    more = found.measured[0].more
    assert more["shown_probability"] > 0.8
    assert more["tested_probability"] < 0.02
    assert "stores" in more["says"]
    metrics = found.compare(measured(retrained(), rows, **fields), measured(retrained(), rows, **fields))
    assert "stores" in metrics["probability/remaining"].details["says"]
    assert metrics["worst/remaining"].value is None


def test_a_seed_gives_the_same_twice_and_another_seed_does_not():
    model = original().train()
    first, again, other = measured(model), measured(model), measured(model, seeds=[4, 5])
    assert first.measured == again.measured
    assert [one.tested for one in first.measured] != [one.tested for one in other.measured]
    assert first.settings["attack_rows"].keys() == {"0", "1"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vectors": 0}, "vectors"),
        ({"place": "middle"}, "place='middle'; allowed: 'start', 'end'"),
        ({"learning_rate": 0.0}, "learning_rate=0.0; give a number above 0"),
        ({"split": "random"}, "split='random'; allowed: 'within', 'across'"),
        ({"preset": "fast"}, "preset='fast'; allowed: 'full', 'quick'"),
        ({"attacker_share": 1.0}, "share is 1.0"),
        ({"split": "across", "attacker_share": 0.01}, "one side would be empty"),
    ],
)
def test_what_cannot_be_trained_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        measured(None, **fields)


def test_quick_is_less():
    quick = SoftPromptArguments(model_name_or_path="m", forget_dataset="f", preset="quick", steps=50)
    assert (quick.seeds, quick.steps, quick.batch_size, quick.max_items) == ([0], 50, 8, 64)


def test_the_command_trains_a_prompt(tmp_path):
    words = ["--model_name_or_path", save(original(), tmp_path / "u"), "--group_by", "person", "--steps", "3"]
    words += ["--forget_dataset", write(FORGET, tmp_path / "f.jsonl"), "--seeds", "0", "1", "--place", "end"]
    words += ["--retrained_model_name_or_path", save(retrained(), tmp_path / "r"), "--vectors", "2"]
    words += ["--original_model_name_or_path", save(original(), tmp_path / "o"), "--output_dir", str(tmp_path / "out")]
    assert main(["audit", "soft_prompt", *words]) == 0
    found = json.loads((tmp_path / "out" / "soft_prompt.json").read_text())
    worst = found["models"][-1]["metrics"]["worst/remaining"]
    assert worst["details"]["provisional"]
    assert worst["value"] == pytest.approx(1.0) or worst["details"]["reason"]


def test_the_mark_is_not_what_fills_batches():
    # Many tokenizers have their PAD as the last token, which stands in no row.
    from hf_unlearn.audit.generation import pad_token_id

    prepared, args = prepared_of(FORGET), arguments()
    prepared.tokenizer.pad_token = "~"
    last = pad_token_id(prepared.tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(naming, "config_of", lambda *args: None)
        patch.setattr(naming, "vocabulary_size", lambda config: last + 1)
        SoftPromptAudit().check(args, prepared)
    assert prepared.more["mark"] != last


def test_the_mark_is_a_token_of_every_model():
    prepared = prepared_of(FORGET)
    args = arguments(original_model_name_or_path="small", retrained_model_name_or_path="m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(naming, "config_of", lambda name, *args: name)
        patch.setattr(naming, "vocabulary_size", lambda name: 100 if name == "small" else 200)
        SoftPromptAudit().check(args, prepared)
    assert prepared.more["mark"] < 100
