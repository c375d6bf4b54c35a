# SPDX-License-Identifier: Apache-2.0
"""Align-then-Unlearn on two processes gives model and head of one process on the same rows, whose head DDP does not
know."""

import pytest
import torch
from align_encoder import make_encoder
from conftest import make_model, make_tokenizer
from safetensors.torch import load_file
from test_distributed import launch, saved


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings of a run, from a model and an encoder on disk."""
    folder = tmp_path_factory.mktemp("start")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    encoder = make_encoder(tmp_path_factory.mktemp("encoder"))

    def of(adapter: str, **args) -> dict:
        own = {
            "concept": ["Ada"],
            "encoder_name_or_path": encoder,
            "window_tokens": 2,
            "layer_id": 0,
            "head_size": 16,
            "head_layers": 1,
            "head_heads": 2,
            "head_dropout": 0.0,
            "head_learning_rate": 1e-2,
            "first_align_steps": 3,
            "align_steps": 2,
            "unlearn_steps": 3,
            "thresholds": [-0.5, -0.9],
            "max_steps": 11,
            "learning_rate": 0.5,
            "max_grad_norm": 0.5,
            "per_device_eval_batch_size": 2,
        }
        return {"method": "align_then_unlearn", "model": str(folder), "adapter": adapter, "args": own | args}

    return of


@pytest.mark.parametrize(("adapter", "retain_loss"), [("none", "kl"), ("fresh", "kl")])
def test_two_processes_train_the_model_and_the_head_of_one(settings, tmp_path, adapter, retain_loss):
    runs = {}
    for processes in (1, 2):
        size = {"per_device_train_batch_size": 4 // processes, "retain_loss": retain_loss}
        runs[processes] = launch(settings(adapter, **size), tmp_path / str(processes), processes)
    assert (runs[2]["world"], runs[2]["wrapper"]) == (2, "DistributedDataParallel")
    logs = [[entry for entry in runs[n]["log"] if "loss" in entry] for n in (1, 2)]
    assert [("align/loss" in entry) for entry in logs[0]] == [True] * 3 + [False] * 3 + [True] * 2 + [False] * 3
    for one, two in zip(*logs, strict=True):
        for key in (key for key in one if key.endswith("loss")):
            assert two[key] == pytest.approx(one[key], rel=1e-3, abs=2e-5), key
    weights = [saved(tmp_path / str(n)) for n in (1, 2)]
    heads = [load_file(tmp_path / str(n) / "align_head" / "model.safetensors") for n in (1, 2)]
    for one, two in (weights, heads):
        assert one.keys() == two.keys()
        for name in (name for name in one if "in_proj_bias" not in name):
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)
