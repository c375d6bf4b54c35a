# SPDX-License-Identifier: Apache-2.0
"""What a trainer is given: looked at before rows are read, and the model loaded as asked."""

from collections.abc import Callable
from functools import partial

from torch import nn
from transformers import set_seed

from .. import modeling
from ..models.adapters import AddedAdapter, add_adapter, check_adapters
from ..models.tied import check_untie
from .launch_check import check_launch


def check_request(trainer_class: type, args, model, quantization_config, peft_config) -> None:
    """Refuses what cannot work whatever the rows and weights are.

    Args:
        trainer_class (`type`): the method's.
        args ([`UnlearnConfig`]), model (`str` or `nn.Module`), quantization_config, peft_config: of its constructor.

    Raises:
        `ValueError`: with what to change.
    """
    if not isinstance(args, trainer_class.config_class):
        wanted = trainer_class.config_class.__name__
        raise ValueError(f"{trainer_class.__name__} takes a {wanted}; got {type(args).__name__}.")
    modeling.check_single_device_process(args)
    check_launch(args)
    if isinstance(model, str):
        modeling.check_model_path(model, args.model_init_kwargs)
    elif not isinstance(model, nn.Module):
        raise ValueError(f"`model` is a {type(model).__name__}. Pass a path, a Hub id or a loaded model.")
    elif args.model_init_kwargs or quantization_config is not None:
        raise ValueError(
            "`model_init_kwargs` and `quantization_config` decide how a model is loaded, and this one is loaded "
            "already. Pass the model as a path or Hub id, or leave them out."
        )
    check_adapters(model, peft_config)
    adapter = peft_config is not None or modeling.is_peft_model(model)
    check_untie(args, adapter)
    if peft_config is not None and args.trainable_modules:
        raise ValueError("Give `peft_config` or `trainable_modules`, not both: each decides what trains.")
    if args.reference == "adapter" and not adapter:
        raise ValueError("reference='adapter' needs a PEFT model. Pass a `peft_config`, or take reference='live'.")


def loaded_policy(model, args, peft_config, quantization_config) -> tuple[nn.Module, Callable | None]:
    """The model, and what loads it again; nothing does where it was given loaded."""
    if not isinstance(model, str):
        return model, None
    revision = (args.model_init_kwargs or {}).get("revision")
    modeling.check_adapter_fits(model, peft_config, args.trust_remote_code, revision)
    reload = partial(modeling.load_model, model, args, quantization_config)
    return reload(), reload


def with_adapter(model: nn.Module, args, peft_config) -> tuple[nn.Module, AddedAdapter | None]:
    """The model with a fresh adapter, if one is asked for, and what adding it did."""
    if peft_config is None:
        return model, None
    # Trainer seeds too, but an adapter's first weights are drawn here.
    set_seed(args.seed)
    return add_adapter(model, peft_config, (args.model_init_kwargs or {}).get("revision"))
