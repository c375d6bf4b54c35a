# SPDX-License-Identifier: Apache-2.0
"""Models and tokenizers of the commands, with one clear error where there is none."""

from contextlib import contextmanager

from ..adapter_files import adapter_folder
from ..modeling import check_model_path, ensure_pad_token, load_checkpoint, load_processor


def check_checkpoint_path(model: str) -> None:
    """Refuses a local path that holds neither a model nor an adapter."""
    if adapter_folder(model) is None:
        check_model_path(model)


def tokenizer_of(model: str, trust_remote_code: bool = False, revision: str | None = None):
    """The tokenizer of a model, with a pad token; a classifier's processor.

    Raises:
        `ValueError`: if it cannot be had.
    """
    with _one_line(f"No tokenizer can be loaded from {model!r}"):
        processor = load_processor(model, trust_remote_code, revision)
    if hasattr(processor, "pad_token_id"):
        ensure_pad_token(processor)
    return processor


def checkpoint_of(model: str, trust_remote_code: bool = False, **kwargs):
    """A model to look at: full weights or an adapter, in evaluation mode.

    Raises:
        `ValueError`: if it cannot be had.
    """
    with _one_line(f"No model can be loaded from {model!r}"):
        return load_checkpoint(model, trust_remote_code, **kwargs)


@contextmanager
def _one_line(what: str):
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{what}: {' '.join(str(error).split())}") from error
