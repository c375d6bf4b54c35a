# SPDX-License-Identifier: Apache-2.0
"""What layers keep for their backward, and the sizes of numbers. All is bytes, of one GPU."""

from .workload import Workload


def layer_bytes(work: Workload) -> float:
    r"""What one layer of a Llama keeps for its backward.

    \\( n d + 2 b (d_q + d_{kv}) + 4 b f \\) a token, where `b` is the size of the arithmetic's type and `n`, of norms
    and residuals, is 16 in bfloat16, 24 in float32 and 26 with float32 weights under autocast. Where keys and values
    are repeated for every query head, \\( d_{kv} \\) is \\( d_q \\).
    """
    shape = work.shape
    size = compute_size(work)
    norms = 24 if size == 4 else 16 if weight_size(work) == 2 else 26
    key_value = shape.query if work.repeats else shape.key_value
    a_token = norms * shape.hidden + size * (2 * shape.query + 2 * key_value) + 4 * size * shape.intermediate
    if work.eager:
        a_token += shape.heads * work.row_length * (2 * size + 4)
    return a_token * work.tokens


def activation_bytes(work: Workload) -> float:
    """What the forward keeps for the backward: of every layer everything, or with checkpointing its input."""
    shape = work.shape
    stream = stream_bytes(work)
    layers = stream * shape.layers if work.checkpointing else layer_bytes(work) * shape.trained_layers
    # The last norm, and what flows between the layers and the head.
    return layers + 4 * stream


def stream_bytes(work: Workload) -> float:
    """One tensor between two layers."""
    return weight_size(work) * work.shape.hidden * work.tokens


def weight_size(work: Workload) -> int:
    """Bytes of a weight in training: DeepSpeed trains in bfloat16 what `bf16: true` says, FSDP2 shards float32."""
    if work.engine.zero and work.mixed:
        return 2
    if work.engine.name == "fsdp2" and work.mixed:
        return 4
    return 4 if work.dtype == "float32" else 2


def gradient_size(work: Workload) -> int:
    """Bytes of a trained weight and its gradient; PEFT makes adapters float32, unless DeepSpeed narrows them."""
    return 4 if work.adapter and not work.engine.zero else weight_size(work)


def compute_size(work: Workload) -> int:
    return 2 if work.mixed or weight_size(work) == 2 else 4
