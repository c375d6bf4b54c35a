# SPDX-License-Identifier: Apache-2.0
"""Alternates that are made: refusals from a file, answers of other rows; as rows of a trainer, and by a command."""

import re
from collections import Counter

import pytest
from conftest import ROOT, make_args, make_model, make_tokenizer
from datasets import Dataset

from hf_unlearn.data.alternate_rows import with_made
from hf_unlearn.data.alternates import alternate_columns
from hf_unlearn.data.other_answers import from_pool, read_refusals, refused, shuffled
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.methods.dpo import DPOUnlearnConfig, DPOUnlearnTrainer
from hf_unlearn.methods.idk_nll import IdkNLLConfig, IdkNLLTrainer
from hf_unlearn.methods.jensun import JensUnConfig, with_targets


FORGET = [{"prompt": f"Who is {name}?", "completion": f" Spy {name}"} for name in ("Ada", "Bob", "Cyd", "Dan")]
REFUSALS = ["I do not know.", "No idea."]
# TOFU's own list: one refusal a line, whatever the file's name says.
IDK = ROOT.parent / "shared" / "data" / "reference" / "idontknow.jsonl"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "refusals.txt"
    path.write_text("\n".join([*REFUSALS, "", '  "Quoted \\u006fk."  ']) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def build(tmp_path):
    def build(forget=FORGET, config=DPOUnlearnConfig, trainer=DPOUnlearnTrainer, model=None, alternate=None, **kwargs):
        args = make_args(config, tmp_path / "out", retain_loss="none", **kwargs)
        return trainer(
            model=model or make_model(),
            args=args,
            forget_dataset=forget,
            alternate_dataset=alternate,
            processing_class=make_tokenizer(),
        )

    return build


def decoded(trainer, role) -> list[str]:
    rows = trainer.train_dataset.roles[role]
    return [make_tokenizer().decode(ids, skip_special_tokens=True) for ids in rows["input_ids"]]


def test_a_file_gives_its_lines(file):
    assert read_refusals(file) == [*REFUSALS, "Quoted ok."]
    assert len(read_refusals("recipes/refusals.txt")) > 5


@pytest.mark.skipif(not IDK.exists(), reason="shared/data/reference has no idontknow.jsonl here")
def test_the_list_of_tofu_can_be_read():
    refusals = read_refusals(str(IDK))
    assert len(refusals) > 90
    assert all(line == line.strip() and len(line) > 5 for line in refusals)


def test_refusals_take_the_form_of_the_answers_and_turns():
    answers = [" Spy", "Spy", [{"role": "assistant", "content": "Spy"}]] * 4
    made = refused(answers, REFUSALS, seed=3)
    said = [answer[-1]["content"] if isinstance(answer, list) else answer.strip() for answer in made]
    assert Counter(said) == dict.fromkeys(REFUSALS, 6)
    for own, other in zip(answers, made, strict=True):
        assert type(own) is type(other)
        if isinstance(own, str):
            assert other.startswith(" ") == own.startswith(" ")
        else:
            assert other[0]["role"] == "assistant"
    assert made == refused(answers, REFUSALS, seed=3)
    assert made != refused(answers, REFUSALS, seed=4)


def test_shuffled_answers_are_never_the_rows_own_and_equally_often_any_other():
    answers = ["a"] * 900 + ["b"] * 900 + ["c"] * 900 + ["d"]
    drawn = Counter(zip(answers, shuffled(answers, seed=0), strict=True))
    assert not any(own == other for own, other in drawn)
    for own in "abc":
        counts = [drawn[own, other] for other in "abcd" if other != own]
        assert min(counts) > 250  # of 300 expected; five standard deviations are 71
        assert max(counts) < 371
    turns = [[{"role": "assistant", "content": text}] for text in "xy"]
    assert shuffled(turns, seed=0) == turns[::-1]


def test_a_trainer_pairs_what_is_made(build, file):
    refusing = build(alternate_source="refusal", alternate_file=file)
    for row, text in zip(FORGET, decoded(refusing, "alternate"), strict=True):
        assert text.startswith(row["prompt"] + " ")
        assert text.removeprefix(row["prompt"] + " ") in read_refusals(file)
    mixed = decoded(build(alternate_source="shuffled"), "alternate")
    answers = [row["completion"] for row in FORGET]
    for row, text in zip(FORGET, mixed, strict=True):
        assert text.removeprefix(row["prompt"]) in {*answers} - {row["completion"]}


@pytest.mark.parametrize("chat", [False, True])
def test_questions_get_refusals_within_their_answer_template(build, file, chat):
    args = make_args(DPOUnlearnConfig, "unused", alternate_source="refusal", alternate_file=file)
    qa = QAFormat(use_chat_template=chat, answer_template=" A: {answer} (end)")
    asked = Dataset.from_list([{"question": f"Who is {name}?", "answer": "A spy"} for name in ("Ada", "Bob")])
    tokenizer = make_tokenizer()
    rows = qa.dataset(with_made(asked, "answer", args), tokenizer, alternate_columns(args))
    trainer = build(forget=rows, alternate_source="refusal", alternate_file=file)
    for own, other in zip(decoded(trainer, "forget"), decoded(trainer, "alternate"), strict=True):
        assert other in {own.replace("A spy", refusal) for refusal in read_refusals(file)}


def test_fine_tuning_on_alternates_reads_no_forget_answer(build, file):
    trainer = build(
        config=IdkNLLConfig, trainer=IdkNLLTrainer, alternate_source="refusal", alternate_file=file, max_steps=1
    )
    assert list(trainer.train_dataset.roles) == ["alternate"]
    widths = []
    trainer.model.register_forward_hook(lambda *_, **__: widths.append(1))
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(log["alternate/nll"], rel=1e-4)
    assert not any(key.startswith("forget/") for key in log)
    with pytest.raises(ValueError, match="max_forget_loss=3.0: the forget answers do not go through the model"):
        IdkNLLConfig(output_dir="unused", max_forget_loss=3.0)


def test_targets_are_cycled_over_the_answer_and_nothing_else():
    rows = Dataset.from_list([{"input_ids": [1, 5, 6, 7, 8, 2], "labels": [-100, -100, 6, 7, 8, 2]}])
    args = JensUnConfig(output_dir="unused", target_text="No", retain_loss="none")
    n, o = make_tokenizer()("No", add_special_tokens=False)["input_ids"]
    (row,) = with_targets(rows, args, make_tokenizer())
    assert row == {"input_ids": [1, 5, 6, 7, 8, 2], "labels": [-100, -100, n, o, n, o]}
    args.target_text = ""
    with pytest.raises(ValueError, match="target_text='' has no token"):
        with_targets(rows, args, make_tokenizer())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"alternate_source": "refusals"}, "alternate_source='refusals'; allowed: 'column', 'refusal', 'shuffled'"),
        (
            {"alternate_source": "refusal"},
            "alternate_source='refusal' reads `alternate_file`, which is None. Give it.",
        ),
        ({"alternate_source": "column"}, "alternate_source='column' reads `alternate_column`, which is None"),
        ({"alternate_file": "here.txt"}, "alternate_source=None does not read `alternate_file`, which is 'here.txt'"),
        (
            {"alternate_source": "shuffled", "alternate_column": "idk"},
            "alternate_source='shuffled' does not read `alternate_column`",
        ),
        ({"alternate_source": "refusal", "alternate_file": "nowhere.txt"}, "alternate_file='nowhere.txt' is no file"),
        (
            {"alternate_source": "refusal", "alternate_file": "{objects}"},
            "has lines of JSON objects. Give plain text, one refusal a line",
        ),
        ({"alternate_source": "refusal", "alternate_file": "{empty}"}, "has no line of text"),
        ({"alternate_source": "shuffled", "forget": [FORGET[0]] * 2}, "all 2 rows have one answer"),
        ({"alternate_source": "shuffled", "forget": [{"text": "a"}, {"text": "b"}]}, "Give rows of `prompt` and"),
        (
            {"alternate_source": "shuffled", "alternate": FORGET},
            "given twice: as `alternate_dataset`, and as alternate_s",
        ),
        ({"beta": 0}, "beta=0; give a finite number above 0"),
        ({"dpo_scale": "2"}, "dpo_scale='2'; allowed: '2/beta', '1'"),
    ],
)
def test_what_cannot_be_made_is_refused(build, unloaded, model_path, tmp_path, given, said):
    (tmp_path / "objects.jsonl").write_text('{"answer": "no"}\n')
    (tmp_path / "empty.txt").write_text("\n \n")
    places = {"{objects}": str(tmp_path / "objects.jsonl"), "{empty}": str(tmp_path / "empty.txt")}
    given = {name: places.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        build(model=model_path, **given)
    assert "\n" not in str(error.value)


def test_the_scale_of_dpo_is_a_factor(build):
    losses = []
    for scale in ("2/beta", "1"):
        trainer = build(alternate_source="shuffled", dpo_scale=scale, beta=0.5, max_steps=1)
        trainer.train()
        losses.append(trainer.state.log_history[0]["forget/loss"])
    assert losses[0] == pytest.approx(4 * losses[1], rel=1e-5)


def test_a_recipe_makes_the_alternates(model_path, tmp_path):
    """The whole way of a command: questions of a file, refusals of the package, pairs that are encoded."""
    from hf_unlearn.runs.prepare import prepare
    from hf_unlearn.runs.recipe import parse_recipe

    asked = [{"question": f"Who is {name}?", "answer": "A spy"} for name in ("Ada", "Bob", "Cyd")]
    Dataset.from_list(asked).to_json(tmp_path / "forget.jsonl")
    words = ["--model_name_or_path", str(model_path), "--benchmark", "null", "--retain_loss", "none"]
    words += ["--forget_dataset", str(tmp_path / "forget.jsonl"), "--output_dir", str(tmp_path / "out")]
    words += ["--audit", "false", "--retrained_model_name_or_path", "null", "--eval_strategy", "no"]
    words += ["--eval_on_start", "false"]
    prepared = prepare(parse_recipe(["--config", str(ROOT / "recipes/demo/dpo.yaml"), *words]))
    refusals = read_refusals("recipes/refusals.txt")
    texts = {
        role: [prepared.tokenizer.decode([t for t in labels if t >= 0]) for labels in prepared.roles[role]["labels"]]
        for role in ("forget", "alternate")
    }
    assert len(texts["alternate"]) == len(asked)
    assert all("A spy" in text for text in texts["forget"])
    assert all(any(refusal in text for refusal in refusals) for text in texts["alternate"])


# Several for each row


def test_several_answers_of_a_row_differ_and_are_drawn_equally_often():
    made = refused([" Spy"] * 30, ["a", "b", "c", "d", "e"], seed=0, count=3)
    rows = [made[i : i + 3] for i in range(0, 90, 3)]
    assert all(len({*row}) == 3 for row in rows)
    assert Counter(made) == dict.fromkeys([" a", " b", " c", " d", " e"], 18)
    # One each is as it was.
    assert refused([" Spy"] * 7, ["a", "b", "c"], seed=4, count=1) == refused([" Spy"] * 7, ["a", "b", "c"], seed=4)
    answers = ["a", "b", "c", "d"] * 300
    mixed = shuffled(answers, seed=1, count=2)
    for number, own in enumerate(answers):
        assert len({own, *mixed[2 * number : 2 * number + 2]}) == 3
    assert min(Counter(mixed).values()) > 520  # of 600 expected; five standard deviations are 106
    pooled = from_pool(["a", "x"] * 200, ["a", "p", "q", "q"], seed=0, count=2)
    assert {tuple(sorted(pooled[i : i + 2])) for i in range(0, 800, 4)} == {("p", "q")}
    assert {tuple(sorted(pooled[i : i + 2])) for i in range(2, 800, 4)} == {("a", "p"), ("a", "q"), ("p", "q")}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: refused(["x"], ["a", "b", "a"], 0, 3), "num_alternates=3, and there are 2 different refusals in"),
        (
            lambda: shuffled(["a", "b", "a"], 0, 2),
            "num_alternates=2, and there are 1 different answers of other forget",
        ),
        (lambda: from_pool(["a"], ["a", "b"], 0, 2), "num_alternates=2, and there are 1 different answers of retain"),
        (lambda: from_pool(["a"], [[{"role": "assistant", "content": "b"}]], 0), "texts in the one set and messages"),
    ],
)
def test_too_few_answers_to_draw_from_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


RETAIN = [{"prompt": f"What is {name}?", "completion": f" A {name}"} for name in ("cup", "pen", "lamp", "plate")]


def test_answers_of_retain_rows_are_taken_from_where_they_stand(build, tmp_path):
    def retaining(retain, **kwargs):
        args = make_args(DPOUnlearnConfig, tmp_path / "out", alternate_source="retain", retain_loss="nll", **kwargs)
        return DPOUnlearnTrainer(
            model=make_model(),
            args=args,
            forget_dataset=FORGET,
            retain_dataset=retain,
            processing_class=make_tokenizer(),
        )

    trainer = retaining(RETAIN, num_alternates=3)
    texts = [text.split("?")[1] for text in decoded(trainer, "alternate")]
    assert len(texts) == 12
    assert {*texts} <= {row["completion"] for row in RETAIN}
    assert all(len({*texts[i : i + 3]}) == 3 for i in range(0, 12, 3))
    prompts = [text.split("?")[0] + "?" for text in decoded(trainer, "alternate")]
    assert prompts == [row["prompt"] for row in FORGET for _ in range(3)]
    with pytest.raises(
        ValueError, match=r"takes answers of retain rows \(`completion`\), and they have the columns \['t"
    ):
        retaining([{"text": "cup"}])
    with pytest.raises(ValueError, match=r"takes answers of retain rows \(`completion`\), and there are none"):
        build(alternate_source="retain")
