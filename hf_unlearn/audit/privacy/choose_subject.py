# SPDX-License-Identifier: Apache-2.0
"""A model as attacks take it."""

import torch

from .classifiers import Classifier, RowClassifier
from .subjects import LanguageModel, Subject


def as_subject(model: "torch.nn.Module | Subject", **kwargs) -> Subject:
    """A model as a [`Subject`]: one that can generate is a language model, any other a classifier.

    Args:
        model (`torch.nn.Module` or [`Subject`]):
            A subject is returned as it is.
        kwargs:
            For [`LanguageModel`], [`RowClassifier`] (where there is a `processing_class`) or [`Classifier`]; what a
            classifier has no use for (`qa`; the other two as well, if its class has no config) must be `None`.
    """
    if isinstance(model, Subject):
        return model
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"The model is a {type(model).__name__}. Give a loaded model, or a `Subject`.")
    can_generate = getattr(model, "can_generate", None)
    if can_generate is not None and can_generate():
        return LanguageModel(model, **kwargs)
    takes_rows = kwargs.get("processing_class") is not None and hasattr(model, "config")
    idle = ("qa",) if takes_rows else ("processing_class", "max_length", "qa")
    given = [name for name in idle if kwargs.get(name) is not None]
    if given:
        raise ValueError(f"{', '.join(given)} would be ignored: {type(model).__name__} is no generating model.")
    kept = {name: value for name, value in kwargs.items() if name not in idle}
    return RowClassifier(model, **kept) if takes_rows else Classifier(model, **kept)
