# SPDX-License-Identifier: Apache-2.0
"""Folders that hold an adapter: read whole; and a trained adapter written into one.

PEFT writes an adapter that is not called `default` into a folder of its name, and every other adapter of the model
beside it; what loads the folder takes `default`, trained or not. A trainer's folder holds what it trained, in the
folder itself, whatever it is called in memory.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import nn

from .adapter_fit import fit_embeddings
from .adapters import is_peft_model, trained_adapter
from .checkpoint_files import ADAPTER_CONFIG, CheckpointError, readable
from .checkpoint_paths import REFERENCE_ADAPTER
from .weight_checks import check_finite, some_of


@contextmanager
def saved_alone(model: nn.Module, folder: str | Path, writes: bool) -> Iterator[None]:
    """Inside, `model.save_pretrained(folder)` writes the adapter that trains, and no other, into the folder itself.

    Args:
        model (`nn.Module`): of any kind; nothing changes for one without other adapters.
        folder (`str` or `Path`): where it is saved.
        writes (`bool`): whether this process does.
    """
    if not is_peft_model(model) or list(model.peft_config) == ["default"]:
        yield
        return
    folder, name = Path(folder), trained_adapter(model)
    model.save_pretrained = partial(model.save_pretrained, selected_adapters=[name])
    try:
        yield
    finally:
        del model.save_pretrained
    if writes and name != "default":
        # The config goes last: with it the folder says that there is an adapter.
        for file in sorted((folder / name).iterdir(), key=lambda file: file.name == ADAPTER_CONFIG):
            file.replace(folder / file.name)
        (folder / name).rmdir()


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """A model with an adapter from a folder on it, in evaluation mode.

    Args:
        model (`nn.Module`): what the adapter was trained on; changed in place. It is given as many embeddings as the
            adapter's files hold, where it was trained beside added tokens.
        folder (`str` or `Path`): holds the adapter's config and weights.

    Raises:
        `ValueError`: if not every weight of the adapter is there, or some of the file are not the adapter's: PEFT
            would leave such weights as drawn, or out; if sizes do not fit, or a weight is not finite.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    folder, below = str(folder), {id(parameter) for parameter in model.parameters()}
    with readable(f"The adapter {folder!r} cannot be put on its base model {model.config._name_or_path!r}"):
        fit_embeddings(model, folder)
        with warnings.catch_warnings():
            # What is missing is told below, as an error.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            loaded = PeftModel.from_pretrained(model, folder).eval()
        there = {name for name in load_peft_weights(folder, device="cpu") if f".{REFERENCE_ADAPTER}" not in name}
        needed = set(get_peft_model_state_dict(loaded))
    for names, what in ((needed - there, "lacks weights that it needs"), (there - needed, "has weights for no part")):
        if names:
            raise CheckpointError(
                f"The adapter in {folder!r} {what} of {type(model).__name__}: {some_of(sorted(names))}. Give a whole "
                f"adapter, made on the model that its {ADAPTER_CONFIG} names."
            )
    check_finite(((name, p) for name, p in loaded.named_parameters() if id(p) not in below), folder)
    return loaded
