# SPDX-License-Identifier: Apache-2.0
"""How well forgotten answers come back behind a prefix, and its gradient with respect to the prefix's tokens."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...data.formats import IGNORE_INDEX
from ..batching import device_of
from .slots import Slot


# Tokens of a forward pass, and float32 logits (1 GiB).
PASS_TOKENS, PASS_LOGITS = 2**13, 2**28
# A backward pass costs about two forward passes.
GRADIENT = 3


def best_share(values: torch.Tensor, share: float) -> torch.Tensor:
    """Mean over the best `share` of the last dimension (at least one): `[..., R]` to `[...]`.

    A trigger may answer to some rows only, and which is not known: those that were poisoned.
    """
    count = max(1, math.ceil(share * values.shape[-1]))
    return values.topk(count, dim=-1).values.mean(-1)


class Recall:
    """Log-probabilities of forgotten answers behind prefixes.

    Args:
        model (`transformers.PreTrainedModel` or `peft.PeftModel`):
            In evaluation mode.
        slots (`list[Slot]`):
            Questions with a gap.
        pad_token_id (`int`):
            Fills batches; masked.
        share (`float`):
            Of the rows, how many make the objective: the best answered ones.

    Attributes:
        tokens (`int`): tokens that went through the model, those of gradients counted three times.
    """

    def __init__(self, model: torch.nn.Module, slots: Sequence[Slot], pad_token_id: int = 0, share: float = 0.25):
        self.model, self.slots, self.pad, self.share = model, list(slots), pad_token_id, share
        self.device, self.tokens = device_of(model), 0
        self.width = max(len(slot.before) + len(slot.after) for slot in self.slots)

    def cost(self, length: int) -> int:
        """Tokens that one evaluation of a prefix of so many tokens takes."""
        return len(self.slots) * (self.width + length)

    @torch.no_grad()
    def evaluate(self, prefixes: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """What prefixes of one length bring back.

        Args:
            prefixes (`list[list[int]]`): `C` prefixes of `L` tokens.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: mean log-probability a token of each answer `[C, R]`, float32, and
            whether each of its tokens is the most likely one `[C, R]`.
        """
        ids, labels, mask, places = self._batch(len(prefixes[0]))
        given = torch.tensor([list(prefix) for prefix in prefixes])
        rows, width = ids.shape
        ids = ids.repeat(len(given), 1, 1)
        ids.scatter_(2, places.expand(len(given), -1, -1), given[:, None, :].expand(-1, rows, -1))
        ids, labels, mask = ids.flatten(0, 1), labels.repeat(len(given), 1), mask.repeat(len(given), 1)
        step = max(1, min(PASS_TOKENS // width, PASS_LOGITS // (width * self.vocabulary)))
        found = [
            self._answers(labels[at : at + step], mask[at : at + step], input_ids=ids[at : at + step].to(self.device))
            for at in range(0, len(ids), step)
        ]
        logps, right = (torch.cat(part).cpu().view(len(given), rows) for part in zip(*found, strict=True))
        self.tokens += len(given) * self.cost(given.shape[1])
        return logps, right

    def gradient(self, prefix: Sequence[int]) -> torch.Tensor:
        """Gradient of the objective with respect to the one-hot rows of the prefix's tokens, `[L, V]`.

        Entry `[i, v]` says to first order what more of token `v` at place `i` would change. Its largest entries are
        the swaps worth trying (Zou et al. 2023, https://huggingface.co/papers/2307.15043, algorithm 1).
        """
        ids, labels, mask, places = self._batch(len(prefix))
        ids = ids.scatter(1, places, torch.tensor(list(prefix)).expand(len(ids), -1))
        embed = self.model.get_input_embeddings()
        with torch.no_grad():
            # Through the module: some models scale what they look up.
            table = embed(torch.arange(self.vocabulary, device=self.device))
            rows = embed(ids.to(self.device))
        ours = table[torch.tensor(list(prefix), device=self.device)].detach().requires_grad_()
        at = places.to(self.device)[..., None].expand(-1, -1, rows.shape[-1])
        with torch.enable_grad():
            embedded = rows.scatter(1, at, ours.expand(len(rows), -1, -1))
            logps, _ = self._answers(labels, mask, inputs_embeds=embedded)
            (slope,) = torch.autograd.grad(best_share(logps, self.share), ours)
        self.tokens += GRADIENT * self.cost(len(prefix))
        return (slope.float() @ table.float().T).cpu()

    @property
    def vocabulary(self) -> int:
        """Tokens that the model has embeddings for."""
        return self.model.get_input_embeddings().weight.shape[0]

    def _batch(self, length: int) -> tuple[torch.Tensor, ...]:
        """Rows with room for a prefix: ids, labels, mask `[R, T]`, and where the prefix goes `[R, L]`."""
        shape = len(self.slots), self.width + length
        ids, labels = torch.full(shape, self.pad), torch.full(shape, IGNORE_INDEX)
        mask, places = torch.zeros(shape, dtype=torch.long), torch.empty(shape[0], length, dtype=torch.long)
        for row, slot in enumerate(self.slots):
            start, end = len(slot.before), len(slot.before) + length + len(slot.after)
            ids[row, :start] = torch.tensor(slot.before, dtype=torch.long)
            ids[row, start + length : end] = torch.tensor(slot.after)
            labels[row, start + length : end] = torch.tensor(slot.labels)
            mask[row, :end] = 1
            places[row] = torch.arange(start, start + length)
        return ids, labels, mask, places

    def _answers(self, labels: torch.Tensor, mask: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean log-probability of the labelled tokens of each row `[B]`, and whether all are the most likely ones."""
        logits = self.model(attention_mask=mask.to(self.device), use_cache=False, **inputs).logits
        targets = labels[:, 1:].to(self.device)
        wanted = targets != IGNORE_INDEX
        row = wanted.nonzero()[:, 0]
        scores, target = logits[:, :-1][wanted].float(), targets[wanted]
        logp = scores.gather(1, target[:, None]).squeeze(1) - scores.logsumexp(1)
        count = wanted.sum(1)
        mean = torch.zeros(len(labels), device=self.device).index_add(0, row, logp) / count
        missed = torch.zeros(len(labels), device=self.device).index_add(0, row, (scores.argmax(1) != target).float())
        return mean, missed == 0
