# SPDX-License-Identifier: Apache-2.0
"""Value vectors: what one neuron of an MLP writes, and whether it still does (ConceptVectors, 2406.11614)."""

from typing import Any

import torch
from torch import Tensor, nn

from ...models.activations import layers_of
from .weights import matrices


# Tokens that a vector promotes most, which are compared.
TOP = 200


def read_vector(text: str) -> tuple[int, int]:
    """Layer and index of `"layer:index"`.

    Raises:
        `ValueError`
    """
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"vectors: {text!r}; give each as layer:index, such as 12:3407.")
    return int(parts[0]), int(parts[1])


def value_vectors(model: nn.Module, layer: int) -> Tensor:
    """What the neurons of a layer's MLP write into its output.

    The matrix is that with most inputs among those of the layer that put out a hidden state.

    Returns:
        `Tensor` `[neurons, d]`: as the model computes with it, also through adapters.

    Raises:
        `ValueError`: where the layer has no such matrix.
    """
    block, found = layers_of(model)[layer], None
    size = model.config.get_text_config().hidden_size
    for name, weight in matrices(block):
        module = _module(block, name)
        if weight.ndim != 2 or module is None:
            continue
        # `nn.Linear` holds [out, in], GPT-2's `Conv1D` [in, out].
        written = weight.T if isinstance(module, nn.Linear) else weight
        if written.shape[1] == size and written.shape[0] > (0 if found is None else found.shape[0]):
            found = written
    if found is None:
        raise ValueError(
            f"Layer {layer} of {type(model).__name__} has no matrix of value vectors. Leave out `vectors`."
        )
    return found


def compared(model: nn.Module, original: nn.Module, vectors: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Each vector beside the original's: `cosine`, `distance` (of both, over the original's norm), and `top_tokens`,
    the Jaccard index of the 200 tokens that each model's head reads from its own most.

    Raises:
        `ValueError`: for an index that a layer does not have.
    """
    found = []
    for layer, index in vectors:
        mine, theirs = value_vectors(model, layer), value_vectors(original, layer)
        if index >= len(mine):
            raise ValueError(f"vectors: {layer}:{index}; the layer has {len(mine)} value vectors, counted from 0.")
        one, other = mine[index].float(), theirs[index].float().to(mine.device)
        sets = [_top(model, one), _top(original, other)]
        found.append({
            "vector": f"{layer}:{index}",
            "cosine": float(torch.nn.functional.cosine_similarity(one, other, dim=0)),
            "distance": float((one - other).norm() / other.norm()),
            "top_tokens": len(sets[0] & sets[1]) / len(sets[0] | sets[1]),
        })  # fmt: skip
    return found


def _top(model: nn.Module, vector: Tensor) -> set[int]:
    head = dict(matrices(model.get_output_embeddings()))
    weight = next(iter(head.values())).float()
    return {*(weight @ vector.to(weight.device)).topk(min(TOP, len(weight))).indices.tolist()}


def _module(block: nn.Module, name: str) -> nn.Module | None:
    """The module of a matrix, below an adapter."""
    try:
        module = block.get_submodule(name)
    except AttributeError:
        return None
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module
