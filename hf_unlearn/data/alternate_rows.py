# SPDX-License-Identifier: Apache-2.0
"""Other answers for every forget row: rows that are paired with the forget rows by index.

They are given as rows (`alternate_dataset`), stand in a column beside the forget rows' own answers
(`alternate_column`), or are made (`alternate_source`, see `other_answers.py`). What is made of rows becomes such
columns; what the model itself samples (`training/sampled.py`) is there once there is a model.
"""

from collections.abc import Sized

from datasets import interleave_datasets

from .alternates import MADE, OF_SAMPLES, SAMPLED, alternate_columns, source_of
from .formats import IGNORE_INDEX, dataset_type
from .other_answers import from_pool, read_refusals, refused, shuffled
from .role_table import ALTERNATE, FORGET
from .seeds import data_seed
from .tables import as_dataset


def with_made(rows, answers: str, args, retain=None):
    """The rows with columns of alternates, where the settings ask for some that are made and there are none yet.

    Args:
        rows (`datasets.Dataset`): forget rows.
        answers (`str`): the column of their own answers.
        args ([`UnlearnConfig`]): a method's.
        retain (`datasets.Dataset`, *optional*): rows whose answers stand in the same column.
    """
    source, columns = source_of(args), alternate_columns(args)
    if source not in MADE or columns[0] in rows.column_names or answers not in rows.column_names:
        return rows
    own, seed, count = list(rows[answers]), data_seed(args), args.num_alternates
    if source == "refusal":
        made = refused(own, read_refusals(args.alternate_file), seed, count)
    elif source == "shuffled":
        made = shuffled(own, seed, count)
    else:
        made = from_pool(own, _answers_of(retain, answers), seed, count)
    for number, name in enumerate(columns):
        rows = rows.add_column(name, made[number::count])
    return rows


def _answers_of(retain, answers: str) -> list:
    if retain is None or answers not in retain.column_names:
        what = "there are none" if retain is None else f"they have the columns {sorted(retain.column_names)}"
        raise ValueError(
            f"alternate_source='retain' takes answers of retain rows (`{answers}`), and {what}. Give retain rows with "
            "answers, or take alternate_source='refusal' or 'shuffled'."
        )
    return list(retain[answers])


def alternates_of(forget, given, args, needed: bool, retain=None):
    """The alternates of forget rows, not encoded yet.

    Args:
        forget (`datasets.Dataset` or `list[dict]`): rows of any TRL type.
        given (`datasets.Dataset` or `list[dict]`, *optional*): `num_alternates` rows for each of them.
        args ([`UnlearnConfig`]): [`AlternateArguments`] are read, where a method has them.
        needed (`bool`): whether the method reads alternates.
        retain (`datasets.Dataset` or `list[dict]`, *optional*): rows whose answers may be taken.

    Returns:
        `datasets.Dataset` or `None`: `num_alternates` times as many rows as `forget` has, those of a row one after the
        other; `None` where the method reads none, and where a model has to sample them.

    Raises:
        `ValueError`: where they are given and not read, read and not given, given twice, or not one for each.
    """
    source, count = source_of(args), getattr(args, "num_alternates", 1)
    if not needed:
        if given is not None:
            raise ValueError(
                "`alternate_dataset` was given, and this method reads no alternates: no term compares forget rows "
                "with other answers. Leave it out."
            )
        return None
    forget = as_dataset(forget, "forget")
    if given is None and source is None:
        raise ValueError(
            "This method reads another answer for each forget row. Pass `alternate_dataset`, one row for each forget "
            "row, name a column of the forget rows as `alternate_column`, or take alternate_source='refusal' or "
            "'shuffled'."
        )
    if given is None and source == SAMPLED:
        return None
    if given is None:
        return _of_columns(forget, args, retain)
    asked = getattr(args, "alternate_source", None)
    # Rows that a command has encoded have no such columns any more.
    made = asked == SAMPLED or asked in MADE and dataset_type(forget.column_names) != "tokenized"
    if made or asked == "column" and args.alternate_column in forget.column_names:
        said = f"alternate_column={args.alternate_column!r}" if asked == "column" else f"alternate_source={asked!r}"
        raise ValueError(
            f"The alternates are given twice: as `alternate_dataset`, and as {said} of the forget rows. Leave one out."
        )
    given = as_dataset(given, ALTERNATE)
    if len(given) != count * len(forget):
        told = (
            "row i of the one belongs to row i of the other. Give one alternate for each forget row, in their order."
            if count == 1
            else f"num_alternates={count} of them belong to each forget row, one after the other. Give as many, in "
            "the order of the forget rows."
        )
        raise ValueError(f"There are {len(given)} alternate rows and {len(forget)} forget rows; {told}")
    return given


def _of_columns(forget, args, retain):
    """The forget rows with the answers of columns in place of their own, those of a row one after the other."""
    columns, named = alternate_columns(args), args.alternate_column
    if named is None and not {"prompt", "completion"} <= {*forget.column_names}:
        raise ValueError(
            f"alternate_source={source_of(args)!r} makes other completions, and the forget rows have the "
            f"columns {sorted(forget.column_names)}. Give rows of `prompt` and `completion`, or pass "
            "`alternate_dataset`."
        )
    retain = None if retain is None else as_dataset(retain, "retain")
    forget = with_made(forget, "completion", args, retain)
    if named is not None and named not in forget.column_names:
        raise ValueError(
            f"alternate_column={named!r} is no column of the forget rows, which have {sorted(forget.column_names)}."
        )
    if dataset_type(forget.column_names) != "prompt_completion" or named in ("prompt", "completion"):
        raise ValueError(
            f"alternate_column={named!r} is read as another `completion`, and needs forget rows of `prompt` and "
            "`completion` beside it. Give such rows, or pass the alternates as `alternate_dataset`."
        )
    # Topics number the forget rows; an alternate is about what its forget row is about.
    others = [name for name in ("completion", "topic") if name in forget.column_names]
    forget = forget.remove_columns(others)
    parts = [
        forget.remove_columns([name for name in columns if name != column]).rename_column(column, "completion")
        for column in columns
    ]
    return parts[0] if len(parts) == 1 else interleave_datasets(parts)


def check_alternates(forget, alternate, given: Sized, tokenizer, count: int = 1) -> None:
    """Refuses encoded alternates that do not belong to the forget rows at their index.

    Args:
        forget, alternate (`datasets.Dataset`): encoded rows.
        given (`Sized`): the alternates before they were encoded, of which some may have been left out.
        count (`int`): alternates of a forget row.
        tokenizer (`PreTrainedTokenizerBase`): decodes the example shown.

    Raises:
        `ValueError`: where rows were left out, and where a pair has two prompts or one answer.
    """
    for name, rows, wanted in ((FORGET, forget, len(given) // count), (ALTERNATE, alternate, len(given))):
        if len(rows) != wanted:
            raise ValueError(
                f"{wanted - len(rows)} of {wanted} {name} rows have no token to train on within max_length, "
                "and without them the others would be paired with wrong rows. Take them and their partners out, or "
                "raise `max_length`."
            )
    same = []
    for number, other in enumerate(alternate):
        row = forget[number // count]
        prompts = [prompt_of(each) for each in (row, other)]
        # Where tokens merge over the seam of prompt and answer, a prompt ends earlier.
        seen = min(map(len, prompts))
        if prompts[0][:seen] != prompts[1][:seen]:
            shown = " and ".join(repr(tokenizer.decode(prompt, skip_special_tokens=True)[-80:]) for prompt in prompts)
            raise ValueError(
                f"Row {number} of the alternate set answers another prompt than row {number // count} of the forget "
                f"set ({shown}). Give the alternates in the order of the forget rows, each with its prompt."
            )
        if row["input_ids"] == other["input_ids"]:
            same.append(number)
    if same:
        raise ValueError(
            f"{len(same)} of {len(given)} alternates are the forget row itself, the first that of row {same[0]}: it "
            "would be forgotten and preferred. Give another answer, or take the row out."
        )


def check_prompts(forget, given: int) -> None:
    """Refuses encoded forget rows that no model can answer otherwise.

    Args:
        forget (`datasets.Dataset`): encoded rows.
        given (`int`): rows before they were encoded, of which some may have been left out.

    Raises:
        `ValueError`: where rows were left out, or have no prompt.
    """
    if len(forget) != given:
        raise ValueError(
            f"{given - len(forget)} of {given} forget rows have no token to train on within max_length. Take them "
            "out, or raise `max_length`."
        )
    without = [number for number, row in enumerate(forget) if not prompt_of(row)]
    if without:
        raise ValueError(
            f"{OF_SAMPLES} has the model answer prompts, and {len(without)} of {given} forget rows have none, the "
            f"first is row {without[0]}. Give rows of `prompt` and `completion`, or take another source."
        )


def prompt_of(row) -> list[int]:
    """The tokens before the first that is trained on."""
    first = next(place for place, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
    return list(row["input_ids"][:first])
