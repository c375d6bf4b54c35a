# SPDX-License-Identifier: Apache-2.0
"""Losses from last hidden states and the LM head, without `[B, T, V]` logits.

```python
from hf_unlearn import fused

def objective(hidden, head):  # runs in place of the LM head, inside the model's own forward
    return {"loss": fused.nll_loss(hidden, labels, head)}

loss = fused.head_forward(model, {"input_ids": ids, "attention_mask": mask}, objective)["loss"]
```
"""

from importlib import import_module


_PUBLIC = {
    "Head": "head",
    "RowLoss": "losses",
    "TileRows": "rows",
    "check_head": "forward",
    "gathered_head": "head",
    "head_forward": "forward",
    "head_of": "head",
    "kl_to_reference": "losses",
    "nll_loss": "losses",
    "per_token_logps": "losses",
    "row_kl_to_reference": "losses",
    "row_logps": "losses",
    "row_uniform_kl": "losses",
    "row_values": "rows",
    "sequence_logps": "losses",
    "uniform_kl": "losses",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    # torch takes seconds to import; nothing is imported before it is used.
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
