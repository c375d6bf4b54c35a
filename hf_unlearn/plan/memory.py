# SPDX-License-Identifier: Apache-2.0
"""Adds up what a workload needs. All numbers are bytes, of one GPU unless they say otherwise.

A step has its peak at one of these moments: the end of the forward, when all activations are there and the head's
buffers come on top; with activation checkpointing, when the last layer is computed again; the end of the backward,
when all gradients are there; the optimizer's step; an add-on's start, or inner steps. Assumptions are constants here.
"""

from dataclasses import dataclass

from .activations import (
    activation_bytes,
    compute_size,
    gradient_size,
    layer_bytes,
    stream_bytes,
    weight_size,
)
from .addons import inner_bytes, total
from .heads import head_bytes, head_gradient_bytes
from .optimizers import optimizer_cost
from .workload import Workload


GIB = 2**30
# CUDA context, kernels and workspaces; and what an allocator cannot use of what it holds.
CONTEXT = 0.8 * GIB
FRAGMENTATION = 0.05
# DeepSpeed's defaults, in parameters.
BUCKET, LIVE, SUB_GROUP = 5e8, 1e9, 1e9
# bitsandbytes: 4 bits and a nested scale each; 8 bits and a scale each row.
QUANTIZED_BYTES = {"4bit": 0.516, "8bit": 1.001}


@dataclass(frozen=True)
class Estimate:
    """What a workload needs.

    Args:
        held (`dict[str, float]`): there all the time.
        moments (`dict[str, dict[str, float]]`): on top of it, at the end of the `forward`, in the `recomputation` of a
            layer, at the end of the `backward` and in the optimizer's `step`; with some add-ons, at their `start` and
            in `inner` steps.
        host (`float`): of one machine that holds all the GPUs, while training.
        loading (`float`): the same, while the model is loaded.
        disk (`float`, *optional*): cached reference; `None` where the rows are not known.
    """

    held: dict[str, float]
    moments: dict[str, dict[str, float]]
    host: float
    loading: float
    disk: float | None

    @property
    def peak(self) -> float:
        """Most of a GPU at a time."""
        return sum(self.held.values()) + sum(self.moments[self.moment].values())

    @property
    def moment(self) -> str:
        """Which of the moments has the peak."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))


def estimate(work: Workload, on_gpu: bool = True) -> Estimate:
    """What one process of a workload needs.

    Args:
        work ([`Workload`]): the workload.
        on_gpu (`bool`): add what a GPU's driver and allocator take.
    """
    held = {
        "weights": weight_bytes(work),
        "optimizer states": optimizer_bytes(work),
        "reference model": reference_bytes(work),
        "reference head": _reference_head(work),
        "communication": communication_bytes(work),
        "add-ons": total(work, "held"),
    }
    gradients = {"gradients": gradient_bytes(work)}
    one_layer = layer_bytes(work) if work.shape.trained_layers else 0.0
    moments = {
        "forward": {
            "activations": activation_bytes(work),
            "weights in bfloat16 (autocast)": _autocast_bytes(work),
            "logits and head": head_bytes(work, on_gpu),
        },
        "recomputation": {
            "activations, one layer whole": activation_bytes(work) + one_layer if work.checkpointing else 0.0,
            "head's gradient": head_gradient_bytes(work),
        },
        "backward": {"activations of one layer": one_layer + stream_bytes(work)},
        "step": {"optimizer's temporaries": _step_bytes(work)},
    }
    moments["backward"]["add-ons, gradients"] = total(work, "backward")
    if found := inner_bytes(work):
        # Layers keep their copies for the backward, frozen or not.
        moments["inner"] = {**found, "weights in bfloat16 (autocast)": _autocast_bytes(work)}
    for name in moments.keys() - {"step"} - (set() if work.checkpointing else {"recomputation"}):
        moments[name]["add-ons, in a repeated pass"] = total(work, "repeated")
    # There are no optimizer states yet.
    start = max(total(work, "start") - held["optimizer states"], 0.0)
    moments |= {"start": {"scores of weights": start}} if start else {}
    if work.accumulation > 1:
        held |= gradients
    else:
        moments["backward"] |= gradients
        moments["step"] |= gradients
    found = Estimate(_nonzero(held), {k: _nonzero(v) for k, v in moments.items()}, *_elsewhere(work))
    if on_gpu:
        found.held["context and fragmentation"] = CONTEXT + FRAGMENTATION * found.peak
    return found


def weight_bytes(work: Workload) -> float:
    """The model's own weights, as the engine holds them."""
    shape, engine = work.shape, work.engine
    if work.quantized is not None:
        # What is not quantised is made float32 for training.
        return shape.quantizable * QUANTIZED_BYTES[work.quantized] + 4 * (shape.parameters - shape.quantizable)
    if engine.offload_weights:
        return 0.0
    return shape.parameters * weight_size(work) * engine.share("zero3", "fsdp2")


def gradient_bytes(work: Workload) -> float:
    """Gradients, as the engine holds them."""
    return work.shape.trainable * gradient_size(work) * work.engine.share("zero2", "zero3", "fsdp2")


def optimizer_bytes(work: Workload) -> float:
    """Optimizer states of one GPU, with the float32 weights that DeepSpeed keeps; 0 where they are in host memory."""
    on_host = work.engine.offload_optimizer or optimizer_cost(work.optimizer).on_host
    return 0.0 if on_host else _states(work) * work.engine.share("zero1", "zero2", "zero3", "fsdp2")


def _states(work: Workload) -> float:
    """Of all GPUs together."""
    cost, shape = optimizer_cost(work.optimizer), work.shape
    master = 4 if work.engine.zero else 0
    size = 4 if master else gradient_size(work)
    states = shape.trainable * (cost.bytes_of(size) + master)
    if cost.full_embeddings and shape.trainable == shape.parameters:
        states += shape.embedding * (8 - cost.bytes_of(size))
    return states


def reference_bytes(work: Workload) -> float:
    """A frozen copy of the whole model, where there is one."""
    if work.reference != "live":
        return 0.0
    return work.shape.parameters * weight_size(work) * work.engine.share("zero3", "fsdp2")


def communication_bytes(work: Workload) -> float:
    """Buffers of the engine: gradients on their way, and sharded weights while they are whole."""
    shape, engine = work.shape, work.engine
    if engine.name == "ddp":
        return gradient_bytes(work)
    if engine.zero:
        bucket = min(BUCKET, shape.trainable) * weight_size(work)
        # ZeRO-3 fills one bucket while the other travels, and keeps what it gathered until it is used next.
        return 2 * bucket + min(LIVE, shape.parameters) * weight_size(work) if engine.zero == 3 else bucket
    if engine.name == "fsdp2":
        whole = 2 if work.mixed else 4
        outside = shape.parameters - shape.layers * shape.layer
        return (2 * shape.layer + outside) * whole + 4 * shape.layer
    return 0.0


def cache_bytes(work: Workload) -> float | None:
    """Disk that a cached reference takes; `None` where the number of rows is not known."""
    if work.reference != "cache":
        return 0.0
    if work.dataset_rows is None:
        return None
    size = compute_size(work)
    total = 0.0
    for role in work.reference_roles:
        token = 4 if work.needs[role].kept == ("token_logps",) else work.shape.hidden * size
        total += work.dataset_rows[role] * work.tokens_a_row * token
    return total + _reference_head(work)


def _reference_head(work: Workload) -> float:
    kl = any(work.needs[role].kept == ("hidden",) for role in work.reference_roles)
    if work.reference != "cache" or not kl or not work.shape.head_trains:
        return 0.0
    return work.shape.vocab * work.shape.hidden * weight_size(work)


def _autocast_bytes(work: Workload) -> float:
    """Autocast copies float32 matrices for the length of a forward."""
    if not work.mixed or weight_size(work) != 4 or work.engine.name == "fsdp2" or work.quantized is not None:
        return 0.0
    return 2 * (work.shape.matrices - work.shape.embedding)


def _step_bytes(work: Workload) -> float:
    """Temporaries of the optimizer's step."""
    cost, engine, trained = optimizer_cost(work.optimizer), work.engine, work.shape.trainable
    if not engine.zero:
        return trained * gradient_size(work) * cost.temporary * engine.share("fsdp2")
    if engine.offload_optimizer:
        return 0.0
    part = trained / engine.gpus
    # Gradients of the part in float32, and the optimizer's own; ZeRO-3 goes through it in groups.
    return (min(part, SUB_GROUP) if engine.zero == 3 else part) * 4 * (1 + cost.temporary)


def _elsewhere(work: Workload) -> tuple[float, float, float | None]:
    """Host memory in training and in loading, of all processes together, and disk."""
    shape, engine = work.shape, work.engine
    host = 0.0
    if engine.offload_optimizer:
        host += _states(work) + 4 * shape.trainable  # gradients arrive in float32
    elif optimizer_cost(work.optimizer).on_host:
        host += _states(work) * engine.gpus
    if engine.offload_weights:
        host += shape.parameters * weight_size(work)
    # Every process loads the whole model and then moves it, unless weights are sharded from the start.
    copies = 1 if engine.name in ("zero3", "fsdp2") else engine.gpus
    return host, shape.parameters * (4 if work.dtype == "float32" else 2) * copies, cache_bytes(work)


def _nonzero(parts: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in parts.items() if value}
