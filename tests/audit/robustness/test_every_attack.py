# SPDX-License-Identifier: Apache-2.0
"""What every attack in `AUDITS` must do: leave all as it was, go on where it was ended, and say in one line what it
cannot do. A new kind is here by itself; what makes it short stands in `SHORT`."""

import copy
import functools
import json
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from conftest import lora
from known import same, state
from taught import FORGET, RETAIN, original, retrained, save, write

from hf_unlearn.audit.base import Context
from hf_unlearn.audit.registry import AUDITS
from hf_unlearn.audit.representation.arguments import PARTS
from hf_unlearn.audit.robustness.kind import RobustnessKind
from hf_unlearn.modeling import load_checkpoint
from hf_unlearn.runs.audits import Measuring, read_block


KINDS = [name for name in AUDITS if isinstance(AUDITS[name], RobustnessKind)]
# Those that say how much is left; others inform of one model.
COMPARED = [name for name in KINDS if AUDITS[name].original_is_measured]
# What makes an attack short, where it has such a field.
SHORT = {
    "seeds": [0], "audit_batch_size": 64, "max_length": 400, "max_steps": 2, "steps": 2, "learning_rates": [1e-3],
    "mode": "both", "samples": 2, "ks": [1, 2], "generate": True, "max_new_tokens": 2, "formats": ["nf4"],
    "transforms": ["paraphrase", "prefill"], "retain_items": 2, "budget_tokens": 400, "max_tokens": 2, "width": 2,
    "prune": [0.3], "top_k": 4, "search_rows": 2, "lora_r": 2, "layers": [0, 1], "parts": [*PARTS],
}  # fmt: skip
MODELS = {name: f"{name}_model_name_or_path" for name in ("original", "retrained")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacks")
    unlearned = original()
    with torch.no_grad():
        unlearned.lm_head.weight.mul_(0.5)
    models = {"original": original(), "retrained": retrained(), "audited": unlearned}
    found = {name: save(model, folder / name) for name, model in models.items()}
    found["adapter"] = _adapter(folder / "adapter", found["original"])
    found |= {"forget": write(FORGET, folder / "forget.jsonl"), "retain": write(RETAIN, folder / "retain.jsonl")}
    return SimpleNamespace(folder=folder, **found)


def _adapter(folder, base: str) -> str:
    from peft import get_peft_model

    # Of the loaded base, whose name it keeps.
    torch.manual_seed(0)
    return save(get_peft_model(load_checkpoint(base), lora(init_lora_weights=False)), folder)


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))


def asked(place, name: str, without=(), **more):
    """The kind with its arguments, as the command reads them."""
    kind = AUDITS[name]
    known = {part.name for part in fields(kind.arguments)}
    given = {field: value for field, value in SHORT.items() if field in known}
    given |= {"model_name_or_path": place.audited, "forget_dataset": place.forget, "retain_dataset": place.retain}
    given |= {MODELS[one]: getattr(place, one) for one in MODELS if one not in without}
    return kind, *read_block(kind, {**given, "group_by": "person", **more})


def measured(place, name: str, model, prepared=None, **more):
    kind, args, qa = asked(place, name, **more)
    prepared = prepared or kind.prepare(args, qa)
    context = Context(load_checkpoint, progress=False)
    context.original = functools.partial(load_checkpoint, place.original)
    context.retrained = functools.partial(load_checkpoint, place.retrained)
    return kind.measure(model, args, prepared, context)


class Ended(BaseException):
    """Somebody ended the process."""


class Passes:
    """Counts the passes of a model, and may end them."""

    def __init__(self, model):
        self.seen, self.last = 0, None
        model.get_input_embeddings().register_forward_pre_hook(self.count)

    def __deepcopy__(self, memo):
        return self

    def count(self, module, args):
        self.seen += 1
        if self.seen == self.last:
            raise Ended


def as_left(model):
    """A model in a state that nobody would set it to."""
    model.train()
    next(model.children()).eval()
    first, *_, last = model.parameters()
    first.requires_grad_(False)
    last.grad = torch.ones_like(last)
    model.config.use_cache = False
    model.generation_config.temperature = 0.3
    return model


@pytest.mark.parametrize("loaded", ["audited", "adapter"])
@pytest.mark.parametrize("name", KINDS)
def test_an_attack_leaves_no_trace_wherever_it_ends(place, name, loaded, tmp_path, monkeypatch):
    where = {"model_name_or_path": getattr(place, loaded)}
    kind, args, qa = asked(place, name, **where)
    prepared = kind.prepare(args, qa)
    prepared.tokenizer.padding_side = "right"
    model = as_left(load_checkpoint(getattr(place, loaded)))
    passes = Passes(model)
    before = state(model, prepared.tokenizer)
    whole = measured(place, name, model, prepared, **where)
    assert same(before, state(model, prepared.tokenizer))
    assert json.loads(json.dumps(whole.to_dict())) == whole.to_dict()
    # Again in another cache, and ended in the middle and late.
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "ended"))
    count, again = passes.seen, kind.prepare(args, qa)
    for share in (0.5, 0.95) if loaded == "audited" else (0.6,):
        passes.seen, passes.last = 0, max(1, round(share * count))
        with pytest.raises(Ended):
            measured(place, name, model, again, **where)
        assert same(before, state(model, again.tokenizer) | {"tokenizer": before["tokenizer"]})
    passes.last = None
    assert measured(place, name, model, again, **where).measured == whole.measured


@pytest.mark.parametrize("name", COMPARED)
def test_what_was_measured_before_an_end_is_read_again(place, name, monkeypatch):
    kind, args, qa = asked(place, name)
    measure, seen = type(kind).measure, []

    def counted(self, model, *given):
        seen.append(model.config._name_or_path)
        if ends and seen[-1] == place.audited:
            raise Ended
        return measure(self, model, *given)

    monkeypatch.setattr(type(kind), "measure", counted)

    def run():
        measuring = Measuring(kind, args, qa, kind.prepare(args, qa), progress=False)
        gold, start = measuring.retrained(), measuring.original()
        return measuring.found(place.audited, gold, original=start), gold, start

    ends = True
    with pytest.raises(Ended):
        run()
    ends = False
    found, gold, start = run()
    # The others, where they are measured by themselves, are there.
    others = {place.retrained: kind.retrained_is_measured, place.original: kind.original_is_measured}
    assert seen == [*(path for path, own in others.items() if own), place.audited, place.audited]
    assert found.metrics["before/probability"].value is not None
    if all(others.values()):
        assert found.metrics["worst/remaining"].details["verdict"]
        check_what_can_be_said(found, gold, start)


def check_what_can_be_said(found, gold, start):
    """Of these results: with fewer groups, without an original, and without anything that never knew."""
    few = [copy.deepcopy(one) for one in (found, gold, start)]
    for one in few:
        one.settings["groups"] = [min(group, "Cyd") for group in one.settings["groups"]]
    told = few[0].compare(few[1], few[2])
    known = {
        metric: one for metric, one in told.items() if "too little was there" not in one.details.get("reason", "")
    }
    for metric, one in known.items():
        if "estimate" in one.details or one.value is not None:
            assert one.value is None, metric
            assert one.details["reason"].startswith("3 groups of rows; an interval requires 4"), metric
    assert told["worst/remaining"].value is None
    for others, reason in (((None, None), "no original model"), ((None, start), "never knew the answers")):
        alone = copy.deepcopy(found)
        told = alone.compare(*others)
        assert told["worst/remaining"].value is None
        assert reason in told["worst/remaining"].details["reason"]
        # What the model shows, before and after, is there all the same.
        assert alone.metrics["before/probability"].value is not None
        assert any(metric.endswith("/after") or metric == "probability/after" for metric in alone.metrics)


@pytest.mark.parametrize("name", KINDS)
def test_few_groups_are_told_before_a_model_is_loaded(place, unloaded, name, tmp_path, caplog):
    fewer = write([{**row, "person": min(row["person"], "Cyd")} for row in FORGET], tmp_path / "fewer.jsonl")
    kind, args, qa = asked(place, name, forget_dataset=fewer)
    kind.prepare(args, qa)
    assert "The forget rows are of 3 groups, and an interval requires 4" in caplog.text
    assert "--group_by question" in caplog.text
    # What the warning names is a way out.
    for given in ({}, {"forget_dataset": fewer, "group_by": "question"}):
        caplog.clear()
        kind, args, qa = asked(place, name, **given)
        prepared = kind.prepare(args, qa)
        assert "groups" not in caplog.text
    assert len({*prepared.groups["forget"]}) == len(prepared.rows["forget"])


@pytest.mark.parametrize("lacks", [("original",), ("retrained",), ("original", "retrained")])
@pytest.mark.parametrize("name", COMPARED)
def test_without_other_models_there_is_a_note_or_one_line(place, unloaded, name, lacks):
    kind, args, qa = asked(place, name, without=lacks)
    told = kind.notes(args)
    try:
        kind.prepare(args, qa)
    except ValueError as error:
        # It has nothing to say then.
        told = [str(error)]
    assert all("\n" not in line for line in told)
    for one in lacks if len(told) > 1 else lacks[:1]:
        if one == "retrained" and not kind.retrained_is_measured:
            # It has no part in this one.
            continue
        assert any(f"No {one} model was given" in line or MODELS[one] in line for line in told)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Where?", "answer": " "}, "Row 0 of the forget set has an empty `answer`"),
        ({"question": "Where?"}, "'answer'|`answer`"),
        ({"question": "Where?", "answer": None}, "Row 0 of .*bare.jsonl': `answer` is None"),
    ],
)
@pytest.mark.parametrize("name", KINDS)
def test_forget_rows_without_answers_are_refused(place, unloaded, name, tmp_path, row, message):
    rows = write([{**row, "person": f"p{i}"} for i in range(8)], tmp_path / "bare.jsonl")
    kind, args, qa = asked(place, name, forget_dataset=rows)
    with pytest.raises(ValueError, match=message) as error:
        kind.prepare(args, qa)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("which", ["audited", "original"])
@pytest.mark.parametrize("name", KINDS)
def test_quantised_weights_are_read_or_refused_in_one_line(place, name, which, tmp_path):
    source = getattr(place, which)
    path = save(load_checkpoint(source), tmp_path / "quantised")
    config = json.loads((tmp_path / "quantised" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (tmp_path / "quantised" / "config.json").write_text(json.dumps(config))
    field = {"audited": "model_name_or_path", "original": MODELS["original"]}[which]
    kind, args, qa = asked(place, name, **{field: path})

    def load():
        Measuring(kind, args, qa, kind.prepare(args, qa), progress=False).load(path)

    with pytest.raises(ValueError, match="quantised already|cannot be loaded|requires|optimum|gptq") as error:
        load()
    assert "\n" not in str(error.value)
