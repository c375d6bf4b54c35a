# SPDX-License-Identifier: Apache-2.0
"""The two passes of a model over rows: scoring and generation."""

import copy
import logging

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer

from hf_unlearn.audit import generate_answers, score_rows
from hf_unlearn.audit import scoring as scoring_module
from hf_unlearn.audit.batching import map_batches


def random_rows(n=9, seed=0, vocab_size=100):
    rng = np.random.default_rng(seed)
    rows = []
    for length in rng.integers(2, 20, size=n):
        ids = rng.integers(4, vocab_size, size=length).tolist()
        start = int(rng.integers(0, length))
        rows.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    return rows


@torch.no_grad()
def slow_scores(model, row):
    """One row alone, token by token, in float64 from the logits on."""
    logits = model(torch.tensor([row["input_ids"]])).logits[0].double()
    logps, correct = [], []
    for t in range(1, len(row["labels"])):
        if row["labels"][t] != -100:
            probabilities = torch.exp(logits[t - 1]) / torch.exp(logits[t - 1]).sum()
            logps.append(float(torch.log(probabilities[row["labels"][t]])))
            correct.append(int(probabilities.argmax()) == row["labels"][t])
    return logps, correct


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_scores_equal_one_row_at_a_time(model, batch_size, monkeypatch):
    # Small chunks: positions of one row fall into several.
    monkeypatch.setattr(scoring_module, "CHUNK_ELEMENTS", 300)
    rows = [*random_rows(), {"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}, {"input_ids": [5], "labels": [5]}]
    for row, score in zip(rows, score_rows(model, rows, batch_size=batch_size, progress=False), strict=True):
        logps, correct = slow_scores(model, row)
        assert score.n == len(logps)
        assert score.logps == pytest.approx(logps, abs=1e-5)
        assert score.correct.tolist() == correct
        assert score.mean_logp == (pytest.approx(np.mean(logps), abs=1e-5) if logps else None)


def test_argmax_flags_are_not_all_false(model):
    # A row that the model itself continues: every generated token is its first choice.
    ids = [1, 40, 50]
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    score = score_rows(model, [{"input_ids": ids, "labels": [-100] * 3 + ids[3:]}], progress=False)[0]
    assert score.correct.tolist() == [True] * 6


def test_order_and_pad_token_change_nothing(model):
    rows = random_rows(12)
    plain = score_rows(model, rows, batch_size=5, progress=False)
    padded = score_rows(model, rows, batch_size=5, pad_token_id=2, progress=False)
    backwards = score_rows(model, rows[::-1], batch_size=5, progress=False)[::-1]
    for a, b, c in zip(plain, padded, backwards, strict=True):
        assert np.array_equal(a.logps, b.logps)
        assert a.logps == pytest.approx(c.logps, abs=1e-5)


def test_eos_used_as_pad_is_seen_and_scored():
    model = make_model()
    ids = [1, 30, 31, 2, 32, 33, 2]
    rows = [{"input_ids": ids, "labels": ids}, {"input_ids": [1, 30], "labels": [1, 30]}]
    score = score_rows(model, rows, pad_token_id=2, progress=False)[0]
    assert score.n == 6
    assert score.logps == pytest.approx(slow_scores(model, rows[0])[0], abs=1e-5)


def test_no_rows(model):
    assert score_rows(model, [], progress=False) == []
    assert generate_answers(model, make_tokenizer(), [], progress=False) == []


def test_float64_models_keep_their_precision(model):
    rows = random_rows(3)
    score = score_rows(model.double(), rows, progress=False)[0]
    assert score.logps.dtype == np.float64
    assert score.logps == pytest.approx(slow_scores(model, rows[0])[0], abs=1e-12)


def test_modes_and_gradients_are_left_as_found(model):
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    found = model.generation_config
    settings = found.to_dict()
    score_rows(model, random_rows(3), progress=False)
    generate_answers(model, make_tokenizer(), [[1, 30]], max_new_tokens=3, progress=False)
    assert [module.training for module in model.modules()] == before
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.generation_config is found
    assert found.to_dict() == settings


def test_mode_is_restored_after_an_error(model):
    model.train()
    with pytest.raises(IndexError):
        score_rows(model, [{"input_ids": [1, 5000], "labels": [1, 5000]}], progress=False)
    assert model.training


def test_dropout_is_off(model):
    model.config.attention_dropout = 0.9
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    rows = random_rows(3)
    first, second = (score_rows(model, rows, progress=False)[0].logps for _ in range(2))
    assert np.array_equal(first, second)


def slow_greedy(model, prompt, eos, max_new_tokens):
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(max_new_tokens):
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == eos:
                break
            ids.append(token)
    return ids[len(prompt) :]


PROMPTS = [[1, 10], [1, 50, 60, 70, 80], [1, 20, 21], [1, 33, 44, 55, 66, 77, 88], [1]]


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_generation_equals_one_prompt_at_a_time(pad_is_eos, batch_size):
    tokenizer = make_tokenizer(pad_is_eos)
    model = make_model(seed=3)
    # One token becomes EOS for some rows: the greedy continuation of a prompt holds it.
    eos = slow_greedy(model, PROMPTS[1], None, 4)[2]
    model.generation_config.eos_token_id = eos
    answers = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=batch_size, progress=False)
    slow = [slow_greedy(model, prompt, eos, 8) for prompt in PROMPTS]
    assert answers == [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in slow]
    assert len(slow[1]) <= 2


def test_generation_is_greedy_whatever_the_checkpoint_says(model, caplog):
    tokenizer = make_tokenizer()
    plain = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, progress=False)
    model.generation_config.update(
        do_sample=True,
        temperature=5.0,
        top_p=0.9,
        num_beams=3,
        repetition_penalty=3.0,
        no_repeat_ngram_size=1,
        min_length=60,
        max_length=4,
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="transformers"):
        assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, progress=False) == plain
    assert not caplog.records


def test_generation_ends_at_the_tokenizers_eos_too(model):
    tokenizer = make_tokenizer()
    continuation = slow_greedy(model, [1, 50], None, 4)
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(continuation[1])
    answer = generate_answers(model, tokenizer, [[1, 50]], max_new_tokens=20, progress=False)[0]
    assert answer == tokenizer.decode(continuation[:1], skip_special_tokens=True).strip()


def test_peft_models(model):
    from peft import LoraConfig, get_peft_model

    rows = random_rows(4)
    before = score_rows(model, rows, progress=False)
    text = generate_answers(model, make_tokenizer(), PROMPTS, max_new_tokens=4, progress=False)
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for a, b in zip(before, score_rows(lora, rows, progress=False), strict=True):
        assert a.logps == pytest.approx(b.logps, abs=1e-6)
    assert generate_answers(lora, make_tokenizer(), PROMPTS, max_new_tokens=4, progress=False) == text
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=3.0)
    assert not np.allclose(score_rows(lora, rows, progress=False)[0].logps, before[0].logps)


def test_longest_rows_go_first_and_results_keep_their_order():
    calls = []

    def compute(batch):
        calls.append(list(batch))
        return [i * 10 for i in batch]

    assert map_batches(compute, [3, 9, 1, 7, 5], 2, progress=False) == [0, 10, 20, 30, 40]
    assert calls == [[1, 3], [4, 0], [2]]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        map_batches(compute, [1], 0, progress=False)


def test_progress_bar_can_be_seen_and_turned_off(model, capsys):
    score_rows(model, random_rows(3), desc="Some rows")
    assert "Some rows: 100%" in capsys.readouterr().err
    score_rows(model, random_rows(3), progress=False)
    assert capsys.readouterr().err == ""
