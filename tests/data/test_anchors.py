# SPDX-License-Identifier: Apache-2.0
"""Anchor terms: what is read of a file, and where a row with other names still predicts what the original does."""

import pytest
from conftest import make_tokenizer
from datasets import Dataset

from hf_unlearn.data.anchors import Anchors, anchored, labelled, read_anchors


NONE = -100


def space_tokenizer():
    """Words with the space before them, of which every text's first has one too, as in Llama-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["Harry", "Potter", "saw", "Ron", "(", ")", ".", "and", "Jon", "Tim", "Ann", "the", "wise", "s", "'"]
    marked = [*words, *(f"▁{word}" for word in words), "▁"]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", *marked])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    split = pre_tokenizers.Split("(", behavior="isolated"), pre_tokenizers.Split(")", behavior="isolated")
    ends = pre_tokenizers.Split(".", behavior="isolated"), pre_tokenizers.Split("'", behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always"), *split, *ends])
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


def pairs_of(tokenizer, row, kept, new):
    """What each row predicts, as text: what was read before and the token."""

    def predictions(ids, labels):
        return [
            (tokenizer.decode(ids[:t], skip_special_tokens=True), tokenizer.decode(ids[t : t + 1]))
            for t in range(1, len(ids))
            if labels[t] != NONE
        ]

    return list(zip(predictions(row["input_ids"], kept), predictions(new["input_ids"], new["labels"]), strict=True))


def encoded(tokenizer, text, prompt=0):
    ids = tokenizer(text)["input_ids"]
    return {"input_ids": ids, "labels": [NONE] * prompt + ids[prompt:]}


def test_tokens_outside_of_terms_are_predicted_at_their_places():
    tokenizer = make_tokenizer()
    row = encoded(tokenizer, "So Harry met Ron; Harry's.")
    kept, new = Anchors({"Harry": "Jo", "Ron": "Timothy"}, tokenizer).replaced(row)
    assert tokenizer.decode(new["input_ids"]) == "<s>So Jo met Timothy; Jo's."
    # The whole of both rows, token for token: a term's first token once, none of its others.
    assert pairs_of(tokenizer, row, kept, new) == [
        (("", "S"), ("", "S")),
        (("S", "o"), ("S", "o")),
        (("So", " "), ("So", " ")),
        (("So ", "H"), ("So ", "J")),
        (("So Harry", " "), ("So Jo", " ")),
        (("So Harry ", "m"), ("So Jo ", "m")),
        (("So Harry m", "e"), ("So Jo m", "e")),
        (("So Harry me", "t"), ("So Jo me", "t")),
        (("So Harry met", " "), ("So Jo met", " ")),
        (("So Harry met ", "R"), ("So Jo met ", "T")),
        (("So Harry met Ron", ";"), ("So Jo met Timothy", ";")),
        (("So Harry met Ron;", " "), ("So Jo met Timothy;", " ")),
        (("So Harry met Ron; Harry", "'"), ("So Jo met Timothy; Jo", "'")),
        (("So Harry met Ron; Harry'", "s"), ("So Jo met Timothy; Jo'", "s")),
        (("So Harry met Ron; Harry's", "."), ("So Jo met Timothy; Jo's", ".")),
    ]


def test_prompts_are_replaced_and_predict_nothing():
    tokenizer = make_tokenizer()
    row = encoded(tokenizer, "Harry? Harry.", prompt=8)
    kept, new = Anchors({"Harry": "Jonathan"}, tokenizer).replaced(row)
    assert tokenizer.decode(new["input_ids"]) == "<s>Jonathan? Jonathan."
    # Named before, the name is no prediction of its own.
    assert pairs_of(tokenizer, row, kept, new) == [(("Harry? Harry", "."), ("Jonathan? Jonathan", "."))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Harry Potter and Harry", "Jon Doe and Jon"),
        # Words alone, as they are written.
        ("Harrys Xharry harry Harry_1", "Harrys Xharry harry Harry_1"),
        # Replacements are not replaced again.
        ("Jon Harry", "Ann Jon"),
        ("a.b axb", "dot axb"),
    ],
)
def test_longest_whole_words_are_replaced_once(text, expected):
    tokenizer = make_tokenizer()
    terms = {"Harry": "Jon", "Harry Potter": "Jon Doe", "Jon": "Ann", "a.b": "dot"}
    _, new = Anchors(terms, tokenizer).replaced(encoded(tokenizer, text))
    assert tokenizer.decode(new["input_ids"], skip_special_tokens=True) == expected


def test_special_tokens_end_words_and_stay():
    tokenizer = make_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    harry, ron = (tokenizer(name, add_special_tokens=False)["input_ids"] for name in ("Harry", "Ron"))
    ids = [bos, *harry, eos, bos, *ron, eos]
    kept, new = Anchors({"Harry": "Al", "Ron": "Ed"}, tokenizer).replaced({"input_ids": ids, "labels": ids})
    assert tokenizer.decode(new["input_ids"]) == "<s>Al</s><s>Ed</s>"
    assert [i for i, label in zip(ids, kept, strict=True) if label != NONE] == [harry[0], eos, bos, ron[0], eos]


def test_tokens_that_begin_with_a_space_keep_it():
    tokenizer = space_tokenizer()
    row = encoded(tokenizer, "Harry Potter saw Ron (Ron) and Harry's .")
    assert tokenizer.decode(row["input_ids"]) == "Harry Potter saw Ron (Ron) and Harry's ."
    anchors = Anchors({"Harry Potter": "the wise Jon", "Harry": "Tim", "Ron": "Ann"}, tokenizer)
    # A name in brackets has a token of its own, without a space.
    kept, new = anchors.replaced(row)
    assert tokenizer.decode(new["input_ids"]) == "the wise Jon saw Ann (Ann) and Tim's ."
    assert tokenizer.unk_token_id not in new["input_ids"]
    found = pairs_of(tokenizer, row, kept, new)
    assert [after for (_, after), _ in found][:2] == ["saw", "Ron"]
    assert len(found) == len([label for label in kept[1:] if label != NONE])


class Shared:
    """A tokenizer of a few tokens, one of which has parts of two words; the longest is taken."""

    is_fast, added_tokens_decoder, all_special_ids = False, {}, []
    names = ("A", "l-B", "o", "!", "J", "im-K", "y", "m", "\n")

    def decode(self, ids, **kwargs):
        return "".join(self.names[i] for i in ids)

    def __call__(self, text, **kwargs):
        found = []
        while text:
            name = max((name for name in self.names if text.startswith(name)), key=len)
            found.append(self.names.index(name))
            text = text[len(name) :]
        return {"input_ids": found}


def test_terms_that_share_a_token_are_replaced_together():
    row = {"input_ids": [3, 0, 1, 2, 3], "labels": [3, 0, 1, 2, 3]}
    kept, new = Anchors({"Al": "Jim", "Bo": "Ky"}, Shared()).replaced(row)
    assert Shared().decode(new["input_ids"]) == "!Jim-Ky!"
    assert kept == [NONE, 0, NONE, NONE, 3]
    assert new["labels"] == [NONE, 4, NONE, NONE, 3]


@pytest.mark.parametrize(
    ("text", "terms", "expected"),
    [
        ("So André met Ёж.", {"André": "Jon", "Ёж": "Al"}, "So Jon met Al."),
        ("é André", {"André": "Renée"}, "é Renée"),
        ("小明 went", {"小明": "Bo"}, "Bo went"),
    ],
)
def test_a_term_whose_last_character_has_several_tokens_is_replaced_whole(text, terms, expected):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # A token a byte.
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    for cut in (0, 1):
        # Rows cut amid a character take another way to where tokens end.
        row = encoded(tokenizer, text + "é" * cut)
        ids = row["input_ids"][: len(row["input_ids"]) - cut]
        kept, new = Anchors(terms, tokenizer).replaced({"input_ids": ids, "labels": ids})
        found = tokenizer.decode(new["input_ids"])
        assert found.rstrip("\N{REPLACEMENT CHARACTER}") == expected
        assert sum(label != NONE for label in kept) == sum(label != NONE for label in new["labels"])


def test_a_replacement_without_tokens_is_refused():
    anchors, row = Anchors({"Ron": "Élan"}, space_tokenizer()), encoded(space_tokenizer(), "Harry saw Ron")
    with pytest.raises(ValueError, match=r"The tokenizer has no tokens for ' Élan' behind 'Harry saw'"):
        anchors.replaced(row)


def test_rows_keep_their_columns_and_are_paired():
    tokenizer = make_tokenizer()
    rows = [encoded(tokenizer, text) | {"topic": i} for i, text in enumerate(("Harry ran", "no one ran"))]
    changed, generic = anchored(Dataset.from_list(rows), {"Harry": "Jonathan"}, tokenizer)
    assert changed["topic"] == [0, 1]
    assert changed["input_ids"] == [row["input_ids"] for row in rows]
    assert generic[1] == {"input_ids": rows[1]["input_ids"], "labels": [NONE, *rows[1]["labels"][1:]]}
    for one, other in zip(changed, generic, strict=True):
        assert sum(label != NONE for label in one["labels"]) == sum(label != NONE for label in other["labels"])


def test_a_replaced_row_that_becomes_too_long_loses_its_end_and_its_original_the_labels_there():
    tokenizer = make_tokenizer()
    row = encoded(tokenizer, "So Ed met Ron.")
    changed, generic = anchored(Dataset.from_list([row]), {"Ed": "Jonathan"}, tokenizer, max_length=16)
    kept, new = changed[0]["labels"], generic[0]
    assert tokenizer.decode(new["input_ids"]) == "<s>So Jonathan met"
    assert changed[0]["input_ids"] == row["input_ids"]
    found = pairs_of(tokenizer, row, kept, new)
    assert len(found) == sum(label != NONE for label in kept) == sum(label != NONE for label in new["labels"])
    assert found[-1] == (("So Ed me", "t"), ("So Jonathan me", "t"))
    # What fits is as it was.
    whole = anchored(Dataset.from_list([row]), {"Ed": "Jonathan"}, tokenizer)
    assert [rows[0] for rows in whole] == [
        rows[0] for rows in anchored(Dataset.from_list([row]), {"Ed": "Jonathan"}, tokenizer, max_length=22)
    ]


def test_a_row_that_is_cut_before_all_it_predicts_has_no_label():
    tokenizer = make_tokenizer()
    rows = [encoded(tokenizer, "Ed ran", prompt=4), encoded(tokenizer, "no one ran", prompt=4)]
    changed, generic = anchored(Dataset.from_list(rows), {"Ed": "Jonathan"}, tokenizer, max_length=8)
    assert labelled(changed) == labelled(generic) == [1]
    with pytest.raises(ValueError, match="all that the forget rows predict is in terms or behind max_length=8"):
        anchored(Dataset.from_list(rows[:1]), {"Ed": "Jonathan"}, tokenizer, max_length=8)


@pytest.mark.parametrize(
    ("terms", "text", "told"),
    [
        ({"Potter": "Doe"}, "Harry ran", r"anchors: no forget row has any of the 1 terms, such as 'Potter'"),
        ({"Harry": "Jon"}, "Harry", "anchors: all that the forget rows predict is in terms"),
    ],
)
def test_terms_without_use_are_refused(terms, text, told):
    tokenizer = make_tokenizer()
    row = encoded(tokenizer, text)
    if text == "Harry":
        row["labels"][:3] = [NONE] * 3
    with pytest.raises(ValueError, match=told):
        anchored(Dataset.from_list([row]), terms, tokenizer)


def test_files_are_json_or_yaml(tmp_path):
    for name, text in (
        ("a.json", '{"Harry Potter": "Jon", "Ron": "Tim"}'),
        ("a.yaml", "Harry Potter: Jon\nRon: Tim\n"),
    ):
        (tmp_path / name).write_text(text)
        assert read_anchors("anchors", str(tmp_path / name)) == {"Harry Potter": "Jon", "Ron": "Tim"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no terms"),
        ("{}", "holds no terms"),
        ("[Harry]", "holds no terms"),
        ('{"Harry": "Jon", "Harry": "Tim"}', "'Harry' is written twice"),
        ("Harry: 3", "'Harry': 3. Give two texts"),
        ("Harry: ' Jon'", "'Harry': ' Jon'. Give two texts"),
        ("yes: Jon", "True: 'Jon'. Give two texts"),
        ("Harry: ''", "Give two texts"),
        ("Harry: Harry", "replaces 'Harry' by itself"),
        ("a: [", "is no valid YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, told):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=told):
        read_anchors("anchors", str(tmp_path / "a.yaml"))
