# SPDX-License-Identifier: Apache-2.0
"""MUSE's metrics against computations written here: prompts byte for byte, ROUGE-L by hand, AUC by counting pairs."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import SHARED_DATA, make_model, make_tokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from hf_unlearn.audit import generate_answers, holdout_auc, knowmem, membership_scores, privleak, rouge, verbmem
from hf_unlearn.audit import generation as generating
from hf_unlearn.audit.muse.data import load_muse
from hf_unlearn.audit.muse.measure import knowmem_prompt, knowmem_result, verbmem_reference, verbmem_result
from hf_unlearn.audit.shared_prefix import prefix_cache, shared_length


@pytest.fixture(scope="module")
def muse_path():
    path = SHARED_DATA / "muse"
    if not path.is_dir():
        pytest.skip(f"The MUSE files are not at {path}.")
    return path


def strong_model(cls=LlamaForCausalLM, **config):
    """A random model whose answers depend on every token of the prompt, in float64."""
    kinds = {LlamaForCausalLM: LlamaConfig, MistralForCausalLM: MistralConfig}
    torch.manual_seed(0)
    settings = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    if cls is GPT2LMHeadModel:
        settings = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}
        model = cls(GPT2Config(bos_token_id=1, eos_token_id=2, **settings))
    else:
        model = cls(kinds[cls](**(settings | config)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3)
    return model.double().eval()


def lcs(a: list[str], b: list[str]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def f1(answer: str, expected: str) -> float:
    words = [re.findall("[a-z0-9]+", text.lower()) for text in (answer, expected)]
    same = lcs(*words)
    return 0.0 if not same else 2 * same / (len(words[0]) + len(words[1]))


# ---------------------------------------------------------------------------------------------------------- prompts


def test_the_prompt_is_the_published_one_byte_for_byte():
    examples = [{"question": "Who sang?", "answer": "Ada."}, {"question": "Where?", "answer": "in Oslo"}]
    expected = b"Question: Who sang?\nAnswer: Ada.\n\nQuestion: Where?\nAnswer: in Oslo\n\n"
    expected += b"Question: What year\xc2\xa01?\nAnswer: "
    assert knowmem_prompt("What year\u00a01?", examples).encode() == expected


def test_the_prompt_of_the_real_files_has_ten_examples(muse_path):
    muse = load_muse("news", muse_path)
    raw = json.loads((muse_path / "news_knowmem_retain_qa_icl.json").read_text())
    blocks = [f"Question: {one['question']}\nAnswer: {one['answer']}" for one in raw]
    question = json.loads((muse_path / "news_knowmem_retain_qa.json").read_text())[7]["question"]
    expected = "\n\n".join([*blocks, f"Question: {question}\nAnswer: "])
    assert knowmem_prompt(muse.questions["retain"][7]["question"], muse.examples["retain"]) == expected
    assert expected.count("Question: ") == 11
    assert "\u00a355,000" in knowmem_prompt("?", muse.examples["forget"])


@pytest.mark.parametrize("corpus", ["news", "books"])
def test_the_files_are_read_whole(muse_path, corpus):
    muse = load_muse(corpus, muse_path)
    assert {role: len(rows) for role, rows in muse.questions.items()} == {"forget": 100, "retain": 100}
    assert {role: len(rows) for role, rows in muse.examples.items()} == {"forget": 10, "retain": 10}
    assert muse.passages == []
    assert muse.texts == {}


def test_passages_and_texts_are_read_where_they_are(muse_path, tmp_path):
    for file in muse_path.glob("books_*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "books_verbmem_forget.json").write_text(json.dumps([{"prompt": "Once", "gt": "upon a time"}]))
    for name in ("forget", "holdout"):
        (tmp_path / f"books_privleak_{name}.json").write_text(json.dumps([{"text": f"{name} text"}]))
    muse = load_muse("books", tmp_path)
    assert muse.passages == [{"prompt": "Once", "gt": "upon a time"}]
    assert muse.texts == {"forget": ["forget text"], "holdout": ["holdout text"]}


@pytest.mark.parametrize(
    ("corpus", "files", "message"),
    [
        ("poems", {}, "no corpus 'poems'; allowed: news, books"),
        ("news", {}, "news_knowmem_forget_qa.json is missing"),
        ("news", {"forget_qa": [{"question": "Who?"}]}, "each row needs the texts question and answer"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, corpus, files, message):
    rows = [{"question": "Who?", "answer": "Ada"}]
    for split in ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl") if files else ():
        (tmp_path / f"news_knowmem_{split}.json").write_text(json.dumps(files.get(split, rows)))
    with pytest.raises(ValueError, match=message):
        load_muse(corpus, tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="No folder at"):
        load_muse("news", tmp_path / "none")


# ---------------------------------------------------------------------------------------------------- shared prefix


@pytest.mark.parametrize("cls", [LlamaForCausalLM, GPT2LMHeadModel])
def test_a_shared_prefix_changes_no_answer(cls, monkeypatch):
    model, tokenizer = strong_model(cls), make_tokenizer()
    start = "Question: one, two, three? Answer: four, five, six, seven.\n\nQuestion: "
    prompts = [tokenizer(start + end)["input_ids"] for end in ("Who?", "Where is the other cup now?", "x", "y y")]
    seen = []
    monkeypatch.setattr(generating, "prefix_cache", lambda *args: seen.append(len(args[1])) or prefix_cache(*args))
    found = generate_answers(model, tokenizer, prompts, max_new_tokens=12, batch_size=3, progress=False)
    assert seen == [len(tokenizer(start)["input_ids"])]
    alone = [generate_answers(model, tokenizer, [p], max_new_tokens=12, progress=False)[0] for p in prompts]
    assert found == alone
    assert len(set(alone)) == len(alone)


def test_logits_behind_a_shared_prefix_are_those_of_the_whole_prompt(monkeypatch):
    model, tokenizer = strong_model(), make_tokenizer()
    prompts = [tokenizer("a" * 70 + end)["input_ids"] for end in ("bcd", "e fgh ij")]
    taken = []

    def generate(input_ids, attention_mask, past_key_values, **kwargs):
        n = past_key_values.get_seq_length()
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        taken.append(
            model(
                input_ids=input_ids[:, n:],
                attention_mask=attention_mask,
                position_ids=positions[:, n:],
                past_key_values=past_key_values,
            ).logits[:, -1]
        )
        return input_ids

    monkeypatch.setattr(model, "generate", generate)
    generate_answers(model, tokenizer, prompts, progress=False)
    with torch.no_grad():
        # Longest first, as batches go.
        expected = torch.stack([model(torch.tensor([p])).logits[0, -1] for p in sorted(prompts, key=len)[::-1]])
    torch.testing.assert_close(taken[0], expected, rtol=0, atol=1e-10)


def test_a_model_that_forgets_its_prefix_gets_whole_prompts():
    model, tokenizer = strong_model(MistralForCausalLM, sliding_window=16), make_tokenizer()
    prompts = [tokenizer("abc " * 20 + end)["input_ids"] for end in ("Who?", "Where is it?")]
    assert shared_length(prompts) > 64
    assert prefix_cache(model, prompts[0][:80], torch.device("cpu")) is None
    found = generate_answers(model, tokenizer, prompts, max_new_tokens=8, progress=False)
    assert found == [generate_answers(model, tokenizer, [p], max_new_tokens=8, progress=False)[0] for p in prompts]


def test_the_shared_part_never_is_a_whole_prompt():
    long, longer = [1, *range(3, 90)], [1, *range(3, 95)]
    assert shared_length([long, longer]) == len(long) - 1
    assert shared_length([long, [1, 4]]) == 0
    assert shared_length([long]) == 0
    assert shared_length([]) == 0


# -------------------------------------------------------------------------------------------------------- the metrics


def test_an_answer_ends_before_the_next_question(monkeypatch):
    said = iter(["In Oslo\n\nQuestion: Who?", "\n\nOslo", "Oslo\nQuestion Who", "Oslo Question: a", "Oslo. Questions"])
    monkeypatch.setattr(generating, "eos_token_ids", lambda model, tokenizer: [])
    tokenizer = make_tokenizer()
    expected = ["In Oslo", "", "Oslo", "Oslo", "Oslo. Questions"]
    from hf_unlearn.audit.muse.measure import KNOWMEM_STOP

    for right in expected:
        ids = tokenizer(next(said), add_special_tokens=False)["input_ids"]
        assert generating._decode(ids, [], tokenizer, KNOWMEM_STOP) == right


def test_generation_ends_where_every_row_has_its_stop(monkeypatch):
    model, tokenizer = strong_model(), make_tokenizer()
    prompts = [tokenizer("Who is it?")["input_ids"], tokenizer("Where?")["input_ids"]]
    whole = generate_answers(model, tokenizer, prompts, max_new_tokens=30, progress=False)
    stop = [whole[0][4:6], whole[1][6:8]]
    lengths = []
    original = model.generate

    def generate(**kwargs):
        output = original(**kwargs)
        lengths.append(output.shape[1] - kwargs["input_ids"].shape[1])
        return output

    monkeypatch.setattr(model, "generate", generate)
    found = generate_answers(model, tokenizer, prompts, max_new_tokens=30, stop=stop, progress=False)
    for answer, full in zip(found, whole, strict=True):
        cut = min(full.find(text) for text in stop if text in full)
        assert answer == full[:cut].strip()
    assert lengths[0] < 30


def test_knowmem_is_f1_without_stems():
    answers, expected = ["He writes novels in Oslo", "a cup", "", None], ["novels, written in Oslo", "a cup", "x", "y"]
    result = knowmem_result(answers, expected, "forget", shots=10)
    assert result.per_item == [pytest.approx(6 / 9), 1.0, 0.0, None]
    assert result.per_item[:3] == [pytest.approx(f1(a, b)) for a, b in zip(answers[:3], expected[:3], strict=True)]
    assert result.value == pytest.approx((6 / 9 + 1) / 3)
    assert (result.n, result.undefined, result.direction) == (3, 1, "lower")
    assert result.variant == "ROUGE-L F1, no stemmer, 10-shot, 32 new tokens"
    recall = knowmem_result(answers, expected, "retain", 10, max_new_tokens=50, measure="recall")
    assert recall.per_item[0] == pytest.approx(3 / 4)
    assert recall.variant == "ROUGE-L recall, no stemmer, 10-shot, 50 new tokens"
    assert recall.direction == "higher"
    with pytest.raises(ValueError, match="measure='precision'; allowed: recall, f1"):
        rouge(["a"], ["a"], measure="precision")


def test_knowmem_of_a_checkpoint_equals_a_plain_loop(muse_path):
    model, tokenizer = strong_model().float(), make_tokenizer()
    muse = load_muse("books", muse_path)
    rows, examples = muse.questions["forget"][:3], muse.examples["forget"]
    result = knowmem(model, tokenizer, rows, examples, progress=False)
    per_item = []
    for row in rows:
        text = "".join(f"Question: {e['question']}\nAnswer: {e['answer']}\n\n" for e in examples)
        ids = tokenizer(f"{text}Question: {row['question']}\nAnswer: ", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = model.generate(ids, max_new_tokens=32, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        answer = tokenizer.decode(output, skip_special_tokens=True)
        for mark in ("\n\n", "\nQuestion", "Question:"):
            answer = answer.split(mark)[0]
        per_item.append(f1(answer, row["answer"]))
    assert result.per_item == pytest.approx(per_item)
    assert result.name == "knowmem"


def test_verbmem_compares_as_many_tokens_as_published():
    tokenizer = make_tokenizer()
    assert verbmem_reference("x" * 300, tokenizer) == "x" * 127
    assert verbmem_reference("abcdef", tokenizer, max_new_tokens=4) == "abc"
    result = verbmem_result(["the cup is here"], ["the cup was here today"], "forget")
    assert result.per_item == [pytest.approx(2 * 3 / 9)]
    assert (result.name, result.variant) == ("verbmem", "ROUGE-L F1, no stemmer, 128 new tokens")


def test_verbmem_of_a_checkpoint_that_knows_its_text():
    model, tokenizer = strong_model(), make_tokenizer()
    prompt = "Once there was"
    true = generate_answers(model, tokenizer, [tokenizer(prompt)["input_ids"]], max_new_tokens=20, progress=False)[0]
    rows = [{"prompt": prompt, "gt": true}, {"prompt": prompt, "gt": "0 1 2 qq"}]
    result = verbmem(model, tokenizer, rows, max_new_tokens=20, progress=False)
    # The last token of the true continuation is left out, as BOS takes its place.
    assert result.per_item[0] == pytest.approx(f1(true, true[:19]))
    assert result.per_item[0] > result.per_item[1]
    with pytest.raises(ValueError, match="each row needs the texts prompt and gt"):
        verbmem(model, tokenizer, [{"text": "a"}])
    with pytest.raises(ValueError, match="no rows of verbmem"):
        verbmem(model, tokenizer, [])


# ----------------------------------------------------------------------------------------------------------- PrivLeak


def test_min_k_is_the_mean_of_the_least_likely_tokens():
    model, tokenizer = make_model().double(), make_tokenizer()
    texts = ["The cup is on the table.", "ab", "Who?"]
    found = membership_scores(model, tokenizer, texts, progress=False)
    for text, score in zip(texts, found, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1)
        chosen = np.sort(logps.gather(1, ids[0, 1:, None]).squeeze(1).numpy())[: int(0.4 * (ids.shape[1] - 1))]
        assert score == (None if not len(chosen) else pytest.approx(chosen.mean(), abs=1e-12))
    assert found[1] is None
    with pytest.raises(ValueError, match="k=0; give the share"):
        membership_scores(model, tokenizer, texts, k=0)


def test_the_auc_counts_pairs_in_which_the_unseen_text_looks_more_like_a_member():
    rng = np.random.default_rng(0)
    forget, holdout = rng.normal(0, 1, 30).round(1), rng.normal(0.5, 1, 40).round(1)
    pairs = [(h > f) + 0.5 * (h == f) for f in forget for h in holdout]
    result = holdout_auc([*forget, None], list(holdout))
    assert result.value == pytest.approx(np.mean(pairs))
    assert (result.n, result.undefined, result.details["texts"]) == (70, 1, [31, 40])
    assert result.interval[0] < result.value < result.interval[1]
    # As wide as Hanley and McNeil's normal interval, within a tenth.
    a, n, m = result.value, 30, 40
    variance = (a * (1 - a) + (n - 1) * (a / (2 - a) - a * a) + (m - 1) * (2 * a * a / (1 + a) - a * a)) / (n * m)
    assert (result.interval[1] - result.interval[0]) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.15)


def test_privleak_against_the_published_models():
    known, fresh = [3.0, 2.0, 4.0], [1.0, 0.0, 0.5, 0.2]
    assert privleak(known, fresh, "news").value == -100
    assert privleak(fresh, known, "news").value == pytest.approx(100 * (1 - 0.4772) / 0.4772)
    assert privleak(fresh, known, "books").value == pytest.approx(85.4, abs=0.05)
    half = privleak([0.0, 1.0], [0.0, 1.0], 0.5)
    assert (half.value, half.details["auc"], half.details["retrained"]) == (0.0, 0.5, "given")
    assert half.direction == "closer_to_retrained"
    assert privleak([], fresh, "news").value is None


def test_privleak_against_a_measured_model():
    rng = np.random.default_rng(1)
    forget, holdout = rng.normal(1, 1, 60), rng.normal(0, 1, 60)
    gold = [rng.normal(0, 1, 60), rng.normal(0, 1, 60)]
    result = privleak(list(forget), list(holdout), [list(g) for g in gold])
    aucs = [np.mean(h[None, :] > f[:, None]) for f, h in ((forget, holdout), gold)]
    assert result.value == pytest.approx(100 * (aucs[0] - aucs[1]) / aucs[1])
    assert result.details["auc_retrained"] == pytest.approx(aucs[1])
    assert result.interval[0] < result.value < result.interval[1] < 0
    same = privleak(list(forget), list(holdout), [list(forget), list(holdout)])
    # The model itself: no item differs, so no resample does.
    assert same.value == 0
    assert same.interval is None


@pytest.mark.parametrize(
    ("retrained", "message"),
    [
        ("poems", "No AUC of a retrained model is known for 'poems'"),
        (0.0, "AUC is 0.0; give one above 0"),
        (float("nan"), "AUC is nan"),
        (([1.0], [0.0]), "has 1 forget scores, the audited one 2"),
    ],
)
def test_a_retrained_model_that_cannot_be_compared_is_refused(retrained, message):
    with pytest.raises(ValueError, match=message):
        privleak([1.0, 2.0], [0.0], retrained)
