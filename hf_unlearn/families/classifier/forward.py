# SPDX-License-Identifier: Apache-2.0
"""Rows through a classifier: as many predictions as rows."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor, nn

from ...forward.head_input import inputs_of
from ...forward.logits_path import LogitsForward
from ...forward.needs import Needs
from ...forward.passes import Parts, Pass
from ...fused.head import unwrapped
from ...fused.predicted import Predicted
from .modalities import modality_means
from .predictions import ROWS, RowPredictions


NOT_INPUTS = ("labels", "index", "topic")


class ClassForward(LogitsForward):
    """From a classifier's logits `[B, K]`.

    Args:
        needs, shape: see [`~hf_unlearn.forward.path.Forward`].
        likelihood (`str`): `bernoulli` or `softmax`.
    """

    keeps_predictions = False

    def __init__(self, needs: Needs, shape: str, likelihood: str):
        super().__init__(needs, shape)
        self.rows_type = ROWS[likelihood]

    def passes(self, parts: Parts, tokens: Mapping[str, Predicted]) -> list[Pass]:
        groups = [parts] if self.shape == "one" else [{role: part} for role, part in parts.items()]
        return [_pass(group) for group in groups]

    def tokens_of(self, part: Mapping[str, Tensor]) -> Predicted:
        return RowPredictions.of(part["labels"])

    def reader(self, model: nn.Module) -> tuple[nn.Module, int]:
        return classifier_of(model), 1

    def policy_values(self, model, call, predicted, references):
        asking = [role for role in call.picks if self.needs[role].modalities]
        if not asking:
            return super().policy_values(model, call, predicted, references)
        with modality_means(model, call.inputs["input_ids"].shape[1]) as means:
            values = super().policy_values(model, call, predicted, references)
        return values | {(role, "modalities"): means.of(call.picks[role]) for role in asking}

    def _logits_and_states(self, model: nn.Module, call: Pass) -> tuple[Tensor, dict[str, Tensor]]:
        asking = {role for role in call.picks if self.needs[role].states}
        with ExitStack() as stack:
            seen = stack.enter_context(classifier_inputs(model)) if asking else []
            logits = model(**call.inputs).logits
        return logits[:, None], {role: seen[-1][picks] for role, picks in call.picks.items() if role in asking}


def _pass(parts: Parts) -> Pass:
    """All rows in one batch; a role's predictions are its rows'."""
    names = [name for name in next(iter(parts.values())) if name not in NOT_INPUTS]
    inputs = {name: torch.cat([part[name] for part in parts.values()]) for name in names}
    picks, start = {}, 0
    for role, part in parts.items():
        rows = len(part["labels"])
        picks[role] = torch.arange(start, start + rows, device=part["labels"].device)
        start += rows
    return Pass(inputs, picks, {role: part["index"] for role, part in parts.items()})


def classifier_of(model: nn.Module) -> nn.Module:
    """The module from a row's representation to its logits.

    Raises:
        `ValueError`: if the model has none that is found.
    """
    core = unwrapped(model)
    core = getattr(core, "get_base_model", lambda: core)()
    for name in ("classifier", "score"):
        if isinstance(found := getattr(core, name, None), nn.Module):
            return found
    raise ValueError(f"{type(core).__name__} has no `classifier` or `score`: its representations cannot be read.")


def classifier_inputs(model: nn.Module) -> AbstractContextManager[list[Tensor]]:
    """The representations `[B, d]` that the classifier is called with while entered."""
    return inputs_of(classifier_of(model))
