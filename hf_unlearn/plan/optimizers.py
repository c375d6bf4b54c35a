# SPDX-License-Identifier: Apache-2.0
"""What the optimizers of `optim:` keep for each parameter."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerCost:
    """Bytes a trained parameter.

    Args:
        states (`float`): kept between steps, whatever the parameter's type.
        copies (`float`): kept between steps in the parameter's type, as a multiple of its size.
        temporary (`float`): during a step, as a multiple of its size.
        on_host (`bool`): states are paged, and count as host memory.
        full_embeddings (`bool`): 8 bytes for each parameter of the embeddings (bitsandbytes).
    """

    states: float = 0.0
    copies: float = 0.0
    temporary: float = 0.0
    on_host: bool = False
    full_embeddings: bool = False

    def bytes_of(self, parameter_size: float) -> float:
        """States of one parameter of `parameter_size` bytes."""
        return self.states + self.copies * parameter_size


# One scale of 4 bytes for each block, in two states.
TORCHAO_8BIT = 2 * (1 + 4 / 256)
TORCHAO_4BIT = 2 * (0.5 + 4 / 128)
OPTIMIZERS = {
    # torch.optim goes through all parameters at once and keeps one intermediate of each.
    "adamw_torch": OptimizerCost(copies=2, temporary=1),
    "adamw_torch_fused": OptimizerCost(copies=2),
    "adamw_torch_8bit": OptimizerCost(TORCHAO_8BIT),
    "adamw_torch_4bit": OptimizerCost(TORCHAO_4BIT),
    "adamw_8bit": OptimizerCost(TORCHAO_8BIT, full_embeddings=True),
    "adamw_bnb_8bit": OptimizerCost(TORCHAO_8BIT, full_embeddings=True),
    "paged_adamw_8bit": OptimizerCost(TORCHAO_8BIT, on_host=True, full_embeddings=True),
    "paged_adamw_32bit": OptimizerCost(8, on_host=True),
    "lion_8bit": OptimizerCost(TORCHAO_8BIT / 2, full_embeddings=True),
    "lion_32bit": OptimizerCost(4),
    "sgd": OptimizerCost(),
    # A row and a column of each matrix; the update itself is a temporary float32 matrix, one at a time.
    "adafactor": OptimizerCost(0.01),
}
KEEPS_SMALL_UPDATES = ("adamw_torch_8bit", "adamw_torch_4bit")


def optimizer_cost(name: str) -> OptimizerCost:
    """Looks an optimizer up.

    Raises:
        `ValueError`: for one that is not in the table.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optim={name!r} is not known to `plan`; it knows {', '.join(OPTIMIZERS)}.")
    return OPTIMIZERS[name]
