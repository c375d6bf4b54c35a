# SPDX-License-Identifier: Apache-2.0
"""How far weights moved, of full weights and of adapters."""

import copy

import numpy as np
import pytest
import torch
from conftest import lora, make_model, weights
from zoo import small

from hf_unlearn.audit.cka import debiased_cka, linear_cka
from hf_unlearn.audit.representation.similarity import pca_shift
from hf_unlearn.audit.representation.vectors import compared, read_vector, value_vectors
from hf_unlearn.audit.representation.weights import matrices, movement
from hf_unlearn.models.activations import layers_of


def test_the_same_weights_did_not_move():
    found = movement(make_model(), make_model())
    assert (found["relative_change"], found["same_code"], found["stable_rank"]) == (0, 1, None)
    assert found["n"] == sum(p.numel() for p in make_model().parameters() if p.ndim > 1)


def test_a_change_is_measured_where_it_is():
    original, model = make_model(layers=3), make_model(layers=3)
    weight = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        # Rank 2, with singular values 3 and 1.
        u, v = (
            torch.linalg.qr(torch.randn(n, 2, generator=torch.Generator().manual_seed(0)))[0] for n in weight.shape
        )
        weight += u @ torch.diag(torch.tensor([3.0, 1.0])) @ v.T
    found = movement(model, original)
    norm = sum(float(p.double().square().sum()) for p in original.parameters() if p.ndim > 1)
    assert found["relative_change"] == pytest.approx((10 / norm) ** 0.5, rel=1e-5)
    assert found["stable_rank"] == pytest.approx(10 / 9, rel=1e-4)
    assert [layer["relative_change"] > 0 for layer in found["by_layer"]] == [False, True, False]
    assert [name for name, part in found["by_module"].items() if part["relative_change"]] == ["down_proj"]
    assert found["by_layer"][1]["same_code"] < found["same_code"] < 1


def test_an_update_inside_of_codes_is_seen_as_such():
    from hf_unlearn.audit.quantize.formats import FORMATS

    original = make_model()
    with torch.no_grad():
        for layer in original.model.layers:
            layer.mlp.up_proj.weight.copy_(FORMATS["nf4"](layer.mlp.up_proj.weight))
    model = copy.deepcopy(original)
    with torch.no_grad():
        for layer in model.model.layers:
            weight = layer.mlp.up_proj.weight
            # Less than half the distance between codes; the largest of each block stays.
            blocks = weight.view(-1, 64)
            weight.copy_(
                torch.where(blocks.abs() < blocks.abs().amax(1, keepdim=True), blocks * 1.01, blocks).view_as(weight)
            )
    found = movement(model, original)
    assert found["same_code"] == 1
    assert found["by_module"]["up_proj"]["relative_change"] > 1e-3


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_an_adapters_change_counts_and_the_model_stays_as_it_is(more):
    from peft import get_peft_model

    original = make_model()
    model = get_peft_model(make_model(), lora(init_lora_weights=False, **more)).eval()
    if "modules_to_save" in more:
        with torch.no_grad():
            model.base_model.lm_head.modules_to_save["default"].weight += 0.1
    before = weights(model)
    found = movement(model, original)
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())
    assert found["n"] == movement(original, original)["n"]
    merged = movement(model.merge_and_unload(), original)
    assert found["relative_change"] == pytest.approx(merged["relative_change"], rel=1e-5)
    assert found["relative_change"] > 0.01
    assert found["by_module"].keys() == merged["by_module"].keys()
    assert {name for name, part in found["by_module"].items() if part["relative_change"]} == {
        "q_proj",
        "v_proj",
        *more.get("modules_to_save", []),
    }


def test_tied_matrices_count_once_and_other_shapes_are_told():
    tied = make_model(tie=True)
    assert "lm_head" not in dict(matrices(tied))
    assert movement(make_model(hidden_size=16), make_model())["reason"].startswith("model.embed_tokens has the shape")
    assert "no such matrix" in movement(make_model(layers=1), make_model(layers=2))["reason"]


def test_cka_of_few_rows_is_debiased():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 200)), rng.normal(size=(12, 200))
    assert linear_cka(x, y) > 0.8
    assert abs(debiased_cka(x, y)) < 0.3
    q = np.linalg.qr(rng.normal(size=(200, 200)))[0]
    assert debiased_cka(x, 3 * x @ q + 1) == pytest.approx(1)
    assert debiased_cka(x[:3], y[:3]) is None
    assert debiased_cka(x, np.ones((12, 2))) is None
    # Against its definition, term by term.
    k, m = (np.array(z - z.mean(0)) @ np.array(z - z.mean(0)).T for z in (x, y))

    def hsic(k, m):
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        total = (
            np.trace(k @ m)
            + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
            - 2 * (one @ k @ m @ one) / (n - 2)
        )
        return total / (n * (n - 3))

    assert debiased_cka(x, y) == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


def test_a_shift_is_in_standard_deviations_of_the_other_model():
    rng = np.random.default_rng(0)
    other = rng.normal(size=(50, 2)) * [5, 1]
    other = np.hstack([other, np.zeros((50, 3))])
    moved = other + np.array([10, 0, 0, 0, 7])
    spread = np.linalg.svd(other - other.mean(0))[1][0] / 7
    assert pca_shift(moved, other) == pytest.approx(10 / spread, rel=0.05)
    assert pca_shift(other, other) == 0
    assert pca_shift(other[:2], other[:2]) is None
    assert pca_shift(np.ones((5, 4)), np.ones((5, 4))) is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_a_value_vector_is_what_one_neuron_writes(name):
    model = small(name)
    vectors = value_vectors(model, 1)
    mlp = layers_of(model)[1].mlp
    out = next(module for module in reversed([*mlp.modules()]) if hasattr(module, "weight"))
    one = torch.zeros(1, len(vectors))
    one[0, 3] = 1
    written = out(one) - out(torch.zeros_like(one))
    assert torch.allclose(written[0], vectors[3], atol=1e-6)


def test_value_vectors_are_compared_with_the_originals():
    original, model = make_model(), make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 5] *= -2
    same, turned = compared(model, original, [(0, 5), (1, 5)])
    assert same == {"vector": "0:5", "cosine": pytest.approx(1), "distance": 0, "top_tokens": 1}
    assert (turned["cosine"], turned["distance"]) == (pytest.approx(-1), pytest.approx(3))
    # All of so few tokens are among the first 200.
    assert turned["top_tokens"] == 1
    with pytest.raises(ValueError, match=r"vectors: 1:64; the layer has 64 value vectors, counted from 0\."):
        compared(model, original, [(1, 64)])
    with pytest.raises(ValueError, match=r"vectors: '1,2'; give each as layer:index, such as 12:3407\."):
        read_vector("1,2")


def test_a_value_vector_is_read_through_an_adapter():
    from peft import get_peft_model

    model = get_peft_model(make_model(), lora(init_lora_weights=False, target_modules=["down_proj"])).eval()
    vectors = value_vectors(model, 0)
    assert torch.equal(vectors, value_vectors(model.merge_and_unload(), 0))
    assert not torch.allclose(vectors, value_vectors(make_model(), 0))
