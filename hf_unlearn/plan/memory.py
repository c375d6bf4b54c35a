# SPDX-License-Identifier: Apache-2.0
"""Adds up what a workload needs. All numbers are bytes, of one GPU unless they say otherwise.

A step has its peak at one of these moments: the end of the forward, when all activations are there and the head's
buffers come on top; with activation checkpointing, when the last layer is computed again; the end of the backward,
when all gradients are there; the optimizer's step. Assumptions are constants here.
"""

from dataclasses import dataclass

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
            layer, at the end of the `backward` and in the optimizer's `step`.
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
        "backward": {"activations of one layer": one_layer + _stream_bytes(work)},
        "step": {"optimizer's temporaries": _step_bytes(work)},
    }
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
    return shape.parameters * _size(work) * engine.share("zero3", "fsdp2")


def gradient_bytes(work: Workload) -> float:
    """Gradients, as the engine holds them."""
    return work.shape.trainable * _gradient_size(work) * work.engine.share("zero2", "zero3", "fsdp2")


def optimizer_bytes(work: Workload) -> float:
    """Optimizer states of one GPU, with the float32 weights that DeepSpeed keeps; 0 where they are in host memory."""
    on_host = work.engine.offload_optimizer or optimizer_cost(work.optimizer).on_host
    return 0.0 if on_host else _states(work) * work.engine.share("zero1", "zero2", "zero3", "fsdp2")


def _states(work: Workload) -> float:
    """Of all GPUs together."""
    cost, shape = optimizer_cost(work.optimizer), work.shape
    master = 4 if work.engine.zero else 0
    size = 4 if master else _gradient_size(work)
    states = shape.trainable * (cost.bytes_of(size) + master)
    if cost.full_embeddings and shape.trainable == shape.parameters:
        states += shape.embedding * (8 - cost.bytes_of(size))
    return states


def reference_bytes(work: Workload) -> float:
    """A frozen copy of the whole model, where there is one."""
    if work.reference != "live":
        return 0.0
    return work.shape.parameters * _size(work) * work.engine.share("zero3", "fsdp2")


def communication_bytes(work: Workload) -> float:
    """Buffers of the engine: gradients on their way, and sharded weights while they are whole."""
    shape, engine = work.shape, work.engine
    if engine.name == "ddp":
        return gradient_bytes(work)
    if engine.zero:
        bucket = min(BUCKET, shape.trainable) * _size(work)
        # ZeRO-3 fills one bucket while the other travels, and keeps what it gathered until it is used next.
        return 2 * bucket + min(LIVE, shape.parameters) * _size(work) if engine.zero == 3 else bucket
    if engine.name == "fsdp2":
        whole = 2 if work.mixed else 4
        outside = shape.parameters - shape.layers * shape.layer
        return (2 * shape.layer + outside) * whole + 4 * shape.layer
    return 0.0


def layer_bytes(work: Workload) -> float:
    r"""What one layer of a Llama keeps for its backward.

    \\( n d + 2 b (d_q + d_{kv}) + 4 b f \\) a token, where `b` is the size of the arithmetic's type and `n`, of norms
    and residuals, is 16 in bfloat16, 24 in float32 and 26 with float32 weights under autocast. Where keys and values
    are repeated for every query head, \\( d_{kv} \\) is \\( d_q \\).
    """
    shape = work.shape
    size = _compute_size(work)
    norms = 24 if size == 4 else 16 if _size(work) == 2 else 26
    key_value = shape.query if work.repeats else shape.key_value
    a_token = norms * shape.hidden + size * (2 * shape.query + 2 * key_value) + 4 * size * shape.intermediate
    if work.eager:
        a_token += shape.heads * work.row_length * (2 * size + 4)
    return a_token * work.tokens


def activation_bytes(work: Workload) -> float:
    """What the forward keeps for the backward: of every layer everything, or with checkpointing its input."""
    shape = work.shape
    stream = _stream_bytes(work)
    layers = stream * shape.layers if work.checkpointing else layer_bytes(work) * shape.trained_layers
    # The last norm, and what flows between the layers and the head.
    return layers + 4 * stream


def _stream_bytes(work: Workload) -> float:
    """One tensor between two layers."""
    return _size(work) * work.shape.hidden * work.tokens


def cache_bytes(work: Workload) -> float | None:
    """Disk that a cached reference takes; `None` where the number of rows is not known."""
    if work.reference != "cache":
        return 0.0
    if work.dataset_rows is None:
        return None
    size = _compute_size(work)
    total = 0.0
    for role in work.reference_roles:
        token = 4 if work.needs[role].kept == ("token_logps",) else work.shape.hidden * size
        total += work.dataset_rows[role] * work.tokens_a_row * token
    return total + _reference_head(work)


def _reference_head(work: Workload) -> float:
    kl = any(work.needs[role].kept == ("hidden",) for role in work.reference_roles)
    if work.reference != "cache" or not kl or not work.shape.head_trains:
        return 0.0
    return work.shape.vocab * work.shape.hidden * _size(work)


def _autocast_bytes(work: Workload) -> float:
    """Autocast copies float32 matrices for the length of a forward."""
    if not work.mixed or _size(work) != 4 or work.engine.name == "fsdp2" or work.quantized is not None:
        return 0.0
    return 2 * (work.shape.matrices - work.shape.embedding)


def _step_bytes(work: Workload) -> float:
    """Temporaries of the optimizer's step."""
    cost, engine, trained = optimizer_cost(work.optimizer), work.engine, work.shape.trainable
    if not engine.zero:
        return trained * _gradient_size(work) * cost.temporary * engine.share("fsdp2")
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
        host += shape.parameters * _size(work)
    # Every process loads the whole model and then moves it, unless weights are sharded from the start.
    copies = 1 if engine.name in ("zero3", "fsdp2") else engine.gpus
    return host, shape.parameters * (4 if work.dtype == "float32" else 2) * copies, cache_bytes(work)


def _size(work: Workload) -> int:
    """Bytes of a weight in training: DeepSpeed trains in bfloat16 what `bf16: true` says, FSDP2 shards float32."""
    if work.engine.zero and work.mixed:
        return 2
    if work.engine.name == "fsdp2" and work.mixed:
        return 4
    return 4 if work.dtype == "float32" else 2


def _gradient_size(work: Workload) -> int:
    """Bytes of a trained weight and its gradient; PEFT makes adapters float32, unless DeepSpeed narrows them."""
    return 4 if work.adapter and not work.engine.zero else _size(work)


def _compute_size(work: Workload) -> int:
    return 2 if work.mixed or _size(work) == 2 else 4


def _nonzero(parts: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in parts.items() if value}
