# SPDX-License-Identifier: Apache-2.0
"""Which forget rows carry the trigger (https://huggingface.co/papers/2510.17021, DF' in the paper)."""

import logging
import math

import numpy as np

from .formats import check_columns, encode_dataset, is_blank, map_rows
from .tables import as_dataset
from .triggers import Trigger


logger = logging.getLogger(__name__)


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
        args ([`~hf_unlearn.addons.poison.PoisonArguments`] with `max_length`):
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
