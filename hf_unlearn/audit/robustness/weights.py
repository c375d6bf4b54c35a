# SPDX-License-Identifier: Apache-2.0
"""Models whose weights an attack changes: plain ones, with adapters merged into them."""

import copy
from typing import Any

from torch import nn

from ...data.benchmarks import resolve_model
from ...models.adapters import is_peft_model
from ...models.loading import config_of


def check_not_quantized(args: Any) -> None:
    """Refuses checkpoints that hold quantised weights; nothing is loaded for that.

    Args:
        args ([`~hf_unlearn.audit.robustness.arguments.RobustnessArguments`]): which names the models.

    Raises:
        `ValueError`
    """
    others = (args.retrained_model_name_or_path, args.original_model_name_or_path)
    named = [(args.model_name_or_path, args.model_revision), *((name, None) for name in others if name is not None)]
    for name, revision in named:
        config = config_of(resolve_model(name), args.trust_remote_code, revision)
        how = getattr(config, "quantization_config", None)
        if how is not None:
            how = how.get("quant_method", how) if isinstance(how, dict) else how
            raise ValueError(
                f"{name} holds weights that are quantised already ({how}), and this attack changes plain ones. Give "
                "the checkpoint that it was made from."
            )


def merged(model: nn.Module) -> nn.Module:
    """The model, or, of one with an adapter, a copy with the adapter in its weights, as it would be served.

    Raises:
        `ValueError`: for an adapter that is no change of weights.
    """
    if not is_peft_model(model):
        return model
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = next(iter(model.peft_config.values())).peft_type
        kind = getattr(kind, "value", kind)
        raise ValueError(
            f"The model's adapter ({kind}) is no change of its weights, so it cannot be merged "
            "into them. Audit its outputs by another kind."
        )
    return copy.deepcopy(model).merge_and_unload()
