# SPDX-License-Identifier: Apache-2.0
"""Weights put together with another model's: the mean, what it brings back, what is left as it was, and refusals."""

import json

import pytest
import torch
from conftest import make_model
from known import files, model, same, saved, state, tokenizer

from hf_unlearn.audit.base import Context
from hf_unlearn.audit.quantize.arguments import QuantizeArguments
from hf_unlearn.audit.quantize.measure import QuantizeAudit
from hf_unlearn.audit.quantize.merge import merged_with
from hf_unlearn.cli.main import main
from hf_unlearn.data.qa import QAFormat


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    paths = {name: saved(one, folder / name) for name, one in (("o", model()), ("r", model(knows=False)))}
    paths["u"] = saved(turned(model()), folder / "u")
    return folder, paths, files(folder)


def untaught(seed: int = 0, layers: int = 2, tie: bool = False):
    """Of random weights."""
    return make_model(seed=seed, vocab_size=len(tokenizer()), layers=layers, hidden_size=64, tie=tie)


def turned(one):
    """Answers nothing: its head is taken times -0.5, which a mean with the original's undoes."""
    one.lm_head.weight.data.mul_(-0.5)
    return one


def measured(place, one, **more):
    _, paths, rows = place
    fields = {"model_name_or_path": paths["u"], "original_model_name_or_path": paths["o"], "formats": [], **rows}
    fields |= {"retrained_model_name_or_path": paths["r"], "group_by": "person", "max_length": 64, "merge": paths["o"]}
    args, kind = QuantizeArguments(**{**fields, **more}), QuantizeAudit()
    from hf_unlearn.modeling import load_checkpoint

    context = Context(load=load_checkpoint, progress=False)
    return kind.measure(one, args, kind.prepare(args, QAFormat()), context)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_is_that_of_all_weights(dtype):
    one, other = untaught(tie=True).to(dtype), untaught(seed=1, tie=True)
    before = state(one)
    theirs = dict(other.named_parameters())
    wanted = {name: 0.7 * p.detach().double() + 0.3 * theirs[name].detach() for name, p in one.named_parameters()}
    with merged_with(one, other, 0.3, "m") as share:
        for name, parameter in one.named_parameters():
            assert torch.allclose(parameter.detach().float(), wanted[name].float(), rtol=0.01, atol=1e-6)
        assert share > 0.9
    assert same(before, state(one))
    before = state(one)
    with pytest.raises(ZeroDivisionError), merged_with(one, other, 0.3, "m"):
        raise ZeroDivisionError
    assert same(before, state(one))
    with pytest.raises(ValueError, match="merge='m' and the model differ in their weights"):
        merged_with(one, untaught(layers=1), 0.3, "m").__enter__()


def test_what_the_original_gives_back_is_found(place):
    u, r, o = (measured(place, one) for one in (turned(model()), model(knows=False), model()))
    assert [one.family for one in u.measured] == ["merge0.25", "merge0.5"]
    # The original merged with itself is the original: nothing has failed.
    assert [one.more["changed"] for one in o.measured] == [0, 0]
    assert o.measured[0].tested == o.before.tested
    found = u.compare(r, o)
    assert found["merge0.25/probability/remaining"].value < 0.1
    back = found["merge0.5/probability/remaining"]
    assert back.details["remaining_before"] < 0.1
    assert back.value > 0.25
    assert found["merge0.5/exact_match/remaining"].value == 1
    assert back.details["retrained_after"] == pytest.approx(
        sum(r.measured[1].tested.values("probability")) / 36, abs=1e-6
    )
    assert found["worst/remaining"].details["verdict"] == "suppressed"


def test_a_merge_that_changes_nothing_says_nothing(place, tmp_path):
    same_one = saved(turned(model()), tmp_path / "copy")
    three = (turned(model()), model(knows=False), model())
    u, r, o = (measured(place, one, merge=same_one, merge_weights=[0.05]) for one in three)
    result = u.compare(r, o)["merge0.05/probability/remaining"]
    assert result.value is None
    assert result.details["reason"] == "the attack had no effect: merge0.05 changed no weight"


def command(place, tmp_path, *words):
    _, paths, rows = place
    named = {"model_name_or_path": paths["u"], "original_model_name_or_path": paths["o"], **rows, "max_length": "64"}
    told = [word for field, value in named.items() for word in (f"--{field}", value)]
    return main(["audit", "quantize", *told, "--output_dir", str(tmp_path / "out"), *words])


def test_another_architecture_is_refused_before_a_model_is_loaded(place, unloaded, tmp_path, capsys):
    other = saved(untaught(layers=1), tmp_path / "small")
    for words, message in (
        (["--merge", other], "differ in their weights (model.layers.1."),
        (["--merge", "nowhere/m"], "nowhere/m"),
        (["--merge", place[1]["o"], "--merge_weights", "1.5"], "merge_weights: 1.5; give shares between 0 and 1"),
    ):
        assert command(place, tmp_path, *words) == 2
        told = capsys.readouterr().err
        assert message in told
        assert not (tmp_path / "out").exists()
    config = tmp_path / "small" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    assert command(place, tmp_path, "--merge", other) == 2
    assert "quantised already (gptq)" in capsys.readouterr().err
    with pytest.raises(ValueError, match="requires `merge_weights`"):
        QuantizeArguments(model_name_or_path="m", forget_dataset="f", merge="o", merge_weights=[])


def test_what_is_kept_is_of_the_model_merged_with(place, tmp_path):
    other = saved(untaught(seed=1), tmp_path / "sibling")
    found = []
    for _ in range(2):
        assert command(place, tmp_path, "--merge", other, "--merge_weights", "0.5", "--formats", "nf4") == 0
        held = json.loads((tmp_path / "out" / "quantize.json").read_text())["models"][-1]["metrics"]
        found.append(held["merge0.5/probability/after"]["value"])
        saved(model(), tmp_path / "sibling")
    assert found[0] != found[1]
