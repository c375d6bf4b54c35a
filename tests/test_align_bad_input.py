# SPDX-License-Identifier: Apache-2.0
"""Align-then-Unlearn refuses what cannot work, in one clear line."""

from functools import partial

import pytest
from align_encoder import FORGET, make_encoder, make_trainer
from conftest import make_args

from hf_unlearn import AlignThenUnlearnConfig, AlignThenUnlearnTrainer


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


def test_mistakes_in_rows_are_told_before_the_model_is_loaded(tmp_path, encoder, monkeypatch, model_path):
    from hf_unlearn import modeling

    monkeypatch.setattr(modeling, "load_model", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    args = make_args(AlignThenUnlearnConfig, tmp_path, concept=["Eve"], encoder_name_or_path=encoder, window_tokens=2)
    with pytest.raises(ValueError, match="'Eve' occurs in none of the 8 forget rows"):
        AlignThenUnlearnTrainer(model_path, args=args, forget_dataset=FORGET)


def test_sharded_engines_are_refused_with_the_reason(build, monkeypatch):
    monkeypatch.setattr("hf_unlearn.methods.align_then_unlearn.asks_fsdp", lambda args: True)
    with pytest.raises(ValueError, match="each with an optimizer of its own.*Start it on one process, or with DDP"):
        build()


def test_the_published_settings_are_the_defaults(tmp_path):
    args = AlignThenUnlearnConfig(output_dir=str(tmp_path), concept=["Stephen King"], report_to="none")
    assert (args.max_steps, args.learning_rate, args.optim, args.max_grad_norm) == (34_000, 3e-4, "sgd", 1.0)
    assert (args.window_tokens, args.head_learning_rate, args.retain_loss) == (8, 1e-4, "none")
    assert [args.layer_of(count) for count in (32, 16, 3, 2, 1)] == [28, 13, 2, 1, 0]
