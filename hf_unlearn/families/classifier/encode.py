# SPDX-License-Identifier: Apache-2.0
"""From rows of a classification or visual question answering set to soft labels over a model's classes.

| column    | content                                                                             |
|-----------|-------------------------------------------------------------------------------------|
| `labels`  | K numbers between 0 and 1                                                           |
| `label`   | `{"ids": [...], "weights": [...]}` of class names or numbers; where one class is    |
|           | right, its number or name                                                           |
| `answers` | what `n` annotators said; a class counts `min(count / (0.3 n), 1)`, as in VQA-v2    |

beside `image`, `question` (or `text`), and `example_id`.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.tables import as_dataset, check_strings
from ...data.vqa.targets import target_weights


logger = logging.getLogger(__name__)

LABEL_COLUMNS = ("label_ids", "labels", "label", "answers")
# What becomes of them.
SOFT = ("label_ids", "label_weights")


@dataclass
class Classes:
    """A model's classes.

    Args:
        label2id (`Mapping[str, int]`): name to number.
        many (`bool`): several classes may be right at once, so that labels have to be soft.
    """

    label2id: Mapping[str, int]
    many: bool

    def __len__(self) -> int:
        return len(self.label2id)

    def soft(self, column: str, value: Any) -> tuple[list[int], list[float]]:
        """Numbers and weights of a row's classes."""
        if column == "answers":
            known = {a: weight for a, weight in target_weights(value).items() if a in self.label2id}
            return [self.label2id[answer] for answer in known], list(known.values())
        if isinstance(value, Mapping):
            if len(value["ids"]) != len(value["weights"]):
                raise ValueError(f"`{column}` has {len(value['ids'])} ids and {len(value['weights'])} weights.")
            return [self._number(name) for name in value["ids"]], [float(w) for w in value["weights"]]
        if isinstance(value, (list, tuple)):
            return self._dense(value)
        if self.many:
            raise ValueError(
                f"`{column}` is {value!r}, one class, and this model says of each of {len(self)} classes whether it "
                f"is right: give soft targets, {len(self)} numbers between 0 and 1 as `labels`, or the annotators' "
                "`answers`."
            )
        return [self._number(value)], [1.0]

    def _dense(self, value) -> tuple[list[int], list[float]]:
        if len(value) != len(self):
            raise ValueError(
                f"`labels` has {len(value)} numbers, and there are {len(self)} classes. Give one for each."
            )
        found = [i for i, weight in enumerate(value) if weight]
        return found, [float(value[i]) for i in found]

    def _number(self, name) -> int:
        number = self.label2id.get(name) if isinstance(name, str) else name
        if number is None or number != int(number) or not 0 <= number < len(self):
            raise ValueError(f"{name!r} is none of the model's {len(self)} classes.")
        return int(number)


def encode_classes(rows, classes: Classes, name: str):
    """Rows as the collator reads them.

    Args:
        rows (`datasets.Dataset`, or anything with a length and rows that are dicts):
            See the module's table. Pictures are not read here, and a transform (`with_transform`) is applied whenever
            a row is read: to its inputs, not to its labels.
        classes ([`Classes`]): the model's.
        name (`str`): what messages call the rows.

    Returns:
        `datasets.Dataset`: `image` and `question` as far as they were given, `example_id` likewise, `label_ids` and
        `label_weights`.

    Raises:
        `ValueError`: for rows without input or label, missing pictures, and labels that the model cannot have.
    """
    import datasets

    rows, transform = without_transform(as_dataset(rows, name))
    columns = set(rows.column_names)
    label = next((column for column in LABEL_COLUMNS if column in columns), None)
    if label is None or not columns & {"image", "question", "text"}:
        raise ValueError(
            f"{name}_dataset has the columns {sorted(columns)}. A classifier's rows have `image`, `question` (or "
            "`text`) or both, and `labels`, `label` or `answers`."
        )
    if "image" in columns:
        rows = _with_pictures(rows, name)
    inputs = rows
    if "text" in columns and "question" not in columns:
        inputs = rows.rename_column("text", "question")
    inputs = inputs.select_columns([c for c in ("image", "question", "example_id") if c in inputs.column_names])
    soft = rows.select_columns(list(SOFT)) if label == "label_ids" else _soft(rows[label], label, classes, name)
    if transform is None:
        check_strings(inputs, ["question"], f"the {name} set")
        return datasets.concatenate_datasets([inputs, soft], axis=1)
    rows = rows.remove_columns([c for c in SOFT if c in columns])
    return datasets.concatenate_datasets([rows, soft], axis=1).with_transform(Transformed(transform))


def without_transform(rows) -> tuple[Any, Callable[[dict], dict] | None]:
    """Rows as they are kept, and what `with_transform` put in front of them."""
    return rows.with_format(None), (rows.format["format_kwargs"] or {}).get("transform")


@dataclass
class Transformed:
    """A transform of rows that is applied whenever their inputs are read; labels are what they were when they were
    encoded.

    Args:
        transform (`Callable`): from a batch of the rows' own columns to one, as `datasets` has it.
    """

    transform: Callable[[dict], dict]

    def __call__(self, batch: dict) -> dict:
        soft = {name: batch.pop(name) for name in SOFT if name in batch}
        if not batch:
            return soft
        found = self.transform(batch)
        if "text" in found and "question" not in found:
            found["question"] = found["text"]
        return {name: found[name] for name in ("image", "question", "example_id") if name in found} | soft


def _soft(values, column: str, classes: Classes, name: str):
    """`label_ids` and `label_weights` of a column of labels."""
    import datasets

    numbers, weights, unknown = [], [], 0
    for i, value in enumerate(values):
        try:
            ids, shares = classes.soft(column, value)
        except ValueError as error:
            raise ValueError(f"Row {i} of {name}_dataset: {error}") from error
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"Row {i} of {name}_dataset has weights {shares}; give numbers between 0 and 1.")
        numbers.append(ids)
        weights.append(shares)
        unknown += not ids
    if unknown == len(values):
        raise ValueError(
            f"No row of {name}_dataset has an answer among the model's {len(classes)} classes (such as "
            f"{', '.join(repr(c) for c in list(classes.label2id)[:5])}). Take the model that fits the set."
        )
    if unknown:
        logger.info("%d of %d %s rows have no answer among the model's classes.", unknown, len(values), name)
    types = [datasets.List(datasets.Value(kind)) for kind in ("int64", "float32")]
    features = datasets.Features(dict(zip(SOFT, types, strict=True)))
    return datasets.Dataset.from_dict(dict(zip(SOFT, (numbers, weights), strict=True)), features=features)


def _with_pictures(rows, name: str):
    """Rows whose `image` is decoded when it is read, after a look at whether each has one."""
    import datasets

    if not isinstance(rows.features["image"], datasets.Image):
        rows = rows.cast_column("image", datasets.Image())
    files = rows.cast_column("image", datasets.Image(decode=False))
    missing = [i for i, found in enumerate(files["image"]) if _lost(found)]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(rows)} {name} rows have no picture, or name a file that is not there; the first "
            f"is row {missing[0]}: {files[missing[0]]['image']}."
        )
    return rows


def _lost(image: Mapping | None) -> bool:
    if image is None:
        return True
    path = image["path"]
    return image["bytes"] is None and (path is None or ("://" not in path and not Path(path).is_file()))


def check_disjoint(forget, retain) -> None:
    """Refuses rows that stand in both sets, by `example_id`, or else by picture and question.

    Raises:
        `ValueError`: with the number of shared rows and the first of them.
    """
    named = all("example_id" in rows.column_names for rows in (forget, retain))
    known = set(_identities(forget, named))
    shared = [identity for identity in _identities(retain, named) if identity in known]
    if shared:
        raise ValueError(
            f"{len(shared)} of {len(retain)} retain rows are forget rows too, the first: {str(shared[0])[:200]!r}. "
            "Take them out of one set, or pass `allow_overlap=True` if this is meant."
        )


def _identities(rows, named: bool) -> list:
    rows = without_transform(rows)[0]
    return list(rows["example_id"]) if named else [identity[:2] for identity in identities(rows)]


def identities(rows) -> list[tuple]:
    """What a model gets and is to say of each row: a hash of its picture, its question, numbers and weights of its
    classes; `None` for what it has not. Transforms are left out."""
    rows = without_transform(rows)[0]
    if "question" not in rows.column_names and "text" in rows.column_names:
        rows = rows.rename_column("text", "question")
    columns = {name: rows[name] if name in rows.column_names else [None] * len(rows) for name in ("question", *SOFT)}
    pictures = map(_pixels, rows["image"]) if "image" in rows.column_names else [None] * len(rows)
    return list(zip(pictures, *columns.values(), strict=True))


def _pixels(image) -> str:
    """The bytes of a file depend on who wrote it; the pixels do not."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()
