# SPDX-License-Identifier: Apache-2.0
"""What attacks read: a few numbers about every prediction of a model, from its logits.

A language model makes one prediction a labelled token, a classifier one a row. All of it is float64: a memorised row
has probabilities that float32 rounds to 1, and rows that are rounded alike cannot be told apart.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..scoring import map_labelled


# Logits that are held in float64 at a time, in each of some five temporaries: 64 MiB.
CHUNK_ELEMENTS = 2**23
SOFTMAX_COLUMNS = ("logp", "log_odds", "top", "margin", "entropy", "spread")
SIGMOID_COLUMNS = SOFTMAX_COLUMNS[:-1]
# Below it (of a log-probability's standard deviation) a prediction is certain, and Min-K%++ would divide by nothing.
SMALLEST_SPREAD = 1e-3


def compressed_sizes(texts: Sequence[str]) -> np.ndarray:
    """Bytes that zlib makes of each text, `[n]`."""
    return np.array([len(zlib.compress(text.encode())) for text in texts])


@dataclass(frozen=True)
class Signals:
    """Numbers about the predictions of `n` rows.

    Args:
        offsets (`np.ndarray` `[n + 1]`):
            Row `i` owns the predictions from `offsets[i]` to `offsets[i + 1]`.
        columns (`dict[str, np.ndarray]`):
            One float64 a prediction. `logp`: log-probability of the label; `log_odds`: its log p - log(1 - p);
            `top`: largest probability; `margin`: largest less second largest; `entropy`: in nats; `spread`: standard
            deviation of log p(y) over y drawn from the prediction (softmax only).
    """

    offsets: np.ndarray
    columns: dict[str, np.ndarray]

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[np.ndarray, ...]], names: Sequence[str]) -> "Signals":
        """Joins the results of single rows, each a tuple of as many arrays as `names`."""
        lengths = [len(row[0]) for row in rows]
        columns = {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)}
        return cls(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), columns)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Predictions of each row, `[n]`."""
        return np.diff(self.offsets)

    def mean(self, name: str) -> np.ndarray:
        """Mean of a column over each row's predictions, `[n]`; NaN for a row without any."""
        return self.sum(name) / np.where(self.lengths, self.lengths, np.nan)

    def sum(self, name: str) -> np.ndarray:
        """Sum of a column over each row's predictions, `[n]`."""
        rows = np.repeat(np.arange(len(self)), self.lengths)
        return np.bincount(rows, weights=self.columns[name], minlength=len(self))

    def standardised(self) -> np.ndarray:
        """log p of each label less its mean over the vocabulary, in standard deviations: what Min-K%++ reads."""
        # The mean of log p under p is minus the entropy.
        centred = self.columns["logp"] + self.columns["entropy"]
        return centred / np.maximum(self.columns["spread"], SMALLEST_SPREAD)

    def lowest_mean(self, values: np.ndarray, share: float) -> np.ndarray:
        """Mean of each row's `max(1, int(share * length))` smallest `values` (one a prediction), `[n]`."""
        rows = np.repeat(np.arange(len(self)), self.lengths)
        order = np.lexsort((values, rows))
        place = np.arange(len(values)) - np.repeat(self.offsets[:-1], self.lengths)
        # int(share * n) of 0.3 * 10 must not be 2.
        wanted = np.maximum(1, np.floor(share * self.lengths + 1e-9)).astype(np.int64)
        kept = place < np.repeat(wanted, self.lengths)
        total = np.bincount(rows[kept], weights=values[order][kept], minlength=len(self))
        return np.where(self.lengths > 0, total / wanted, np.nan)


def token_signals(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[np.ndarray, ...]]:
    """[`SOFTMAX_COLUMNS`] of the labelled tokens of each row.

    Args:
        logits (`torch.Tensor` `[B, T, V]`):
            Position `t` predicts token `t + 1`.
        labels (`torch.Tensor` `[B, T]`):
            Token ids, unshifted; -100 where a token is not scored.

    Returns:
        `list[tuple[np.ndarray]]`: `B` tuples of arrays `[labelled tokens]`.
    """

    def compute(scores: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores = scores.double()
        label = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, wanted[:, None], True)
        log_odds = scores[label] - scores.masked_fill(label, -torch.inf).logsumexp(-1)
        return torch.nn.functional.logsigmoid(log_odds), log_odds, *_shape(scores)

    return map_labelled(compute, logits, labels, CHUNK_ELEMENTS)


def softmax_signals(logits: torch.Tensor, targets: torch.Tensor) -> list[tuple[np.ndarray, ...]]:
    """[`SOFTMAX_COLUMNS`] of a classifier whose classes exclude each other.

    Args:
        logits (`torch.Tensor` `[B, C]`):
            Of the classes.
        targets (`torch.Tensor` `[B, C]`):
            Shares of the classes; divided by their sum, which may be 0 (no label: NaN).

    Returns:
        `list[tuple[np.ndarray]]`: `B` tuples of arrays `[1]`.
    """
    scores, targets = logits.double(), targets.double().to(logits.device)
    shares = targets / targets.sum(-1, keepdim=True)
    logps = scores.log_softmax(-1)
    right = (logps + shares.log()).logsumexp(-1)
    wrong = (logps + (1 - shares).clamp(min=0).log()).logsumexp(-1)
    logp = torch.where(shares > 0, shares * logps, torch.where(shares.isnan(), shares, 0.0)).sum(-1)
    return _rows_of_one(logp, right - wrong, *_shape(scores))


def sigmoid_signals(logits: torch.Tensor, targets: torch.Tensor) -> list[tuple[np.ndarray, ...]]:
    """[`SIGMOID_COLUMNS`] of a classifier that says yes or no to every class, such as ViLT's.

    `logp` is the log-likelihood of all answers, minus the summed binary cross-entropy; `log_odds` the logit of the
    labelled classes, averaged by target; `top` and `margin` are of the sigmoids.

    Args:
        logits (`torch.Tensor` `[B, C]`), targets (`torch.Tensor` `[B, C]`):
            Targets lie in [0, 1].

    Returns:
        `list[tuple[np.ndarray]]`: `B` tuples of arrays `[1]`.
    """
    logsigmoid = torch.nn.functional.logsigmoid
    scores, targets = logits.double(), targets.double().to(logits.device)
    yes, no = logsigmoid(scores), logsigmoid(-scores)
    top = scores.sigmoid().topk(2, dim=-1).values
    entropy = -(yes.exp() * yes + no.exp() * no).sum(-1)
    log_odds = (targets * scores).sum(-1) / targets.sum(-1)
    return _rows_of_one(
        (targets * yes + (1 - targets) * no).sum(-1), log_odds, top[:, 0], top[:, 0] - top[:, 1], entropy
    )


def _shape(scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`top`, `margin`, `entropy` and `spread` of softmax predictions `[m, V]`."""
    logps = scores.log_softmax(-1)
    top = logps.topk(2, dim=-1).values.exp()
    # A class that a model rules out has -inf, and counts for nothing.
    logps = logps.clamp(min=-1e4)
    p = logps.exp()
    mean = (p * logps).sum(-1)
    spread = (p * (logps - mean[:, None]) ** 2).sum(-1).sqrt()
    return top[:, 0], top[:, 0] - top[:, 1], -mean, spread


def _rows_of_one(*columns: torch.Tensor) -> list[tuple[np.ndarray, ...]]:
    return [tuple(row[:, None]) for row in torch.stack(columns, dim=1).cpu().numpy()]
