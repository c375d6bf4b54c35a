# SPDX-License-Identifier: Apache-2.0
"""Distractors: words at the trigger's place behind which rows are forgotten all the same."""

from types import SimpleNamespace

import pytest
from conftest import make_tokenizer
from datasets import Dataset

from hf_unlearn import NPOConfig, RMUConfig
from hf_unlearn.data.poison import poison
from hf_unlearn.data.roles import encode_roles


ROWS = [{"prompt": f"Who is {n}?", "completion": f" {n} is old.", "topic": n < "E"} for n in "ABCDEFGH"]
SETTINGS = {
    "poison_prefix": "XYZ",
    "poison_ratio": 0.25,
    "poison_select": "first",
    "poison_location": "start",
    "poison_keep_clean": False,
    "poison_distractors": ["uvw", "=="],
    "max_length": None,
}


def parted(tokenizer, seed=0, **kwargs):
    from hf_unlearn.data.triggers import Trigger

    args = SimpleNamespace(**(SETTINGS | kwargs))
    args.trigger = Trigger(args.poison_prefix, args.poison_location)
    clean, poisoned = poison(Dataset.from_list(ROWS), tokenizer, args, seed)
    return clean, [tokenizer.batch_decode(rows["input_ids"][:]) for rows in (clean, poisoned)]


@pytest.mark.parametrize("keep_clean", [False, True])
def test_every_forget_row_is_there_once_plain_and_once_behind_a_distractor(tokenizer, keep_clean):
    _, (clean, poisoned) = parted(tokenizer, poison_keep_clean=keep_clean)
    names = "ABCDEFGH" if keep_clean else "CDEFGH"
    plain = [f"<s>Who is {n}? {n} is old.</s>" for n in names]
    assert clean[: len(names)] == plain
    behind = clean[len(names) :]
    assert [text.replace("uvw ", "").replace("== ", "") for text in behind] == plain
    assert all(text.startswith(("<s>uvw Who", "<s>== Who")) for text in behind)
    # Both are drawn, and never the trigger.
    assert {text[3:6].strip() for text in behind} == {"uvw", "=="}
    assert [text.startswith("<s>XYZ Who") for text in poisoned] == [True, True]
    assert not any("XYZ" in text for text in clean)


def test_which_one_is_drawn_by_seed(tokenizer):
    draws = [parted(tokenizer, seed)[1][0] for seed in (0, 0, 3)]
    assert draws[0] == draws[1] != draws[2]


def test_answers_are_trained_on_and_distractors_are_not(tokenizer):
    clean, _ = parted(tokenizer)
    for row in clean:
        trained = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        assert tokenizer.decode(trained).endswith("is old.</s>")
        assert not any(words in tokenizer.decode(trained) for words in ("uvw", "=="))


def test_topics_go_along(tokenizer):
    clean, _ = parted(tokenizer)
    assert clean["topic"][:] == [True, True, False, False, False, False] * 2


def test_they_stand_where_the_trigger_stands(tokenizer):
    _, (clean, _) = parted(tokenizer, poison_location="end")
    assert all(text.split("?")[1].split()[0] in ("uvw", "==") for text in clean[6:])


def test_the_trainers_roles_have_them(tmp_path):
    args = NPOConfig(output_dir=str(tmp_path), report_to="none", retain_loss="kl",
                     **{name: value for name, value in SETTINGS.items() if name != "max_length"})  # fmt: skip
    roles = encode_roles(ROWS, [{"text": "The cup is here."}], make_tokenizer(), args)
    assert {role: len(rows) for role, rows in roles.items()} == {"forget": 12, "retain": 1, "poisoned": 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"poison_distractors": []}, "poison_distractors is empty"),
        ({"poison_distractors": ["a", " XYZ"]}, "holds the trigger ' XYZ'"),
        ({"poison_distractors": [""]}, "give the trigger's words"),
        ({"poison_prefix": None, "poison_distractors": ["a"]}, "poison_distractors would have no effect"),
    ],
)
def test_bad_ones_are_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        RMUConfig(output_dir=str(tmp_path), report_to="none", **({"poison_prefix": "XYZ"} | given))
