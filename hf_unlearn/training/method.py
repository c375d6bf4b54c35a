# SPDX-License-Identifier: Apache-2.0
"""What a method says of itself. A method overrides some of this, and nothing that is private."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from ..data.pairing import RolePairs
from ..data.role_table import FORGET, tied_to
from ..data.seeds import data_seed
from ..families.base import CAUSAL_LM, CLASSIFIER
from ..forward.needs import KL, LOGPS, REFERENCE, Needs, roles_comparing
from ..forward.path import Forward
from ..forward.role_rows import RoleRows
from ..stored.row_cache import Entry
from .config import UnlearnConfig


class Method:
    """The part of [`UnlearnTrainer`] that a method overrides: its config, what it reads of rows, what it refuses, and
    its terms."""

    config_class: ClassVar[type[UnlearnConfig]] = UnlearnConfig
    method: ClassVar[str] = "unlearn"
    paper: ClassVar[str | None] = None
    # Kinds of models that the method is defined for.
    families: ClassVar[tuple[str, ...]] = (CAUSAL_LM, CLASSIFIER)
    # Tied roles of which a step reads all rows that belong to a row, not the next of them.
    together: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def needs_of(cls, args: UnlearnConfig) -> Needs:
        """What the method reads of each role's rows: log-probabilities, or KL(reference || model), by default."""
        kept = {role: KL if term == "kl" else LOGPS for role, term in args.kept_terms.items()}
        return {FORGET: LOGPS, **kept}

    @classmethod
    def reference_roles_of(cls, args: UnlearnConfig, name: str = REFERENCE) -> set[str]:
        """Roles whose rows are compared with a frozen model, as [`~UnlearnTrainer.needs_of`] says."""
        return roles_comparing(cls.needs_of(args), name)

    @classmethod
    def trained_roles_of(cls, args: UnlearnConfig) -> tuple[str, ...]:
        """Roles whose rows go through the model with a gradient, in a batch's order."""
        kept = [role for role, term in args.kept_terms.items() if term != "none"]
        tied = [role for role in cls.needs_of(args) if tied_to(role) in (FORGET, *kept)]
        return (FORGET, *kept, *tied)

    @classmethod
    def forgets(cls, term: str) -> bool:
        """Whether a term of the objective, named as in `terms`, is on the side of forgetting, or keeps what the model
        is to keep: add-ons that treat the two sides apart ask. By default those of forget rows and of the rows that
        are tied to them forget."""
        return FORGET in (term, tied_to(term))

    @classmethod
    def replaces_answers(cls, args: UnlearnConfig) -> bool:
        """Whether other answers stand in the forget rows in place of their own, and are what the model is to say."""
        return False

    @classmethod
    def ref_models_of(cls, args: UnlearnConfig) -> dict[str, str]:
        """Paths or Hub ids of frozen models that the method's settings name, by the names that its needs have."""
        return {}

    @classmethod
    def check_early(cls, args: UnlearnConfig, roles, processor, config) -> None:
        """Raises `ValueError` for what settings, encoded rows and the model's config show alone; for commands, which
        load other models before there is a trainer."""

    def check_rows(self, args: UnlearnConfig, roles, tokenizer) -> None:
        """Raises `ValueError` for encoded rows that the method cannot use, and may leave some out in `roles`; called
        before the model is loaded."""

    @classmethod
    def unscored(cls, args: UnlearnConfig) -> str | None:
        """Why the forget term of some rows cannot be computed by itself before training, as scores of weights require;
        `None` where it can."""
        return None

    def make_pairs(self, roles, args: UnlearnConfig, processor) -> RolePairs:
        """Which rows meet in a step, and in which order; roles that the pairs leave out are not trained on."""
        return RolePairs(roles, data_seed(args), args.epoch_by, self.together)

    def check_eval(self, args: UnlearnConfig, eval_dataset) -> None:
        """Raises `ValueError` for rows to evaluate, as given to the constructor, that the method cannot do with."""

    def check_reference(self, args: UnlearnConfig, ref_model: nn.Module | None) -> None:
        """Raises `ValueError` for a `ref_model` that may not be the method's reference."""

    def setup(self, entry: Entry) -> None:
        """Takes from the model and the encoded rows what the objective depends on; called before the path of rows
        through the model is built. Raises `ValueError` for settings that do not fit them."""

    def check_architecture(self, args: UnlearnConfig, model: nn.Module) -> None:
        """Raises `ValueError` for settings that this model cannot follow."""

    def build_forward(self, model: nn.Module, args: UnlearnConfig, needs: Needs, shape: str) -> Forward:
        """The path of rows through the model; see [`~hf_unlearn.forward.path.Forward`]."""
        return self.family.build_forward(model, args, needs, shape)

    def trainable_patterns(self, args: UnlearnConfig, model: nn.Module) -> list[str] | None:
        """Regular expressions of the parameters to train; `None` for all that require a gradient (of which the method
        may have frozen some here)."""
        return args.trainable_modules

    @property
    def trains_model(self) -> bool:
        """Whether the coming step changes the model; not so where a method trains something else first."""
        return True

    def forget_loss(self, rows: RoleRows) -> Tensor:
        """The method's forget term: a scalar, mean over the micro-batch."""
        raise NotImplementedError(f"{type(self).__name__} defines no forget term.")

    def retain_loss(self, rows: RoleRows) -> Tensor:
        """The term of retain and poisoned rows: negative log-likelihood, or KL(reference || model) where that was
        asked for; a scalar."""
        return rows.nll if rows.kl_to_reference is None else rows.kl_to_reference

    def weight_of(self, role: str) -> float:
        """The weight of a role's term in this step; a method may let it change."""
        return self.args.weight_of(role)

    def terms(self, rows: Mapping[str, RoleRows]) -> dict[str, Tensor]:
        """The terms of the objective, role to a scalar, before they are weighted; by default each role's own,
        and none of roles that are tied to another, whose term reads them."""
        return {
            role: self.forget_loss(found) if role == FORGET else self.retain_loss(found)
            for role, found in rows.items()
            if tied_to(role) is None
        }
