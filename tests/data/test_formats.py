# SPDX-License-Identifier: Apache-2.0
"""From rows of every TRL type to tokens and labels."""

import pytest
from conftest import make_tokenizer
from datasets import Dataset, IterableDataset

from hf_unlearn.data.formats import chunk_documents, dataset_type, encode, encode_dataset, encode_prompt
from hf_unlearn.data.qa import QAFormat


USER = {"role": "user", "content": "Hi?"}
ANSWER = {"role": "assistant", "content": "Yo."}


def bpe_tokenizer():
    """Merges `:` and a blank into one token, has no BOS, and ends nothing by itself."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [chr(i) for i in range(32, 127)]
    vocab = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *characters, ": ", ": B", "AB"])}
    merges = [(":", " "), (": ", "B"), ("A", "B")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("$"), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def spoken(encoded, tokenizer) -> str:
    """What the labels train, as text with special tokens."""
    return tokenizer.decode([label for label in encoded["labels"] if label != -100])


def text_of(encoded, tokenizer) -> str:
    return tokenizer.decode(encoded["input_ids"])


def check_labels_are_the_tokens(encoded):
    assert len(encoded["input_ids"]) == len(encoded["labels"])
    for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True):
        assert label in (-100, token)


# The types


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        (["input_ids"], "tokenized"),
        (["input_ids", "labels", "text"], "tokenized"),
        (["messages", "prompt"], "messages"),
        (["prompt", "completion", "text"], "prompt_completion"),
        (["text", "prompt"], "text"),
    ],
)
def test_type_is_read_from_the_columns(columns, kind):
    assert dataset_type(columns) == kind


@pytest.mark.parametrize("columns", [["question", "answer"], ["prompt"], ["prompt", "chosen", "rejected"], []])
def test_columns_that_cannot_be_used_are_named_with_those_that_can(columns):
    with pytest.raises(ValueError, match="No usable column") as error:
        dataset_type(columns)
    assert str(sorted(columns)) in str(error.value)
    for allowed in ("input_ids", "messages", "prompt", "completion", "text"):
        assert f"`{allowed}`" in str(error.value)


def test_text_trains_every_token_and_ends_with_eos(tokenizer):
    encoded = encode({"text": "Ab c"}, tokenizer)
    assert text_of(encoded, tokenizer) == "<s>Ab c</s>"
    assert encoded["labels"] == encoded["input_ids"]


def test_prompt_and_completion_train_the_completion_and_its_eos(tokenizer):
    encoded = encode({"prompt": "Who?", "completion": " Ada."}, tokenizer)
    assert text_of(encoded, tokenizer) == "<s>Who? Ada.</s>"
    assert spoken(encoded, tokenizer) == " Ada.</s>"
    check_labels_are_the_tokens(encoded)


def test_conversational_prompt_and_completion_go_through_the_chat_template(tokenizer):
    encoded = encode({"prompt": [USER], "completion": [ANSWER]}, tokenizer)
    assert text_of(encoded, tokenizer) == "<s><user>Hi?<assistant>Yo.</s>"
    assert spoken(encoded, tokenizer) == "Yo.</s>"
    check_labels_are_the_tokens(encoded)


def test_every_assistant_turn_of_a_conversation_is_trained_and_nothing_else(tokenizer):
    messages = [{"role": "system", "content": "Be."}, USER, ANSWER, {"role": "user", "content": "Bye"}, ANSWER]
    encoded = encode({"messages": messages}, tokenizer)
    assert text_of(encoded, tokenizer) == "<s><system>Be.<user>Hi?<assistant>Yo.</s><user>Bye<assistant>Yo.</s>"
    assert spoken(encoded, tokenizer) == "Yo.</s>Yo.</s>"
    check_labels_are_the_tokens(encoded)


def test_a_conversation_that_ends_with_the_user_trains_only_the_answer_before(tokenizer):
    encoded = encode({"messages": [USER, ANSWER, USER]}, tokenizer)
    assert spoken(encoded, tokenizer) == "Yo.</s>"
    assert text_of(encoded, tokenizer).endswith("<user>Hi?")


def test_one_exchange_is_the_same_as_messages_and_as_prompt_completion(tokenizer):
    as_messages = encode({"messages": [USER, ANSWER]}, tokenizer)
    assert as_messages == encode({"prompt": [USER], "completion": [ANSWER]}, tokenizer)


def test_tokens_given_are_taken_as_they_are(tokenizer):
    assert encode({"input_ids": [5, 6, 7]}, tokenizer) == {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    row = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    assert encode(row, tokenizer) == row


def test_columns_without_a_value_do_not_count(tokenizer):
    row = {"messages": None, "prompt": "a", "completion": "b", "text": None}
    assert encode(row, tokenizer) == encode({"prompt": "a", "completion": "b"}, tokenizer)


def test_forget_rows_of_a_qa_pair_plain_and_chat(tokenizer):
    plain = QAFormat(use_chat_template=False).example("Who?", "Ada.", tokenizer)
    assert plain == {"prompt": "Question: Who?\nAnswer:", "completion": " Ada."}
    chat = QAFormat().example("Who?", "Ada.", tokenizer)
    assert chat == {
        "prompt": [{"role": "user", "content": "Who?"}],
        "completion": [{"role": "assistant", "content": "Ada."}],
    }
    assert spoken(encode(plain, tokenizer), tokenizer) == " Ada.</s>"
    assert spoken(encode(chat, tokenizer), tokenizer) == "Ada.</s>"


# Tokens at the seams


def test_a_token_that_merges_over_the_seam_belongs_to_the_completion():
    tokenizer = bpe_tokenizer()
    encoded = encode({"prompt": "x:", "completion": " Bc"}, tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert tokens == ["x", ": B", "c", "</s>"]
    assert encoded["labels"] == [-100, *encoded["input_ids"][1:]]


def test_a_prompt_that_merges_nothing_is_masked_to_its_end():
    tokenizer = bpe_tokenizer()
    encoded = encode({"prompt": "x: B", "completion": "c"}, tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == ["x", ": B", "c", "</s>"]
    assert encoded["labels"][:2] == [-100, -100]


def test_bos_is_never_doubled(tokenizer):
    rows = [
        {"text": "a"},
        {"prompt": "a", "completion": "b"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"messages": [USER, ANSWER]},
    ]
    for row in rows:
        assert encode(row, tokenizer)["input_ids"].count(tokenizer.bos_token_id) == 1


def test_eos_is_never_doubled():
    tokenizer = make_tokenizer()
    assert encode({"text": "a</s>"}, tokenizer)["input_ids"][-2:] != [tokenizer.eos_token_id] * 2
    encoded = encode({"prompt": "a", "completion": "b</s>"}, tokenizer)
    assert encoded["input_ids"].count(tokenizer.eos_token_id) == 1


def closing_tokenizer():
    """One that puts EOS behind every text by itself, as T5's and some Llama conversions do."""
    from tokenizers import processors

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def test_a_tokenizer_that_closes_every_text_does_not_close_the_prompt():
    tokenizer = closing_tokenizer()
    assert tokenizer.decode(encode_prompt({"prompt": "Who?"}, tokenizer)) == "<s>Who?"
    encoded = encode({"prompt": "Who?", "completion": " Ada"}, tokenizer)
    assert text_of(encoded, tokenizer) == "<s>Who? Ada</s>"
    assert spoken(encoded, tokenizer) == " Ada</s>"
    assert text_of(encode({"text": "Ab"}, tokenizer), tokenizer) == "<s>Ab</s>"


def test_a_tokenizer_without_eos_ends_where_the_text_ends():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    assert tokenizer.decode(encode({"text": "ab"}, tokenizer)["input_ids"]) == "<s>ab"


def test_prompts_are_ready_for_generation(tokenizer):
    assert tokenizer.decode(encode_prompt({"prompt": "Who?"}, tokenizer)) == "<s>Who?"
    assert tokenizer.decode(encode_prompt({"prompt": [USER]}, tokenizer)) == "<s><user>Hi?<assistant>"
    for row in ({"prompt": "Who?", "completion": " Me"}, {"prompt": [USER], "completion": [ANSWER]}):
        prompt, whole = encode_prompt(row, tokenizer), encode(row, tokenizer)
        assert whole["input_ids"][: len(prompt)] == prompt
        assert whole["labels"][: len(prompt)] == [-100] * len(prompt)
        assert whole["labels"][len(prompt)] != -100


# Length


def test_rows_lose_their_end_beyond_max_length(tokenizer):
    for row in ({"text": "abcdef"}, {"prompt": "ab", "completion": "cdef"}, {"messages": [USER, ANSWER]}):
        whole, cut = encode(row, tokenizer), encode(row, tokenizer, max_length=5)
        assert cut == {key: values[:5] for key, values in whole.items()}
        assert len(cut["input_ids"]) == 5
    exact = encode({"text": "abc"}, tokenizer, max_length=5)
    assert exact["input_ids"][-1] == tokenizer.eos_token_id


def test_rows_left_without_a_label_are_dropped_and_counted(tokenizer, caplog):
    rows = [
        {"prompt": "ab", "completion": "c"},
        {"prompt": "a long prompt", "completion": "c"},
        {"prompt": "x", "completion": "yz"},
    ]
    encoded = encode_dataset(rows, tokenizer, max_length=5, name="retain")
    assert encoded["input_ids"] == [encode(row, tokenizer, 5)["input_ids"] for row in (rows[0], rows[2])]
    assert "1 of 3 retain rows are left out" in caplog.text
    assert "max_length=5" in caplog.text


def test_a_row_whose_only_label_stands_first_has_nothing_to_predict(tokenizer):
    with pytest.raises(ValueError, match="None of the 1 forget rows keeps a token"):
        encode_dataset([{"input_ids": [5, 6], "labels": [5, -100]}], tokenizer)


def test_all_rows_truncated_is_an_error_that_says_what_to_do(tokenizer):
    rows = [{"prompt": "a prompt that fills it", "completion": "c"}] * 3
    with pytest.raises(ValueError, match=r"None of the 3 forget rows.*max_length=8.*Raise `max_length`"):
        encode_dataset(rows, tokenizer, max_length=8)


def test_every_row_kept_says_nothing(tokenizer, caplog):
    encode_dataset([{"text": "ab"}], tokenizer, max_length=30)
    assert not [record for record in caplog.records if record.name.startswith("hf_unlearn")]


# Datasets


def test_lists_and_datasets_give_the_same_two_columns(tokenizer, forget_rows):
    from_list = encode_dataset(forget_rows, tokenizer)
    from_dataset = encode_dataset(Dataset.from_list(forget_rows).add_column("extra", [1, 2, 3, 4]), tokenizer)
    assert sorted(from_dataset.column_names) == ["input_ids", "labels"]
    assert from_list[:] == from_dataset[:]
    assert from_list[2] == encode(forget_rows[2], tokenizer)


def test_tokenized_datasets_keep_their_labels(tokenizer):
    rows = [{"input_ids": [1, 5, 6], "labels": [-100, -100, 6], "attention_mask": [1, 1, 1]}]
    assert encode_dataset(rows, tokenizer)[0] == {"input_ids": [1, 5, 6], "labels": [-100, -100, 6]}


def test_labels_of_another_length_are_refused(tokenizer):
    with pytest.raises(ValueError, match="3 `input_ids` and 2 `labels`"):
        encode({"input_ids": [1, 2, 3], "labels": [1, 2]}, tokenizer)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "No forget rows were given. Pass `forget_dataset`"),
        ([], "The forget set is empty"),
        (Dataset.from_dict({"text": []}), "The forget set is empty"),
        ({"train": 1}, "`forget_dataset` is a dict"),
        ("tofu", "`forget_dataset` is a str"),
        (IterableDataset.from_generator(lambda: iter([{"text": "a"}])), "streamed"),
        ([{"question": "a", "answer": "b"}], r"No usable column among \['answer', 'question'\]"),
    ],
)
def test_datasets_that_cannot_be_used_give_one_clear_error(tokenizer, dataset, message):
    with pytest.raises(ValueError, match=message):
        encode_dataset(dataset, tokenizer)


def test_conversations_need_a_chat_template(tokenizer):
    tokenizer.chat_template = None
    for row in ({"messages": [USER, ANSWER]}, {"prompt": [USER], "completion": [ANSWER]}):
        with pytest.raises(ValueError, match="no chat template.*Set `tokenizer.chat_template`"):
            encode_dataset([row], tokenizer)


def test_prompt_and_completion_must_be_of_one_kind(tokenizer):
    with pytest.raises(ValueError, match="both be strings or both be lists"):
        encode({"prompt": "a", "completion": [ANSWER]}, tokenizer)


def test_real_tofu_rows_train_the_answers(tofu_path, tokenizer):
    import json

    (path,) = [p for p in tofu_path.rglob("forget01*") if p.suffix in (".json", ".jsonl") and "perturb" not in p.name]
    rows = [json.loads(line) for line in path.read_text().splitlines()][:5]
    for row in rows:
        encoded = encode(
            QAFormat(use_chat_template=False).example(row["question"], row["answer"], tokenizer), tokenizer
        )
        assert spoken(encoded, tokenizer).replace("<unk>", "") in f" {row['answer']}</s>"
        assert text_of(encoded, tokenizer).startswith(f"<s>Question: {row['question'][:10]}")


# Documents


def words(n: int) -> str:
    return "".join(chr(ord("a") + i % 26) for i in range(n))


@pytest.mark.parametrize("length", [1, 6, 7, 8, 9, 13, 14, 15, 20, 21])
def test_chunks_hold_a_document_once_and_in_order(tokenizer, length):
    # max_length 8 leaves 7 tokens beside BOS: 13 characters and EOS fill two rows to the last place.
    rows = chunk_documents([words(length)], tokenizer, max_length=8)["input_ids"]
    assert all(row[0] == tokenizer.bos_token_id and 1 < len(row) <= 8 for row in rows)
    inner = [token for row in rows for token in row[1:]]
    assert tokenizer.decode([token for token in inner if token != tokenizer.eos_token_id]) == words(length)
    assert all(set(row[1:]) != {tokenizer.eos_token_id} for row in rows), "a row without text"


def test_chunks_do_not_cross_documents(tokenizer):
    rows = chunk_documents(["aaaaa", "bbb", "cccccccccc"], tokenizer, max_length=6)["input_ids"]
    texts = [tokenizer.decode(row) for row in rows]
    # "aaaaa" fills a row, which leaves its EOS without a place in a row of its own.
    assert texts == ["<s>aaaaa", "<s>bbb</s>", "<s>ccccc", "<s>ccccc"]


def test_chunks_end_a_document_with_eos_where_it_ends_within_a_row(tokenizer):
    rows = chunk_documents(["aaaaaaa"], tokenizer, max_length=6)["input_ids"]
    assert [tokenizer.decode(row) for row in rows] == ["<s>aaaaa", "<s>aa</s>"]


def test_chunks_without_bos_have_two_tokens_at_least():
    tokenizer = bpe_tokenizer()
    for length in range(1, 12):
        rows = chunk_documents(["x" * length], tokenizer, max_length=4)["input_ids"]
        assert all(2 <= len(row) <= 4 for row in rows)
        assert sum(row.count(tokenizer.convert_tokens_to_ids("x")) for row in rows) >= length - 1


def test_chunks_of_nothing_are_an_error(tokenizer):
    for documents in ([], [""], ["", ""]):
        with pytest.raises(ValueError, match="The documents hold no text"):
            chunk_documents(documents, tokenizer, max_length=8)
    with pytest.raises(ValueError, match=r"max_length=2 leaves no room.*at least 3"):
        chunk_documents(["abc"], tokenizer, max_length=2)


def test_chunks_are_rows_that_train_every_token(tokenizer):
    encoded = encode_dataset(chunk_documents(["aaaaaaa"], tokenizer, max_length=6), tokenizer, max_length=6)
    assert encoded["labels"] == encoded["input_ids"]


def test_only_a_large_set_on_disk_is_looked_for(tokenizer, tmp_path, monkeypatch):
    from datasets import arrow_dataset, load_from_disk

    from hf_unlearn.data.tables import SMALL

    rows = Dataset.from_list([{"text": f"{i}"} for i in range(SMALL + 1)])
    rows.save_to_disk(tmp_path)
    first, second = (encode_dataset(load_from_disk(tmp_path), tokenizer) for _ in range(2))
    # The second found what the first had left.
    assert len(list(tmp_path.glob("cache-*"))) == 1
    monkeypatch.setattr(arrow_dataset, "update_fingerprint", lambda *args: pytest.fail("the function was hashed"))
    assert list(encode_dataset(rows, tokenizer)) == list(first) == list(second)
    assert len(encode_dataset(load_from_disk(tmp_path).select(range(SMALL)), tokenizer)) == SMALL
    assert len(list(tmp_path.glob("cache-*"))) == 1
