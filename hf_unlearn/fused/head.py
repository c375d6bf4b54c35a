# SPDX-License-Identifier: Apache-2.0
"""The LM head: the matrix, and what a model does to its product before it calls it logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..losses import at_least_float32


@dataclass(frozen=True, eq=False)
class Head:
    r"""A map from last hidden states to logits: \\( z = s (W h + b) \\), then \\( c \tanh(z / c) \\) where capped.

    Args:
        weight (`Tensor`): `[V, d]`.
        bias (`Tensor`, *optional*): `[V]`.
        scale (`float`): \\( s \\), as Cohere and Granite have it.
        softcap (`float`, *optional*): \\( c \\), as Gemma has it.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[..., V]` of `hidden [..., d]`, at least float32, with the gradient of plain torch operations."""
        logits = _product(hidden, self.weight.to(hidden.dtype).t())
        if self.bias is not None:
            logits = logits + self.bias.to(logits.dtype)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.is_cuda and a.dim() == 2 and a.dtype in (torch.bfloat16, torch.float16) and not torch.is_grad_enabled():
        # Logits rounded to bfloat16 are off by up to 0.06 around 16: noise of the size of the KL we measure.
        return torch.mm(a, b, out_dtype=torch.float32)
    return at_least_float32(a @ b)


def head_of(model: nn.Module) -> Head:
    """Reads the head of a causal language model, through wrappers and [`~peft.PeftModel`].

    The weights are the model's own tensors, which are empty or sharded under ZeRO-3 and FSDP2: see [`gathered_head`],
    or let [`head_forward`] run your function where they are whole.

    Args:
        model (`nn.Module`): the model, wrapped or not.

    Raises:
        `ValueError`: if the head is not one matrix product (LoRA on it, quantised, device-map hooks) or if the logits
            are post-processed in a way that [`Head`] cannot express.
    """
    core = unwrapped(model)
    return head_at(core, active_leaf(core))


def head_at(core: nn.Module, leaf: nn.Linear) -> Head:
    """The [`Head`] of `core` with the weights of `leaf`, one of [`head_leaves`]."""
    scale, softcap = _post_processing(core.config.get_text_config())
    return Head(leaf.weight, leaf.bias, scale, softcap)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP, DeepSpeed and `torch.compile` wrappers; a PEFT model stays one."""
    while True:
        inner = getattr(model, "_orig_mod", None) or model._modules.get("module")
        if inner is None:
            return model
        model = inner


def head_leaves(core: nn.Module) -> list[nn.Linear]:
    """The linear layers that may be called as the head: one, or more under PEFT's `modules_to_save`."""
    find = getattr(core, "get_output_embeddings", None)
    module = find() if find is not None else None
    if module is None:
        raise ValueError(f"{type(core).__name__} has no output embeddings: give a causal language model.")
    copies = getattr(module, "modules_to_save", None)
    leaves = [module] if copies is None else [module.original_module, *copies.values()]
    for leaf in leaves:
        if not isinstance(leaf, nn.Linear) or type(leaf).forward is not nn.Linear.forward:
            raise ValueError(
                f"The head is a {type(leaf).__module__}.{type(leaf).__name__}, not a plain linear layer. Leave it out "
                "of quantisation and of the adapter's target modules (PEFT trains the full head where it is named in "
                "`modules_to_save`), or use the losses over logits."
            )
        if "forward" in vars(leaf):
            raise ValueError(
                "The head's `forward` was replaced on the instance (device maps do this). Load the model onto one "
                "device, or use the losses over logits."
            )
    return leaves


def active_leaf(core: nn.Module) -> nn.Linear:
    """The linear layer that is called as the head as things stand."""
    leaves = head_leaves(core)
    wrapper = core.get_output_embeddings()
    if leaves[0] is wrapper:
        return wrapper
    if wrapper.disable_adapters or wrapper.active_adapters[0] not in wrapper.modules_to_save:
        return wrapper.original_module
    return wrapper.modules_to_save[wrapper.active_adapters[0]]


def _post_processing(config) -> tuple[float, float | None]:
    """Scale and softcap that a model of this config applies after its head."""
    kind = config.model_type
    kept = getattr(config, "unpadded_vocab_size", None)
    if kept is not None and kept < config.vocab_size:
        raise ValueError(f"{kind!r} cuts its logits to {kept} of {config.vocab_size} entries; use losses over logits.")
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    softcap = next((value for name in names if (value := getattr(config, name, None))), None)
    # By model type, for the same names mean other things elsewhere: MPT ignores its `logit_scale`, MiniCPM3 divides
    # hidden states by `logits_scaling`.
    if kind.startswith("cohere"):
        scale = config.logit_scale
    elif kind.startswith("granite"):
        scale = 1 / getattr(config, "logits_scaling", 1)
    elif kind == "hyperclovax":
        scale = config.logits_scaling
    elif kind == "falcon_h1":
        scale = config.lm_head_multiplier
    elif kind.startswith("muse_"):
        scale = config.output_multiplier
    else:
        scale = None
    return 1.0 if scale is None else float(scale), softcap


def is_sharded(head: Head) -> bool:
    """Whether the weights are ZeRO-3 or FSDP2 shards."""
    return hasattr(head.weight, "ds_id") or hasattr(head.weight, "full_tensor")


@contextmanager
def gathered_head(head: Head) -> Iterator[Head]:
    """The head with its whole weights, read-only: gathered for the context under ZeRO-3, copied under FSDP2.

    A collective call: under ZeRO-3 and FSDP2 every rank has to make it.

    Args:
        head ([`Head`]): from [`head_of`].
    """
    tensors = {name: x for name, x in (("weight", head.weight), ("bias", head.bias)) if x is not None}
    if not hasattr(head.weight, "ds_id"):
        yield replace(head, **{name: x.full_tensor() for name, x in tensors.items() if hasattr(x, "full_tensor")})
        return
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus

    # What is gathered already is let go of on leaving, under the feet of whoever gathered it.
    missing = [x for x in tensors.values() if x.ds_status == ZeroParamStatus.NOT_AVAILABLE]
    with GatheredParameters(missing):
        yield head
