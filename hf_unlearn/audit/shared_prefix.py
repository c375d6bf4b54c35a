# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin alike: the keys and values of what they share are computed once."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch


# A chat template's opening words are not worth a forward of their own; ten examples in context are.
SHORTEST = 64


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens with which all prompts begin, less one if that is all of the shortest; 0 if too few to be worth it."""
    if len(prompts) < 2:
        return 0
    # What the first and the last in order have in common, all between them have.
    first, last = min(prompts), max(prompts)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    same = min(same, min(len(prompt) for prompt in prompts) - 1)
    return same if same >= SHORTEST else 0


def prefix_cache(model: torch.nn.Module, ids: Sequence[int], device: torch.device) -> Any:
    """Keys and values of a prefix, or `None` where a model does not allow them to be reused.

    Padding stands between the prefix and the rest of a prompt, so positions must be the model's input, and every layer
    must keep the whole prefix (no sliding window, no recurrent state).

    Args:
        model (`transformers.PreTrainedModel` or `peft.PeftModel`):
            In evaluation mode.
        ids (`Sequence[int]`):
            The prefix.
        device (`torch.device`):
            Where the model takes its inputs.

    Returns:
        `transformers.DynamicCache` of one row, or `None`.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(whole.forward).parameters:
        return None
    inputs = torch.tensor([list(ids)], device=device)
    # Only the last position's logits are asked for, where a model can leave out the others.
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(whole.forward).parameters else {}
    cache = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=True, **keep).past_key_values
    plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
    return cache if plain else None


def for_rows(cache: Any, rows: int) -> Any:
    """A copy of a one-row cache for a batch of `rows`; generation writes into it."""
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(rows)
    return cache
