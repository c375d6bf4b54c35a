# SPDX-License-Identifier: Apache-2.0
"""Another answer for every forget row: rows that are paired with the forget rows by index.

They are given as rows (`alternate_dataset`), or stand in a column beside the forget rows' own answers
(`alternate_column`). A source that makes them (refusals, answers sampled from the model) is one more branch of
[`alternates_of`].
"""

from collections.abc import Sized
from dataclasses import dataclass, field

from .formats import IGNORE_INDEX, dataset_type
from .role_table import ALTERNATE
from .tables import as_dataset


@dataclass
class AlternateArguments:
    """Settings of methods whose forget term reads another answer to the same prompt."""

    alternate_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the forget rows that holds another answer to the row's prompt, in the form of "
            "`completion`. Without it the alternates are given as `alternate_dataset`."
        },
    )


def alternates_of(forget, given, args, needed: bool):
    """The alternates of forget rows, not encoded yet.

    Args:
        forget (`datasets.Dataset` or `list[dict]`): rows of any TRL type.
        given (`datasets.Dataset` or `list[dict]`, *optional*): one row for each of them.
        args ([`UnlearnConfig`]): `alternate_column` is read, where a method has it.
        needed (`bool`): whether the method reads alternates.

    Returns:
        `datasets.Dataset` or `None`: as many rows as `forget` has; `None` where the method reads none.

    Raises:
        `ValueError`: where they are given and not read, read and not given, given twice, or not one for each.
    """
    column = getattr(args, "alternate_column", None)
    if not needed:
        if given is not None:
            raise ValueError(
                "`alternate_dataset` was given, and this method reads no alternates: no term compares forget rows "
                "with other answers. Leave it out."
            )
        return None
    forget = as_dataset(forget, "forget")
    if given is None and column is None:
        raise ValueError(
            "This method reads another answer for each forget row. Pass `alternate_dataset`, one row for each forget "
            "row, or name a column of the forget rows as `alternate_column`."
        )
    if given is None:
        return _of_column(forget, column)
    if column is not None and column in forget.column_names:
        raise ValueError(
            f"The alternates are given twice: as `alternate_dataset`, and as alternate_column={column!r} of the "
            "forget rows. Leave one out."
        )
    given = as_dataset(given, ALTERNATE)
    if len(given) != len(forget):
        raise ValueError(
            f"There are {len(given)} alternate rows and {len(forget)} forget rows; row i of the one belongs to row i "
            "of the other. Give one alternate for each forget row, in their order."
        )
    return given


def _of_column(forget, column: str):
    """The forget rows with the answers of a column in place of their own."""
    if column not in forget.column_names:
        raise ValueError(
            f"alternate_column={column!r} is no column of the forget rows, which have {sorted(forget.column_names)}."
        )
    if dataset_type(forget.column_names) != "prompt_completion" or column in ("prompt", "completion"):
        raise ValueError(
            f"alternate_column={column!r} is read as another `completion`, and needs forget rows of `prompt` and "
            "`completion` beside it. Give such rows, or pass the alternates as `alternate_dataset`."
        )
    # Topics number the forget rows; an alternate is about what its forget row is about.
    others = [name for name in ("completion", "topic") if name in forget.column_names]
    return forget.remove_columns(others).rename_column(column, "completion")


def check_alternates(forget, alternate, given: Sized, tokenizer) -> None:
    """Refuses encoded alternates that do not belong to the forget rows at their index.

    Args:
        forget, alternate (`datasets.Dataset`): encoded rows.
        given (`Sized`): the forget rows before they were encoded, of which some may have been left out.
        tokenizer (`PreTrainedTokenizerBase`): decodes the example shown.

    Raises:
        `ValueError`: where rows were left out, and where a pair has two prompts or one answer.
    """
    for name, rows in (("forget", forget), (ALTERNATE, alternate)):
        if len(rows) != len(given):
            raise ValueError(
                f"{len(given) - len(rows)} of {len(given)} {name} rows have no token to train on within max_length, "
                "and without them the others would be paired with wrong rows. Take them and their partners out, or "
                "raise `max_length`."
            )
    same = []
    for number, (row, other) in enumerate(zip(forget, alternate, strict=True)):
        prompts = [_prompt(each) for each in (row, other)]
        # Where tokens merge over the seam of prompt and answer, a prompt ends earlier.
        seen = min(map(len, prompts))
        if prompts[0][:seen] != prompts[1][:seen]:
            shown = " and ".join(repr(tokenizer.decode(prompt, skip_special_tokens=True)[-80:]) for prompt in prompts)
            raise ValueError(
                f"Row {number} of the alternate set answers another prompt than row {number} of the forget set "
                f"({shown}). Give the alternates in the order of the forget rows, each with its prompt."
            )
        if row["input_ids"] == other["input_ids"]:
            same.append(number)
    if same:
        raise ValueError(
            f"{len(same)} of {len(given)} alternates are the forget row itself, the first that of row {same[0]}: it "
            "would be forgotten and preferred. Give another answer, or take the row out."
        )


def _prompt(row) -> list[int]:
    """The tokens before the first that is trained on."""
    first = next(place for place, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
    return list(row["input_ids"][:first])
