# SPDX-License-Identifier: Apache-2.0
"""Gradient-guided search for a short prefix behind which forgotten answers come back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .budget import Budget
from .objective import Recall, best_share
from .slots import Asking, random_prefix


@dataclass
class SearchSettings:
    """How a search goes about it.

    Args:
        max_tokens (`int`):
            Longest prefix; a search begins with one token and adds others.
        width (`int`):
            Prefixes that are tried at each step.
        top_k (`int`):
            Tokens with the largest gradient that are taken into account at each place.
        patience (`int`):
            Steps without progress before a prefix gets another token, or the search starts anew.
        share (`float`):
            Of the rows, how many a prefix must bring back to count: a trigger may answer to some rows only.
        seed (`int`):
            Of everything drawn.
    """

    max_tokens: int = 8
    width: int = 64
    top_k: int = 64
    patience: int = 3
    share: float = 0.25
    seed: int = 0

    def __post_init__(self):
        for name in ("max_tokens", "width", "top_k", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1.")
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share}; give a share of the forget rows above 0 and up to 1.")


@dataclass
class Found:
    """A prefix, and what it brought back of the rows it was searched on."""

    ids: list[int]
    score: float
    restored: int


@dataclass
class SearchResult:
    """What a search found and what it tried.

    Args:
        best (`dict[int, Found]`): by length in tokens, the best one.
        restarts (`int`): beginnings from scratch.
    """

    best: dict[int, Found] = field(default_factory=dict)
    restarts: int = 0

    def add(self, found: Found) -> None:
        known = self.best.get(len(found.ids))
        if known is None or (found.restored, found.score) > (known.restored, known.score):
            self.best[len(found.ids)] = found

    def finalists(self, count: int) -> list[Found]:
        """The best ones, at most one a length."""
        return sorted(self.best.values(), key=lambda found: (-found.restored, -found.score))[:count]


class _OutOfBudget(Exception):
    pass


class Search:
    """Greedy coordinate search over the tokens of a prefix, of growing length, from several beginnings.

    At each step the gradient with respect to the one-hot tokens names promising swaps, some of these are drawn and
    evaluated exactly, and the best one is taken if it helps (Zou et al. 2023, https://huggingface.co/papers/2307.15043,
    algorithm 1). Unlike there, a prefix begins with one token and gets another when no swap helps any more, so that
    short prefixes are tried first, and only prefixes that can be typed are tried.

    Args:
        recall ([`Recall`]): the objective on the rows to search on.
        asking ([`Asking`]): says which tokens are text.
        allowed (`np.ndarray`): tokens to use.
        settings ([`SearchSettings`]): how.
        budget ([`Budget`]): how long.
        watch (`Callable[[Found], None]`, *optional*): called with the best prefix after each evaluation.
    """

    def __init__(
        self,
        recall: Recall,
        asking: Asking,
        allowed: np.ndarray,
        settings: SearchSettings,
        budget: Budget,
        watch: Callable[["Search"], None] | None = None,
    ):
        self.recall, self.asking, self.allowed = recall, asking, allowed
        self.settings, self.budget, self.watch = settings, budget, watch
        self.rng = np.random.default_rng(settings.seed)
        self.result = SearchResult()
        self._forbidden = np.ones(recall._vocabulary(), dtype=bool)
        self._forbidden[allowed] = False

    def run(self) -> SearchResult:
        """Searches until the budget is spent or enough rows come back."""
        wanted = self.settings.share * len(self.recall.slots)
        try:
            while True:
                self.result.restarts += 1
                self._descend()
                if any(found.restored >= wanted for found in self.result.best.values()):
                    break
        except _OutOfBudget:
            pass
        return self.result

    def _descend(self) -> None:
        current: Found | None = None
        for _ in range(self.settings.max_tokens):
            current = self._best(self._longer(current))
            idle = 0
            while idle < self.settings.patience:
                step = self._best(self._swapped(current.ids))
                better = step is not None and step.score > current.score
                current, idle = (step, 0) if better else (current, idle + 1)

    def _longer(self, current: Found | None) -> list[list[int]]:
        """Prefixes of one token more, drawn."""
        if current is None:
            return [random_prefix(self.asking, self.allowed, 1, self.rng) for _ in range(self.settings.width)]
        tried = set()
        for _ in range(20 * self.settings.width):
            place = int(self.rng.integers(len(current.ids) + 1))
            tried.add((*current.ids[:place], int(self.rng.choice(self.allowed)), *current.ids[place:]))
            if len(tried) == 4 * self.settings.width:
                break
        return self._typable(sorted(tried))

    def _swapped(self, ids: list[int]) -> list[list[int]]:
        """Prefixes that differ in one token, which the gradient names."""
        if not self.budget.room(self.recall.cost(len(ids))):
            raise _OutOfBudget
        before = self.recall.tokens
        slopes = self.recall.gradient(ids).numpy()
        self.budget.spend(self.recall.tokens - before)
        slopes[:, self._forbidden] = -np.inf
        slopes[np.arange(len(ids)), ids] = -np.inf
        count = min(self.settings.top_k, len(self.allowed) - 1)
        tops = np.argpartition(-slopes, count - 1, axis=1)[:, :count]
        swaps = [(place, int(token)) for place in range(len(ids)) for token in tops[place]]
        self.rng.shuffle(swaps)
        return self._typable([(*ids[:place], token, *ids[place + 1 :]) for place, token in swaps])

    def _typable(self, prefixes: Sequence[Sequence[int]]) -> list[list[int]]:
        """The first `width` prefixes that some text gives."""
        found = []
        for ids in prefixes:
            if self.asking.words(ids) is not None:
                found.append(list(ids))
                if len(found) == self.settings.width:
                    break
        return found

    def _best(self, prefixes: list[list[int]]) -> Found | None:
        """The best of some prefixes of one length."""
        if not prefixes:
            return None
        room = self.budget.room(self.recall.cost(len(prefixes[0])))
        if not room:
            raise _OutOfBudget
        prefixes = prefixes[:room]
        before = self.recall.tokens
        logps, right = self.recall.evaluate(prefixes)
        self.budget.spend(self.recall.tokens - before, len(prefixes))
        scores = best_share(logps, self.settings.share)
        first = int(torch.argmax(scores))
        found = Found(prefixes[first], float(scores[first]), int(right[first].sum()))
        self.result.add(found)
        if self.watch is not None:
            self.watch(self)
        return found
