# SPDX-License-Identifier: Apache-2.0
"""Folders that hold an adapter: which one is meant, read whole; and a trained adapter written into one.

PEFT writes an adapter that is not called `default` into a folder of its name, and every other adapter of the model
beside it; what loads the folder takes `default`, trained or not. A trainer's folder holds what it trained, in the
folder itself, whatever it is called in memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import nn

from .adapters import REFERENCE_ADAPTER, is_peft_model, trained_adapter


ADAPTER_CONFIG = "adapter_config.json"
# Checkpoints of the run, and what is being pushed.
_NOT_ADAPTERS = ("checkpoint-", "_")
# What TRL's trainers, and ours in earlier versions, leave beside a trained adapter: the one it began as.
_REFERENCES = ("ref", REFERENCE_ADAPTER)


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


def adapter_folder(model: str | Path) -> Path | None:
    """Where the adapter is that a checkpoint's folder holds; `None` for full weights, or what is no folder.

    Raises:
        `ValueError`: if there are several, and nothing says which is meant.
    """
    folder = Path(model)
    weights = ("model*.safetensors", "pytorch_model*.bin")
    if (folder / "config.json").is_file() and any(file for pattern in weights for file in folder.glob(pattern)):
        return None
    found = [config.parent for config in (*folder.glob(ADAPTER_CONFIG), *sorted(folder.glob(f"*/{ADAPTER_CONFIG}")))]
    found = [path for path in found if path == folder or not path.name.startswith(_NOT_ADAPTERS)]
    if folder in found:
        found = [path for path in found if path.name not in _REFERENCES or path == folder]
    if len(found) > 1:
        names = ", ".join("'default' in the folder itself" if path == folder else repr(path.name) for path in found)
        raise ValueError(
            f"{str(folder)!r} holds {len(found)} adapters and does not say which was trained: {names}. Give the "
            f"folder of the one that is meant, such as {str(found[-1])!r}, or move the others away."
        )
    return found[0] if found else None


def base_of(adapter: Path) -> tuple[str, str | None]:
    """Name and revision of the model that an adapter belongs on.

    Raises:
        `ValueError`: if the adapter does not say.
    """
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(adapter))
    if not config.base_model_name_or_path:
        raise ValueError(
            f"The adapter in {str(adapter)!r} does not say which model it belongs on: write its path or Hub id as "
            f"`base_model_name_or_path` into {ADAPTER_CONFIG}."
        )
    return config.base_model_name_or_path, config.revision


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """A model with an adapter from a folder on it, in evaluation mode.

    Raises:
        `ValueError`: if not every weight of the adapter is there, or some of the file are not the adapter's: PEFT
            would leave such weights as drawn, or out.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    loaded = PeftModel.from_pretrained(model, str(folder)).eval()
    there = {name for name in load_peft_weights(str(folder), device="cpu") if f".{REFERENCE_ADAPTER}" not in name}
    needed = set(get_peft_model_state_dict(loaded))
    for names, what in ((needed - there, "lacks weights that it needs"), (there - needed, "has weights for no part")):
        if names:
            raise ValueError(
                f"The adapter in {str(folder)!r} {what} of {type(model).__name__}: {', '.join(sorted(names)[:3])}"
                f"{', ...' if len(names) > 3 else ''}. Give a whole adapter, made on the model that its "
                f"{ADAPTER_CONFIG} names."
            )
    return loaded
