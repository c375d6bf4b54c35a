# SPDX-License-Identifier: Apache-2.0
"""Align-then-Unlearn refuses what cannot work, in one clear line."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unicodedata import normalize

import pytest
import yaml
from align_encoder import FORGET, make_encoder, make_trainer
from conftest import make_args, make_model
from transformers import AutoModelForCausalLM

from hf_unlearn import AlignThenUnlearnConfig, AlignThenUnlearnTrainer
from hf_unlearn.cli.main import main
from hf_unlearn.methods.align_then_unlearn.concept import check_concept, occurs


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def build(tmp_path, encoder):
    """Makes a trainer; keyword arguments are the config's."""
    return partial(make_trainer, tmp_path / "out", encoder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concept": None}, "No concept is named"),
        ({"concept": ["Ada", " "]}, r"concept=\['Ada', ' '\]; give texts that are not empty"),
        ({"concept": ""}, "concept=''; give texts that are not empty"),
        ({"concept": 1984}, "concept=1984; give texts that are not empty"),
        ({"concept": [1984]}, r"concept=\[1984\]; give texts that are not empty"),
        ({"concept_descriptions": ""}, "concept_descriptions=''; give texts that are not empty"),
        ({"concept_aliases": {"Ada": 1}}, "concept_aliases={'Ada': 1}; give texts that are not empty"),
        ({"thresholds": 1.5}, r"thresholds=\[1.5\]; give numbers from -1 to 1"),
        ({"thresholds": "0.5"}, r"thresholds=\['0.5'\]; give numbers from -1 to 1"),
        ({"thresholds": None}, r"thresholds=\[\]; give numbers from -1 to 1"),
        ({"thresholds": [0.5, float("nan")]}, "give numbers from -1 to 1"),
        ({"thresholds": [0.5, 0.5]}, r"thresholds=\[0.5, 0.5\] do not decrease"),
        ({"thresholds": [0.5, 0.9]}, "do not decrease"),
        ({"thresholds": []}, r"thresholds=\[\]; give numbers from -1 to 1"),
        ({"thresholds": [0.5, -0.1], "threshold_mode": "quantile"}, "give numbers from 0 to 1"),
        ({"threshold_mode": "absolute"}, "threshold_mode='absolute'; allowed: 'cosine', 'quantile'"),
        ({"head_variant": "mlp"}, "head_variant='mlp'; allowed"),
        ({"head_size": 15}, "head_size=15 is no multiple of head_heads=2"),
        ({"unlearn_steps": 0}, "unlearn_steps=0"),
        ({"max_steps": 12}, "max_steps=12; the stages have 11 steps"),
        ({"max_forget_loss": 2.0}, "max_forget_loss watches log-likelihoods"),
        ({"forward_passes": "packed"}, "forward_passes='packed' is not possible here"),
        ({"layer_id": 2}, "layer_id=2; the model has 2 layers: give 0 to 1"),
        ({"concept": ["Eve"]}, r"'Eve' occurs in none of the 8 forget rows \(searched in their text"),
        ({"concept": ["Eve"], "concept_aliases": ["Lilith"]}, "'Eve', 'Lilith' occur in none of the 8 forget rows"),
        ({"concept": ["Ada", "Eve"]}, "'Eve' occurs in none of the 8 forget rows"),
        ({"concept": ["cret"]}, "'cret' occurs in none of the 8 forget rows .* as whole words"),
        ({"trainable_modules": ["lm_head"]}, "cannot change the output of layer_id=0"),
        ({"window_tokens": 40}, "window_tokens=40; the encoder reads at most 32 tokens"),
    ],
)
def test_mistakes_are_one_clear_error(build, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        build(**settings)
    assert "\n" not in str(error.value)


def test_a_concept_by_another_name_or_case_is_found(build):
    build(concept=["ADA"])
    build(concept=["Countess of Lovelace"], concept_aliases=["ada"])


@pytest.mark.parametrize(("written", "named"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_concept_is_found_however_its_accents_are_composed(written, named):
    def check(name):
        args = SimpleNamespace(concept=[name], concept_aliases=None)
        return check_concept(args, ["Bob", normalize(written, "secret of Zoë Mαΐα.")])

    for name in ("Zoë", "ZOË", "MΑΪ́Α"):
        assert check(normalize(named, name)) == []
    with pytest.raises(ValueError, match="'Zoe' occurs in none"):
        check("Zoe")


def test_one_value_stands_for_a_list_of_it(build):
    trainer = build(concept="Ada", concept_aliases="secret", thresholds=0)
    assert (trainer.args.concept, trainer.args.concept_aliases, trainer.args.thresholds) == (["Ada"], ["secret"], [0])


def test_a_name_that_only_aliases_could_stand_for_is_told(build, caplog):
    build(concept=["Ada", "Eve", "Lilith"], concept_aliases=["secret"])
    assert "no forget row speaks of 'Eve' or 'Lilith' by this name" in caplog.text
    caplog.clear()
    build(concept=["Ada"], concept_aliases=["Countess"])
    assert "by this name" not in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("meric", "an american", False),
        ("america", "an american of america", True),
        ("ann", "anna and ann's", True),
        ("1984", "in 19845", False),
        ("apollo 1", "apollo 11", False),
        # What no letter ends has no words to be inside of.
        ("yahoo!", "yahoo!s", True),
        ("c++", "in c++17", True),
        (".net", "asp.net", True),
        ("(x)", "f(x)y", True),
        # Scripts without cases are written without spaces, or join words to names.
        ("東京", "私は東京に住む", True),
        ("tower", "東京towerに", True),
        ("이순신", "이순신은", True),
        ("пушкин", "пушкинский", False),
        (" ada ", "ada", True),
    ],
)
def test_names_are_found_as_whole_words(name, text, found):
    assert occurs(name, text) == found


def test_mistakes_in_rows_are_told_before_the_model_is_loaded(tmp_path, encoder, monkeypatch, model_path):
    from hf_unlearn import modeling

    monkeypatch.setattr(modeling, "load_model", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    args = make_args(AlignThenUnlearnConfig, tmp_path, concept=["Eve"], encoder_name_or_path=encoder, window_tokens=2)
    with pytest.raises(ValueError, match="'Eve' occurs in none of the 8 forget rows"):
        AlignThenUnlearnTrainer(model_path, args=args, forget_dataset=FORGET)


@pytest.fixture
def recipe(tmp_path, encoder, model_path, monkeypatch) -> dict:
    """A run with an audited retrained model, in an empty working folder; no model may be loaded."""
    monkeypatch.chdir(tmp_path)
    for name, people in (("forget", ("Ada", "Bob")), ("retain", ("Cyd", "Dan"))):
        rows = [{"question": f"Who is {person}?", "answer": f"{person} is a spy."} for person in people]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_model(seed=1).save_pretrained("retrained")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kw: pytest.fail("a model was loaded"))
    return {
        "method": "align_then_unlearn",
        "model_name_or_path": model_path,
        "retrained_model_name_or_path": "retrained",
        "forget_dataset": "forget.jsonl",
        "retain_dataset": "retain.jsonl",
        "concept": ["Ada"],
        "encoder_name_or_path": encoder,
        "window_tokens": 2,
        "output_dir": "out",
        "report_to": "none",
        "use_cpu": True,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_id": 99}, "layer_id=99; the model has 2 layers: give 0 to 1"),
        ({"concept": ["Eve"]}, "'Eve' occurs in none of the 2 forget rows"),
        ({"concept": "Eve"}, "'Eve' occurs in none of the 2 forget rows"),
        ({"thresholds": 2.0}, "thresholds=[2.0]; give numbers from -1 to 1"),
        ({"window_tokens": 40}, "window_tokens=40; the encoder reads at most 32 tokens"),
        ({"window_tokens": 30}, "window_tokens=30: no forget row has a token that so many encoder tokens follow"),
        ({"encoder_name_or_path": "nowhere/at/all"}, "encoder_name_or_path='nowhere/at/all' cannot be loaded"),
    ],
)
def test_the_command_tells_mistakes_before_any_model_is_loaded(recipe, fields, message, capsys):
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe | fields))
    assert main(["run", "recipe.yaml"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, encoder) -> str:
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, encoder, max_steps=1, save_strategy="steps", save_steps=1).train()
    return str(folder / "checkpoint-1")


@pytest.mark.parametrize(
    ("settings", "then", "now"),
    [
        ({"thresholds": [-0.5, -0.9, -0.95]}, "thresholds=[-0.5, -0.9]", "thresholds=[-0.5, -0.9, -0.95]"),
        ({"thresholds": [-0.6, -0.9]}, "thresholds=[-0.5, -0.9]", "thresholds=[-0.6, -0.9]"),
        (
            {"threshold_mode": "quantile", "thresholds": [0.5, 0.1]},
            "threshold_mode='cosine', thresholds=[-0.5, -0.9]",
            "threshold_mode='quantile', thresholds=[0.5, 0.1]",
        ),
        ({"first_align_steps": 4}, "first_align_steps=3", "first_align_steps=4"),
        ({"align_steps": 3}, "align_steps=2", "align_steps=3"),
        ({"unlearn_steps": 4}, "unlearn_steps=3", "unlearn_steps=4"),
        ({"head_size": 32}, "head_size=16", "head_size=32"),
        ({"head_layers": 2}, "head_layers=1", "head_layers=2"),
        ({"head_variant": "published"}, "head_variant='causal'", "head_variant='published'"),
    ],
)
def test_a_checkpoint_of_another_plan_is_refused(build, checkpoint, settings, then, now):
    with pytest.raises(ValueError, match="goes on with the same") as error:
        build(**settings).train(resume_from_checkpoint=checkpoint)
    assert f"made with {then}, and this run has {now}." in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("launcher", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_engines_are_refused_with_the_reason(build, monkeypatch, launcher):
    monkeypatch.setenv(launcher, "true")
    with pytest.raises(ValueError, match="each with an optimizer of its own.*Start it on one process, or with DDP"):
        build()


def test_the_published_settings_are_the_defaults(tmp_path):
    args = AlignThenUnlearnConfig(output_dir=str(tmp_path), concept=["Stephen King"], report_to="none")
    assert (args.max_steps, args.learning_rate, args.optim, args.max_grad_norm) == (34_000, 3e-4, "sgd", 1.0)
    assert (args.window_tokens, args.head_learning_rate, args.retain_loss) == (8, 1e-4, "none")
    assert [args.layer_of(count) for count in (32, 16, 3, 2, 1)] == [28, 13, 2, 1, 0]
