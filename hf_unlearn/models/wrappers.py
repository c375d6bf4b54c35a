# SPDX-License-Identifier: Apache-2.0
"""Results that are a model around a model: edits of module outputs, a gate on prompts, a combination of logits.

A wrapper is attached to its base, which stays an ordinary model of transformers: `generate`, audits and evaluation
harnesses run it as they run any other. What is saved is the wrapper and the name of its base.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from ..files import write_text
from .adapters import adapter_settings, is_peft_model
from .checkpoint_files import CheckpointError
from .weight_checks import check_finite
from .wrapper_files import read_tensors, read_wrapper, write_wrapper


# Kind -> class; every subclass that names its kind is entered.
WRAPPERS: dict[str, type["UnlearnedWrapper"]] = {}
# The attribute of a model under which its wrapper is found.
ATTRIBUTE = "unlearned_by"


class UnlearnedWrapper(nn.Module):
    """Base of wrappers. A subclass names its `kind` and defines `attach`, `settings` and, where it is not made by
    `cls(**settings, **tensors)`, `restore`.

    It becomes a part of the model that it is attached to (`model.unlearned_by`), so that its parameters and buffers
    move and train with the model's.

    Attributes:
        kind (`str`): what folders call it.
        reads_prompt (`bool`): what it does depends on the whole prompt, which must then go through the model in one
            piece; audits compute the beginning that prompts share only once otherwise.
        changes_logits (`bool`): the logits are not the head's product with the last hidden states, from which the
            fused losses compute them.
    """

    kind: ClassVar[str]
    reads_prompt: ClassVar[bool] = False
    changes_logits: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "kind" in vars(cls):
            WRAPPERS[cls.kind] = cls

    def attach(self, model: nn.Module) -> None:
        """Changes what the model computes, by hooks on its modules (see [`torch.nn.Module.register_forward_hook`]) or
        another `forward` of the model. Give hooks as methods of the wrapper: copies of the model then have their own.

        Raises:
            `ValueError`: if the model has not what the wrapper changes.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """JSON values that the wrapper is made with."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What else it is made with: parameters and buffers, by name."""
        return dict(self.state_dict())

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "UnlearnedWrapper":
        """A wrapper from what `settings` and `tensors` gave."""
        return cls(**settings, **tensors)


def wrapper_of(model: nn.Module) -> UnlearnedWrapper | None:
    """A model's wrapper, if it has one."""
    return getattr(model, ATTRIBUTE, None)


def beside_weights(model: nn.Module) -> dict:
    """What decides a model's predictions beside its weights and its config: adapters and a wrapper; empty for a model
    without any, JSON values otherwise."""
    wrapper, found = wrapper_of(model), adapter_settings(model)
    return found if wrapper is None else {**found, "wrapper": [wrapper.kind, wrapper.settings()]}


def reads_prompt(model: nn.Module) -> bool:
    """Whether what a model does depends on its whole prompt, beyond what attention makes of it."""
    return getattr(wrapper_of(model), "reads_prompt", False)


def merged(model: nn.Module) -> nn.Module:
    """A model with its adapter in its weights; the adapter's layers are gone from it.

    Raises:
        `ValueError`: if there is a wrapper below or around the adapter: the hooks of one go with the layers that they
            are on, and what is saved of the other is without the adapter.
    """
    if (wrapper := wrapper_of(model)) is not None:
        raise ValueError(
            f"The model has an adapter and a wrapper, of kind {wrapper.kind!r}, which merging the adapter would lose. "
            "Merge the adapter into its base first, and make the wrapper around that."
        )
    return model.merge_and_unload()


def check_not_wrapped(model: Any, ref_model: Any, fused_losses: bool | None) -> None:
    """Raises `ValueError` for a model to train that has a wrapper, and for a reference whose logits the fused losses
    would not see."""
    if wrapper_of(model) is not None:
        raise ValueError(
            f"`model` has a wrapper, of kind {wrapper_of(model).kind!r}, and would be saved without what trains. Pass "
            "its base."
        )
    check_logits("`ref_model`", ref_model, fused_losses)


def check_logits(argument: str, model: Any, fused_losses: bool | None) -> None:
    """Raises `ValueError` for a frozen model whose logits the fused losses would not see.

    Args:
        argument (`str`): how the model was given, for the error.
        model (`nn.Module`): anything else passes.
        fused_losses (`bool`, *optional*): the config's.
    """
    if getattr(wrapper_of(model), "changes_logits", False) and fused_losses is not False:
        raise ValueError(
            f"{argument} has a wrapper that changes its logits, which the fused losses compute from its hidden "
            "states. Pass fused_losses=False."
        )


def wrap(model: nn.Module, wrapper: UnlearnedWrapper, base: str | None = None, revision: str | None = None):
    """Attaches a wrapper to a model, in place.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the base, as it is on disk.
        wrapper ([`UnlearnedWrapper`]): what is attached.
        base (`str`, *optional*): folder or Hub id that the base is loaded from; by default where the model came from.
        revision (`str`, *optional*): of a Hub id.

    Returns:
        The model. Its `save_pretrained` writes the wrapper's folder.

    Raises:
        `ValueError`: if the model has a wrapper, or it is not known where it came from.
    """
    if wrapper_of(model) is not None:
        raise ValueError(f"The model has a wrapper of kind {wrapper_of(model).kind!r} already. Wrap its base.")
    if base is None:
        base = None if is_peft_model(model) else model.config._name_or_path
    if not base:
        raise ValueError(
            "The model does not say where it came from (with an adapter it says where the model below came from). "
            "Save it, and give the folder as `base`."
        )
    # A folder's name holds wherever the wrapper is loaded.
    base = str(Path(base).absolute()) if Path(base).is_dir() else str(base)
    weight = next(model.parameters())
    wrapper.to(weight.device)
    wrapper.attach(model)
    setattr(model, ATTRIBUTE, wrapper.train(model.training))
    # Its weights alone would be the model before unlearning.
    model.save_pretrained = partial(save_wrapped, model, base=base, revision=revision)
    return model


def save_wrapped(model: nn.Module, save_directory: str | Path, *, base: str, revision: str | None = None, **_) -> None:
    """Writes a wrapped model's folder: the wrapper, and the name of its base.

    Raises:
        `ValueError`: if settings are no JSON, or the folder holds another model.
    """
    from ..version import __version__

    wrapper = wrapper_of(model)
    settings = wrapper.settings()
    if json.loads(json.dumps(settings)) != settings:
        raise ValueError(f"{wrapper.kind}: its settings are not what JSON gives back ({settings!r}).")
    config = {
        "wrapper": wrapper.kind,
        "base_model_name_or_path": base,
        "revision": revision,
        "settings": settings,
        "hf_unlearn": __version__,
    }
    write_wrapper(save_directory, config, wrapper.tensors())
    card = Path(save_directory) / "README.md"
    if not card.exists():
        write_text(card, _card(config))


def load_wrapper(folder: str | Path, below: nn.Module) -> nn.Module:
    """The wrapper of a folder on its base.

    Raises:
        `ValueError`: if the folder is not whole, its kind is not known, or it does not fit the base.
    """
    config = read_wrapper(folder)
    kind = config["wrapper"]
    if kind not in WRAPPERS:
        raise CheckpointError(
            f"{str(folder)!r} holds a wrapper of kind {kind!r}, which is not known here (known: "
            f"{', '.join(sorted(WRAPPERS)) or 'none'}). Import the module that defines it first."
        )
    tensors = read_tensors(folder, config)
    try:
        wrapper = WRAPPERS[kind].restore(config["settings"], tensors)
    except TypeError as error:
        raise CheckpointError(f"{str(folder)!r} does not hold what a wrapper {kind!r} takes: {error}.") from error
    check_finite(wrapper.named_parameters(), str(folder))
    check_finite(wrapper.named_buffers(), str(folder))
    base = config["base_model_name_or_path"]
    try:
        return wrap(below, wrapper, base, config.get("revision")).eval()
    except AttributeError as error:
        raise CheckpointError(f"The wrapper in {str(folder)!r} does not fit its base {base!r}: {error}.") from error


def _card(config: dict) -> str:
    base, kind = config["base_model_name_or_path"], config["wrapper"]
    head = f"base_model: {base}\n" if not Path(base).is_dir() else ""
    return (
        f"---\n{head}library_name: hf_unlearn\ntags:\n- unlearning\n- {kind}\n---\n\n# A wrapper around {base}\n\n"
        "This folder holds no weights of a language model: it changes what its base model puts out, and whoever has "
        "the base model has what was to be forgotten.\n\n"
        "```python\nfrom hf_unlearn import load_unlearned\n\nmodel = load_unlearned('FOLDER')\n```\n"
    )
