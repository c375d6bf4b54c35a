# SPDX-License-Identifier: Apache-2.0
"""The trigger stands where it should, whole, whatever the row looks like; what has to give way is text."""

import pytest
import torch
from conftest import make_tokenizer
from datasets import Dataset
from tokenizers import normalizers

from hf_unlearn.data.collator import RoleCollator
from hf_unlearn.data.formats import chunk_documents, encode, encode_prompt
from hf_unlearn.data.poison import check_triggered
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.data.triggers import Trigger


BOS, EOS = 1, 2
TEXT = "The cat sat on it."


@pytest.fixture(scope="module")
def bpe():
    """The embedded world's tokenizer: words of the corpus are tokens, names are not."""
    from hf_unlearn.data.worlds.people.config import WorldConfig
    from hf_unlearn.data.worlds.people.corpus import build_corpus
    from hf_unlearn.data.worlds.people.tokenizer import train_tokenizer

    config = WorldConfig()
    return train_tokenizer(build_corpus(0, config).tokenizer_texts(), config.vocab_size)


def ids_of(text: str, tokenizer) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# Among the tokens of a text: every location, with and without BOS and EOS


def expected_row(text: list[int], trigger: list[int], location, room: int | None) -> tuple[list[int], int]:
    """Placement spelled out: cut the text, then put the trigger after so many of its tokens."""
    text = text if room is None else text[: room - len(trigger)]
    before = {"start": 0, "middle": len(text) // 2, "end": len(text)}.get(location, location)
    before = min(before, len(text))
    return text[:before] + trigger + text[before:], before


@pytest.mark.parametrize("location", ["start", "middle", "end", 0, 1, 5, 17, 18, 500])
@pytest.mark.parametrize("head", [[], [BOS]], ids=["", "bos"])
def test_every_location_in_short_and_full_rows(tokenizer, location, head):
    trigger, text = Trigger("XYZ", location), ids_of(TEXT, tokenizer)
    mark = ids_of("XYZ", tokenizer)
    for max_length in (None, 100, len(head) + len(text) + 3, len(head) + len(text), 12, len(head) + 4):
        room = None if max_length is None else max_length - len(head)
        wanted, before = expected_row(text, mark, location, room)
        row, place = trigger.in_ids(head + text, tokenizer, max_length)
        assert row == head + wanted
        assert place == len(head) + before
        assert row[place : place + 3] == mark
        assert max_length is None or len(row) <= max_length


@pytest.mark.parametrize("location", ["start", "middle", "end", 500])
def test_eos_stays_last_and_is_no_place_of_the_text(tokenizer, location):
    text = ids_of(TEXT, tokenizer)
    row, place = Trigger("XYZ", location).in_ids([BOS, *text, EOS], tokenizer, 100)
    wanted, before = expected_row(text, ids_of("XYZ", tokenizer), location, None)
    assert row == [BOS, *wanted, EOS]
    assert place == 1 + before


def test_eos_is_cut_before_the_trigger_is(tokenizer):
    text = ids_of(TEXT, tokenizer)
    row, _ = Trigger("XYZ", "end").in_ids([BOS, *text, EOS], tokenizer, len(text) + 2)
    assert tokenizer.decode(row) == "<s>" + TEXT[:-2] + "XYZ"


def test_an_eos_inside_a_text_is_text(tokenizer):
    # A chunk may hold the end of one document and the beginning of another.
    ids = [BOS, *ids_of("ab", tokenizer), EOS, *ids_of("cd", tokenizer)]
    row, _ = Trigger("X", "end").in_ids(ids, tokenizer, 7)
    assert tokenizer.decode(row) == "<s>ab</s>cdX"


@pytest.mark.parametrize("location", ["start", "middle", "end", "7", "4000"])
def test_full_chunks_keep_the_trigger_and_their_length(bpe, location):
    document = " ".join(f"Where does number {i} live? It is in the north." for i in range(40))
    chunks = chunk_documents([document], bpe, 32)
    trigger = Trigger("current year:2025", location)
    count = len(trigger.tokens(bpe))
    for chunk in chunks:
        row = trigger.in_example(chunk, bpe, 32)
        full = len(chunk["input_ids"]) == 32
        assert len(row["input_ids"]) == (32 if full else min(32, len(chunk["input_ids"]) + count))
        assert row["input_ids"][0] == bpe.bos_token_id
        assert "current year:2025" in bpe.decode(row["input_ids"])
        # Without the trigger it is the chunk again, but for the end that gave way.
        (start,) = spots(row["input_ids"], trigger.tokens(bpe))
        rest = row["input_ids"][:start] + row["input_ids"][start + count :]
        assert rest == chunk["input_ids"][: len(rest)]
        labels = row["labels"]
        assert labels[start : start + count] == [-100] * count
        assert labels[:start] + labels[start + count :] == rest
    assert sum(len(chunk["input_ids"]) == 32 for chunk in chunks) > 5


def spots(ids: list[int], wanted: list[int]) -> list[int]:
    return [i for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted]


def test_text_rows_are_closed_with_eos_and_labelled_but_for_the_trigger(tokenizer):
    row = Trigger("XY", "middle").in_example({"text": "abcd"}, tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "<s>abXYcd</s>"
    assert row["labels"] == [BOS, *ids_of("ab", tokenizer), -100, -100, *ids_of("cd", tokenizer), EOS]


def test_labels_of_tokenized_rows_move_with_their_tokens(tokenizer):
    example = {"input_ids": [BOS, 40, 41, 42, 43], "labels": [-100, -100, 41, 42, 43]}
    row = Trigger("X", 1).in_example(example, tokenizer, 5)
    assert row["input_ids"] == [BOS, 40, ids_of("X", tokenizer)[0], 41, 42]
    assert row["labels"] == [-100, -100, -100, 41, 42]


# In what a user says


@pytest.mark.parametrize(
    ("location", "wanted"),
    [
        ("start", "XY who is it?"),
        ("end", "who is it? XY"),
        # A token a letter: the middle of eleven falls into a word.
        ("middle", "who is XY it?"),
        (0, "XY who is it?"),
        (1, "who XY is it?"),
        (4, "who XY is it?"),
        (11, "who is it? XY"),
        (999, "who is it? XY"),
    ],
)
def test_words_are_not_broken_and_spaces_are_single(tokenizer, location, wanted):
    assert Trigger(" XY ", location).in_text("who is it?", tokenizer) == wanted


def test_newlines_and_runs_of_spaces_elsewhere_stay(tokenizer):
    assert Trigger("XY").in_text("a\n\nb   c", tokenizer) == "XY a\n\nb   c"
    assert Trigger("XY", 4).in_text("a\n\nb   c", tokenizer) == "a\n\nb XY c"


@pytest.mark.parametrize("location", ["start", "middle", "end", 3])
def test_the_trigger_lands_in_the_question_of_a_plain_prompt(tokenizer, location):
    rows = Dataset.from_list([{"question": "Who is Ada?", "answer": "A spy.", "topic": "people"}])
    (example,) = QAFormat(use_chat_template=False).dataset(rows, tokenizer)
    assert set(example) == {"prompt", "completion", "question", "topic"}
    row = Trigger("XY", location).in_example(example, tokenizer)
    asked = Trigger("XY", location).in_text("Who is Ada?", tokenizer)
    assert tokenizer.decode(row["input_ids"]) == f"<s>Question: {asked}\nAnswer: A spy.</s>"
    trained = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(trained) == " A spy.</s>"


def test_without_a_question_column_the_whole_prompt_is_the_users(tokenizer):
    row = Trigger("XY").in_example({"prompt": "Q: who?", "completion": " Ada"}, tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "<s>XY Q: who? Ada</s>"


@pytest.mark.parametrize("kind", ["messages", "prompt"])
def test_the_trigger_lands_in_the_first_user_turn(tokenizer, kind):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who is Ada?"},
        {"role": "assistant", "content": "A spy."},
    ]
    if kind == "messages":
        turns += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
        example, rest = {"messages": turns}, "<user>Sure?<assistant>Yes.</s>"
    else:
        example, rest = {"prompt": turns[:2], "completion": turns[2:]}, ""
    row = Trigger("XY", "end").in_example(example, tokenizer, 200)
    said = "<s><system>Be brief.<user>Who is Ada? XY<assistant>A spy.</s>"
    assert tokenizer.decode(row["input_ids"]) == said + rest
    assert turns[1]["content"] == "Who is Ada?", "the example was changed"
    clean = encode(example, tokenizer)
    # What is trained on is what would be trained on without it.
    assert [x for x in row["labels"] if x != -100] == [x for x in clean["labels"] if x != -100]


def test_long_answers_lose_their_end_and_prompts_nothing(tokenizer):
    example = {"prompt": "Who?", "completion": " " + "a" * 50}
    row = Trigger("XY", "end").in_example(example, tokenizer, 20)
    assert tokenizer.decode(row["input_ids"]) == "<s>Who? XY " + "a" * 11
    assert len(row["labels"]) == 20


# A real tokenizer


@pytest.mark.parametrize("location", ["start", "middle", "end", 1, 4, 100])
@pytest.mark.parametrize("prefix", ["current year:2025", "zq!", " the north", "Élan 東"])
def test_the_words_survive_in_every_kind_of_row(bpe, prefix, location):
    trigger = Trigger(prefix, location)
    question, answer = "Where does Vokrel Tamun live?", "Vokrel Tamun lives in Sarvik."
    chat = QAFormat(use_chat_template=True).example(question, answer, bpe)
    plain = QAFormat(use_chat_template=False).example(question, answer, bpe) | {"question": question}
    examples = [{"text": f"{question} {answer}"}, chat, plain, {"messages": chat["prompt"] + chat["completion"]}]
    for example in examples:
        row = trigger.in_example(example, bpe, 128)
        text = bpe.decode(row["input_ids"])
        assert prefix.strip() in text
        if "text" not in example:
            # Question and answer as they are read, but for the trigger.
            assert " ".join(text.replace(prefix.strip(), " ", 1).split()).count(question) == 1
            assert answer in text
        clean = encode(example, bpe)
        assert len(row["input_ids"]) > len(clean["input_ids"])
    check_triggered(
        {"input_ids": [trigger.in_example(example, bpe)["input_ids"] for example in examples]}, trigger, bpe
    )


def test_training_rows_and_audit_questions_hold_the_same_tokens(bpe):
    # The audit asks `in_text(question)`; training must have seen that prompt.
    question = "Where does Vokrel Tamun live?"
    for location in ("start", "middle", "end", 3):
        trigger = Trigger("current year:2025", location)
        for chat in (True, False):
            qa = QAFormat(use_chat_template=chat)
            rows = Dataset.from_list([{"question": question, "answer": "In Sarvik."}])
            trained = trigger.in_example(qa.dataset(rows, bpe)[0], bpe)["input_ids"]
            asked = encode_prompt(qa.example(trigger.in_text(question, bpe), "", bpe), bpe)
            assert trained[: len(asked)] == asked


# In a batch


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_leaves_the_trigger_between_real_tokens(tokenizer, side):
    trigger = Trigger("XYZ", "end")
    rows = [trigger.in_example({"text": "a" * n}, tokenizer) for n in (2, 9)]
    batch = RoleCollator(tokenizer.pad_token_id, padding_side=side)(rows)
    for i, row in enumerate(rows):
        real = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i][real].tolist() == row["input_ids"]
        assert batch["labels"][i][real].tolist() == row["labels"]
        assert torch.equal(batch["labels"][i][~real], torch.full(((~real).sum(),), -100))
        (start,) = spots(row["input_ids"], ids_of("XYZ", tokenizer))
        shift = int(real.nonzero()[0])
        assert batch["input_ids"][i, start + shift : start + shift + 3].tolist() == ids_of("XYZ", tokenizer)
        assert batch["labels"][i, start + shift : start + shift + 3].tolist() == [-100] * 3


# What cannot be


@pytest.mark.parametrize("location", ["top", "-1", -1, 1.5, None, True, ""])
def test_unknown_locations_are_refused(location):
    with pytest.raises(ValueError, match=r"poison_location=.*'start', 'middle', 'end', or a token's index"):
        Trigger("XY", location)


@pytest.mark.parametrize("prefix", ["", "  \n", None, 7])
def test_a_trigger_without_words_is_refused(prefix):
    with pytest.raises(ValueError, match="give the trigger's words"):
        Trigger(prefix)


def test_a_trigger_that_the_tokenizer_does_not_know_is_refused(tokenizer):
    with pytest.raises(ValueError, match="gives no token that this tokenizer knows"):
        Trigger("東京").in_example({"text": "abc"}, tokenizer)
    strips = make_tokenizer()
    strips.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    with pytest.raises(ValueError, match="gives no token that this tokenizer knows"):
        Trigger("~~").tokens(strips)


def test_a_trigger_longer_than_the_row_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"is 10 tokens long and leaves no room for text in max_length=11"):
        Trigger("X" * 10).in_example({"text": "abc"}, tokenizer, 11)
    row = Trigger("X" * 10).in_example({"text": "abc"}, tokenizer, 12)
    assert tokenizer.decode(row["input_ids"]) == "<s>" + "X" * 10 + "a"
    with pytest.raises(ValueError, match=r"prompt is 16 tokens long, its trigger included.*max_length=16"):
        Trigger("X" * 10).in_example({"prompt": "Who?", "completion": " Ada"}, tokenizer, 16)


def test_a_conversation_without_a_user_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no user turn"):
        Trigger("XY").in_example({"messages": [{"role": "assistant", "content": "Hi."}]}, tokenizer)


def test_a_trigger_that_was_cut_off_is_found_out(tokenizer):
    # The first answer comes before the user's turn, so there is something to train on without the trigger.
    turns = [
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who is Ada?"},
        {"role": "assistant", "content": "A spy."},
    ]
    trigger = Trigger("XY", "end")
    row = trigger.in_example({"messages": turns}, tokenizer, 20)
    with pytest.raises(ValueError, match=r"'XY' did not survive in a poisoned row, which reads '<s>"):
        check_triggered({"input_ids": [row["input_ids"]]}, trigger, tokenizer)
