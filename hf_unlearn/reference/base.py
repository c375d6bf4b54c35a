# SPDX-License-Identifier: Apache-2.0
"""Frozen models that rows are compared with, by name. `reference` is the model as it enters the trainer:

| form      | memory          | when                                                                              |
|-----------|-----------------|-----------------------------------------------------------------------------------|
| `adapter` | the adapter's   | PEFT: a fresh adapter is switched off; what trains beside it, or came in trained, |
|           | at most         | has its former values back for the moment                                         |
| `cache`   | an LM head      | full fine-tuning: computed before training, kept on disk                          |
| `live`    | a second model  | otherwise, and where a `ref_model` is given; where only some matrices train and   |
|           |                 | none is sharded, a copy of those alone                                            |

Another model is given by a path or loaded, and is `cache` or `live` by the same rule; switching the policy's adapter
does not give it.
"""

from torch import nn

from ..forward.passes import Parts
from ..forward.path import Forward
from ..forward.role_rows import ReferenceRows
from ..stored.row_cache import RunStart


class Reference:
    """Where a frozen model's predictions come from. `open` and `close` enclose a call of `train`."""

    name: str
    # Whether rows go through a model in training; not so where what it says was kept.
    reads_along = True

    def open(self, accelerator) -> None:
        """Places what is needed on the devices; called before the model is wrapped."""

    def prepare(self, start: RunStart) -> None:
        """Computes what is needed ahead; called by all ranks when the model is wrapped, before the first step."""

    def close(self) -> None:
        """Takes off the model what `open` put on it."""

    def rows(self, forward: Forward, policy: nn.Module, parts: Parts) -> dict[str, ReferenceRows]:
        """What the reference says of rows.

        Args:
            forward ([`Forward`]): the path to use.
            policy (`nn.Module`): the wrapped model, whose forward gathers sharded weights.
            parts (`Parts`): role to its rows of a batch.
        """
        raise NotImplementedError
