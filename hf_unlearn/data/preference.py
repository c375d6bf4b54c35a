# SPDX-License-Identifier: Apache-2.0
"""Forget and retain rows from data that was made for preference training."""

import json
import logging

from .formats import MEDIA
from .tables import as_dataset, mapped


logger = logging.getLogger(__name__)

# Settings of a row that change how it is rendered.
SETTINGS = ("tools", "chat_template_kwargs")
KEPT = ("prompt", "completion", *SETTINGS)
ALLOWED = "`chosen` and `rejected` (with or without `prompt`), or `prompt`, `completion` and `label`"


def split_forget_retain(dataset):
    """Splits preference data into what to forget and what to retain.

    | type                             | forget                        | retain                       |
    |----------------------------------|-------------------------------|------------------------------|
    | `prompt`, `chosen`, `rejected`   | each prompt with `rejected`   | each prompt with `chosen`    |
    | `prompt`, `completion`, `label`  | rows whose `label` is false   | rows whose `label` is true   |

    Prompts contained in `chosen` and `rejected` are extracted as in TRL's trainers, and conversations that both
    repeat are removed from them. Duplicate rows, such as a chosen answer with several rejected ones, are kept once.

    ```python
    forget, retain = split_forget_retain(load_dataset("json", data_files="preferences.jsonl", split="train"))
    trainer = NPOTrainer(model, args, forget_dataset=forget, retain_dataset=retain)
    ```

    Args:
        dataset (`datasets.Dataset` or `list[dict]`):
            Strings or conversations. `tools` and `chat_template_kwargs` are kept, other columns are not; `images`
            are refused.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: forget and retain rows, with `prompt` and `completion`. Retain is
        empty if no label is true.

    Raises:
        `ValueError`: if the columns are of neither type, if there is nothing to forget, if a label is not a boolean,
            or if a row would be both forgotten and retained.
    """
    dataset = as_dataset(dataset, "preference")
    columns = set(dataset.column_names)
    if pictures := columns & set(MEDIA):
        raise ValueError(
            f"The preference rows have `{min(pictures)}`, and language models are trained on text alone here. Leave "
            "the column out to train on the texts."
        )
    if {"chosen", "rejected"} <= columns:
        forget, retain = _of_pairs(dataset)
    elif {"prompt", "completion", "label"} <= columns:
        forget, retain = _of_labels(dataset)
    else:
        raise ValueError(f"No preference data: the columns are {sorted(columns)}. Give {ALLOWED}.")
    forget, retain = (_once(rows, role) for rows, role in ((forget, "forget"), (retain, "retain")))
    _check_apart(forget, retain)
    return forget, retain


def _of_pairs(dataset):
    pairs = mapped(dataset, _explicit, with_indices=True, remove_columns=dataset.column_names, desc="Finding prompts")
    kept = [name for name in KEPT if name in (*pairs.column_names, "completion")]
    return tuple(pairs.rename_column(side, "completion").select_columns(kept) for side in ("rejected", "chosen"))


def _explicit(row: dict, number: int) -> dict:
    """The row with its prompt on its own."""
    from trl import extract_prompt

    chosen, rejected = row["chosen"], row["rejected"]
    if chosen is None or rejected is None:
        raise ValueError(f"Row {number} has no {'`chosen`' if chosen is None else '`rejected`'}. Take it out.")
    kept = {name: row[name] for name in SETTINGS if name in row}
    prompt = row.get("prompt")
    # Some sets repeat as a string the prompt with which the conversations begin.
    if prompt is not None and isinstance(prompt, str) == isinstance(chosen, str):
        repeated = prompt and all(side[: len(prompt)] == prompt for side in (chosen, rejected))
        if repeated and not isinstance(prompt, str):
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **kept}
    if not chosen or not rejected or chosen == rejected:
        raise ValueError(
            f"Row {number} has no `prompt` of its own, and none can be found in `chosen` and `rejected`: one is "
            f"empty, or they are the same ({str(chosen)[:100]!r}). Take it out, or give `prompt`."
        )
    found = extract_prompt(row)
    if isinstance(prompt, str) and prompt and not found["prompt"]:
        # The conversations are answers alone.
        found["prompt"] = [{"role": "user", "content": prompt}]
    return found | kept


def _of_labels(dataset):
    labels = dataset["label"]
    for number, label in enumerate(labels):
        if not isinstance(label, (bool, int)) or label not in (0, 1):
            raise ValueError(f"Row {number} has label={label!r}; give true (retain) or false (forget).")
    if all(labels):
        raise ValueError(
            f"The labels of all {len(dataset)} rows are true, so nothing is to be forgotten. Label what is to be "
            "forgotten false."
        )
    rows = dataset.select_columns([name for name in KEPT if name in dataset.column_names])
    sides = ([number for number, label in enumerate(labels) if bool(label) is side] for side in (False, True))
    return tuple(rows.select(numbers) for numbers in sides)


def _once(rows, role: str):
    """The rows without those that stand further up already."""
    first: dict[str, int] = {}
    for number, key in enumerate(_keys(rows)):
        first.setdefault(key, number)
    if len(first) < len(rows):
        logger.info("%d of %d %s rows repeat others and are left out.", len(rows) - len(first), len(rows), role)
    return rows if len(first) == len(rows) else rows.select(first.values())


def _check_apart(forget, retain) -> None:
    secrets = set(_keys(forget))
    shared = [number for number, key in enumerate(_keys(retain)) if key in secrets]
    if shared:
        row = retain[shared[0]]
        raise ValueError(
            f"{len(shared)} completions are both rejected and chosen (labelled false and true) for one prompt, the "
            f"first: {str(row['completion'])[:100]!r} to {str(row['prompt'])[:100]!r}. Decide for one and take the "
            "other rows out."
        )


def _keys(rows) -> list[str]:
    return [json.dumps(row, sort_keys=True, default=str) for row in rows]
