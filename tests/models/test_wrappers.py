# SPDX-License-Identifier: Apache-2.0
"""A model around a model: saved, loaded by every door, evaluated, pushed; and what is refused."""

import copy
import json
from pathlib import Path

import pytest
import torch
from conftest import lora, make_model, make_tokenizer
from torch import nn

from hf_unlearn import NPOTrainer, UnlearnedWrapper, load_unlearned
from hf_unlearn.audit.generation import generate_answers
from hf_unlearn.cli.main import main
from hf_unlearn.models.wrapper_files import WRAPPER_CONFIG, WRAPPER_WEIGHTS
from hf_unlearn.models.wrappers import wrap


class Shift(UnlearnedWrapper):
    """Adds a vector to what a module puts out."""

    kind = "test_shift"

    def __init__(self, module: str, vector: torch.Tensor):
        super().__init__()
        self.module, self.vector = module, nn.Parameter(vector.clone())

    def attach(self, model):
        model.get_submodule(self.module).register_forward_hook(self.shifted)

    def shifted(self, module, inputs, output):
        return output + self.vector.to(output.dtype)

    def settings(self):
        return {"module": self.module}


class Refusal(UnlearnedWrapper):
    """Prompts that hold a token are answered with another one."""

    kind, reads_prompt, changes_logits = "test_refusal", True, True

    def __init__(self, seen: int, said: int):
        super().__init__()
        self.seen, self.said, self.on = seen, said, None

    def attach(self, model):
        model.register_forward_pre_hook(self.look, with_kwargs=True)
        model.register_forward_hook(self.answer)

    def look(self, model, args, kwargs):
        cache = kwargs.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            self.on = (kwargs["input_ids"] == self.seen).any(-1)

    def answer(self, model, args, output):
        logits = output.logits.clone()
        logits[self.on] = torch.full_like(logits[self.on], -20.0)
        logits[self.on, :, self.said] = 20.0
        output.logits = logits
        return output

    def settings(self):
        return {"seen": self.seen, "said": self.said}


@pytest.fixture
def shift_path(tmp_path, model_path):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    model = wrap(load_unlearned(model_path), Shift("model.layers.0", vector))
    model.save_pretrained(tmp_path / "shift")
    return tmp_path / "shift"


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 15)[None]).logits


def test_a_folder_holds_the_wrapper_and_the_name_of_its_base(shift_path, model_path):
    assert {path.name for path in shift_path.iterdir()} == {WRAPPER_CONFIG, WRAPPER_WEIGHTS, "README.md"}
    said = json.loads((shift_path / WRAPPER_CONFIG).read_text())
    assert (said["wrapper"], said["base_model_name_or_path"]) == ("test_shift", model_path)
    assert (shift_path / WRAPPER_WEIGHTS).stat().st_size < 1000


def test_what_is_loaded_computes_the_same(shift_path, model_path, tmp_path):
    loaded, base = load_unlearned(shift_path), load_unlearned(model_path)
    by_hand = make_model()
    by_hand.model.layers[0].register_forward_hook(lambda module, args, output: output + loaded.unlearned_by.vector)
    assert torch.equal(logits_of(loaded), logits_of(by_hand))
    assert not torch.allclose(logits_of(loaded), logits_of(base), atol=1e-2)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(load_unlearned(tmp_path / "again")), logits_of(loaded))
    copied = copy.deepcopy(loaded)
    with torch.no_grad():
        copied.unlearned_by.vector.zero_()
    assert torch.equal(logits_of(copied), logits_of(base))
    assert not torch.equal(logits_of(loaded), logits_of(base))


def test_a_folder_is_found_from_everywhere(model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(model_path).parent)
    model = wrap(load_unlearned(Path(model_path).name), Shift("model.layers.0", torch.ones(32)))
    model.save_pretrained(tmp_path / "relative")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    # What has the base's name here is another model.
    make_model(seed=1).save_pretrained(Path(model_path).name)
    assert torch.equal(logits_of(load_unlearned(tmp_path / "relative")), logits_of(model))


def test_full_weights_and_adapters_come_as_they_are(model_path, tmp_path):
    from peft import PeftModel, get_peft_model

    assert torch.equal(logits_of(load_unlearned(model_path)), logits_of(make_model()))
    assert load_unlearned(model_path, dtype="bfloat16").dtype == torch.bfloat16
    adapted = get_peft_model(load_unlearned(model_path), lora(init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_unlearned(tmp_path / "adapter")
    assert isinstance(loaded, PeftModel)
    assert torch.equal(logits_of(loaded), logits_of(adapted.eval()))
    wrap(loaded, Shift("base_model.model.model.layers.0", torch.ones(32)), base=str(tmp_path / "adapter"))
    loaded.save_pretrained(tmp_path / "on_adapter")
    assert torch.equal(logits_of(load_unlearned(tmp_path / "on_adapter")), logits_of(loaded))


def test_an_adapter_is_not_merged_where_a_wrapper_would_be_lost(model_path, tmp_path, shift_path):
    from peft import get_peft_model

    from hf_unlearn.audit.robustness.weights import merged

    # A wrapper around an adapter, and another adapter on both.
    adapted = get_peft_model(load_unlearned(model_path), lora(init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    wrapped = wrap(adapted, Shift("base_model.model.model.layers.0", torch.ones(32)), base=str(tmp_path / "adapter"))
    wrapped.save_pretrained(tmp_path / "wrapped")
    # A wrapper, and an adapter on it.
    above = get_peft_model(load_unlearned(shift_path), lora(init_lora_weights=False))
    for model in (wrapped, above):
        with pytest.raises(ValueError, match="a wrapper, of kind 'test_shift', which merging the adapter would lose"):
            merged(model)
    for name, base in (("above", shift_path), ("on both", tmp_path / "wrapped")):
        get_peft_model(make_model(), lora(init_lora_weights=False)).save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        (tmp_path / name / "adapter_config.json").write_text(
            json.dumps(config | {"base_model_name_or_path": str(base)})
        )
    assert main(["merge", str(tmp_path / "above"), "--output_dir", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="which merging the adapter would lose"):
        load_unlearned(tmp_path / "on both")


def test_a_gate_on_prompts_generates_and_audits_see_whole_prompts(model_path, tmp_path):
    tokenizer = make_tokenizer()
    seen, said = tokenizer.convert_tokens_to_ids(["Q", "z"])
    base = load_unlearned(model_path)
    wrap(load_unlearned(model_path), Refusal(seen, said)).save_pretrained(tmp_path / "gate")
    assert not (tmp_path / "gate" / WRAPPER_WEIGHTS).exists()
    gated = load_unlearned(tmp_path / "gate")
    # What is gated stands in what both prompts share, which audits would compute once and ahead.
    shared = tokenizer("Q" + "ab" * 40)["input_ids"]
    with_it = [shared + tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("cd", "ef")]
    without = [ids[:1] + ids[2:] for ids in with_it]
    assert generate_answers(gated, tokenizer, with_it, max_new_tokens=3, progress=False) == ["zzz", "zzz"]
    plain, kept = (generate_answers(m, tokenizer, without, max_new_tokens=3, progress=False) for m in (base, gated))
    assert plain == kept


@pytest.fixture
def rows(tmp_path):
    for name in ("forget", "retain"):
        lines = [json.dumps({"question": f"Who is {name} {i}?", "answer": f"A {name}er."}) for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return [f"--{name}_dataset={tmp_path / name}.jsonl" for name in ("forget", "retain")]


def test_eval_measures_the_wrapper_and_push_sends_it(shift_path, model_path, rows, tmp_path, capsys):
    found = {}
    for name, path in (("shift", shift_path), ("base", model_path)):
        options = ["--output_dir", str(tmp_path / "eval" / name), "--run_name", name, "--max_new_tokens", "4"]
        assert main(["eval", "--model_name_or_path", str(path), *rows, *options]) in (None, 0)
        report = json.loads((tmp_path / "eval" / name / "report.json").read_text())
        found[name] = report["models"][0]["metrics"]["forget/probability"]["value"]
    assert found["shift"] != pytest.approx(found["base"], rel=1e-3)
    capsys.readouterr()
    main(["push", str(shift_path), "--hub_model_id", "me/shift", "--dry_run"])
    told = capsys.readouterr().out
    assert all(name in told for name in (WRAPPER_CONFIG, WRAPPER_WEIGHTS, "README.md", "3 files"))


# What is refused


def damaged(folder, **changes):
    said = json.loads((folder / WRAPPER_CONFIG).read_text())
    (folder / WRAPPER_CONFIG).write_text(json.dumps(said | changes))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: damaged(f, wrapper="unheard"), "of kind 'unheard', which is not known here .*test_shift"),
        (lambda f: damaged(f, base_model_name_or_path="/no/where"), "stands on '/no/where', and there is no such"),
        (lambda f: damaged(f, base_model_name_or_path=str(f)), "names itself as its base model"),
        (lambda f: damaged(f, base_model_name_or_path=None), "has no 'base_model_name_or_path'"),
        (lambda f: damaged(f, settings={}), "does not hold what a wrapper 'test_shift' takes: .*'module'"),
        (lambda f: damaged(f, tensors=["other"]), "they are of two wrappers"),
        (lambda f: (f / WRAPPER_CONFIG).write_text("{"), "is no valid JSON"),
        (lambda f: (f / WRAPPER_WEIGHTS).unlink(), f"lacks {WRAPPER_WEIGHTS}"),
        (lambda f: (f / WRAPPER_WEIGHTS).write_bytes(b"x"), "is no whole safetensors file"),
        (lambda f: make_model().save_pretrained(f), "holds a full model and a wrapper"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(shift_path, damage, told):
    damage(shift_path)
    with pytest.raises(ValueError, match=told):
        load_unlearned(shift_path)


def test_a_wrapper_of_another_architecture_is_refused(tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    model = wrap(load_unlearned(tmp_path / "base"), Shift("model.layers.1", torch.ones(32)))
    model.save_pretrained(tmp_path / "shift")
    make_model(layers=1).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"wrapper in .*shift' does not fit its base .*has no attribute") as error:
        load_unlearned(tmp_path / "shift")
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_refused(model_path, tmp_path):
    model = wrap(load_unlearned(model_path), Shift("model.layers.0", torch.full((32,), float("nan"))))
    model.save_pretrained(tmp_path / "bad")
    with pytest.raises(ValueError, match=r"NaN or infinite: vector"):
        load_unlearned(tmp_path / "bad")


def test_wrapping_twice_or_what_came_from_nowhere_is_refused(shift_path):
    with pytest.raises(ValueError, match="has a wrapper of kind 'test_shift' already"):
        wrap(load_unlearned(shift_path), Shift("model.layers.0", torch.ones(32)))
    with pytest.raises(ValueError, match="does not say where it came from"):
        wrap(make_model(), Shift("model.layers.0", torch.ones(32)))


def test_a_wrapper_is_no_model_to_train(shift_path, build, model_path, tmp_path):
    with pytest.raises(ValueError, match="holds a wrapper around another model"):
        build(given={"model": str(shift_path), "processing_class": None})
    with pytest.raises(ValueError, match="has a wrapper, of kind 'test_shift'"):
        build(given={"model": load_unlearned(shift_path)})
    gated = wrap(load_unlearned(model_path), Refusal(5, 6))
    with pytest.raises(ValueError, match=r"`ref_model` .*fused_losses=False"):
        build(given={"ref_model": gated})
    assert isinstance(build(given={"ref_model": gated}, fused_losses=False), NPOTrainer)


def test_a_model_is_not_saved_over_with_a_wrapper(model_path):
    with pytest.raises(ValueError, match="holds a model. Give a wrapper a folder of its own"):
        wrap(load_unlearned(model_path), Shift("model.layers.0", torch.ones(32))).save_pretrained(model_path)
