# SPDX-License-Identifier: Apache-2.0
"""Answers that are made for forget rows: refusals from a file, or the answers of other forget rows or of retain rows.

All are drawn once for a run, by its seed: what a row is compared with must stay the same, or no value of a reference
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


def refused(answers: list[Any], refusals: list[str], seed: int, count: int = 1) -> list[Any]:
    """Refusals for every answer, `count` different ones after each other, in the answer's form: every refusal is used
    about as often.

    Args:
        answers (`list`): texts, whose leading space is kept, or lists of messages, of which the last is the answer.
        refusals (`list[str]`): texts.
        seed (`int`): of their order.
        count (`int`): for each answer.

    Raises:
        `ValueError`: where there are fewer different refusals.
    """
    _check_enough(len({*refusals}), count, "refusals in `alternate_file`")
    rng, queue, found = random.Random(seed), [], []
    for answer in answers:
        drawn: list[str] = []
        while len(drawn) < count:
            place = next((i for i in reversed(range(len(queue))) if queue[i] not in drawn), None)
            if place is None:
                queue = rng.sample(refusals, len(refusals)) + queue
            else:
                drawn.append(queue.pop(place))
        found += [_in_form_of(answer, text) for text in drawn]
    return found


def _check_enough(there: int, count: int, what: str) -> None:
    if there < count:
        raise ValueError(
            f"num_alternates={count}, and there are {there} different {what}. Give more of them, or a smaller number."
        )


def _in_form_of(answer, text: str):
    if isinstance(answer, str):
        return answer[: len(answer) - len(answer.lstrip())] + text
    return [*answer[:-1], {**answer[-1], "content": text}]


def shuffled(answers: list[Any], seed: int, count: int = 1) -> list[Any]:
    """For every answer `count` different ones of the others after each other, which differ from it; each is drawn
    equally often.

    Raises:
        `ValueError`: where all answers are the same, or too few differ.
    """
    keys = [_key(answer) for answer in answers]
    different = list(dict.fromkeys(keys))
    if len(different) < 2:
        raise ValueError(
            f"alternate_source='shuffled' gives each forget row the answer of another, and all {len(answers)} rows "
            "have one answer. Give rows with other answers, or take alternate_source='refusal'."
        )
    _check_enough(len(different) - 1, count, "answers of other forget rows")
    return _others(keys, different, seed, count)


def from_pool(answers: list[Any], pool: list[Any], seed: int, count: int = 1) -> list[Any]:
    """For every answer `count` different ones of a pool after each other, which differ from it; each is drawn equally
    often.

    Raises:
        `ValueError`: where too few differ, or the pool's are texts and the answers messages, or the other way round.
    """
    if {isinstance(answer, str) for answer in (*answers, *pool)} == {True, False}:
        raise ValueError(
            "alternate_source='retain': answers of forget rows and of retain rows are texts in the one set and "
            "messages in the other. Give both in one form."
        )
    different = list(dict.fromkeys(map(_key, pool)))
    _check_enough(len({*different} - {*map(_key, answers)}), count, "answers of retain rows that no forget row has")
    return _others([_key(answer) for answer in answers], different, seed, count)


def _key(answer) -> str:
    return json.dumps(answer, sort_keys=True)


def _others(keys: list[str], different: list[str], seed: int, count: int) -> list[Any]:
    """For every key `count` of `different` ones, none of them twice nor the key itself."""
    places, rng, found = {key: place for place, key in enumerate(different)}, random.Random(seed), []
    for key in keys:
        own, drawn = places.get(key), []
        while len(drawn) < count:
            place = rng.randrange(len(different) - (own is not None))
            place += own is not None and place >= own
            if place not in drawn:
                drawn.append(place)
        found += [json.loads(different[place]) for place in drawn]
    return found
