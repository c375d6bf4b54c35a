# SPDX-License-Identifier: Apache-2.0
"""The models of an audit by name, and those whose weights an attack changes: plain ones, with adapters merged."""

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from ...data.benchmarks import resolve_model
from ...modeling import vocabulary_size
from ...models import wrappers
from ...models.adapters import is_peft_model
from ...models.loading import config_of


def named_configs(args: Any) -> Iterator[tuple[str, Any]]:
    """Name and config of the audited model and of those that it is compared with; nothing is loaded for that.

    Args:
        args ([`~hf_unlearn.audit.robustness.arguments.RobustnessArguments`]): which names the models.
    """
    others = (args.retrained_model_name_or_path, args.original_model_name_or_path)
    named = [(args.model_name_or_path, args.model_revision), *((name, None) for name in others if name is not None)]
    for name, revision in named:
        yield name, config_of(resolve_model(name), args.trust_remote_code, revision)


def smallest_vocabulary(args: Any) -> int:
    """Tokens that each of these models knows."""
    return min(vocabulary_size(config) for _, config in named_configs(args))


def check_not_quantized(args: Any) -> None:
    """Refuses checkpoints that hold quantised weights; nothing is loaded for that.

    Args:
        args ([`~hf_unlearn.audit.robustness.arguments.RobustnessArguments`]): which names the models.

    Raises:
        `ValueError`
    """
    for name, config in named_configs(args):
        check_plain(name, config)


def check_plain(name: str, config: Any) -> None:
    """Refuses a model whose config says that its weights are quantised already.

    Raises:
        `ValueError`
    """
    how = getattr(config, "quantization_config", None)
    if how is not None:
        how = how.get("quant_method", how) if isinstance(how, dict) else how
        raise ValueError(
            f"{name} holds weights that are quantised already ({how}), and this attack changes plain ones. Give the "
            "checkpoint that it was made from."
        )


def merged(model: nn.Module) -> nn.Module:
    """The model, or, of one with an adapter, a copy with the adapter in its weights, as it would be served.

    Raises:
        `ValueError`: for an adapter that is no change of weights, or goes with a wrapper.
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
    return wrappers.merged(copy.deepcopy(model))
