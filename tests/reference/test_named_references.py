# SPDX-License-Identifier: Apache-2.0
"""Several frozen models under names of their own, by a small method whose terms compare with two: a function of whole
predictions, and log-probabilities. Against float64 formulas, in each form, and what is refused."""

from dataclasses import dataclass

import pytest
import torch
from conftest import changed, lora, make_args, make_model, make_tokenizer, train_batch, weights
from peft import get_peft_model
from test_methods import labelled, log_probabilities, shake

from hf_unlearn import GATrainer, NPOConfig, NPOTrainer, UnlearnConfig, UnlearnedWrapper, UnlearnTrainer
from hf_unlearn.forward.needs import REFERENCE, Need
from hf_unlearn.models.wrappers import wrap
from hf_unlearn.reference import AdapterReference, CachedReference, LiveReference
from hf_unlearn.training.unused import unused


NAMES = ("Ada", "Bob", "Cyd", "Dan", "Eve", "Fay")
FORGET = [{"prompt": f"Who is {name}?", "completion": " A spy" + "!" * i} for i, name in enumerate(NAMES)]
RETAIN = [{"text": "cup " * (i + 1)} for i in range(5)]
adapters = pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])


def towards_generic(logits, at):
    """KL to the reference's prediction with half of what the reinforced model raises taken off (as of WHP)."""
    base, raised = at.ref_logits, at.others["reinforced"]
    target = (base - 0.5 * (raised - base).clamp(min=0)).log_softmax(-1)
    values = (target.exp() * (target - logits.log_softmax(-1))).sum(-1)
    return values, {"logps": -at.nll(logits.detach())}


@dataclass
class TwoConfig(UnlearnConfig):
    reinforced: str | None = None


class Two(UnlearnTrainer):
    config_class = TwoConfig
    method = "test_two"

    @classmethod
    def needs_of(cls, args):
        return {
            "forget": Need(towards_generic, reference=(REFERENCE, "reinforced")),
            "retain": Need(reference=("teacher",)),
        }

    @classmethod
    def ref_models_of(cls, args):
        return {} if args.reinforced is None else {"reinforced": args.reinforced}

    def forget_loss(self, rows):
        return rows.value

    def retain_loss(self, rows):
        return (rows.logps - rows.logps_of("teacher")).square().mean()


def others() -> dict:
    """A wider model of another head, and one of the same form."""
    return {"reinforced": make_model(seed=5, hidden_size=48), "teacher": make_model(seed=6)}


@pytest.fixture
def build(tmp_path):
    def build(adapter=False, ref_models=None, model=None, **kwargs):
        settings = {"retain_loss": "nll"} | kwargs
        return Two(
            model=model or make_model(),
            args=make_args(TwoConfig, tmp_path / "out", **settings),
            forget_dataset=FORGET,
            retain_dataset=RETAIN,
            processing_class=make_tokenizer(),
            peft_config=lora(target_modules="all-linear") if adapter else None,
            ref_models=others() if ref_models is None else ref_models,
        )

    return build


def expected(pairs, policy, entered) -> float:
    """Both terms row by row in float64."""
    reinforced, teacher = others().values()
    forget, retain = [], []
    for pair in pairs:
        row, values = pair["forget"], []
        ours, base, raised = (logits(model, row) for model in (policy, entered, reinforced))
        for t, _ in labelled(row):
            target = (base[t] - 0.5 * (raised[t] - base[t]).clamp(min=0)).log_softmax(-1)
            values.append((target.exp() * (target - ours[t].log_softmax(-1))).sum().item())
        forget.append(sum(values) / len(values))
        row, sums = pair["retain"], []
        for model in (policy, teacher):
            found = log_probabilities(model, row)
            sums.append(sum(found[t, label].item() for t, label in labelled(row)))
        retain.append((sums[0] - sums[1]) ** 2)
    return sum(forget) / len(forget) + sum(retain) / len(retain)


@torch.no_grad()
def logits(model, row):
    return model(torch.tensor([row["input_ids"]])).logits[0].double()


@pytest.mark.parametrize("path", [{}, {"fused_losses": False}, {"forward_passes": "split"}], ids=str)
@adapters
def test_terms_over_several_models_equal_the_formula(build, adapter, path):
    # What is cached is there once training has begun.
    trainer = build(adapter=adapter, per_device_train_batch_size=4, reference="live", **path)
    entered, policy = make_model(), trainer.model.eval()
    shake(policy)
    pairs = [trainer.train_dataset[position] for position in range(4)]
    loss = trainer.compute_loss(policy, train_batch(trainer, range(4)))
    assert loss.item() == pytest.approx(expected(pairs, policy, entered), rel=2e-5)


FORMS = {
    "live": (LiveReference, LiveReference),
    "cache": (CachedReference, CachedReference),
    # The adapter is the policy's: other models are cached beside it.
    "adapter": (AdapterReference, CachedReference),
}


@adapters
def test_every_form_gives_the_same_run(build, adapter, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    logs, ends = [], []
    for form in FORMS if adapter else ("live", "cache"):
        trainer = build(adapter=adapter, reference=form, gradient_accumulation_steps=2, max_steps=3)
        own, given = FORMS[form]
        models = trainer.references.models
        assert {name: type(model) for name, model in models.items()} == {
            REFERENCE: own,
            "reinforced": given,
            "teacher": given,
        }
        before = weights(trainer.model)
        trainer.train()
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        ends.append(weights(trainer.model))
        assert changed(before, ends[-1])
        kept = [model for model in models.values() if isinstance(model, CachedReference)]
        # Their weights are let go of once what they say is on disk; each has a store of its own.
        assert all(model.source is None for model in kept)
        assert len({model.store.folder for model in kept}) == len(kept)
    for log, end in zip(logs, ends, strict=True):
        assert log == pytest.approx(logs[0], rel=1e-4)
        for name in end:
            torch.testing.assert_close(end[name], ends[0][name], rtol=1e-3, atol=1e-5)


def test_a_store_is_of_the_model_that_filled_it(build, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    folders = []
    for seed in (5, 5, 7):
        trainer = build(ref_models=others() | {"teacher": make_model(seed=seed)}, max_steps=1)
        trainer.train()
        folders.append({name: str(model.store.folder) for name, model in trainer.references.models.items()})
    assert folders[0] == folders[1]
    assert [folders[0][name] == folders[2][name] for name in (REFERENCE, "reinforced", "teacher")] == [
        True,
        True,
        False,
    ]


@adapters
def test_resume_gives_the_weights_of_the_uninterrupted_run(build, tmp_path, adapter, monkeypatch):
    settings = {"adapter": adapter, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    whole = build(**settings)
    whole.train()
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert not changed(weights(whole.model), weights(resumed.model))
    other = build(**settings, ref_models=others() | {"teacher": make_model(seed=9)})
    with pytest.raises(ValueError, match="compared rows with another 'teacher' model"):
        other.train(resume_from_checkpoint=checkpoint)


def test_a_path_and_a_setting_name_models_too(build, tmp_path):
    for name, model in others().items():
        model.save_pretrained(tmp_path / name)
    trainer = build(reinforced=str(tmp_path / "reinforced"), ref_models={"teacher": tmp_path / "teacher"})
    assert trainer.references.weights == build().references.weights
    assert trainer.references.weights["teacher"] != trainer.references.weights["reinforced"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"ref_models": {"teacher": "."}}, "compares rows with a model called 'reinforced', and none was given"),
        ({"ref_models": others() | {"tutor": 1}}, "`ref_models` has 'tutor'; this method compares with 'reinforced'"),
        ({"ref_models": others() | {"teacher": 1}}, r"ref_models\['teacher'\] is a int. Pass a loaded model"),
        ({"ref_models": others() | {"teacher": "./none"}}, "No model folder at './none'"),
        ({"ref_models": [1]}, "`ref_models` is a list. Pass a dict"),
        ({"reinforced": "here"}, "'reinforced' is given in `ref_models` and by the config"),
    ],
)
def test_what_cannot_be_compared_with_is_refused_before_a_model_is_loaded(build, unloaded, model_path, given, told):
    with pytest.raises(ValueError, match=told) as error:
        build(model=model_path, **given)
    assert "\n" not in str(error.value)


def test_a_method_without_named_models_takes_none(tmp_path):
    with pytest.raises(ValueError, match="compares with no model but the reference, which is `ref_model`"):
        GATrainer(
            model=make_model(),
            args=make_args(GATrainer.config_class, tmp_path),
            forget_dataset=FORGET,
            processing_class=make_tokenizer(),
            ref_models={"teacher": make_model()},
        )


def test_a_model_of_another_vocabulary_or_the_policy_itself_is_refused(build):
    with pytest.raises(ValueError, match="predicts 120 tokens, the model 100"):
        build(ref_models=others() | {"teacher": make_model(vocab_size=120)})
    model = make_model()
    with pytest.raises(ValueError, match=r"ref_models\['teacher'\] is the model itself"):
        build(model=model, ref_models=others() | {"teacher": model})


def test_a_model_that_would_train_along_is_refused(build, tmp_path):
    base = make_model()
    # PEFT puts the adapter into the model that it is given.
    policy = get_peft_model(base, lora())
    with pytest.raises(ValueError, match=r"ref_models\['teacher'\] shares parameters with the model.* \(.*lora_A"):
        build(model=policy, ref_models=others() | {"teacher": base})
    given = {"args": make_args(NPOConfig, tmp_path), "forget_dataset": FORGET, "processing_class": make_tokenizer()}
    with pytest.raises(ValueError, match=r"`ref_model` shares parameters with the model.* \(.*lora_A"):
        NPOTrainer(policy, ref_model=base, **given)
    base = make_model()
    with pytest.raises(ValueError, match=r"`ref_model` shares parameters with the model.* \(.*lora_A"):
        NPOTrainer(base, ref_model=base, peft_config=lora(), **given)


def test_what_stays_frozen_may_be_shared(build):
    model, teacher = make_model(), make_model(seed=6)
    teacher.model = model.model
    trainer = build(model=model, ref_models=others() | {"teacher": teacher}, trainable_modules=["lm_head"])
    trainer.train()
    assert trainer.state.global_step == 4


class Shift(UnlearnedWrapper):
    """Adds 1 to what a layer puts out."""

    kind = "test_shifted_reference"

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def attach(self, model):
        model.model.layers[self.layer].mlp.register_forward_hook(self.shifted)

    def shifted(self, module, inputs, output):
        return output + 1

    def settings(self):
        return {"layer": self.layer}


def test_a_wrappers_settings_are_a_part_of_the_model(build):
    def retain_loss(layer, form):
        teacher = wrap(make_model(seed=6), Shift(layer), base="somewhere")
        trainer = build(ref_models=others() | {"teacher": teacher}, reference=form, max_steps=1)
        trainer.train()
        return trainer.references.weights["teacher"], trainer.state.log_history[0]["retain/loss"]

    found = {(layer, form): retain_loss(layer, form) for layer in (0, 1) for form in ("cache", "live")}
    for layer in (0, 1):
        assert found[layer, "cache"] == (found[layer, "live"][0], pytest.approx(found[layer, "live"][1], rel=1e-4))
    assert found[0, "live"][0] != found[1, "live"][0]
    assert found[0, "live"][1] != pytest.approx(found[1, "live"][1], rel=1e-4)


def test_a_wrapper_of_logits_is_seen_without_the_fused_losses_alone(build, monkeypatch):
    monkeypatch.setattr(Shift, "changes_logits", True)
    given = others() | {"teacher": wrap(make_model(seed=6), Shift(0), base="somewhere")}
    with pytest.raises(ValueError, match=r"ref_models\['teacher'\] has a wrapper .* Pass fused_losses=False"):
        build(ref_models=given)
    assert build(ref_models=given, fused_losses=False).references.get("teacher")


def test_settings_of_references_are_used_by_named_models(build, tmp_path, caplog):
    trainer = build(reference="cache", reference_cache_dir=str(tmp_path / "cache"))
    del trainer.references.models[REFERENCE]
    assert not unused(trainer)


def test_kl_needs_its_reference():
    with pytest.raises(ValueError, match="kl=True compares with 'reference'"):
        Need(kl=True)
