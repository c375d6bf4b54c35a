# SPDX-License-Identifier: Apache-2.0
"""Names of models as a user gives them: folders with full weights or an adapter, or Hub ids. Nothing is imported for
that but what reads files."""

from collections.abc import Mapping
from pathlib import Path

from .checkpoint_files import ADAPTER_CONFIG, CheckpointError, check_adapter_files, check_model_files
from .wrapper_files import WRAPPER_CONFIG, is_wrapper_folder, read_wrapper


# Checkpoints of the run, and what is being pushed.
_NOT_ADAPTERS = ("checkpoint-", "_")
# What a method finds again on resume.
METHOD_STATE = "method_state.safetensors"
# Earlier versions kept the reference as an adapter of this name; files that hold it are never pushed.
REFERENCE_ADAPTER = "unlearn_ref"
# What TRL's trainers, and ours in earlier versions, leave beside a trained adapter: the one it began as.
_REFERENCES = ("ref", REFERENCE_ADAPTER)


def check_model_path(model: str, loading: Mapping | None = None) -> None:
    """Refuses a local path that holds no whole model, before anything is loaded. A Hub id (`owner/name`) passes.

    Args:
        model (`str`): folder or Hub id.
        loading (`Mapping`, *optional*): arguments of `from_pretrained`, some of which name other files.

    Raises:
        `ValueError`: if the path is missing, its files are damaged, or it holds an adapter where full weights are
            needed.
    """
    path = Path(model)
    if not path.is_dir():
        if _looks_local(model):
            raise CheckpointError(
                f"No model folder at {model!r}. Give an existing folder or a Hub id such as 'owner/name'."
            )
        return
    if is_wrapper_folder(path):
        raise CheckpointError(
            f"{model!r} holds a wrapper around another model, not a full model. Give its base, or load it with "
            "`hf_unlearn.load_unlearned` to evaluate it."
        )
    if (path / "config.json").exists() and adapter_folder(path) is None:
        check_model_files(path, loading)
        return
    if adapter_folder(path) is not None:
        raise CheckpointError(
            f"{model!r} holds an adapter, not a full model. Merge it first (`hf-unlearn merge`, or "
            "`PeftModel.merge_and_unload()`), or load it with `peft.AutoPeftModelForCausalLM` and pass the model "
            "itself."
        )
    raise CheckpointError(f"{model!r} holds no `config.json`. Give a folder written by `save_pretrained`.")


def _looks_local(model: str) -> bool:
    path = Path(model)
    return path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or model.endswith("/")


def check_checkpoint_path(model: str) -> None:
    """Refuses a local path that holds neither a whole model nor a whole adapter or wrapper whose base is there."""
    if (upper := upper_folder(model)) is None:
        check_model_path(model)
    else:
        check_checkpoint_path(base_of(upper)[0])


def upper_folder(model: str | Path) -> Path | None:
    """Where the adapter or the wrapper is that a checkpoint's folder holds, which stands on another checkpoint;
    `None` for full weights, or what is no folder.

    Raises:
        `ValueError`: if there are several, and nothing says which is meant.
    """
    return Path(model) if is_wrapper_folder(model) else adapter_folder(model)


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
        # PEFT describes each folder it saves to: what has a card of its own is no part of this one.
        other = {path for path in found if path.name in _REFERENCES or (path / "README.md").is_file()}
        found = [path for path in found if path == folder or path not in other]
    if len(found) > 1:
        names = ", ".join("'default' in the folder itself" if path == folder else repr(path.name) for path in found)
        raise CheckpointError(
            f"{str(folder)!r} holds {len(found)} adapters and does not say which was trained: {names}. Give the "
            f"folder of the one that is meant, such as {str(found[-1])!r}, or move the others away."
        )
    return found[0] if found else None


def base_of(upper: Path) -> tuple[str, str | None]:
    """Name and revision of the model that an adapter or a wrapper stands on.

    Raises:
        `ValueError`: if its files are not whole, or the base is not there.
    """
    wraps = is_wrapper_folder(upper)
    what, file = ("wrapper", WRAPPER_CONFIG) if wraps else ("adapter", ADAPTER_CONFIG)
    config = read_wrapper(upper) if wraps else check_adapter_files(upper)
    base = config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise CheckpointError(
            f"The {what} in {str(upper)!r} does not say which model it belongs on: write its path or Hub id as "
            f"`base_model_name_or_path` into {file}."
        )
    if not Path(base).is_dir() and _looks_local(base):
        raise CheckpointError(
            f"The {what} {str(upper)!r} stands on {base!r}, and there is no such folder. Write where its base "
            f"model is as `base_model_name_or_path` into its {file}."
        )
    if Path(base).is_dir() and Path(base).resolve() == upper.resolve():
        raise CheckpointError(f"The {what} {str(upper)!r} names itself as its base model, in its {file}.")
    return base, config.get("revision")
