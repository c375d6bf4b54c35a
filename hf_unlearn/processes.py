# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: what shards their models, and what only the first of them does."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def asks_fsdp(args) -> bool:
    """Whether FSDP is to shard the run's models: by its arguments, or by its launcher, of which they do not tell."""
    return bool(args.fsdp) or told("ACCELERATE_USE_FSDP")


def shards_weights(args) -> bool:
    """Whether DeepSpeed or FSDP is to run the model: an optimizer over weights, or copies of them, in parts."""
    # On processors the state tells of DeepSpeed only once the Accelerator is made.
    asks_deepspeed = bool(args.deepspeed) or told("ACCELERATE_USE_DEEPSPEED")
    return asks_deepspeed or args.distributed_state.distributed_type.value == "DEEPSPEED" or asks_fsdp(args)


def audited_in(args: Any) -> str | None:
    """The narrow type, `bf16` or `fp16`, in which DeepSpeed or FSDP computes, audits too; `None` where these compute
    as weights are."""
    half = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    return half if half is not None and shards_weights(args) else None


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


def of_all_processes(rows: Tensor, accelerator) -> Tensor:
    """The rows of all processes, those of the first one first; for terms that are no means over rows.

    Gradients go to this process's own rows, times the number of processes. Where every process computes one and the
    same loss from these rows, and gradients are averaged over processes, as DDP, DeepSpeed and FSDP average them, the
    gradient is then the one of that loss on one process. The backward pass has no communication.

    Args:
        rows (`Tensor`): `[N, ...]`, of which `N` may differ between processes.
        accelerator ([`~accelerate.Accelerator`]): the run's; every process must call this.

    Returns:
        `Tensor`: `[sum of N, ...]`.
    """
    if accelerator.num_processes == 1:
        return rows
    counts = accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    own = rows.detach()
    padded = F.pad(own, (0, 0) * (own.ndim - 1) + (0, max(counts) - len(own)))
    parts = accelerator.gather(padded).split(max(counts)) if max(counts) else [own] * len(counts)
    found = [part[:count] for part, count in zip(parts, counts, strict=True)]
    found[accelerator.process_index] = own + accelerator.num_processes * (rows - own)
    return torch.cat(found)


def told(name: str) -> bool:
    """Whether a launcher set a switch in the environment."""
    return os.environ.get(name, "false").lower() in ("true", "1")
