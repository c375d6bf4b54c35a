# SPDX-License-Identifier: Apache-2.0
"""Models and tokenizers as the trainers need them: checked, and with the right parameters trainable."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from .models.adapters import active_adapters, check_adapter_config, check_fits, check_trained, is_peft_model
from .models.loading import (  # noqa: F401 - models are had here, from files or not
    architecture_of,
    check_model_path,
    config_of,
    is_classifier,
    load_checkpoint,
    load_config,
    load_model,
    load_processor,
    load_tokenizer,
)


logger = logging.getLogger(__name__)


def check_adapter_fits(model: str, peft_config, trust_remote_code: bool = False, revision: str | None = None) -> None:
    """Refuses an adapter that cannot be trained, or whose modules the language model at a path does not have.

    Raises:
        `ValueError`: naming what does not fit; no weights are loaded.
    """
    if peft_config is None:
        return
    check_adapter_config(peft_config)
    config = load_config(model, trust_remote_code, revision)
    if not is_classifier(architecture_of(config)):
        with whole_weights():
            check_fits(config, peft_config, trust_remote_code)


def ensure_pad_token(tokenizer) -> None:
    """Pads with EOS where the tokenizer has no pad token. Masks come from lengths, so a real EOS stays visible."""
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has neither a pad nor an EOS token. Set `tokenizer.pad_token`.")
    tokenizer.pad_token = tokenizer.eos_token
    logger.warning("The tokenizer has no pad token; batches are padded with EOS (%r).", tokenizer.eos_token)


def check_vocabulary(model, tokenizer, ref_model: nn.Module | None = None, named: str | None = None) -> None:
    """Refuses a tokenizer that the model has no embeddings for, and a reference of another vocabulary.

    Args:
        model (`nn.Module` or `PretrainedConfig`): which has the embeddings.
        tokenizer (`PreTrainedTokenizerBase`): what makes its inputs.
        ref_model (`nn.Module`, *optional*): the reference, if it is another model.
        named (`str`, *optional*): where the model is from, for the error.

    Raises:
        `ValueError`
    """
    size = vocabulary_size(model)
    if len(tokenizer) > size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the model{'' if named is None else f' {named!r}'} {size} "
            "embeddings. Use the model's own tokenizer, or call `model.resize_token_embeddings(len(tokenizer))` first."
        )
    if ref_model is not None and vocabulary_size(ref_model) != size:
        raise ValueError(
            f"The reference model predicts {vocabulary_size(ref_model)} tokens, the model {size}. Their vocabularies "
            "must be the same: leave `ref_model` out to use the model as it enters the trainer."
        )


def vocabulary_size(model) -> int:
    """Number of tokens a model, or one of this config, predicts; weights may be sharded."""
    return getattr(model, "config", model).get_text_config().vocab_size


def select_trainable(model: nn.Module, patterns: list[str]) -> None:
    """Freezes every parameter whose name matches none of `patterns` (`re.search`).

    Raises:
        `ValueError`: if nothing matches, or the model carries an adapter (which decides itself what trains).
    """
    if is_peft_model(model):
        raise ValueError(
            "`trainable_modules` picks among full weights; under PEFT pick with `target_modules` of the `peft_config`."
        )
    # Tied weights are listed under each of their names, so that `lm_head` is found where it is the embedding too.
    names = dict(model.named_parameters(remove_duplicate=False))
    chosen = {name for name in names if any(re.search(pattern, name) for pattern in patterns)}
    unmatched = [pattern for pattern in patterns if not any(re.search(pattern, name) for name in names)]
    if unmatched:
        shown = ", ".join(sorted(names)[:8])
        raise ValueError(f"trainable_modules {unmatched} match no parameter. Parameters are named like: {shown}, ...")
    parameters = {id(names[name]) for name in chosen}
    tied = {name for name, parameter in names.items() if id(parameter) in parameters} - chosen
    if tied:
        logger.warning(
            "%s trains too: it is the same tensor as a chosen parameter, so what the model reads changes with what it "
            "predicts, and the states of frozen layers are computed at every step. untie_embeddings=True gives the "
            "head weights of its own.",
            ", ".join(sorted(tied)),
        )
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in parameters)


class Trainable:
    """Which parameters train, in training; outside of it every parameter is as the model came.

    Args:
        model (`nn.Module`): the model before training.
        choose (`Callable[[], list[str] | None]`): patterns for [`select_trainable`], or `None` where it has chosen
            itself; the choice holds until training is over, so that what is planned before it sees it.
    """

    def __init__(self, model: nn.Module, choose: Callable[[], list[str] | None]):
        self.found = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        if patterns := choose():
            select_trainable(model, patterns)
        check_trainable(model)
        self.chosen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self.active = active_adapters(model)

    @contextmanager
    def during_training(self, model: nn.Module) -> Iterator[None]:
        """The chosen parameters train inside. By name, for engines put other tensors in a parameter's place.

        Raises:
            `ValueError`: if another adapter is active than when they were chosen.
        """
        if (active := active_adapters(model)) != self.active:
            raise ValueError(
                f"The active adapter is {' and '.join(active) or 'none'} now, and the trainer was built with "
                f"{' and '.join(self.active) or 'none'}. Call `set_adapter` before the trainer is built."
            )
        _set_requires_grad(model, self.chosen)
        try:
            yield
        finally:
            _set_requires_grad(model, self.found)


def _set_requires_grad(model: nn.Module, flags: dict[str, bool]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(name, parameter.requires_grad))


def check_trainable(model: nn.Module) -> None:
    """Refuses a model of which nothing would be trained, such as an adapter loaded for inference."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "No parameter of the model is trainable. Load an adapter with `PeftModel.from_pretrained(..., "
            "is_trainable=True)`; unfreeze other models with `model.requires_grad_(True)`."
        )
    check_trained(model)


def check_single_device_process(args) -> None:
    """Refuses `nn.DataParallel`, which splits a batch without regard to roles."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process. Start one process a GPU with `accelerate launch`, or set "
            f"CUDA_VISIBLE_DEVICES (now {os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')})."
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module is in the mode it was found in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient; afterwards each is as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def whole_weights() -> Iterator[None]:
    """Models loaded inside are not sharded by ZeRO-3."""
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None and config() is not None:
            deepspeed.set_hf_deepspeed_config(config())
