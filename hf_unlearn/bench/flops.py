# SPDX-License-Identifier: Apache-2.0
"""Arithmetic that a training step must do, and what a GPU could do."""

from torch import nn

from ..training.arithmetic import multiplied_weights


# Dense bfloat16 products, in FLOP/s, from the makers' data sheets; the longer name first.
PEAK_BFLOAT16 = {
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835.5e12,
    "H100": 989.4e12,
    "A100": 312e12,
}


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Peak of a GPU in `dtype`, `None` where it is not in the table."""
    if dtype != "bfloat16":
        return None
    return next((peak for name, peak in PEAK_BFLOAT16.items() if name in device_name), None)


def model_flops(model: nn.Module, rows: int, row_length: int) -> float:
    r"""FLOP of one forward and backward of `rows` rows of `row_length` tokens; what is recomputed does not count.

    \\( 6 N + 6 L d_q T \\) a token: `N` weights that are multiplied (the head, not the lookup of embeddings), `L`
    layers, `d_q` the width of all heads together, `T` the row's length, of which causal attention needs half.
    """
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * head_dim * row_length
    return float((6 * multiplied_weights(model) + attention) * rows * row_length)
