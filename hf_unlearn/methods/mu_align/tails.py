# SPDX-License-Identifier: Apache-2.0
r"""Penalties on what is left of a prediction that should be uniform: MU-ALIGN's tail terms, one value a row.

Of a row's logits \\( z \\) over \\( K \\) classes, with \\( p = softmax(z) \\), \\( p_{(1)} \ge p_{(2)} \ge \dots \\):

| name         | value of a row                                                           | source               |
|--------------|--------------------------------------------------------------------------|----------------------|
| `topk_hinge` | \\( \frac{1}{k} \sum_{j \le k} \max(0, p_{(j)} - c)^2 \\), c = 1/K       | ours: only its name  |
| `topk_mean`  | \\( \frac{1}{k} \sum_{j \le k} p_{(j)} \\)                               | is published         |
| `cvar`       | `topk_hinge`, mean over the worst share of a row's tokens                | ours, likewise       |
| `conf_hinge` | \\( \max(0, p_{(1)} - c)^2 \\), c = 0.35                                 | the published code   |
| `margin`     | \\( \max(0, z_{(1)} - z_{(2)} - c)^2 \\), c = 1                          | the published code   |
| `logit_norm` | \\( \max(0, \| z - \bar z \|_2 / \sqrt K - c)^2 \\), c = 1               | README; centring, c  |
| `emb_norm`   | \\( \max(0, \| h \|_2 - c)^2 \\) of the state before the head            | the published code   |

`topk_mean` hardly moves a single spike: once the top k hold the mass, their sum is 1 whatever the split inside.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...fused.predicted import Predicted
from ...losses import at_least_float32


def topk_hinge(logits: Tensor, top_k: int, cap: float | None = None) -> Tensor:
    """Mean squared excess of the `top_k` largest probabilities over `cap`, `[N]`; `cap` is 1 / K if left out."""
    return (_largest(logits, top_k) - (1 / logits.shape[-1] if cap is None else cap)).relu().square().mean(-1)


def topk_mean(logits: Tensor, top_k: int, cap: None = None) -> Tensor:
    """Mean of the `top_k` largest probabilities, `[N]`."""
    return _largest(logits, top_k).mean(-1)


def conf_hinge(logits: Tensor, top_k: int, cap: float) -> Tensor:
    """Squared excess of the largest probability over `cap`, `[N]`."""
    return topk_hinge(logits, 1, cap)


def margin(logits: Tensor, top_k: int, cap: float) -> Tensor:
    """Squared excess over `cap` of the distance between the two largest logits, `[N]`."""
    first, second = at_least_float32(logits).topk(2).values.unbind(-1)
    return (first - second - cap).relu().square()


def logit_norm(logits: Tensor, top_k: int, cap: float) -> Tensor:
    """Squared excess over `cap` of the logits' standard deviation, `[N]`: a norm that a shift of all logits does not
    change, divided by sqrt(K) so that a cap means the same for any number of classes."""
    logits = at_least_float32(logits)
    centred = logits - logits.mean(-1, keepdim=True)
    return (torch.linalg.vector_norm(centred, dim=-1) / centred.shape[-1] ** 0.5 - cap).relu().square()


def emb_norm(states: Tensor, cap: float) -> Tensor:
    """Squared excess of the norm of `states [N, d]` over `cap`, `[N]`. Behind a normalisation layer, as in most
    language models, the norm hardly depends on the input: the penalty then shrinks that layer's scale for all rows."""
    return (torch.linalg.vector_norm(at_least_float32(states), dim=-1) - cap).relu().square()


TAILS: dict[str, Callable[..., Tensor]] = {
    "topk_hinge": topk_hinge,
    "topk_mean": topk_mean,
    "cvar": topk_hinge,
    "conf_hinge": conf_hinge,
    "margin": margin,
    "logit_norm": logit_norm,
}
TOP_K_TAILS = ("topk_hinge", "topk_mean", "cvar")
# Where none is given; `None` is the function's own.
CAPS = {"topk_hinge": None, "cvar": None, "conf_hinge": 0.35, "margin": 1.0, "logit_norm": 1.0}


@dataclass(frozen=True)
class Tail:
    """A tail penalty of logits.

    Args:
        name (`str`): a key of `TAILS`.
        top_k (`int`): how many of the largest probabilities count, where the penalty is over those.
        cap (`float`, *optional*): what is free.
    """

    name: str
    top_k: int
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        return TAILS[self.name](logits, self.top_k, self.cap)


@dataclass(frozen=True)
class WorstShare:
    """Weights that turn a mean over all tokens of a row (of a classifier: over all rows of a batch) into one over the
    worst: conditional value at risk.

    Args:
        level (`float`): the share that counts, rounded up to whole tokens or rows.
    """

    level: float

    def __call__(self, stats: Mapping[str, Tensor], predicted: Predicted) -> Tensor:
        """`[N]`, for `stats["tail"]` of `[N]`: tokens over tokens that count where one counts, 0 elsewhere."""
        values = stats["tail"]
        mask = predicted.pools
        spread = torch.where(mask, values.new_zeros(mask.shape).masked_scatter(mask, values), -torch.inf)
        tokens = mask.sum(1)
        # One part in a million is forgiven: a third of three is not to be two for want of a digit.
        counted = (self.level * tokens - 1e-6).ceil().clamp(min=1)
        rank = spread.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        weights = torch.where(rank < counted[:, None], (tokens / counted)[:, None], 0.0)
        return weights[mask].to(values.dtype)


def _largest(logits: Tensor, count: int) -> Tensor:
    """The `count` largest probabilities, `[N, count]`, without a buffer for all."""
    logits = at_least_float32(logits)
    return (logits.topk(count).values - logits.logsumexp(-1, keepdim=True)).exp()
