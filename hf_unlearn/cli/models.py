# SPDX-License-Identifier: Apache-2.0
"""Models and tokenizers of the commands, with one clear error where there is none."""

from pathlib import Path

from ..modeling import check_vocabulary, ensure_pad_token, load_checkpoint, load_processor
from ..models.checkpoint_paths import check_checkpoint_path, upper_folder
from ..models.loading import architecture_of, config_of, is_classifier


__all__ = ["check_checkpoint_path", "check_embeddings", "check_is_another", "checkpoint_of", "tokenizer_of"]


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


def check_is_another(retrained: str, model: str, revision: str | None = None) -> None:
    """Refuses a retrained model that is the model held against it; `revision` is that one's, of a Hub id."""
    same = Path(retrained).resolve() == Path(model).resolve()
    if same and (Path(model).is_dir() or revision in (None, "main")):
        raise ValueError(
            f"retrained_model_name_or_path={retrained!r} is the audited model itself, and would be found to be like "
            "itself. Name the model that was trained without the forget rows, or leave it out."
        )


def check_embeddings(model: str, tokenizer, trust_remote_code: bool = False, revision: str | None = None) -> None:
    """Refuses, before it is loaded, a language model of fewer embeddings than its tokenizer has tokens.

    Raises:
        `ValueError`
    """
    # An adapter may bring embeddings of its own: it is looked at when it is loaded.
    config = config_of(model, trust_remote_code, revision) if upper_folder(model) is None else None
    if config is not None and not is_classifier(architecture_of(config)):
        check_vocabulary(config, tokenizer, named=model)
