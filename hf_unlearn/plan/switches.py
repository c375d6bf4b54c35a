# SPDX-License-Identifier: Apache-2.0
"""What would make a workload fit: single settings first, then pairs, then three together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from .engines import Engine
from .memory import estimate
from .optimizers import KEEPS_SMALL_UPDATES
from .workload import Planned, Workload


MOST_GPUS = 64


@dataclass(frozen=True)
class Switch:
    """A setting to change.

    Args:
        says (`str`): the fields to give, as on the command line.
        cost (`str`): what it costs.
        apply (`Callable[[Workload], Workload | None]`): the workload with it, `None` where it does not apply.
        kind (`str`, *optional*): the same for switches that differ in degree, of which the mildest is enough.
    """

    says: str
    cost: str
    apply: Callable[[Workload], Workload | None]
    kind: str | None = None


@dataclass(frozen=True)
class Remedy:
    """Switches that together make it fit, and the peak then, in bytes."""

    switches: tuple[Switch, ...]
    peak: float


def remedies(planned: Planned, gpu_memory: float, limit: int = 5) -> list[Remedy]:
    """The smallest sets of switches that bring the peak under `gpu_memory` bytes, mildest first.

    Args:
        planned ([`Planned`]): what does not fit.
        gpu_memory (`float`): bytes of a GPU.
        limit (`int`): sets at most.
    """
    switches = list(_switches(planned))
    for count in (1, 2, 3):
        found = list(_fitting(planned.workload, switches, count, gpu_memory))
        if found:
            return found[:limit]
    return []


def _fitting(work: Workload, switches: list[Switch], count: int, gpu_memory: float) -> Iterator[Remedy]:
    seen = set()
    for chosen in combinations(switches, count):
        kinds = tuple(switch.kind or switch.says for switch in chosen)
        changed: Workload | None = None if kinds in seen else work
        for switch in chosen:
            changed = changed and switch.apply(changed)
        if changed is not None and (peak := estimate(changed).peak) <= gpu_memory:
            seen.add(kinds)
            yield Remedy(chosen, peak)


def _switches(planned: Planned) -> Iterator[Switch]:
    """All there are, mildest first: what gives the same result, then what rounds otherwise, then what trains less."""
    work = planned.workload
    yield Switch("--reference cache", "a pass over the rows before training, disk", _cached)
    yield Switch("--fused_losses true --reference auto", "nothing", _fused)
    yield Switch("--activation_checkpointing true", "about a third more time", _checkpointed)
    # The largest batch that fits is wanted, so larger ones come first.
    rows = work.rows // 2
    while rows:
        factor = work.rows // rows
        says = f"--per_device_train_batch_size {rows} --gradient_accumulation_steps {work.accumulation * factor}"
        yield Switch(says, "the same rows a step in smaller forwards", _batch(rows), "batch")
        rows //= 2
    for stage in ("zero2", "zero3"):
        yield Switch(f"--accelerate_config {stage}", "communication", _engine(stage))
    yield Switch(
        "--dtype bfloat16 --optim adamw_torch_8bit --optim_args bf16_stochastic_round=True",
        "8-bit optimizer states, weights rounded to bfloat16 at random; needs torchao",
        _eight_bit,
    )
    yield Switch(
        "offload_optimizer_device: cpu, in a copy of accelerate_configs/zero2.yaml or zero3.yaml",
        "steps wait for host memory",
        _offloaded,
    )
    gpus = 2 * work.engine.gpus
    while gpus <= MOST_GPUS:
        yield Switch(f"--gpus {gpus} --accelerate_config zero3", "more GPUs", _more_gpus(gpus), "gpus")
        gpus *= 2
    if planned.with_lora is not None:
        yield Switch(
            "--use_peft true --lora_r 16 --lora_target_modules all-linear", "trains an adapter, another method",
            lambda w: replace(w, shape=planned.with_lora, adapter=True, reference=w.reference and "adapter"),
        )  # fmt: skip
    yield Switch("--load_in_4bit true", "weights rounded to 4 bits; needs bitsandbytes", _four_bit)


def _cached(work: Workload) -> Workload | None:
    cacheable = work.fused or not any(work.needs[role].kept == ("hidden",) for role in work.reference_roles)
    return replace(work, reference="cache") if work.reference == "live" and cacheable else None


def _fused(work: Workload) -> Workload | None:
    if work.fused or not work.shape.fusible:
        return None
    return replace(work, fused=True, reference="cache" if work.reference == "live" else work.reference)


def _checkpointed(work: Workload) -> Workload | None:
    return None if work.checkpointing else replace(work, checkpointing=True)


def _batch(rows: int) -> Callable[[Workload], Workload | None]:
    def apply(work: Workload) -> Workload | None:
        if work.rows <= rows:
            return None
        return replace(work, rows=rows, accumulation=work.accumulation * (work.rows // rows))

    return apply


def _engine(name: str) -> Callable[[Workload], Workload | None]:
    def apply(work: Workload) -> Workload | None:
        if work.engine.gpus == 1 or work.quantized is not None or work.engine.name in ("zero3", "fsdp2", name):
            return None
        return replace(work, engine=Engine(name, work.engine.gpus))

    return apply


def _eight_bit(work: Workload) -> Workload | None:
    if work.engine.name not in ("single", "ddp") or work.adapter or work.optimizer in KEEPS_SMALL_UPDATES:
        return None
    return replace(work, dtype="bfloat16", optimizer="adamw_torch_8bit", optimizer_args="bf16_stochastic_round=True")


def _offloaded(work: Workload) -> Workload | None:
    engine = work.engine
    if engine.offload_optimizer or work.quantized is not None or engine.name == "fsdp2":
        return None
    return replace(work, engine=Engine(engine.name if engine.zero >= 2 else "zero2", engine.gpus, True))


def _more_gpus(gpus: int) -> Callable[[Workload], Workload | None]:
    def apply(work: Workload) -> Workload | None:
        if work.quantized is not None or gpus <= work.engine.gpus:
            return None
        return replace(work, engine=Engine("zero3", gpus, work.engine.offload_optimizer))

    return apply


def _four_bit(work: Workload) -> Workload | None:
    if not work.adapter or work.quantized is not None or work.engine.name not in ("single", "ddp"):
        return None
    return replace(work, quantized="4bit")
