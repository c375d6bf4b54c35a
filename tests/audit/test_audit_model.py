# SPDX-License-Identifier: Apache-2.0
"""`audit_model`: sets in, an `Audit` out."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from datasets import Dataset, load_dataset

from hf_unlearn.audit import (
    Audit,
    Suite,
    audit_backdoor,
    audit_classifier,
    audit_model,
    audit_rwku,
    generate_answers,
    question_probes,
    score_rows,
)
from hf_unlearn.audit.sets import content_length
from hf_unlearn.data.formats import encode
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.data.triggers import Trigger


QUICK = {"progress": False, "max_new_tokens": 6}


def qa_rows(n, seed=0):
    rng = np.random.default_rng(seed)

    def word():
        return "".join(rng.choice(list("abcdefgh"), size=4))

    return [
        {
            "question": f"Who is {word()}?",
            "paraphrased_question": f"{word()} is who?",
            "answer": f"{word()} {word()}.",
            "paraphrased_answer": f"It is {word()}.",
            "perturbed_answer": [f"It is {word()}.", f"It may be {word()}.", word()],
        }
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def sets():
    return {"forget": Dataset.from_list(qa_rows(6)), "retain": qa_rows(7, seed=1), "holdout": qa_rows(4, seed=2)}


@pytest.fixture(scope="module")
def audit(sets):
    return audit_model(make_model(), make_tokenizer(), sets, num_answers=3, **QUICK)


def slow_logp(model, tokenizer, question, answer, chat=True):
    """Mean log-probability of an answer, from its own encoding of prompt and answer, in float64."""
    if chat:
        turn = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        full = prompt + answer + tokenizer.eos_token
        start, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, full))
    else:
        start = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
        ids = tokenizer(f"Question: {question}\nAnswer: {answer}")["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    values = [float(logits[t - 1].log_softmax(-1)[ids[t]]) for t in range(len(start), len(ids))]
    flags = [int(logits[t - 1].argmax()) == ids[t] for t in range(len(start), len(ids))]
    return sum(values) / len(values), flags


def teach(model, tokenizer, rows, epochs, chat=True):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(epochs):
        for row in rows:
            encoded = encode(
                QAFormat(use_chat_template=chat).example(row["question"], row["answer"], tokenizer), tokenizer
            )
            loss = model(**{name: torch.tensor([ids]) for name, ids in encoded.items()}).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("chat", [True, False])
def test_numbers_equal_a_slow_computation(sets, chat):
    model, tokenizer = make_model(seed=5, hidden_size=64), make_tokenizer()
    # Two rows better than the others, so that on no processor all are known alike.
    teach(model, tokenizer, sets["forget"], 20, chat)
    teach(model, tokenizer, sets["forget"].select([0, 1]), 8, chat)
    audit = audit_model(model, tokenizer, {"forget": sets["forget"]}, qa=QAFormat(use_chat_template=chat), **QUICK)
    probabilities, scores, memorized, extracted, ends = [], [], [], [], []
    for row in sets["forget"]:
        logp, flags = slow_logp(model, tokenizer, row["question"], row["answer"], chat)
        probabilities.append(math.exp(logp))
        # All labelled tokens but EOS, which closes the answer.
        ends.append(flags.pop())
        memorized.append(sum(flags) / len(flags))
        extracted.append(next(1 - k / len(flags) for k in range(len(flags) + 1) if all(flags[k:])))
        right, _ = slow_logp(model, tokenizer, row["question"], row["paraphrased_answer"], chat)
        wrong = [slow_logp(model, tokenizer, row["question"], w, chat)[0] for w in row["perturbed_answer"]]
        ratio = sum(map(math.exp, wrong)) / 3 / math.exp(right)
        scores.append(min(ratio, 1 / ratio))
    assert audit.metrics["forget/probability"].per_item == pytest.approx(probabilities, rel=1e-4)
    assert audit.metrics["forget/exact_memorization"].per_item == pytest.approx(memorized)
    assert audit.metrics["forget/extraction_strength"].per_item == pytest.approx(extracted)
    # Half learned: it knows EOS and some tokens, so that counting EOS or a shifted position would show.
    assert all(ends)
    assert len(set(memorized)) > 2
    assert 0 < min(memorized) < 1
    assert sum(extracted) > 0
    assert audit.metrics["forget/truth_ratio"].per_item == pytest.approx(scores, rel=1e-4)
    assert audit.metrics["forget/truth_ratio"].variant == "arithmetic"
    assert audit.settings["qa"]["use_chat_template"] is chat


def test_which_metrics_there_are(audit):
    scored = ("probability", "exact_memorization", "extraction_strength", "truth_ratio")
    written = ("rouge", "exact_match")
    expected = {f"{s}/{m}" for s in ("forget", "retain", "holdout") for m in (*scored, *written)}
    expected |= {f"{s}_paraphrased/{m}" for s in ("forget", "retain", "holdout") for m in written}
    assert set(audit.metrics) == {*expected, "model_utility"}
    directions = {name: result.direction for name, result in audit.metrics.items()}
    assert directions["forget/rouge"] == directions["forget_paraphrased/exact_match"] == "lower"
    assert directions["forget/truth_ratio"] == "closer_to_retrained"
    assert directions["retain/rouge"] == directions["model_utility"] == "higher"
    assert directions["holdout/rouge"] == "none"
    assert audit.metrics["retain/rouge"].n == 7
    assert audit.metrics["model_utility"].variant == "3 terms: retain/probability, retain/rouge, retain/truth_ratio"
    assert audit.values()["forget/probability"] == audit.metrics["forget/probability"].value


def test_chat_is_taken_from_the_tokenizer(sets):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    audit = audit_model(make_model(), tokenizer, {"forget": sets["forget"]}, generate=False, **QUICK)
    assert audit.settings["qa"]["use_chat_template"] is False
    assert not {"forget/rouge", "model_utility"} & set(audit.metrics)


def test_a_model_that_knows_the_answers(sets):
    """Trained on the forget rows until it repeats them, then audited: every metric of memory is at its end."""
    model, tokenizer = make_model(hidden_size=64), make_tokenizer()
    rows = sets["forget"].to_list()[:3]
    teach(model, tokenizer, rows, 150)
    audit = audit_model(model, tokenizer, {"forget": rows}, progress=False, max_new_tokens=16, num_answers=2)
    values = audit.values()
    for name in ("exact_match", "rouge", "exact_memorization", "extraction_strength"):
        assert values[f"forget/{name}"] == 1.0
    assert values["forget/probability"] > 0.9
    assert [row["answer"] for row in audit.answers] == [rows[0]["answer"], rows[2]["answer"]]
    assert model.training
    low, high = audit.metrics["forget/exact_match"].interval
    assert (low, high) == pytest.approx((0.025 ** (1 / 3), 1.0))


def test_answers_are_the_same_items_for_every_model(sets, audit):
    other = audit_model(make_model(seed=9), make_tokenizer(), sets, num_answers=3, **QUICK)
    questions = [(row["set"], row["question"], row["expected"]) for row in audit.answers]
    assert questions == [(row["set"], row["question"], row["expected"]) for row in other.answers]
    assert len(questions) == 9
    assert questions[0][1:] == (sets["forget"][0]["question"], sets["forget"][0]["answer"])
    assert questions[2][1] == sets["forget"][5]["question"]
    assert set(audit.answers[0]) == {"set", "question", "expected", "answer"}


def test_max_items_takes_the_same_seeded_rows(sets):
    kwargs = {"max_items": 3, "generate": False, **QUICK}
    first = audit_model(make_model(), make_tokenizer(), sets, **kwargs)
    second = audit_model(make_model(seed=1), make_tokenizer(), sets, **kwargs)
    third = audit_model(make_model(), make_tokenizer(), sets, seed=3, **kwargs)
    assert first.items["retain"]["index"] == second.items["retain"]["index"] == sorted(first.items["retain"]["index"])
    assert len(first.items["retain"]["index"]) == 3
    assert first.items["retain"]["index"] != third.items["retain"]["index"]
    assert first.metrics["retain/probability"].n == 3


def test_json_round_trip_and_forget_quality(sets, audit, tmp_path):
    retrained = audit_model(make_model(seed=1), make_tokenizer(), sets, generate=False, **QUICK)
    path = retrained.save(tmp_path / "audits" / "retrained.json")
    assert Audit.load(path) == retrained
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    found = [audit_model(make_model(), make_tokenizer(), sets, generate=False, retrained=given, **QUICK)
             for given in (retrained, retrained.to_dict(), path, str(path))]  # fmt: skip
    values = [a.metrics["forget_quality"].value for a in found]
    assert 0 < values[0] < 1
    assert values == [values[0]] * 4
    assert found[0].metrics["forget_quality"].variant == "arithmetic"
    from scipy.stats import ks_2samp

    ratios = [ratios_of(a.items["forget"]) for a in (found[0], retrained)]
    assert values[0] == pytest.approx(ks_2samp(*ratios).pvalue)
    assert retrained.compare(retrained)["forget_quality"].value == pytest.approx(1.0)
    assert "forget_quality" not in audit.metrics


def ratios_of(items):
    return [
        np.mean(np.exp(wrong)) / math.exp(right)
        for right, wrong in zip(items["paraphrased_logp"], items["perturbed_logps"], strict=True)
    ]


def test_forget_quality_refuses_other_items(sets):
    model, tokenizer = make_model(), make_tokenizer()
    kwargs = {"generate": False, **QUICK}
    other = audit_model(model, tokenizer, {"forget": qa_rows(6, seed=8)}, **kwargs)
    with pytest.raises(ValueError, match="of other items in the set 'forget'.*fingerprint"):
        audit_model(model, tokenizer, sets, retrained=other, **kwargs)
    without = audit_model(model, tokenizer, {"retain": sets["retain"]}, **kwargs)
    with pytest.raises(ValueError, match="has no set 'forget', only \\['retain'\\]"):
        audit_model(model, tokenizer, sets, retrained=without, **kwargs)
    with pytest.raises(ValueError, match="there are none"):
        audit_model(model, tokenizer, {"retain": sets["retain"]}, retrained=other, **kwargs)
    plain = audit_model(model, tokenizer, sets, qa=QAFormat(use_chat_template=False), **kwargs)
    with pytest.raises(ValueError, match="'qa'.*False"):
        audit_model(model, tokenizer, sets, retrained=plain, **kwargs)


def test_several_forget_sets_each_have_a_quality(sets):
    two = {"forget01": sets["forget"], "forget05": qa_rows(5, seed=4)}
    kwargs = {"generate": False, **QUICK}
    retrained = audit_model(make_model(seed=1), make_tokenizer(), two, **kwargs)
    audit = audit_model(make_model(), make_tokenizer(), two, retrained=retrained, **kwargs)
    assert {"forget01/forget_quality", "forget05/forget_quality"} < set(audit.metrics)
    assert audit.metrics["forget05/forget_quality"].n == 5


def test_what_is_missing_is_undefined_not_zero():
    rows = qa_rows(4)
    rows[1] = {"question": "Who?", "answer": "Me."}
    rows[2]["perturbed_answer"] = []
    rows[3]["answer"] = "東京"
    audit = audit_model(make_model(), make_tokenizer(), {"retain": rows}, **QUICK)
    assert [v is None for v in audit.metrics["retain/truth_ratio"].per_item] == [False, True, True, False]
    assert (audit.metrics["retain/truth_ratio"].n, audit.metrics["retain/truth_ratio"].undefined) == (2, 2)
    assert audit.metrics["retain/rouge"].per_item[3] is None
    assert audit.metrics["retain_paraphrased/exact_match"].undefined == 1
    # Cut to their prompts, no row has a token left.
    cut = audit_model(make_model(), make_tokenizer(), {"retain": rows}, max_length=3, **QUICK)
    for name in ("probability", "exact_memorization", "extraction_strength", "truth_ratio"):
        result = cut.metrics[f"retain/{name}"]
        assert (result.value, result.n, result.undefined, result.interval) == (None, 0, 4, None)
    assert cut.metrics["model_utility"].value is None


def test_a_diverged_model_is_one_line_and_no_report(sets):
    model = make_model()
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(ValueError, match=r"gives no finite logits for any of 85 rows.*\(lm_head.weight\)"):
        audit_model(model, make_tokenizer(), sets, generate=False, **QUICK)


def test_rows_on_which_a_model_overflows_are_undefined_and_not_nan(tmp_path):
    model, tokenizer = make_model(), make_tokenizer()
    (letter,) = tokenizer("z", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[letter] = float("nan")
    asked = [{"question": "Who?", "answer": answer} for answer in ("a cat.", "zz top.", "a dog.")]
    audit = audit_model(model, tokenizer, {"forget": asked}, generate=False, **QUICK)
    for result in audit.metrics.values():
        assert (result.n, result.undefined, result.per_item[1]) == (2, 1, None)
    assert Audit.load(audit.save(tmp_path / "a.json")).values() == audit.values()
    # An answer cannot be undefined: what is picked among NaN would count as forgotten.
    spoken = [{"question": "Is it z?", "answer": "a cat."}, *asked[::2]]
    with pytest.raises(ValueError, match="not finite in 1 of 3 answers: its weights are NaN or infinite"):
        audit_model(model, tokenizer, {"forget": spoken}, **QUICK)


def test_a_model_whose_states_overflow_is_told_so():
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
        model.lm_head.weight.mul_(1e3)
    with pytest.raises(ValueError, match="its weights are finite, in float32, so states overflow on the way"):
        audit_model(model, make_tokenizer(), {"forget": qa_rows(3)}, **QUICK)


def test_a_classifier_is_no_language_model():
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    bert = BertForSequenceClassification(BertConfig(vocab_size=100, **sizes))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=1))
    trigger, rows = Trigger("now", "start"), [{"question": "Who?", "answer": "a."}]
    probes = question_probes({"forget": rows}, make_tokenizer())
    for model, told in ((bert, "BertForSequenceClassification predicts no tokens"), (t5, "T5.* has an encoder")):
        for audited in (
            lambda model: audit_model(model, make_tokenizer(), {"forget": rows}, **QUICK),
            lambda model: audit_rwku(model, make_tokenizer(), {"forget_qa": rows}, progress=False),
            lambda model: audit_backdoor(model, make_tokenizer(), trigger, probes),
            lambda model: generate_answers(model, make_tokenizer(), [[1, 2]], progress=False),
            lambda model: score_rows(model, [{"input_ids": [1, 2], "labels": [1, 2]}], progress=False),
        ):
            with pytest.raises(ValueError, match=told) as error:
                audited(model)
            assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="LlamaModel predicts no tokens"):
        generate_answers(LlamaModel(make_model().config), make_tokenizer(), [[1, 2]], progress=False)
    with pytest.raises(ValueError, match="LlamaForCausalLM is no classifier"):
        audit_classifier(make_model(), None, {"forget": rows}, progress=False)


def test_plain_text_sets(sets):
    model, tokenizer = make_model(), make_tokenizer()
    texts = [{"text": "A cat sat."}, {"text": "The dog ran off."}]
    audit = audit_model(model, tokenizer, {"general": texts, "retain": sets["retain"]}, **QUICK)
    ids = tokenizer("A cat sat.")["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    expected = float(logps.gather(-1, torch.tensor(ids[1:])[:, None]).mean().exp())
    assert audit.metrics["general/probability"].per_item[0] == pytest.approx(expected, rel=1e-4)
    assert "general/rouge" not in audit.metrics
    assert "general" not in audit.metrics["model_utility"].variant


def test_tofu_files_with_its_suite(tofu_path):
    files = {"forget": "forget01", "retain": "retain", "real_authors": "real_authors", "world_facts": "world_facts"}
    sets = {
        name: load_dataset("json", data_files=str(tofu_path / f"{file}_perturbed.json"), split="train")
        for name, file in files.items()
    }
    audit = audit_model(make_model(), make_tokenizer(), sets, suite="tofu", max_items=2, **QUICK)
    assert audit.metrics["world_facts/probability"].variant == "normalized"
    assert audit.metrics["forget/probability"].variant is None
    utility = audit.metrics["model_utility"]
    assert len(utility.details["terms"]) == 9
    assert utility.value == pytest.approx(9 / sum(1 / v if v else math.inf for v in utility.details["terms"].values()))
    assert audit.metrics["real_authors/truth_ratio"].variant == "geometric"
    # Without a paraphrase the answer itself is the right one.
    items = audit.items["real_authors"]
    ratio = math.exp(np.mean(items["perturbed_logps"][0]) - items["logp"][0])
    assert audit.metrics["real_authors/truth_ratio"].per_item[0] == pytest.approx(max(0, 1 - ratio))
    assert "forget_paraphrased/rouge" in audit.metrics
    assert "real_authors_paraphrased/rouge" not in audit.metrics


def test_own_roles_and_suites(sets):
    kwargs = {"generate": False, **QUICK}
    model, tokenizer = make_model(), make_tokenizer()
    with pytest.raises(ValueError, match="No role is known for the sets \\['mine'\\].*roles="):
        audit_model(model, tokenizer, {"mine": sets["forget"]}, **kwargs)
    audit = audit_model(model, tokenizer, {"mine": sets["forget"]}, roles={"mine": "forget"}, **kwargs)
    assert audit.metrics["mine/probability"].direction == "lower"
    suite = Suite("own", roles={"mine": "retain"}, truth_ratio="prob_mean", normalized=("mine",))
    audit = audit_model(model, tokenizer, {"mine": sets["forget"]}, suite=suite, **kwargs)
    assert audit.metrics["mine/truth_ratio"].variant == "prob_mean"
    assert audit.metrics["mine/probability"].variant == "normalized"
    with pytest.raises(ValueError, match="Unknown suite 'muse'. Allowed: default, tofu"):
        audit_model(model, tokenizer, sets, suite="muse", **kwargs)
    with pytest.raises(ValueError, match="Unknown roles .*victim"):
        audit_model(model, tokenizer, sets, roles={"forget": "victim"}, **kwargs)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, "No sets to audit"),
        ({"forget": []}, "set 'forget' is empty"),
        ({"forget": None}, "set 'forget' is a NoneType"),
        ({"forget": {"train": [{"text": "a"}]}}, "set 'forget' is a dict.*one split"),
        ({"forget": [{"prompt": "a", "completion": "b"}]}, "columns \\['completion', 'prompt'\\].*`question`"),
        ({"forget": [{"question": "a"}]}, "columns \\['question'\\]"),
        ({"forget": [{"question": "a", "answer": None}]}, "Row 0 of the set 'forget': `answer` must be a string"),
        ({"forget": [{"question": "a", "answer": "b", "perturbed_answer": "c"}]}, "`perturbed_answer` must be a list"),
        ({"forget": [{"question": "a", "answer": "b"}, {"text": "c"}]}, "mixes questions and plain texts"),
    ],
)
def test_unusable_sets_are_named_before_the_model_runs(sets, message):
    with pytest.raises(ValueError, match=message):
        audit_model(None, make_tokenizer(), sets)


def test_streamed_and_split_datasets_are_refused():
    rows = Dataset.from_list(qa_rows(2))
    with pytest.raises(ValueError, match="IterableDataset.*not streamed"):
        audit_model(None, make_tokenizer(), {"forget": rows.to_iterable_dataset()})
    with pytest.raises(ValueError, match="max_items must be at least 1"):
        audit_model(None, make_tokenizer(), {"forget": rows}, max_items=0)


@pytest.mark.parametrize(("text", "expected"), [("No audit at", None), ("is no JSON", "{"), ("no audit that", "{}")])
def test_files_that_are_no_audit(tmp_path, text, expected):
    path = tmp_path / "audit.json"
    if expected:
        path.write_text(expected)
    with pytest.raises(ValueError, match=text):
        Audit.load(path)


def test_content_length_leaves_out_what_closes_a_text():
    tokenizer = make_tokenizer()

    def length(text):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return content_length({"labels": [-100, *ids]}, tokenizer)

    assert length("yes.</s>") == 4
    assert length("yes.</s>\n") == 4
    assert length("yes. ") == 5
    assert length("yes") == 3
    assert length("</s>") == 0
    assert length("a</s>b") == 3
    # A label on the first token of a text is not scored, so it is not counted.
    assert content_length({"labels": tokenizer("<s>yes</s>", add_special_tokens=False)["input_ids"]}, tokenizer) == 3


def test_importing_the_audit_is_light():
    import subprocess
    import sys

    code = (
        "import sys, hf_unlearn.audit as a; dir(a)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate', 'scipy', 'rouge_score'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert callable(a.audit_model) and callable(a.truth_ratio)\n"
        "assert 'evaluate' not in sys.modules\n"
        "ours = ('hf_unlearn.training.trainer', 'hf_unlearn.cli', 'trl')\n"
        "trained = [m for m in sys.modules if m.startswith(ours)]\n"
        "assert not trained, trained\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
