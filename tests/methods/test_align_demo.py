# SPDX-License-Identifier: Apache-2.0
"""Align-then-Unlearn in the embedded world: its encoder, and the recipe from start to report."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from hf_unlearn.cli.unlearn import unlearn
from hf_unlearn.data.benchmarks import resolve_model
from hf_unlearn.data.worlds.people import build_world
from hf_unlearn.methods.align_then_unlearn.encoder import TextEncoder
from hf_unlearn.runs.recipe import parse_recipe


RECIPE = ROOT / "recipes" / "demo" / "align_then_unlearn.yaml"


def test_the_worlds_encoder_knows_words_and_nobody():
    encoder = TextEncoder("world/encoder")
    assert resolve_model("world/encoder") == encoder.model.config._name_or_path == resolve_model("world/encoder")
    rows = build_world(progress=False).dataset("forget")
    one, other = rows[0]["person"], rows[8]["person"]
    texts = [one, other, f"is {one} who", f"is {other} who", rows[0]["answer"].rsplit(" ", 1)[1], "is that who"]
    vectors = F.normalize(encoder.embed_texts(texts), dim=-1)
    near = vectors @ vectors.t()
    # Half of the words of a window are the name's.
    assert 0.5 < near[0, 2] < 0.9
    assert 0.5 < near[1, 3] < 0.9
    assert near[0, [1, 3, 4, 5]].abs().max() < 0.4
    ids = encoder.tokenizer([text for row in rows for text in (row["question"], row["answer"])])["input_ids"]
    assert not any(encoder.tokenizer.unk_token_id in row for row in ids)
    assert torch.isfinite(vectors).all()


@pytest.mark.slow
def test_the_concept_goes_and_the_others_stay(tmp_path):
    words = ["--output_dir", str(tmp_path / "run"), "--disable_tqdm", "true", "--eval_strategy", "no"]
    report = unlearn(parse_recipe(["--config", str(RECIPE), *words, "--eval_on_start", "false"]), show=False)
    metrics = {
        model["kind"]: {name: one["value"] for name, one in model["metrics"].items()} for model in report["models"]
    }
    target, ours = metrics["target"], metrics["unlearned"]
    assert target["forget/exact_match"] == 1
    assert ours["forget/exact_match"] <= 0.1
    # Never trained on.
    assert ours["forget_paraphrased/exact_match"] <= 0.1 < target["forget_paraphrased/exact_match"]
    assert ours["retain/exact_match"] >= 0.97
    assert ours["model_utility"] >= target["model_utility"] - 0.02
    assert (tmp_path / "run" / "align_head" / "model.safetensors").is_file()
