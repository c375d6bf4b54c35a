# SPDX-License-Identifier: Apache-2.0
"""Models that an audit cannot measure, refused in one line: another kind of model, or one without finite numbers."""

from collections.abc import Sequence
from typing import Any

import torch

from ..forward.trial import check_left_to_right, logits_of, tolerance
from ..modeling import evaluating
from ..models.wrappers import reads_prompt


def check_language_model(model: Any) -> None:
    """Refuses what does not predict a text's next token.

    Raises:
        `ValueError`: for a classifier, a model without a language-model head, or one with an encoder.
    """
    core = getattr(model, "module", model)
    can_generate = getattr(core, "can_generate", None)
    name = _name(core)
    if can_generate is not None and not can_generate():
        raise ValueError(
            f"{name} predicts no tokens, and this audit reads a language model. Give a causal language model, or "
            "audit a classifier with `audit_classifier` (`--benchmark vqa_world` and the like)."
        )
    if getattr(getattr(core, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"{name} has an encoder, and this audit reads prompt and answer as one text. Give a causal language model."
        )


def check_causal(model: torch.nn.Module) -> None:
    """Refuses a language model that reads later tokens, found by trying it on a few: a likelihood would be that of
    tokens that it sees. What looks at the whole prompt does so on purpose.

    Raises:
        `ValueError`: in one line.
    """
    if reads_prompt(model):
        return
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 1]], device=next(model.parameters()).device)
    with evaluating(model), torch.no_grad():
        seen = logits_of(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    check_left_to_right(model, seen, tolerance(None, model))


def check_classifier(model: Any) -> None:
    """Refuses what is no classifier with named classes.

    Raises:
        `ValueError`: for a language model and the like.
    """
    can_generate = getattr(model, "can_generate", None)
    if (can_generate is not None and can_generate()) or not getattr(model.config, "label2id", None):
        raise ValueError(
            f"{_name(model)} is no classifier, and this audit compares classes. Audit a language model with "
            "`audit_model`."
        )


class UnsoundModelError(ValueError):
    """A model none of whose numbers is finite."""


def check_sound(model: torch.nn.Module, finite: Sequence[bool], what: str = "rows") -> None:
    """Refuses a model none of whose numbers is finite: undefined all over would look like a report.

    Args:
        model (`torch.nn.Module`):
            The audited one; its weights say why.
        finite (`Sequence[bool]`):
            Of each row that asked for a prediction, whether its numbers are finite. Where some are, the others are
            undefined, and counted.
        what (`str`):
            What the rows are called.

    Raises:
        [`UnsoundModelError`]: a `ValueError`, in one line.
    """
    if len(finite) and not any(finite):
        raise UnsoundModelError(
            f"{_name(model)} gives no finite logits for any of {len(finite)} {what}: {_why(model)}"
        )


def check_answered(model: torch.nn.Module, sound: Sequence[bool]) -> None:
    """Refuses answers that were picked among logits that are no numbers: they would count as forgotten.

    Args:
        model (`torch.nn.Module`):
            The audited one.
        sound (`Sequence[bool]`):
            Of each prompt.

    Raises:
        `ValueError`: in one line.
    """
    bad = len(sound) - sum(sound)
    if bad:
        told = f"The logits of {_name(model)} are not finite in {bad} of {len(sound)} answers"
        raise ValueError(f"{told}: {_why(model)}")


def _why(model: torch.nn.Module) -> str:
    bad = [name for name, weight in model.named_parameters() if not weight.detach().isfinite().all()]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        return f"its weights are NaN or infinite ({bad[0]}{more}). Audit a checkpoint from before they broke."
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return f"its weights are finite, in {dtype}, so states overflow on the way. Load it in float32 or bfloat16."


def _name(model: Any) -> str:
    return type(getattr(model, "get_base_model", lambda: model)()).__name__
