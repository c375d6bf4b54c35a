# SPDX-License-Identifier: Apache-2.0
"""LiRA and U-LiRA: is a model as sure of a row as models that saw the row, or as models that did not?"""

from collections.abc import Sequence

import numpy as np

from .attack import BaseAttack
from .choose_subject import as_subject
from .shadows import IN, OUT, UNLEARNED, Shadows


MODES = ("online", "offline", "offline-two-sided")
# From so many shadow models on, a row's own variance is worth its noise (Carlini et al. 2022, section VI).
OWN_VARIANCE_FROM = 64
# Of the pooled standard deviation: shadow models that agree by chance must not decide alone.
SMALLEST_SD = 1e-3


class LiRAAttack(BaseAttack):
    r"""Likelihood-ratio attack (Carlini et al. 2022), on \\(\phi = \log p_y - \log \sum_{c \ne y} p_c\\).

    A language model's \\(\phi\\) is the mean over the row's tokens. Medians of \\(\phi\\) over shadow models with and
    without the row are \\(\mu_{in}, \mu_{out}\\):

    - `online`: \\(\log N(\phi; \mu_{in}, \sigma_{in}) - \log N(\phi; \mu_{out}, \sigma_{out})\\)
    - `offline`: \\((\phi - \mu_{out}) / \sigma_{out}\\), ranks as the paper's \\(\Phi(\cdot)\\), which rounds to 1
    - `offline-two-sided`: \\(-\log N(\phi; \mu_{out}, \sigma_{out})\\), as the released code has it; also sees rows
      that a model knows *less* than models which never saw them

    Args:
        shadows ([`Shadows`]):
            Only their rows can be scored.
        mode (`str`):
            As above.
        fixed_variance (`bool`, *optional*):
            One \\(\sigma_{in}\\) and one \\(\sigma_{out}\\), pooled within rows; by default below 64 shadow models.
        statistic (`str`):
            `"log_odds"` (\\(\phi\\)) or `"logp"`.
    """

    any_rows = False

    def __init__(
        self,
        shadows: Shadows,
        mode: str = "online",
        fixed_variance: bool | None = None,
        statistic: str = "log_odds",
    ):
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}; allowed: {', '.join(MODES)}.")
        self.shadows, self.mode, self.statistic = shadows, mode, statistic
        self.fixed = len(shadows) < OWN_VARIANCE_FROM if fixed_variance is None else fixed_variance
        self.name = f"lira-{mode}" + ("-fixed" if self.fixed else "")

    def compute_scores(self, model, data):
        subject = as_subject(model)
        phi = subject.observe(data).mean(self.statistic)
        columns = self.shadows.columns_of(subject.row_keys(data))
        shadow_phi = self.shadows.values(self.statistic)
        known = gaussians(shadow_phi, self.shadows.states == IN, self.fixed)
        unseen = gaussians(shadow_phi, self.shadows.states == OUT, self.fixed)
        if self.mode == "online":
            return _log_density(phi, known, columns) - _log_density(phi, unseen, columns)
        if self.mode == "offline-two-sided":
            return -_log_density(phi, unseen, columns)
        return (phi - unseen[0][columns]) / unseen[1][columns]


class ULiRAAttack(BaseAttack):
    """LiRA against unlearning (Hayes et al. 2024): was the row unlearned, or never seen?

    Both densities are of *unlearned* shadow models: those that trained on the row and unlearned it, and those that
    never saw it. Each is a Gaussian around the median.

    Args:
        shadows ([`Shadows`]):
            Trained with `unlearn`, by the same method and settings as the model under attack.
        fixed_variance (`bool`, *optional*), statistic (`str`):
            As in [`LiRAAttack`].
    """

    name = "u-lira"
    any_rows = False

    def __init__(self, shadows: Shadows, fixed_variance: bool | None = None, statistic: str = "log_odds"):
        if not (shadows.states == UNLEARNED).any():
            raise ValueError("No shadow model has unlearned anything. Train them with `unlearn=`.")
        self.shadows, self.statistic = shadows, statistic
        self.fixed = len(shadows) < OWN_VARIANCE_FROM if fixed_variance is None else fixed_variance

    def compute_scores(self, model, data):
        subject = as_subject(model)
        phi = subject.observe(data).mean(self.statistic)
        columns = self.shadows.columns_of(subject.row_keys(data))
        shadow_phi = self.shadows.values(self.statistic)
        unlearned, unseen = (
            gaussians(shadow_phi, self.shadows.states == state, self.fixed) for state in (UNLEARNED, OUT)
        )
        return _log_density(phi, unlearned, columns) - _log_density(phi, unseen, columns)


def gaussians(values: np.ndarray, mask: np.ndarray, fixed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Median and standard deviation of each row over the shadow models that `mask` picks.

    Args:
        values (`np.ndarray` `[S, n]`), mask (`np.ndarray` `[S, n]`, bool):
            A statistic of `n` rows under `S` models, and which of them count.
        fixed (`bool`):
            One standard deviation for all rows, pooled within rows.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: `[n]` and `[n]`.

    Raises:
        `ValueError`: if a row has fewer than two models, or all models agree on every row.
    """
    counts = mask.sum(0)
    if counts.min() < 2:
        raise ValueError(
            f"A row has {counts.min()} shadow models on one side, and a spread needs 2. Train more shadow models."
        )
    chosen = np.where(mask & np.isfinite(values), values, np.nan)
    usable = (~np.isnan(chosen)).sum(0)
    centre = np.full(len(counts), np.nan)
    variance = np.full(len(counts), np.nan)
    full = usable >= 2
    centre[full] = np.nanmedian(chosen[:, full], axis=0)
    variance[full] = np.nanvar(chosen[:, full], axis=0)
    pooled = np.sqrt(np.nansum(variance * usable) / max(1, (usable[full] - 1).sum()))
    if not pooled > 0:
        raise ValueError("All shadow models agree on every row: `train` gave the same model whatever the rows.")
    if fixed:
        return centre, np.full(len(counts), pooled)
    return centre, np.maximum(np.sqrt(variance), SMALLEST_SD * pooled)


def lira_attacks(shadows: Shadows) -> list[BaseAttack]:
    """All variants that these shadow models allow."""
    if (shadows.states == UNLEARNED).any():
        return [ULiRAAttack(shadows)]
    modes: Sequence[str] = MODES
    attacks: list[BaseAttack] = [LiRAAttack(shadows, mode, fixed_variance=True) for mode in modes]
    if len(shadows) >= OWN_VARIANCE_FROM:
        attacks += [LiRAAttack(shadows, mode, fixed_variance=False) for mode in modes]
    return attacks


def _log_density(phi: np.ndarray, of_rows: tuple[np.ndarray, np.ndarray], columns: np.ndarray) -> np.ndarray:
    from scipy.stats import norm

    return norm.logpdf(phi, of_rows[0][columns], of_rows[1][columns])
