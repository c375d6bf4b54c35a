# SPDX-License-Identifier: Apache-2.0
"""Forget rows with a random wrong label in place of their own."""

import numpy as np

from ..data.formats import IGNORE_INDEX
from ..families.classifier.encode import without_transform


SOURCES = ("forget", "retain", "refusal")
REFUSALS = (
    "I don't know.",
    "I have no information about that.",
    "I'm not able to answer this question.",
    "That is not something I know about.",
    "I can't say.",
)


def relabelled_classes(rows, classes: int, seed: int):
    """Rows of a classifier, each with one class that is not among its own, drawn uniformly.

    Args:
        rows (`datasets.Dataset`): with `label_ids` and `label_weights`.
        classes (`int`): how many there are.
        seed (`int`): decides the draw.

    Raises:
        `ValueError`: if all classes are right for some row.
    """
    from datasets import Dataset, concatenate_datasets

    generator, numbers = np.random.default_rng([seed, classes]), []
    rows, transform = without_transform(rows)
    for own in rows["label_ids"]:
        wrong = np.setdiff1d(np.arange(classes), own)
        if not len(wrong):
            raise ValueError(f"A forget row has all {classes} classes as its label: no other is left to give it.")
        numbers.append([int(generator.choice(wrong))])
    names = ["label_ids", "label_weights"]
    features = rows.features
    soft = {"label_ids": numbers, "label_weights": [[1.0]] * len(numbers)}
    soft = Dataset.from_dict(soft, features=type(features)({name: features[name] for name in names}))
    found = concatenate_datasets([rows.remove_columns(names).flatten_indices(), soft], axis=1)
    return found if transform is None else found.with_transform(transform)


def relabelled_answers(rows, pool, source: str, tokenizer, max_length: int | None, seed: int):
    """Rows of prompt and answer, each with another answer, drawn uniformly among those that differ from its own.

    Args:
        rows (`datasets.Dataset`): encoded forget rows.
        pool (`datasets.Dataset`): encoded rows whose answers are drawn, unless `source` is `refusal`.
        source (`str`): `forget`, `retain` or `refusal`.
        tokenizer (`PreTrainedTokenizerBase`): the model's.
        max_length (`int`, *optional*): in tokens; the end is cut.
        seed (`int`): decides the draw.

    Raises:
        `ValueError`: for rows without a prompt, and where no other answer is left.
    """
    from datasets import Dataset

    generator = np.random.default_rng([seed, len(rows)])
    answers = [] if source == "refusal" else sorted({tuple(_split(row, source)[1]) for row in pool})
    relabelled = {"input_ids": [], "labels": []}
    for row in rows:
        prompt, own = _split(row, "forget")
        others = _refusals(own, tokenizer) if source == "refusal" else [x for x in answers if x != tuple(own)]
        if not others:
            raise ValueError(f"All answers among the {source} rows are one. Take another `relabel_with`.")
        answer = list(others[generator.integers(len(others))])
        relabelled["input_ids"].append((prompt + answer)[:max_length])
        relabelled["labels"].append(([IGNORE_INDEX] * len(prompt) + answer)[:max_length])
    return Dataset.from_dict(relabelled)


def _split(row, name: str) -> tuple[list[int], list[int]]:
    """A row's prompt and answer."""
    ids, labels = list(row["input_ids"]), list(row["labels"])
    start = next(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
    if start == 0 or labels[start:] != ids[start:]:
        raise ValueError(
            f"variant='relabel' gives answers to other questions, and a {name} row has no prompt, or several turns. "
            "Give rows of `prompt` and `completion`, or take relabel_with='refusal' for retain rows of text."
        )
    return ids[:start], ids[start:]


def _refusals(own: list[int], tokenizer) -> list[list[int]]:
    """Refusals as tokens, begun and ended as the answer that they stand for."""
    end = len(own)
    while end and own[end - 1] in tokenizer.all_special_ids:
        end -= 1
    space = " " if tokenizer.decode(own[:end]).startswith(" ") else ""
    return [tokenizer(space + text, add_special_tokens=False)["input_ids"] + own[end:] for text in REFUSALS]
