# SPDX-License-Identifier: Apache-2.0
"""Whether processes were started as their launcher was told: several fall back silently, with exit status 0."""

import logging

import torch

from ..processes import asks_fsdp, told


logger = logging.getLogger(__name__)


def check_launch(args) -> None:
    """Refuses a run that accelerate would quietly start as something else than what was asked for.

    Args:
        args (`TrainingArguments`):
            The run's; its processes are known to each other by now.

    Raises:
        `ValueError`: with the reason and what to do instead.
    """
    if asks_fsdp(args) and args.distributed_state.distributed_type == "MULTI_CPU":
        raise ValueError(FSDP_NEEDS_ACCELERATORS)


def tell_launch(trainer) -> None:
    """Logs what came of a launch on several processes, once the model is wrapped.

    Raises:
        `ValueError`: if DeepSpeed was asked for and is not there.
    """
    kind, wrapper = trainer.accelerator.distributed_type.value, type(trainer.model_wrapped).__name__
    if told("ACCELERATE_USE_DEEPSPEED") and kind != "DEEPSPEED":
        raise ValueError(
            f"DeepSpeed is asked for, and accelerate took {kind} instead, as it does where ACCELERATE_USE_CPU is set. "
            "Unset it: on a machine without accelerators processors are taken anyway."
        )
    if trainer.args.world_size > 1:
        logger.info("Training on %d processes: %s, %s.", trainer.args.world_size, kind, wrapper)


def check_accelerate_config(config: dict) -> None:
    """Refuses an accelerate config that would quietly start something else, before any process starts.

    Args:
        config (`dict`):
            The file's content, `num_processes` as it will be.
    """
    from accelerate.utils import DistributedType

    kind, processes = config.get("distributed_type"), config.get("num_processes")
    allowed = [str(one.value) for one in DistributedType]
    if kind is not None and str(kind) not in allowed:
        raise ValueError(f"distributed_type={kind!r} in the accelerate config; allowed: {', '.join(allowed)}.")
    if processes is not None and not (str(processes).isdecimal() and int(processes) > 0):
        raise ValueError(f"num_processes={processes!r} in the accelerate config; give a whole number of at least 1.")
    if kind == "FSDP" and not torch.accelerator.is_available():
        raise ValueError(FSDP_NEEDS_ACCELERATORS)
    if kind in ("MULTI_CPU", "NO") and int(config.get("num_processes") or 1) > 1:
        raise ValueError(
            f"distributed_type {kind} with {config['num_processes']} processes starts one process. Take "
            "`--accelerate_config cpu` (MULTI_GPU with `use_cpu: true`), `multi_gpu`, or `--num_processes 1`."
        )


FSDP_NEEDS_ACCELERATORS = (
    "FSDP is asked for, and there is no accelerator: accelerate would train with DDP, whole models on every process, "
    "without a word. Take `--accelerate_config cpu`, or zero3, which shards on processors too."
)
