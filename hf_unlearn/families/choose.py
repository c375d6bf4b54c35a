# SPDX-License-Identifier: Apache-2.0
"""The family that a model is of."""

from torch import nn

from .. import modeling
from ..models.loading import class_of
from .base import Family
from .causal_lm import CausalLM
from .classifier.family import Classifier


def family_of(
    model: str | nn.Module, likelihood: str = "auto", trust_remote_code: bool = False, revision: str | None = None
) -> Family:
    """The family that a model is of, by its class or, for a path or Hub id, by the class that its config names."""
    config = modeling.config_of(model, trust_remote_code, revision)
    if isinstance(model, str):
        name = (getattr(config, "architectures", None) or [""])[0]
    else:
        name = type(getattr(model, "get_base_model", lambda: model)()).__name__
    if isinstance(model, str) and config is not None:
        # A model that cannot be loaded is told before rows are read.
        class_of(config)
    if modeling.is_classifier(name):
        return Classifier(config, likelihood, name)
    return CausalLM()
