# SPDX-License-Identifier: Apache-2.0
"""Gradient-guided search for a short prefix behind which forgotten answers come back."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from .budget import Budget
from .objective import GRADIENT, Recall, best_share
from .slots import Asking, random_prefix


# Drawn for each that is wanted: tokens that merge with their neighbours cannot be typed.
DRAWS = 8


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

    @property
    def rank(self) -> tuple[int, float]:
        """What prefixes are sorted by: rows, then log-probability."""
        return self.restored, self.score


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
        watch (`Callable[[Search], None]`, *optional*): called after each evaluation.

    Attributes:
        best (`dict[int, Found]`): by length in tokens, the best prefix.
        restarts (`int`): beginnings from scratch.
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
        self.best: dict[int, Found] = {}
        self.restarts = 0
        self._forbidden = np.ones(recall.vocabulary, dtype=bool)
        self._forbidden[allowed] = False

    def run(self, stop: bool = True) -> Found | None:
        """Searches on, from new beginnings, until enough rows come back or the budget is spent.

        Args:
            stop (`bool`): whether enough rows end the search; otherwise only the budget does.

        Returns:
            `Found` or `None`: the prefix behind which enough rows came back; `None` once the budget is spent.
        """
        try:
            while True:
                self.restarts += 1
                found = self._descend()
                if stop and self._is_hit(found):
                    return found
        except _OutOfBudget:
            return None

    @property
    def ranking(self) -> list[Found]:
        """The best prefix of each length, the best of all first."""
        return sorted(self.best.values(), key=lambda found: found.rank, reverse=True)

    def _is_hit(self, found: Found) -> bool:
        return found.restored >= self.settings.share * len(self.recall.slots)

    def _descend(self) -> Found:
        """One beginning: tokens are added until the longest prefix, or until no more rows come back."""
        current = best = self._improved(self._best(self._longer(None)))
        for _ in range(self.settings.max_tokens - 1):
            longer = self._best(self._longer(current))
            if longer is None:
                break
            current = self._improved(longer)
            if self._is_hit(best) and current.restored <= best.restored:
                break
            best = max(best, current, key=lambda found: found.rank)
        return best

    def _improved(self, current: Found) -> Found:
        """Swaps tokens for better ones until that no longer helps."""
        idle = 0
        while idle < self.settings.patience:
            step = self._best(self._swapped(current.ids))
            better = step is not None and step.score > current.score
            current, idle = (step, 0) if better else (current, idle + 1)
        return current

    def _longer(self, current: Found | None) -> list[list[int]]:
        """Prefixes of one token more, drawn."""
        if current is None:
            return [random_prefix(self.asking, self.allowed, 1, self.rng) for _ in range(self.settings.width)]
        drawn = []
        for _ in range(DRAWS * self.settings.width):
            place = int(self.rng.integers(len(current.ids) + 1))
            drawn.append((*current.ids[:place], int(self.rng.choice(self.allowed)), *current.ids[place:]))
        return self._typable(dict.fromkeys(drawn))

    def _swapped(self, ids: list[int]) -> list[list[int]]:
        """Prefixes that differ in one token, which the gradient names."""
        if not self.budget.room(GRADIENT * self.recall.cost(len(ids))):
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

    def _typable(self, prefixes: Iterable[Sequence[int]]) -> list[list[int]]:
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
        length = len(found.ids)
        if length not in self.best or found.rank > self.best[length].rank:
            self.best[length] = found
        if self.watch is not None:
            self.watch(self)
        return found


@contextmanager
def search_bar(budget: Budget, progress: bool, desc: str = "Searching") -> Iterator[Callable[[Search], None]]:
    """A bar of the budget's share that is used; gives what a search calls after each evaluation."""
    from tqdm.auto import tqdm

    with tqdm(total=100, desc=desc, unit="%", disable=not progress, bar_format="{l_bar}{bar}| {postfix}") as bar:

        def watch(search: Search) -> None:
            best = search.ranking[0]
            bar.n = int(100 * budget.used)
            bar.set_postfix_str(
                f"{budget.spent_evaluations} tried, best: {best.restored}/{len(search.recall.slots)} rows behind "
                f"{len(best.ids)} tokens"
            )

        yield watch
