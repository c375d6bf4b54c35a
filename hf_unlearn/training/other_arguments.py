# SPDX-License-Identifier: Apache-2.0
"""What users of TRL and transformers pass to their trainers and not to ours, and what takes its place."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any


_LENGTH = "Set `max_length` of the config."
_ROWS = "Rows of any TRL type are read as they are; bring yours into `text`, `prompt` and `completion` or `messages`."
# Argument -> what to do.
INSTEAD = {
    "train_dataset": "Pass the rows to forget as `forget_dataset` and those to keep as `retain_dataset`; "
    "`split_forget_retain` splits a preference or KTO set.",
    "tokenizer": "Pass it as `processing_class`.",
    "model_init": "Pass the model, or its path or Hub id, as `model`; `model_init_kwargs` of the config load it.",
    "compute_loss_func": "The loss is the method's; subclass its trainer and override `forget_loss` or `retain_loss`.",
    "reward_funcs": "The loss is the method's; subclass its trainer and override `forget_loss` or `retain_loss`.",
    "formatting_func": _ROWS,
    "dataset_text_field": _ROWS,
    "max_seq_length": _LENGTH,
    "max_prompt_length": _LENGTH,
    "max_length": _LENGTH,
    "packing": "Set `forward_passes='packed'` of the config.",
    "beta": "Set it in the config: `args=NPOConfig(beta=...)`.",
    "reference_model": "Pass it as `ref_model`.",
    "config": "Pass it as `args`.",
}


def refuse_others(trainer_class: type, others: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises `ValueError` for arguments that a trainer does not take.

    Args:
        trainer_class (`type`): of the trainer.
        others (`Mapping[str, Any]`): what it was given beside what it takes.
        known (`Sequence[str]`): names of what it takes.
    """
    for name in others:
        near = get_close_matches(name, known, n=1)
        way_out = INSTEAD.get(name) or (
            f"Did you mean {near[0]!r}?" if near else f"It takes {', '.join(known)}; settings are the config's."
        )
        raise ValueError(f"{trainer_class.__name__} takes no `{name}`. {way_out}")


def check_collator(collator: Callable | None, own: Callable, pairs) -> None:
    """Tries a collator that the user passed on a batch of pairs.

    Args:
        collator (`Callable`, *optional*): the user's.
        own (`Callable`): the family's, whose batches say what is needed.
        pairs (`RolePairs`): of the run.

    Raises:
        `ValueError`: unless it gives what the trainer's own gives, roles and rows in the same places.
    """
    if collator is None:
        return
    rows = [pairs[position] for position in range(min(2, len(pairs)))]
    needed, name = own(rows), getattr(collator, "__name__", type(collator).__name__)
    way_out = (
        "Leave `data_collator` out, or call the trainer's own one in yours (`hf_unlearn.data.collator.RoleCollator`) "
        "and add to what it returns."
    )
    try:
        batch = collator([pairs[position] for position in range(len(rows))])
    # A collator raises what its code raises.
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        raise ValueError(
            f"data_collator={name} cannot batch pairs of rows ({{role: row}}; it raises {told}). {way_out}"
        ) from error
    missing = [key for key in needed if not isinstance(batch, Mapping) or key not in batch]
    if missing:
        raise ValueError(f"data_collator={name} gives no {', '.join(missing)} for a batch of pairs. {way_out}")
    moved = [key for key in ("role", "index") if batch[key].tolist() != needed[key].tolist()]
    if moved:
        raise ValueError(f"data_collator={name} gives other {' and '.join(moved)} than the rows' order. {way_out}")
