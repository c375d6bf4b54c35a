# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: what shards their models, and what only the first of them does."""

import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist


def asks_fsdp(args) -> bool:
    """Whether FSDP is to shard the run's models: by its arguments, or by its launcher, of which they do not tell."""
    return bool(args.fsdp) or told("ACCELERATE_USE_FSDP")


def shards_weights(args) -> bool:
    """Whether DeepSpeed or FSDP is to run the model: an optimizer over weights, or copies of them, in parts."""
    # On processors the state tells of DeepSpeed only once the Accelerator is made.
    asks_deepspeed = bool(args.deepspeed) or told("ACCELERATE_USE_DEEPSPEED")
    return asks_deepspeed or args.distributed_state.distributed_type.value == "DEEPSPEED" or asks_fsdp(args)


def on_first_process(action: Callable[[], Any]) -> Any:
    """What `action` returns or raises on the first process, returned or raised on every one."""
    if not dist.is_initialized():
        return action()
    answer = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = action()
        except (OSError, ValueError, RuntimeError) as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def told(name: str) -> bool:
    """Whether a launcher set a switch in the environment."""
    return os.environ.get(name, "false").lower() in ("true", "1")
