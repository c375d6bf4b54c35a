# SPDX-License-Identifier: Apache-2.0
"""Formats against slow loops and bitsandbytes, and the layers that they are put into."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from conftest import lora, make_model

from hf_unlearn.audit.quantize.formats import FORMATS, FP4, NF4, pruned
from hf_unlearn.audit.quantize.layers import bitsandbytes_layers, changed_weights, linear_layers, weight_of


def weight(rows: int = 24, columns: int = 40, seed: int = 0) -> torch.Tensor:
    # 960 values: 15 blocks of 64; 24 x 37 leaves a shorter one.
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


def slow(values: np.ndarray, levels, block: int = 64) -> np.ndarray:
    """The nearest level of each value over its block's largest, one by one."""
    flat, found = values.astype(np.float64).flatten(), []
    for start in range(0, len(flat), block):
        part = flat[start : start + block]
        largest = np.abs(part).max()
        found += [min(levels, key=lambda level: abs(level - v / largest)) * largest for v in part]
    return np.array(found).reshape(values.shape)


@pytest.mark.parametrize("columns", [40, 37])
@pytest.mark.parametrize(("name", "levels"), [("nf4", NF4), ("fp4", (*FP4, *(-v for v in FP4)))])
def test_blocks_are_the_nearest_levels(name, levels, columns):
    one = weight(columns=columns)
    found = FORMATS[name](one)
    assert found.numpy() == pytest.approx(slow(one.numpy(), levels), abs=1e-6)
    assert len(set(np.abs(np.array(levels)).round(6))) <= 16


@pytest.mark.parametrize(("name", "largest"), [("int8", 127), ("int4", 7)])
def test_rows_have_their_own_scale(name, largest):
    one = weight()
    one[3] *= 100
    found = FORMATS[name](one)
    for row, back in zip(one, found, strict=True):
        scale = row.abs().max().item() / largest
        assert (back / scale).tolist() == pytest.approx((row / scale).round().tolist(), abs=1e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_of_its_own_values_changes_nothing(name):
    once = FORMATS[name](weight())
    assert not torch.equal(once, weight())
    assert torch.equal(FORMATS[name](once), once)
    assert FORMATS[name].same_code(once, weight()) == 1
    assert FORMATS[name](torch.zeros(4, 4)).tolist() == torch.zeros(4, 4).tolist()
    assert FORMATS[name](weight().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", FORMATS)
def test_codes_of_another_model_are_others(name):
    moved = weight() * (1 + 0.5 * weight(seed=1).sign())
    assert FORMATS[name].same_code(weight(), moved) < 0.9


@pytest.mark.parametrize("shape", [(24, 64), (24, 37)])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_values_are_those_of_bitsandbytes(name, shape):
    functional = pytest.importorskip("bitsandbytes.functional")
    one = weight(*shape)
    theirs = functional.dequantize_4bit(*functional.quantize_4bit(one, blocksize=64, quant_type=name))
    assert torch.equal(FORMATS[name](one), theirs)


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8"])
def test_layers_of_bitsandbytes_compute_nearly_the_same(name):
    pytest.importorskip("bitsandbytes")
    model, ids = make_model(hidden_size=64), torch.arange(4, 40)[None]
    layers = linear_layers(model)
    plain = model(ids).logits
    with torch.no_grad():
        with changed_weights(layers, FORMATS[name]):
            simulated = model(ids).logits
        with bitsandbytes_layers(model, layers, name) as put:
            assert put == 1
            real = model(ids).logits
    # Its arithmetic differs, and with 8 bits activations are rounded too.
    assert (real - simulated).abs().max() < 0.5 * (simulated - plain).abs().max()
    assert torch.equal(model(ids).logits, plain)


def test_pruning_takes_the_smallest_of_each_matrix():
    found = pruned(weight(), 0.25)
    gone = found == 0
    assert gone.sum() == 240
    assert weight().abs()[gone].max() <= weight().abs()[~gone].min()


# Layers


def test_every_linear_layer_but_the_head_is_changed_and_comes_back():
    for tie in (False, True):
        model = make_model(tie=tie)
        names = {*linear_layers(model)}
        assert len(names) == 14
        assert "lm_head" not in names
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with suppress(KeyError), changed_weights(linear_layers(model), FORMATS["nf4"]) as share:
            assert share > 0.9
            changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
            assert changed == {f"{name}.weight" for name in names}
            raise KeyError
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modules_are_skipped_by_name():
    model = make_model()
    assert len(linear_layers(model, ["down_proj"])) == 12
    assert len(linear_layers(model, ["layers.1", "q_proj"])) == 6
    with pytest.raises(ValueError, match=r"skip: no module of the model is called 'down'"):
        linear_layers(model, ["down"])


def test_what_a_wrapper_brings_is_not_served_in_the_format():
    model = make_model()
    model.unlearned_by = torch.nn.Linear(4, 4)
    assert "unlearned_by" not in linear_layers(model)


def test_gpt2_has_its_layers_the_other_way_round():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50))
    layers = linear_layers(model)
    assert [*layers] == [
        f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    layer = layers["transformer.h.0.attn.c_attn"]
    assert weight_of(layer).shape == (96, 32)
    before = layer.weight.detach().clone()
    with changed_weights(layers, FORMATS["int8"]):
        assert torch.equal(layer.weight, FORMATS["int8"](before.T).T)
    assert torch.equal(layer.weight, before)


def test_an_adapter_is_in_the_weights_that_are_changed():
    from peft import get_peft_model

    from hf_unlearn.audit.robustness.weights import merged

    model = get_peft_model(make_model(), lora(init_lora_weights=False))
    one = merged(model)
    assert not any("lora" in name for name in linear_layers(one))
    assert len(linear_layers(one)) == 14
    ids = torch.arange(4, 40)[None]
    assert torch.allclose(one(ids).logits, model(ids).logits, atol=1e-5)
    plain = make_model()
    assert merged(plain) is plain


def test_an_adapter_that_changes_no_weights_is_refused():
    from peft import PromptTuningConfig, get_peft_model

    from hf_unlearn.audit.robustness.weights import merged

    model = get_peft_model(make_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match=r"adapter \(PROMPT_TUNING\) is no change of its weights"):
        merged(model)
