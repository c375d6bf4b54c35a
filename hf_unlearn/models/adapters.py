# SPDX-License-Identifier: Apache-2.0
"""Adapters of PEFT on a model: which one trains, what adding one changed, and what cannot be trained or saved."""

import copy
import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adapter_trial import on_a_small_layer


logger = logging.getLogger(__name__)


def is_peft_model(model: nn.Module) -> bool:
    """Whether `model` is a [`~peft.PeftModel`]; `peft` is not imported for a model that cannot be one."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def active_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters that take part in the model's forward; empty for a model without any."""
    if is_peft_model(model):
        return list(model.active_adapters)
    # transformers has adapters of its own, a method tells which are active, and it raises where there is none.
    return model.active_adapters() if getattr(model, "_hf_peft_config_loaded", False) else []


# Of an adapter's config: where it came from and whether it trains, not what it does.
_ABOUT = {"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version", "task_type"}


def adapter_settings(model: nn.Module) -> dict:
    """What decides a model's predictions beside the weights and its config: which adapters are active, their settings,
    and how strongly each is added; empty for a model without any, JSON values otherwise."""
    found = {}
    for name in active_adapters(model):
        config = model.peft_config[name].to_dict()
        kept = {field: _plain(value) for field, value in config.items() if field not in _ABOUT}
        scaling = {
            where: module.scaling[name]
            for where, module in model.named_modules()
            if isinstance(getattr(module, "scaling", None), dict) and name in module.scaling
        }
        found[name] = {"config": kept, "scaling": scaling}
    off = any(getattr(module, "disable_adapters", None) is True for module in model.modules())
    return {"adapters": found, "off": off} if found else {}


def _plain(value):
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)


def trained_adapter(model: nn.Module) -> str:
    """Name of the one active adapter of a checked [`~peft.PeftModel`]; see [`check_adapter`]."""
    return active_adapters(model)[0]


@dataclass(frozen=True)
class AddedAdapter:
    """What adding a fresh adapter did to the model below it.

    Args:
        below (`frozenset[int]`): identities of the parameters that were there before.
        moved (`bool`): whether the adapter's initialisation changed any of their values, as PiSSA does: the model with
            the adapter off is then not the model as it came.
    """

    below: frozenset[int]
    moved: bool


def add_adapter(model: nn.Module, peft_config, revision: str | None = None) -> tuple[nn.Module, AddedAdapter]:
    """Wraps a model with a fresh adapter.

    Args:
        model (`PreTrainedModel`): without an adapter.
        peft_config (`PeftConfig`): of the adapter.
        revision (`str`, *optional*): of the model on the Hub; kept in the adapter's config.

    Raises:
        `ValueError`: if the model carries an adapter already, or the new one cannot be trained or saved here.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_peft_model(model) or active_adapters(model):
        raise ValueError(
            "The model carries an adapter already, and `peft_config` asks for another. Pass the model alone to train "
            "its adapter, or merge it first (`model.merge_and_unload()`)."
        )
    check_adapter_config(peft_config)
    quantized = getattr(model, "is_quantized", False)
    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    before = {id(parameter): _sum_of_bits(parameter) for parameter in model.parameters()}
    # Under ZeRO-3 a float32 adapter beside bf16 weights breaks the gather of a module's parameters.
    autocast = quantized or not is_deepspeed_zero3_enabled()
    with _explained(model, peft_config):
        model = get_peft_model(model, peft_config, autocast_adapter_dtype=autocast, revision=revision)
    after = {id(parameter): _sum_of_bits(parameter) for parameter in model.parameters() if id(parameter) in before}
    added = AddedAdapter(frozenset(before), moved=before != after)
    _check_start(peft_config, added.moved)
    return model, added


def check_fits(config, peft_config, trust_remote_code: bool = False) -> None:
    """Refuses an adapter whose modules a language model of this config does not have; no weights are loaded.

    Raises:
        `ValueError`: naming what matches nothing.
    """
    from peft import inject_adapter_in_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    with _explained(model, peft_config), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            inject_adapter_in_model(copy.deepcopy(peft_config), model, low_cpu_mem_usage=True)
        except (RuntimeError, NotImplementedError):
            # Some kinds start from the weights, which are not here.
            return


@contextmanager
def _explained(model: nn.Module, peft_config) -> Iterator[None]:
    """Says in one line what of an adapter's config matches no module of the model."""
    from peft import NoMatchingPeftModuleError

    names = [name for name, _ in model.named_modules()]
    last = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    linear = ", ".join(sorted(last))
    missing = {}
    for field in ("target_modules", "modules_to_save"):
        given = getattr(peft_config, field, None) or []
        # One word is a pattern, or stands for kinds of layers: PEFT says itself if that matches nothing.
        given = [] if isinstance(given, str) else given
        missing[field] = sorted(x for x in given if not any(f".{name}".endswith(f".{x}") for name in names))
    if lost := missing["modules_to_save"]:
        raise ValueError(
            f"modules_to_save: {', '.join(lost)} is no module of {type(model).__name__}, so it would not train. Its "
            f"linear layers are {linear}."
        )
    try:
        yield
    except NoMatchingPeftModuleError as error:
        raise ValueError(f"{error} The linear layers of {type(model).__name__} are {linear}.") from error
    if lost := missing["target_modules"]:
        logger.warning("target_modules: %s is no module of %s.", ", ".join(lost), type(model).__name__)


def _sum_of_bits(parameter: Tensor) -> tuple:
    """Type, shape and the sum of a tensor's bytes read as whole numbers, exact in any order; of the own shard under
    ZeRO-3."""
    values = getattr(parameter, "ds_tensor", parameter).detach()
    if values.is_meta or hasattr(values, "full_tensor") or values.numel() == 0:
        return (values.dtype, values.shape)
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return (values.dtype, values.shape, values.contiguous().view(width).sum(dtype=torch.int64).item())


def check_adapters(model, peft_config=None) -> None:
    """Refuses adapters that cannot be trained: those on a model, if it is one and no path, and one to be added."""
    if isinstance(model, nn.Module):
        check_adapter(model)
    if peft_config is not None:
        check_adapter_config(peft_config)


def check_adapter_config(peft_config) -> None:
    """Refuses kinds of adapters that cannot be trained here; needs no model.

    Raises:
        `ValueError`: with the kind and what to take instead.
    """
    if not hasattr(peft_config, "peft_type"):
        raise ValueError(
            f"`peft_config` is a {type(peft_config).__name__}. Pass one config of PEFT's, such as "
            "`LoraConfig(task_type='CAUSAL_LM')`."
        )
    if peft_config.is_prompt_learning:
        kind = getattr(peft_config.peft_type, "value", peft_config.peft_type)
        raise ValueError(
            f"A {kind} adapter trains virtual tokens before the rows and leaves the weights, which is what is "
            "unlearned and audited here. Take an adapter of the weights, such as LoRA."
        )
    _check_start(peft_config)


def _check_start(peft_config, moved: bool = False) -> None:
    """Refuses an adapter that starts by changing the weights below it in a way that loading it does not repeat."""
    init = getattr(peft_config, "init_lora_weights", None)
    if isinstance(init, str) and not _start_is_repeated(peft_config, moved):
        raise ValueError(
            f"init_lora_weights={init!r} takes a part of the model's weights into the adapter that is drawn, or read "
            "off data: loading what is saved would not find it again, and give another model than was trained. Take "
            "'pissa' or 'olora', or convert the adapter (`path_initial_model_for_weight_conversion` of PEFT's "
            "`save_pretrained`), load that and train it."
        )


def _start_is_repeated(peft_config, moved: bool) -> bool:
    """Tries an initialisation twice on a small layer: whether it does to the layer's own weights what it did to the
    model's (`moved`), and each time the same."""
    left = []
    for seed in (1, 2):
        try:
            layer, before = on_a_small_layer(peft_config, seed)
        except Exception:  # noqa: BLE001
            # It needs more than weights, and would need it again to be loaded.
            return False
        left.append(layer.get_base_layer().weight.detach())
    return torch.equal(*left) and (not moved or not torch.equal(left[0], before))


def check_adapter(model: nn.Module) -> None:
    """Refuses a model whose adapters cannot be trained, or not be saved so that what is loaded is what was trained.

    Raises:
        `ValueError`: with the reason and what to do.
    """
    active = active_adapters(model)
    if len(active) > 1:
        raise ValueError(
            f"{len(active)} adapters are active at once ({', '.join(map(repr, active))}), and a saved adapter is "
            "loaded without the others. Merge those that are not to train (`merge_and_unload`), or combine all into "
            "one (`add_weighted_adapter` with combination_type='cat')."
        )
    if not is_peft_model(model):
        return
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise ValueError(f"A {type(model).__name__} cannot be saved as one adapter. Pass a PeftModel.")
    if not active:
        names = ", ".join(map(repr, model.peft_config))
        raise ValueError(f"No adapter of the model is active. Call `set_adapter` with one of {names} first.")
    (name,) = active
    config = model.peft_config[name]
    check_adapter_config(config)
    if any(is_peft_model(module) for module in model.get_base_model().modules()):
        raise ValueError(
            "The model is a PeftModel around another PeftModel, and only the outer one's adapter would be saved. "
            "Merge the inner one first (`merge_and_unload`)."
        )
    if not config.is_adaption_prompt:
        status = model.get_model_status()
        if status.merged_adapters:
            raise ValueError(
                f"The adapter {name!r} is merged into the weights, where it does not train. Call "
                "`model.unmerge_adapter()` first."
            )
        if status.enabled is not True:
            raise ValueError(
                f"The adapter {name!r} is switched off, so it would not train. Call "
                "`model.base_model.enable_adapter_layers()` first."
            )


def check_loads(model: nn.Module) -> None:
    """Refuses a model whose checkpoints Trainer writes and cannot load.

    Raises:
        `ValueError`: for an adapter that is transformers' own.
    """
    if active_adapters(model) and not is_peft_model(model):
        raise ValueError(
            "The model's adapter is transformers' own (`model.add_adapter`), of which Trainer loads no checkpoint: it "
            "can neither be resumed, nor its best one be loaded at the end. Make it a PeftModel "
            "(`peft.get_peft_model`, or `PeftModel.from_pretrained(..., is_trainable=True)`)."
        )


def check_trained(model: nn.Module) -> None:
    """Refuses trainable parameters that are not the active adapter's: of another one, or lost when it is saved.

    Raises:
        `ValueError`: with their names and what to do.
    """
    if not is_peft_model(model):
        return
    name = trained_adapter(model)
    trained = [n for n, parameter in model.named_parameters() if parameter.requires_grad]
    others = [other for other in model.peft_config if other != name]
    own = [parameter for parameter in trained if not _is_of(parameter, others)]
    if trained and not own:
        raise ValueError(
            f"The active adapter {name!r} is frozen, and what is trainable belongs to {', '.join(map(repr, others))}. "
            f"Call `model.set_adapter({name!r})`, which makes it trainable, or activate the one that is to train."
        )
    _check_saved(model, name, own)


def weights_as_entered(model: nn.Module, with_adapter: bool) -> str:
    """Names the weights of a model, or of the own shards under ZeRO-3; another value of any gives another name.

    Args:
        model (`nn.Module`): before anything of it trains.
        with_adapter (`bool`): whether the active adapter counts. One that holds zeros is fresh: what was drawn beside
            them is another draw in the next process, and says nothing yet. Other adapters never count.
    """
    known = getattr(model, "peft_config", {})
    active = active_adapters(model) if known else []
    others = [name for name in known if name not in active]
    sums: dict[bool, list] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if not _is_of(name, others):
            sums[_is_of(name, active)].append(_sum_of_bits(parameter))
    drawn = any(found[-1] == 0 for found in sums[True])
    # Names differ with what is wrapped around a model.
    counted = sums[False] + (sums[True] if with_adapter and not drawn else [])
    return hashlib.sha256(repr(sorted(map(repr, counted))).encode()).hexdigest()


def _is_of(parameter: str, adapters: list[str]) -> bool:
    """Whether a parameter belongs to one of the adapters, by PEFT's rule: a part of its name is the adapter's."""
    return any(f".{adapter}." in f"{parameter}." for adapter in adapters)


def _check_saved(model: nn.Module, name: str, trained: list[str]) -> None:
    """Refuses trained weights that are no part of the saved adapter: they would be lost, and the file look whole."""
    from peft import get_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(model.peft_config[name].peft_type)
    below = [n for n in trained if not _is_of(n, [name]) and not (prefix and prefix in n)]
    if not below:
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = get_peft_model_state_dict(model, state_dict=parameters, adapter_name=name)
    kept = {id(value) for value in saved.values()}
    if lost := [n for n in below if id(parameters[n]) not in kept]:
        raise ValueError(
            f"{len(lost)} trainable parameters are no part of the adapter {name!r} and would not be saved with it: "
            f"{', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}. Name their modules in `modules_to_save` of its "
            "config, or freeze them."
        )


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The model without its adapter; afterwards all is as it was found, also what PEFT toggles: which parameters
    require a gradient."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
