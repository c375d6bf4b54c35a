# SPDX-License-Identifier: Apache-2.0
"""Settings of `TrainingArguments` that would fail, or do nothing, long after a model was loaded."""

import logging

from ..checks import check_number, check_whole


logger = logging.getLogger(__name__)

MOST_SEEDS = 2**32


def check_given(args) -> None:
    """Raises `ValueError` for numbers that no run can have; called before `TrainingArguments` reads them."""
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        _check_count(name, getattr(args, name))
    for name in ("seed", "data_seed"):
        value = getattr(args, name)
        check_whole(name, value, at_least=0)
        if value is not None and value >= MOST_SEEDS:
            raise ValueError(f"{name}={value!r}; give a whole number from 0 to {MOST_SEEDS - 1}.")
    if args.max_steps == 0:
        raise ValueError("max_steps=0 trains nothing. Give at least 1, or leave it out and give num_train_epochs.")
    if args.max_steps < 0:
        check_number("num_train_epochs", args.num_train_epochs, at_least=0)
        if args.num_train_epochs == 0 and not args.TAKES_NO_EPOCHS:
            raise ValueError("num_train_epochs=0 trains nothing. Give more than 0, or max_steps.")
    _check_trackers(args.report_to)


def check_read(args) -> None:
    """Raises `ValueError` for settings that contradict each other; called when `TrainingArguments` has read them."""
    if args.load_best_model_at_end:
        for name in ("save_strategy", "eval_strategy"):
            if getattr(args, name) == "no":
                raise ValueError(
                    f"load_best_model_at_end=True and {name}='no': there would be no best checkpoint to load. Give "
                    f"save_strategy and eval_strategy 'steps' or 'epoch', or leave load_best_model_at_end out."
                )
    if args.fp16 and args.use_cpu:
        raise ValueError("fp16=True requires an accelerator, and this run is on the CPU. Take bf16=True, or neither.")


def check_steps(args, pairs, own_optimizer: bool) -> None:
    """Tells of steps that would change nothing.

    Args:
        args ([`UnlearnConfig`]): of the run.
        pairs ([`RolePairs`]): what it trains on.
        own_optimizer (`bool`): the user passed an optimizer, which has a learning rate of its own.

    Raises:
        `ValueError`: where `dataloader_drop_last` would drop all there is.
    """
    if args.learning_rate == 0 and not own_optimizer:
        logger.warning("learning_rate=0: no weight moves. Give a learning_rate above 0 to train.")
    batch = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and len(pairs) < batch:
        raise ValueError(
            f"dataloader_drop_last=True: an epoch has {len(pairs)} pairs, fewer than the {batch} of one batch "
            f"(per_device_train_batch_size={args.per_device_train_batch_size}, {args.world_size} processes), so no "
            "step would be made. Leave dataloader_drop_last out, or give smaller batches."
        )


def _check_count(name: str, value) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}; give a whole number of at least 1.")


def _check_trackers(report_to) -> None:
    named = [report_to] if isinstance(report_to, str) else list(report_to or [])
    if not set(named) - {"all", "none"}:
        return
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    # transformers does not look for every one of them.
    looked_for = set(INTEGRATION_TO_CALLBACK) - {"flyte"}
    for name in set(named) - {"all", "none"}:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"report_to={name!r}; allowed: none, all, {', '.join(sorted(INTEGRATION_TO_CALLBACK))}.")
        if name in looked_for and name not in get_available_reporting_integrations():
            raise ValueError(
                f"report_to={name!r}: its package is not installed. Install it (`pip install {name.replace('_', '-')}`"
                "), or give another."
            )
