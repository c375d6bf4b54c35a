# SPDX-License-Identifier: Apache-2.0
"""CKA against its definition by kernels, its invariances, and a branch that is dead."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViltConfig, ViltForQuestionAnswering

from hf_unlearn.audit.vqa.cka import cka_map, linear_cka, representations
from hf_unlearn.data.worlds.pictures.processor import build_processor


@pytest.fixture(scope="module")
def model():
    config = ViltConfig(
        vocab_size=200,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        max_image_length=-1,
        initializer_range=0.5,
        num_labels=4,
    )
    torch.manual_seed(0)
    return ViltForQuestionAnswering(config).eval()


@pytest.fixture(scope="module")
def processor():
    return build_processor(["is it red?", "what is it?"])


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [
        {
            "image": Image.fromarray(rng.integers(0, 256, (32, 32 + 16 * (i % 2), 3), dtype=np.uint8)),
            "question": ("is it red?", "what is it?", "what is it? is it red?")[i % 3],
            "answers": ["yes"],
        }
        for i in range(9)
    ]


def by_kernels(x, y):
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X^T, L = Y Y^T."""
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, m = centre @ (x @ x.T) @ centre, centre @ (y @ y.T) @ centre
    return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


def test_formula_and_invariances():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6)) + 3, rng.normal(size=(20, 9))
    y[:, :3] += x[:, :3]
    value = linear_cka(x, y)
    assert 0.05 < value < 0.95
    assert value == pytest.approx(by_kernels(x, y))
    assert value == pytest.approx(linear_cka(y, x))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert value == pytest.approx(linear_cka(7 * x @ rotation - 2, y))
    assert linear_cka(x, x) == pytest.approx(1)


def test_constant_is_undefined():
    x = np.random.default_rng(0).normal(size=(20, 6))
    constant = np.ones((20, 4)) * 0.1 + 1e-9 * x[:, :4]
    assert linear_cka(constant, constant) is None
    assert linear_cka(x, constant) is None
    assert linear_cka(x, np.full((20, 2), np.nan)) is None
    with pytest.raises(ValueError, match="the same rows"):
        linear_cka(x, x[:5])


def test_representations_are_means_over_their_own_positions(model, processor, rows):
    found = representations(model, processor, rows, batch_size=4, progress=False)
    assert {name: part.shape for name, part in found.items()} == dict.fromkeys(("image", "text", "fused"), (9, 16))
    for i, row in enumerate(rows):
        # One row by itself has no padding to mask.
        inputs = processor(images=[row["image"]], text=[row["question"]], return_tensors="pt")
        with torch.no_grad():
            output = model.vilt(**inputs)
        hidden, length = output.last_hidden_state[0].numpy(), inputs["input_ids"].shape[1]
        np.testing.assert_allclose(found["text"][i], hidden[:length].mean(0), atol=1e-5)
        np.testing.assert_allclose(found["image"][i], hidden[length:].mean(0), atol=1e-5)
        np.testing.assert_allclose(found["fused"][i], output.pooler_output[0].numpy(), atol=1e-5)


def test_map_of_a_model_with_itself(model, processor, rows, caplog):
    found = representations(model, processor, rows, progress=False)
    table = cka_map(found, found)
    for a in found:
        assert table[a][a] == pytest.approx(1)
        for b in found:
            assert table[a][b] == pytest.approx(table[b][a])
    assert 0 < table["image"]["text"] < 0.999
    assert not caplog.text


def test_a_dead_branch_is_told(model, processor, rows, caplog):
    found = representations(model, processor, rows, progress=False)
    dead = {**found, "image": np.zeros_like(found["image"])}
    table = cka_map(found, dead)
    assert table["text"]["image"] is None
    assert table["text"]["text"] == pytest.approx(1)
    assert "The image representation of the second model" in caplog.text
    assert "first model" not in caplog.text
