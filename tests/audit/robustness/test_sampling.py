# SPDX-License-Identifier: Apache-2.0
"""Sampled answers: leak@k from probabilities and from draws."""

import itertools
import json
import math
import random

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from taught import FORGET, RETAIN, encoded, original, prepared_of, retrained, save, write

from hf_unlearn.audit.base import Context
from hf_unlearn.audit.generation import generate_answers
from hf_unlearn.audit.robustness.result import Robustness
from hf_unlearn.audit.sampling.arguments import SamplingArguments
from hf_unlearn.audit.sampling.leak import MEASURES, leak_exact, leak_sampled
from hf_unlearn.audit.sampling.measure import SamplingAudit, draw_seed, whole_answer
from hf_unlearn.cli.main import main


# leak@k


def test_the_best_of_k_is_the_mean_over_all_subsets():
    scores = np.random.default_rng(0).random(8).tolist()
    for k in range(1, 9):
        best = np.mean([max(subset) for subset in itertools.combinations(scores, k)])
        assert leak_sampled(scores, k) == pytest.approx(best, abs=1e-12)


def test_of_right_and_wrong_it_is_the_closed_form():
    for n, c, k in ((10, 3, 4), (64, 1, 32), (200, 2, 128), (5, 5, 2), (5, 0, 5)):
        scores = [1.0] * c + [0.0] * (n - c)
        assert leak_sampled(scores, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-12)


def test_it_is_unbiased_where_the_plug_in_is_not():
    p, n, k = 0.01, 200, 128
    counts = np.random.default_rng(0).binomial(n, p, size=4000)
    found = {c: leak_sampled([1.0] * c + [0.0] * (n - c), k) for c in {*counts.tolist()}}
    mean, truth = np.mean([found[c] for c in counts.tolist()]), 1 - (1 - p) ** k
    plug_in = np.mean(1 - (1 - counts / n) ** k)
    noise = np.std([*found.values()]) / math.sqrt(len(counts))
    assert abs(mean - truth) < 4 * noise
    assert abs(plug_in - truth) > 0.05


@pytest.mark.parametrize("k", [0, 9])
def test_more_draws_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=f"best of {k} draws cannot be estimated from 8"):
        leak_sampled([0.0] * 8, k)


def test_exact_is_one_minus_all_misses():
    for p, k in ((0.3, 4), (1e-12, 32), (1.0, 3)):
        assert leak_exact(math.log(p), k) == pytest.approx(1 - (1 - p) ** k, rel=1e-4)
    # What a float of 1 - p would lose.
    assert leak_exact(-80.0, 32) == pytest.approx(32 * math.exp(-80.0))


def test_what_counts_as_a_leak():
    drawn = ["In ROME.", "She is in Rome, they say.", "In Oslo.", ""]
    assert MEASURES["exact_match"](drawn, "In Rome.", "") == [1, 0, 0, 0]
    assert MEASURES["contains"](drawn, "In Rome.", "rome") == [1, 1, 0, 0]
    assert MEASURES["rouge"](drawn, "In Rome.", "") == [1, 1, 0.5, 0]


# Draws


def words_tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {f"w{i}": i for i in range(1000)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab, "w0")), pad_token="w0")


def test_draws_are_of_the_whole_vocabulary():
    model = make_model(vocab_size=1000, hidden_size=16, layers=1)
    torch.nn.init.zeros_(model.lm_head.weight)
    # What the checkpoint says of sampling has no part in it.
    model.generation_config.update(do_sample=True, top_k=5, temperature=0.1)
    model.generation_config.eos_token_id = None
    drawn = generate_answers(
        model, words_tokenizer(), [[1]] * 4000, max_new_tokens=1, batch_size=500, progress=False, seeds=range(4000)
    )
    counts = np.array([*{word: drawn.count(word) for word in {*drawn}}.values()])
    assert 950 < len(counts) <= 1000
    assert counts.max() < 20


def test_draws_follow_the_temperature_and_the_nucleus():
    from hf_unlearn.audit.draws import Drawing

    logits = torch.tensor([3.0, 2.0, 1.0, -4.0])
    for temperature, top_p in ((1.0, 1.0), (2.0, 1.0), (1.0, 0.8)):
        seeds = [draw_seed(0, 0, i) for i in range(8000)]
        picked = Drawing(seeds, temperature, top_p)(None, logits.repeat(8000, 1)).argmax(-1)
        wanted = (logits / temperature).softmax(-1)
        if top_p < 1:
            wanted = torch.tensor([wanted[0], wanted[1], 0, 0]) / wanted[:2].sum()
        shares = torch.bincount(picked, minlength=4) / 8000
        assert torch.allclose(shares, wanted, atol=0.02)


def test_a_draw_depends_on_its_seed_alone():
    model, tokenizer = make_model(), make_tokenizer()
    model.generation_config.eos_token_id = None
    prompts = [tokenizer(text).input_ids for text in ("a", "longer", "b", "c")]
    seeds = [draw_seed(0, row, 1) for row in range(4)]

    def draw(chosen, batch_size, seeds=seeds):
        state, kept = torch.get_rng_state(), random.getstate()
        found = generate_answers(
            model, tokenizer, [prompts[i] for i in chosen], max_new_tokens=6, batch_size=batch_size, progress=False,
            seeds=[seeds[i] for i in chosen],
        )  # fmt: skip
        assert torch.equal(torch.get_rng_state(), state)
        assert random.getstate() == kept
        return found

    together = draw(range(4), 4)
    assert [draw([i], 1)[0] for i in range(4)] == together
    assert draw(range(4), 3, [draw_seed(1, row, 1) for row in range(4)]) != together
    assert len({draw_seed(s, r, d) for s in range(3) for r in range(10) for d in range(10)}) == 300


# The audit


def measured(model, **fields) -> Robustness:
    kind, args = SamplingAudit(), SamplingArguments(model_name_or_path="m", forget_dataset="f", **fields)
    prepared = prepared_of()
    kind.check(args, prepared)
    return kind.measure(model, args, prepared, Context(None, progress=False))


def test_probabilities_and_draws_agree():
    model = original()
    found = measured(model, mode="both", samples=300, ks=[1, 4], max_new_tokens=12)
    scores = found.measured[0].tested.scores
    # Again, row by row, from the model's softmax.
    for i, row in enumerate(encoded(FORGET)):
        ids = torch.tensor([row["input_ids"]])
        logps = model(ids).logits.detach().double().log_softmax(-1)[0]
        p = math.exp(sum(float(logps[t - 1, label]) for t, label in enumerate(row["labels"]) if label != -100))
        assert scores["leak_exact@1"][i] == pytest.approx(p, rel=1e-4)
        assert scores["leak_exact@4"][i] == pytest.approx(1 - (1 - p) ** 4, rel=1e-4)
        assert abs(scores["leak@1"][i] - p) < 4 * math.sqrt(p * (1 - p) / 300)
    mean = np.mean(scores["leak_exact@1"])
    assert 0.2 < mean < 0.9
    assert np.mean(scores["leak@4"]) == pytest.approx(np.mean(scores["leak_exact@4"]), abs=0.05)


def test_a_model_without_chance_leaks_the_same_however_often_it_is_asked():
    model = original()
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    scores = measured(model, mode="sampled", samples=4, ks=[1, 2, 4], max_new_tokens=12).measured[0].tested.scores
    assert scores["leak@1"] == scores["leak@2"] == scores["leak@4"]
    assert {*scores["leak@1"]} <= {0.0, 1.0}


def test_the_end_of_an_answer_counts_and_what_follows_does_not():
    tokenizer = make_tokenizer()
    row = encoded(FORGET)[0]
    kept = whole_answer(row, tokenizer)
    assert kept == row
    # A template's line break behind the end is nobody's answer.
    newline = tokenizer("\n", add_special_tokens=False).input_ids[0]
    behind = {name: [*values, newline] for name, values in row.items()}
    assert whole_answer(behind, tokenizer)["labels"] == [*row["labels"], -100]


def test_the_temperature_is_that_of_the_probabilities():
    model = original()
    cold, warm = (measured(model, temperature=t, ks=[1]).measured[0].tested.scores for t in (0.5, 2.0))
    assert all(a > b for a, b in zip(cold["leak_exact@1"], warm["leak_exact@1"], strict=True))
    with torch.no_grad():
        model.lm_head.weight.div_(2.0)
    scaled = measured(model, ks=[1]).measured[0].tested.scores
    assert scaled["leak_exact@1"] == pytest.approx(warm["leak_exact@1"], rel=1e-4)


def test_a_seed_gives_the_same_twice_and_another_seed_does_not():
    model = original()
    first, again, other = (
        measured(model, mode="both", samples=3, ks=[1, 3], max_new_tokens=8, seeds=[seed]) for seed in (0, 0, 7)
    )
    assert first.measured == again.measured != other.measured


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "sampled", "samples": 8, "ks": [1, 16]}, "asks for 16 draws, and samples=8"),
        ({"mode": "some"}, "mode='some'; allowed: 'exact', 'sampled', 'both'"),
        ({"measure": "bleu"}, "measure='bleu'; allowed"),
        ({"ks": [0]}, r"ks=\[0\]; give whole numbers"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"top_p": 0.9}, "top_p=0.9 cuts what can be drawn"),
        ({"mode": "sampled", "top_p": 1.5}, "top_p=1.5"),
        ({"max_length": 8}, "fills max_length=8"),
        ({"measure": "contains", "key_column": "town"}, "key_column='town': row 0 of the forget set"),
    ],
)
def test_what_cannot_be_measured_is_refused(fields, message):
    if "max_length" in fields:
        fields = {**fields, "max_length": len(encoded(FORGET)[0]["input_ids"])}
        message = f"fills max_length={fields['max_length']}"
    with pytest.raises(ValueError, match=message):
        measured(None, **fields)


def test_the_command_compares_with_a_model_that_never_knew(tmp_path):
    models = {name: save(make(), tmp_path / name) for name, make in (("o", original), ("r", retrained))}
    unlearned = original()
    with torch.no_grad():
        unlearned.lm_head.weight.mul_(0.05)
    words = ["--model_name_or_path", save(unlearned, tmp_path / "u"), "--group_by", "person"]
    words += ["--forget_dataset", write(FORGET, tmp_path / "f.jsonl"), "--retain_dataset"]
    words += [write(RETAIN, tmp_path / "k.jsonl"), "--output_dir", str(tmp_path / "out"), "--ks", "1", "8"]
    words += ["--original_model_name_or_path", models["o"], "--retrained_model_name_or_path", models["r"]]
    assert main(["audit", "sampling", *words]) == 0
    found = json.loads((tmp_path / "out" / "sampling.json").read_text())
    metrics = found["models"][-1]["metrics"]
    assert metrics["leak_exact@8/remaining"]["value"] == pytest.approx(0.0, abs=0.01)
    assert metrics["worst/remaining"]["details"]["verdict"] == "not recovered within budget"
    # Nothing is held against what a metric of another kind was before.
    assert metrics["leak_exact@8/remaining"]["details"]["before"] is None
    result = Robustness.from_dict(found["models"][-1])
    assert result.measured[0].tested.scores["leak_exact@1"]
