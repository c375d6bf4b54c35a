# SPDX-License-Identifier: Apache-2.0
"""All frozen models of a run."""

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from torch import nn

from ..forward.needs import REFERENCE, Needs, names_of, roles_comparing
from ..forward.passes import Parts
from ..forward.path import Forward
from ..forward.role_rows import References as Said
from ..modeling import load_checkpoint
from ..models.checkpoint_paths import adapter_folder, check_model_path
from ..models.wrappers import check_logits
from ..stored.row_cache import RunStart
from .base import Reference
from .build import ReferenceRequest, build_reference
from .cached import CachedReference


class References:
    """The frozen models that a run's rows are compared with, by name.

    Args:
        models (`Mapping[str, Reference]`): each in its form.
        needs (`Needs`): role to what the method reads of it.
        weights (`Mapping[str, str]`): what tells the models apart that were given by a name of their own.
    """

    def __init__(self, models: Mapping[str, Reference], needs: Needs, weights: Mapping[str, str]):
        self.models, self.needs, self.weights = dict(models), needs, dict(weights)

    @classmethod
    def of(cls, request: ReferenceRequest) -> "References":
        """Those that the roles of a run are compared with.

        Raises:
            `ValueError`: if one cannot take the form asked for.
        """
        needs = {role: need for role, need in request.needs.items() if role in request.entry.roles}
        names = names_of(needs)
        models = {name: build_reference(request, name) for name in names}
        # A checkpoint does not hold them: a run that goes on has to be given the same.
        entries = {
            name: found.entry if isinstance(found, CachedReference) else request.entry.of(request.models[name])
            for name, found in models.items()
            if name != REFERENCE
        }
        weights = {name: entry.identity for name, entry in entries.items()}
        return cls(models, needs, weights)

    def get(self, name: str) -> Reference | None:
        """The model of a name, if rows are compared with it."""
        return self.models.get(name)

    def open(self, accelerator) -> None:
        """As [`Reference.open`], of all."""
        for model in self.models.values():
            model.open(accelerator)

    def prepare(self, start: RunStart) -> None:
        """As [`Reference.prepare`], of all."""
        for model in self.models.values():
            model.prepare(start)

    def close(self) -> None:
        """As [`Reference.close`], of all."""
        for model in self.models.values():
            model.close()

    def rows(self, forward: Forward, policy: nn.Module, parts: Parts) -> Said:
        """What each says of the roles that are compared with it; see [`Reference.rows`]."""
        said: dict[str, dict] = {}
        for name, model in self.models.items():
            asked = roles_comparing(self.needs, name)
            if own := {role: part for role, part in parts.items() if role in asked}:
                for role, rows in model.rows(forward, policy, own).items():
                    said.setdefault(self.needs[role].stands_for or role, {})[name] = rows
        return said

    def positions_read(self, read: Mapping[str, int]) -> int:
        """Positions that go through frozen models in training, of those that the policy reads of each role."""
        along = (name for name, model in self.models.items() if model.reads_along)
        return sum(read[role] for name in along for role in roles_comparing(self.needs, name) if role in read)


def given_models(
    names: list[str], given: Mapping[str, Any] | None, own: Mapping[str, str], fused_losses: bool | None = None
) -> dict[str, Any]:
    """The models that a run is given by name, as they were given.

    Args:
        names (`list[str]`): of those that the method compares with.
        given (`Mapping[str, nn.Module or str]`, *optional*): `ref_models` of the trainer.
        own (`Mapping[str, str]`): paths or Hub ids that the method's settings name.
        fused_losses (`bool`, *optional*): the config's.

    Raises:
        `ValueError`: for one that is missing, given twice, or that cannot be compared with.
    """
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ValueError(f"`ref_models` is a {type(given).__name__}. Pass a dict of name to model, path or Hub id.")
    named = [name for name in names if name != REFERENCE]
    if unknown := [name for name in given if name not in named]:
        allowed = ", ".join(map(repr, named)) or "no model but the reference, which is `ref_model`"
        raise ValueError(f"`ref_models` has {unknown[0]!r}; this method compares with {allowed}. Leave it out.")
    if twice := sorted(given.keys() & own.keys()):
        raise ValueError(f"The model {twice[0]!r} is given in `ref_models` and by the config. Leave one out.")
    found = {name: given.get(name, own.get(name)) for name in named}
    if missing := [name for name, model in found.items() if model is None]:
        raise ValueError(
            f"This method compares rows with a model called {missing[0]!r}, and none was given. Pass "
            f"ref_models={{{missing[0]!r}: ...}}: a loaded model, a path or a Hub id; or name it in the method's "
            "config."
        )
    for name, model in found.items():
        if not isinstance(model, (nn.Module, str, PathLike)):
            raise ValueError(
                f"ref_models[{name!r}] is a {type(model).__name__}. Pass a loaded model, a path or a Hub id."
            )
        check_logits(f"ref_models[{name!r}]", model, fused_losses)
        if not isinstance(model, nn.Module) and adapter_folder(fspath(model)) is None:
            check_model_path(fspath(model))
    return {name: model if isinstance(model, nn.Module) else fspath(model) for name, model in found.items()}


def loaded(given: Mapping[str, Any], args) -> dict[str, nn.Module]:
    """Models by name, those that are paths loaded, in the policy's dtype."""
    kwargs = {"dtype": (args.model_init_kwargs or {}).get("dtype", "float32")}
    return {
        name: load_checkpoint(model, args.trust_remote_code, **kwargs) if isinstance(model, str) else model
        for name, model in given.items()
    }
