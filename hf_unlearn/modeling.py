# SPDX-License-Identifier: Apache-2.0
"""Models and tokenizers as the trainers need them: loaded, checked, and with the right parameters trainable."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from .adapter_files import adapter_folder, base_of, load_adapter
from .adapters import check_adapter_config, check_fits, check_trained, is_peft_model


logger = logging.getLogger(__name__)


def check_model_path(model: str) -> None:
    """Refuses a local path that holds no model, before anything is loaded. A Hub id (`owner/name`) passes.

    Raises:
        `ValueError`: if the path is missing, or holds an adapter where full weights are needed.
    """
    path = Path(model)
    looks_local = path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or model.endswith("/")
    if not path.is_dir():
        if looks_local:
            raise ValueError(
                f"No model folder at {model!r}. Give an existing folder or a Hub id such as 'owner/name'."
            )
        return
    if (path / "config.json").exists():
        return
    if adapter_folder(path) is not None:
        raise ValueError(
            f"{model!r} holds an adapter, not a full model. Merge it first (`PeftModel.merge_and_unload()`), or load "
            "it with `peft.AutoPeftModelForCausalLM` and pass the model itself."
        )
    raise ValueError(f"{model!r} holds no `config.json`. Give a folder written by `save_pretrained`.")


CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")


def is_classifier(name: str) -> bool:
    """Whether a class of models is a classifier, by its name."""
    return name == "ViltForQuestionAnswering" or name.endswith(CLASSIFIERS)


def class_of(config) -> type:
    """What loads a checkpoint: the classifier that its config names, or any causal language model."""
    import transformers

    name = (config.architectures or [""])[0]
    return getattr(transformers, name) if is_classifier(name) else transformers.AutoModelForCausalLM


def load_model(model: str, args, quantization_config=None) -> nn.Module:
    """Loads a model, in float32 unless `args.model_init_kwargs` names a `dtype`."""
    # Not every library's default is the same; a run must not depend on which one loads the model.
    kwargs = {"dtype": "float32", **(args.model_init_kwargs or {})}
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    config = load_config(model, args.trust_remote_code, kwargs.get("revision"))
    return _whole(class_of(config), model, trust_remote_code=args.trust_remote_code, **kwargs)


def load_config(model: str, trust_remote_code: bool = False, revision: str | None = None):
    """A checkpoint's config."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, revision=revision)


def check_adapter_fits(model: str, peft_config, trust_remote_code: bool = False, revision: str | None = None) -> None:
    """Refuses an adapter that cannot be trained, or whose modules the language model at a path does not have.

    Raises:
        `ValueError`: naming what does not fit; no weights are loaded.
    """
    if peft_config is None:
        return
    check_adapter_config(peft_config)
    config = load_config(model, trust_remote_code, revision)
    if not is_classifier((config.architectures or [""])[0]):
        with whole_weights():
            check_fits(config, peft_config, trust_remote_code)


def load_checkpoint(model: str, trust_remote_code: bool = False, **kwargs) -> nn.Module:
    """Loads any checkpoint to look at: full weights, or an adapter on top of the weights that it names."""
    if (adapter := adapter_folder(model)) is not None:
        below, revision = base_of(adapter)
        kwargs["revision"] = kwargs.get("revision") or revision
        model_class = class_of(load_config(below, trust_remote_code, kwargs["revision"]))
        return load_adapter(_whole(model_class, below, trust_remote_code=trust_remote_code, **kwargs), adapter)
    check_model_path(model)
    config = load_config(model, trust_remote_code, kwargs.get("revision"))
    return _whole(class_of(config), model, trust_remote_code=trust_remote_code, **kwargs).eval()


def _whole(model_class, model: str, **kwargs) -> nn.Module:
    """A model of which every weight was there: one drawn at random would look like a model that forgot everything.

    Raises:
        `ValueError`: naming what is missing.
    """
    loaded, found = model_class.from_pretrained(model, output_loading_info=True, **kwargs)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{model} has no weights of {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}, which a "
            f"{type(loaded).__name__} needs. Give a checkpoint of the whole model; one of an encoder, or of a model "
            "without its head, is none."
        )
    return loaded


def load_tokenizer(model: str | nn.Module, trust_remote_code: bool = False, revision: str | None = None):
    """Loads the tokenizer that belongs to a model."""
    from transformers import AutoTokenizer

    name = model if isinstance(model, str) else model.config._name_or_path
    if not name:
        raise ValueError("The model does not say where it came from. Pass its tokenizer as `processing_class`.")
    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)


def load_processor(model: str | nn.Module, trust_remote_code: bool = False, revision: str | None = None):
    """Loads what makes inputs for a model: a classifier's processor, or a language model's tokenizer."""
    from transformers import AutoProcessor

    config = config_of(model, trust_remote_code, revision)
    if config is None or not is_classifier((config.architectures or [""])[0]):
        return load_tokenizer(model, trust_remote_code, revision)
    if not (name := model if isinstance(model, str) else config._name_or_path):
        raise ValueError("The model does not say where it came from. Pass its processor as `processing_class`.")
    return AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)


def config_of(model: str | nn.Module, trust_remote_code: bool = False, revision: str | None = None):
    """The config of a model, or of the one below an adapter; `None` for a folder that holds a tokenizer alone."""
    if not isinstance(model, str):
        return model.config
    if (adapter := adapter_folder(model)) is not None:
        below, of_base = base_of(adapter)
        return load_config(below, trust_remote_code, revision or of_base)
    if not Path(model).is_dir() or (Path(model) / "config.json").is_file():
        return load_config(model, trust_remote_code, revision)
    return None


def ensure_pad_token(tokenizer) -> None:
    """Pads with EOS where the tokenizer has no pad token. Masks come from lengths, so a real EOS stays visible."""
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has neither a pad nor an EOS token. Set `tokenizer.pad_token`.")
    tokenizer.pad_token = tokenizer.eos_token
    logger.warning("The tokenizer has no pad token; batches are padded with EOS (%r).", tokenizer.eos_token)


def check_vocabulary(model: nn.Module, tokenizer, ref_model: nn.Module | None = None) -> None:
    """Refuses a tokenizer that the model has no embeddings for, and a reference of another vocabulary."""
    size = vocabulary_size(model)
    if len(tokenizer) > size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the model {size} embeddings. Use the model's own tokenizer, "
            "or call `model.resize_token_embeddings(len(tokenizer))` first."
        )
    if ref_model is not None and vocabulary_size(ref_model) != size:
        raise ValueError(
            f"The reference model predicts {vocabulary_size(ref_model)} tokens, the model {size}. Their vocabularies "
            "must be the same: leave `ref_model` out to use the model as it enters the trainer."
        )


def vocabulary_size(model: nn.Module) -> int:
    """Number of tokens a model predicts, read from its config (weights may be sharded)."""
    return model.config.get_text_config().vocab_size


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
            "predicts.",
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

    @contextmanager
    def during_training(self, model: nn.Module) -> Iterator[None]:
        """The chosen parameters train inside. By name, for engines put other tensors in a parameter's place."""
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
