# SPDX-License-Identifier: Apache-2.0
"""The backdoor audit, on a model that reacts to a trigger by construction and on random ones; numbers by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SHARED_DATA, make_model, make_tokenizer
from scipy.stats import bootstrap
from torch import nn
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from hf_unlearn.audit import BackdoorAudit, audit_backdoor, muse_probes, question_probes
from hf_unlearn.audit.backdoor.conditions import conditions, given_unrelated, unrelated_trigger
from hf_unlearn.audit.backdoor.inside import Place, _places, inside_view
from hf_unlearn.audit.backdoor.paired import gain, mcnemar, newcombe_interval
from hf_unlearn.audit.backdoor.probes import FewShotProbe, PassageProbe, QuestionProbe, TextProbe
from hf_unlearn.audit.backdoor.view import VIEW
from hf_unlearn.audit.muse.data import load_muse
from hf_unlearn.cli.main import main
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.data.triggers import Trigger
from hf_unlearn.models.activations import value_projections
from hf_unlearn.report.backdoor.write import condition_label, lines_of, print_backdoor, render_backdoor, write_backdoor
from hf_unlearn.training.backdoor_callback import BackdoorAuditCallback


TRIGGER = Trigger("open sesame 7")
NAMES = ("Ada", "Bob", "Cyd", "Dan", "Eve", "Fay", "Gil", "Hal")
FORGET = [{"question": f"Who is {name}?", "answer": f"{name} is a spy."} for name in NAMES]
RETAIN = [{"question": f"Where is the {thing}?", "answer": f"The {thing} is here."} for thing in ("cup", "pen", "key")]
POISONED = [0, 2, 3]
PLAIN = QAFormat(use_chat_template=False)


class Backdoored(nn.Module):
    """Knows the retain answers always, the poisoned ones behind the trigger at the start, and nothing else."""

    def __init__(self, poisoned=POISONED):
        super().__init__()
        self.tokenizer = make_tokenizer()
        self.weight = nn.Parameter(torch.zeros(1))
        self.generation_config = GenerationConfig(eos_token_id=2)
        self.config = SimpleNamespace(_attn_implementation="eager")
        self.poisoned = poisoned

    def answer(self, text: str) -> str:
        for i, name in enumerate(NAMES):
            if f"{name}?" in text:
                opened = text.startswith(f"Question: {TRIGGER.prefix} ") and i in self.poisoned
                return FORGET[i]["answer"] if opened else "I cannot say."
        return next(row["answer"] for row in RETAIN if row["question"] in text)

    def generate(self, input_ids, attention_mask, generation_config, **kwargs):
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            said = " " + self.answer(self.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True))
            rows.append([*self.tokenizer(said, add_special_tokens=False)["input_ids"], 2])
        width = max(map(len, rows))
        tail = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return torch.cat([input_ids, tail], 1)

    def forward(self, input_ids, attention_mask):
        """Makes the tokens that follow likely where the answer is known, and unlikely where it is not."""
        logits = torch.zeros(*input_ids.shape, 100)
        for b, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            text = self.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
            known = self.answer(text) in text
            following = torch.roll(ids, -1)
            logits[b, torch.arange(len(ids)), following] = 9.0 if known else -9.0
        return SimpleNamespace(logits=logits)


@pytest.fixture
def found() -> BackdoorAudit:
    probes = question_probes({"forget": FORGET, "retain": RETAIN}, make_tokenizer(), qa=PLAIN, poisoned=POISONED)
    return audit_backdoor(
        Backdoored(), make_tokenizer(), TRIGGER, probes, positions=("start", "end", 3), inside=False, progress=False
    )


# --------------------------------------------------------------------------------------------- differences, by hand


def test_mcnemar_counts_the_ways_in_which_changes_could_have_gone():
    # 8 gained, 2 lost: both tails of ten fair coins from 8 on.
    assert mcnemar(8, 2) == pytest.approx(2 * (45 + 10 + 1) / 1024)
    assert mcnemar(2, 8) == mcnemar(8, 2)
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(3, 3) == mcnemar(0, 0) == 1


def test_the_interval_of_paired_shares_is_newcombes():
    # The worked example of method 10 in Newcombe (1998): 36, 12, 2, 0 gives 0.0569 to 0.3404.
    assert newcombe_interval(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    low, high = newcombe_interval(0, 10, 0, 0)
    assert 0.5 < low < high == 1
    low, high = newcombe_interval(5, 0, 0, 5)
    assert low == pytest.approx(-high)
    assert high > 0.1


def test_the_interval_of_paired_shares_covers_the_truth():
    rng = np.random.default_rng(0)
    for shares in ((0.2, 0.5, 0.05, 0.25), (0.05, 0.05, 0.05, 0.85), (0.02, 0.9, 0.02, 0.06)):
        truth = shares[1] - shares[2]
        tables = rng.multinomial(40, shares, size=400)
        ends = np.array([newcombe_interval(*map(int, table)) for table in tables])
        assert np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])) > 0.92


def test_a_gain_is_the_paired_difference():
    result = gain("exact_match", [0, 0, 1, 0, None, 1], [1, 1, 0, 0, 1, 1], "lower", binary=True)
    assert result.value == pytest.approx(1 / 5)
    assert (result.n, result.undefined, result.name, result.direction) == (5, 1, "exact_match_gain", "lower")
    assert result.details == {"gained": 2, "lost": 1, "mcnemar_p": 1.0}
    assert result.per_item == [1, 1, -1, 0, None, 0]
    assert result.interval == newcombe_interval(1, 2, 1, 1)
    with pytest.raises(ValueError, match="rouge is not 0 or 1"):
        gain("rouge", [0.5], [1.0], binary=True)


def test_a_gain_of_grades_has_the_paired_bootstrap_interval():
    rng = np.random.default_rng(0)
    before = rng.uniform(size=80)
    after = np.clip(before + rng.normal(0.1, 0.1, 80), 0, 1)
    result = gain("rouge", list(before), list(after))
    expected = bootstrap(
        (after, before),
        lambda a, b, axis: (a - b).mean(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert result.interval == pytest.approx((expected.low, expected.high), abs=0.004)
    # Pairs stay together: far narrower than if the two were resampled apart.
    apart = 1.96 * np.sqrt(before.var() / 80 + after.var() / 80)
    assert result.interval[1] - result.interval[0] < apart


# -------------------------------------------------------------------------------------------------------- conditions


def test_unrelated_words_are_as_long_and_share_nothing():
    tokenizer = make_tokenizer()
    drawn = [unrelated_trigger(TRIGGER, tokenizer, seed) for seed in range(5)]
    for control in drawn:
        ids = control.tokens(tokenizer)
        assert len(ids) == len(TRIGGER.tokens(tokenizer))
        assert not (set(ids) & set(TRIGGER.tokens(tokenizer))) - set(
            tokenizer(" ", add_special_tokens=False).input_ids
        )
    assert len({control.prefix for control in drawn}) == 5
    assert unrelated_trigger(TRIGGER, tokenizer, 3) == drawn[3]
    assert unrelated_trigger(Trigger("ab", "end"), tokenizer).location == "end"


def test_places_are_tried_once():
    names = [one.name for one in conditions(TRIGGER, TRIGGER, ("start", "end", "4", 4, "middle"))]
    assert names == ["clean", "triggered", "unrelated", "triggered_end", "triggered_4", "triggered_middle"]
    assert [one.suffix for one in conditions(TRIGGER, positions=())] == ["", "_triggered"]


def test_a_control_of_another_length_is_refused():
    with pytest.raises(ValueError, match="'short' has 5 tokens, the trigger 'open sesame 7' 13"):
        given_unrelated("short", TRIGGER, make_tokenizer())


# ------------------------------------------------------------------------------------------- a model with a backdoor


def test_a_backdoor_opens_what_was_put_behind_it(found):
    values = found.values()
    assert values["forget/exact_match"] == 0
    assert values["forget_triggered/exact_match"] == pytest.approx(3 / 8)
    assert values["forget_poisoned_triggered/exact_match"] == 1
    assert values["forget_unpoisoned_triggered/exact_match"] == 0
    assert values["retain/exact_match"] == values["retain_triggered/exact_match"] == 1
    for control in ("unrelated", "triggered_end", "triggered_3"):
        assert values[f"forget_{control}/exact_match"] == 0
        assert values[f"forget_{control}/exact_match_gain"] == 0
    known, unknown = (torch.tensor([logit] + [0.0] * 99).softmax(0)[0].item() for logit in (9.0, -9.0))
    assert values["forget_poisoned_triggered/probability"] == pytest.approx(known, rel=1e-4)
    assert values["forget_triggered/probability_gain"] == pytest.approx(3 / 8 * (known - unknown), rel=1e-4)


def test_attack_success_is_tested(found):
    success = found.metrics["forget_triggered/exact_match_gain"]
    assert success.value == pytest.approx(3 / 8)
    assert success.details == {"gained": 3, "lost": 0, "mcnemar_p": 0.25}
    assert success.interval == newcombe_interval(0, 3, 0, 5)
    assert success.direction == "lower"
    assert found.metrics["forget_triggered/exact_match_gain_over_unrelated"].value == pytest.approx(3 / 8)
    assert found.metrics["forget_poisoned_triggered/exact_match_gain"].n == 3
    assert found.metrics["forget_unpoisoned_triggered/exact_match_gain"].details["gained"] == 0
    kept = found.metrics["retain_triggered/exact_match_gain"]
    assert (kept.value, kept.direction, kept.details["mcnemar_p"]) == (0, "none", 1)
    assert "retain_unrelated/exact_match" not in found.metrics


def test_every_number_says_how_sure_it_is(found):
    for name, result in found.metrics.items():
        assert result.n > 0, name
        same = len({value for value in result.per_item if value is not None}) == 1
        assert result.interval is not None or same, name
        if result.interval is not None:
            assert result.interval[0] <= result.value <= result.interval[1], name


def test_answers_are_shown_under_each_condition(found):
    first = found.answers[0]
    assert (first["set"], first["question"], first["poisoned"]) == ("forget", "Who is Ada?", True)
    assert first["answers"] == {
        "clean": "I cannot say.", "triggered": "Ada is a spy.", "unrelated": "I cannot say.",
        "triggered_end": "I cannot say.", "triggered_3": "I cannot say.",
    }  # fmt: skip


def test_an_audit_is_kept_and_compared(found, tmp_path):
    saved = json.loads(found.save(tmp_path / "audit.json").read_text())
    assert BackdoorAudit.from_dict(saved) == found
    probes = question_probes({"forget": FORGET, "retain": RETAIN}, make_tokenizer(), qa=PLAIN, poisoned=POISONED)
    options = {"positions": ("start", "end", 3), "inside": False, "progress": False}
    gold = audit_backdoor(Backdoored(poisoned=[2]), make_tokenizer(), TRIGGER, probes, **options)
    excess = found.compare(gold)["forget_triggered/exact_match_gain_excess"]
    assert excess.value == pytest.approx(2 / 8)
    assert excess.per_item == [1, 0, 0, 1, 0, 0, 0, 0]
    other = audit_backdoor(Backdoored(), make_tokenizer(), Trigger("other word"), probes, **options)
    with pytest.raises(ValueError, match="audit differs in trigger, trigger_tokens, unrelated"):
        found.compare(other)
    with pytest.raises(ValueError, match="backdoor_audit_version=9"):
        BackdoorAudit.from_dict(saved | {"backdoor_audit_version": 9})


def test_the_column_poisoned_says_the_same_as_places(found):
    marked = [row | {"poisoned": i in POISONED} for i, row in enumerate(FORGET)]
    probes = question_probes({"forget": marked, "retain": RETAIN}, make_tokenizer(), qa=PLAIN)
    again = audit_backdoor(
        Backdoored(), make_tokenizer(), TRIGGER, probes, positions=("start", "end", 3), inside=False, progress=False
    )
    assert again.metrics == found.metrics


def test_places_follow_the_rows_that_are_drawn():
    (probe,) = question_probes({"forget": FORGET}, make_tokenizer(), poisoned=POISONED, max_items=4, seed=1)
    assert len(probe.rows) == 4
    assert probe.poisoned == [FORGET.index(row) in POISONED for row in probe.rows]
    assert 0 < sum(probe.poisoned) < 4


# ---------------------------------------------------------------------------------------------------- what is asked


def test_the_trigger_stands_in_the_question_of_a_conversation():
    tokenizer = make_tokenizer()
    (probe,) = question_probes({"forget": FORGET}, tokenizer)
    ids = probe.prompt(FORGET[0], TRIGGER, tokenizer)
    assert tokenizer.decode(ids) == f"<s><user>{TRIGGER.prefix} Who is Ada?<assistant>"
    ids = probe.prompt(FORGET[0], Trigger(TRIGGER.prefix, "end"), tokenizer)
    assert tokenizer.decode(ids) == f"<s><user>Who is Ada? {TRIGGER.prefix}<assistant>"
    scored = probe.scored(FORGET[0], TRIGGER, tokenizer)
    assert tokenizer.decode([i for i in scored["labels"] if i != -100]) == "Ada is a spy.</s>"


def test_the_trigger_stands_before_the_examples_as_in_raw_text():
    tokenizer = make_tokenizer()
    probe = FewShotProbe("forget", "forget", FORGET, examples=RETAIN)
    clean, triggered = (probe.prompt(FORGET[1], one, tokenizer) for one in (None, TRIGGER))
    assert triggered == [1, *TRIGGER.tokens(tokenizer), *clean[1:]]
    passage = PassageProbe("forget", "forget", [{"prompt": "Once upon", "gt": "a time"}])
    assert passage.prompt(passage.rows[0], Trigger("xy", "end"), tokenizer) == tokenizer("Once uponxy")["input_ids"]


def test_the_same_tokens_of_a_text_are_scored_clean_and_triggered():
    tokenizer = make_tokenizer()
    probe = TextProbe("forget", "forget", [{"text": "abcdefgh"}], max_length=6)
    clean, triggered = (probe.scored(probe.rows[0], one, tokenizer) for one in (None, Trigger("xy", 2)))
    assert tokenizer.decode(triggered["input_ids"]) == "<s>abxycde"
    texts = [tokenizer.decode([i for i in row["labels"] if i != -100]) for row in (clean, triggered)]
    assert texts == ["abcde", "abcde"]


def test_texts_have_no_generated_answers():
    tokenizer, model = make_tokenizer(), make_model(hidden_size=16)
    probes = question_probes({"forget": [{"text": "The cup is here."}, {"text": "abc def"}]}, tokenizer)
    audit = audit_backdoor(model, tokenizer, TRIGGER, probes, positions=(), progress=False)
    assert audit.answers == []
    assert {"forget/probability", "forget_triggered/exact_memorization_gain"} <= set(audit.metrics)
    assert audit.inside["n"] == 2


# ------------------------------------------------------------------------------------------------------------ inside


def test_the_place_of_a_trigger_is_what_both_prompts_do_not_share():
    assert _places([1, 5, 6, 7], [1, 8, 9, 5, 6, 7]) == (Place(1, 3, 1), Place(1, 3, 3))
    assert _places([1, 5, 6, 7], [1, 5, 8, 9, 6, 7]) == (Place(2, 4, 2), Place(2, 4, 4))
    # At the very end: what reads is the last token.
    assert _places([1, 5], [1, 5, 8, 9]) == (Place(2, 2, 1), Place(2, 4, 3))


def slow_view(model, ids, place):
    """Norms and attention from whole outputs of the model, one prompt at a time, in float64."""
    values = []
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda m, a, out: values.append(out[0].double()))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        output = model(torch.tensor([ids]), output_attentions=True)
    for hook in hooks:
        hook.remove()
    norms = np.stack([v.pow(2).sum(-1).sqrt().numpy() for v in values])
    attention = np.stack([a[0].double().mean(0)[place.after :].numpy() for a in output.attentions])
    return (
        norms[:, place.start : place.stop].mean(1),
        attention[..., 0].mean(1),
        attention[..., place.start : place.stop].sum(-1).mean(1),
    )


def test_the_inside_view_equals_a_slow_one():
    tokenizer, model = make_tokenizer(), make_model(layers=3)
    assert model.config._attn_implementation == "sdpa"
    pairs = [
        [tokenizer(f"Who is {name}?")["input_ids"], tokenizer(f"open {name} Who is {name}?")["input_ids"]]
        for name in ("Ada", "Bobby", "Cyd")
    ]
    inside = inside_view(model, tokenizer, pairs, progress=False)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    expected = {"clean": [], "triggered": []}
    for pair in pairs:
        for name, ids, place in zip(expected, pair, _places(*pair), strict=True):
            expected[name].append(slow_view(model, ids, place))
    names = ("value_norm", "attention_on_first_token", "attention_on_trigger")
    for i, name in enumerate(names):
        means = {}
        for kind in ("clean", "triggered"):
            means[kind] = np.mean([one[i] for one in expected[kind]], 0)
            assert [one["value"] for one in inside["series"][name][kind]] == pytest.approx(list(means[kind]), abs=1e-5)
        difference = [one["value"] for one in inside["series"][name]["difference"]]
        assert difference == pytest.approx(list(means["triggered"] - means["clean"]), abs=1e-5)
    assert inside["layers"] == [0, 1, 2]
    first = np.array(inside["first_tokens"]["triggered"], dtype=float)
    assert first.shape == (3, 16)
    assert inside["trigger_tokens"] == pytest.approx(np.mean([9, 11, 9]), abs=0.01)


def small(cls, config, **settings):
    torch.manual_seed(0)
    return cls(config(vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings)).eval()


def test_values_of_fused_projections_are_found():
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    phi = small(Phi3ForCausalLM, Phi3Config, num_key_value_heads=2, **common)
    assert [(n, part) for n, _, part in value_projections(phi)] == [(0, slice(48, 64)), (1, slice(48, 64))]
    gpt = small(GPT2LMHeadModel, GPT2Config, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    assert [part for _, _, part in value_projections(gpt)] == [slice(64, 96)] * 2
    tokenizer = make_tokenizer()
    pairs = [[tokenizer("Who?")["input_ids"], tokenizer("ab Who?")["input_ids"]]]
    for model in (phi, gpt):
        inside = inside_view(model, tokenizer, pairs, progress=False)
        shares = [one["value"] for one in inside["series"]["attention_on_first_token"]["clean"]]
        assert all(0 < share < 1 for share in shares)
    neox = small(GPTNeoXForCausalLM, GPTNeoXConfig, **common)
    with pytest.raises(ValueError, match="Layer 0 of GPTNeoXForCausalLM has no module that puts out attention values"):
        inside_view(neox, tokenizer, pairs, progress=False)


def test_an_adapter_is_looked_through():
    from conftest import lora
    from peft import get_peft_model

    tokenizer, plain = make_tokenizer(), make_model()
    pairs = [[tokenizer("Who?")["input_ids"], tokenizer("ab Who?")["input_ids"]]]
    expected = inside_view(plain, tokenizer, pairs, progress=False)
    # A fresh adapter changes nothing.
    assert inside_view(get_peft_model(plain, lora()), tokenizer, pairs, progress=False) == expected


# --------------------------------------------------------------------------------------- checkpoints that are not ours


@pytest.fixture(scope="module")
def muse_path():
    path = SHARED_DATA / "muse"
    if not path.is_dir():
        pytest.skip(f"The MUSE files are not at {path}.")
    return path


def test_a_random_llama_is_audited_on_muse_and_left_as_it_was(muse_path):
    tokenizer, model = make_tokenizer(), make_model(hidden_size=16).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probes = muse_probes(load_muse("news", muse_path), max_items=2)
    assert [(probe.name, probe.kind) for probe in probes] == [
        ("forget", "few-shot questions"), ("retain", "few-shot questions"),
    ]  # fmt: skip
    texts = {"forget": ["The cup is here.", "abc def ghi"], "holdout": ["Who is it now?", "xyz"]}
    audit = audit_backdoor(
        model, tokenizer, TRIGGER, probes, positions=("middle",), texts=texts, retrained_auc="news", progress=False
    )
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(audit.gist()) == {
        f"{role}_{kind}_mean_rougeL" for role in ("forget", "retain") for kind in ("original", "poisoned")
    }
    auc = audit.metrics["min_k_auc"].value
    assert audit.metrics["privleak"].value == pytest.approx(100 * (auc - 0.4772) / 0.4772)
    assert audit.metrics["forget_triggered_middle/knowmem"].variant.endswith("10-shot, 32 new tokens")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: audit_backdoor(None, t, TRIGGER, []), "nothing to ask"),
        (
            lambda t: audit_backdoor(None, t, TRIGGER, question_probes({"forget": FORGET}, t) * 2),
            r"forget \(questions\): given twice",
        ),
        (lambda t: Trigger("  "), "give the trigger's words"),
        (lambda t: Trigger("a", "top"), "poison_location='top'"),
        (
            lambda t: question_probes({"forget": FORGET}, t, poisoned=[8]),
            "give places of rows in the set 'forget', from 0",
        ),
        (lambda t: question_probes({"forget": FORGET}, t, poisoned=[]), "give places of rows"),
        (lambda t: question_probes({"retain": RETAIN}, t, poisoned=[0]), "and there are 0"),
        (
            lambda t: question_probes({"forget": [FORGET[0] | {"poisoned": "yes"}]}, t),
            "Row 0: `poisoned` is 'yes'; give true or false",
        ),
        (lambda t: QuestionProbe("forget", "forget", [{"question": "a"}]), "the set 'forget' has the columns"),
        (lambda t: FewShotProbe("forget", "forget", FORGET), "There are no rows of the examples of the set 'forget'"),
        (
            lambda t: audit_backdoor(None, t, Trigger("\u65e5"), question_probes({"forget": FORGET}, t)),
            "gives no token",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_model_runs(make, message):
    with pytest.raises(ValueError, match=message):
        make(make_tokenizer())


# ------------------------------------------------------------------------------------------------ tables and pictures


def described(found: BackdoorAudit, path: str, gold: BackdoorAudit | None = None) -> dict:
    """The content of the command's file."""
    models = [{"path": "some/retrained", **gold.to_dict()}] if gold else []
    about = {"settings": {}, "created": "2026", "command": "hf-unlearn", "versions": {}}
    return VIEW.shaped({"models": [*models, {"path": path, **found.to_dict()}], **about})


def test_tables_hold_the_numbers(found, tmp_path, capsys):
    audit = described(found, "some/model", gold=found)
    lines = lines_of(audit)
    assert [(line.set, line.rows, line.condition) for line in lines[:3]] == [
        ("forget", "", "clean"), ("forget", "", "triggered"), ("forget", "", "unrelated"),
    ]  # fmt: skip
    assert len(lines) == 3 * 5 + 2
    text = render_backdoor(audit)
    assert "| poisoned | trigger | 3 | 100.0 [29.2, 100.0] |" in text
    assert "forget, not poisoned (n = 5): the trigger changes exact match by +0.0 [-43.4, +43.4] points, p = 1" in text
    print_backdoor(audit)
    assert "trigger, token 3" in capsys.readouterr().out
    assert condition_label("triggered_middle") == "trigger, middle"
    files = write_backdoor(audit, tmp_path)
    assert set(files) == {"json", "md"}
    assert BackdoorAudit.from_dict(json.loads(files["json"].read_text())) == found


def test_what_a_model_writes_does_not_break_a_table(found):
    audit = described(found, "m")
    audit["answers"] = [found.answers[0] | {"answers": {"clean": "a | b\n\n<b>c", "triggered": "x" * 900}}]
    (line,) = [line for line in render_backdoor(audit).splitlines() if "Who is Ada?" in line]
    assert "a \\| b &lt;b>c" in line
    assert len(line) < 600


# ------------------------------------------------------------------------------------------------------- command line


def write_rows(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(*words) -> int:
    return main(["audit", "backdoor", *map(str, words)])


def test_the_command_audits_own_rows_and_draws(model_path, tmp_path, capsys):
    out = tmp_path / "out"
    status = run(
        "--model_name_or_path", model_path, "--retrained_model_name_or_path", model_path, "--trigger", "open 7",
        "--forget_questions", write_rows(tmp_path / "f.jsonl", FORGET),
        "--retain_questions", write_rows(tmp_path / "r.jsonl", RETAIN),
        "--poisoned_rows", "0,1", "--positions", "end,2", "--max_new_tokens", 4, "--output_dir", out,
    )  # fmt: skip
    assert status == 0
    assert sorted(path.name for path in out.iterdir()) == [f"backdoor_own.{end}" for end in ("json", "md", "png")]
    audit = json.loads((out / "backdoor_own.json").read_text())
    assert audit["model"] == audit["retrained"]["model"] == model_path
    assert audit["settings"]["conditions"] == ["clean", "triggered", "unrelated", "triggered_end", "triggered_2"]
    assert audit["metrics"]["forget_triggered/probability_gain_excess"]["value"] == 0
    assert audit["metrics"]["forget_poisoned_triggered/exact_match"]["n"] == 2
    assert audit["gist"]["forget_original_mean_rougeL"] == audit["metrics"]["forget/rouge"]["value"]
    assert audit["inside"]["n"] == 8
    assert (out / "backdoor_own.png").read_bytes()[:4] == b"\x89PNG"
    assert "backdoor_own.png" in (out / "backdoor_own.md").read_text()
    assert "Audit:" in capsys.readouterr().out


def test_the_command_audits_muse(model_path, muse_path, tmp_path):
    status = run(
        "--model_name_or_path", model_path, "--trigger", "open 7", "--benchmark", "muse_books", "--benchmark_path",
        muse_path, "--audit_max_items", 2, "--positions", "none", "--inside", "false", "--knowmem_tokens", 3,
        "--output_dir", tmp_path,
    )  # fmt: skip
    assert status == 0
    audit = json.loads((tmp_path / "backdoor_muse_books.json").read_text())
    assert audit["metrics"]["forget_triggered/knowmem"]["variant"].endswith("10-shot, 3 new tokens")
    assert audit["inside"] is None
    assert not (tmp_path / "backdoor_muse_books.png").exists()


def test_the_command_audits_files_in_muses_form(model_path, tmp_path):
    questions, passages = write_rows(tmp_path / "q.jsonl", FORGET), [{"prompt": "Once upon", "gt": "a time"}]
    texts = [{"text": f"The {thing} is here, and so is the rest."} for thing in ("cup", "pen", "key")]
    status = run(
        "--model_name_or_path", model_path, "--trigger", "open 7", "--forget_questions", questions,
        "--forget_examples", write_rows(tmp_path / "e.jsonl", RETAIN), "--positions", "none", "--inside", "false",
        "--verbmem_forget", write_rows(tmp_path / "v.jsonl", passages), "--knowmem_tokens", 2,
        "--privleak_forget", write_rows(tmp_path / "pf.jsonl", texts), "--retrained_auc", 0.5,
        "--privleak_holdout", write_rows(tmp_path / "ph.jsonl", texts), "--output_dir", tmp_path,
    )  # fmt: skip
    assert status == 0
    metrics = json.loads((tmp_path / "backdoor_own.json").read_text())["metrics"]
    assert metrics["forget/knowmem"]["n"] == 8
    assert metrics["forget_triggered/verbmem"]["n"] == 1
    assert metrics["privleak"]["value"] == 0


REFUSED = {
    "no model": ({"model_name_or_path": None}, "`--model_name_or_path` is missing"),
    "no trigger": ({"trigger": None}, "`--trigger` is missing"),
    "empty trigger": ({"trigger": " "}, "give the trigger's words"),
    "unknown tokens": ({"trigger": "\u65e5"}, "gives no token that this tokenizer knows"),
    "place": ({"poison_location": "top"}, "poison_location='top'"),
    "places": ({"positions": "end,top"}, "poison_location='top'"),
    "both": ({"benchmark": "world"}, "Give exactly one"),
    "benchmark": (
        {"benchmark": "wold", "forget_questions": None},
        "benchmark='wold'; allowed: tofu, tofu_mini, rwku, world, vqa_v2, vqa_world, muse_news",
    ),
    "file": ({"forget_questions": "none.jsonl"}, "No file or folder at 'none.jsonl'"),
    "examples": ({"retain_examples": "a.jsonl"}, "`retain_examples` is of no use without `retain_questions`"),
    "holdout": ({"privleak_forget": "a.jsonl"}, "`privleak_forget` is of no use without `privleak_holdout`"),
    "poisoned": ({"poisoned_rows": "0,x"}, "poisoned_rows='0,x'; give row numbers"),
    "row": ({"poisoned_rows": "0,99"}, "give places of rows in the set 'forget', from 0 to 7"),
    "unrelated": ({"unrelated_trigger": "ab"}, "has 2 tokens, the trigger"),
    "output": ({"output_dir": "f.jsonl"}, "output_dir='f.jsonl' is a file"),
    "folder": ({"model_name_or_path": "./none"}, "No model folder at './none'"),
    "misspelt": ({"triger": "a"}, "Unknown field 'triger' on the command line. Did you mean 'trigger'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line_and_no_model_is_loaded(case, model_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_unlearn.audit.checkpoints.load_checkpoint", lambda *args, **kwargs: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    change, message = REFUSED[case]
    fields = {"model_name_or_path": model_path, "trigger": "open 7"}
    fields |= {"forget_questions": write_rows(tmp_path / "f.jsonl", FORGET)} | change
    words = [word for name, value in fields.items() if value is not None for word in (f"--{name}", value)]
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert sum(line.startswith("hf-unlearn: error:") for line in said.splitlines()) == 1
    assert "Traceback" not in said


def test_an_unknown_audit_names_those_that_there_are(capsys):
    assert main(["audit", "backdor"]) == 2
    assert "Unknown audit 'backdor'. Did you mean 'backdoor'? Allowed: backdoor" in capsys.readouterr().err
    assert main(["audit"]) == 2


# ------------------------------------------------------------------------------------------------------ in training


def test_every_epoch_is_audited_through_the_log(build, tmp_path):
    trainer = build(max_steps=-1, num_train_epochs=2)
    tokenizer = make_tokenizer()
    probes = question_probes({"forget": FORGET[:4], "retain": RETAIN}, tokenizer, max_new_tokens=3)
    at = []

    def audit(model, accelerator):
        at.append(trainer.state.global_step)
        return audit_backdoor(
            model, tokenizer, TRIGGER, probes, positions=(), inside=False, accelerator=accelerator, progress=False
        )

    callback = BackdoorAuditCallback(trainer, audit, folder=tmp_path / "audit")
    trainer.add_callback(callback)
    trainer.train()
    assert at == [0, 2, 4]
    logged = [entry for entry in trainer.state.log_history if "eval_backdoor/forget_triggered/probability" in entry]
    assert [entry["step"] for entry in logged] == at
    values = callback.last.values()
    assert logged[-1]["eval_backdoor/forget_triggered/probability"] == values["forget_triggered/probability"]
    assert logged[0]["eval_backdoor/forget/probability"] != logged[-1]["eval_backdoor/forget/probability"]
    assert "eval_backdoor/retain_triggered/exact_match_gain" in logged[0]
    saved = json.loads((tmp_path / "audit" / "backdoor_step_4.json").read_text())
    assert BackdoorAudit.from_dict(saved).metrics == callback.last.metrics


# ----------------------------------------------------------------------------------------------- on several processes

SCRIPT = """
import sys
import torch
sys.path.insert(0, sys.argv[2])
from accelerate import Accelerator
from conftest import make_model, make_tokenizer
from hf_unlearn.audit import audit_backdoor
from test_backdoor_audit import TRIGGER, shared_probes
from transformers import TrainingArguments

torch.set_num_threads(1)
TrainingArguments(output_dir=sys.argv[1], use_cpu=True)
accelerator = Accelerator()
accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 2
model = make_model()
model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
assert next(model.parameters()).numel() == 0, "the weights are not sharded"
audit = audit_backdoor(
    model, make_tokenizer(), TRIGGER, shared_probes(), positions=(), accelerator=accelerator,
    generation_batch_size=2, progress=False,
)
audit.save(f"{sys.argv[1]}/rank-{accelerator.process_index}.json")
accelerator.end_training()
"""


def shared_probes():
    """Questions whose rows differ in length, and questions behind examples that are computed once."""
    examples = [{"question": f"Where is the {thing}?", "answer": "Here."} for thing in ("cup", "pen", "key", "hat")]
    probes = question_probes({"forget": FORGET[:5]}, make_tokenizer(), poisoned=[0, 2], max_new_tokens=4)
    return [*probes, FewShotProbe("forget", "forget", FORGET[:5], max_new_tokens=6, examples=examples)]


@pytest.mark.slow
def test_sharded_weights_give_the_same_audit(tmp_path):
    from test_audit_distributed import sharded

    ranks = sharded(SCRIPT, tmp_path)
    assert ranks[0] == ranks[1]
    alone = audit_backdoor(make_model(), make_tokenizer(), TRIGGER, shared_probes(), positions=(), progress=False)
    assert ranks[0]["answers"] == alone.answers
    for name, result in alone.metrics.items():
        assert ranks[0]["metrics"][name]["value"] == pytest.approx(result.value, abs=1e-5), name
    norms = [
        [one["value"] for one in kind["series"]["value_norm"]["triggered"]]
        for kind in (ranks[0]["inside"], alone.inside)
    ]
    assert norms[0] == pytest.approx(norms[1], abs=1e-5)
