# SPDX-License-Identifier: Apache-2.0
"""Answers drawn from a model's distribution, each draw from a generator of its own."""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, TopPLogitsWarper


class Drawing(LogitsProcessor):
    """Makes the most likely token a draw: the largest of `log p_i - log q_i`, with `q_i` exponential, is token `i`
    with probability `p_i`.

    Greedy generation then samples, at exactly the temperature that is given: what `do_sample=True` adds (the 50 most
    likely tokens only) and what a checkpoint's own generation settings say have no part in it. A row's draw depends
    on its seed alone, not on the rows beside it; models that are given one seed draw with the same noise.

    Args:
        seeds (`Sequence[int]` `[B]`): one a row of the batch.
        temperature (`float`): of the softmax.
        top_p (`float`): probability mass of the most likely tokens that are drawn from.
        tokens (`int`, *optional*): leading entries of the vocabulary that are tokens; rows of an embedding beyond them
            are never drawn.
    """

    def __init__(self, seeds: Sequence[int], temperature: float = 1.0, top_p: float = 1.0, tokens: int | None = None):
        self.seeds, self.temperature, self.tokens = seeds, temperature, tokens
        self.nucleus = None if top_p == 1.0 else TopPLogitsWarper(top_p)
        self.generators: list[torch.Generator] = []

    def __call__(self, input_ids, scores):
        if not self.generators:
            self.generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self.seeds]
        scores = scores.float() / self.temperature
        if self.tokens is not None:
            scores[:, self.tokens :] = -torch.inf
        if self.nucleus is not None:
            scores = self.nucleus(input_ids, scores)
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
