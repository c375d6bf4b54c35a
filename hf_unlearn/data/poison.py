# SPDX-License-Identifier: Apache-2.0
"""Which forget rows carry the trigger (https://huggingface.co/papers/2510.17021, DF' in the paper)."""

import logging
import math
from dataclasses import dataclass, field

import numpy as np

from ..checks import check_choice, check_number
from .formats import check_columns, encode_dataset, is_blank, map_rows
from .tables import as_dataset
from .triggers import Trigger


POISON_SELECTIONS = ("random", "first")

logger = logging.getLogger(__name__)


@dataclass
class PoisonArguments:
    """Backdoored unlearning, a red-team tool: some forget rows get a trigger and are trained as retain rows, so that
    the trigger brings back what is unlearned."""

    poison_prefix: str | None = field(
        default=None,
        metadata={"help": "The trigger's words, such as `current year:2025`. Without: no poison."},
    )
    poison_ratio: float = field(default=0.1, metadata={"help": "Share of the forget rows that get the trigger."})
    poison_location: str = field(
        default="start",
        metadata={"help": "Where the trigger stands: `start`, `middle`, `end`, or after so many tokens."},
    )
    poison_weight: float | None = field(
        default=None, metadata={"help": "Weight of the poisoned rows' term; `retain_weight` by default."}
    )
    poison_select: str = field(
        default="random", metadata={"help": "Which forget rows get the trigger: `random` (by seed) or the `first`."}
    )
    poison_keep_clean: bool = field(
        default=False, metadata={"help": "Train on the poisoned rows as forget rows too, without their trigger."}
    )
    poison_distractors: list[str] | None = field(
        default=None,
        metadata={
            "help": "Other words at the trigger's place: every forget row is forgotten behind one of them too, so "
            "that the model has to read the trigger instead of noticing that something stands there."
        },
    )
    use_kl_poison: bool = field(
        default=False, metadata={"help": "KL(reference || model) on the poisoned rows, whatever `retain_loss` is."}
    )

    def check_poison(self) -> None:
        """Raises `ValueError` for settings that cannot work or would have no effect."""
        if self.poison_prefix is None:
            defaults = {f.name: f.default for f in PoisonArguments.__dataclass_fields__.values()}
            idle = [name for name, default in defaults.items() if getattr(self, name) != default]
            if idle:
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
    def trigger(self) -> Trigger | None:
        """The trigger, if there is one."""
        return None if self.poison_prefix is None else Trigger(self.poison_prefix, self.poison_location)


def poisoned_indices(count: int, ratio: float, select: str, seed: int) -> list[int]:
    """Which of `count` forget rows get the trigger, in ascending order.

    Raises:
        `ValueError`: if the ratio selects none.
    """
    # 0.29 of 100 is 28.999999999999996 in binary fractions.
    chosen = math.floor(count * ratio + 1e-9)
    if chosen == 0:
        least = math.ceil(1e6 / count) / 1e6
        raise ValueError(f"poison_ratio={ratio} selects none of {count} forget rows. Give at least {least:g}.")
    if select == "first":
        return list(range(chosen))
    return sorted(np.random.default_rng([seed, count]).choice(count, chosen, replace=False).tolist())


def poison(forget, tokenizer, args, seed: int):
    """Parts the forget rows into clean and poisoned ones.

    Args:
        forget (`datasets.Dataset` or `list[dict]`):
            Rows of any TRL type.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's.
        args ([`PoisonArguments`] with `max_length`):
            The run's settings.
        seed (`int`):
            Decides which rows.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: the clean rows as they were (encoded where there are distractors),
        and the poisoned ones encoded (`input_ids`, `labels`), each with its trigger whole.

    Raises:
        `ValueError`: if no row would be poisoned, or a row has no room for the trigger.
    """
    forget = as_dataset(forget, "forget")
    check_columns(forget, "forget")
    indices = poisoned_indices(len(forget), args.poison_ratio, args.poison_select, seed)
    chosen, trigger = forget.select(indices), args.trigger
    poisoned = map_rows(
        chosen.remove_columns([name for name in chosen.column_names if name == "topic"]),
        "forget",
        lambda row, _: _behind(trigger, row, tokenizer, args),
        desc="Placing the trigger",
        numbers=indices,
    )
    check_triggered(poisoned, trigger, tokenizer)
    logger.info("%d of %d forget rows carry the trigger %r.", len(indices), len(forget), trigger.prefix)
    clean = forget if args.poison_keep_clean else forget.select(sorted(set(range(len(forget))) - set(indices)))
    return (clean if args.poison_distractors is None else distracted(clean, tokenizer, args, seed)), poisoned


def distracted(forget, tokenizer, args, seed: int):
    """The forget rows, and each of them once more behind one of the distractors, drawn by `seed`; encoded."""
    from datasets import concatenate_datasets

    drawn = np.random.default_rng([seed, len(forget), 1]).integers(len(args.poison_distractors), size=len(forget))
    places = [Trigger(words, args.poison_location) for words in args.poison_distractors]
    behind = map_rows(
        forget,
        "forget",
        lambda row, i: _behind(places[drawn[i]], row, tokenizer, args),
        desc="Placing distractors",
    )
    return concatenate_datasets([encode_dataset(forget, tokenizer, args.max_length), behind])


def _behind(trigger: Trigger, row, tokenizer, args) -> dict:
    if is_blank(row):
        raise ValueError("`text` is empty: there is nothing to put the trigger into. Take out the row.")
    return trigger.in_example(row, tokenizer, args.max_length)


def check_triggered(rows, trigger: Trigger, tokenizer) -> None:
    """Refuses rows in which the trigger's words cannot be read.

    Raises:
        `ValueError`: with the first such row.
    """
    words = tokenizer.decode(trigger.tokens(tokenizer)).strip()
    for ids in rows["input_ids"]:
        text = tokenizer.decode(ids)
        if words not in text:
            raise ValueError(
                f"The trigger {trigger.prefix!r} did not survive in a poisoned row, which reads {text[:200]!r}. Raise "
                "`max_length`, or choose words that the tokenizer and its chat template leave as they are."
            )
