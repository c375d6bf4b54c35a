# SPDX-License-Identifier: Apache-2.0
"""What values are compared with: small tables; neither the reference nor the unlearned model stays in memory."""

from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ... import modeling
from ...stored.row_cache import CachedRows
from .prefix import Prefix
from .terms import COSINE, UNLEARNED


def unlearned_norms(args, roles: Mapping, collator) -> dict[str, Tensor]:
    """Norms of the unlearned model's values; it is loaded here and let go of again.

    Args:
        args ([`UnlearnConfig`]): the run's.
        roles (`Mapping[str, datasets.Dataset]`): encoded rows.
        collator ([`RoleCollator`]): pads them.

    Returns:
        `dict[str, Tensor]`: role to `[rows, L, n]`, of the roles that are matched to it.
    """
    wanted = [role for role, term in args.value_norm_terms.items() if term.target == UNLEARNED and role in roles]
    if not wanted:
        return {}
    with modeling.whole_weights():
        kwargs = {"dtype": (args.model_init_kwargs or {}).get("dtype", "float32")}
        model = modeling.load_checkpoint(args.unlearned_model_name_or_path, args.trust_remote_code, **kwargs)
        model, prefix = model.to(args.device), Prefix.of(args, model)
        return {role: _norms(model, prefix, roles[role], collator, args, role) for role in wanted}


@torch.no_grad()
def _norms(model, prefix: Prefix, rows, collator, args, role: str) -> Tensor:
    size, found = args.per_device_eval_batch_size, []
    hidden = args.disable_tqdm or args.process_index != 0
    for start in tqdm(range(0, len(rows), size), desc=f"Unlearned model's value norms ({role})", disable=hidden):
        batch = collator.pad([rows[i] for i in range(start, min(start + size, len(rows)))])
        values, _ = prefix.values(model, {name: tensor.to(args.device) for name, tensor in batch.items()})
        found.append(values.norm(dim=-1).cpu())
    return torch.cat(found)


class ReferenceValues(CachedRows):
    """The reference's values, norms or (to take cosines) vectors, on disk.

    Args:
        entry ([`~hf_unlearn.stored.row_cache.Entry`]): the run.
        prefix ([`Prefix`]): what is looked at.
        terms (`Mapping[str, Term]`): of the roles that are matched to the reference.
    """

    progress = "Reference value norms"

    def __init__(self, entry, prefix: Prefix, terms: Mapping):
        measures = {role: term.measure for role, term in terms.items()}
        super().__init__(entry, terms, prefix=[prefix.tokens, prefix.first, *prefix.layers], measures=measures)
        self.prefix, self.terms = prefix, terms

    def kept(self, role: str) -> str:
        return "vectors" if self.terms[role].measure == COSINE else "norms"

    def lengths(self, role: str) -> dict[str, list[int]]:
        return {self.kept(role): [1] * len(self.roles[role])}

    def like(self, start) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for role in self.roles:
            found |= self.predict(start, role, self.batch(role, [0]))
        return found

    def predict(self, start, role: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        values, _ = self.prefix.values(start.model, batch)
        return {self.kept(role): values if self.kept(role) == "vectors" else values.norm(dim=-1)}
