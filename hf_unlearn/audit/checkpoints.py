# SPDX-License-Identifier: Apache-2.0
"""Models and tokenizers that are named, with one clear error where there is none."""

from collections.abc import Sequence
from pathlib import Path

from ..data.benchmarks import resolve_model
from ..families.base import CLASSIFIER
from ..families.choose import family_of
from ..modeling import check_vocabulary, ensure_pad_token, load_checkpoint, load_processor
from ..models.checkpoint_paths import check_checkpoint_path, upper_folder
from ..models.loading import architecture_of, config_of, is_classifier
from .model_checks import check_causal
from .suites import PICTURES


__all__ = [
    "audited_checkpoint",
    "check_checkpoint_path",
    "check_embeddings",
    "check_fits",
    "check_is_another",
    "check_models",
    "checkpoint_of",
    "tokenizer_of",
]


def tokenizer_of(model: str, trust_remote_code: bool = False, revision: str | None = None):
    """The tokenizer of a model, with a pad token; a classifier's processor.

    Raises:
        `ValueError`: if it cannot be had.
    """
    processor = load_processor(model, trust_remote_code, revision)
    if hasattr(processor, "pad_token_id"):
        ensure_pad_token(processor)
    return processor


def checkpoint_of(model: str, trust_remote_code: bool = False, tokenizer=None, **kwargs):
    """A model to look at: full weights, an adapter or a wrapper, in evaluation mode.

    Args:
        tokenizer (*optional*): what will make its inputs.

    Raises:
        `ValueError`: if it cannot be had, or has fewer embeddings than the tokenizer has tokens.
    """
    loaded = load_checkpoint(model, trust_remote_code, **kwargs)
    if tokenizer is not None and not is_classifier(architecture_of(loaded.config)):
        check_vocabulary(loaded, tokenizer, named=model)
    return loaded


def audited_checkpoint(model: str, device, trust_remote_code: bool = False, tokenizer=None, **kwargs):
    """[`checkpoint_of`], on a device.

    Raises:
        `ValueError`: as there, or if a language model reads later tokens.
    """
    loaded = checkpoint_of(model, trust_remote_code, tokenizer, **kwargs).to(device)
    if not is_classifier(architecture_of(loaded.config)):
        check_causal(loaded)
    return loaded


def check_is_another(retrained: str, model: str, revision: str | None = None) -> None:
    """Refuses a retrained model that is the model held against it; `revision` is that one's, of a Hub id."""
    same = Path(retrained).resolve() == Path(model).resolve()
    if same and (Path(model).is_dir() or revision in (None, "main")):
        raise ValueError(
            f"retrained_model_name_or_path={retrained!r} is the audited model itself, and would be found to be like "
            "itself. Name the model that was trained without the forget rows, or leave it out."
        )


def check_fits(model: str, suite: str, trust_remote_code: bool = False, revision: str | None = None) -> None:
    """Refuses a classifier for sets of questions in words, and a language model for those about pictures; nothing is
    loaded for that.

    Raises:
        `ValueError`: in one line.
    """
    family = family_of(model, trust_remote_code=trust_remote_code, revision=revision).name
    if (family == CLASSIFIER) != (suite == PICTURES):
        wanted = "a classifier, for questions about pictures" if suite == PICTURES else "a language model"
        raise ValueError(f"{model}: its config names one of the {family}, and these sets are asked of {wanted}.")


def check_embeddings(model: str, tokenizer, trust_remote_code: bool = False, revision: str | None = None) -> None:
    """Refuses, before it is loaded, a language model of fewer embeddings than its tokenizer has tokens.

    Raises:
        `ValueError`
    """
    # An adapter may bring embeddings of its own: it is looked at when it is loaded.
    config = config_of(model, trust_remote_code, revision) if upper_folder(model) is None else None
    if config is not None and not is_classifier(architecture_of(config)):
        check_vocabulary(config, tokenizer, named=model)


def check_models(args, models: Sequence[str] | None = None, others: Sequence[str | None] = ()):
    """The tokenizer of the models that an audit's arguments name, all of them checked; none is loaded.

    Args:
        args: `trust_remote_code`, and, where `models` is left out, `model_name_or_path` with its `model_revision`.
        models (`Sequence[str]`, *optional*): folders or Hub ids; the first one's tokenizer is taken.
        others (`Sequence[str]`): more of them, beside `retrained_model_name_or_path`; `None` is none.

    Raises:
        `ValueError`: for one that is not there, not whole, or has fewer embeddings than the tokenizer has tokens.
    """
    models = [resolve_model(name) for name in models or [args.model_name_or_path]]
    revision, retrained = getattr(args, "model_revision", None), args.retrained_model_name_or_path
    others = [resolve_model(name) for name in (retrained, *others) if name is not None]
    for path in (*models, *others):
        check_checkpoint_path(path)
    tokenizer = tokenizer_of(models[0], args.trust_remote_code, revision)
    for path in (*models, *others):
        check_embeddings(path, tokenizer, args.trust_remote_code, revision if path in models else None)
    return tokenizer
