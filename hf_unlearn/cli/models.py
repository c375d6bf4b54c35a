# SPDX-License-Identifier: Apache-2.0
"""Models and tokenizers of the commands, with one clear error where there is none."""

from ..loading import architecture_of, check_checkpoint_path, config_of, is_adapter, is_classifier
from ..modeling import check_vocabulary, ensure_pad_token, load_checkpoint, load_processor


__all__ = ["check_checkpoint_path", "check_kind", "check_language_model", "checkpoint_of", "tokenizer_of"]

# The suite of sets of questions about pictures.
PICTURES = "vqa"


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
    """A model to look at: full weights or an adapter, in evaluation mode.

    Args:
        tokenizer (*optional*): what will make its inputs.

    Raises:
        `ValueError`: if it cannot be had, or has fewer embeddings than the tokenizer has tokens.
    """
    loaded = load_checkpoint(model, trust_remote_code, **kwargs)
    if tokenizer is not None and not is_classifier(architecture_of(loaded.config)):
        check_vocabulary(loaded, tokenizer, named=model)
    return loaded


def check_kind(model: str, tokenizer, sets, trust_remote_code: bool = False) -> None:
    """Refuses, before it is loaded, a model of another kind than the sets that it would be asked.

    Raises:
        `ValueError`
    """
    if sets.suite != PICTURES:
        check_language_model(model, tokenizer, f"An audit of {sets.name}", trust_remote_code)
    elif not is_classifier(name := architecture_of(config_of(model, trust_remote_code))):
        raise ValueError(f"An audit of {sets.name} is of classifiers, and {model!r} is none ({name}).")


def check_language_model(model: str, tokenizer, what: str, trust_remote_code: bool = False) -> None:
    """Refuses, before it is loaded, a model that is no language model or has fewer embeddings than its tokenizer.

    Args:
        what (`str`): what it is for, such as "A backdoor audit".

    Raises:
        `ValueError`
    """
    config = config_of(model, trust_remote_code)
    if config is None:
        return
    if is_classifier(name := architecture_of(config)):
        raise ValueError(f"{what} is of language models, and {model!r} is a classifier ({name}).")
    # An adapter may bring embeddings of its own.
    if not is_adapter(model):
        check_vocabulary(config, tokenizer, named=model)
