# SPDX-License-Identifier: Apache-2.0
"""Settings of add-ons: mixin dataclasses that a config is made of, each of which makes its add-on."""

from dataclasses import fields
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .addon import AddOn


class AddOnSettings:
    """Base of the mixins. Names of fields are shared by all of a config's parts: begin them with the add-on's name.

    A subclass defines the three methods itself; they are called by class, so that several mixins do not hide each
    other's.
    """

    def check_addon(self) -> None:
        """Raises `ValueError` for settings that cannot work, or that have no effect because the add-on is off; called
        before [`~transformers.TrainingArguments`] are read."""

    def make_addon(self) -> "AddOn | None":
        """The add-on of these settings; `None` where they leave it off."""

    def kept_roles(self) -> dict[str, tuple[str, float | None]]:
        """Roles that the add-on brings and that are trained as retain rows are: the term (`nll` or `kl`, as in
        `retain_loss`) and its weight, `None` for `retain_weight`."""
        return {}


def addons_of(args) -> list["AddOn"]:
    """The add-ons that a config turns on, in the order of its classes."""
    made = [part.make_addon(args) for part in _parts(args, "make_addon")]
    return [addon for addon in made if addon is not None]


def check_settings(args) -> None:
    """Raises `ValueError` for the first add-on whose settings cannot work."""
    for part in _parts(args, "check_addon"):
        part.check_addon(args)


def kept_roles_of(args) -> dict[str, tuple[str, float | None]]:
    """As [`AddOnSettings.kept_roles`], of all add-ons together."""
    return {role: how for part in _parts(args, "kept_roles") for role, how in part.kept_roles(args).items()}


def idle_fields(args, part: type) -> list[str]:
    """Names of a mixin's fields that were given: those that differ from their defaults."""
    return [field.name for field in fields(part) if getattr(args, field.name) != field.default]


def check_idle(args, part: type, instead: str) -> None:
    """Raises `ValueError` for fields of a mixin that were given with the add-on off; `instead` says what to do."""
    if idle := idle_fields(args, part):
        raise ValueError(f"{', '.join(idle)} would have no effect: {instead}.")


def _parts(args, method: str) -> list[type]:
    classes = type(args).__mro__
    return [part for part in classes if issubclass(part, AddOnSettings) and method in vars(part)]
