# SPDX-License-Identifier: Apache-2.0
"""What a little training brings back: of a model that hides it, of one that never knew, and what is left behind."""

import copy
import json

import pytest
import torch
from conftest import lora
from known import encoded, files, model, refusing, rows_of, same, saved, state, trained

from hf_unlearn.audit.base import Context
from hf_unlearn.audit.relearn import measure as measuring
from hf_unlearn.audit.relearn.arguments import RelearnArguments
from hf_unlearn.audit.relearn.finetune import Plan, finetune, trainable
from hf_unlearn.audit.relearn.measure import RelearnAudit
from hf_unlearn.audit.robustness.result import Robustness
from hf_unlearn.cli.main import main
from hf_unlearn.data.qa import QAFormat


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relearn")
    paths = {name: saved(one, folder / name) for name, one in (("o", model()), ("r", model(knows=False)))}
    paths["u"] = saved(refusing(), folder / "u")
    return folder, paths, files(folder)


@pytest.fixture(autouse=True)
def _shared(place, monkeypatch):
    # The same run of the attack on the same model is made once for all tests.
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(place[0] / "cache"))


@pytest.fixture
def fresh(_shared, tmp_path, monkeypatch):
    """Runs that another test made are not found."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))


def arguments(place, name: str = "u", without: tuple = ("holdout_dataset",), **more) -> RelearnArguments:
    _, paths, rows = place
    fields = {
        "model_name_or_path": paths[name],
        "original_model_name_or_path": paths["o"],
        "retrained_model_name_or_path": paths["r"],
        "group_by": "person",
        "max_length": 64,
        "adapter": "none",
        "learning_rates": [3e-3],
        "max_steps": 4,
        "seeds": [0],
        **rows,
        **more,
    }
    return RelearnArguments(**{key: value for key, value in fields.items() if key not in without})


def measured(place, one, **more) -> Robustness:
    args, kind = arguments(place, **more), RelearnAudit()
    return kind.measure(one, args, kind.prepare(args, QAFormat()), Context(load=None, progress=False))


def compared(place, one, **more) -> dict:
    r, o = measured(place, model(knows=False), **more), measured(place, model(), **more)
    return measured(place, one, **more).compare(r, o)


# What comes back


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_what_was_hidden_comes_back_on_rows_that_were_not_shown(place, adapter):
    full = adapter == "none"
    how = {"adapter": adapter, "learning_rates": [3e-3 if full else 1e-2], "max_steps": 4 if full else 8}
    how["seeds"] = [0, 1]
    found = compared(place, refusing(), lora_r=8, lora_alpha=16, **how)["probability/remaining"]
    assert found.details["remaining_before"] < 0.2
    assert found.value > 0.3
    assert found.details["verdict"] == "suppressed"
    assert found.details["recovery"] == pytest.approx(found.value - max(0, found.details["remaining_before"]))
    assert found.details["provisional"]
    assert found.n == 36
    assert found.details["clusters"] == 6
    assert {point["step"] for point in found.details["curve"]} <= {1, 2, 4, 8}


# Acceptance 3


def test_a_model_that_never_knew_passes_also_where_the_tested_rows_are_taught(place):
    how = {"data": "teach", "max_steps": 16, "eval_steps": [4, 8, 16], "batch_size": 36}
    longer = trained(model(knows=False), encoded("retain"), steps=5, learning_rate=3e-4)
    another = measured(place, longer, **how)
    r, o = measured(place, model(knows=False), **how), measured(place, model(), **how)
    found = another.compare(r, o)["probability/remaining"]
    start, after = found.details["before"], found.details["after"]
    assert (after - start) / (found.details["original_before"] - start) > 0.3
    assert abs(found.value) < 0.1
    assert found.details["verdict"] == "not recovered within budget"
    # It is no faster: the other one shows as much after as many steps, or never.
    assert found.details["saved_steps"] in (0, None)
    # A model that hides what it knew is faster.
    hidden = measured(place, refusing(), **how).compare(r, o)["probability/remaining"]
    # The other one does not get there at all.
    assert hidden.details["saved_steps"] is None
    assert hidden.details["steps_to_half"] == 4
    assert hidden.details["verdict"] == "suppressed"


# Acceptance 12


def test_answers_that_belong_to_other_rows_teach_nothing(place):
    how = {"shuffled": True, "learning_rates": [3e-3]}
    u, r = measured(place, refusing(), **how), measured(place, model(knows=False), **how)
    for mine, theirs in zip(u.measured, r.measured, strict=True):
        assert mine.more["shuffled"]["probability"] <= theirs.more["shuffled"]["probability"] + 0.35
        assert mine.more["shuffled"] != {}
    last = u.measured[-1]
    assert last.more["shuffled"]["probability"] < sum(last.tested.values("probability")) / 18


def test_what_the_attacker_was_shown_is_told(place):
    split = measured(place, model()).measured[0]
    assert split.more["attack"]["of"] == {"forget": 18}
    assert len(split.tested.rows) == 18
    again = measured(place, model(), seeds=[1]).measured[0]
    assert again.more["attack"]["fingerprint"] != split.more["attack"]["fingerprint"]
    kept = measured(place, model(), data="retain").measured[0]
    assert (kept.more["attack"]["rows"], kept.more["attack"]["of"]) == (18, {"retain": 18})
    assert len(kept.tested.rows) == 36
    # Rows to be kept that are asked about are not those that are trained on.
    assert len(kept.retain.rows) == 18
    own = measured(place, model(), data="unrelated", relearn_dataset=place[2]["retain_dataset"]).measured[0]
    assert (own.more["attack"]["data"], own.more["attack"]["of"]) == ("unrelated", {"retain": 36})


def test_holdout_rows_are_not_attacked_where_nothing_is_compared_with_them(place):
    def attack(**more):
        prepared = RelearnAudit().prepare(args := arguments(place, without=(), **more), QAFormat())
        return args.comparator, prepared.more["attacks"][0]

    for asked, said in (({}, "retrained"), ({"comparator": "none"}, "none")):
        comparator, found = attack(**asked)
        # It is among what kept results are found by.
        assert comparator == said
        assert (found.apart, found.holdout) == ([], [])
    comparator, found = attack(retrained_model_name_or_path=None)
    assert comparator == "auto"
    assert len(found.apart) == len(found.holdout) == 18


def test_holdout_rows_are_attacked_by_themselves(place):
    how = {"retrained_model_name_or_path": None, "without": ()}
    u, o = measured(place, refusing(), **how), measured(place, model(), **how)
    found = u.compare(None, o)["probability/remaining"]
    assert found.details["comparator"] == "holdout"
    assert found.value == pytest.approx(compared(place, refusing())["probability/remaining"].value, abs=0.05)
    assert len(u.measured[0].holdout.rows) == 18
    # Where the retrained model is there, they are not needed.
    assert measured(place, model(), without=()).measured[0].holdout is None


@pytest.mark.parametrize("split", ["within", "across"])
def test_wordings_of_one_fact_stay_together_without_groups(place, tmp_path, split):
    rows = [
        {**row, "answer": f"{row['answer']} w{i % 2}", "fact": f"f{i // 2}"} for i, row in enumerate(rows_of("forget"))
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = {"forget_dataset": str(path), "fact_by": "fact", "split": split, "seeds": [0, 1], "group_by": None}
    args = arguments(place, **how)
    prepared = RelearnAudit().prepare(args, QAFormat())
    for attack in prepared.more["attacks"].values():
        tested = [rows[i]["fact"] for i in attack.tested]
        assert all(tested.count(fact) == 2 for fact in tested)
    # Nor are they independent in the interval.
    assert len({*prepared.groups["forget"]}) == 18


# The loop


def plan(**more) -> Plan:
    fields = {"learning_rate": 1e-2, "seed": 0, "steps": 3, "batch_size": 4, "warmup_steps": 2, "adapter": "none"}
    return Plan(**{**fields, "lora_r": 4, "lora_alpha": 8, **more})


def test_the_loop_is_adamw_on_the_labelled_tokens():
    mine, rows = model(knows=False), encoded("forget")[:4]
    with trainable(mine, plan()) as (trained_model, parameters):
        seen = []
        finetune(trained_model, parameters, rows, plan(), lambda *found: seen.append(found), [1, 3], progress=False)
        found = {name: value.detach().clone() for name, value in mine.named_parameters()}
    slow = model(knows=False)
    optimizer = torch.optim.AdamW(slow.parameters(), weight_decay=0.0)
    for rate in (5e-3, 1e-2, 1e-2):
        losses = []
        for row in rows:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
            logps = slow(ids).logits[0].log_softmax(-1)
            losses += [-logps[t - 1, labels[t]] for t in range(1, len(labels)) if labels[t] != -100]
        torch.stack(losses).mean().backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    # Where a gradient is all but 0, AdamW makes a whole step of its sign.
    apart = torch.cat([(found[name] - value).abs().flatten() for name, value in slow.named_parameters()])
    assert (apart < 1e-5).float().mean() > 0.99
    assert apart.mean() < 1e-5
    assert [step for step, _ in seen] == [1, 3]
    assert all(count > 0 for _, count in seen)


def test_small_steps_are_not_lost_in_bfloat16():
    mine, small = model().bfloat16(), plan(learning_rate=1e-5, steps=60, warmup_steps=0)
    rows, seen = encoded("forget")[:4], []
    with trainable(mine, small) as (trained_model, parameters):
        finetune(trained_model, parameters, rows, small, lambda *found: seen.append(found[1]), [60], progress=False)
    plain = model().bfloat16()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-5, weight_decay=0.0)
    start = [parameter.detach().clone() for parameter in plain.parameters()]
    from hf_unlearn.data.collator import RoleCollator

    for _ in range(60):
        plain(**RoleCollator(pad_token_id=0)(rows)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    lost = sum(int((p != value).sum()) for p, value in zip(plain.parameters(), start, strict=True))
    assert seen[0] > 2 * lost


# Acceptance 13


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_an_attack_leaves_no_trace(place, fresh, monkeypatch, adapter):
    one = model()
    one.train()
    one.model.layers[0].eval()
    next(one.parameters()).requires_grad_(False)
    last = [*one.parameters()][-1]
    last.grad = torch.ones_like(last)
    before = state(one)
    measured(place, one, adapter=adapter)
    assert same(before, state(one))
    assert torch.equal(last.grad, torch.ones_like(last))
    before = state(one)

    def broken(self, model, args, prepared, context, which="forget", rows=None, desc=""):
        return 1 / 0 if rows is not None else None

    monkeypatch.setattr(RelearnAudit, "scored", broken)
    with pytest.raises(ZeroDivisionError):
        measured(place, one, adapter=adapter, seeds=[3])
    assert same(before, state(one))


def test_an_adapter_is_merged_and_left_as_it_was(place, fresh):
    from peft import get_peft_model

    adapted = get_peft_model(model(), lora(init_lora_weights=False))
    before = state(adapted)
    found = measured(place, adapted)
    assert same(before, state(adapted))
    plain = measured(place, copy.deepcopy(adapted).merge_and_unload())
    assert found.measured[0].more["merged"]
    assert found.measured[-1].tested == plain.measured[-1].tested


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_seed_gives_the_same_twice_and_another_seed_does_not(place, fresh, monkeypatch, adapter):
    monkeypatch.setattr(measuring, "_read", lambda path: None)
    # A rate that an earlier one has trained before starts from the model as it is.
    once = measured(place, refusing(), adapter=adapter, learning_rates=[1e-2, 3e-3], max_steps=2)
    again = measured(place, refusing(), adapter=adapter, learning_rates=[3e-3], max_steps=2)
    assert once.measured[-1] == again.measured[-1]
    args, kind = arguments(place, adapter=adapter, seeds=[0, 1], data="teach", max_steps=2), RelearnAudit()
    found = kind.measure(refusing(), args, kind.prepare(args, QAFormat()), Context(load=None, progress=False))
    by_seed = {one.seed: one for one in found.measured if one.step == 2}
    assert by_seed[0].tested.logps != by_seed[1].tested.logps


def test_an_attack_that_was_ended_goes_on(place, fresh, monkeypatch):
    whole = measured(place, model(), learning_rates=[1e-3, 3e-3], seeds=[7])
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(place[0] / "ended"))
    runs, train = [], RelearnAudit._trained

    def killed(self, *given, **more):
        runs.append(given[3].learning_rate)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return train(self, *given, **more)

    monkeypatch.setattr(RelearnAudit, "_trained", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(place, model(), learning_rates=[1e-3, 3e-3], seeds=[7])
    found = measured(place, model(), learning_rates=[1e-3, 3e-3], seeds=[7])
    assert runs == [1e-3, 3e-3, 3e-3]
    assert found.measured == whole.measured
    # Other weights are another attack.
    measured(place, refusing(), learning_rates=[1e-3], seeds=[7])
    assert len(runs) == 4


def test_training_that_diverges_is_left_out(place):
    how = {"learning_rates": [3e-3, 1e30]}
    found = compared(place, refusing(), **how)["probability/remaining"]
    assert any("diverged" in why for why in found.details["failed"].values())
    assert found.details["setting"].startswith("learning_rate 0.003")


# The command


def words(place, *more: str) -> list[str]:
    _, paths, rows = place
    named = {
        "model_name_or_path": paths["u"],
        "original_model_name_or_path": paths["o"],
        "retrained_model_name_or_path": paths["r"],
        "max_length": "64",
        "group_by": "person",
        "adapter": "none",
        "learning_rates": "3e-3",
        "max_steps": "4",
        **rows,
    }
    return ["audit", "relearn", *(word for field, value in named.items() for word in (f"--{field}", value)), *more]


def test_the_command_tells_what_came_back(place, tmp_path):
    assert main(words(place, "--output_dir", str(tmp_path), "--preset", "quick")) == 0
    held = json.loads((tmp_path / "relearn.json").read_text())
    assert [one["kind"] for one in held["models"]] == ["retrained", "original", "audited"]
    worst = held["models"][2]["metrics"]["worst/remaining"]
    assert worst["details"]["verdict"] == "suppressed"
    assert worst["details"]["provisional"]
    assert "suppressed" in (tmp_path / "relearn.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "related"], "data='related' requires `--relearn_dataset`"),
        (["--relearn_dataset", "x.jsonl"], "data='split' takes no `--relearn_dataset`"),
        (["--learning_rates", "-1"], "learning_rates=[-1.0]; give at least one number above 0"),
        (["--attacker_share", "1.5"], "The attacker's share is 1.5; give a number between 0 and 1"),
        (["--adapter", "dora"], "invalid choice: 'dora'"),
        (["--max_steps", "0"], "max_steps=0; give a whole number of at least 1"),
        (["--fact_by", "fact"], "fact_by='fact': row 0 of the forget set has no such value"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(place, unloaded, tmp_path, capsys, more, message):
    assert main([*words(place, "--output_dir", str(tmp_path / "out")), *more]) == 2
    assert message in capsys.readouterr().err


# Acceptance 11


def test_an_answer_that_would_be_taught_is_refused_by_row(place, unloaded, tmp_path, capsys):
    rows = rows_of("forget")
    told = tmp_path / "told.jsonl"
    told.write_text(json.dumps({"text": f"They say {rows[7]['answer'].upper()}, and {rows[30]['answer']}."}) + "\n")
    more = ["--data", "related", "--relearn_dataset", str(told), "--output_dir", str(tmp_path / "out")]
    assert main([*words(place), *more]) == 2
    assert "tested rows 7, 30 stand in what the attacker is shown" in capsys.readouterr().err
    planted = tmp_path / "forget.jsonl"
    rows[0]["question"] += "".join(f" {row['answer']}" for row in rows[6:12])
    planted.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = words(place, "--output_dir", str(tmp_path / "out"), "--seeds", "0", "1", "2", "3", "4", "5")
    given[given.index("--forget_dataset") + 1] = str(planted)
    assert main(given) == 2
    assert "stand in what the attacker is shown" in capsys.readouterr().err
