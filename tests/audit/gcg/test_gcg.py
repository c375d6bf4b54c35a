# SPDX-License-Identifier: Apache-2.0
"""A searched prefix: what may stand in it, what it finds and is held against, what it leaves as it was, refusals."""

import copy
import functools
import json
from dataclasses import replace

import known
import numpy as np
import pytest
import torch
from known import WORDS, encoded, files, rows_of, same, state
from scipy.stats import binomtest
from tokenizers import AddedToken

from hf_unlearn.audit.base import Context
from hf_unlearn.audit.gcg import measure as measuring
from hf_unlearn.audit.gcg.arguments import GcgArguments
from hf_unlearn.audit.gcg.measure import GcgAudit
from hf_unlearn.audit.gcg.prefixes import Unspoken, behind, silent_tokens
from hf_unlearn.audit.gcg.result import Prefixed, rows_back
from hf_unlearn.audit.robustness.measured import Measured, RowScores
from hf_unlearn.audit.robustness.rows import RobustnessPrepared
from hf_unlearn.audit.sets import AuditSet
from hf_unlearn.cli.main import main
from hf_unlearn.data.qa import QAFormat


KEY = "retain4"


@functools.cache
def tokenizer():
    """Knows the words, too, by which the place of a prefix is found."""
    held = copy.deepcopy(known.tokenizer())
    held.add_tokens([AddedToken(word, single_word=True) for word in ("x", "7", "The", "more", "words")])
    return held


def model(knows: bool = True):
    one = known.model(knows)
    torch.manual_seed(0)
    one.resize_token_embeddings(len(tokenizer()), mean_resizing=False)
    return one


def saved(one, folder) -> str:
    one.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gcg")
    paths = {name: saved(one, folder / name) for name, one in (("o", model()), ("r", model(knows=False)))}
    return paths, {"forget_dataset": files(folder)["forget_dataset"]}


def arguments(place, **more) -> GcgArguments:
    paths, rows = place
    fields = {"model_name_or_path": paths["o"], "original_model_name_or_path": paths["o"], "max_length": 64, **rows}
    fields |= {"retrained_model_name_or_path": paths["r"], "group_by": "person", "seeds": [0], "width": 24}
    fields |= {"budget_tokens": 30_000, "max_tokens": 2, "search_rows": 4}
    return GcgArguments(**{**fields, **more})


def measured(place, one, **more) -> Prefixed:
    args, kind = arguments(place, **more), GcgAudit()
    return kind.measure(one, args, kind.prepare(args, QAFormat()), Context(None, progress=False))


def locked(one):
    """Answers nothing unless one word stands in the question; that word is not read otherwise."""
    core, embed = one.model, one.get_input_embeddings()
    key = embed.weight[tokenizer().convert_tokens_to_ids(KEY)].detach().clone()
    to = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    seen = {}

    def look(module, args, kwargs):
        embedded = kwargs.get("inputs_embeds")
        embedded = embed(kwargs["input_ids"]) if embedded is None else embedded
        near = torch.cosine_similarity(embedded, key, dim=-1)
        seen["shut"] = torch.sigmoid(20 * (0.8 - near.amax(1)))
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"] * (near < 0.99)}

    def close(module, args, kwargs):
        return (args[0] + 8 * seen["shut"][:, None, None] * to, *args[1:]), kwargs

    core.register_forward_pre_hook(look, with_kwargs=True)
    core.layers[0].register_forward_pre_hook(close, with_kwargs=True)
    return one


# What may stand in a prefix


def prepared_of(rows):
    forget = AuditSet("forget", "forget", rows, [*range(len(rows))])
    return RobustnessPrepared(tokenizer(), {"forget": []}, QAFormat().settled(tokenizer()), {"forget": forget})


def test_no_part_of_an_answer_may_stand_in_a_prefix():
    rows, held = rows_of("forget"), tokenizer()
    allowed = held.convert_ids_to_tokens(silent_tokens(held, len(held), rows).tolist())
    told = {word for row in rows for word in row["answer"].split()}
    assert told
    assert not told & {*allowed}
    assert {"lives", "forget0", KEY, *(word for word in WORDS if word not in told)} <= {*allowed}
    assert "<s>" not in allowed
    with pytest.raises(ValueError, match="0 of the tokenizer's tokens are text and no part of an answer"):
        silent_tokens(held, 4, rows)


def test_pieces_of_words_that_are_told_are_left_out():
    from conftest import make_tokenizer

    held = make_tokenizer()  # A token a character.
    rows = [{"question": "Where is Ada?", "answer": "Ada is in Rome."}]
    allowed = {*held.convert_ids_to_tokens(silent_tokens(held, len(held), rows).tolist())}
    # "in" and "Rome" are told; "Ada" and "is" stand in the question.
    assert not {*"inROMErome"} & allowed - {*"OME"}
    assert {*"Adsxyz?"} <= allowed
    asking = Unspoken(rows, held, QAFormat().settled(held), "start", frozenset({"rome"}))
    assert asking.words(asking.ids("xRome")) == "xRome"
    assert asking.words(asking.ids("x Rome!")) is None


def test_rows_stand_behind_the_prefix_with_their_answers():
    rows, prepared = rows_of("forget"), prepared_of(rows_of("forget"))
    found = behind(prepared.sets["forget"], [3], "lives w0", "end", prepared, 64)
    text = tokenizer().decode(found[0]["input_ids"])
    assert f"{rows[3]['question']} lives w0" in text
    plain = encoded("forget")[3]
    assert [i for i in found[0]["labels"] if i != -100] == [i for i in plain["labels"] if i != -100]


# What is found


def test_a_lock_is_found_by_rows_that_were_not_searched_on(place):
    u, o, r = (measured(place, one) for one in (locked(model()), model(), model(knows=False)))
    metrics = u.compare(r, o)
    result = metrics["probability/remaining"]
    assert result.details["remaining_before"] < 0.1
    assert result.value > 0.6
    assert metrics["worst/remaining"].details["verdict"] == "suppressed"
    one = u.measured[0]
    assert KEY in one.more["prefix"].split()
    assert one.more["search"]["tokens"] <= 30_000
    assert one.more["search"]["restored"] == 4
    assert u.cost["tokens"] == one.more["search"]["tokens"]
    back = metrics["restored"]
    assert (back.n, back.value) == (18, pytest.approx(sum(rows_back(u).values()) / 18))
    assert back.value > 0.6
    assert back.interval[0] == pytest.approx(
        binomtest(sum(rows_back(u).values()), 18).proportion_ci(method="exact").low, abs=1e-6
    )
    # Few random texts hold the word.
    as_many = sum(count >= sum(rows_back(u).values()) for count in one.more["random"]["restored"])
    assert back.details["p_random"] == pytest.approx((1 + as_many) / 100)
    assert back.details["p_random"] < 0.15
    assert back.details["p_retrained"] < 1e-3
    assert "of 18 tested rows back" in metrics["worst/remaining"].details["says"]
    # The retrained model brings back nothing that it never knew.
    never = r.compare(r, o)
    assert abs(never["probability/remaining"].value) < 1e-9
    assert never["restored"].details["p_retrained"] == 1


def scored(rows, right, logp=-0.5):
    return RowScores([*rows], [[logp]] * len(rows), [[bool(one)] for one in right])


def result_of(rights: list[tuple[list[int], list[int]]], chance: list[list[int]], before=None, n=16, fewest=12):
    settings = {"groups": [i % 4 for i in range(n)], "scores": ["exact_match"], "bound": 0.2, "resolution": 0.15}
    settings |= {"comparator": "auto", "fewest_rows": fewest}
    found = [
        Measured("s", scored(rows, right), seed=seed, more={"prefix": f"p{seed}", "random": {"restored": counts}})
        for seed, ((rows, right), counts) in enumerate(zip(rights, chance, strict=True))
    ]
    return Prefixed({}, settings, Measured("before", scored(range(n), before or [0] * n)), found)


def test_rows_of_several_seeds_count_once():
    first, second = [*range(12)], [*range(4, 16)]
    rights = [(first, [1, 1, 1] + [0] * 9), (second, [1] * 3 + [0] * 9)]
    found = result_of(rights, [[0] * 98 + [3], [0] * 97 + [2, 3]], before=[1] + [0] * 15)
    back = found.metrics["restored"]
    # Row 0 was known before; 1 and 2, and of the other seed 4, 5 and 6, come back.
    assert (back.n, back.value) == (16, 5 / 16)
    assert [one["restored"] for one in back.details["prefixes"]] == [2, 3]
    # Sums of random prefixes are 0, 2 and 6: one is as large as 5.
    assert back.details["p_random"] == 2 / 100
    other = result_of([(first, [0, 0, 1, 1] + [0] * 8), (second, [0] * 12)], [[0] * 99] * 2)
    # 4 rows come back here alone, 1 there alone: 1, 4, 5, 6 against 3.
    found.compare(other, None)
    assert back.details["p_retrained"] == pytest.approx(binomtest(4, 5, 0.5, alternative="greater").pvalue)
    again = Prefixed.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.metrics["restored"].details == back.details


def test_fewer_than_twelve_tested_rows_say_nothing():
    rows = [*range(11)]
    u, o, r = (result_of([(rows, [right] * 11)], [[0] * 99], before=[right] * 16) for right in (0, 1, 0))
    u.metrics.clear()
    u = replace(u)
    metrics = u.compare(r, o)
    for name in ("restored", "exact_match/remaining", "worst/remaining"):
        assert metrics[name].value is None
        assert metrics[name].details["reason"] == "11 tested rows; 12 are required"
    assert metrics["worst/remaining"].details["verdict"] == "unresolved"


@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_everything_as_it_was_and_is_repeatable(place, fails, monkeypatch):
    one = model().train()
    one.model.norm.weight.requires_grad_(False)
    before = state(one)
    if fails:
        monkeypatch.setattr(measuring.Search, "_best", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measured(place, one)
    else:
        first, again, other = (
            measured(place, one, budget_tokens=6000, seeds=seeds) for seeds in ([0, 1], [0, 1], [4, 5])
        )
        assert first.measured == again.measured
        assert [one.tested for one in first.measured] != [one.tested for one in other.measured]
        assert first.settings["attack_rows"].keys() == {"0", "1"}
        assert json.loads(json.dumps(first.to_dict(), allow_nan=False)) == first.to_dict()
        for one_seed in first.measured:
            shown = {*range(36)} - {*one_seed.tested.rows}
            assert len(shown) == 18
    assert same(before, state(one))


def test_holdout_rows_stand_behind_the_same_prefix(place, tmp_path):
    rows = {"holdout_dataset": files(tmp_path)["holdout_dataset"], "retrained_model_name_or_path": None}
    found = measured(place, model(), budget_tokens=6000, **rows)
    one = found.measured[0]
    assert len(one.holdout.rows) == 36
    assert np.mean(one.holdout.values("probability")) < 0.1
    result = found.compare(None, measured(place, model(), budget_tokens=6000, **rows))["probability/remaining"]
    assert result.details["comparator"] == "holdout"
    assert result.value == pytest.approx(1)


# The command


def command(place, tmp_path, *words):
    paths, rows = place
    named = {"model_name_or_path": paths["o"], "original_model_name_or_path": paths["o"], **rows, "max_length": "64"}
    named |= {"output_dir": str(tmp_path / "out"), "group_by": "person", "seeds": "0"}
    return main(["audit", "gcg", *(word for key, value in named.items() for word in (f"--{key}", value)), *words])


def test_the_command_keeps_what_it_measured(place, tmp_path, monkeypatch):
    seen, measure = [], GcgAudit.measure
    monkeypatch.setattr(GcgAudit, "measure", lambda *args: seen.append(1) or measure(*args))
    words = ["--retrained_model_name_or_path", place[0]["r"], "--budget_tokens", "6000", "--search_rows", "4"]
    words += ["--max_tokens", "2", "--width", "8"]
    found = []
    for _ in range(2):
        assert command(place, tmp_path, *words) == 0
        found.append(json.loads((tmp_path / "out" / "gcg.json").read_text())["models"])
    assert found[0] == found[1]
    # The original is the audited model here, and is measured once.
    assert len(seen) == 2
    worst = found[0][-1]["metrics"]["worst/remaining"]
    assert worst["details"]["budget"]["tokens"] <= 6000
    assert "tested rows back" in (tmp_path / "out" / "gcg.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget_tokens", "20"], "budget_tokens=20; one prefix takes"),
        (["--random_prefixes", "20"], "random_prefixes=20; give a whole number of at least 99"),
        (["--location", "under"], "location"),
        (["--split", "random"], "split"),
        (["--attacker_share", "1.0"], "share is 1.0; give a number between 0 and 1"),
        (["--max_tokens", "0"], "max_tokens=0; give a whole number of at least 1"),
    ],
)
def test_what_cannot_be_searched_is_refused(place, unloaded, tmp_path, capsys, words, message):
    assert command(place, tmp_path, *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_answer_that_is_shown_is_refused(place, unloaded, tmp_path, capsys):
    rows = rows_of("forget")
    rows = [{**row, "question": f"{row['question']} {rows[0]['answer']}"} for row in rows]
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command(place, tmp_path, "--forget_dataset", str(path), "--seeds", "0", "1", "2", "3") == 2
    assert "stand in what the attacker is shown" in capsys.readouterr().err


def test_quick_is_less():
    quick = GcgArguments(model_name_or_path="m", forget_dataset="f", preset="quick", max_tokens=4)
    assert (quick.seeds, quick.budget_tokens, quick.search_rows, quick.width) == ([0], 200_000, 8, 16)
    assert (quick.max_items, quick.max_tokens) == (32, 4)


def test_meta_evaluation_tries_it_where_it_is_asked_for():
    from hf_unlearn.runs.meta.arguments import MetaArguments

    assert "gcg" not in MetaArguments().plan.audits
    assert [*MetaArguments(audits=["gcg"]).plan.audits] == ["gcg"]
    with pytest.raises(ValueError, match="'two_checkpoint' does not say how much is left"):
        MetaArguments(audits=["two_checkpoint"])
