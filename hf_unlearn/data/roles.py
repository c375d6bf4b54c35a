# SPDX-License-Identifier: Apache-2.0
"""The rows of every role, encoded and checked before any model is loaded."""

from .alternate_rows import alternates_of, check_alternates, check_prompts
from .formats import encode_dataset
from .poison import poison
from .role_table import ALTERNATE, FORGET, POISONED, RETAIN
from .seeds import data_seed
from .tables import mapped


def encode_roles(forget, retain, tokenizer, args, poisoned=None, alternate=None, needed=()) -> dict:
    """Encodes the rows that a run trains on.

    Args:
        forget, retain (`datasets.Dataset`, `list[dict]` or `None`):
            Rows of any supported type; the two may differ in type.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the model.
        args (`UnlearnConfig`):
            Lengths, the poison's settings, `retain_loss` and `allow_overlap` are read.
        poisoned (`datasets.Dataset` or `list[dict]`, *optional*):
            Rows that carry the trigger already. Left out, forget rows are poisoned where a trigger is set.
        alternate (`datasets.Dataset` or `list[dict]`, *optional*):
            Another answer for each forget row; see [`~hf_unlearn.data.alternate_rows.alternates_of`].
        needed (`Collection[str]`):
            Roles that the method reads beside these.

    Returns:
        `dict[str, datasets.Dataset]`: role to rows. Retain rows are left out where no term trains on them, alternates
        where a model has to sample them.

    Raises:
        `ValueError`: for a set that is missing, empty or unusable, and for sets that share rows.
    """
    if poisoned is not None and args.poison_prefix is None:
        raise ValueError("Poisoned rows were given, but no trigger. Give `poison_prefix`, or leave them out.")
    alternate = alternates_of(forget, alternate, args, ALTERNATE in needed, retain)
    if ALTERNATE in needed and args.poison_prefix is not None:
        raise ValueError(
            "poison_prefix takes rows out of the forget set, and this method pairs each forget row with an alternate. "
            "Leave `poison_prefix` out, or take a method without alternates."
        )
    if poisoned is None and args.poison_prefix is not None:
        forget, poisoned = poison(forget, tokenizer, args, data_seed(args))
    roles = {FORGET: _number_topics(encode_dataset(forget, tokenizer, args.max_length, FORGET))}
    if args.retain_loss != "none" or (args.READS_RETAIN and retain is not None):
        if retain is None:
            raise ValueError(
                f"retain_loss={args.retain_loss!r} needs retain rows. Pass `retain_dataset`, or take "
                "retain_loss='none'."
            )
        roles[RETAIN] = encode_dataset(retain, tokenizer, args.max_length, RETAIN)
        if not args.allow_overlap:
            check_disjoint(roles[FORGET], roles[RETAIN], tokenizer)
    if poisoned is not None:
        roles[POISONED] = encode_dataset(poisoned, tokenizer, args.max_length, POISONED)
    if alternate is not None:
        roles[ALTERNATE] = encode_dataset(alternate, tokenizer, args.max_length, ALTERNATE)
        count = getattr(args, "num_alternates", 1)
        check_alternates(roles[FORGET], roles[ALTERNATE], alternate, tokenizer, count)
    elif ALTERNATE in needed:
        check_prompts(roles[FORGET], len(forget))
    return roles


def _number_topics(rows):
    """Topics as numbers from 0, in alphabetical order."""
    if "topic" not in rows.column_names:
        return rows
    numbers = {topic: number for number, topic in enumerate(sorted(set(rows["topic"])))}
    return mapped(rows, lambda row: {"topic": numbers[row["topic"]]})


def check_disjoint(forget, retain, tokenizer) -> None:
    """Refuses rows that stand in both sets: the two terms of the objective would cancel on them.

    Args:
        forget, retain (`datasets.Dataset`):
            Encoded rows.
        tokenizer (`PreTrainedTokenizerBase`):
            Decodes the example shown.

    Raises:
        `ValueError`: with the number of shared rows and the first of them.
    """
    known = {tuple(row) for row in forget["input_ids"]}
    shared = [row for row in retain["input_ids"] if tuple(row) in known]
    if shared:
        text = tokenizer.decode(shared[0], skip_special_tokens=True)
        raise ValueError(
            f"{len(shared)} of {len(retain)} retain rows are forget rows too, the first: {text[:200]!r}. Take them "
            "out of one set, or pass `allow_overlap=True` if this is meant."
        )
