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

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.vqa.targets import target_weights


logger = logging.getLogger(__name__)

LABEL_COLUMNS = ("label_ids", "labels", "label", "answers")


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
        number = self.label2id.get(name) if isinstance(name, str) else int(name)
        if number is None or not 0 <= number < len(self):
            raise ValueError(f"{name!r} is none of the model's {len(self)} classes.")
        return number


def encode_classes(rows, classes: Classes, name: str):
    """Rows as the collator reads them.

    Args:
        rows (`datasets.Dataset`, or anything with a length and rows that are dicts):
            See the module's table. Pictures are not read here.
        classes ([`Classes`]): the model's.
        name (`str`): what messages call the rows.

    Returns:
        `datasets.Dataset`: `image` and `question` as far as they were given, `example_id` likewise, `label_ids` and
        `label_weights`.

    Raises:
        `ValueError`: for rows without input or label, missing pictures, and labels that the model cannot have.
    """
    import datasets

    if rows is None or not len(rows):
        raise ValueError(f"{name}_dataset is missing or empty. Give at least one row.")
    if not isinstance(rows, datasets.Dataset):
        rows = datasets.Dataset.from_list([rows[i] for i in range(len(rows))])
    if "text" in rows.column_names and "question" not in rows.column_names:
        rows = rows.rename_column("text", "question")
    columns = set(rows.column_names)
    label = next((column for column in LABEL_COLUMNS if column in columns), None)
    if label is None or not columns & {"image", "question"}:
        raise ValueError(
            f"{name}_dataset has the columns {sorted(columns)}. A classifier's rows have `image`, `question` (or "
            "`text`) or both, and `labels`, `label` or `answers`."
        )
    kept = rows.select_columns([c for c in ("image", "question", "example_id") if c in columns])
    if "image" in columns:
        kept = _with_pictures(kept, name)
    if label == "label_ids":
        return datasets.concatenate_datasets([kept, rows.select_columns(["label_ids", "label_weights"])], axis=1)
    numbers, weights, unknown = [], [], 0
    for i, value in enumerate(rows[label]):
        try:
            ids, shares = classes.soft(label, value)
        except ValueError as error:
            raise ValueError(f"Row {i} of {name}_dataset: {error}") from error
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"Row {i} of {name}_dataset has weights {shares}; give numbers between 0 and 1.")
        numbers.append(ids)
        weights.append(shares)
        unknown += not ids
    if unknown == len(rows):
        raise ValueError(
            f"No row of {name}_dataset has an answer among the model's {len(classes)} classes (such as "
            f"{', '.join(repr(c) for c in list(classes.label2id)[:5])}). Take the model that fits the set."
        )
    if unknown:
        logger.info("%d of %d %s rows have no answer among the model's classes.", unknown, len(rows), name)
    types = {
        "label_ids": datasets.List(datasets.Value("int64")),
        "label_weights": datasets.List(datasets.Value("float32")),
    }
    soft = dict(zip(types, (numbers, weights), strict=True))
    soft = datasets.Dataset.from_dict(soft, features=datasets.Features(types))
    return datasets.concatenate_datasets([kept, soft], axis=1)


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
    known = set(_identities(forget))
    shared = [identity for identity in _identities(retain) if identity in known]
    if shared:
        raise ValueError(
            f"{len(shared)} of {len(retain)} retain rows are forget rows too, the first: {str(shared[0])[:200]!r}. "
            "Take them out of one set, or pass `allow_overlap=True` if this is meant."
        )


def _identities(rows) -> list:
    import datasets

    if "example_id" in rows.column_names:
        return list(rows["example_id"])
    if "image" not in rows.column_names:
        return list(rows["question"])
    pictures = rows.cast_column("image", datasets.Image(decode=False))
    return [(row["image"]["bytes"] or row["image"]["path"], row.get("question")) for row in pictures]
