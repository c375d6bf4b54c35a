# SPDX-License-Identifier: Apache-2.0
"""Are wrong answers as likely as the right one? Truth ratio, and forget quality, which compares it between models."""

import math
from collections.abc import Sequence

import numpy as np

from .inputs import Labelled, log_probabilities, nested_log_probabilities, numbers, settled_definition
from .result import MetricResult, direction_for, mean_result


VARIANTS = ("arithmetic", "geometric", "prob_mean")


def log_truth_ratios(
    logps: Sequence[float | None], wrong_logps: Sequence[Sequence[float | None]], variant: str = "arithmetic"
) -> list[float | None]:
    r"""Natural logarithm of every item's truth ratio \\(R\\): 0 where wrong answers are as likely as the right one.

    With per-token probabilities \\(p(a) = P(a \mid q)^{1/|a|}\\) of the (paraphrased) right answer \\(\tilde a\\) and
    of \\(k\\) wrong ones \\(\hat a_i\\):

    - `"arithmetic"`: \\(R = \frac{1}{k} \sum_i p(\hat a_i) / p(\tilde a)\\), Maini et al. 2024 (TOFU), section 2.2;
    - `"geometric"`: \\(R = (\prod_i p(\hat a_i))^{1/k} / p(\tilde a)\\), what the published forget qualities are made
      of (the authors' code, and OpenUnlearning);
    - `"prob_mean"`: the geometric form; [`truth_ratio`] turns it into a probability.

    Args:
        logps (`Sequence[float]` `[items]`):
            Mean log-probability a token of the right answers.
        wrong_logps (`Sequence[Sequence[float]]` `[items][wrong answers]`):
            The same of the wrong answers.
        variant (`str`):
            One of the above.

    Returns:
        `list`: one value an item, `None` where an answer has no finite probability or there is no wrong one. It knows
        its variant, which [`truth_ratio`] reads.

    Raises:
        `ValueError`: for an unknown variant, what are no log-probabilities, or lists of other lengths.
    """
    _check_variant(variant)
    logps = log_probabilities("logps", logps)
    wrong_logps = nested_log_probabilities("wrong_logps", wrong_logps, len(logps))
    found = [_log_ratio(right, wrong, variant) for right, wrong in zip(logps, wrong_logps, strict=True)]
    return Labelled(found, variant)


def truth_ratio(log_ratios: Sequence[float | None], variant: str | None = None, role: str = "retain") -> MetricResult:
    r"""Mean truth score of a set.

    Forgotten (and never learned) facts: \\(\min(R, 1/R)\\), 1 where right and wrong cannot be told apart. Retained
    facts: \\(\max(0, 1 - R)\\), 1 where wrong answers are impossible. Variant `"prob_mean"`:
    \\(1 / (1 + R)\\) for both, the right answer's share (OpenUnlearning).

    Args:
        log_ratios (`Sequence[float]`):
            From [`log_truth_ratios`].
        variant (`str`, *optional*):
            `"arithmetic"`, `"geometric"` or `"prob_mean"`; by default what [`log_truth_ratios`] was asked for, of
            numbers that do not say it `"arithmetic"`.
        role (`str`):
            `"forget"`, `"retain"` or `"holdout"`; decides the score and the direction.

    Returns:
        `MetricResult`: value in [0, 1]; NaN and infinity are undefined items.

    Raises:
        `ValueError`: for an unknown variant, or another than that of the ratios.
    """
    variant = settled_definition("variant", log_ratios, variant, VARIANTS[0], _same_ratio)
    _check_variant(variant)
    log_ratios = numbers("log_ratios", log_ratios)
    direction = direction_for("truth_ratio", role)
    if variant == "prob_mean":
        score = _share_of_right
    else:
        # exp(log R) of a collapsed model overflows; these forms cannot.
        score = (lambda x: max(0.0, -math.expm1(min(x, 0.0)))) if role == "retain" else (lambda x: math.exp(-abs(x)))
    per_item = [None if value is None else score(value) for value in log_ratios]
    return mean_result("truth_ratio", per_item, direction, variant=variant)


def forget_quality(
    log_ratios: Sequence[float | None], retrained_log_ratios: Sequence[float | None] | None, variant: str | None = None
) -> MetricResult:
    """p-value of the two-sided two-sample Kolmogorov-Smirnov test between the truth ratios of a model and of the
    retrained model on the forget set (Maini et al. 2024, TOFU, section 2.2).

    Near 1: no difference was found, which is no proof that there is none. It grows as items get fewer, so only values
    from the same items compare. Read it with model utility: a wrecked model can score high.

    Args:
        log_ratios (`Sequence[float]`):
            Of the audited model, from [`log_truth_ratios`]. Any increasing transform, as the ratios themselves, gives
            the same test.
        retrained_log_ratios (`Sequence[float]`):
            Of the model trained without the forget set.
        variant (`str`, *optional*):
            Truth ratio variant of both, noted in the result; by default what the ratios say.

    Returns:
        `MetricResult`: value in [0, 1]; `details` holds `log10_p` (`None` if p underflows to 0), `statistic` and
        `n_retrained`.

    Raises:
        `ValueError`: without values of the retrained model: there is nothing sensible to fall back on; and if the two
            models' ratios are of different variants.
    """
    from scipy.stats import ks_2samp

    for ratios in (log_ratios, retrained_log_ratios):
        variant = settled_definition("variant", ratios, variant, variant, _same_ratio)
    retrained_log_ratios = () if retrained_log_ratios is None else retrained_log_ratios
    log_ratios = numbers("log_ratios", log_ratios)
    reference = [x for x in numbers("retrained_log_ratios", retrained_log_ratios) if x is not None]
    if not reference:
        raise ValueError(
            "forget_quality compares with the truth ratios of a model retrained without the forget set, and got none. "
            "Audit that model on the same forget set and pass its audit as `retrained`."
        )
    values = [value for value in log_ratios if value is not None]
    test = ks_2samp(values, reference) if values else None
    p_value = None if test is None else float(test.pvalue)
    return MetricResult(
        name="forget_quality",
        value=p_value,
        n=len(values),
        undefined=len(log_ratios) - len(values),
        direction="higher",
        variant=variant,
        details={
            "log10_p": math.log10(p_value) if p_value else None,
            "statistic": None if test is None else float(test.statistic),
            "n_retrained": len(reference),
        },
    )


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"Unknown truth ratio variant {variant!r}. Allowed: {', '.join(VARIANTS)}.")


def _same_ratio(one: str, other: str) -> bool:
    """Whether two variants have the same ratio: `prob_mean` is another score of the geometric one."""
    return (one == "arithmetic") == (other == "arithmetic")


def _log_ratio(right: float | None, wrong: Sequence[float | None], variant: str) -> float | None:
    if right is None or not wrong or None in wrong:
        return None
    if variant == "arithmetic":
        return float(np.logaddexp.reduce(wrong) - math.log(len(wrong)) - right)
    return float(np.mean(wrong) - right)


def _share_of_right(log_ratio: float) -> float:
    # Both branches are 1 / (1 + R); each exponentiates only what cannot overflow.
    if log_ratio > 0:
        return math.exp(-log_ratio) / (1 + math.exp(-log_ratio))
    return 1 / (1 + math.exp(log_ratio))
