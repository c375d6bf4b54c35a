# SPDX-License-Identifier: Apache-2.0
"""The penalty of a step."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...losses import masked_mean
from ...stored.row_cache import Entry
from ..addon import FORWARD, INSIDE, AddOn, Step
from .prefix import Prefix
from .tables import ReferenceValues, unlearned_norms
from .terms import COSINE, LOG, REFERENCE, ZERO, Term


def value_distance(values: Tensor, target: Tensor | None, mask: Tensor, measure: str) -> Tensor:
    r"""Distance of attention values to a target: mean over layers of the mean over rows and tokens.

    With \\( N = \| v \|_2 \\) over all heads together: \\( | N - N^* | \\) for `norm` (\\( N \\) itself without a
    target), \\( | \ln (N / N^*) | \\) for `log`, \\( 1 - \cos(v, v^*) \\) for `cosine`.

    Args:
        values (`Tensor`): `[B, L, n, d_v]`.
        target (`Tensor`, *optional*): norms `[B, L, n]`, or for `cosine` vectors like `values`; no gradient is taken.
        mask (`Tensor`): `[B, n]`, tokens that are there.
        measure (`str`): see above.

    Returns:
        `Tensor`: a scalar.
    """
    if measure == COSINE:
        distance = 1 - F.cosine_similarity(values, target.detach(), dim=-1)
    else:
        # Tokens that are not there have no direction to take a gradient in.
        there = mask[:, None, :, None]
        norms = torch.where(there, values, torch.ones_like(values)).norm(dim=-1)
        goal = (
            torch.zeros_like(norms) if target is None else torch.where(mask[:, None], target.detach(), norms.detach())
        )
        distance = (norms / goal).log().abs() if measure == LOG else (norms - goal).abs()
    # Every layer has the same tokens, so the mean of the layers' means is the mean over all.
    return masked_mean(distance, mask[:, None].expand_as(distance))


class ValueNormPenalty(AddOn):
    """One short pass a step over the first tokens of the rows that have a term.

    Args:
        args ([`UnlearnConfig`]): the run's.
    """

    name = "value_norms"
    title = "The value-norm penalty"
    requires = frozenset({INSIDE, FORWARD})
    language_models_only = True

    def __init__(self, args):
        self.args, self.weight = args, args.value_norm_penalty

    def load(self, roles: Mapping, collator) -> None:
        """Computes the unlearned model's table.

        Raises:
            `ValueError`: if no role of the run has a term.
        """
        self.terms: dict[str, Term] = {r: term for r, term in self.args.value_norm_terms.items() if r in roles}
        missing = set(self.args.value_norm_targets or {}) - set(self.terms)
        if missing or not self.terms:
            raise ValueError(
                f"The value-norm penalty is about {', '.join(sorted(missing or self.args.value_norm_terms))} rows, "
                f"and this run has {', '.join(roles)} rows."
            )
        self.unlearned = unlearned_norms(self.args, roles, collator)

    def setup(self, entry: Entry) -> None:
        """Finds the layers that are looked at.

        Raises:
            `ValueError`: if the models differ in layers.
        """
        self.prefix = Prefix.of(self.args, entry.model)
        for table in self.unlearned.values():
            if table.shape[1] != len(self.prefix.layers):
                raise ValueError(
                    f"The unlearned model has {table.shape[1]} layers to look at, the model "
                    f"{len(self.prefix.layers)}. Give a model that was unlearned from the same one."
                )
        compared = {role: term for role, term in self.terms.items() if term.target == REFERENCE}
        self.reference = ReferenceValues(entry, self.prefix, compared) if compared else None

    def prepare(self, start) -> None:
        """Computes the reference's table."""
        if self.reference is not None:
            self.reference.prepare(start)

    def loss(self, model: nn.Module, rows: Mapping, step: Step) -> Tensor:
        """The penalty of a batch, all roles' terms together."""
        terms = self.terms_of(model, {role: found.batch for role, found in rows.items()}, step.progress)
        for role, term in terms.items():
            step.log(f"{role}/value_norm", term)
        return sum(terms.values())

    def terms_of(self, model: nn.Module, parts: Mapping[str, Mapping[str, Tensor]], progress: float) -> dict:
        """The penalty of each role, weighted.

        Args:
            model (`nn.Module`): the wrapped policy.
            parts (`Mapping`): role to its rows of a batch.
            progress (`float`): share of training that is done.

        Returns:
            `dict[str, Tensor]`: role to a scalar.
        """
        looked_at = {role: parts[role] for role in self.terms}
        joint = {
            name: torch.cat([part[name] for part in looked_at.values()]) for name in ("input_ids", "attention_mask")
        }
        values, mask = self.prefix.values(model, joint)
        counts = [len(part["index"]) for part in looked_at.values()]
        found = {}
        rows = zip(looked_at.items(), values.split(counts), mask.split(counts), strict=True)
        for (role, part), own, there in rows:
            term = self.terms[role]
            distance = value_distance(own, self._target(role, part["index"]), there, term.measure)
            found[role] = self.weight * term.weight_at(progress) * distance
        return found

    def _target(self, role: str, index: Tensor) -> Tensor | None:
        if self.terms[role].target == ZERO:
            return None
        if self.terms[role].target == REFERENCE:
            return self.reference.values(role, self.reference.kept(role), index)
        return self.unlearned[role][index.cpu()].to(index.device)
