# SPDX-License-Identifier: Apache-2.0
"""Losses from last hidden states and the LM head, without `[B, T, V]` logits.

```python
from hf_unlearn import fused

def objective(hidden, head):  # runs in place of the LM head, inside the model's own forward
    return {"loss": fused.nll_loss(hidden, labels, head)}

loss = fused.head_forward(model, {"input_ids": ids, "attention_mask": mask}, objective)["loss"]
```
"""

from typing import TYPE_CHECKING

from ..lazy import lazy


if TYPE_CHECKING:
    from .forward import check_head, head_forward
    from .head import Head, gathered_head, head_of
    from .losses import (
        RowLoss,
        kl_to_reference,
        nll_loss,
        per_token_logps,
        row_kl_to_reference,
        row_logps,
        row_uniform_kl,
        sequence_logps,
        uniform_kl,
    )
    from .tile_rows import TileRows, row_values

__all__, __getattr__, __dir__ = lazy(__name__)
