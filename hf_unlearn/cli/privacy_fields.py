# SPDX-License-Identifier: Apache-2.0
"""The `privacy` of a recipe or a sweep: fields of `hf-unlearn audit privacy`, the rest as in training."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..data.qa import QAFormat
from .as_file import as_file
from .parser import StrictParser
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
        `ValueError`: for what it would refuse, and for attacks that there are not.
    """
    try:
        with as_file(content, "privacy") as path:
            (args, qa), _ = StrictParser((PrivacyArguments, QAFormat), prog="hf-unlearn audit privacy").parse(
                ["--config", str(path)]
            )
        _check_attacks(args)
    except ValueError as error:
        raise ValueError(f"privacy: {error}") from error
    return args, qa


def _check_attacks(args: PrivacyArguments) -> None:
    """Names only: whether a model can be put to an attack shows when it is there."""
    from ..audit.privacy import named_attacks
    from ..audit.privacy.rates import check_fprs

    check_fprs(args.fprs)
    names: Sequence[str] = args.attacks or ()
    known = [*named_attacks(), "reference", "lira"]
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) < len(names):
        raise ValueError(f"attacks={names}; give each once, of: {', '.join(known)}.")
    if "reference" in names and args.reference_model_name_or_path is None:
        raise ValueError("The attack 'reference' needs `reference_model_name_or_path`.")
