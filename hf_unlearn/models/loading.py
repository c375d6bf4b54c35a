# SPDX-License-Identifier: Apache-2.0
"""Models, tokenizers and configs from files: all of what the files hold and nothing else, or one clear line."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from .adapter_files import load_adapter
from .checkpoint_files import CheckpointError, readable
from .checkpoint_paths import base_of, check_model_path, upper_folder
from .decoders import check_decoder_only
from .weight_checks import check_dtype, check_finite, some_of
from .wrapper_files import is_wrapper_folder
from .wrappers import load_wrapper, merged


CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")


def is_classifier(name: str) -> bool:
    """Whether a class of models is a classifier, by its name."""
    return name == "ViltForQuestionAnswering" or name.endswith(CLASSIFIERS)


def architecture_of(config) -> str:
    """The class of models that a config names, or nothing."""
    named = getattr(config, "architectures", None)
    return named[0] if isinstance(named, (list, tuple)) and named else ""


def class_of(config) -> type:
    """What loads a checkpoint: the classifier that its config names, or any causal language model.

    Raises:
        `ValueError`: for a classifier that transformers does not know, or a model that is no causal language model.
    """
    import transformers

    name = architecture_of(config)
    if not is_classifier(name):
        check_decoder_only(config, name or config.model_type)
        auto = transformers.AutoModelForCausalLM
        theirs = (getattr(config, "auto_map", None) or {}).get(auto.__name__)
        if theirs is None and type(config) not in auto._model_mapping:
            raise CheckpointError(
                f"{config._name_or_path!r} is a {name or config.model_type}, of which transformers has no causal "
                "language model. Give a decoder such as Llama, or a classifier."
            )
        return auto
    if not hasattr(transformers, name):
        raise CheckpointError(f"transformers has no class {name}, which the config of {config._name_or_path!r} names.")
    return getattr(transformers, name)


def load_model(model: str, args, quantization_config=None) -> nn.Module:
    """Loads a model, in float32 unless `args.model_init_kwargs` names a `dtype`."""
    # Not every library's default is the same; a run must not depend on which one loads the model.
    kwargs = {"dtype": "float32", **(args.model_init_kwargs or {})}
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    return _load(model, args.trust_remote_code, kwargs)


def load_config(model: str, trust_remote_code: bool = False, revision: str | None = None):
    """A checkpoint's config.

    Raises:
        `ValueError`: if there is none, or none that transformers understands.
    """
    with readable(f"No config can be read from {model!r}"):
        return _read_config(model, trust_remote_code, revision)


def _read_config(model: str, trust_remote_code: bool = False, revision: str | None = None):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, revision=revision)


def load_checkpoint(model: str, trust_remote_code: bool = False, **kwargs) -> nn.Module:
    """Loads any checkpoint to look at: full weights, or an adapter or a wrapper on the checkpoint that it names.

    Raises:
        `ValueError`: if a file is missing or damaged, or if weights are missing, left over, of another size or not
            finite.
    """
    if (upper := upper_folder(model)) is None:
        check_model_path(model, kwargs)
        return _load(model, trust_remote_code, kwargs).eval()
    base, revision = base_of(upper)
    below = load_checkpoint(base, trust_remote_code, **{**kwargs, "revision": kwargs.get("revision") or revision})
    if is_wrapper_folder(upper):
        return load_wrapper(upper, below)
    if hasattr(below, "merge_and_unload"):
        # An adapter that was trained on top of another.
        below = merged(below)
    return load_adapter(below, upper)


def load_unlearned(model: str | Path, trust_remote_code: bool = False, **kwargs) -> nn.Module:
    """Loads what unlearning made, whatever it is: full weights, an adapter on its base, a wrapper around its base.

    Args:
        model (`str` or `Path`): a folder, or the Hub id of full weights.
        trust_remote_code (`bool`): run code that comes with the model, or with the one below.
        kwargs: arguments of `from_pretrained`, such as `dtype`; `float32` by default.

    Returns:
        `PreTrainedModel` or `PeftModel`: in evaluation mode. `generate` works; of a wrapper, `model.unlearned_by` is
        the wrapper, and `save_pretrained` writes its folder.

    Raises:
        `ValueError`: if a file is missing or damaged, or does not fit the others.
    """
    return load_checkpoint(str(model), trust_remote_code, **{"dtype": "float32", **kwargs})


def _load(model: str, trust_remote_code: bool, kwargs: dict) -> nn.Module:
    check_dtype(kwargs.get("dtype"))
    config = load_config(model, trust_remote_code, kwargs.get("revision"))
    return _whole(class_of(config), model, trust_remote_code=trust_remote_code, **kwargs)


def _whole(model_class, model: str, **kwargs) -> nn.Module:
    """A model of which every weight was there, fitted and was used: one drawn at random would look like a model that
    forgot everything, one of fewer layers is another model.

    Raises:
        `ValueError`: naming what is missing, left over, of another size or not finite.
    """
    # What is wrong with files was found above, or is below; a RuntimeError is of memory or of the device.
    with readable(f"No model can be loaded from {model!r}", RuntimeError), _no_load_report():
        try:
            loaded, found = model_class.from_pretrained(model, output_loading_info=True, **kwargs)
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            # Once more, for what differs in size.
            kwargs["ignore_mismatched_sizes"] = True
            loaded, found = model_class.from_pretrained(model, output_loading_info=True, **kwargs)
    kind = type(loaded).__name__
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"{model} has no weights of {some_of(missing)}, which a {kind} needs. Give a checkpoint of the whole "
            "model; one of an encoder, or of a model without its head, is none."
        )
    if mismatched := sorted(found["mismatched_keys"]):
        name, there, needed = mismatched[0]
        more = f"; {len(mismatched) - 1} others differ too" if len(mismatched) > 1 else ""
        raise CheckpointError(
            f"{model}: the weights and the config are of two models. {name} has the shape {list(there)}, and a {kind} "
            f"of this config needs {list(needed)}{more}. Give the config.json that was saved with the weights."
        )
    if left := sorted(key for key in found["unexpected_keys"] if not _is_leftover_buffer(loaded, key)):
        raise CheckpointError(
            f"{model} holds weights that a {kind} of its config has no place for: {some_of(left)}. It would be "
            "another model without them. Give the config.json that was saved with the weights."
        )
    check_finite(loaded.named_parameters(), model)
    return loaded


@contextmanager
def _no_load_report() -> Iterator[None]:
    """Inside, transformers logs no table of the weights that do not fit: they are told in one line."""

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    speaker = logging.getLogger("transformers.modeling_utils")
    speaker.addFilter(keep)
    try:
        yield
    finally:
        speaker.removeFilter(keep)


def _is_leftover_buffer(model: nn.Module, key: str) -> bool:
    """Whether an unexpected weight is a constant that older versions saved, such as a causal mask.

    It is one where the model has a buffer of that name, or where it is called a bias or a mask of a module that has
    no weights of its own (attention as a whole), of which a bias cannot be learnt.
    """
    parent, _, name = key.rpartition(".")
    if any(buffer.rpartition(".")[2] == name for buffer, _ in model.named_buffers()):
        return True
    try:
        module = model.get_submodule(parent)
    except AttributeError:
        return False
    return bool(re.search("bias|mask", name)) and not list(module.parameters(recurse=False))


def load_tokenizer(model: str | nn.Module, trust_remote_code: bool = False, revision: str | None = None):
    """Loads the tokenizer that belongs to a model; an adapter or wrapper without one has its base's.

    Raises:
        `ValueError`: if it cannot be had.
    """
    from transformers import AutoTokenizer

    name = model if isinstance(model, str) else model.config._name_or_path
    if not name:
        raise ValueError("The model does not say where it came from. Pass its tokenizer as `processing_class`.")
    while (upper := upper_folder(name)) is not None and not any(Path(name).glob("tokenizer*")):
        name, revision = base_of(upper)
    with readable(f"No tokenizer can be loaded from {name!r}"):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)


def load_processor(model: str | nn.Module, trust_remote_code: bool = False, revision: str | None = None):
    """Loads what makes inputs for a model: a classifier's processor, or a language model's tokenizer.

    Raises:
        `ValueError`: if it cannot be had.
    """
    from transformers import AutoProcessor

    name = model if isinstance(model, str) else model.config._name_or_path
    with readable(f"No tokenizer can be loaded from {name!r}"):
        config = _config_of(model, trust_remote_code, revision)
    if config is None or not is_classifier(architecture_of(config)):
        return load_tokenizer(model, trust_remote_code, revision)
    if not name:
        raise ValueError("The model does not say where it came from. Pass its processor as `processing_class`.")
    with readable(f"No processor can be loaded from {name!r}"):
        return AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)


def config_of(model: str | nn.Module, trust_remote_code: bool = False, revision: str | None = None):
    """The config of a model, or of what an adapter or wrapper stands on; `None` for a folder of a tokenizer alone.

    Raises:
        `ValueError`: if there is one that cannot be read.
    """
    with readable(f"No config can be read from {model!r}"):
        return _config_of(model, trust_remote_code, revision)


def _config_of(model: str | nn.Module, trust_remote_code: bool, revision: str | None):
    if not isinstance(model, str):
        return model.config
    while (upper := upper_folder(model)) is not None:
        model, revision = base_of(upper)
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        return None
    return _read_config(model, trust_remote_code, revision)
