# SPDX-License-Identifier: Apache-2.0
"""Counts of a model's parameters, from its config alone: the model is made without memory (PyTorch's meta device)."""

import re
from dataclasses import dataclass

import torch
from torch import nn

from ..data.benchmarks import resolve_model
from ..data.prepared import NotPreparedError
from ..fused import head_of
from ..modeling import is_classifier, is_peft_model, select_trainable
from ..models.tied import untie_embeddings


# Part of a model's name -> its config, for a machine that cannot ask the Hub.
BUILT_IN = {
    "llama-2-7b": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "llama-3.1-8b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "phi-3-mini": {
        "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "llama-3.2-1b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "zephyr-7b": {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None,
    },
    "tinyllama-1.1b": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
}  # fmt: skip
BUILT_IN["llama-3-8b"] = BUILT_IN["llama-3.1-8b"]
# MUSE's target and retrained models.
BUILT_IN |= dict.fromkeys(("muse-news", "muse-books"), BUILT_IN["llama-2-7b"])


@dataclass(frozen=True)
class Shape:
    """Sizes that decide memory. Parameters are counted once where they are tied.

    Args:
        parameters, trainable (`int`): all, and those that train.
        matrices (`int`): in weights of two dimensions, which autocast copies to bfloat16.
        quantizable (`int`): in linear layers other than the head.
        embedding (`int`): in the input embeddings.
        layer (`int`): in one decoder layer, the largest.
        layers, trained_layers (`int`): all, and those whose activations the backward needs.
        hidden, intermediate, query, key_value (`int`): widths; the last two over all heads.
        heads, vocab (`int`): how many.
        head_trains (`bool`): whether the LM head does.
        fusible (`bool`): whether the LM head can be taken apart, see [`~hf_unlearn.fused.head_of`].
        trains_tied (`bool`): whether chosen parameters are the head and the embedding at once, so that both train.
        below (`int`): in the weights that an adapter is on.
    """

    parameters: int
    trainable: int
    matrices: int
    quantizable: int
    embedding: int
    layer: int
    layers: int
    trained_layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    heads: int
    vocab: int
    head_trains: bool
    fusible: bool
    trains_tied: bool = False
    below: int = 0


def find_config(name: str, trust_remote_code: bool = False, revision: str | None = None):
    """The config of a model and where it was found: a folder, a model of the library's own, the Hub's local cache, the
    table above, the Hub.

    Raises:
        `ValueError`: if it is nowhere.
    """
    from transformers import AutoConfig

    kwargs = {"trust_remote_code": trust_remote_code, "revision": revision}
    try:
        return AutoConfig.from_pretrained(resolve_model(name), local_files_only=True, **kwargs), "its config.json"
    except (OSError, NotPreparedError):
        # A model that is not made yet may have a name that tells its shape.
        pass
    for part, fields in BUILT_IN.items():
        if part in name.lower():
            fields = dict(fields)
            return AutoConfig.for_model(fields.pop("model_type"), **fields), f"the built-in shape of {part}"
    try:
        return AutoConfig.from_pretrained(name, **kwargs), "its config.json on the Hub"
    except OSError as error:
        raise ValueError(
            f"No config of {name!r}: {str(error).splitlines()[0]} Give a folder that holds a config.json, or a name "
            f"that contains one of {', '.join(BUILT_IN)}."
        ) from error


def shape_of(
    config, trainable_modules: list[str] | None = None, peft_config=None, trust_remote_code=False, untie: bool = False
) -> Shape:
    """Counts the parameters of a model of this config.

    Args:
        config (`PretrainedConfig`): the model's.
        trainable_modules (`list[str]`, *optional*): see [`~hf_unlearn.UnlearnConfig`].
        peft_config (`PeftConfig`, *optional*): adapter to train instead.
        untie (`bool`): the head gets weights of its own.

    Raises:
        `ValueError`: for a classifier, whose memory is not planned.
    """
    from transformers import AutoModelForCausalLM

    if is_classifier(name := (config.architectures or [""])[0]):
        raise ValueError(f"The model is a {name}, and memory is planned for causal language models only.")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    if untie:
        untie_embeddings(model)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    linear = {m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not head}
    layers = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
    layer = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    if trainable_modules:
        select_trainable(model, trainable_modules)
    if peft_config is not None:
        from peft import get_peft_model

        model = get_peft_model(model, peft_config, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(trainable.values()),
        matrices=matrices,
        quantizable=sum(p.numel() for p in linear),
        embedding=embedding.numel(),
        layer=layer,
        layers=len(layers),
        trained_layers=len(layers) - _first_trained(trainable, len(layers), is_peft_model(model)),
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        query=head_dim * text.num_attention_heads,
        key_value=head_dim * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
        heads=text.num_attention_heads,
        vocab=text.vocab_size,
        head_trains=head.weight.requires_grad,
        fusible=_fusible(model),
        below=0 if peft_config is None else _below(model),
        trains_tied=bool(trainable_modules) and head.weight is embedding and embedding.requires_grad,
    )


def _below(model: nn.Module) -> int:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return sum(getattr(layer.get_base_layer(), "weight", torch.empty(0)).numel() for layer in layers)


def _first_trained(trainable: dict[str, int], count: int, adapter: bool) -> int:
    """Index of the first layer whose activations are kept; `count` where only what follows the layers trains."""
    first = count
    for name in trainable:
        number = re.search(r"\.(\d+)\.", name)
        if number is not None:
            first = min(first, int(number.group(1)))
        elif not adapter and re.search(r"embed|wte|wpe", name):
            first = 0
    return first


def _fusible(model: nn.Module) -> bool:
    try:
        head_of(model)
    except ValueError:
        return False
    return True
