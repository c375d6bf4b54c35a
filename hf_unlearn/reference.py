# SPDX-License-Identifier: Apache-2.0
"""The reference: the model as it enters the trainer, never trained.

| form      | memory          | when                                                         |
|-----------|-----------------|--------------------------------------------------------------|
| `adapter` | the adapter's   | PEFT: a fresh adapter is switched off, any other is copied   |
| `live`    | a second model  | otherwise                                                    |
"""

import copy
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .modeling import is_peft_model


REFERENCE_ADAPTER = "unlearn_ref"
INITS_THAT_TAKE_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class AdapterReference:
    """Switches the trained adapter off, or to a frozen copy where the adapter came in trained.

    Args:
        model (`PeftModel`):
            The policy.
        fresh (`bool`):
            Whether the model with the adapter off is the model as it came in; not so for an adapter that came in
            trained or that took its first weights from the base model's.
    """

    name = "adapter"

    def __init__(self, model: nn.Module, fresh: bool):
        self.model = model
        self.state = None
        if not fresh:
            from peft import get_peft_model_state_dict

            self.trained = model.active_adapter
            self.state = {k: v.detach().clone() for k, v in get_peft_model_state_dict(model).items()}

    def open(self, accelerator) -> None:
        """Adds the frozen copy, if one is needed. It is on the model only between `open` and `close`."""
        if self.state is None:
            return
        from peft import set_peft_model_state_dict

        config = copy.deepcopy(self.model.peft_config[self.trained])
        if _takes_from_base(config):
            # Adding the adapter must not take from the base a second time; its weights are set below.
            config.init_lora_weights = True
        self.model.add_adapter(REFERENCE_ADAPTER, config)
        set_peft_model_state_dict(self.model, self.state, adapter_name=REFERENCE_ADAPTER)
        self.model.set_adapter(self.trained)

    def close(self) -> None:
        if self.state is not None and REFERENCE_ADAPTER in self.model.peft_config:
            self.model.delete_adapter(REFERENCE_ADAPTER)
            self.model.set_adapter(self.trained)

    @contextmanager
    def hidden_from_saving(self):
        """PEFT saves every adapter it knows; the reference's is not part of the result."""
        config = self.model.peft_config.pop(REFERENCE_ADAPTER, None)
        try:
            yield
        finally:
            if config is not None:
                self.model.peft_config[REFERENCE_ADAPTER] = config

    @torch.no_grad()
    def logits(self, policy: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits `[B, T, V]`. `policy` is the wrapped model, whose forward gathers sharded weights."""
        with self._switched(), _evaluating(policy):
            return policy(**batch, use_cache=False).logits

    @contextmanager
    def _switched(self):
        if self.state is None:
            with self.model.disable_adapter():
                yield
            return
        self.model.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
        try:
            yield
        finally:
            self.model.set_adapter(self.trained)


class LiveReference:
    """A second, frozen model in memory.

    Args:
        model (`PreTrainedModel`):
            The frozen model; see [`frozen_copy`].
    """

    name = "live"

    def __init__(self, model: nn.Module):
        self.model = model.eval().requires_grad_(False)
        self.prepared = False

    def open(self, accelerator) -> None:
        """Places the model as the accelerator places models: sharded where the policy is."""
        if self.prepared:
            return
        if accelerator.distributed_type == "DEEPSPEED":
            from trl.models import prepare_deepspeed

            self.model = prepare_deepspeed(self.model, accelerator)
        elif accelerator.distributed_type == "FSDP":
            from trl.models import prepare_fsdp

            self.model = prepare_fsdp(self.model, accelerator)
        else:
            self.model = accelerator.prepare_model(self.model, evaluation_mode=True)
        self.prepared = True

    def close(self) -> None:
        """The model stays, for another call of `train`."""

    def hidden_from_saving(self):
        return nullcontext()

    @torch.no_grad()
    def logits(self, policy: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits `[B, T, V]`."""
        return self.model(**batch, use_cache=False).logits


Reference = AdapterReference | LiveReference


def build_reference(model: nn.Module, kind: str, fresh_adapter: bool, ref_model=None, reload=None) -> Reference:
    """Chooses the cheapest reference that works.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The policy before training.
        kind (`str`):
            `auto`, `adapter` or `live`.
        fresh_adapter (`bool`):
            Whether the policy's adapter was added by the trainer.
        ref_model (`PreTrainedModel`, *optional*):
            Given by the user; used as it is.
        reload (`Callable`, *optional*):
            Loads the model again from where it came; needed under ZeRO-3, where a copy holds no weights.

    Raises:
        `ValueError`: if the form asked for cannot work, with the reason.
    """
    if ref_model is not None:
        if ref_model is model:
            raise ValueError("`ref_model` is the model itself. Leave it out: the reference is made for you.")
        return LiveReference(ref_model)
    if is_peft_model(model) and kind != "live":
        switch_off = fresh_adapter and not _takes_from_base(model.peft_config[model.active_adapter])
        return AdapterReference(model, switch_off)
    return LiveReference(frozen_copy(model, reload))


def frozen_copy(model: nn.Module, reload=None) -> nn.Module:
    """A copy of the model as it is now, or an error where copying would give something else."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        if reload is None:
            raise ValueError(
                "Under ZeRO-3 a copy of a loaded model holds no weights. Pass the model as a path or Hub id, or pass "
                "`ref_model`."
            )
        return reload()
    if any("forward" in vars(module) for module in model.modules()):
        raise ValueError(
            "The model's `forward` was replaced on the instance (trainers with a fused head do this), so a copy would "
            "still run the original's weights. Pass the model as a path, or pass `ref_model`."
        )
    return copy.deepcopy(model)


def _takes_from_base(peft_config) -> bool:
    """Whether the adapter's initialisation moves part of the base weights into the adapter."""
    init = getattr(peft_config, "init_lora_weights", None)
    return isinstance(init, str) and init.lower().startswith(INITS_THAT_TAKE_FROM_BASE)


@contextmanager
def _evaluating(model: nn.Module):
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
