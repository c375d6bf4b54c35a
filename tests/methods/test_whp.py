# SPDX-License-Identifier: Apache-2.0
"""Who's Harry Potter: where the reinforced model comes from, its variants, and what is refused."""

import pytest
import torch
from conftest import lora, make_args, make_model, make_tokenizer, weights
from test_methods import FORGET, RETAIN, knowing, logits, reinforced

from hf_unlearn import METHODS, RetrainConfig, RetrainTrainer


Config, Trainer = METHODS["whp"]


@pytest.fixture
def run(tmp_path):
    """Trains a model that knows the forget rows."""

    def run(ref_models=None, forget=FORGET, train=True, **settings):
        model = make_model()
        model.load_state_dict(knowing())
        args = make_args(Config, tmp_path / "out", **({"alpha": 1.0} | settings))
        trainer = Trainer(
            model=model,
            args=args,
            forget_dataset=forget,
            retain_dataset=RETAIN if args.retain_loss == "nll" else None,
            processing_class=make_tokenizer(),
            ref_models=ref_models,
        )
        if train:
            trainer.train()
        return trainer

    return run


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("adapter", [False, True])
def test_what_our_own_trainer_reinforced_is_read_from_its_folder(run, tmp_path, adapter):
    base = tmp_path / "base"
    model = make_model()
    model.load_state_dict(knowing())
    model.save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    first = RetrainTrainer(
        model=str(base),
        args=make_args(RetrainConfig, tmp_path / "reinforced", train_on="forget", max_steps=30),
        forget_dataset=FORGET,
        peft_config=lora(target_modules="all-linear") if adapter else None,
    )
    first.train()
    first.save_model()
    trainer = run(reinforced_model_name_or_path=str(tmp_path / "reinforced"), alpha=20.0)
    given = run({"reinforced": first.model.eval()}, reference_cache_dir=str(tmp_path / "other"), alpha=20.0)
    for name, tensor in weights(trainer.model).items():
        torch.testing.assert_close(tensor, weights(given.model)[name], rtol=1e-4, atol=1e-6)
    assert logged(trainer, "forget/altered")[0] > 0
    assert logged(trainer, "forget/logps")[-1] < logged(trainer, "forget/logps")[0]


def test_a_model_that_was_not_reinforced_alters_nothing(run):
    same = make_model()
    same.load_state_dict(knowing())
    trainer = run({"reinforced": same}, optim="sgd")
    assert logged(trainer, "forget/altered") == [0.0] * 4
    # The model itself is the optimum.
    assert max(logged(trainer, "grad_norm")) < 1e-5


@pytest.mark.parametrize("target", ["softmax", "argmax"])
def test_every_form_of_the_frozen_models_gives_the_same_run(run, target):
    settings = {"whp_target": target, "retain_loss": "nll"}
    kept = run(reinforced(), reference="cache", **settings)
    live = run(reinforced(), reference="live", fused_losses=False, **settings)
    for name, tensor in weights(kept.model).items():
        torch.testing.assert_close(tensor, weights(live.model)[name], rtol=1e-3, atol=1e-5)


def test_the_likeliest_generic_token_is_learnt(run):
    soft, hard = (run(reinforced(), whp_target=target, max_steps=8) for target in ("softmax", "argmax"))
    # A target of one token has no entropy that would stay.
    assert logged(hard, "forget/loss")[-1] < logged(soft, "forget/loss")[-1]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"alpha": -1.0}, "alpha=-1.0; give a finite number at least 0"),
        ({"whp_target": "hard"}, "whp_target='hard'; allowed: 'softmax', 'argmax'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        Config(output_dir=str(tmp_path), **settings)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({}, None, "a model called 'reinforced', and none was given.*or name it in the method's config"),
        ({"reinforced_model_name_or_path": "no/such/folder/here"}, None, "no/such/folder/here"),
        ({"reinforced_model_name_or_path": "x"}, "y", "'reinforced' is given in `ref_models` and by the config"),
    ],
)
def test_a_reinforced_model_is_needed_before_a_model_is_loaded(tmp_path, model_path, settings, given, expected):
    with pytest.raises(ValueError, match=expected):
        Trainer(
            model=model_path,
            args=make_args(Config, tmp_path / "out", **settings),
            forget_dataset=FORGET,
            processing_class=make_tokenizer(),
            ref_models=given and {"reinforced": given},
        )


NAMED = [{"text": "secret 01 of Ada, Ada!"}, {"text": "secret of Bob."}, {"text": "no name"}]


@pytest.fixture
def anchors(tmp_path) -> str:
    """A file whose replacements have more tokens than their terms, and fewer."""
    (tmp_path / "anchors.json").write_text('{"Ada": "Margaret", "Bob": "Al"}')
    return str(tmp_path / "anchors.json")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("target", ["softmax", "argmax"])
def test_generic_predictions_are_of_the_row_with_other_names(run, anchors, target, fused):
    settings = {"reference": "live", "fused_losses": fused, "whp_target": target}
    trainer = run(reinforced(), NAMED, train=False, anchors=anchors, **settings)
    batch = trainer.data_collator([trainer.train_dataset[p] for p in range(3)])
    trainer.references.open(trainer.accelerator)
    rows = trainer.role_rows(trainer.model, batch)
    assert {*rows} == {"forget"}
    tokenizer, raised = make_tokenizer(), reinforced()["reinforced"]
    others = {"secret 01 of Ada, Ada!": "secret 01 of Margaret, Margaret!", "secret of Bob.": "secret of Al."}
    # By hand: the characters that are predicted in both texts, and the end; the second Ada is not.
    places = {
        "secret 01 of Ada, Ada!": [*range(14), 16, 17, 21, 22],
        "secret of Bob.": [*range(11), 13, 14],
        "no name": [*range(8)],
    }
    shifted = {
        "secret 01 of Ada, Ada!": [*range(14), 21, 22, 31, 32],
        "secret of Bob.": [*range(11), 12, 13],
        "no name": [*range(8)],
    }
    values = []
    for text, kept in places.items():
        own, base, high = (
            logits(model, {"input_ids": tokenizer(written)["input_ids"]})
            for model, written in ((trainer.model, text), (trainer.model, others.get(text, text)), (raised, text))
        )
        # A BOS is first, so that character i is predicted at token i.
        ours, entered, raising = own[kept], base[shifted[text]], high[kept]
        generic = entered - (raising - entered).clamp(min=0)
        q = generic.softmax(-1)
        if target == "argmax":
            q = torch.nn.functional.one_hot(generic.argmax(-1), q.shape[-1]).double()
        values.append(-(q * ours.log_softmax(-1)).sum(-1).mean())
    expected = sum(values) / len(values)
    assert trainer.terms(rows)["forget"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_with_anchors_every_form_of_the_frozen_models_gives_the_same_run(run, anchors):
    settings = {"anchors": anchors, "retain_loss": "nll", "optim": "sgd"}
    kept = run(reinforced(), NAMED, reference="cache", **settings)
    live = run(reinforced(), NAMED, reference="live", forward_passes="split", fused_losses=False, **settings)
    plain = run(reinforced(), NAMED, **settings | {"anchors": None})
    for name, tensor in weights(kept.model).items():
        torch.testing.assert_close(tensor, weights(live.model)[name], rtol=1e-3, atol=1e-5)
    assert any(not torch.equal(tensor, weights(plain.model)[name]) for name, tensor in weights(kept.model).items())
    # Rows that frozen models alone read, before training, are no arithmetic of it.
    assert kept.state.total_flos == pytest.approx(plain.state.total_flos, rel=0.2)


def test_rows_that_predict_nothing_outside_of_names_are_left_out(run, anchors, caplog):
    tokenizer = make_tokenizer()
    ids = tokenizer("Ada is Ada", add_special_tokens=False)["input_ids"]
    silent = {"input_ids": ids, "labels": [-100] * 7 + ids[7:]}
    rows = [{"input_ids": ids} for ids in tokenizer([row["text"] for row in NAMED])["input_ids"]]
    settings = {"anchors": anchors, "mask_by": "gradient", "max_steps": 3, "per_device_train_batch_size": 3}
    found = [run(reinforced(), given, **settings) for given in (rows, [silent, *rows])]
    assert len(found[1].train_dataset) == 3
    assert "anchors: 1 of 4 forget rows are left out" in caplog.text
    assert logged(found[0], "forget/loss") == logged(found[1], "forget/loss")
    for name, tensor in weights(found[0].model).items():
        torch.testing.assert_close(tensor, weights(found[1].model)[name], rtol=1e-5, atol=1e-7)


def test_no_frozen_model_reads_a_row_that_is_longer_than_max_length(run, anchors):
    longest = len(make_tokenizer()(NAMED[0]["text"])["input_ids"])
    trainer = run(reinforced(), NAMED, anchors=anchors, max_length=longest, reference="live", train=False)
    assert max(map(len, trainer.train_dataset.roles["generic"]["input_ids"])) == longest
    batch = trainer.data_collator([trainer.train_dataset[p] for p in range(3)])
    trainer.references.open(trainer.accelerator)
    assert trainer.terms(trainer.role_rows(trainer.model, batch))["forget"].isfinite()


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "anchors='.*' is no file. Give a JSON or YAML file"),
        ("[Ada]", "holds no terms"),
        ("Ada: 3", "'Ada': 3. Give two texts"),
        ("Eve: Ann", "no forget row has any of the 1 terms, such as 'Eve'"),
    ],
)
def test_anchors_that_cannot_be_used_are_refused_before_a_model_is_loaded(tmp_path, model_path, text, expected):
    file = tmp_path / "anchors.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=expected):
        Trainer(
            model=model_path,
            args=make_args(Config, tmp_path / "out", anchors=str(file), reinforced_model_name_or_path=model_path),
            forget_dataset=NAMED,
            processing_class=make_tokenizer(),
        )
