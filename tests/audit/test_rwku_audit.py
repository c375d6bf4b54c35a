# SPDX-License-Identifier: Apache-2.0
"""RWKU's numbers against independent computations, on checkpoints that are not ours."""

import math
import zlib
from collections import Counter

import numpy as np
import pytest
import rwku_rows
import torch
from conftest import make_model, make_tokenizer
from rouge_score.rouge_scorer import RougeScorer

from hf_unlearn.audit.rwku import measure as suite
from hf_unlearn.audit.rwku.fluency import fluency, ngram_entropy, split_words
from hf_unlearn.audit.rwku.measure import PROBES_IN_ALL, audit_rwku
from hf_unlearn.audit.rwku.members import membership
from hf_unlearn.audit.rwku.overlap import published_recall, published_rouge
from hf_unlearn.cli.evaluate import main as evaluate
from hf_unlearn.data.load_rwku import load_rwku
from hf_unlearn.report import load_report


RECALL = RougeScorer(["rougeL"], use_stemmer=True)


def gpt2():
    """A model of another make, without chat template."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    sizes = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}
    return strengthened(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval())


def strengthened(model):
    """Random models say the same of everything; weights so large make every word of a question count."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20 if parameter.dim() > 1 else 1)
    return model


def llama():
    return strengthened(make_model(seed=5))


def made(kind: str):
    tokenizer = make_tokenizer()
    if kind == "gpt2":
        tokenizer.chat_template = None
    return {"gpt2": gpt2, "llama": llama}[kind](), tokenizer


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_numbers_equal_a_plain_loop_over_a_fresh_model(kind, tmp_path):
    model, tokenizer = made(kind)
    said = rwku_rows.write_rwku(tmp_path, model, tokenizer)
    rwku = load_rwku(["Bob Cole", "Cyd Dunn"], tmp_path)
    audit = audit_rwku(model, tokenizer, rwku.audit_sets, generation_batch_size=3, progress=False)
    probes = {subset: people["Bob Cole"] + people["Cyd Dunn"] for subset, people in said.items()}
    recalls = {}
    for subset, rows in probes.items():
        assert audit.items[subset]["generated"] == [row["said"] for row in rows]
        assert len({row["said"] for row in rows}) > 1
        recalls[subset] = [RECALL.score(row["answer"], row["said"])["rougeL"].recall for row in rows]
        found = audit.metrics[f"{subset}/rouge_score"]
        defined = [value for value, row in zip(recalls[subset], rows, strict=True) if has_words(row["answer"])]
        assert found.value == pytest.approx(np.mean(defined))
        plain = [published_recall(row["said"], row["answer"]) for row in rows]
        assert audit.metrics[f"{subset}/rouge"].per_item == plain
        # Answers that the model gives, and answers that it does not.
        assert 0 < audit.metrics[f"{subset}/rouge"].value < 1
    forget = [
        value for name in probes if name.startswith("forget") for value in audit.metrics[f"{name}/rouge"].per_item
    ]
    assert audit.metrics["forget/rouge"].value == pytest.approx(np.mean(forget))
    assert audit.metrics["forget/rouge"].n == len(forget) == 20
    assert (audit.metrics["forget/rouge"].direction, audit.metrics["retain/rouge"].direction) == ("lower", "higher")
    weights = {name: PROBES_IN_ALL[name] for name in ("forget_fb", "forget_qa", "forget_aa")}
    weighted = sum(n * audit.metrics[f"{name}/rouge"].value for name, n in weights.items()) / sum(weights.values())
    assert list(audit.metrics["forget/rouge"].details.values()) == [pytest.approx(weighted)]
    for number, (attack, *_) in enumerate(rwku_rows.SUBSETS["forget_aa"]):
        mine = [value for i, value in enumerate(audit.metrics["forget_aa/rouge"].per_item) if i % 3 == number]
        assert audit.metrics[f"forget_aa_{attack.replace(' ', '_')}/rouge"].per_item == mine
    asked = rwku_rows.prompt_text(tokenizer, "Instruction: Tell me of Bob Cole.\n", "")
    text = rwku_rows.plain_answer(model, tokenizer, asked, 256)
    assert audit.metrics["fluency/entropy"].per_item[0] == pytest.approx(slow_fluency(text))


def has_words(text: str) -> bool:
    return any(character.isascii() and character.isalnum() for character in text)


def slow_fluency(text: str) -> float:
    words, total = split_words(text), 0.0
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        shares = np.array(list(grams.values())) / max(1, sum(grams.values()))
        total += weight * float(-(shares * np.log2(shares)).sum())
    return total / 2


# What the package `rouge` 1.0.1 gives.
PUBLISHED = [
    ("Stephen King", "Stephen King", 1.0),
    ("stephen king", "Stephen King", 0.0),
    ("Stephen King, the author of It", "Stephen King", 0.5),
    ("King Stephen", "Stephen King", 0.5),
    ("The answer is Maine, in the north", "Maine", 0.0),
    ("It is Maine.", "Maine", 1.0),
    ("J.K. Rowling wrote it", "J.K. Rowling", 1.0),
    ("J. K. Rowling", "J.K. Rowling", 1.0),
    ("He was born. In Portland. Maine he grew", "born in Portland, Maine. He grew", 2 / 3),
    ("a b c d. c d a b", "a b. c d. a", 1.0),
    ("x a y b z a", "a b a c", 2 / 3),
    ("the cat. the dog", "the the dog cat", 1.0),
    ("a. b", "b. ", 0.5),
    ("b a c a b", "a b c", 2 / 3),
]


@pytest.mark.parametrize(("said", "expected", "recall"), PUBLISHED)
def test_recall_is_the_published_packages(said, expected, recall):
    assert published_recall(said, expected) == pytest.approx(recall)


def test_answers_without_words_count_nothing_and_stop_nothing():
    result = published_rouge(["", "  ", ".", "...", "Maine", None, "x"], [*["Maine"] * 6, " . "], "forget")
    assert result.per_item == [0, 0, 0, 0, 1, None, None]
    assert (result.value, result.n, result.undefined, result.direction) == (pytest.approx(0.2), 5, 2, "lower")
    assert fluency(["", ".", "two words", "a b a b a b"]).per_item[:3] == [0, 0, 0]


def test_a_model_that_says_only_periods_is_audited_to_the_end(tmp_path, monkeypatch):
    model, tokenizer = made("llama")
    rwku_rows.write_rwku(tmp_path, model, tokenizer)
    sets = load_rwku(["Ada Bell"], tmp_path).audit_sets
    for text in ("", "..."):
        monkeypatch.setattr(suite, "generate_answers", lambda m, t, prompts, text=text, **kw: [text] * len(prompts))
        audit = audit_rwku(model, tokenizer, sets, progress=False)
        # 0, and counted: nothing was forgotten by being left out.
        assert (audit.metrics["forget/rouge"].value, audit.metrics["forget/rouge"].n) == (0.0, 10)
        assert audit.metrics["fluency/entropy"].value == 0


def test_a_generation_that_fails_is_an_error(tmp_path, monkeypatch):
    model, tokenizer = made("llama")
    rwku_rows.write_rwku(tmp_path, model, tokenizer)

    def generate(**kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", generate)
    with pytest.raises(RuntimeError, match="out of memory"):
        audit_rwku(model, tokenizer, load_rwku(["Ada Bell"], tmp_path).audit_sets, progress=False)


def test_membership_scores_are_the_published_ones():
    model, tokenizer = make_model().double(), make_tokenizer()
    texts = ["Ada Bell was born in Oslo.", "The cup is on the table of the king.", "abc"]
    found = membership(model, tokenizer, texts, role="forget", progress=False)
    for i, text in enumerate(texts):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            output = model(ids, labels=ids)
        loss, logits = output.loss.item(), output.logits[0, :-1]
        logps = logits.log_softmax(-1)
        mine = logps.gather(1, ids[0, 1:, None]).squeeze(1)
        mu = (logps.exp() * logps).sum(-1)
        sigma = (logps.exp() * logps**2).sum(-1) - mu**2
        normalized = (mine - mu) / sigma.sqrt()
        k = int(0.2 * len(mine))
        assert found["loss"].per_item[i] == pytest.approx(loss)
        assert found["zlib"].per_item[i] == pytest.approx(loss / len(zlib.compress(text.encode())))
        for name, values in (("min_k", mine), ("min_k++", normalized)):
            wanted = None if k == 0 else pytest.approx(-values.sort().values[:k].mean().item())
            assert found[name].per_item[i] == wanted
    assert found["min_k"].undefined == 1
    assert found["loss"].direction == "higher"
    assert membership(model, tokenizer, texts, role="retain", progress=False)["loss"].direction == "lower"


def test_entropy_is_that_of_the_published_examples():
    # 130 different words give about 700, 256 about 799; two words in turn give 100 (times 100).
    for count, score in ((130, 700), (256, 799)):
        words = " ".join(f"w{i}" for i in range(count))
        assert 100 * fluency([words]).value == pytest.approx(score, abs=2)
    assert 100 * fluency([" ".join(["a", "b"] * 40)]).value == pytest.approx(100, abs=1)
    assert ngram_entropy(["a", "b", "a", "b", "c"], 2) == pytest.approx(1.5)
    assert split_words('He can\'t "go". Then, Mr. X!') == [
        "He", "ca", "n't", "``", "go", "''", ".", "Then", ",", "Mr", ".", "X", "!",
    ]  # fmt: skip
    assert math.isclose(fluency(["one two three"]).value, 1 / 3)


def test_sets_that_rwku_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"RWKU has no sets \['forget'\]. Give some of forget_fb"):
        audit_rwku(None, make_tokenizer(), {"forget": [{"question": "a", "answer": "b"}]})
    with pytest.raises(ValueError, match="RWKU has no sets"):
        audit_rwku(None, make_tokenizer(), {})


def test_the_command_audits_a_checkpoint_that_is_not_ours(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, tokenizer = made("gpt2")
    said = rwku_rows.write_rwku(tmp_path / "rwku", model, tokenizer)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    words = ["--suite", "rwku", "--benchmark_path", "rwku", "--model_name_or_path", "model"]
    evaluate([*words, "--forget_targets", "Ada Bell", "2_Bob_Cole", "--prompts", "Who?", "--max_new_tokens", "8"])
    report = load_report(tmp_path / "runs" / "eval" / "model" / "report.json")
    [found] = report["models"]
    metrics = found["metrics"]
    rows = said["forget_qa"]["Ada Bell"] + said["forget_qa"]["Bob Cole"]
    expected = np.mean([published_recall(row["said"], row["answer"]) for row in rows])
    assert metrics["forget_qa/rouge"]["value"] == pytest.approx(expected)
    assert metrics["forget_qa/rouge"]["n"] == 4
    assert {"forget/rouge", "retain/rouge", "forget_members/loss", "fluency/entropy"} <= set(metrics)
    assert {row["set"] for row in found["answers"]} == {"prompts", *rwku_rows.SUBSETS}
    assert report["suite"] == "rwku"
    assert "forget" in capsys.readouterr().out
    with pytest.raises(ValueError, match="Did you mean 'Ada Bell'"):
        evaluate([*words, "--forget_targets", "Ada Bel"])
