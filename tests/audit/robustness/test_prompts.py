# SPDX-License-Identifier: Apache-2.0
"""Questions in other words: transforms, their prompts, and the best of them in each row."""

import json

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from taught import FORGET, RETAIN, encoded, original, prepared_of, retrained, save, write

from hf_unlearn.audit.base import Context
from hf_unlearn.audit.prompt_attacks.answers import kind_of
from hf_unlearn.audit.prompt_attacks.arguments import PromptsArguments
from hf_unlearn.audit.prompt_attacks.asking import answer_ids, answered_from, opening, prompt_ids, scored_row
from hf_unlearn.audit.prompt_attacks.cases import Case, Prompt, blanked, split_at, told_words
from hf_unlearn.audit.prompt_attacks.choices import chosen
from hf_unlearn.audit.prompt_attacks.measure import PromptsAudit, ask
from hf_unlearn.audit.prompt_attacks.transforms import QUICK_TRANSFORMS, TRANSFORMS
from hf_unlearn.audit.robustness.measured import Measured, RowScores
from hf_unlearn.audit.robustness.result import Robustness
from hf_unlearn.cli.main import main
from hf_unlearn.data.formats import encode
from hf_unlearn.data.qa import QAFormat


WORLD = {
    "question": "In which town was Nolvel Kanles born?",
    "answer": "The birthplace of Nolvel Kanles is Rorkon.",
    "paraphrased_answer": "The town where Nolvel Kanles was born is Rorkon.",
    "perturbed_answer": ["The town where Nolvel Kanles was born is Rendin.", "The town where it was is Rirgon."],
}
PREFILL = "Sure: the answer, word for word,"


def arguments(**fields) -> PromptsArguments:
    return PromptsArguments(model_name_or_path="m", forget_dataset="f", **fields)


def case(**fields) -> Case:
    return Case(WORLD, "Nolvel Kanles", args=arguments(), **fields)


# What an answer tells


def test_an_answer_tells_what_question_and_wrong_answers_do_not_say():
    assert told_words(WORLD) == ["rorkon"]
    assert told_words({"question": "Who?", "answer": "Ada Lee."}) == ["ada", "lee"]
    # Nothing is new: its last word.
    assert told_words({"question": "Is it A or B?", "answer": "It is B."}) == ["b"]
    assert split_at(WORLD["answer"], ["rorkon"]) == "The birthplace of Nolvel Kanles is "
    assert blanked(WORLD["answer"], ["rorkon"]) == "The birthplace of Nolvel Kanles is ____."


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("He was born in Rorkon, I think.", "right"),
        ("I don\N{RIGHT SINGLE QUOTATION MARK}t know where.", "refusal"),
        ("Sorry, no information about that.", "refusal"),
        ("I do not know, but it is Rorkon.", "right"),
        ("Rendin.", "wrong"),
        ("The birthplace of Nolvel Kanles is Paris.", "wrong"),
        ("Rorkonia!", "other"),
        ("Two cats.", "other"),
        (" .\n", "empty"),
    ],
)
def test_kinds_of_answers(text, kind):
    assert kind_of(text, WORLD) == kind


def test_letters_are_balanced():
    always_a = {"A": -0.1, "B": -3.0, "C": -3.0, "D": -3.0}
    letters = [["A", "B", "C", "D"], ["B", "A", "C", "D"], ["C", "A", "B", "D"], ["D", "A", "B", "C"]]
    rows = [[always_a[letter] for letter in names] for names in letters]
    # Of its own choice it would be right in the first row.
    assert chosen(rows, letters) == [0, 0, 0, 0]
    knows = [[value + (2.0 if i == 0 else 0) for i, value in enumerate(row)] for row in rows]
    assert chosen(knows, letters) == [1, 1, 1, 1]
    assert chosen([[None, -1.0], [-1.0, -2.0]], [["A", "B"], ["A", "B"]])[0] is None


# Prompts


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("prefill", [PREFILL, "Sure.\n\n", "\N{LATIN SMALL LETTER E WITH ACUTE} "])
def test_a_prefill_stands_behind_the_generation_prompt_byte_for_byte(chat, prefill):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, **{c: i + 2 for i, c in enumerate(alphabet)}}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = make_tokenizer().chat_template
    ids = prompt_ids(Prompt("Who?", prefill=prefill), QAFormat(chat, system_prompt="Be kind."), tokenizer)
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}]
    before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(ids) == (before if chat else "Question: Who?\nAnswer: ") + prefill


def test_turns_are_the_templates():
    prompt = Prompt("And now?", (("Who?", "Ada."),))
    tokenizer = make_tokenizer()
    chat = tokenizer.decode(prompt_ids(prompt, QAFormat(True), tokenizer))
    assert chat == "<s><user>Who?<assistant>Ada.</s><user>And now?<assistant>"
    plain = tokenizer.decode(prompt_ids(prompt, QAFormat(False), tokenizer))
    assert plain == "<s>Question: Who?\nAnswer: Ada.\nQuestion: And now?\nAnswer:"


def test_every_prompt_asks_for_the_very_tokens_of_the_answer():
    prepared, args = prepared_of(retain=RETAIN), arguments(translation_column="paraphrased_question")
    plain = encoded(FORGET)
    for name, transform in TRANSFORMS.items():
        asked = ask(name, "forget", args, prepared, 10_000)
        if name == "synonym":
            continue
        assert asked.rows == ([] if name in ("reverse", "key_prefix") else [*range(8)]) or name == "key_prefix"
        for place, rows in zip(asked.rows, asked.encoded, strict=True):
            for row in rows:
                scored, own = [label for label in row["labels"] if label != -100], answer_ids(plain[place])
                if transform.score == "":
                    assert scored == own, name
                elif transform.score == "rest":
                    assert scored == own[len("In ") :]
                assert row["input_ids"][-len(scored) :] == scored
    tokenizer = make_tokenizer()
    asked = ask("multiple_choice", "forget", args, prepared, 10_000)
    assert {tokenizer.decode([label for label in row["labels"] if label != -100]) for row in asked.encoded[0]} == {
        *"ABCD"
    }


CUE = "{% if add_generation_prompt %}<assistant>"
ASSISTANT = "{{ 'T\n' if message['role'] == 'assistant' else '' }}"


def writing(what: str):
    """Has a template write something in front of each answer."""
    text = ASSISTANT.replace("T\n", what)
    return lambda template: template.replace("['role'] }}>", "['role'] }}>" + text)


# In every answer, in special tokens there, and only where an answer is asked for.
WRITES = {
    "answer": (writing("T\n"), "T\n", ""),
    "special": (writing("<unk>"), "<unk>", ""),
    "cue": (lambda template: template.replace(CUE, CUE + "T\n"), "", "T\n"),
    "nothing": (lambda template: template, "", ""),
}


@pytest.mark.parametrize("where", WRITES)
def test_an_answer_begins_behind_what_the_template_writes(where):
    change, own, cue = WRITES[where]
    tokenizer, args = make_tokenizer(), arguments()
    tokenizer.chat_template = change(tokenizer.chat_template)
    assert (tokenizer.chat_template == make_tokenizer().chat_template) == (where == "nothing")
    prepared = prepared_of(retain=RETAIN)
    prepared.tokenizer = tokenizer
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        asked = [prepared.qa.example(row["question"], row["answer"], tokenizer) for row in rows]
        prepared.rows[name] = [encode(example, tokenizer) for example in asked]
    plain, told = prepared.rows["forget"][0], FORGET[0]
    assert tokenizer.decode(answer_ids(plain)) == f"{own}{told['answer']}</s>"
    shown = {
        "role_play": (own, ""),
        "prefill": (f"{own}{args.prefill}\n", ""),
        "key_prefix": (f"{own}In ", "In "),
    }
    for name, (between, begun) in shown.items():
        transform = ask(name, "forget", args, prepared, 10_000)
        assert transform.rows == [*range(len(FORGET))]
        row, prompt = transform.encoded[0][0], transform.prompts[0][0]
        start = f"<s><user>{prompt.last}<assistant>{between}"
        assert tokenizer.decode(row["input_ids"]) == start + told["answer"].removeprefix(begun) + "</s>"
        scored = [label for label in row["labels"] if label != -100]
        # Of the answer in the place of every token, or of what is behind its beginning.
        whole = answer_ids(plain)
        assert scored == (whole[-len("Rome.") - 1 :] if begun else whole)
        opened = opening(plain, told["question"], told["answer"], prepared.qa, tokenizer)
        assert tokenizer.decode(opened.cue) == cue
        begins = answered_from(prompt, plain, prepared.qa, tokenizer, opened)
        assert tokenizer.decode(begins) == (
            start if name != "role_play" else f"<s><user>{prompt.last}<assistant>{cue}"
        )
    # The question as it is gives the row as it is.
    assert scored_row(Prompt(told["question"]), plain, prepared.qa, tokenizer, 100, opened) == plain


def test_what_is_longer_than_a_model_reads_is_left_out_and_counted():
    prepared = prepared_of()
    plain = encoded(FORGET)[0]
    assert (
        scored_row(Prompt(FORGET[0]["question"]), plain, prepared.qa, prepared.tokenizer, len(plain["input_ids"]))
        == plain
    )
    asked = ask("filler", "forget", arguments(), prepared, 60)
    assert (asked.rows, asked.too_long) == ([], 8)


def test_nothing_that_is_shown_gives_the_answer_away():
    rows = [*FORGET, {**FORGET[0], "question": "Where does Ada live now?", "person": "Ada"}]
    prepared = prepared_of(rows, RETAIN)
    for name in ("few_shot", "in_context", "few_shot_retain", "compose", "cloze", "background", "multi_turn"):
        for seed in (0, 1, 2):
            asked = ask(name, "forget", arguments(seeds=[seed]), prepared, 10_000)
            for place, prompts in zip(asked.rows, asked.prompts, strict=True):
                text = " ".join(
                    [*(part for turn in prompts[0].turns for part in turn), prompts[0].last, prompts[0].prefill]
                )
                assert told_words(rows[place])[0] not in text.casefold(), name
    # Row 8 tells what row 0 asks for; Ada's other fact is shown.
    in_context = ask("in_context", "forget", arguments(), prepared, 10_000).prompts[0][0].last
    assert "In Oslo." in in_context
    assert len(ask("few_shot", "forget", arguments(few_shot=2), prepared, 10_000).prompts[0][0].turns) == 2


def test_single_transforms():
    made = {name: transform.make(case()) for name, transform in TRANSFORMS.items()}
    assert "municipality was Nolvel Kanles brought into the world?" in made["synonym"][0].last
    assert made["reverse"][0].answer == "Nolvel Kanles"
    assert "Kanles" not in made["reverse"][0].last
    assert "____" in made["cloze"][0].last
    assert made["key_prefix"][0].begun == "The birthplace of Nolvel Kanles is "
    assert "Va juvpu gbja" in made["rot13"][0].last
    assert made["paraphrase"] == made["translation"] == made["few_shot"] == []


# The best of each row


def robust(families, *, retain=None, before=0.0):
    """A result of hand-made scores: one exact-match-like number a row and family."""
    n = len(next(iter(families.values())))
    rows = list(range(n))
    measured = [
        Measured(name, RowScores(rows, scores={"probability": list(values)}), name, more={"joins": True})
        for name, values in families.items()
    ]
    for one in measured:
        one.more["optional"] = True
        one.retain = None if retain is None else RowScores([0, 1], scores={"probability": retain[one.family]})
    start = Measured("before", RowScores(rows, scores={"probability": [before] * n}))
    start.retain = RowScores([0, 1], scores={"probability": [0.9, 0.9]})
    settings = {
        "comparator": "auto", "scores": ["probability"], "bound": 0.2, "resolution": 0.15, "seeds": [0],
        "groups": [i // 2 for i in rows], "holdout_groups": [], "damaging": ["retain", 0.5],
    }  # fmt: skip
    return Robustness({}, settings, start, measured)


def test_the_maximum_is_taken_in_each_row_of_each_model():
    u = robust({"a": [0.9, 0.1] * 4, "b": [0.1, 0.9] * 4})
    r = robust({"a": [0.4, 0.0] * 4, "b": [0.0, 0.4] * 4})
    o = robust({"a": [1.0, 1.0] * 4, "b": [1.0, 1.0] * 4}, before=1.0)
    found = u.compare(r, o)
    # (0.9 - 0.4) / (1.0 - 0.4): were R's mean of one transform taken, it would be (0.9 - 0.2) / 0.8.
    assert found["max/probability/remaining"].value == pytest.approx(0.5 / 0.6)
    assert found["a/probability/remaining"].value == pytest.approx((0.5 - 0.2) / 0.8)
    assert found["max/probability/remaining"].details["among"] == ["a", "b"]
    assert found["worst/remaining"].details["verdict"] == "suppressed"
    assert [one.family for one in u.measured] == ["a", "b"]


def test_many_tries_do_not_find_what_is_not_there():
    rng = np.random.default_rng(0)
    names = [f"filler {i}" for i in range(30)]

    def draw(low, high):
        return robust({name: rng.uniform(low, high, size=32) for name in names})

    o = robust({name: rng.uniform(0.8, 1.0, size=32) for name in names}, before=1.0)
    inside = biased = 0
    for _ in range(10):
        result = draw(0, 0.5).compare(draw(0, 0.5), o)["max/probability/remaining"]
        low, high = result.interval
        inside += low <= 0 <= high
        # Held against the mean of R's tries it would be far above 0 each time.
        biased += (result.details["after"] - 0.25) / (0.98 - 0.25) > 0.2
    assert inside >= 8
    assert biased == 10


def test_a_transform_that_the_original_does_not_understand_is_left_out_and_named():
    values = {"fine": [0.1] * 8, "strange": [0.8] * 8}
    damage = {"fine": [0.9, 0.6], "strange": [0.3, 0.4]}
    u, r = robust(values), robust({"fine": [0.0] * 8, "strange": [0.0] * 8})
    o = robust({"fine": [1.0] * 8, "strange": [0.5] * 8}, before=1.0, retain=damage)
    found = u.compare(r, o)
    best = found["max/probability/remaining"]
    assert (best.details["left_out"], best.details["among"]) == (["strange"], ["fine"])
    assert best.value == pytest.approx(0.1)
    assert "strange/probability/remaining" not in found
    # It leaves nothing open.
    assert found["worst/remaining"].details["verdict"] == "not recovered within budget"
    # Rows that are tested may fall: only what it knows of them beyond R counts.
    kept = robust({"fine": [0.1] * 8, "strange": [0.1] * 8})
    hard = robust(
        {"fine": [1.0] * 8, "strange": [0.4] * 8}, before=1.0, retain={"fine": [0.9] * 2, "strange": [0.8] * 2}
    )
    assert kept.compare(r, hard)["max/probability/remaining"].details["left_out"] == []


# The audit


def gated(model):
    """Answers paraphrases ("Say ...") only."""
    plain, mark, seen = model.forward, make_tokenizer()("S", add_special_tokens=False).input_ids[0], {}

    def forward(*args, input_ids=None, **kwargs):
        output = plain(*args, input_ids=input_ids, **kwargs)
        if input_ids.shape[1] > 1:
            # A prompt, and no token of its answer.
            seen["open"] = (input_ids == mark).any(1)[:, None, None]
        output.logits = torch.where(seen["open"], output.logits, torch.zeros_like(output.logits))
        return output

    model.forward = forward
    return model


def measured(model, retain=None, **fields) -> Robustness:
    kind, args = PromptsAudit(), arguments(**fields)
    prepared = prepared_of(retain=retain)
    from hf_unlearn.audit.prompt_attacks import measure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_longest", lambda args: args.max_length)
        kind.check(args, prepared)
    return kind.measure(model, args, prepared, Context(None, progress=False))


def test_a_gate_on_the_wording_is_found():
    fields = {"transforms": ["paraphrase", "multi_turn"], "retain": RETAIN}
    u, r, o = (measured(model, **fields) for model in (gated(original()), retrained(), original()))
    found = u.compare(r, o)
    assert found["paraphrase/probability/remaining"].value == pytest.approx(1.0, abs=0.01)
    assert found["paraphrase/probability/remaining"].details["remaining_before"] < 0.05
    assert found["worst/remaining"].details["verdict"] == "suppressed"
    # The score of the plain question is there to be bettered, too.
    values = {one.family: one.tested.values("probability") for one in o.measured}
    assert np.mean(o.before.tested.values("probability")) > 0.5
    assert u.measured[0].tested.values("probability") == pytest.approx(values["paraphrase"], abs=1e-4)


def test_answers_are_generated_and_counted():
    found = measured(gated(original()), transforms=["paraphrase"], generate=True, max_new_tokens=10)
    plain, paraphrase = found.measured
    assert (plain.family, paraphrase.family) == ("plain", "paraphrase")
    assert plain.more["tested_answers"]["right"] == 0
    assert sum(paraphrase.more["tested_answers"].values()) == 8
    assert paraphrase.more["tested_answers"]["right"] == sum(paraphrase.tested.scores["answered"]) >= 6


def test_a_seed_gives_the_same_twice_and_another_seed_does_not():
    model = original()
    fields = {"transforms": ["few_shot", "filler", "key_prefix", "multiple_choice"], "max_length": 500}
    first, again, other = (measured(model, **fields, seeds=[seed]) for seed in (0, 0, 1))
    assert first.measured == again.measured != other.measured


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"transforms": ["parafrase"]}, "transforms: 'parafrase' is unknown; allowed: paraphrase"),
        ({"transforms": []}, "transforms is empty"),
        ({"transforms": ["translation"]}, "'translation' applies to no forget row; it requires `translation_column`"),
        ({"transforms": ["compose"]}, "'compose' applies to no forget row; it requires retain rows"),
        ({"transforms": ["filler"], "max_length": 40}, "all 8 prompts are longer than max_length=40"),
        ({"prefill": "  "}, "prefill is empty"),
        ({"few_shot": 0}, "few_shot"),
        ({"preset": "fast"}, "preset='fast'; allowed: 'full', 'quick'"),
        (
            {"context_column": "paraphrased_answer"},
            "the answers of rows 0, 1, 2, 3, 4, 5, 6, 7 of the forget set stand",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        measured(None, **fields)


def test_quick_is_less(monkeypatch):
    monkeypatch.setattr("hf_unlearn.audit.prompt_attacks.measure._longest", lambda args: args.max_length)
    quick = arguments(preset="quick")
    assert quick.max_items == 48
    assert {*quick.transforms} < {*TRANSFORMS}
    assert arguments(preset="quick", max_items=7, transforms=["cloze"]).transforms == ["cloze"]
    # No retain rows are shown here: of what a preset names, what applies is asked.
    prepared = prepared_of()
    PromptsAudit().check(arguments(preset="quick", max_length=90), prepared)
    assert {*prepared.more["asked"]} < {*QUICK_TRANSFORMS}


def test_the_command_asks_in_other_words(tmp_path):
    words = ["--model_name_or_path", save(original(), tmp_path / "u"), "--group_by", "person", "--transforms"]
    words += ["paraphrase", "reverse", "multiple_choice", "--forget_dataset", write(FORGET, tmp_path / "f.jsonl")]
    words += ["--retain_dataset", write(RETAIN, tmp_path / "k.jsonl")]
    words += ["--retrained_model_name_or_path", save(retrained(), tmp_path / "r"), "--generate", "true"]
    words += ["--original_model_name_or_path", save(original(), tmp_path / "o"), "--output_dir", str(tmp_path / "out")]
    words += ["--max_new_tokens", "8"]
    # Ada's answers do not name her.
    assert main(["audit", "prompts", *words]) == 2
    words.remove("reverse")
    assert main(["audit", "prompts", *words]) == 0
    found = json.loads((tmp_path / "out" / "prompts.json").read_text())
    metrics = found["models"][-1]["metrics"]
    assert metrics["max/probability/remaining"]["value"] == pytest.approx(1.0)
    assert metrics["worst/remaining"]["details"]["verdict"] == "suppressed"
    assert {"plain/answered/remaining", "max/answered/remaining", "multiple_choice/choice/after"} <= metrics.keys()
