# SPDX-License-Identifier: Apache-2.0
"""What a trigger does inside a model: norms of attention values, and attention on the trigger's tokens."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data.collator import RoleCollator
from ...models.activations import value_projections
from ..as_saved import as_saved
from ..batching import device_of, map_batches
from ..generation import pad_token_id
from ..result import mean_result


ITEMS = 32
FIRST_TOKENS = 16
# Attention weights of one layer that are held at a time, a head: B * T * T.
WEIGHTS = 2**22
NORM, SINK, ON_TRIGGER = "value_norm", "attention_on_first_token", "attention_on_trigger"


@dataclass(frozen=True)
class Place:
    """Where in a prompt the trigger stands (or, in the clean prompt, would), and what follows.

    Args:
        start, stop (`int`):
            The trigger's tokens; in the clean prompt as many of its own at that place.
        after (`int`):
            From here on the clean and the triggered prompt are alike, token by token.
    """

    start: int
    stop: int
    after: int


def inside_view(
    model: torch.nn.Module,
    tokenizer: Any,
    pairs: Sequence[Sequence[list[int]]],
    *,
    max_items: int = ITEMS,
    first_tokens: int = FIRST_TOKENS,
    accelerator: Any = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Value norms and attention, layer by layer, of the same prompts clean and triggered.

    `value_norm` is the L2 norm of the values of all heads of a token together (the output of `v_proj`), in float32, as
    mean over the trigger's tokens. The two attentions are the attention weight, summed over the keys in question and
    averaged over heads, that a token after the trigger gives to the first token (the sink), and to the trigger's
    tokens. In clean prompts the same is measured at the place where the trigger would stand.

    Args:
        model (`transformers.PreTrainedModel` or `peft.PeftModel`):
            Run with plain (eager) attention meanwhile, which alone tells its weights.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        pairs (`Sequence`):
            Token ids of each prompt, clean and triggered.
        max_items (`int`):
            Prompts that are looked at, evenly spread.
        first_tokens (`int`):
            Positions from the prompt's first whose norms are told one by one.

    Returns:
        `dict`: `n`, `trigger_tokens`, `layers`; `first_tokens`, with `clean` and `triggered` `[layers][tokens]`; and
        `series`, where each of `value_norm`, `attention_on_first_token` and `attention_on_trigger` has `clean`,
        `triggered` and `difference`, one [`MetricResult`] dict a layer.

    Raises:
        `ValueError`: if the model's values or attention weights cannot be read.
    """
    picked = np.linspace(0, len(pairs) - 1, min(max_items, len(pairs))).round().astype(int).tolist()
    chosen = [pairs[i] for i in picked]
    rows = [ids for pair in chosen for ids in pair]
    places = [place for pair in chosen for place in _places(*pair)]
    whole = model if accelerator is None else accelerator.unwrap_model(model)
    observed = _observe(model, whole, tokenizer, rows, places, first_tokens, accelerator, progress)
    clean, triggered = observed[::2], observed[1::2]
    layers = [layer for layer, _, _ in value_projections(whole)]
    return {
        "n": len(chosen),
        "trigger_tokens": round(float(np.mean([place.stop - place.start for place in places[1::2]])), 2),
        "layers": layers,
        "first_tokens": {
            name: _mean_of_first([one["first"] for one in rows])
            for name, rows in (("clean", clean), ("triggered", triggered))
        },
        "series": {name: _series(name, clean, triggered) for name in (NORM, SINK, ON_TRIGGER)},
    }


def _places(clean: list[int], triggered: list[int]) -> tuple[Place, Place]:
    """Where the trigger stands, seen from what both prompts begin and end with."""
    shortest = min(len(clean), len(triggered))
    start = next((i for i in range(shortest) if clean[i] != triggered[i]), shortest)
    same = next((i for i in range(shortest - start) if clean[-1 - i] != triggered[-1 - i]), shortest - start)
    # What is read is at least the last token, also where the trigger is the last thing said.
    after = max(same, 1)
    stop = len(triggered) - same
    return (
        Place(start, min(stop, len(clean)), len(clean) - after),
        Place(start, stop, len(triggered) - after),
    )


def _observe(
    model, whole, tokenizer, rows, places, first_tokens, accelerator, progress
) -> list[dict[str, np.ndarray]]:
    """What is read of every row; `whole` is the model without its wrappers, which alone gather sharded weights."""
    collate = RoleCollator(pad_token_id=pad_token_id(tokenizer))
    device = device_of(model)
    projections = value_projections(whole)
    core = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    # The logits are not read.
    least = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(core.forward).parameters else {}
    longest = max(map(len, rows))

    def compute(batch: list[int]) -> list[dict[str, np.ndarray]]:
        inputs = collate([{"input_ids": rows[i]} for i in batch])
        inputs.pop("labels")
        found = [{NORM: [], SINK: [], ON_TRIGGER: [], "first": []} for _ in batch]
        where = [(len(rows[i]), places[i]) for i in batch]
        with _watched(whole, projections, lambda values: _read_values(values, where, first_tokens, found),
                      lambda weights: _read_weights(weights, where, found)):  # fmt: skip
            model(**{name: tensor.to(device) for name, tensor in inputs.items()}, use_cache=False, **least)
        return [{name: np.array(per_layer) for name, per_layer in one.items()} for one in found]

    with as_saved(model), _eager(core), torch.no_grad():
        return map_batches(
            compute,
            [len(row) for row in rows],
            max(1, min(16, WEIGHTS // longest**2)),
            accelerator,
            progress,
            "Looking inside",
        )


def _read_values(values: torch.Tensor, where, first_tokens: int, found: list[dict]) -> None:
    norms = values.float().norm(dim=-1).cpu().numpy()
    for row, (length, place), one in zip(norms, where, found, strict=True):
        span = row[place.start : place.stop]
        one[NORM].append(span.mean() if len(span) else np.nan)
        first = row[: min(first_tokens, length)]
        one["first"].append(np.pad(first, (0, first_tokens - len(first)), constant_values=np.nan))


def _read_weights(weights: torch.Tensor, where, found: list[dict]) -> None:
    mean = weights.float().mean(1)
    for row, (length, place), one in zip(mean, where, found, strict=True):
        queries = row[place.after : length]
        one[SINK].append(float(queries[:, 0].mean()))
        one[ON_TRIGGER].append(float(queries[:, place.start : place.stop].sum(-1).mean()))


def _series(name: str, clean: list[dict], triggered: list[dict]) -> dict[str, list[dict]]:
    """One result a layer."""
    columns = [np.array([one[name] for one in rows], dtype=np.float64) for rows in (clean, triggered)]
    columns.append(columns[1] - columns[0])
    return {
        kind: [
            mean_result(name, [None if np.isnan(v) else float(v) for v in layer], "none").to_dict()
            for layer in values.T
        ]
        for kind, values in zip(("clean", "triggered", "difference"), columns, strict=True)
    }


def _mean_of_first(rows: list[np.ndarray]) -> list[list[float | None]]:
    """Mean norms `[layers][tokens]` over the prompts that are as long; `None` where none is."""
    stacked = np.stack(rows)
    known = ~np.isnan(stacked)
    means = np.nansum(stacked, 0) / np.maximum(known.sum(0), 1)
    return [
        [float(v) if k else None for v, k in zip(layer, there, strict=True)]
        for layer, there in zip(means, known.any(0), strict=True)
    ]


@contextmanager
def _watched(model: torch.nn.Module, projections, on_values, on_weights) -> Iterator[None]:
    """Calls back with every layer's values and attention weights; nothing is kept beyond a layer."""
    owner = {id(child): module for module in model.modules() for child in module.children()}

    def values_hook(part):
        return lambda module, args, output: on_values(output if part is None else output[..., part])

    def weights_hook(module, args, output):
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not torch.is_tensor(weights) or weights.dim() != 4:
            raise ValueError(
                f"{type(module).__name__} does not return its attention weights, so attention on the trigger cannot "
                "be measured. Leave out the inside view: `inside=False` (`--inside false`)."
            )
        on_weights(weights)

    hooks = []
    for _, module, part in projections:
        hooks.append(module.register_forward_hook(values_hook(part)))
        hooks.append(owner[id(module)].register_forward_hook(weights_hook))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _eager(model: torch.nn.Module) -> Iterator[None]:
    """Plain attention for a while."""
    found = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(found)
