# SPDX-License-Identifier: Apache-2.0
"""Another answer for every forget row: rows that are paired with the forget rows by index.

They are given as rows (`alternate_dataset`), stand in a column beside the forget rows' own answers
(`alternate_column`), or are made (`alternate_source`, see `other_answers.py`). What is made becomes such a column.
"""

from collections.abc import Sized
from dataclasses import dataclass, field

from ..checks import check_choice
from .formats import IGNORE_INDEX, dataset_type
from .other_answers import read_refusals, refused, shuffled
from .role_table import ALTERNATE
from .seeds import data_seed
from .tables import as_dataset


MADE = ("refusal", "shuffled")
SOURCES = ("column", *MADE)
# The column of answers that are made: no name that rows bring with them.
MADE_COLUMN = "_made_alternate"


@dataclass
class AlternateArguments:
    """Settings of methods whose forget term reads another answer to the same prompt."""

    alternate_source: str | None = field(
        default=None,
        metadata={
            "help": "Where the alternates come from: a `column` of the forget rows (`alternate_column`), a `refusal` "
            "drawn from the lines of `alternate_file`, or the `shuffled` answers of other forget rows. Default: the "
            "column where one is named, else they are given as `alternate_dataset`."
        },
    )
    alternate_file: str | None = field(
        default=None,
        metadata={
            "help": "Text file of refusals, one a line, for `alternate_source` `refusal`; `recipes/refusals.txt` is "
            "part of the package."
        },
    )
    alternate_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the forget rows that holds another answer to the row's prompt, in the form of "
            "`completion`."
        },
    )

    def __post_init__(self):
        if self.alternate_source is None and self.alternate_column is not None:
            self.alternate_source = "column"
        source = self.alternate_source
        if source is not None:
            check_choice("alternate_source", source, SOURCES)
        for name, of in (("alternate_column", "column"), ("alternate_file", "refusal")):
            if (getattr(self, name) is not None) != (source == of):
                what = "reads" if source == of else "does not read"
                advice = "Give it." if source == of else f"Leave it out, or take alternate_source={of!r}."
                raise ValueError(
                    f"alternate_source={source!r} {what} `{name}`, which is {getattr(self, name)!r}. {advice}"
                )
        if source == "refusal":
            read_refusals(self.alternate_file)
        super().__post_init__()


def alternate_column(args) -> str | None:
    """The column of the forget rows that holds, or will hold, the alternates."""
    made = getattr(args, "alternate_source", None) in MADE
    return MADE_COLUMN if made else getattr(args, "alternate_column", None)


def with_made(rows, answers: str, args):
    """The rows with a column of alternates, where the settings ask for some that are made and there is none yet.

    Args:
        rows (`datasets.Dataset`): forget rows.
        answers (`str`): the column of their own answers.
        args ([`UnlearnConfig`]): a method's.
    """
    source = getattr(args, "alternate_source", None)
    if source not in MADE or MADE_COLUMN in rows.column_names or answers not in rows.column_names:
        return rows
    own, seed = list(rows[answers]), data_seed(args)
    made = shuffled(own, seed) if source == "shuffled" else refused(own, read_refusals(args.alternate_file), seed)
    return rows.add_column(MADE_COLUMN, made)


def alternates_of(forget, given, args, needed: bool):
    """The alternates of forget rows, not encoded yet.

    Args:
        forget (`datasets.Dataset` or `list[dict]`): rows of any TRL type.
        given (`datasets.Dataset` or `list[dict]`, *optional*): one row for each of them.
        args ([`UnlearnConfig`]): [`AlternateArguments`] are read, where a method has them.
        needed (`bool`): whether the method reads alternates.

    Returns:
        `datasets.Dataset` or `None`: as many rows as `forget` has; `None` where the method reads none.

    Raises:
        `ValueError`: where they are given and not read, read and not given, given twice, or not one for each.
    """
    column = alternate_column(args)
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
            "row, name a column of the forget rows as `alternate_column`, or take alternate_source='refusal' or "
            "'shuffled'."
        )
    if given is None:
        return _of_column(forget, args)
    # Rows that a command has encoded have no such column any more.
    made = column == MADE_COLUMN and dataset_type(forget.column_names) != "tokenized"
    if made or column in forget.column_names:
        asked = f"alternate_source={args.alternate_source!r}" if made else f"alternate_column={column!r}"
        raise ValueError(
            f"The alternates are given twice: as `alternate_dataset`, and as {asked} of the forget rows. Leave one "
            "out."
        )
    given = as_dataset(given, ALTERNATE)
    if len(given) != len(forget):
        raise ValueError(
            f"There are {len(given)} alternate rows and {len(forget)} forget rows; row i of the one belongs to row i "
            "of the other. Give one alternate for each forget row, in their order."
        )
    return given


def _of_column(forget, args):
    """The forget rows with the answers of a column in place of their own."""
    column, named = alternate_column(args), args.alternate_column
    if named is None and not {"prompt", "completion"} <= {*forget.column_names}:
        raise ValueError(
            f"alternate_source={args.alternate_source!r} makes other completions, and the forget rows have the "
            f"columns {sorted(forget.column_names)}. Give rows of `prompt` and `completion`, or pass "
            "`alternate_dataset`."
        )
    forget = with_made(forget, "completion", args)
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
