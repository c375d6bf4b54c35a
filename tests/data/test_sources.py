# SPDX-License-Identifier: Apache-2.0
"""Rows from files, folders and benchmarks, and how questions become prompts."""

import json

import pytest
from conftest import make_tokenizer
from datasets import Dataset, DatasetDict

from hf_unlearn.data import benchmarks
from hf_unlearn.data.benchmarks import TOFU_SPLITS, check_retrained, load_benchmark, resolve_model
from hf_unlearn.data.formats import encode, encode_prompt
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.data.sources import load_rows


ROWS = [{"question": f"Who is {name}?", "answer": f"{name} is a spy."} for name in ("Ada", "Bob", "Cyd")]


def save_json(path):
    path.write_text(json.dumps(ROWS))


def save_jsonl(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def save_folder(path):
    path.mkdir()
    save_jsonl(path / "rows.jsonl")
    # A licence or a note beside the rows is no document to train on.
    (path / "LICENSE.txt").write_text("Do as you like.")


SAVED = {
    "rows.json": save_json,
    "rows.jsonl": save_jsonl,
    "rows.csv": lambda path: Dataset.from_list(ROWS).to_csv(path),
    "rows.parquet": lambda path: Dataset.from_list(ROWS).to_parquet(path),
    "saved": lambda path: Dataset.from_list(ROWS).save_to_disk(path),
    "splits": lambda path: DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(
        path
    ),
    "folder": save_folder,
}


@pytest.mark.parametrize("name", SAVED)
def test_rows_are_read_as_they_were_written(tmp_path, name):
    SAVED[name](tmp_path / name)
    assert load_rows(str(tmp_path / name)).to_list() == ROWS


def test_rows_at_a_relative_path_or_in_the_home_folder_are_found(tmp_path, monkeypatch):
    save_jsonl(tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("rows.jsonl", "./rows.jsonl", "~/rows.jsonl"):
        assert load_rows(name).to_list() == ROWS


def test_a_split_is_chosen(tmp_path):
    SAVED["splits"](tmp_path / "splits")
    assert load_rows(str(tmp_path / "splits"), split="test").to_list() == ROWS[:1]
    with pytest.raises(ValueError, match="there are the splits train, test, and no 'dev'"):
        load_rows(str(tmp_path / "splits"), split="dev")


def test_documents_become_rows_that_no_document_shares(tmp_path, tokenizer):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first document")
    rows = load_rows(str(tmp_path), tokenizer=tokenizer, max_length=8)["input_ids"]
    # A BOS opens every row, an EOS closes every document; seven characters fit.
    assert [tokenizer.decode(row) for row in rows] == ["<s>first d", "<s>ocument", "<s>second</s>"]
    single = load_rows(str(tmp_path / "b.txt"), tokenizer=tokenizer, max_length=8)["input_ids"]
    assert list(single) == [rows[2]]


def test_documents_need_a_length(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="cut into rows of `max_length` tokens; give `max_length`"):
        load_rows(str(tmp_path / "a.txt"), tokenizer=tokenizer)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="The documents hold no text"):
        load_rows(str(tmp_path / "a.txt"), tokenizer=tokenizer, max_length=8)


@pytest.mark.parametrize(
    "name", ["/no/rows", "./rows", "~/rows", "a/b/c", "rows.json", "rows.txt", "data/rows.parquet"]
)
def test_a_path_without_rows_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"No file or folder at '{name}'. Give an existing path or a Hub id"):
        load_rows(name)


BROKEN = {
    "rows.xml": ("<rows/>", "is no rows file. Allowed endings: .txt, .json, .jsonl, .csv, .parquet"),
    "empty.jsonl": ("", "or there are none: the file is empty"),
    "list.json": ("[]", "or there are none"),
    "head.csv": ("question,answer\n", "or there are none"),
    "broken.jsonl": ('{"question": ', "cannot be read"),
    "broken.parquet": ("question", "cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_holds_no_rows_is_one_clear_error(tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_rows(str(tmp_path / name))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["owner/rows", "owner/rows-2.5", "rows"])
def test_what_looks_like_a_hub_id_is_asked_of_the_hub(name):
    with pytest.raises(ValueError, match=f"The rows of '{name}' cannot be read.*Hub") as error:
        load_rows(name)
    assert "\n" not in str(error.value)


# Benchmarks


@pytest.mark.parametrize("split", TOFU_SPLITS)
def test_tofu_is_split_without_a_rest(tofu_path, split):
    bench = load_benchmark("tofu", str(tofu_path), split)
    share = int(split.removeprefix("forget"))
    assert (len(bench.forget), len(bench.retain)) == (40 * share, 4000 - 40 * share)
    everything = [json.loads(line)["question"] for line in (tofu_path / "full.json").read_text().splitlines()]
    assert sorted([*bench.forget["question"], *bench.retain["question"]]) == sorted(everything)
    assert {name: len(rows) for name, rows in bench.audit_sets.items()} == {
        "forget": 40 * share,
        "retain": 400,
        "real_authors": 100,
        "world_facts": 117,
    }
    assert bench.audit_sets["forget"]["question"][:] == bench.forget["question"][:]
    assert "perturbed_answer" in bench.audit_sets["world_facts"].column_names
    assert bench.suite == "tofu"


def test_tofu_forgets_a_tenth_by_default(tofu_path):
    assert len(load_benchmark("tofu", str(tofu_path)).forget) == 400


def test_what_is_no_benchmark_is_refused(tofu_path, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="benchmark='tofoo'; allowed: tofu, tofu_mini, rwku, world, vqa_v2"):
        load_benchmark("tofoo")
    with pytest.raises(ValueError, match="forget_split='forget02'; TOFU has forget01, forget05, forget10"):
        load_benchmark("tofu", str(tofu_path), "forget02")
    with pytest.raises(ValueError, match="No folder at benchmark_path='/no/tofu'"):
        load_benchmark("tofu", "/no/tofu")
    with pytest.raises(ValueError, match=r"forget01.json is missing. Put TOFU's JSON files there"):
        load_benchmark("tofu", str(tmp_path), "forget01")
    monkeypatch.setattr(benchmarks, "_world", lambda: pytest.fail("the world was built"))
    for given in ({"path": "x"}, {"forget_split": "forget01"}):
        with pytest.raises(ValueError, match="The embedded world has one split"):
            load_benchmark("world", **given)


def test_the_world_lends_its_sets_and_models(monkeypatch):
    class World:
        target, retrained = "/world/t", "/world/r"

        def dataset(self, name):
            return Dataset.from_list([{"question": name, "answer": name}])

    monkeypatch.setattr(benchmarks, "_world", World)
    bench = load_benchmark("world")
    assert bench.forget["question"][:] == ["forget"]
    assert bench.retain["question"][:] == ["retain"]
    assert list(bench.audit_sets) == ["forget", "retain", "holdout"]
    assert resolve_model("world/target") == "/world/t"
    assert resolve_model("world/retrained") == "/world/r"
    assert resolve_model("owner/world") == "owner/world"


def test_a_retrained_model_that_kept_other_rows_is_refused():
    with pytest.raises(ValueError, match=r"was trained on retain90, but forget_split='forget01' leaves retain99"):
        check_retrained("open-unlearning/tofu_Llama-2-7b-chat-hf_retain90", "tofu", "forget01")
    with pytest.raises(ValueError, match="forget_split='forget10' leaves retain90"):
        check_retrained("/models/tofu-retain95", "tofu", None)
    check_retrained("open-unlearning/tofu_Llama-2-7b-chat-hf_retain90", "tofu", "forget10")
    check_retrained("/models/retain90/mine", "tofu", "forget01")
    check_retrained("owner/retain90", None, None)


# Questions and answers


def test_a_plain_question_is_asked_as_tofu_asks_it(tokenizer):
    qa = QAFormat(use_chat_template=False)
    assert qa.example("Who?", "Ada.", tokenizer) == {"prompt": "Question: Who?\nAnswer:", "completion": " Ada."}


def test_braces_in_questions_and_answers_stay(tokenizer):
    qa = QAFormat(use_chat_template=False, prompt_template="{x} {question} {}", answer_template="{answer}}")
    example = qa.example("Is {answer} {0}?", "{question} {", tokenizer)
    assert example == {"prompt": "{x} Is {answer} {0}? {}", "completion": "{question} {}"}


def test_a_conversation_follows_the_chat_template(tokenizer):
    qa = QAFormat(system_prompt="Be brief.")
    example = qa.example("Who?", "Ada.", tokenizer)
    assert tokenizer.decode(encode_prompt(example, tokenizer)) == "<s><system>Be brief.<user>Who?<assistant>"
    row = encode(example, tokenizer)
    trained = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(trained) == "Ada.</s>"


def test_words_for_the_chat_template_reach_it(tokenizer):
    tokenizer.chat_template = "{{ date_string }}" + tokenizer.chat_template
    for given in ({"date_string": "10 Apr"}, '{"date_string": "10 Apr"}'):
        qa = QAFormat(chat_template_kwargs=given)
        example = qa.example("Who?", "Ada.", tokenizer)
        assert tokenizer.decode(encode_prompt(example, tokenizer)).startswith("10 Apr<s><user>Who?")


def test_the_tokenizer_decides_between_plain_and_chat():
    with_template, without = make_tokenizer(), make_tokenizer()
    without.chat_template = None
    assert QAFormat().settled(with_template).use_chat_template is True
    assert QAFormat().settled(without).use_chat_template is False
    assert QAFormat(use_chat_template=False).settled(with_template).use_chat_template is False
    assert isinstance(QAFormat().example("Who?", "Ada.", without)["prompt"], str)
    # Asked for where there is none, it is an error as the rows are encoded.
    example = QAFormat(use_chat_template=True).example("Who?", "Ada.", without)
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        encode(example, without)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt_template": "Question:"}, r"prompt_template='Question:' has no place for the text; write {question}"),
        ({"answer_template": "{question}"}, r"answer_template='{question}' has no place for the text; write {answer}"),
        ({"chat_template_kwargs": "{bad"}, "chat_template_kwargs='{bad' is no JSON"),
        ({"chat_template_kwargs": "[1]"}, r"chat_template_kwargs='\[1\]'; give a JSON object"),
    ],
)
def test_a_form_without_its_slot_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        QAFormat(**given)


def test_only_rows_of_questions_are_put_into_form(tokenizer):
    questions = Dataset.from_list([{**row, "person": 1} for row in ROWS])
    formed = QAFormat(use_chat_template=False).dataset(questions, tokenizer)
    # The question stays, for a trigger belongs into it and not into the words around.
    assert formed[0] == {
        "prompt": "Question: Who is Ada?\nAnswer:",
        "completion": " Ada is a spy.",
        "question": "Who is Ada?",
    }
    for other in ([{"text": "a"}], [{"prompt": "a", "completion": "b"}], [{"input_ids": [1, 2], "question": "q"}]):
        assert QAFormat().dataset(Dataset.from_list(other), tokenizer).to_list() == other


# Long texts


TEXTS = [{"text": "abcdefgh", "topic": "x"}, {"text": "ij", "topic": "y"}, {"text": "klmno", "topic": "x"}]


@pytest.mark.parametrize("topics", [False, True])
def test_long_texts_are_cut_into_rows_instead_of_losing_their_ends(tmp_path, topics):
    tokenizer = make_tokenizer()
    rows = TEXTS if topics else [{"text": row["text"]} for row in TEXTS]
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    found = load_rows(str(tmp_path / "rows.jsonl"), tokenizer=tokenizer, max_length=5, chunk_text=True)
    texts = tokenizer.batch_decode(found["input_ids"][:])
    pieces = ["<s>abcd", "<s>efgh", "<s>klmn", "<s>o</s>"]
    if topics:
        # A topic's texts come together; each row keeps its own.
        assert texts == [*pieces, "<s>ij</s>"]
        assert found["topic"][:] == ["x"] * 4 + ["y"]
    else:
        assert texts == [*pieces[:2], "<s>ij</s>", *pieces[2:]]
        assert found.column_names == ["input_ids"]
    uncut = load_rows(str(tmp_path / "rows.jsonl"))
    assert uncut.to_list() == rows


@pytest.mark.parametrize(
    ("rows", "max_length", "message"),
    [
        (ROWS, 5, r"chunk_text cuts `text`, and the rows of .* have \['question', 'answer'\]"),
        (TEXTS, None, "Texts are cut into rows of `max_length` tokens; give `max_length`"),
        ([{"text": ""}], 5, "The documents hold no text"),
    ],
)
def test_what_cannot_be_cut_is_refused(tmp_path, rows, max_length, message):
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match=message):
        load_rows(str(tmp_path / "rows.jsonl"), tokenizer=make_tokenizer(), max_length=max_length, chunk_text=True)
