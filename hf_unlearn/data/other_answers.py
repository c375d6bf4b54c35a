# SPDX-License-Identifier: Apache-2.0
"""Answers that are made for forget rows: refusals from a file, or the answers of other rows.

Both are drawn once for a run, by its seed: what a row is compared with must stay the same, or no value of a reference
could be kept.
"""

import json
import random
from pathlib import Path
from typing import Any

from ..places import recipe_path


def read_refusals(file: str) -> list[str]:
    """The lines of a text file, each one refusal; see [`read_lines`]."""
    return read_lines("alternate_file", file, "refusal", "recipes/refusals.txt")


def read_lines(setting: str, file: str, what: str, shipped: str) -> list[str]:
    """The lines of a text file; empty lines are left out, and lines that are JSON strings are what these say.

    Args:
        setting (`str`): that names the file.
        file (`str`): a path, of `shipped` the package's own.
        what (`str`): what a line is.
        shipped (`str`): the file that comes with the package.

    Raises:
        `ValueError`: for a file that is not there, holds none, or whose lines are JSON objects.
    """
    path = Path(recipe_path(file)).expanduser()
    if not path.is_file():
        raise ValueError(
            f"{setting}={file!r} is no file. Give a text file with one {what} a line; `{shipped}` comes with the "
            "package."
        )
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = [json.loads(line) if _is_json(line, '"') else line for line in lines if line]
    if any(_is_json(line, "{") for line in found):
        raise ValueError(f"{setting}={file!r} has lines of JSON objects. Give plain text, one {what} a line.")
    if not found:
        raise ValueError(f"{setting}={file!r} has no line of text. Give one {what} a line.")
    return found


def _is_json(line: str, opening: str) -> bool:
    if not line.startswith(opening):
        return False
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def refused(answers: list[Any], refusals: list[str], seed: int) -> list[Any]:
    """A refusal for every answer, in the answer's form: every refusal is used about as often.

    Args:
        answers (`list`): texts, whose leading space is kept, or lists of messages, of which the last is the answer.
        refusals (`list[str]`): texts.
        seed (`int`): of their order.
    """
    rng, queue, found = random.Random(seed), [], []
    for answer in answers:
        if not queue:
            queue = rng.sample(refusals, len(refusals))
        found.append(_in_form_of(answer, queue.pop()))
    return found


def _in_form_of(answer, text: str):
    if isinstance(answer, str):
        return answer[: len(answer) - len(answer.lstrip())] + text
    return [*answer[:-1], {**answer[-1], "content": text}]


def shuffled(answers: list[Any], seed: int) -> list[Any]:
    """For every answer one of the others, which differs from it; each different answer is drawn equally often.

    Raises:
        `ValueError`: where all answers are the same.
    """
    keys = [json.dumps(answer, sort_keys=True) for answer in answers]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    if len(places) < 2:
        raise ValueError(
            f"alternate_source='shuffled' gives each forget row the answer of another, and all {len(answers)} rows "
            "have one answer. Give rows with other answers, or take alternate_source='refusal'."
        )
    different = [json.loads(key) for key in places]
    rng, found = random.Random(seed), []
    for key in keys:
        drawn = rng.randrange(len(different) - 1)
        found.append(different[drawn + (drawn >= places[key])])
    return found
