# SPDX-License-Identifier: Apache-2.0
"""The rows of every role, encoded and checked before any model is loaded."""

from .formats import encode_dataset


def encode_roles(forget, retain, tokenizer, args) -> dict:
    """Encodes the rows that a run trains on.

    Args:
        forget, retain (`datasets.Dataset`, `list[dict]` or `None`):
            Rows of any supported type; the two may differ in type.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the model.
        args (`UnlearnConfig`):
            `max_length`, `retain_loss` and `allow_overlap` are read.

    Returns:
        `dict[str, datasets.Dataset]`: role to rows. Retain rows are left out where no term trains on them.

    Raises:
        `ValueError`: for a set that is missing, empty or unusable, and for sets that share rows.
    """
    roles = {"forget": encode_dataset(forget, tokenizer, args.max_length, "forget")}
    if args.retain_loss == "none":
        return roles
    if retain is None:
        raise ValueError(
            f"retain_loss={args.retain_loss!r} needs retain rows. Pass `retain_dataset`, or take retain_loss='none'."
        )
    roles["retain"] = encode_dataset(retain, tokenizer, args.max_length, "retain")
    if not args.allow_overlap:
        check_disjoint(roles["forget"], roles["retain"], tokenizer)
    return roles


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
