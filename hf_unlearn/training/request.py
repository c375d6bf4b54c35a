# SPDX-License-Identifier: Apache-2.0
"""What a trainer is asked to do, looked at before rows are read and models loaded."""

from torch import nn

from .. import modeling
from ..models.adapters import check_adapters
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
