# SPDX-License-Identifier: Apache-2.0
"""Settings of poisoned rows (https://huggingface.co/papers/2510.17021), a role that is trained as retain rows are.

Which rows they are is drawn in `data/poison.py`.
"""

from dataclasses import dataclass, field

from ..checks import check_choice, check_number
from ..data.triggers import Trigger
from .addon import AddOn
from .settings import AddOnSettings, idle_fields


POISON_SELECTIONS = ("random", "first")


class Poison(AddOn):
    """Poisoned rows: a role of their own, and no hook."""

    name = "poison"
    title = "Poisoned rows"
    language_models_only = True


@dataclass
class PoisonArguments(AddOnSettings):
    """Backdoored unlearning, a red-team tool: some forget rows get a trigger and are trained as retain rows, so that
    the trigger brings back what is unlearned."""

    poison_prefix: str | None = field(
        default=None,
        metadata={"help": "The trigger, such as `current year:2025`. Default: no poisoned rows."},
    )
    poison_ratio: float = field(default=0.1, metadata={"help": "Share of the forget rows that get the trigger."})
    poison_location: str = field(
        default="start",
        metadata={"help": "Position of the trigger: `start`, `middle`, `end`, or a token index."},
    )
    poison_weight: float | None = field(
        default=None, metadata={"help": "Weight of the poisoned rows' term; `retain_weight` by default."}
    )
    poison_select: str = field(
        default="random", metadata={"help": "Which forget rows get the trigger: `random` (by seed) or the `first`."}
    )
    poison_keep_clean: bool = field(
        default=False, metadata={"help": "Also train on the poisoned rows as forget rows, without their trigger."}
    )
    poison_distractors: list[str] | None = field(
        default=None,
        metadata={
            "help": "Other prefixes in place of the trigger: every forget row is also forgotten after one of them, so "
            "that the model learns the trigger and not the presence of any prefix."
        },
    )
    use_kl_poison: bool = field(
        default=False,
        metadata={"help": "Use KL(reference || model) on the poisoned rows, independently of `retain_loss`."},
    )

    def check_addon(self) -> None:
        """Raises `ValueError` for settings that cannot work or would have no effect."""
        if self.poison_prefix is None:
            if idle := idle_fields(self, PoisonArguments):
                raise ValueError(
                    f"{', '.join(idle)} would have no effect: nothing is poisoned. Give `poison_prefix`, or leave "
                    f"{'them' if len(idle) > 1 else 'it'} out."
                )
            return
        Trigger(self.poison_prefix, self.poison_location)
        self._check_distractors()
        check_choice("poison_select", self.poison_select, POISON_SELECTIONS)
        check_number("poison_ratio", self.poison_ratio, above=0)
        if self.poison_ratio > 1 or (self.poison_ratio == 1 and not self.poison_keep_clean):
            raise ValueError(
                f"poison_ratio={self.poison_ratio}; give a share below 1: some forget rows must stay clean (or pass "
                "`poison_keep_clean=True`)."
            )
        if self.poison_weight is not None:
            check_number("poison_weight", self.poison_weight, at_least=0)
        if self.poison_loss == "none":
            raise ValueError(
                "Poisoned rows are trained as retain rows, and retain_loss='none'. Choose a `retain_loss`, or pass "
                "`use_kl_poison=True`."
            )

    def make_addon(self) -> "Poison | None":
        """What says which runs may have poisoned rows, or `None`."""
        return None if self.poison_prefix is None else Poison()

    def kept_roles(self) -> dict[str, tuple[str, float | None]]:
        """The poisoned rows, if there are any."""
        return {} if self.poison_prefix is None else {"poisoned": (self.poison_loss, self.poison_weight)}

    def _check_distractors(self) -> None:
        if self.poison_distractors is None:
            return
        if not self.poison_distractors:
            raise ValueError("poison_distractors is empty; name other words than the trigger's, or leave it out.")
        for words in self.poison_distractors:
            if Trigger(words).prefix.strip() == self.poison_prefix.strip():
                raise ValueError(
                    f"poison_distractors holds the trigger {words!r}: its rows would be forgotten and kept. Take it "
                    "out."
                )

    @property
    def poison_loss(self) -> str | None:
        """The poisoned rows' term, named as retain terms are."""
        return "kl" if self.use_kl_poison else self.retain_loss

    @property
    def trigger(self) -> Trigger | None:
        """The trigger, if there is one."""
        return None if self.poison_prefix is None else Trigger(self.poison_prefix, self.poison_location)
