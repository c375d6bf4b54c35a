# SPDX-License-Identifier: Apache-2.0
"""The `privacy` of a recipe or a sweep: fields of `hf-unlearn audit privacy`, the rest as in training."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..data.qa import QAFormat
from ..runs.parser import StrictParser
from .as_file import as_file
from .privacy_arguments import PrivacyArguments


# A run has one target, one folder and one report.
OWN = ("models", "output_dir")


def privacy_fields(recipe: Mapping[str, Any], asked: Mapping[str, Any], folder: Any) -> dict[str, Any]:
    """All fields of a run's membership-inference audit.

    Args:
        recipe (`dict`): the run's fields; what rows there are and how they are put is as in training.
        asked (`dict`): what `privacy` holds.
        folder (`str` or `Path`): the run's.

    Raises:
        `ValueError`: if `asked` holds what is the run's own.
    """
    refused = sorted({*OWN} & asked.keys())
    if refused:
        raise ValueError(f"privacy: {', '.join(refused)} cannot be given: they are each run's own.")
    known = {field.name for part in (PrivacyArguments, QAFormat) for field in fields(part)} - {*OWN, "seed"}
    taken = {key: value for key, value in recipe.items() if key in known and value is not None}
    # The target first: how much could be found before.
    models = [recipe["model_name_or_path"], str(folder)]
    return {**taken, **asked, "models": models, "output_dir": f"{folder}/privacy"}


def read_privacy(content: dict[str, Any]) -> tuple[PrivacyArguments, QAFormat]:
    """The fields as the command would read them.

    Raises:
        `ValueError`: for what it would refuse.
    """
    try:
        with as_file(content, "privacy") as path:
            (args, qa), _ = StrictParser((PrivacyArguments, QAFormat), prog="hf-unlearn audit privacy").parse(
                ["--config", str(path)]
            )
    except ValueError as error:
        raise ValueError(f"privacy: {error}") from error
    return args, qa
