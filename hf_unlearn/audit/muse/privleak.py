# SPDX-License-Identifier: Apache-2.0
"""PrivLeak of MUSE: can the forgotten texts be told from texts that were never seen?"""

import math
import re
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from ..generation import pad_token_id
from ..inputs import Labelled, numbers, share
from ..inputs import texts as checked_texts
from ..result import RESAMPLES, MetricResult
from ..scoring import score_rows


MIN_K = 0.4
# AUCs of the retrained Llama-2-7B models that MUSE published, key `forget_holdout_Min-40%`.
RETRAINED_AUC = {"news": 0.4772, "books": 0.5393}


def membership_scores(
    model: torch.nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    k: float = MIN_K,
    max_length: int | None = None,
    batch_size: int = 8,
    accelerator: Any = None,
    progress: bool = True,
    desc: str = "Min-K% scores",
) -> list[float | None]:
    """Min-K% score of every text (Shi et al. 2023): mean log-probability of its `int(k * n)` least likely tokens.

    Larger is more member-like.

    Args:
        model (`transformers.PreTrainedModel` or `peft.PeftModel`), tokenizer (`PreTrainedTokenizerBase`):
            Any checkpoint.
        texts (`Sequence[str]`):
            Tokenised as the tokenizer begins a text, without EOS; all tokens but the first are scored.
        k (`float`):
            Share of the tokens, in (0, 1].
        max_length (`int`, *optional*):
            Longest text in tokens; MUSE cuts none.
        batch_size, accelerator, progress, desc:
            As in [`score_rows`].

    Returns:
        `list`: one value a text; `None` where `int(k * n)` is 0 or a log-probability is not finite. It knows its `k`,
        which [`holdout_auc`] and [`privleak`] read.

    Raises:
        `ValueError`: for a `k` outside (0, 1], or one text in place of a list.
    """
    k = share("k", k)
    encoded = [tokenizer(text)["input_ids"][:max_length] for text in checked_texts("texts", texts)]
    rows = [{"input_ids": ids, "labels": ids} for ids in encoded]
    scores = score_rows(
        model,
        rows,
        pad_token_id=pad_token_id(tokenizer),
        batch_size=batch_size,
        accelerator=accelerator,
        progress=progress,
        desc=desc,
    )
    return Labelled([_lowest_mean(score.logps, k) for score in scores], k)


def holdout_auc(
    forget: Sequence[float | None], holdout: Sequence[float | None], k: float | None = None
) -> MetricResult:
    """AUC with which *holdout* texts look more member-like than forget texts: MUSE's direction, by which PrivLeak is
    defined. It is 1 less [`~hf_unlearn.audit.privacy.auc_result`], where larger is more leakage.

    0 where every forget text is still known better than any other, 0.5 where nothing tells them apart, towards 1 where
    forget texts have become suspiciously unlikely. The bootstrap resamples both groups.

    Args:
        forget, holdout (`Sequence[float]`):
            From [`membership_scores`].
        k (`float`, *optional*):
            As there; named in the variant. By default what the scores say, of others `MIN_K`.

    Raises:
        `ValueError`: for another `k` than that of the scores, or no scores.
    """
    k = _k_of(k, forget, holdout)
    groups = [_defined(scores) for scores in (forget, holdout)]
    value = _auc(*groups)
    draws = None if value is None else _resampled(lambda f, h: _rank_auc(groups[0][f], groups[1][h]), groups)
    return _result("min_k_auc", value, draws, forget, holdout, k, {})


def membership_auc(
    forget: Sequence[float | None], holdout: Sequence[float | None], k: float | None = None
) -> MetricResult:
    """The old name of [`holdout_auc`]. It read as if a larger AUC were more leakage, as in
    [`~hf_unlearn.audit.privacy.auc_result`]; it is less."""
    warnings.warn(
        "`membership_auc` is called `holdout_auc`: it counts pairs in which the *holdout* text looks more like a "
        "member. For an AUC that grows with leakage take `auc_result(members, nonmembers)`.",
        FutureWarning,
        stacklevel=2,
    )
    return holdout_auc(forget, holdout, k)


def privleak(
    forget: Sequence[float | None],
    holdout: Sequence[float | None],
    retrained: float | str | tuple[Sequence[float | None], Sequence[float | None]],
    k: float | None = None,
) -> MetricResult:
    r"""PrivLeak, \\(100 (AUC - AUC_r) / AUC_r\\) (Shi et al. 2024, MUSE, section 3).

    0 is the retrained model's; -100 says that the texts are plainly still known, far above 0 that they were pushed
    below what a model that never saw them gives them.

    Args:
        forget, holdout (`Sequence[float]`):
            From [`membership_scores`], of the audited model.
        retrained (`float`, `str` or `tuple`):
            \\(AUC_r\\): a number; `"news"` or `"books"` for MUSE's published ones (of Llama-2-7B); or forget and
            holdout scores of a retrained model, measured on the same texts, which the bootstrap then resamples along.
        k (`float`, *optional*):
            As in [`holdout_auc`].

    Returns:
        `MetricResult`: value in percent; `details` holds both AUCs.

    Raises:
        `ValueError`: for an unknown corpus, a retrained AUC outside (0, 1], retrained scores of other texts or of
            another `k`, or the published AUCs (of Min-40%) at another `k`.
    """
    is_number = isinstance(retrained, Real) and not isinstance(retrained, bool)
    if not is_number and not isinstance(retrained, str) and (not hasattr(retrained, "__len__") or len(retrained) != 2):
        raise ValueError(
            f"retrained={retrained!r:.60}; give the AUC of a retrained model, a corpus of MUSE, or the retrained "
            "model's forget and holdout scores."
        )
    is_constant = is_number or isinstance(retrained, str)
    others = () if is_constant else retrained
    k = _k_of(k, forget, holdout, *others)
    if isinstance(retrained, str) and retrained in RETRAINED_AUC and k != MIN_K:
        raise ValueError(
            f"The published AUCs are of Min-{100 * MIN_K:g}%, and the scores are of Min-{100 * k:g}%. Give the AUC of "
            "a retrained model at that k, or its scores."
        )
    if is_constant:
        baseline, source = _constant(retrained), retrained if isinstance(retrained, str) else "given"
        groups = [_defined(forget), _defined(holdout)]

        def ratio(f, h):
            return _rank_auc(groups[0][f], groups[1][h]), baseline
    else:
        source = "measured"
        pairs = (_paired(forget, retrained[0], "forget"), _paired(holdout, retrained[1], "holdout"))
        groups, others = [list(column) for column in zip(*pairs, strict=True)]
        baseline = _auc(*others)

        def ratio(f, h):
            return _rank_auc(groups[0][f], groups[1][h]), _rank_auc(others[0][f], others[1][h])

    auc = _auc(*groups)
    value = None if auc is None or not baseline else 100 * (auc - baseline) / baseline
    draws = None if value is None else _resampled(lambda f, h: _leak(*ratio(f, h)), groups)
    details = {"auc": auc, "auc_retrained": baseline, "retrained": source}
    return _result("privleak", value, draws, forget, holdout, k, details)


def scores_in(result: MetricResult) -> tuple[list[float | None], list[float | None]]:
    """Forget and holdout scores that a `min_k_auc` or `privleak` was made of."""
    n = result.details["texts"][0]
    # Results of older versions have k in the variant alone.
    k = result.details.get("k") or float(re.match(r"Min-([\d.]+)%", result.variant)[1]) / 100
    return Labelled(result.per_item[:n], k), Labelled(result.per_item[n:], k)


def _k_of(given: float | None, *columns: Sequence[float | None]) -> float:
    """The share of tokens that scores are of, the same for all of them."""
    known = [*(scores.definition for scores in columns if isinstance(scores, Labelled)), given]
    known = sorted({share("k", k) for k in known if k is not None})
    if len(known) > 1:
        raise ValueError(f"Scores of k={' and k='.join(map(str, known))} do not compare. Score all texts at one k.")
    return known[0] if known else MIN_K


def _lowest_mean(logps: np.ndarray, k: float) -> float | None:
    n = int(len(logps) * k)
    if n == 0 or not np.isfinite(logps).all():
        return None
    return float(np.sort(logps.astype(np.float64))[:n].mean())


def _auc(forget: np.ndarray, holdout: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    if not len(forget) or not len(holdout):
        return None
    labels = np.repeat([0, 1], [len(forget), len(holdout)])
    return float(roc_auc_score(labels, np.concatenate([forget, holdout])))


def _rank_auc(forget: np.ndarray, holdout: np.ndarray) -> np.ndarray:
    """The same of many resamples at once, `[resamples, items]`, from ranks (Mann-Whitney; ties count half)."""
    from scipy.stats import rankdata

    n, m = forget.shape[-1], holdout.shape[-1]
    ranks = rankdata(np.concatenate([forget, holdout], axis=-1), axis=-1)
    return (ranks[..., n:].sum(-1) - m * (m + 1) / 2) / (n * m)


def _leak(auc: np.ndarray, baseline) -> np.ndarray:
    baseline = np.broadcast_to(np.asarray(baseline, dtype=np.float64), auc.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(baseline > 0, 100 * (auc - baseline) / baseline, np.nan)


def _resampled(statistic, groups: list[np.ndarray], seed: int = 0) -> np.ndarray:
    """A statistic of `RESAMPLES` seeded draws of each group's items; it takes the items' places."""
    rng = np.random.default_rng(seed)
    return statistic(*(rng.integers(len(group), size=(RESAMPLES, len(group))) for group in groups))


def _result(name, value, draws, forget, holdout, k, details) -> MetricResult:
    interval = None
    if draws is not None and np.isfinite(draws).all() and np.ptp(draws) > 0:
        low, high = np.percentile(draws, [2.5, 97.5])
        interval = float(low), float(high)
    forget, holdout = numbers("forget", forget), numbers("holdout", holdout)
    counts = [len(_defined(scores)) for scores in (forget, holdout)]
    return MetricResult(
        name=name,
        value=value,
        n=sum(counts),
        direction="closer_to_retrained",
        per_item=[*forget, *holdout],
        undefined=len(forget) + len(holdout) - sum(counts),
        interval=interval,
        interval_method=None if interval is None else "bootstrap percentile",
        variant=f"Min-{100 * k:g}%, AUC of holdout over forget",
        details={"texts": [len(forget), len(holdout)], "k": k, **details},
    )


def _constant(retrained: float | str) -> float:
    if isinstance(retrained, str):
        if retrained not in RETRAINED_AUC:
            raise ValueError(
                f"No AUC of a retrained model is known for {retrained!r}, only for {', '.join(RETRAINED_AUC)}. Give "
                "the AUC, or the scores of a retrained model."
            )
        return RETRAINED_AUC[retrained]
    if not math.isfinite(retrained) or not 0 < retrained <= 1:
        raise ValueError(f"The retrained model's AUC is {retrained}; give one above 0 and at most 1.")
    return float(retrained)


def _paired(mine: Sequence[float | None], theirs: Sequence[float | None], name: str) -> tuple[np.ndarray, np.ndarray]:
    if len(mine) != len(theirs):
        raise ValueError(
            f"The retrained model has {len(theirs)} {name} scores, the audited one {len(mine)}. Score the same texts."
        )
    columns = numbers(name, mine), numbers(f"retrained {name}", theirs)
    both = [(a, b) for a, b in zip(*columns, strict=True) if a is not None and b is not None]
    pairs = np.array(both, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _defined(scores: Sequence[float | None]) -> np.ndarray:
    return np.array([score for score in numbers("scores", scores) if score is not None], dtype=np.float64)
