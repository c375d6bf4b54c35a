# SPDX-License-Identifier: Apache-2.0
"""Names of models as a user gives them: folders with full weights or an adapter, or Hub ids. Nothing is imported for
that but what reads files."""

from collections.abc import Mapping
from pathlib import Path

from .checkpoint_files import ADAPTER_CONFIG, CheckpointError, check_adapter_files, check_model_files


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
    if (path / "config.json").exists():
        check_model_files(path, loading)
        return
    if (path / ADAPTER_CONFIG).exists():
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
    """Refuses a local path that holds neither a whole model nor a whole adapter whose base is there."""
    if is_adapter(model):
        check_checkpoint_path(base_of(model))
    else:
        check_model_path(model)


def is_adapter(model: str) -> bool:
    """Whether a folder holds an adapter and no full weights."""
    path = Path(model)
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def base_of(adapter: str) -> str:
    """The model that an adapter's folder says it stands on.

    Raises:
        `ValueError`: if its files are not whole, or the base is not there.
    """
    base = check_adapter_files(Path(adapter)).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise CheckpointError(
            f"{Path(adapter) / ADAPTER_CONFIG} names no base model. Write its folder or Hub id as "
            "`base_model_name_or_path` there."
        )
    if not Path(base).is_dir() and _looks_local(base):
        raise CheckpointError(
            f"The adapter {adapter!r} stands on {base!r}, and there is no such folder. Write where its base model is "
            f"as `base_model_name_or_path` into its {ADAPTER_CONFIG}."
        )
    if Path(base).is_dir() and Path(base).resolve() == Path(adapter).resolve():
        raise CheckpointError(
            f"The adapter {adapter!r} names itself as its base model. Write another into its config."
        )
    return base
