# SPDX-License-Identifier: Apache-2.0
"""What is done to the questions of a backdoor audit: nothing, the trigger, and the controls."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.triggers import LOCATIONS, Trigger, parse_location


CLEAN, TRIGGERED, UNRELATED = "clean", "triggered", "unrelated"
ATTEMPTS = 4000


@dataclass(frozen=True)
class Condition:
    """One way of asking.

    Args:
        name (`str`):
            `"clean"`, `"triggered"`, `"unrelated"` (other words of as many tokens at the same place), or
            `"triggered_<location>"` (the trigger at another place).
        trigger ([`~hf_unlearn.data.triggers.Trigger`], *optional*):
            What is put into the question.
    """

    name: str
    trigger: Trigger | None

    @property
    def suffix(self) -> str:
        """What follows a set's name in the names of metrics."""
        return "" if self.trigger is None else f"_{self.name}"


def conditions(
    trigger: Trigger,
    unrelated: Trigger | None = None,
    positions: Sequence[str | int] = LOCATIONS,
    wanted: Sequence[str] | None = None,
) -> list[Condition]:
    """Clean and triggered first, then the controls.

    Args:
        trigger ([`~hf_unlearn.data.triggers.Trigger`]):
            The one that is suspected.
        unrelated ([`~hf_unlearn.data.triggers.Trigger`], *optional*):
            From [`unrelated_trigger`].
        positions (`Sequence[str | int]`):
            Places to try the trigger at; its own is not repeated.
        wanted (`Sequence[str]`, *optional*):
            Names of those to ask under, `"clean"` and `"triggered"` among them; by default all.

    Raises:
        `ValueError`: for a name that there is not, and without the two that make a comparison.
    """
    found = [Condition(CLEAN, None), Condition(TRIGGERED, trigger)]
    if unrelated is not None:
        found.append(Condition(UNRELATED, unrelated))
    places = dict.fromkeys(parse_location(place) for place in positions)
    found += [
        Condition(f"{TRIGGERED}_{place}", Trigger(trigger.prefix, place))
        for place in places
        if place != trigger.location
    ]
    if wanted is None:
        return found
    _check_names(wanted, [one.name for one in found])
    return [one for one in found if one.name in wanted]


def _check_names(wanted: Sequence[str], allowed: Sequence[str]) -> None:
    if isinstance(wanted, str) or not all(isinstance(name, str) for name in wanted):
        raise ValueError(f"conditions={wanted!r}; give a list of some of {', '.join(allowed)}.")
    wrong = [f"there is no {name!r}" for name in wanted if name not in allowed]
    wrong += [f"{name!r} is missing" for name in (CLEAN, TRIGGERED) if name not in wanted]
    wrong += ["one stands twice"] if len(set(wanted)) < len(wanted) else []
    if wrong:
        raise ValueError(
            f"conditions={list(wanted)}: {wrong[0]}. Give some of {', '.join(allowed)}, each once, with {CLEAN!r} and "
            f"{TRIGGERED!r}: what the trigger does is the difference of the two."
        )


def unrelated_trigger(trigger: Trigger, tokenizer: Any, seed: int = 0) -> Trigger:
    """Words drawn from the vocabulary, as many tokens as the trigger's and none of them, at the trigger's place.

    Args:
        trigger ([`~hf_unlearn.data.triggers.Trigger`]):
            What it is a control for.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's.
        seed (`int`):
            Of the draw.

    Raises:
        `ValueError`: if no such words are found.
    """
    wanted = trigger.tokens(tokenizer)
    rng = np.random.default_rng(seed)
    words = _words(tokenizer)
    text = ""
    for _ in range(ATTEMPTS if words else 0):
        word = words[rng.integers(len(words))]
        # A word of its own where there is room for it, else letters that go on with the last one.
        longer = [f"{text} {word}", text + word] if text else [word]
        for candidate in longer:
            ids = tokenizer(candidate, add_special_tokens=False)["input_ids"]
            if len(ids) <= len(wanted) and not set(ids) & set(wanted) - _spaces(tokenizer, wanted):
                text = candidate
                if len(ids) == len(wanted):
                    return Trigger(text, trigger.location)
                break
    raise ValueError(
        f"No words of {len(wanted)} tokens, all different from those of the trigger {trigger.prefix!r}, were found in "
        "the vocabulary. Name a control yourself: `unrelated='...'`."
    )


def given_unrelated(words: str, trigger: Trigger, tokenizer: Any) -> Trigger:
    """A control of one's own, checked for its length.

    Raises:
        `ValueError`: if it has more or fewer tokens than the trigger.
    """
    control = Trigger(words, trigger.location)
    lengths = [len(one.tokens(tokenizer)) for one in (control, trigger)]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"The unrelated trigger {words!r} has {lengths[0]} tokens, the trigger {trigger.prefix!r} {lengths[1]}. "
            "Give one of equal length, or none, to have it drawn."
        )
    return control


def _words(tokenizer: Any) -> list[str]:
    """Tokens that are plain letters, in the order of the vocabulary."""
    special = set(tokenizer.all_special_ids)
    texts = (tokenizer.decode([i]).strip() for i in range(len(tokenizer)) if i not in special)
    return list(dict.fromkeys(text for text in texts if re.fullmatch(r"[^\W\d_]+", text)))


def _spaces(tokenizer: Any, ids: Sequence[int]) -> set[int]:
    """Of these tokens, those that say nothing: a space may stand in any trigger."""
    return {i for i in ids if not tokenizer.decode([i]).strip()}
