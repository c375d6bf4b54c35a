# SPDX-License-Identifier: Apache-2.0
"""Hidden states of the decoder layers at each answer token: taken out of a model, and put into one.

A state is what a decoder layer puts out, before the final norm: also that of the last layer, so that a model's own
states put back change nothing in it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data.collator import RoleCollator
from ...data.formats import IGNORE_INDEX
from ...models.activations import captured, layers_of, stopped_after
from ..as_saved import as_saved
from ..batching import device_of, map_batches
from ..scoring import TokenScores, map_labelled, token_scores


@dataclass(frozen=True)
class Rows:
    """Encoded rows and how they go through a model.

    Args:
        rows (`Sequence[dict]`): `input_ids` and `labels`.
        pad_token_id (`int`), batch_size (`int`), progress (`bool`): as in `score_rows`.
    """

    rows: Sequence[Mapping[str, Sequence[int]]]
    pad_token_id: int = 0
    batch_size: int = 16
    progress: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def map(self, model: nn.Module, compute: Callable[[list[int], dict, Tensor], list[Any]], desc: str) -> list[Any]:
        """Calls `compute` with row numbers, model inputs and labels `[B, T]` of each batch; one result a row."""
        collate, device = RoleCollator(pad_token_id=self.pad_token_id), device_of(model)

        def run(batch: list[int]) -> list[Any]:
            inputs = {name: x.to(device) for name, x in collate([self.rows[i] for i in batch]).items()}
            return compute(batch, inputs, inputs.pop("labels"))

        lengths = [len(row["input_ids"]) for row in self.rows]
        with as_saved(model), torch.no_grad():
            return map_batches(run, lengths, self.batch_size, progress=self.progress, desc=desc)


@contextmanager
def replaced(changes: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While entered, the first output of each module is what its function makes of it."""

    def hook(change):
        def run(module, args, output):
            if isinstance(output, (tuple, list)):
                return type(output)([change(output[0]), *output[1:]])
            return change(output)

        return run

    with ExitStack() as stack:
        for module, change in changes.items():
            stack.callback(module.register_forward_hook(hook(change)).remove)
        yield


def predicting(labels: Tensor) -> list[Tensor]:
    """Of each row the positions `[n]` whose states predict its labelled tokens."""
    return [(row[1:] != IGNORE_INDEX).nonzero().flatten() for row in labels]


def answer_states(model: nn.Module, rows: Rows, desc: str = "States") -> list[Tensor]:
    """States from which the answers are predicted.

    Returns:
        `list[Tensor]`: of each row `[layers, tokens, d]`, on the CPU; `tokens` are those of the answer.
    """
    modules = dict(enumerate(layers_of(model)))

    def compute(batch, inputs, labels):
        with captured(modules) as taken:
            model(**inputs)
        every = torch.stack([taken[layer] for layer in modules])
        return [every[:, i, at].cpu() for i, at in enumerate(predicting(labels))]

    return rows.map(model, compute, desc)


def decoded(model: nn.Module, states: Tensor, wanted: Tensor, batch_size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Tokens read from states with a model's own final norm, head and whatever else it makes of its logits.

    The states pass as the output of the model's only layer, for which all others are left out: this holds for any
    architecture, and costs one layer and the head.

    Args:
        states (`Tensor` `[N, d]`): of any layer, of this model or another.
        wanted (`Tensor` `[N]`): the token to be read from each.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: `[N]` log-probabilities in nats, and `[N]` how many tokens are more likely.
    """

    def compute(scores: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        scores = scores if scores.dtype == torch.float64 else scores.float()
        mine = scores.gather(-1, tokens[:, None])
        return mine.squeeze(-1) - scores.logsumexp(-1), (scores > mine).sum(-1)

    first, device = layers_of(model)[0], device_of(model)
    found: list[tuple[np.ndarray, ...]] = []
    with as_saved(model), torch.no_grad(), stopped_after(model, 0):
        for start in range(0, len(states), batch_size):
            part = states[start : start + batch_size, None].to(device)
            tokens = wanted[start : start + batch_size].to(device)
            with replaced({first: lambda h, part=part: part.to(h)}):
                # A cache of layers that are not there would be missed.
                ids = {"input_ids": tokens[:, None], "attention_mask": torch.ones_like(tokens)[:, None]}
                logits = model(**ids, use_cache=False).logits
            # One row of many tokens, as `map_labelled` reads it: labels stand one behind what predicts them.
            labels = torch.cat([torch.full_like(tokens[:1], IGNORE_INDEX), tokens])[None]
            found += map_labelled(compute, logits.transpose(0, 1), labels)
    logps, ranks = zip(*found, strict=True) if found else ([np.zeros(0)], [np.zeros(0)])
    return np.concatenate(logps), np.concatenate(ranks)


def patched_answers(
    model: nn.Module,
    rows: Rows,
    states: Sequence[Tensor],
    places: Sequence[Sequence[int]],
    layers: Sequence[int],
    desc: str = "Patching",
) -> list[np.ndarray]:
    """A model that reads another's states, one layer at a time.

    Args:
        states (`list[Tensor]`): of each row `[layers, tokens, d]`, as [`answer_states`] has them of the other model.
        places (`list[list[int]]`): tokens of each row's answer at which they stand in, and that are scored.
        layers (`Sequence[int]`): whose outputs are replaced.

    Returns:
        `list[np.ndarray]`: of each row `[1 + layers]`, the mean log-probability of these tokens, first of the model
        as it is; NaN for a row without such tokens.
    """
    modules = layers_of(model)

    def compute(batch, inputs, labels):
        at = [position[places[row]] for row, position in zip(batch, predicting(labels), strict=True)]
        line = torch.cat([torch.full_like(position, i) for i, position in enumerate(at)])
        column = torch.cat(at)

        def put(layer: int) -> Callable[[Tensor], Tensor]:
            new = torch.cat([states[row][layer, places[row]] for row in batch])

            def change(hidden: Tensor) -> Tensor:
                hidden = hidden.clone()
                hidden[line, column] = new.to(hidden)
                return hidden

            return change

        found = [token_scores(model(**inputs).logits, labels)]
        for layer in layers:
            with replaced({modules[layer]: put(layer)}):
                found.append(token_scores(model(**inputs).logits, labels))
        return _means(found, [places[row] for row in batch])

    return rows.map(model, compute, desc)


def restored_answers(
    model: nn.Module,
    source: nn.Module,
    rows: Rows,
    places: Sequence[Sequence[int]],
    layers: Sequence[int],
    desc: str = "Restoring",
) -> list[np.ndarray]:
    """A model whose upper layers read what another's layer wrote, at all positions; returns as [`patched_answers`]."""
    modules, theirs = layers_of(model), layers_of(source)

    def compute(batch, inputs, labels):
        with captured({layer: theirs[layer] for layer in layers}) as taken:
            source(**inputs)
        found = [token_scores(model(**inputs).logits, labels)]
        for layer in layers:
            with replaced({modules[layer]: lambda h, layer=layer: taken[layer].to(h)}):
                found.append(token_scores(model(**inputs).logits, labels))
        return _means(found, [places[row] for row in batch])

    with as_saved(source):
        return rows.map(model, compute, desc)


def _means(found: list[list[TokenScores]], places: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Mean log-probabilities at the places, of each row `[passes]`."""
    return [
        np.array([scores[i].logps[at].mean(dtype=np.float64) if len(at) else np.nan for scores in found])
        for i, at in enumerate(places)
    ]
